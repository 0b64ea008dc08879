//! What processes did that the checks want to know.

use dfs_proto::{ChunkId, SessionId, Version};

use super::scheduler::Time;

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A primary answered a client well.
    Served {
        /// Which chunk server.
        server: u32,
        /// Which chunk.
        chunk: ChunkId,
        /// The version it went by.
        version: Version,
        /// It told what it read.
        is_read: bool,
        /// The units that were written, if any were, the place of the write in the order, and the version whose members
        /// have it.
        written: Option<((u32, u32), u64, Version)>,
        /// For which session.
        session: SessionId,
    },
    /// A primary answered a barrier well.
    Barrier {
        /// Which chunk.
        chunk: ChunkId,
        /// When it was asked for.
        asked: Time,
        /// The last write that was acknowledged then.
        seq: u64,
    },
    /// A version is on a server's disk.
    VersionKept {
        /// Which chunk server.
        server: u32,
        /// Which chunk.
        chunk: ChunkId,
        /// The version.
        version: Version,
    },
    /// A replica was deleted by order.
    Deleted {
        /// Which chunk server.
        server: u32,
        /// Which chunk.
        chunk: ChunkId,
        /// The version it had.
        version: Version,
    },
    /// The master's records changed.
    SetsChanged,
    /// A disk was given up by its server.
    DiskFailed {
        /// Which chunk server.
        server: u32,
    },
    /// A host has stopped in the middle of what it did.
    Stopped {
        /// Which chunk server.
        server: u32,
    },
    /// The size of a log covers zeros.
    ZerosInLog {
        /// What was seen.
        what: String,
    },
    /// Something is wrong for certain.
    Wrong {
        /// Which rule.
        rule: &'static str,
        /// What happened.
        what: String,
    },
}
