//! An inode that lost its last name while it was open, or that is too large to go in one step.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};

/// An inode without a name; the key says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Log position of the last change.
    pub seq: Seq,
}

impl Orphan {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredOrphan { seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredOrphan = open("orphan", bytes)?;
        Ok(Self { seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredOrphan {
    #[prost(uint64, tag = "1")]
    seq: u64,
}
