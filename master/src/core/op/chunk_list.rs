//! The chunks of a file: dropping them hands their replicas to reclaim.

use dfs_proto::{ChunkIndex, InodeId, UnixNanos};

use crate::core::key::{Key, Range};
use crate::core::outcome::Outcome;
use crate::core::record::{Reclaim, Record};
use crate::core::view::{Stop, View};

/// Drops up to `limit` chunks of `inode` with indexes from `first` to `last` (both inclusive), and returns how many.
/// The ids die with them; the replicas are deleted once the delay is over.
///
/// # Errors
///
/// [`Stop::Scan`].
pub(super) fn drop_range(
    outcome: &mut Outcome,
    view: &View<'_>,
    now: UnixNanos,
    inode: InodeId,
    (first, last): (ChunkIndex, ChunkIndex),
    limit: usize,
) -> Result<u64, Stop> {
    let found = view.scan(Range::chunks(inode, first, last, limit))?;
    let due = UnixNanos(now.0.saturating_add(view.reclaim_delay_ns));
    for (key, record) in found.iter() {
        let Record::Chunk(chunk) = record else {
            unreachable!("a chunk key holds a chunk: records are decoded by their key")
        };
        let nodes: Vec<_> = chunk.holders().collect();
        outcome.totals.chunks -= 1;
        outcome.totals.reclaim_pending += nodes.len() as i64;
        outcome.delete(key.clone());
        let seq = outcome.seq();
        outcome.put(Key::Reclaim(due, chunk.id), Record::Reclaim(Reclaim { nodes, seq }.into()));
    }
    Ok(found.len() as u64)
}
