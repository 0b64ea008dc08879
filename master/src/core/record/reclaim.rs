//! Replicas of a chunk that no file has any more.

use bytes::Bytes;
use dfs_proto::{NodeId, Seq};

use super::{RecordError, open, seal};

/// Replicas to delete; the key says of which chunk, and from when on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Servers that may still hold one.
    pub nodes: Vec<NodeId>,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Reclaim {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredReclaim { nodes: self.nodes.iter().map(|node| node.0).collect(), seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredReclaim = open("reclaim", bytes)?;
        Ok(Self { nodes: stored.nodes.into_iter().map(NodeId).collect(), seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredReclaim {
    #[prost(uint32, repeated, tag = "1")]
    nodes: Vec<u32>,
    #[prost(uint64, tag = "2")]
    seq: u64,
}
