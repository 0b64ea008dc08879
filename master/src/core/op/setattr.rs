//! chmod(2), chown(2), truncate(2), utimensat(2).

use bytes::{Bytes, BytesMut};
use dfs_proto::{ChunkIndex, FsError, UnixNanos, limits};

use super::{CUT_PENDING, MUST_LEAVE_INLINE, chunk_list, cut, open};
use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Cut, Inline, Inode, Record, ZeroPart};
use crate::core::request::{SetAttr, SetTime};
use crate::core::view::{Stop, View};

/// Sets the attributes that the request names; one that names none reads them.
///
/// # Errors
///
/// For a size: [`FsError::IsDirectory`], [`FsError::Invalid`] if it is no regular file, [`FsError::FileTooBig`],
/// [`CUT_PENDING`], [`MUST_LEAVE_INLINE`]. [`FsError::NoEntry`]; [`Stop`].
pub(super) fn setattr(view: &View<'_>, now: UnixNanos, request: &SetAttr) -> Result<Outcome, Stop> {
    let before = view.inode(request.inode)?;
    let mut outcome = Outcome::new(view);
    if is_empty(request) {
        return Ok(outcome.reply(Body::Entry { inode: before, is_created: false }));
    }
    if let Some(size) = request.size {
        resize(&mut outcome, view, now, &before, size)?;
    }
    let inode = outcome.edit(view, request.inode, |inode| {
        if request.clear_suid_sgid {
            inode.clear_suid_sgid();
        }
        if let Some(mode) = request.mode {
            inode.mode = mode & 0o7777;
        }
        inode.uid = request.uid.unwrap_or(inode.uid);
        inode.gid = request.gid.unwrap_or(inode.gid);
        let pick = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        if let Some(time) = request.atime {
            inode.atime = pick(time);
        }
        if let Some(time) = request.mtime {
            inode.mtime = pick(time);
        }
        match request.ctime {
            Some(time) => inode.ctime = time,
            None => inode.touch_attributes(now),
        }
    })?;
    Ok(outcome.reply(Body::Entry { inode, is_created: false }))
}

fn is_empty(request: &SetAttr) -> bool {
    let SetAttr { inode: _, mode, uid, gid, size, atime, mtime, ctime, clear_suid_sgid } = request;
    !clear_suid_sgid
        && mode.or(*uid).or(*gid).is_none()
        && size.is_none()
        && atime.or(*mtime).is_none()
        && ctime.is_none()
}

fn resize(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, before: &Inode, size: u64) -> Result<(), Stop> {
    open::check_file(before.kind)?;
    if size > limits::FILE_BYTES_MAX {
        return Err(FsError::FileTooBig.into());
    }
    if before.is_cut_pending {
        return Err(CUT_PENDING.into());
    }
    let (mut dropped, mut drops, mut zero) = (0, None, None);
    let mut is_inline = before.is_inline;
    if size != before.size {
        if before.is_inline {
            is_inline = resize_inline(outcome, view, before, size)?;
            // Chunks of a file that is still inline belong to a write that was never committed.
            (dropped, drops) = drop_from(outcome, view, now, before, 0)?;
        } else if size < before.size {
            is_inline = size == 0;
            (dropped, drops) = drop_from(outcome, view, now, before, size.div_ceil(before.chunk_size()))?;
            zero = to_zero(view, before, size)?;
        }
    }
    let is_cut_pending = drops.is_some() || zero.is_some();
    if is_cut_pending {
        let seq = outcome.seq();
        cut::leave(outcome, before.id, Cut { drops, zero, since: now, seq });
    }
    outcome.edit(view, before.id, |inode| {
        inode.data_version += u64::from(size != before.size);
        inode.size = size;
        inode.chunks -= dropped;
        inode.is_inline = is_inline;
        inode.is_cut_pending = is_cut_pending;
        // truncate(2): also if the size stays what it is.
        inode.touch_content(now);
    })?;
    Ok(())
}

/// Cuts or lengthens inline content, and returns whether it is inline still.
fn resize_inline(outcome: &mut Outcome, view: &View<'_>, before: &Inode, size: u64) -> Result<bool, Stop> {
    if size > limits::INLINE_BYTES_MAX {
        // Nothing but a hole needs no chunk; content would have to be copied into one, which takes a chunk server.
        return if before.size == 0 { Ok(false) } else { Err(MUST_LEAVE_INLINE.into()) };
    }
    if size == 0 {
        outcome.delete(Key::Inline(before.id));
        return Ok(true);
    }
    let old: Bytes = if before.size == 0 { Bytes::new() } else { view.inline(before.id)? };
    let content = if size <= old.len() as u64 {
        // A copy: a slice would keep the whole of it in memory.
        Bytes::copy_from_slice(&old[..size as usize])
    } else {
        let mut longer = BytesMut::from(&old[..]);
        longer.resize(size as usize, 0);
        longer.freeze()
    };
    let seq = outcome.seq();
    outcome.put(Key::Inline(before.id), Record::Inline(Inline { content, seq }));
    Ok(true)
}

/// Drops the chunks from index `first` on: those of one batch. Returns how many, and the range of those that are left.
fn drop_from(
    outcome: &mut Outcome,
    view: &View<'_>,
    now: UnixNanos,
    before: &Inode,
    first: u64,
) -> Result<(u64, Option<chunk_list::IndexRange>), Stop> {
    let Ok(first) = u32::try_from(first) else { return Ok((0, None)) };
    if before.chunks == 0 {
        return Ok((0, None));
    }
    if first == 0 && before.chunks <= chunk_list::DROPPED_AT_ONCE as u64 {
        return Ok((chunk_list::drop_all(outcome, view, now, before)?, None));
    }
    let range = (ChunkIndex(first), ChunkIndex(u32::MAX));
    chunk_list::drop_range(outcome, view, now, before.id, range, chunk_list::DROPPED_AT_ONCE)
}

/// Returns the rest of the chunk at the new end, if there is such a chunk: it is to be zeroed, so that a later growth
/// shows zeros there.
fn to_zero(view: &View<'_>, before: &Inode, size: u64) -> Result<Option<ZeroPart>, Stop> {
    let (index, from) = (size / before.chunk_size(), size % before.chunk_size());
    if from == 0 || before.chunks == 0 {
        return Ok(None);
    }
    let index = ChunkIndex(u32::try_from(index).map_err(|_| FsError::FileTooBig)?);
    let exists = view.find(&Key::Chunk(before.id, index))?.is_some();
    Ok(exists.then_some(ZeroPart { index, from: from as u32, to: before.chunk_size() as u32 }))
}
