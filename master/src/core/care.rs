//! What the caretaker, the node service and the admin pages ask the executor for, and the facts they get back.

use dfs_proto::{ChunkId, ChunkIndex, InodeId, NodeId, SessionId, UnixNanos, Version};

/// What a chunk server says of itself when it registers; kept with its node id for as long as the cluster lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Made by the server at its first start; the node id belongs to it.
    pub server_id: [u8; 16],
    /// `host:port` of the data plane.
    pub data_address: String,
    /// `host:port` of its pages.
    pub http_address: String,
    /// Failure domain above the host.
    pub rack: String,
    /// Host name.
    pub host: String,
    /// Version of dfs.
    pub software: String,
}

/// Totals over all records, kept exact in the same batch as each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Inodes, orphans included.
    pub inodes: u64,
    /// Chunks of all files.
    pub chunks: u64,
    /// Sum of the sizes of regular files. Sparse files cost nothing, so a few dozen can be more than 64 bits hold.
    pub logical_bytes: u128,
    /// Inodes without a name that are still open or not yet purged.
    pub orphans: u64,
    /// Replicas that wait for their deletion.
    pub reclaim_pending: u64,
}

/// Chunk replicas that are to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReclaimEntry {
    /// The chunk, which no file has any more.
    pub chunk: ChunkId,
    /// Not before this wall-clock time (a delay, not safety: ids are never reused).
    pub due: UnixNanos,
    /// Servers that may still hold a replica.
    pub nodes: Vec<NodeId>,
}

/// A truncate or punch that is not finished; its record says what is left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutIntent {
    /// The file.
    pub inode: InodeId,
    /// Sets this intent apart from later ones of the same file: the log position of the change that asked for it.
    pub number: u64,
}

/// What a bounded step of the purge of orphans did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeProgress {
    /// Inodes that are now gone.
    pub inodes: u64,
    /// Chunks handed to reclaim.
    pub chunks: u64,
    /// Whether there is more to do now.
    pub more: bool,
}

/// One chunk as recorded, for pages and planners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFacts {
    /// The file.
    pub inode: InodeId,
    /// Its place in the file.
    pub index: ChunkIndex,
    /// Its identity.
    pub chunk: ChunkId,
    /// Version of its replica set.
    pub version: Version,
    /// The replica that orders writes.
    pub primary: NodeId,
    /// Replicas that have every acknowledged write, the primary included.
    pub in_sync: Vec<NodeId>,
    /// Replicas that are being filled.
    pub syncing: Vec<NodeId>,
    /// Replicas the file's layout asks for.
    pub wanted: u32,
}

/// A session, for pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Its identity.
    pub session: SessionId,
    /// Host of the mount.
    pub host: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Version of dfs.
    pub software: String,
    /// `host:port` of the mount's pages, or empty.
    pub metrics_address: String,
    /// Milliseconds since it was last heard of.
    pub last_seen_ms: u64,
    /// Files it holds open.
    pub open_files: u64,
}
