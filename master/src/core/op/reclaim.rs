//! Replicas of dropped chunks, once they are gone from the disks.

use dfs_proto::{ChunkId, NodeId, UnixNanos};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Reclaim, Record};
use crate::core::view::{Stop, View};

/// Notes that `node` has deleted its replicas of `chunks`, each with the time it was due.
///
/// # Errors
///
/// [`Stop`].
pub fn reclaim_done(view: &View<'_>, node: NodeId, chunks: &[(UnixNanos, ChunkId)]) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    let keys: Vec<Key> = chunks.iter().map(|(due, chunk)| Key::Reclaim(*due, *chunk)).collect();
    let records = view.find_all(&keys)?;
    for (key, record) in keys.into_iter().zip(records) {
        let Some(Record::Reclaim(reclaim)) = record else { continue };
        let left: Vec<NodeId> = reclaim.nodes.iter().copied().filter(|holder| *holder != node).collect();
        if left.len() == reclaim.nodes.len() {
            continue;
        }
        outcome.totals.reclaim_pending -= 1;
        if left.is_empty() {
            outcome.delete(key);
        } else {
            let seq = outcome.seq();
            outcome.put(key, Record::Reclaim(Reclaim { nodes: left, seq }.into()));
        }
    }
    Ok(outcome)
}
