//! The chunks of a file: dropping them hands their replicas to reclaim.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, InodeId, UnixNanos};

use crate::core::key::{Key, Range};
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Inode, Reclaim, Record};
use crate::core::view::{Stop, View};

/// First and last index, both inclusive.
pub(super) type IndexRange = (ChunkIndex, ChunkIndex);

/// Most chunks that a truncate or punch drops in its own batch, and in each one after it.
pub const DROPPED_AT_ONCE: usize = 512;
/// The range of all chunks of a file.
pub(super) const ALL: IndexRange = (ChunkIndex(0), ChunkIndex(u32::MAX));
/// Files with up to so many chunks are dropped without a scan, if they have no holes.
const PROBED_MAX: u64 = 8;

/// Drops all chunks of `inode`, which are few, and returns how many there were.
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
    Ok(drop_range(outcome, view, now, inode.id, ALL, usize::MAX)?.0)
}

/// Drops up to `limit` chunks of `inode` with indexes from `first` to `last` (both inclusive). Returns how many, and the
/// range that may have more.
///
/// # Errors
///
/// [`Stop::Scan`].
pub(super) fn drop_range(
    outcome: &mut Outcome,
    view: &View<'_>,
    now: UnixNanos,
    inode: InodeId,
    (first, last): IndexRange,
    limit: usize,
) -> Result<(u64, Option<IndexRange>), Stop> {
    let found = view.scan(Range::chunks(inode, first, last, limit))?;
    for (key, record) in found.iter() {
        let Record::Chunk(chunk) = record else {
            unreachable!("a chunk key holds a chunk: records are decoded by their key")
        };
        drop_one(outcome, view, now, key.clone(), chunk);
    }
    let left = match found.last() {
        Some((Key::Chunk(_, index), _)) if found.len() >= limit && *index < last => {
            Some((ChunkIndex(index.0 + 1), last))
        }
        _ => None,
    };
    Ok((found.len() as u64, left))
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
