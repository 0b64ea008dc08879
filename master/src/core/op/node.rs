//! A chunk server becomes known, or says where it is now.

use std::sync::Arc;

use dfs_proto::{BootSession, NodeId, Seq};

use crate::core::care::NodeFacts;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Node, Record};
use crate::core::view::{Stop, View};

/// Keeps what a server says of itself under its id, and returns its record as it then is. It is durable before the server
/// is told anything.
///
/// A run that has ended gets another name: whatever it was granted before is void, at the latest when it goes by the new
/// one. `is_suspect` counts for a run that is new only; what became of an older one was settled before it was granted
/// anything.
///
/// # Errors
///
/// [`Stop`].
pub fn register_node(
    view: &View<'_>,
    id: NodeId,
    facts: &NodeFacts,
    boot: BootSession,
    is_suspect: bool,
) -> Result<(Outcome, Arc<Node>), Stop> {
    let mut outcome = Outcome::new(view);
    let known = match view.find(&Key::Node(id))? {
        Some(Record::Node(node)) => node,
        _ => Arc::default(),
    };
    let mut node = Node { facts: facts.clone(), ..Node::clone(&known) };
    let boot = fresh(boot, &node.ended);
    if boot != known.boot {
        if known.boot != BootSession(0) {
            node.end_run(known.boot);
        }
        node.boot = boot;
        if is_suspect {
            node.suspect_seq = outcome.seq();
        }
    }
    if known.seq == Seq(0) || node != *known {
        node.seq = outcome.seq();
        outcome.put(Key::Node(id), Record::Node(Arc::new(node.clone())));
    }
    outcome.durable_first = node.seq;
    Ok((outcome, Arc::new(node)))
}

/// Returns `boot`, or the next number that is no ended run. They are random: nobody else has it.
fn fresh(boot: BootSession, ended: &[BootSession]) -> BootSession {
    let mut boot = boot;
    while boot == BootSession(0) || ended.contains(&boot) {
        boot = BootSession(boot.0.wrapping_add(1));
    }
    boot
}

/// Notes whether node `id` is to be emptied. One that is not on record changes nothing.
///
/// # Errors
///
/// [`Stop`].
pub fn drain_node(view: &View<'_>, id: NodeId, is_draining: bool) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if let Some(Record::Node(node)) = view.find(&Key::Node(id))?
        && node.is_draining != is_draining
    {
        let node = Node { is_draining, seq: outcome.seq(), ..Node::clone(&node) };
        outcome.durable_first = node.seq;
        outcome.put(Key::Node(id), Record::Node(Arc::new(node)));
    }
    Ok(outcome)
}

/// Forgets a chunk server: its id stays its own, should it ever come back, and belongs to nobody else. One that is not on
/// record changes nothing.
///
/// # Errors
///
/// [`Stop`].
pub fn remove_node(view: &View<'_>, id: NodeId) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if let Some(Record::Node(known)) = view.find(&Key::Node(id))?
        && !known.is_removed()
    {
        let mut node = Node::clone(&known);
        node.end_run(known.boot);
        node.facts = NodeFacts { server_id: known.facts.server_id, ..NodeFacts::default() };
        node.is_draining = false;
        node.seq = outcome.seq();
        outcome.durable_first = node.seq;
        outcome.put(Key::Node(id), Record::Node(Arc::new(node)));
    }
    Ok(outcome)
}
