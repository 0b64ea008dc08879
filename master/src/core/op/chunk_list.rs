//! The chunks of a file: dropping them hands their replicas to reclaim.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, InodeId, UnixNanos};

use crate::core::key::{Key, Range};
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Inode, Reclaim, Record};
use crate::core::view::{Stop, View};

/// Files with up to so many chunks are dropped without a scan, if they have no holes.
const PROBED_MAX: u64 = 8;

/// Drops all chunks of `inode`, and returns how many there were.
///
/// # Errors
///
/// [`Stop`] of the reads.
pub(super) fn drop_all(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, inode: &Inode) -> Result<u64, Stop> {
    if inode.chunks == 0 {
        return Ok(0);
    }
    if inode.chunks <= PROBED_MAX {
        // As a rule these are all of them. A scan has to go to the store, and first the batch with it.
        let first = view.chunks(inode.id, ChunkIndex(0), inode.chunks as u32)?;
        if first.iter().all(Option::is_some) {
            for (index, chunk) in (0..).zip(first.iter().flatten()) {
                drop_one(outcome, view, now, Key::Chunk(inode.id, ChunkIndex(index)), chunk);
            }
            return Ok(inode.chunks);
        }
    }
    drop_range(outcome, view, now, inode.id, (ChunkIndex(0), ChunkIndex(u32::MAX)), usize::MAX)
}

/// Drops up to `limit` chunks of `inode` with indexes from `first` to `last` (both inclusive), and returns how many.
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
    for (key, record) in found.iter() {
        let Record::Chunk(chunk) = record else {
            unreachable!("a chunk key holds a chunk: records are decoded by their key")
        };
        drop_one(outcome, view, now, key.clone(), chunk);
    }
    Ok(found.len() as u64)
}

/// The id dies with the record; the replicas are deleted once the delay is over.
fn drop_one(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, key: Key, chunk: &Arc<Chunk>) {
    let due = UnixNanos(now.0.saturating_add(view.reclaim_delay_ns));
    let nodes: Vec<_> = chunk.holders().collect();
    outcome.totals.chunks -= 1;
    outcome.totals.reclaim_pending += nodes.len() as i64;
    outcome.delete(key);
    let seq = outcome.seq();
    outcome.put(Key::Reclaim(due, chunk.id), Record::Reclaim(Reclaim { nodes, seq }.into()));
}
