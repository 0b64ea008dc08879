//! The one owner of the records (interface; the body follows).

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq};

use crate::core::care::{ChunkFacts, Counters, CutIntent, NodeFacts, PurgeProgress, ReclaimEntry, SessionFacts};

/// Runs requests against the records, one at a time, in batches. Every method blocks (milliseconds at most): callers
/// on an async runtime use `spawn_blocking` or `block_in_place`.
pub struct Executor {}

#[allow(unused_variables, missing_docs)]
impl Executor {
    /// Returns the node id of the server `facts` speak of, a new one at its first registration; durable on return.
    pub fn register_node(&self, facts: &NodeFacts) -> Result<NodeId, FsError> {
        Err(FsError::NotSupported)
    }
    /// Returns all chunk servers that ever registered, by id. For filling the node table at a start.
    pub fn known_nodes(&self) -> Result<Vec<(NodeId, NodeFacts)>, FsError> {
        Err(FsError::NotSupported)
    }
    /// Returns the first `limit` chunks whose replicas are due for deletion now.
    pub fn reclaim_due(&self, limit: usize) -> Result<Vec<ReclaimEntry>, FsError> {
        Err(FsError::NotSupported)
    }
    /// Records that `node` has deleted its replicas of `chunks`; an entry without nodes left is dropped.
    pub fn reclaim_done(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
    /// Purges orphans that nobody has open, at most about `limit` chunks of them.
    pub fn purge_orphans(&self, limit: usize) -> Result<PurgeProgress, FsError> {
        Err(FsError::NotSupported)
    }
    /// Ends sessions whose lease ran out; returns how many. Does nothing during the reclaim window.
    pub fn expire_sessions(&self) -> Result<usize, FsError> {
        Err(FsError::NotSupported)
    }
    /// Returns the first `limit` truncates that still have to zero a chunk's tail and are older than a few seconds.
    pub fn pending_cuts(&self, limit: usize) -> Result<Vec<CutIntent>, FsError> {
        Err(FsError::NotSupported)
    }
    /// Records that the tail was zeroed.
    pub fn cut_done(&self, cut: &CutIntent) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
    /// Returns up to `limit` chunk records after `after` in order of (inode, index); `None` starts at the beginning.
    pub fn chunk_page(&self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        Err(FsError::NotSupported)
    }
    /// Returns the totals. Takes no lock that a request holds for long.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
    /// Returns the open sessions.
    pub fn sessions(&self) -> Vec<SessionFacts> {
        Vec::new()
    }
    /// Returns the position of the last change, and of the last one that is on stable media.
    pub fn seqs(&self) -> (Seq, Seq) {
        (Seq(0), Seq(0))
    }
    /// Returns why the executor stopped for good, if it did (then the daemon is not healthy).
    pub fn failure(&self) -> Option<String> {
        None
    }
    /// Returns the inode at `path` (absolute from the root, symlinks not followed), or `inode` if the path is empty,
    /// with its first `chunks_max` chunks and whether there are more.
    pub fn info(&self, path: &[u8], inode: InodeId, chunks_max: usize) -> Result<Info, FsError> {
        Err(FsError::NotSupported)
    }
}

/// What is recorded of one inode.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its first chunks.
    pub chunks: Vec<ChunkFacts>,
    /// Whether it has more.
    pub more_chunks: bool,
}
