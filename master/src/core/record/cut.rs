//! The rest of a truncate or punch; written with the change that programs see, dropped once it is done.

use bytes::Bytes;
use dfs_proto::{ChunkIndex, Seq, UnixNanos};

use super::{RecordError, open, seal};

/// What a truncate or punch still has to do; the key names the inode.
///
/// # Invariants
///
/// - At least one of `drops` and `zero` is there, and they do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Chunks that count as gone, first and last index, but whose records are still there: they were too many for one
    /// batch.
    pub drops: Option<(ChunkIndex, ChunkIndex)>,
    /// The part of a chunk that is to be zeroed.
    pub zero: Option<ZeroPart>,
    /// When it was asked for.
    pub since: UnixNanos,
    /// Log position of the change that asked for it.
    pub seq: Seq,
}

/// Part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroPart {
    /// The chunk.
    pub index: ChunkIndex,
    /// First byte within the chunk.
    pub from: u32,
    /// One past the last.
    pub to: u32,
}

impl Cut {
    /// Returns whether one of `count` chunks from `first` on may not be shown before this is done.
    pub fn hides(&self, first: ChunkIndex, count: u32) -> bool {
        let end = u64::from(first.0) + u64::from(count);
        let overlaps = |from: ChunkIndex, last: ChunkIndex| u64::from(from.0) < end && first <= last;
        self.drops.is_some_and(|(from, last)| overlaps(from, last))
            || self.zero.is_some_and(|zero| overlaps(zero.index, zero.index))
    }

    /// Returns whether the chunk at `index` counts as gone.
    pub fn drops(&self, index: ChunkIndex) -> bool {
        self.drops.is_some_and(|(first, last)| (first..=last).contains(&index))
    }

    pub(super) fn encode(&self) -> Bytes {
        let zero = self.zero.unwrap_or(ZeroPart { index: ChunkIndex(0), from: 0, to: 0 });
        let (first, last) = self.drops.unwrap_or_default();
        seal(&StoredCut {
            index: zero.index.0,
            from: zero.from,
            to: zero.to,
            since: self.since.0,
            seq: self.seq.0,
            has_drops: self.drops.is_some(),
            drop_first: first.0,
            drop_last: last.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredCut = open("cut", bytes)?;
        let zero = ZeroPart { index: ChunkIndex(stored.index), from: stored.from, to: stored.to };
        let zero = (stored.from < stored.to).then_some(zero);
        let drops = stored.has_drops.then_some((ChunkIndex(stored.drop_first), ChunkIndex(stored.drop_last)));
        if zero.is_none() && drops.is_none() {
            return Err(RecordError { kind: "cut", what: "an empty range" });
        }
        Ok(Self { drops, zero, since: UnixNanos(stored.since), seq: Seq(stored.seq) })
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
    #[prost(bool, tag = "6")]
    has_drops: bool,
    #[prost(uint32, tag = "7")]
    drop_first: u32,
    #[prost(uint32, tag = "8")]
    drop_last: u32,
}
