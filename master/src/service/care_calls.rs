//! What the caretaker, the node service and the pages ask of the executor: steps of the state, each in its turn.

use std::sync::Arc;

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId};

use super::executor::Executor;
use crate::core::care::{ChunkFacts, CutIntent, PurgeProgress, ReclaimEntry, SessionFacts};
use crate::core::record::Chunk;
pub use crate::state::{CutStep, Info};

impl Executor {
    /// Returns up to `limit` chunks whose replicas are due for deletion now. Later calls go on after them, and begin
    /// anew at the end: servers that are away do not hold up the others.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_due(&self, limit: usize) -> Result<Vec<ReclaimEntry>, FsError> {
        self.with(move |state| state.reclaim_due(limit))
    }

    /// Records that `node` has deleted its replicas of `chunks`; an entry without nodes left is dropped.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_done(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), FsError> {
        let chunks = chunks.to_vec();
        self.with(move |state| state.reclaim_done(node, &chunks))
    }

    /// Purges orphans that nobody has open, at most about `limit` chunks of them. Nothing during the reclaim window.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn purge_orphans(&self, limit: usize) -> Result<PurgeProgress, FsError> {
        self.with(move |state| state.purge_orphans(limit))
    }

    /// Ends sessions whose lease ran out; returns how many. Does nothing during the reclaim window.
    ///
    /// To be called every second or so. If the last call was long ago the master itself was away (stopped, or its host
    /// suspended), and what its mounts said meanwhile lies unread in the sockets: then all leases begin anew.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn expire_sessions(&self) -> Result<usize, FsError> {
        self.with(|state| state.expire_sessions())
    }

    /// Returns up to `limit` truncates and punches that are not finished and that nobody is at work on any more.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn pending_cuts(&self, limit: usize) -> Result<Vec<CutIntent>, FsError> {
        self.with(move |state| state.pending_cuts(limit))
    }

    /// Records that the part was zeroed.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn cut_done(&self, cut: &CutIntent) -> Result<(), FsError> {
        let cut = cut.clone();
        self.with(move |state| state.cut_done(&cut))
    }

    /// Drops some of the chunks that a truncate or punch has left, or says what else it needs.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn cut_step(&self, cut: &CutIntent) -> Result<CutStep, FsError> {
        let cut = cut.clone();
        self.with(move |state| state.cut_step(&cut))
    }

    /// Raises the version of a chunk, durably, and returns it as it is now; `None` if it is gone.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn raise_version(&self, inode: InodeId, index: ChunkIndex) -> Result<Option<Arc<Chunk>>, FsError> {
        let raised = self.with(move |state| state.raise_version(inode, index))?;
        let Some((chunk, durable_first)) = raised else { return Ok(None) };
        self.wait_first(durable_first)?;
        Ok(Some(chunk))
    }

    /// Returns up to `limit` chunk records after `after` in order of (inode, index); `None` starts at the beginning.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn chunk_page(&self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        self.with(move |state| state.chunk_page(after, limit))
    }

    /// Returns the open sessions.
    pub fn sessions(&self) -> Vec<SessionFacts> {
        self.with(|state| Ok(state.session_facts())).unwrap_or_default()
    }

    /// Returns how many sessions are open.
    pub fn session_count(&self) -> usize {
        self.with(|state| Ok(state.session_count())).unwrap_or_default()
    }

    /// Returns the inode at `path` (absolute from the root, symlinks not followed), or `inode` if the path is empty,
    /// with its first `chunks_max` chunks and whether there are more.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::Invalid`] for what is no path, [`FsError::Io`].
    pub fn info(&self, path: &[u8], inode: InodeId, chunks_max: usize) -> Result<Info, FsError> {
        let path = path.to_vec();
        self.with(move |state| state.info(&path, inode, chunks_max))
    }
}

#[cfg(test)]
impl Executor {
    /// Counts all records anew, and returns the totals that the counters should show.
    pub(super) fn recount(&self) -> Result<crate::core::care::Counters, FsError> {
        self.with(|owner| {
            let mut counters = crate::core::care::Counters::default();
            use crate::core::record::Record;
            for (_, record) in owner.scan(crate::core::key::Range::everything())? {
                match record {
                    Record::Inode(inode) => {
                        counters.inodes += 1;
                        counters.logical_bytes += u128::from(inode.logical_bytes());
                    }
                    Record::Chunk(_) => counters.chunks += 1,
                    Record::Orphan(_) => counters.orphans += 1,
                    Record::Reclaim(reclaim) => counters.reclaim_pending += reclaim.nodes.len() as u64,
                    _ => {}
                }
            }
            Ok(counters)
        })
    }

    /// Returns all records as the store has them.
    pub(super) fn all_records(&self) -> Result<Vec<(crate::core::key::Key, crate::core::record::Record)>, FsError> {
        self.with(|owner| owner.scan(crate::core::key::Range::everything()))
    }
}
