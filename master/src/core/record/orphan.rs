//! An inode that lost its last name while it was open, or that is too large to go in one step.

use bytes::Bytes;
use dfs_proto::{ChunkIndex, Seq};

use super::{RecordError, open, seal};

/// An inode without a name; the key says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its purge goes on with this chunk: those before it are gone, and a scan would pass them one by one.
    pub purge_from: ChunkIndex,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Orphan {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredOrphan { seq: self.seq.0, purge_from: self.purge_from.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredOrphan = open("orphan", bytes)?;
        Ok(Self { purge_from: ChunkIndex(stored.purge_from), seq: Seq(stored.seq) })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredOrphan {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(uint32, tag = "2")]
    purge_from: u32,
}
