//! Marks up to which ids may be in use. A mark is durable before any id below it is used.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};

/// One past the highest id of each kind that may be in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kinds of id")]
pub struct IdMarks {
    pub inode: u64,
    pub chunk: u64,
    pub session: u64,
    /// Log position of the last change.
    pub seq: Seq,
}

impl IdMarks {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredMarks { inode: self.inode, chunk: self.chunk, session: self.session, seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredMarks = open("ids", bytes)?;
        Ok(Self { inode: stored.inode, chunk: stored.chunk, session: stored.session, seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredMarks {
    #[prost(uint64, tag = "1")]
    inode: u64,
    #[prost(uint64, tag = "2")]
    chunk: u64,
    #[prost(uint64, tag = "3")]
    session: u64,
    #[prost(uint64, tag = "4")]
    seq: u64,
}
