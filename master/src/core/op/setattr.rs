//! chmod(2), chown(2), truncate(2), utimensat(2).

use bytes::{Bytes, BytesMut};
use dfs_proto::{ChunkIndex, FsError, UnixNanos, limits};

use super::{CUT_PENDING, MUST_LEAVE_INLINE, chunk_list, open};
use crate::core::care::CutIntent;
use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Cut, Inline, Inode, Record};
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
    let mut dropped = 0;
    let mut is_inline = before.is_inline;
    let mut is_cut_pending = false;
    if size != before.size {
        if before.is_inline {
            is_inline = resize_inline(outcome, view, before, size)?;
            // Chunks of a file that is still inline belong to a write that was never committed.
            dropped = drop_from(outcome, view, now, before, 0)?;
        } else if size < before.size {
            is_inline = size == 0;
            dropped = drop_from(outcome, view, now, before, size.div_ceil(before.chunk_size()))?;
            is_cut_pending = cut(outcome, view, now, before, size)?;
        }
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

fn drop_from(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, before: &Inode, first: u64) -> Result<u64, Stop> {
    match u32::try_from(first) {
        Ok(0) => chunk_list::drop_all(outcome, view, now, before),
        Ok(first) if before.chunks > 0 => {
            let range = (ChunkIndex(first), ChunkIndex(u32::MAX));
            chunk_list::drop_range(outcome, view, now, before.id, range, usize::MAX)
        }
        _ => Ok(0),
    }
}

/// Notes that the rest of the chunk at the new end is to be zeroed, if there is such a chunk, so that a later growth
/// shows zeros there.
fn cut(outcome: &mut Outcome, view: &View<'_>, now: UnixNanos, before: &Inode, size: u64) -> Result<bool, Stop> {
    let (index, from) = (size / before.chunk_size(), size % before.chunk_size());
    if from == 0 || before.chunks == 0 {
        return Ok(false);
    }
    let index = ChunkIndex(u32::try_from(index).map_err(|_| FsError::FileTooBig)?);
    if view.find(&Key::Chunk(before.id, index))?.is_none() {
        return Ok(false);
    }
    let (from, to) = (from as u32, before.chunk_size() as u32);
    let seq = outcome.seq();
    outcome.put(Key::Cut(before.id), Record::Cut(Cut { index, from, to, since: now, seq }));
    outcome.cut = Some(CutIntent { inode: before.id, index, from, to, number: seq.0 });
    Ok(true)
}
