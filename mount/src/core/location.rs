//! Where chunks are.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkId, ChunkIndex, NodeId, Version};

/// One replica of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The chunk server.
    pub node: NodeId,
    /// Its data plane, `host:port`.
    pub address: Arc<str>,
    /// The master has heard of it lately.
    pub is_alive: bool,
}

/// Where the replicas of one chunk of a file are, and the right to use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The place in the file.
    pub index: ChunkIndex,
    /// The chunk; 0: nothing was ever written there, reads are zeros.
    pub chunk: ChunkId,
    /// How fresh the replica set is.
    pub version: Version,
    /// The primary first.
    pub replicas: Vec<Replica>,
    /// Sealed by the master, passed on unread.
    pub grant: Bytes,
}

impl Location {
    /// Returns whether there is no chunk: a hole.
    pub fn is_hole(&self) -> bool {
        self.chunk == ChunkId(0)
    }

    /// Returns the server that orders writes and answers reads.
    pub fn primary(&self) -> Option<&Replica> {
        self.replicas.first()
    }
}
