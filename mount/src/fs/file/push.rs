//! Pushing: sealed pieces on their way to the replicas.
//!
//! Cost of a piece: one round trip to the primary of its chunk, one pass for its checksums; the location is looked up
//! once a chunk. Pushers are the pool's threads and whoever waits for a flush.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, FsError, MonoMs, unit};

use super::pool::Tick;
use super::state::{FileState, Layout, State};
use crate::cache::{Mark, Sealed};
use crate::core::Location;
use crate::remote::{Retry, RetryPlan};

/// Waiters look again after this even if nobody woke them: a guard, not a clock.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);
/// An outage of this length is worth a line in the log.
const LOG_AFTER_MS: u64 = 5_000;

/// One piece and the attempts to push it.
pub(super) struct Attempt {
    piece: Sealed,
    /// Computed once, from the bytes as they were sealed; empty before the first attempt.
    crcs: Vec<u32>,
    /// The same for all attempts, so that it is applied once.
    number: u64,
    begun: MonoMs,
    plan: RetryPlan,
    not_before: MonoMs,
    is_logged: bool,
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
            || state.parked.iter().any(|attempt| attempt.not_before <= now)
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
        let due = state.parked.iter().position(|attempt| attempt.not_before <= now);
        let attempt = match due {
            Some(at) => state.parked.swap_remove(at),
            None if state.layout.is_inline() => return None,
            None => {
                let push_to = state.push_to;
                let piece = state.dirty.seal(push_to)?;
                Attempt {
                    piece,
                    crcs: Vec::new(),
                    number: self.shared.backend.new_number(),
                    begun: now,
                    plan: RetryPlan::new(self.shared.settings.policy),
                    not_before: now,
                    is_logged: false,
                }
            }
        };
        state.active += 1;
        Some(attempt)
    }

    /// Makes attempts to push a piece until one succeeds, or is final, or has to wait.
    pub(super) fn push(&self, mut attempt: Attempt) {
        loop {
            let Err(error) = self.push_once(&mut attempt) else { return self.pushed(&attempt) };
            let elapsed_ms = self.shared.clock.mono().since(attempt.begun);
            let retry = attempt.plan.next(elapsed_ms, &error);
            if retry == Retry::GiveUp {
                return self.push_failed(&attempt, &error);
            }
            self.shared.metrics.count_retry(&error);
            if elapsed_ms >= LOG_AFTER_MS && !attempt.is_logged {
                attempt.is_logged = true;
                tracing::warn!(inode = %self.inode, offset = attempt.piece.offset, waited_ms = elapsed_ms, %error,
                    "a write waits for the cluster");
            }
            if let Retry::After(ms) = retry {
                return self.park(attempt, ms);
            }
        }
    }

    fn push_once(&self, attempt: &mut Attempt) -> Result<(), FsError> {
        let (index, offset) = self.place(attempt.piece.offset);
        let location = self.locate_for_write(index)?;
        if attempt.crcs.is_empty() {
            attempt.crcs = unit::checksums(offset, &attempt.piece.data);
        }
        let data = &attempt.piece.data;
        self.shared
            .backend
            .write(&location, offset, data, &attempt.crcs, attempt.number)
            .inspect_err(|_| self.state.lock().locations.forget(&location))
    }

    fn pushed(&self, attempt: &Attempt) {
        if attempt.is_logged {
            tracing::info!(inode = %self.inode, offset = attempt.piece.offset, "the write went through");
        }
        let now = self.shared.clock.mono();
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
            state.unsynced.insert(index);
            if let Layout::Leaving { pushed, .. } = &mut state.layout {
                pushed.insert(index);
            }
            // What was read ahead below the buffered bytes is old now.
            self.invalidate_ahead(&mut state, offset, end);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn park(&self, mut attempt: Attempt, delay_ms: u64) {
        let mut state = self.state.lock();
        state.active -= 1;
        attempt.not_before = self.shared.clock.mono().plus(delay_ms);
        // Void if the session was lost meanwhile.
        if state.dirty.is_out(attempt.piece.ticket) {
            state.parked.push(attempt);
            self.shared.pushers.parked();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn push_failed(&self, attempt: &Attempt, error: &FsError) {
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
    pub(super) fn push_until(self: &Arc<Self>, mark: Mark) {
        loop {
            let now = self.shared.clock.mono();
            let mut state = self.state.lock();
            if state.dirty.is_clean_to(mark) {
                return;
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

    /// Returns the location of a chunk to be written, allocated if there was none.
    fn locate_for_write(&self, index: ChunkIndex) -> Result<Arc<Location>, FsError> {
        loop {
            let epoch = {
                let state = self.state.lock();
                if let Some(location) = state.locations.get(index) {
                    return Ok(location);
                }
                state.locations.epoch()
            };
            let chunks = self.shared.backend.allocate_chunks(self.inode, index, 1)?;
            let Some(location) = chunks.locations.into_iter().find(|location| location.index == index) else {
                return Err(FsError::Protocol(format!("chunk {index} was asked for and not named")));
            };
            if location.is_hole() {
                return Err(FsError::Protocol(format!("chunk {index} was not allocated")));
            }
            let mut state = self.state.lock();
            self.note_attr_locked(&mut state, &chunks.attr);
            if state.locations.epoch() == epoch {
                return Ok(state.locations.remember(location));
            }
        }
    }
}

impl State {
    /// Returns whether a pusher may find something to seal.
    pub(super) fn has_sealable(&self) -> bool {
        !self.layout.is_inline() && (self.dirty.has_full() || self.dirty.has_older(self.push_to))
    }
}
