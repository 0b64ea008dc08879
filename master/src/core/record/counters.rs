//! Totals over all records, written in the same batch as each change.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};
use crate::core::care::Counters;

/// Totals, as of `seq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredCounters {
    /// The totals.
    pub counters: Counters,
    /// Log position of the last change.
    pub seq: Seq,
}

impl StoredCounters {
    pub(super) fn encode(&self) -> Bytes {
        seal(&Stored {
            inodes: self.counters.inodes,
            chunks: self.counters.chunks,
            logical_bytes: self.counters.logical_bytes as u64,
            logical_bytes_high: (self.counters.logical_bytes >> 64) as u64,
            orphans: self.counters.orphans,
            reclaim_pending: self.counters.reclaim_pending,
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: Stored = open("counters", bytes)?;
        Ok(Self {
            counters: Counters {
                inodes: stored.inodes,
                chunks: stored.chunks,
                logical_bytes: u128::from(stored.logical_bytes_high) << 64 | u128::from(stored.logical_bytes),
                orphans: stored.orphans,
                reclaim_pending: stored.reclaim_pending,
            },
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint64, tag = "1")]
    inodes: u64,
    #[prost(uint64, tag = "2")]
    chunks: u64,
    #[prost(uint64, tag = "3")]
    logical_bytes: u64,
    #[prost(uint64, tag = "4")]
    orphans: u64,
    #[prost(uint64, tag = "5")]
    reclaim_pending: u64,
    #[prost(uint64, tag = "6")]
    seq: u64,
    #[prost(uint64, tag = "7")]
    logical_bytes_high: u64,
}
