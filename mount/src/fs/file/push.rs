//! Pushing: sealed pieces on their way to the replicas.
//!
//! Cost of a piece: one round trip to the primary of its chunk, one pass for its checksums; the location is looked up
//! once a chunk. Pushers are the pool's threads and whoever waits for a flush.

use std::sync::Arc;

use dfs_proto::{FsError, InodeId, MonoMs, Version, unit};

use super::chunk_calls::Missing;
use super::pool::Tick;
use super::state::{FileState, Layout, State};
use super::under_way::Write;
use crate::cache::{Mark, Sealed};
use crate::core::{Ask, ChunkCall, Input, Step, Trouble};
use crate::remote::{Patience, WriteId};

/// Waiters look again after this even if nobody woke them: a guard, not a clock.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// A flush lets pieces that began after it come to their own ends: then every handle is told of them, and once.
const GRACE_MS: u64 = 1_000;

/// One piece and the attempts to push it.
pub(super) struct Attempt {
    piece: Sealed,
    /// Computed once, from the bytes as they were sealed; empty before the first attempt.
    crcs: Vec<u32>,
    /// The same for all attempts, so that it is applied once.
    id: WriteId,
    _under_way: Write,
    call: ChunkCall,
    patience: Patience,
    /// It was made already, and waits for the next attempt until this.
    parked_until: Option<MonoMs>,
}

impl FileState {
    /// Draws a line below what is dirty, and has it pushed. Returns whether there is anything.
    pub(super) fn age_all(&self) -> bool {
        let mut state = self.state.lock();
        let mark = state.dirty.mark();
        state.push_to = state.push_to.max(mark);
        state.commit_wanted |= state.layout.is_inline() && state.dirty.has_segments();
        !state.is_clean()
    }

    /// Says what is due, by age.
    pub(super) fn tick(&self) -> Tick {
        let now = self.shared.clock.mono();
        let age_ms = self.shared.settings.push_age_ms;
        let mut state = self.state.lock();
        if state.is_clean() {
            state.is_listed = false;
            self.shared.pushers.unlist(self.inode);
            return Tick::Wait;
        }
        if state.dirty.begun().is_some_and(|begun| now.since(begun) >= age_ms) {
            let mark = state.dirty.mark();
            state.push_to = state.push_to.max(mark);
            state.commit_wanted |= state.layout.is_inline();
        }
        let is_parked = !state.parked.is_empty();
        let is_due = self.is_commit_due(&state, now)
            || state.parked.iter().any(|attempt| attempt.is_due(now))
            || state.has_sealable();
        if is_due || is_parked { Tick::Work { is_parked } } else { Tick::Wait }
    }

    fn is_commit_due(&self, state: &State, now: MonoMs) -> bool {
        state.commit_wanted
            || state.acked_since.is_some_and(|since| now.since(since) >= self.shared.settings.push_age_ms)
    }

    /// A pusher's turn: pushes pieces, and commits if that is due.
    pub(super) fn work(self: &Arc<Self>) {
        loop {
            let now = self.shared.clock.mono();
            let mut state = self.state.lock();
            if let Some(attempt) = self.take_piece(&mut state, now) {
                if state.has_sealable() {
                    self.shared.pushers.kick(self);
                }
                drop(state);
                self.push(attempt);
                continue;
            }
            if !self.is_commit_due(&state, now) {
                return;
            }
            state.commit_wanted = false;
            drop(state);
            // Somebody who holds it commits, or truncates and may wait for pushers: never wait for it here.
            let Some(order) = self.order.try_lock() else { return };
            // A failure is kept for the handles.
            let _ = self.commit(&order);
            return;
        }
    }

    /// Takes the next piece to push, if one is due and not too many are on their way.
    pub(super) fn take_piece(&self, state: &mut State, now: MonoMs) -> Option<Attempt> {
        // One file whose servers are silent leaves pushers to the others.
        if state.active >= self.shared.settings.push_threads.saturating_sub(2).max(4) {
            return None;
        }
        let due = state.parked.iter().position(|attempt| attempt.is_due(now));
        let attempt = match due {
            Some(at) => state.parked.swap_remove(at),
            None if state.layout.is_inline() || !state.under_way.has_room() => return None,
            None => {
                let push_to = state.push_to;
                let piece = state.dirty.seal(push_to)?;
                Attempt {
                    piece,
                    crcs: Vec::new(),
                    id: self.shared.backend.new_write(),
                    _under_way: state.under_way.begin(),
                    call: ChunkCall::new(self.shared.settings.policy, now),
                    patience: Patience::new(&self.shared.metrics.waiting_requests),
                    parked_until: None,
                }
            }
        };
        state.active += 1;
        Some(attempt)
    }

    /// Makes attempts to push a piece until one succeeds, or is final, or has to wait.
    pub(super) fn push(&self, mut attempt: Attempt) {
        let (index, _) = self.place(attempt.piece.offset);
        let mut input = match attempt.parked_until.take() {
            None => Input::Begin(self.known(index)),
            Some(_) => Input::Passed,
        };
        let mut written = Version(0);
        loop {
            let now = self.shared.clock.mono();
            input = match attempt.call.step(now, input) {
                Step::Ask(ask) => Input::Answered(self.push_once(&mut attempt, &ask).map(|version| written = version)),
                Step::LookUp(look) => Input::Found(self.look_up(index, &look, Missing::Allocate)),
                Step::Wait { until } => return self.park(attempt, now, until),
                Step::Done(Ok(_)) => return self.pushed(attempt, now, written),
                Step::Done(Err(error)) => return self.push_failed(attempt, now, &error),
            };
        }
    }

