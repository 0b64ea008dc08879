//! Commits: telling the master what is on the replicas, or sending it the content that stays inline.
//!
//! Coalesced: one at each flush, fsync and close, one when the oldest uncommitted byte is a second old, and one when a
//! large file reaches a further chunk; never one a piece. Always under the file's `order` lock.
//!
//! # When other mounts cut the file meanwhile
//!
//! What is pushed and not committed can lose its chunk: another mount truncated or punched there, or emptied the file.
//! The master refuses the commit, what is gone is struck off it, and the rest is committed. No error comes of that: to
//! both mounts it is as if the write had come first and the cut after it. What had been committed or synced before goes
//! only where the cut says so. Where the cut falls inside a chunk, the bytes behind it become zeros, and a commit that
//! comes after it may extend the file over them: programs that write where another mount truncates need a lock of their
//! own.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::INLINE_BYTES_MAX;
use dfs_proto::{ChunkIndex, FsError};
use parking_lot::MutexGuard;

use super::state::{FileState, Layout, State};
use crate::cache::Ticket;
use crate::remote::CommitWrite;

/// Commits refused in a row while other mounts drop what they name; then something else is wrong.
const STALE_COMMITS_MAX: u32 = 100;

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// The master knows what could be told.
    Done,
    /// First more has to be pushed: then commit again.
    PushFirst,
}

impl FileState {
    /// Pushes and commits all that was written before this call. Returns whether the commit asked for more pushes
    /// than those that were dirty: then chunks changed that the caller may not have known of.
    ///
    /// # Errors
    ///
    /// Those of the commit; failures of pushes are kept for the handles ([`FileState::take_error`]).
    pub(super) fn settle(self: &Arc<Self>) -> Result<bool, FsError> {
        let mut pushed_more = false;
        loop {
            if !self.push_all()? {
                return Ok(pushed_more);
            }
            let order = self.lock_order()?;
            if self.commit(&order)? == Committed::Done {
                return Ok(pushed_more);
            }
            pushed_more = true;
        }
    }

    /// As [`Self::settle`], for a caller who holds `order`.
    pub(super) fn settle_ordered(self: &Arc<Self>, order: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        while self.push_all()? {
            if self.commit(order)? == Committed::Done {
                break;
            }
        }
        Ok(())
    }

    /// Pushes what was written before this call; inline content is left to the commit. Returns whether there is
    /// anything to commit.
    ///
    /// # Errors
    ///
    /// `TimedOut` if that takes longer than the policy grants: the rest stays buffered, and its pushes go on.
    pub(super) fn push_all(self: &Arc<Self>) -> Result<bool, FsError> {
        let mark = {
            let mut state = self.state.lock();
            if state.is_clean() {
                return Ok(false);
            }
            if state.layout.is_inline() {
                return Ok(true);
            }
            state.dirty.mark()
        };
        self.push_until(mark)?;
        Ok(true)
    }

    /// Commits what is on the replicas, or the inline content.
    ///
    /// # Errors
    ///
    /// The master's; kept for the handles too.
    pub(super) fn commit(&self, order: &MutexGuard<'_, ()>) -> Result<Committed, FsError> {
        loop {
            let state = self.state.lock();
            match &state.layout {
                Layout::Inline { base: Some(_), .. } => return self.commit_inline(order, state),
                Layout::Inline { base: None, .. } => {
                    if state.is_clean() {
                        return Ok(Committed::Done);
                    }
                    drop(state);
                    self.load_inline().inspect_err(|error| self.commit_failed(error))?;
                }
                Layout::Leaving { mark, moved, .. } => {
                    if !state.dirty.is_clean_to(*mark) {
                        return Ok(Committed::PushFirst);
                    }
                    // What an fsync made durable at the master must not be dropped there for what is not durable yet.
                    let end = moved.div_ceil(self.chunk_size) as u32;
                    let mut state = state;
                    let unsynced = state.unsynced.take_below(ChunkIndex(end));
                    if unsynced.is_empty() {
                        return self.commit_leave(state);
                    }
                    drop(state);
                    self.barriers(unsynced)
                        .inspect_err(|_| self.state.lock().acked_since = Some(self.shared.clock.mono()))?;
                }
                Layout::Chunked => {
                    if !state.needs_commit() {
                        return Ok(Committed::Done);
                    }
                    return self.commit_chunked(state);
                }
            }
        }
    }

    /// Keeps what is known of a failed commit for the handles. What cannot be committed ever is dropped.
    fn commit_failed(&self, error: &FsError) {
        let mut state = self.state.lock();
        self.record_error(&mut state, error);
        state.acked_since = Some(self.shared.clock.mono());
        if !error.is_transient() {
            self.drop_buffered(&mut state);
        }
    }

