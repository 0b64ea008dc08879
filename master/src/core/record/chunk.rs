//! A chunk of a file: which servers hold it, at which version, and which one orders its writes.

use bytes::Bytes;
use dfs_proto::{ChunkId, NodeId, Seq, Version};

use super::{RecordError, open, seal};

/// A chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its identity, never reused.
    pub id: ChunkId,
    /// Raised at every change of the replica set or the primary.
    pub version: Version,
    /// The replica that orders writes; one of `in_sync`.
    pub primary: NodeId,
    /// Replicas that have every acknowledged write.
    pub in_sync: Vec<NodeId>,
    /// Replicas that are being filled.
    pub syncing: Vec<NodeId>,
    /// Servers that left the set and may still hold an older replica: the first to be filled again, since they lack
    /// little, or told to delete it.
    pub stale: Vec<NodeId>,
    /// Some write to it was reported: from here on an absent replica is a lost one, not an empty one.
    pub is_written: bool,
    /// Log position up to which the members are known to be equal: that of the last change of the set, or an older one
    /// while it has a member that came back without what it had not synced, later than that position.
    pub set_seq: Seq,
    /// Log position of the last change of the version: durable before anybody is granted it.
    pub version_seq: Seq,
    /// The version with which members were believed that may lack what was acknowledged before and not synced; 0: never.
    pub loss_version: Version,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Chunk {
    /// Returns every server that may hold a replica.
    pub fn holders(&self) -> impl Iterator<Item = NodeId> {
        self.in_sync.iter().chain(&self.syncing).chain(&self.stale).copied()
    }

    /// Returns whether `node` is in sync or being filled.
    pub fn has_member(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node) || self.syncing.contains(&node)
    }

    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredChunk {
            id: self.id.0,
            version: self.version.0,
            primary: self.primary.0,
            in_sync: self.in_sync.iter().map(|node| node.0).collect(),
            syncing: self.syncing.iter().map(|node| node.0).collect(),
            stale: self.stale.iter().map(|node| node.0).collect(),
            set_seq: self.set_seq.0,
            version_seq: self.version_seq.0,
            is_written: self.is_written,
            loss_version: self.loss_version.0,
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredChunk = open("chunk", bytes)?;
        let primary = NodeId(stored.primary);
        let in_sync: Vec<NodeId> = stored.in_sync.into_iter().map(NodeId).collect();
        if !in_sync.contains(&primary) {
            return Err(RecordError { kind: "chunk", what: "the primary is not in sync" });
        }
        Ok(Self {
            id: ChunkId(stored.id),
            version: Version(stored.version),
            primary,
            in_sync,
            syncing: stored.syncing.into_iter().map(NodeId).collect(),
            stale: stored.stale.into_iter().map(NodeId).collect(),
            set_seq: Seq(stored.set_seq),
            version_seq: Seq(stored.version_seq),
            is_written: stored.is_written,
            loss_version: Version(stored.loss_version),
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredChunk {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(uint32, tag = "3")]
    primary: u32,
    #[prost(uint32, repeated, tag = "4")]
    in_sync: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    syncing: Vec<u32>,
    #[prost(bool, tag = "6")]
    is_written: bool,
    #[prost(uint64, tag = "7")]
    seq: u64,
    #[prost(uint32, repeated, tag = "8")]
    stale: Vec<u32>,
    #[prost(uint64, tag = "9")]
    set_seq: u64,
    #[prost(uint64, tag = "10")]
    version_seq: u64,
    #[prost(uint64, tag = "11")]
    loss_version: u64,
}
