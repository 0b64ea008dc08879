//! A replica of a chunk that is not on record.

use dfs_proto::{ChunkId, NodeId, UnixNanos};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Reclaim, Record};
use crate::core::view::{Stop, View};

/// Hands the replica that `node` has of `chunk` to reclaim, as if the chunk had been dropped now.
///
/// # Errors
///
/// [`Stop`].
pub fn reclaim_unknown(view: &View<'_>, now: UnixNanos, node: NodeId, chunk: ChunkId) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    let key = Key::Reclaim(UnixNanos(now.0.saturating_add(view.reclaim_delay_ns)), chunk);
    let mut nodes = match view.find(&key)? {
        Some(Record::Reclaim(reclaim)) => reclaim.nodes.clone(),
        _ => Vec::new(),
    };
    if !nodes.contains(&node) {
        nodes.push(node);
        outcome.totals.reclaim_pending += 1;
        let seq = outcome.seq();
        outcome.put(key, Record::Reclaim(Reclaim { nodes, seq }.into()));
    }
    Ok(outcome)
}