    fn commit_chunked(&self, mut state: MutexGuard<'_, State>) -> Result<Committed, FsError> {
        let commit = self.take_commit(&mut state);
        match self.send_chunks(state, commit) {
            Ok(()) => Ok(Committed::Done),
            Err((error, written)) => {
                if matches!(error, FsError::Stale(_)) && self.drop_what_is_gone(&written)? {
                    return Ok(Committed::PushFirst);
                }
                self.commit_failed(&error);
                Err(error)
            }
        }
    }

    /// Sends the commit of what is in chunks, and notes what came of it. With an error come the chunks that it named.
    fn send_chunks(
        &self,
        mut state: MutexGuard<'_, State>,
        commit: CommitWrite,
    ) -> Result<(), (FsError, Vec<ChunkIndex>)> {
        let (sent, leaves_inline) = (Sent::of(&state, &commit), commit.leave_inline);
        let before = self.change_begins(&mut state);
        drop(state);
        let answer = self.shared.backend.commit_write(commit);
        let mut state = self.state.lock();
        match &answer {
            Ok(_) if leaves_inline => state.layout = Layout::Chunked,
            Ok(_) => {}
            Err(_) => state.acked.extend(&sent.written),
        }
        self.change_done(&mut state, before, answer.as_ref().ok());
        match answer {
            Ok(_) => {
                sent.confirm(&mut state);
                Ok(())
            }
            Err(error) => Err((error, sent.written)),
        }
    }

    /// Another mount cut off or punched chunks that were written here, or emptied the file; perhaps it wrote there
    /// since, so that they exist again. Returns whether to commit the rest, or `false` if that was tried too often.
    fn drop_what_is_gone(&self, written: &[ChunkIndex]) -> Result<bool, FsError> {
        let attr = self.shared.backend.get_attr(self.inode).inspect_err(|error| self.commit_failed(error))?;
        let gone = self.find_gone(written).inspect_err(|error| self.commit_failed(error))?;
        let mut state = self.state.lock();
        self.note_attr_locked(&mut state, &attr);
        state.drop_gone(&gone);
        state.acked_since = Some(self.shared.clock.mono());
        if state.attr.is_inline && state.layout.is_chunked() {
            self.content_changed(&mut state);
        }
        state.stale_commits += 1;
        Ok(state.stale_commits <= STALE_COMMITS_MAX)
    }

    /// Returns which of the chunks do not exist any more.
    fn find_gone(&self, written: &[ChunkIndex]) -> Result<Vec<ChunkIndex>, FsError> {
        let mut gone = Vec::new();
        for &index in written {
            let policy = self.shared.settings.policy;
            if !self.shared.backend.get_chunks(policy, self.inode, index, 1, None)?.has(index) {
                gone.push(index);
            }
        }
        Ok(gone)
    }

    /// Makes the chunks the content of a file that was inline.
    fn commit_leave(&self, mut state: MutexGuard<'_, State>) -> Result<Committed, FsError> {
        let Layout::Leaving { version, .. } = state.layout else { unreachable!("the caller has looked") };
        let commit = CommitWrite { leave_inline: true, if_data_version: version, ..self.take_commit(&mut state) };
        match self.send_chunks(state, commit) {
            Ok(()) => Ok(Committed::Done),
            Err((FsError::Stale(_), _)) => {
                self.merge_leaving().inspect_err(|error| self.commit_failed(error))?;
                Ok(Committed::PushFirst)
            }
            Err((error, _)) => {
                // The content stays inline at the master: what is in the chunks is never seen.
                self.commit_failed(&error);
                self.drop_buffered(&mut self.state.lock());
                Err(error)
            }
        }
    }

    /// Somebody else changed the inline content while it was copied: what was not written here has to follow.
    fn merge_leaving(&self) -> Result<(), FsError> {
        let data = self.shared.backend.get_inline(self.inode)?;
        let written: Vec<ChunkIndex> = self.state.lock().acked.iter().copied().collect();
        let gone = self.find_gone(&written)?;
        let mut state = self.state.lock();
        state.drop_gone(&gone);
        let Layout::Leaving { own, pushed, moved, .. } = &state.layout else { return Ok(()) };
        let (own, pushed, moved) = (own.clone(), pushed.clone(), (*moved).max(data.content.len() as u64));
        state.attr = data.attr;
        if !data.attr.is_inline {
            // The other one copied it into the same chunks.
            state.layout = Layout::Chunked;
            return Ok(());
        }
        if state.dirty.is_empty() && state.acked.is_empty() {
            self.become_inline(&mut state);
            return Ok(());
        }
        let now = self.shared.clock.mono();
        self.rebuffer(&mut state, |dirty| {
            for (from, to) in own.gaps(0, data.content.len() as u64) {
                dirty.write_under(from, &data.content[from as usize..to as usize], now);
            }
        });
        let mark = state.dirty.mark();
        state.layout = Layout::Leaving { version: data.attr.data_version, mark, own, pushed, moved };
        Ok(())
    }

