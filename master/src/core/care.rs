//! What the caretaker, the node service and the admin pages ask the executor for, and the facts they get back.

use dfs_proto::replica_set::{Home, OrderKind};
use dfs_proto::{ChunkId, ChunkIndex, InodeId, NodeId, Seq, SessionId, UnixNanos, Version};

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
    /// Servers that left the set and may still hold an older replica.
    pub stale: Vec<NodeId>,
    /// Some write to it was reported: an absent replica is a lost one.
    pub is_written: bool,
    /// Log position of the last change of the set.
    pub set_seq: Seq,
    /// Log position of the last change of the record.
    pub seq: Seq,
    /// Replicas the file's layout asks for.
    pub wanted: u32,
    /// log2 of its bytes.
    pub chunk_size_log2: u32,
}

impl ChunkFacts {
    /// Returns where its record is.
    pub fn home(&self) -> Home {
        Home { inode: self.inode, index: self.index }
    }

    /// Returns with how many replicas in sync writes are acknowledged.
    pub fn min_in_sync(&self) -> u32 {
        self.wanted.clamp(1, 2)
    }

    /// Returns whether `node` is in sync or being filled.
    pub fn names(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node) || self.syncing.contains(&node)
    }

    /// Returns the most bytes that a replica can have.
    pub fn chunk_bytes(&self) -> u64 {
        1 << self.chunk_size_log2.min(40)
    }
}

/// What the master itself changes about a replica set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetChange {
    /// This server is to be filled.
    Add(NodeId),
    /// This member or syncing replica leaves; what it holds is old from then on. Not the primary.
    Remove(NodeId),
    /// This server may hold an older replica.
    NoteStale(NodeId),
    /// This server has no replica any more.
    ForgetStale(NodeId),
}

impl SetChange {
    /// Returns the word for it in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add(_) => "add",
            Self::Remove(_) => "remove",
            Self::NoteStale(_) => "note_stale",
            Self::ForgetStale(_) => "forget_stale",
        }
    }
}

/// What is to be done next for one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To change its set.
    Change(SetChange),
    /// To order this of a server: of the primary, unless it is a discard.
    Order(NodeId, OrderKind),
}

/// A step for a chunk, as planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Where the chunk's record is.
    pub home: Home,
    /// The version that the plan was made for.
    pub version: Version,
    /// What is to be done.
    pub step: Step,
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
