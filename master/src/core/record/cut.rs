//! A truncate that still has to zero the rest of one chunk; written with the new size, dropped once it is done.

use bytes::Bytes;
use dfs_proto::{ChunkIndex, Seq, UnixNanos};

use super::{RecordError, open, seal};

/// A truncate that is not finished; the key names the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The chunk whose rest is to be zeroed.
    pub index: ChunkIndex,
    /// First byte within the chunk that becomes zero.
    pub from: u32,
    /// One past the last.
    pub to: u32,
    /// When it was asked for.
    pub since: UnixNanos,
    /// Log position of the change that asked for it.
    pub seq: Seq,
}

impl Cut {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredCut { index: self.index.0, from: self.from, to: self.to, since: self.since.0, seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredCut = open("cut", bytes)?;
        if stored.from >= stored.to {
            return Err(RecordError { kind: "cut", what: "an empty range" });
        }
        Ok(Self {
            index: ChunkIndex(stored.index),
            from: stored.from,
            to: stored.to,
            since: UnixNanos(stored.since),
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCut {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint32, tag = "2")]
    from: u32,
    #[prost(uint32, tag = "3")]
    to: u32,
    #[prost(sfixed64, tag = "4")]
    since: i64,
    #[prost(uint64, tag = "5")]
    seq: u64,
}
