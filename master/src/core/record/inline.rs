//! The content of a small file, or the target of a symlink; apart from the inode, so that a change of attributes does
//! not write it again.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};

/// Content that is kept with the inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inline {
    /// The bytes, as many as the inode's size says.
    pub content: Bytes,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Inline {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredInline { content: self.content.clone(), seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredInline = open("inline", bytes)?;
        Ok(Self { content: stored.content, seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredInline {
    #[prost(bytes = "bytes", tag = "1")]
    content: Bytes,
    #[prost(uint64, tag = "2")]
    seq: u64,
}
