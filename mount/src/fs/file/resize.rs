//! Truncate and `fallocate`: changes of size and holes, in their order among writes.
//!
//! Writers are gated, what is affected is dropped or pushed, then the master and the servers are told. All under the
//! file's `order` lock, so that no commit overtakes.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use dfs_proto::{ChunkIndex, FsError};
use parking_lot::MutexGuard;

use super::state::{FileState, Layout};
use crate::fs::Attr;

/// Times a truncate is tried while other mounts change the file's layout.
const TRIES_MAX: u32 = 8;

impl FileState {
    /// Sets the size; `send` makes the master's call.
    pub(super) fn truncate(
        self: &Arc<Self>,
        size: u64,
        send: impl Fn() -> Result<Attr, FsError>,
    ) -> Result<Attr, FsError> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::FileTooBig);
        }
        let order = self.lock_order()?;
        let _gate = self.gate(&order);
        let mut tries = 0;
        let (mut state, old_size, before, answer) = loop {
            self.prepare_truncate(&order, size)?;
            let mut state = self.state.lock();
            let old_size = state.size();
            let before = self.change_begins(&mut state);
            drop(state);
            let answer = send();
            let mut state = self.state.lock();
            if !matches!(answer, Err(FsError::Stale(_))) || tries == TRIES_MAX {
                break (state, old_size, before, answer);
            }
            // Another mount made the file inline, or not so.
            tries += 1;
            self.change_done(&mut state, before, None);
            drop(state);
            self.note_attr(&self.shared.backend.get_attr(self.inode)?, None);
        };
        let base = match &state.layout {
            Layout::Inline { base: Some(base), version } if *version == before => Some(base.clone()),
            _ => None,
        };
        if let Ok(attr) = &answer {
            let first_gone = u32::try_from(size.div_ceil(attr.chunk_size())).unwrap_or(u32::MAX);
            state.locations.forget_from(ChunkIndex(first_gone));
            self.invalidate_ahead(&mut state, size.min(old_size), u64::MAX);
            let is_ours = attr.data_version <= before + 1;
            let content = match base {
                _ if size == 0 => Some(Bytes::new()),
                Some(base) if is_ours => Some(resized(&base, size)),
                _ => None,
            };
            state.layout = if attr.is_inline {
                Layout::Inline { base: content, version: attr.data_version }
            } else {
                Layout::Chunked
            };
            // What is still buffered was written before the truncate, and must not set the time back.
            state.mtime = state.mtime.filter(|_| !state.dirty.is_empty()).map(|mtime| mtime.max(attr.mtime));
            state.kill_suid_sgid &= !state.dirty.is_empty();
        }
        self.change_done(&mut state, before, answer.as_ref().ok());
        let answer = answer.map(|mut attr| {
            state.overlay(&mut attr);
            attr
        });
        drop(state);
        answer
    }

    /// Brings what is buffered into a state from which the master's truncate to `size` leaves the right content.
    fn prepare_truncate(self: &Arc<Self>, order: &MutexGuard<'_, ()>, size: u64) -> Result<(), FsError> {
        let mut state = self.state.lock();
        match &state.layout {
            Layout::Inline { .. } if size > INLINE_BYTES_MAX => {
                // An empty file becomes a hole without further ado.
                let is_empty = state.is_clean() && state.size() == 0;
                drop(state);
                if is_empty { Ok(()) } else { self.leave_for(order, size) }
            }
            Layout::Inline { .. } | Layout::Leaving { .. } if size > 0 => {
                drop(state);
                self.settle_ordered(order)
            }
            _ => {
                self.rebuffer(&mut state, |dirty| dirty.truncate(size));
                drop(state);
                self.wait_for_flight_past(size);

                let mut state = self.state.lock();
                if state.layout.is_chunked() && state.acked_end > state.attr.size.max(size) {
                    // The master zeroes the rest of the last chunk up to the size it knows: that has to cover what is
                    // on the replicas, or it would show up again when the file grows.
                    drop(state);
                    self.settle_ordered(order)?;
                    state = self.state.lock();
                }
                let chunk_size = self.chunk_size;
                let is_left = |index: ChunkIndex| u64::from(index.0) * chunk_size < size;
                state.acked.retain(|index| is_left(*index));
                state.unsynced.retain(is_left);
                state.acked_end = state.acked_end.min(size);
                if state.acked.is_empty() {
                    state.acked_since = None;
                }
                Ok(())
            }
        }
    }

    /// Moves an inline file into chunks because it becomes `size` bytes long, more than may be inline.
    fn leave_for(self: &Arc<Self>, order: &MutexGuard<'_, ()>, size: u64) -> Result<(), FsError> {
        let wall = self.shared.clock.wall();
        loop {
            let mut state = self.state.lock();
            if !state.layout.is_inline() {
                break;
            }
            if state.dirty.in_flight() > 0 || matches!(state.layout, Layout::Inline { base: None, .. }) {
                drop(state);
                self.load_inline()?;
                continue;
            }
            if state.attr.chunks > 0 {
                drop(state);
                self.drop_leftovers_ordered(order)?;
                continue;
            }
            self.begin_leave(&mut state);
            state.acked_end = size;
            state.mtime = Some(wall);
            self.list(&mut state);
        }
        self.settle_ordered(order)
    }

    pub(super) fn fallocate(self: &Arc<Self>, mode: i32, offset: u64, length: u64) -> Result<(), FsError> {
        let end = offset.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX).ok_or(FsError::FileTooBig)?;
        if length == 0 {
            return Err(FsError::Invalid("fallocate: a length of 0"));
        }
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // No space is set aside: it is taken when it is written.
            0 if keeps_size => Ok(()),
            0 => self.extend(end),
            libc::FALLOC_FL_PUNCH_HOLE if keeps_size => self.zero_range(offset, end, false),
            libc::FALLOC_FL_ZERO_RANGE => self.zero_range(offset, end, !keeps_size),
            _ => Err(FsError::NotSupported),
        }
    }

    /// Makes the file at least `end` bytes long.
    fn extend(self: &Arc<Self>, end: u64) -> Result<(), FsError> {
        let order = self.lock_order()?;
        let _gate = self.gate(&order);
        self.extend_ordered(&order, end)
    }

    fn extend_ordered(self: &Arc<Self>, order: &MutexGuard<'_, ()>, end: u64) -> Result<(), FsError> {
        let mut state = self.state.lock();
        if state.size() >= end {
            return Ok(());
        }
        if state.layout.is_inline() && end > INLINE_BYTES_MAX {
            drop(state);
            return self.leave_for(order, end);
        }
        state.acked_end = end;
        state.mtime = Some(self.shared.clock.wall());
        state.writes += 1;
        self.list(&mut state);
        drop(state);
        self.settle_ordered(order)
    }

    /// Makes `[offset, end)` read as zeros: whole chunks and units become holes. The part past the end of the file
    /// does nothing unless `extends`.
    fn zero_range(self: &Arc<Self>, offset: u64, end: u64, extends: bool) -> Result<(), FsError> {
        let order = self.lock_order()?;
        let _gate = self.gate(&order);
        self.settle_ordered(&order)?;
        let size = self.state.lock().size();
        if offset < size {
            let is_inline = self.zero_inline(offset, end.min(size))?;
            if !is_inline {
                self.zero_chunks(offset, end.min(size), size)?;
            }
            self.settle_ordered(&order)?;
        }
        if extends { self.extend_ordered(&order, end) } else { Ok(()) }
    }

    /// Zeroes a range of inline content. Returns whether it is inline.
    fn zero_inline(self: &Arc<Self>, offset: u64, end: u64) -> Result<bool, FsError> {
        let mut state = self.state.lock();
        if !state.layout.is_inline() {
            return Ok(false);
        }
        let zeros = vec![0; (end - offset) as usize];
        self.rebuffer(&mut state, |dirty| dirty.write(offset, &zeros, self.shared.clock.mono()));
        state.mtime = Some(self.shared.clock.wall());
        state.writes += 1;
        self.list(&mut state);
        Ok(true)
    }

    fn zero_chunks(self: &Arc<Self>, offset: u64, end: u64, size: u64) -> Result<(), FsError> {
        let chunk_size = self.chunk_size;
        let first_whole = offset.div_ceil(chunk_size);
        // The last chunk of the file is whole up to its end.
        let end_whole = if end == size { end.div_ceil(chunk_size) } else { end / chunk_size };
        let mut edges: Vec<(u64, u64)> = Vec::new();
        if first_whole < end_whole {
            self.punch(first_whole, end_whole - first_whole)?;
            edges.push((offset, first_whole * chunk_size));
            edges.push((end_whole * chunk_size, end));
        } else {
            let middle = (first_whole * chunk_size).clamp(offset, end);
            edges.push((offset, middle));
            edges.push((middle, end));
        }
        for (from, to) in edges {
            if from < to {
                self.zero_in_chunk(from, to)?;
            }
        }
        let mut state = self.state.lock();
        self.invalidate_ahead(&mut state, offset, end);
        Ok(())
    }

    /// Makes holes of whole chunks.
    fn punch(&self, first: u64, count: u64) -> Result<(), FsError> {
        let mut state = self.state.lock();
        let before = self.change_begins(&mut state);
        drop(state);
        let wall = self.shared.clock.wall();
        let count_u32 = u32::try_from(count).unwrap_or(u32::MAX);
        let answer = self.shared.backend.punch_chunks(self.inode, ChunkIndex(first as u32), count_u32, wall);
        let mut state = self.state.lock();
        state.locations.forget_from(ChunkIndex(first as u32));
        state.unsynced.retain(|index| !(first..first + count).contains(&u64::from(index.0)));
        self.change_done(&mut state, before, answer.as_ref().ok());
        drop(state);
        answer.map(drop)
    }

    /// Zeroes a range within one chunk.
    fn zero_in_chunk(self: &Arc<Self>, from: u64, to: u64) -> Result<(), FsError> {
        let backend = &self.shared.backend;
        let (index, within) = self.place(from);
        let under_way = self.state.lock().under_way.begin();
        let id = backend.new_write();
        let zeroed = self.at_chunk("zero", index, |ask| backend.zero(ask, within, (to - from) as u32, id))?;
        drop(under_way);
        if let Some(version) = zeroed {
            let mut state = self.state.lock();
            state.acked.insert(index);
            state.unsynced.note(index, version);
            state.mtime = Some(self.shared.clock.wall());
            state.writes += 1;
            self.list(&mut state);
        }
        Ok(())
    }
}

/// Returns `content`, cut to `size` or followed by zeros.
fn resized(content: &Bytes, size: u64) -> Bytes {
    let size = size as usize;
    if size <= content.len() {
        return content.slice(..size);
    }
    let mut longer = content.to_vec();
    longer.resize(size, 0);
    longer.into()
}