    fn push_once(&self, attempt: &mut Attempt, ask: &Ask) -> Result<Version, Trouble> {
        let (_, offset) = self.place(attempt.piece.offset);
        let data = &attempt.piece.data;
        if attempt.crcs.is_empty() {
            attempt.crcs = unit::checksums(offset, data);
        }
        self.shared
            .backend
            .write(ask, offset, data, &attempt.crcs, attempt.id)
            .map_err(|trouble| self.note_trouble(ask, trouble))
    }

    fn pushed(&self, attempt: Attempt, now: MonoMs, version: Version) {
        attempt.patience.goes_on(&self.write_at(attempt.piece.offset), attempt.call.elapsed_ms(now));
        let mut state = self.state.lock();
        state.active -= 1;
        if let Some((offset, length)) = self.piece_ends(&mut state, attempt.piece.ticket) {
            let end = offset + length;
            let (index, _) = self.place(offset);
            state.acked_end = state.acked_end.max(end);
            if state.acked.insert(index) && index.0 > 0 && state.attr.size <= u64::from(index.0) * self.chunk_size {
                state.commit_wanted = true;
            }
            state.acked_since.get_or_insert(now);
            state.unsynced.note(index, version);
            if let Layout::Leaving { pushed, .. } = &mut state.layout {
                pushed.insert(index);
            }
            // What was read ahead below the buffered bytes is old now.
            self.invalidate_ahead(&mut state, offset, end);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns what the log calls the write of a piece.
    fn write_at(&self, offset: u64) -> WriteAt {
        WriteAt { inode: self.inode, offset }
    }

    fn park(&self, mut attempt: Attempt, now: MonoMs, until: MonoMs) {
        if let Some(trouble) = attempt.call.trouble() {
            let waited_ms = attempt.call.elapsed_ms(now);
            attempt.patience.wait(&self.write_at(attempt.piece.offset), waited_ms, trouble);
        }
        let mut state = self.state.lock();
        state.active -= 1;
        attempt.parked_until = Some(until);
        // Void if the session was lost meanwhile.
        if state.dirty.is_out(attempt.piece.ticket) {
            state.parked.push(attempt);
            self.shared.pushers.parked();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn push_failed(&self, attempt: Attempt, now: MonoMs, error: &FsError) {
        attempt.patience.gives_up(&self.write_at(attempt.piece.offset), attempt.call.elapsed_ms(now), error);
        let mut state = self.state.lock();
        state.active -= 1;
        if self.piece_ends(&mut state, attempt.piece.ticket).is_some() {
            self.record_error(&mut state, error);
            if matches!(state.layout, Layout::Leaving { .. }) {
                // The chunks can never become the content now. What is inline at the master stays it.
                self.drop_buffered(&mut state);
            } else if state.dirty.is_empty() && state.acked.is_empty() {
                state.mtime = None;
                state.kill_suid_sgid = false;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns when nothing written before `mark` is buffered any more: pushed, or given up (and kept as an error).
    ///
    /// # Errors
    ///
    /// `TimedOut` if the policy grants no more time.
    pub(super) fn push_until(self: &Arc<Self>, mark: Mark) -> Result<(), FsError> {
        let deadline = self.shared.settings.policy.deadline(self.shared.clock.mono().plus(GRACE_MS));
        loop {
            let now = self.shared.clock.mono();
            let mut state = self.state.lock();
            if state.dirty.is_clean_to(mark) {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| now > deadline) {
                return Err(FsError::TimedOut("the chunk servers"));
            }
            state.push_to = state.push_to.max(mark);
            match self.take_piece(&mut state, now) {
                Some(attempt) => {
                    if state.has_sealable() {
                        self.shared.pushers.kick(self);
                    }
                    drop(state);
                    self.push(attempt);
                }
                None => {
                    self.changed.wait_for(&mut state, LOOK_AGAIN);
                }
            }
        }
    }

    /// Waits until no piece in flight reaches past `size`.
    pub(super) fn wait_for_flight_past(self: &Arc<Self>, size: u64) {
        let mut state = self.state.lock();
        while state.dirty.is_in_flight_past(size) {
            self.shared.pushers.kick(self);
            self.changed.wait_for(&mut state, LOOK_AGAIN);
        }
    }
}

/// What the log calls the write of a piece.
struct WriteAt {
    inode: InodeId,
    offset: u64,
}

impl std::fmt::Display for WriteAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a write of inode {} at {}", self.inode, self.offset)
    }
}

impl Attempt {
    fn is_due(&self, now: MonoMs) -> bool {
        self.parked_until.is_none_or(|until| until <= now)
    }
}

impl State {
    /// Returns whether a pusher may find something to seal.
    pub(super) fn has_sealable(&self) -> bool {
        !self.layout.is_inline() && (self.dirty.has_full() || self.dirty.has_older(self.push_to))
    }
}
