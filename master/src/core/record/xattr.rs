//! The value of an extended attribute.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};

/// The value of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Any bytes; may be empty.
    pub value: Bytes,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Xattr {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredXattr { value: self.value.clone(), seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredXattr = open("xattr", bytes)?;
        Ok(Self { value: stored.value, seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredXattr {
    #[prost(bytes = "bytes", tag = "1")]
    value: Bytes,
    #[prost(uint64, tag = "2")]
    seq: u64,
}