    /// Returns the commit of what is on the replicas now.
    fn take_commit(&self, state: &mut State) -> CommitWrite {
        state.acked_since = None;
        state.commit_wanted = false;
        let mut end = state.acked_end;
        // Others never see a size with a hole below it where bytes are still on their way.
        if let Some(pending) = state.dirty.first_from(state.attr.size) {
            end = end.min(pending);
        }
        CommitWrite {
            inode: self.inode,
            end,
            mtime: state.mtime.unwrap_or(state.attr.mtime),
            written: std::mem::take(&mut state.acked).into_iter().collect(),
            content: None,
            leave_inline: false,
            if_data_version: 0,
            clear_suid_sgid: state.kill_suid_sgid,
        }
    }

    fn commit_inline<'a>(
        &'a self,
        _order: &MutexGuard<'_, ()>,
        mut state: MutexGuard<'a, State>,
    ) -> Result<Committed, FsError> {
        if state.is_clean() {
            return Ok(Committed::Done);
        }
        let mut tickets: Vec<Ticket> = Vec::new();
        let mark = state.dirty.mark();
        while let Some(sealed) = state.dirty.seal(mark) {
            tickets.push(sealed.ticket);
        }
        loop {
            let Layout::Inline { base: Some(base), version } = &state.layout else {
                // Somebody else moved it into chunks: what is written here goes there too.
                return Ok(self.redirect(state, &tickets));
            };
            let version = *version;
            let content = inline_content(&state, base);
            let commit = CommitWrite {
                content: Some(content.clone()),
                written: Vec::new(),
                if_data_version: version,
                end: content.len() as u64,
                ..self.take_commit(&mut state)
            };
            let sent = Sent::of(&state, &commit);
            let before = self.change_begins(&mut state);
            drop(state);
            let answer = self.shared.backend.commit_write(commit);
            state = self.state.lock();
            match answer {
                Ok(attr) => {
                    for &ticket in &tickets {
                        self.piece_ends(&mut state, ticket);
                    }
                    if let Layout::Inline { base, version } = &mut state.layout {
                        *base = Some(content);
                        *version = attr.data_version;
                    }
                    self.change_done(&mut state, before, Some(&attr));
                    sent.confirm(&mut state);
                    return Ok(Committed::Done);
                }
                Err(FsError::Stale(_)) => {
                    self.change_done(&mut state, before, None);
                    drop(state);
                    match self.shared.backend.get_inline(self.inode) {
                        Ok(data) => self.take_inline(&data.attr, data.content),
                        Err(error) => {
                            self.inline_failed(&tickets, &error);
                            return Err(error);
                        }
                    }
                    state = self.state.lock();
                    if let Layout::Inline { base: None, .. } = state.layout {
                        // Changed once more.
                        return Ok(self.redirect(state, &tickets));
                    }
                }
                Err(error) => {
                    self.change_done(&mut state, before, None);
                    drop(state);
                    self.inline_failed(&tickets, &error);
                    return Err(error);
                }
            }
        }
    }

    /// Gives the pieces of an inline commit back to the buffer.
    fn redirect(&self, mut state: MutexGuard<'_, State>, tickets: &[Ticket]) -> Committed {
        let now = self.shared.clock.mono();
        // What a newer write covers goes.
        self.rebuffer(&mut state, |dirty| {
            for &ticket in tickets {
                dirty.unseal(ticket, now);
            }
        });
        drop(state);
        self.changed.notify_all();
        Committed::PushFirst
    }

    fn inline_failed(&self, tickets: &[Ticket], error: &FsError) {
        let mut state = self.state.lock();
        self.record_error(&mut state, error);
        for &ticket in tickets {
            self.piece_ends(&mut state, ticket);
        }
        state.acked_end = 0;
        state.mtime = None;
        state.kill_suid_sgid = false;
        drop(state);
        self.changed.notify_all();
    }
}

/// What a commit said, to be struck off once it is confirmed.
struct Sent {
    writes: u64,
    all_pushed: bool,
    kill_suid_sgid: bool,
    written: Vec<ChunkIndex>,
}

impl Sent {
    fn of(state: &State, commit: &CommitWrite) -> Self {
        Self {
            writes: state.writes,
            all_pushed: commit.content.is_some() || state.dirty.is_empty(),
            kill_suid_sgid: commit.clear_suid_sgid,
            written: commit.written.clone(),
        }
    }

    fn confirm(&self, state: &mut State) {
        state.stale_commits = 0;
        if self.all_pushed && state.writes == self.writes {
            state.mtime = None;
            if self.kill_suid_sgid {
                state.kill_suid_sgid = false;
            }
        }
    }
}

/// Returns the whole content of an inline file: `base` under what is dirty.
pub(super) fn inline_content(state: &State, base: &Bytes) -> Bytes {
    let size = state.size().min(INLINE_BYTES_MAX);
    let mut content = vec![0; size as usize];
    let kept = base.len().min(content.len());
    content[..kept].copy_from_slice(&base[..kept]);
    for part in state.dirty.read_over(0, size) {
        if let Some(data) = part.data {
            content[part.offset as usize..(part.offset + part.length) as usize].copy_from_slice(&data);
        }
    }
    content.into()
}
