//! fallocate(2) with FALLOC_FL_PUNCH_HOLE, as far as it covers whole chunks.

use dfs_proto::{ChunkIndex, InodeId, UnixNanos};

use super::{CUT_PENDING, chunk_list, cut, open};
use crate::core::outcome::{Body, Outcome};
use crate::core::record::Cut;
use crate::core::view::{Stop, View};

/// Turns `count` chunks from `first` on into holes; if they are many, some of them later. The size stays.
///
/// # Errors
///
/// [`FsError::NoEntry`](dfs_proto::FsError::NoEntry), [`FsError::IsDirectory`](dfs_proto::FsError::IsDirectory),
/// [`CUT_PENDING`]; [`Stop`].
pub(super) fn punch_chunks(
    view: &View<'_>,
    now: UnixNanos,
    inode: InodeId,
    first: ChunkIndex,
    count: u32,
    mtime: UnixNanos,
) -> Result<Outcome, Stop> {
    let file = view.inode(inode)?;
    open::check_file(file.kind)?;
    if file.is_cut_pending {
        return Err(CUT_PENDING.into());
    }
    let mut outcome = Outcome::new(view);
    let range = (first, ChunkIndex(first.0.saturating_add(count.saturating_sub(1))));
    let (dropped, left) = if file.chunks == 0 {
        (0, None)
    } else {
        chunk_list::drop_range(&mut outcome, view, now, inode, range, chunk_list::DROPPED_AT_ONCE)?
    };
    if left.is_some() {
        let seq = outcome.seq();
        cut::leave(&mut outcome, inode, Cut { drops: left, zero: None, since: now, seq });
    }
    let inode = outcome.edit(view, inode, |inode| {
        inode.chunks -= dropped;
        inode.is_cut_pending = left.is_some();
        inode.data_version += 1;
        inode.touch_content(now);
        if mtime.0 != 0 {
            inode.mtime = mtime;
        }
    })?;
    Ok(outcome.reply(Body::Entry { inode, is_created: false }))
}
