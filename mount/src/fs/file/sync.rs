//! `close` and `fsync`: when what was written is where it was promised to be.
//!
//! | | bytes | size |
//! |---|---|---|
//! | `close` | on all in-sync replicas | at the master |
//! | `fsync` | on their stable media | on the master's |

use std::sync::Arc;

use dfs_proto::{ChunkIndex, FsError, Version};

use super::state::{FileState, Layout};
use super::table::HandleId;
use crate::core::{SyncPlan, SyncStep, Unsynced};

/// Barriers that are on their way at once.
const BARRIERS_AT_ONCE: usize = 8;

impl FileState {
    pub(super) fn flush(self: &Arc<Self>, handle: HandleId) -> Result<(), FsError> {
        let wrote = self.state.lock().handles.get(&handle).is_some_and(|handle| handle.wrote);
        let settled = if wrote { self.settle() } else { Ok(false) };
        // What failed first is the better answer.
        self.take_error(handle)?;
        settled.map(drop)
    }

    /// Cost: the pushes; a barrier for each chunk; the commit and the master's sync; in the order of [`SyncPlan`].
    pub(super) fn fsync(self: &Arc<Self>, handle: HandleId) -> Result<(), FsError> {
        let mut plan = SyncPlan::default();
        if plan.step() == SyncStep::Push {
            // Side by side, so that one barrier serves all that is pushed while somebody else syncs.
            self.push_all()?;
            // With bytes lost, nothing that follows makes this a success.
            self.take_error(handle)?;
            plan.succeeded(false);
        }
        let sync = self.lock_within(&self.sync)?;
        let synced = self.follow(plan);
        drop(sync);
        // A push that failed is the better answer than what failed after it.
        self.take_error(handle)?;
        synced
    }

    fn follow(self: &Arc<Self>, mut plan: SyncPlan) -> Result<(), FsError> {
        loop {
            let mut pushed_more = false;
            match plan.step() {
                SyncStep::Push => drop(self.push_all()?),
                SyncStep::Barriers => {
                    let unsynced = std::mem::take(&mut self.state.lock().unsynced);
                    self.barriers(unsynced)?;
                }
                SyncStep::Commit => pushed_more = self.settle()?,
                SyncStep::SyncMaster => {
                    let seq = self.state.lock().attr.seq;
                    self.shared.backend.sync_to(seq)?;
                }
                SyncStep::Done => return Ok(()),
            }
            plan.succeeded(pushed_more);
        }
    }

    /// Sends a barrier to each of the chunks. If one fails, nothing is known to be durable: the next fsync tries again, except
    /// where bytes are lost. That is said once, to all who have the file open; there is nothing to be tried again.
    pub(super) fn barriers(&self, unsynced: Unsynced) -> Result<(), FsError> {
        let Err(failed) = self.send_barriers(&unsynced) else { return Ok(()) };
        let mut left = unsynced;
        failed.lost.iter().for_each(|index| left.remove(*index));
        let mut state = self.state.lock();
        state.unsynced.merge(&left);
        self.record_error(&mut state, &failed.error);
        if !failed.lost.is_empty() && matches!(state.layout, Layout::Leaving { .. }) {
            // The chunks lack some of what they were to take over. What is inline at the master stays the content.
            self.drop_buffered(&mut state);
        }
        Err(failed.error)
    }

    /// Sends barriers, several at once.
    fn send_barriers(&self, unsynced: &Unsynced) -> Result<(), Failed> {
        let barriers: Vec<(ChunkIndex, Version)> = unsynced.iter().collect();
        let mut lost = Vec::new();
        for group in barriers.chunks(BARRIERS_AT_ONCE) {
            let (first, rest) = group.split_first().expect("a group is not empty");
            let outcomes: Vec<_> = std::thread::scope(|scope| {
                let others: Vec<_> = rest.iter().map(|barrier| scope.spawn(move || self.barrier(*barrier))).collect();
                let first = self.barrier(*first);
                let others = others.into_iter().map(|other| other.join().expect("a barrier does not panic"));
                std::iter::once(first).chain(others).collect()
            });
            let mut others = Ok(());
            for ((index, _), outcome) in group.iter().zip(outcomes) {
                match outcome {
                    Err(FsError::UnsyncedLost) => lost.push(*index),
                    outcome => others = others.and(outcome),
                }
            }
            match others {
                Err(error) if lost.is_empty() => return Err(Failed { error, lost }),
                Err(_) => break,
                // What is lost in the other chunks is to be said now too, once for all.
                Ok(()) => {}
            }
        }
        if lost.is_empty() { Ok(()) } else { Err(Failed { error: FsError::UnsyncedLost, lost }) }
    }

    fn barrier(&self, (index, since): (ChunkIndex, Version)) -> Result<(), FsError> {
        // No chunk: it was cut off or punched since, and the master has that.
        self.at_chunk("fsync", index, |ask| self.shared.backend.barrier(ask, since)).map(drop)
    }
}

/// Why barriers failed.
struct Failed {
    error: FsError,
    /// Chunks that have lost what was to be synced.
    lost: Vec<ChunkIndex>,
}
