//! A chunk server becomes known, or says where it is now.

use dfs_proto::NodeId;

use crate::core::care::NodeFacts;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Node, Record};
use crate::core::view::{Stop, View};

/// Keeps what a server says of itself, under `known` or, the first time, a new id; returns that too.
///
/// # Errors
///
/// [`Stop`].
pub fn register_node(view: &View<'_>, known: Option<NodeId>, facts: &NodeFacts) -> Result<(NodeId, Outcome), Stop> {
    let id = match known {
        Some(id) => id,
        None => view.new_node_id()?,
    };
    let mut outcome = Outcome::new(view);
    let seq = outcome.seq();
    let is_same = matches!(view.find(&Key::Node(id))?, Some(Record::Node(node)) if node.facts == *facts);
    if !is_same {
        outcome.durable_first = seq;
        outcome.put(Key::Node(id), Record::Node(Node { facts: facts.clone(), seq }.into()));
    }
    Ok((id, outcome))
}
