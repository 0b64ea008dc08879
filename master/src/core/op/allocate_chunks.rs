//! Chunks for a file to be written to.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, FsError, InodeId, Version, limits};

use super::{get_chunks, open};
use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Chunk, Record};
use crate::core::view::{Stop, View};

/// Makes a chunk at each of `count` places from `first` on that has none; those that exist are returned as they are.
/// The size does not change: that is for the commit of what was written.
///
/// New chunks are durable before the caller is told of them: replicas will be made by their ids, and one that no record
/// knows of would never be deleted.
///
/// # Errors
///
/// [`FsError::FileTooBig`], [`FsError::NoSpace`], [`FsError::NoReplica`], and as `get_chunks`; [`Stop`].
pub(super) fn allocate_chunks(view: &View<'_>, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Outcome, Stop> {
    let file = view.inode(inode)?;
    open::check_file(file.kind)?;
    get_chunks::check_no_cut(view, inode, file.is_cut_pending, first, count)?;
    let last = u64::from(first.0) + u64::from(count) - 1;
    if (last + 1) << file.chunk_size_log2 > limits::FILE_BYTES_MAX {
        return Err(FsError::FileTooBig.into());
    }
    let mut outcome = Outcome::new(view);
    let found = view.chunks(inode, first, count)?;
    let mut chunks = Vec::with_capacity(found.len());
    let mut made = 0;
    for (index, existing) in (first.0..=u32::MAX).map(ChunkIndex).zip(found) {
        let chunk = match existing {
            Some(chunk) => chunk,
            None => {
                let id = view.new_chunk_id()?;
                let in_sync = view.cluster.place(id.0, file.replicas as usize)?;
                let primary = *in_sync.first().ok_or_else(|| FsError::NoReplica("no server was chosen".into()))?;
                let chunk = Arc::new(Chunk {
                    id,
                    version: Version(1),
                    primary,
                    in_sync,
                    syncing: Vec::new(),
                    stale: Vec::new(),
                    is_written: false,
                    set_seq: outcome.seq(),
                    version_seq: outcome.seq(),
                    loss_version: Version(0),
                    seq: outcome.seq(),
                });
                outcome.put(Key::Chunk(inode, index), Record::Chunk(Arc::clone(&chunk)));
                made += 1;
                chunk
            }
        };
        // Also of one that an earlier try made.
        outcome.durable_first = outcome.durable_first.max(chunk.seq);
        chunks.push((index, Some(chunk)));
    }
    if made > 0 {
        outcome.edit(view, inode, |inode| inode.chunks += made)?;
        outcome.totals.chunks += made as i64;
    }
    let inode = outcome.inode(view, inode)?;
    Ok(outcome.reply(Body::Chunks { inode, chunks }))
}
