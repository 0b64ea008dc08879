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

    /// Cost: the pushes; a barrier for each chunk; the commit and the master's sync. In this order, so that a size that
    /// is on stable media never covers bytes that are not.
    pub(super) fn fsync(self: &Arc<Self>, handle: HandleId) -> Result<(), FsError> {
        self.push_all();
        let sync = self.lock_within(&self.sync)?;
        let unsynced = std::mem::take(&mut self.state.lock().unsynced);
        let synced = self.barriers(&unsynced).and_then(|()| self.sync_master());
        drop(sync);
        // A push that failed is the better answer than what failed after it.
        self.take_error(handle)?;
        synced
    }

    /// Commits, and waits until the master has that on stable media.
    fn sync_master(self: &Arc<Self>) -> Result<(), FsError> {
        if self.settle()? {
            let unsynced = std::mem::take(&mut self.state.lock().unsynced);
            self.barriers(&unsynced)?;
        }
        let seq = self.state.lock().attr.seq;
        self.shared.backend.sync_to(seq)
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
