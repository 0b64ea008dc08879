//! Taking writes: into the buffer, under the file's lock, with no call to anybody.
//!
//! Cost of a write: one copy of its bytes, one lock.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use dfs_proto::{ChunkIndex, FsError};
use parking_lot::MutexGuard;

use super::state::{FileState, Layout, State};
use super::table::HandleId;
use crate::fs::Attr;

/// What is special about a write.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteFlags {
    /// The set-id bits go.
    pub(super) kill_suid_sgid: bool,
    /// It is of mapped pages: its offset counts, whatever the handle.
    pub(super) is_write_back: bool,
}

impl FileState {
    pub(super) fn write(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<u32, FsError> {
        if data.is_empty() {
            return Ok(0);
        }
        let length = data.len() as u64;
        let shared = &self.shared;
        shared.budget.reserve(length, shared.settings.policy, || shared.pushers.press())?;
        let outcome = self.write_reserved(handle, offset, data, flags);
        if outcome.is_err() {
            shared.budget.release(length);
        }
        outcome.map(|()| length as u32)
    }

    fn write_reserved(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<(), FsError> {
        let length = data.len() as u64;
        let mut state = self.state.lock();
        let (offset, end) = loop {
            if state.is_gated {
                self.changed.wait(&mut state);
                continue;
            }
            let is_append =
                !flags.is_write_back && state.handles.get(&handle).is_some_and(|handle| handle.options.append);
            let at = if is_append { state.size() } else { offset };
            let end = at.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX).ok_or(FsError::FileTooBig)?;
            if self.ready_for(&mut state, end)? {
                if is_append && at != offset {
                    // The kernel put the bytes where it thought the end was.
                    self.shared.kept.forget(self.inode);
                }
                break (at, end);
            }
        };
        let (mono, wall) = (self.shared.clock.mono(), self.shared.clock.wall());
        let before = state.dirty.bytes();
        state.dirty.write(offset, data, mono);
        let added = state.dirty.bytes() - before;
        if let Layout::Leaving { own, .. } = &mut state.layout
            && offset < INLINE_BYTES_MAX
        {
            own.add(offset, end.min(INLINE_BYTES_MAX));
        }
        state.mtime = Some(wall);
        state.kill_suid_sgid |= flags.kill_suid_sgid;
        state.writes += 1;
        if flags.is_write_back {
            // The kernel may have mapped the pages through any of them: each of their closes is one that has to push.
            state.handles.values_mut().for_each(|handle| handle.wrote = true);
        } else if let Some(handle) = state.handles.get_mut(&handle) {
            handle.wrote = true;
        }
        self.invalidate_ahead(&mut state, offset, end);
        self.list(&mut state);
        if self.shared.budget.is_tight() && !state.layout.is_inline() {
            let mark = state.dirty.mark();
            state.push_to = state.push_to.max(mark);
        }
        let is_sealable = state.has_sealable();
        drop(state);
        self.shared.budget.release(length - added);
        if is_sealable {
            self.shared.pushers.kick(self);
        }
        Ok(())
    }

    /// Makes the file take a write that ends at `end`. `false`: the lock was let go meanwhile, look again.
    pub(super) fn ready_for(self: &Arc<Self>, state: &mut MutexGuard<'_, State>, end: u64) -> Result<bool, FsError> {
        let Layout::Inline { base, .. } = &state.layout else { return Ok(true) };
        if base.is_none() {
            self.wait_for_inline(state)?;
            return Ok(false);
        }
        if end <= INLINE_BYTES_MAX {
            return Ok(true);
        }
        if state.dirty.in_flight() > 0 {
            // The content is on its way to the master: what it becomes decides what has to be copied.
            self.changed.wait(state);
            return Ok(false);
        }
        if state.attr.chunks > 0 {
            MutexGuard::unlocked(state, || self.drop_leftovers())?;
            return Ok(false);
        }
        self.begin_leave(state);
        Ok(true)
    }

    /// Makes all inline content dirty, so that it gets into chunks.
    pub(super) fn begin_leave(&self, state: &mut State) {
        let Layout::Inline { base: Some(base), version } = &state.layout else {
            unreachable!("the caller has seen inline content")
        };
        let (base, version) = (base.clone(), *version);
        let own = state.own_ranges();
        self.rebuffer(state, |dirty| dirty.write_under(0, &base, self.shared.clock.mono()));
        let mark = state.dirty.mark();
        let moved = base.len() as u64;
        state.layout = Layout::Leaving { version, mark, own, pushed: BTreeSet::new(), moved };
    }

    /// Waits for the content of an inline file, or fetches it. The lock is let go meanwhile: look again.
    pub(super) fn wait_for_inline(&self, state: &mut MutexGuard<'_, State>) -> Result<(), FsError> {
        if state.is_changing {
            self.changed.wait(state);
            return Ok(());
        }
        MutexGuard::unlocked(state, || self.load_inline())
    }

    /// Fetches the content of an inline file.
    pub(super) fn load_inline(&self) -> Result<(), FsError> {
        let data = self.shared.backend.get_inline(self.inode)?;
        self.take_inline(&data.attr, data.content);
        Ok(())
    }

    pub(super) fn take_inline(&self, attr: &Attr, content: Bytes) {
        let mut state = self.state.lock();
        if state.is_changing {
            // Whoever changes it brings newer content.
            return;
        }
        self.note_attr_locked(&mut state, attr);
        if attr.seq < state.attr.seq {
            return;
        }
        match &mut state.layout {
            Layout::Inline { base, version } if attr.is_inline => {
                *base = Some(content);
                *version = attr.data_version;
            }
            _ => {}
        }
    }

    /// Drops the chunks of an inline file: somebody began to copy it into chunks and did not come to the end.
    fn drop_leftovers(&self) -> Result<(), FsError> {
        let order = self.lock_order()?;
        self.drop_leftovers_ordered(&order)
    }

    /// As [`Self::drop_leftovers`], for a caller who holds `order`.
    pub(super) fn drop_leftovers_ordered(&self, _order: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        let before = {
            let mut state = self.state.lock();
            if !state.layout.is_inline() || state.attr.chunks == 0 {
                return Ok(());
            }
            self.change_begins(&mut state)
        };
        let wall = self.shared.clock.wall();
        let answer = self.shared.backend.punch_chunks(self.inode, ChunkIndex(0), u32::MAX, wall);
        let mut state = self.state.lock();
        if let Ok(attr) = &answer
            && attr.data_version == before + 1
            && let Layout::Inline { version, .. } = &mut state.layout
            && *version == before
        {
            *version = attr.data_version;
        }
        self.change_done(&mut state, before, answer.as_ref().ok());
        state.locations.forget_from(ChunkIndex(0));
        if answer.is_ok() {
            state.attr.chunks = 0;
        }
        drop(state);
        answer.map(drop)
    }
}
