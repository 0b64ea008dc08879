//! `close` and `fsync`: when what was written is where it was promised to be.
//!
//! | | bytes | size |
//! |---|---|---|
//! | `close` | on all in-sync replicas | at the master |
//! | `fsync` | on their stable media | on the master's |

use std::collections::BTreeSet;
use std::sync::Arc;

use dfs_proto::{ChunkIndex, FsError};

use super::state::FileState;
use super::table::HandleId;
use crate::core::{SyncPlan, SyncStep};

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
                    self.barriers(&unsynced)?;
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

    /// Sends a barrier to each of the chunks. If one fails, nothing is known to be durable.
    pub(super) fn barriers(&self, unsynced: &BTreeSet<ChunkIndex>) -> Result<(), FsError> {
        self.send_barriers(unsynced).inspect_err(|error| {
            let mut state = self.state.lock();
            state.unsynced.extend(unsynced);
            self.record_error(&mut state, error);
        })
    }

    /// Sends barriers, several at once.
    fn send_barriers(&self, indexes: &BTreeSet<ChunkIndex>) -> Result<(), FsError> {
        let indexes: Vec<ChunkIndex> = indexes.iter().copied().collect();
        for group in indexes.chunks(BARRIERS_AT_ONCE) {
            let (first, rest) = group.split_first().expect("a group is not empty");
            std::thread::scope(|scope| {
                let others: Vec<_> = rest.iter().map(|&index| scope.spawn(move || self.barrier(index))).collect();
                let mut outcome = self.barrier(*first);
                for other in others {
                    outcome = outcome.and(other.join().expect("a barrier does not panic"));
                }
                outcome
            })?;
        }
        Ok(())
    }

    fn barrier(&self, index: ChunkIndex) -> Result<(), FsError> {
        // No chunk: it was cut off or punched since, and the master has that.
        self.at_chunk("fsync", index, |ask| self.shared.backend.barrier(ask)).map(drop)
    }
}
