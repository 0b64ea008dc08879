//! A chunk server becomes known, or says where it is now.

use dfs_proto::{NodeId, Seq};

use crate::core::care::NodeFacts;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Node, Record};
use crate::core::view::{Stop, View};

/// Keeps what a server says of itself under its id. It is durable before the server is told the id.
///
/// # Errors
///
/// [`Stop`].
pub fn register_node(view: &View<'_>, id: NodeId, facts: &NodeFacts) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    let seq = outcome.seq();
    let known = match view.find(&Key::Node(id))? {
        Some(Record::Node(node)) => Node::clone(&node),
        _ => Node::default(),
    };
    if known.seq != Seq(0) && known.facts == *facts {
        outcome.durable_first = known.seq;
    } else {
        outcome.durable_first = seq;
        outcome.put(Key::Node(id), Record::Node(Node { facts: facts.clone(), seq, ..known }.into()));
    }
    Ok(outcome)
}
