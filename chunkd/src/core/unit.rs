//! What a replica knows of one unit: which write it holds, and the checksum of what that write left.

use dfs_proto::Version;
use dfs_proto::unit::ZERO_UNIT_CRC;

/// No chunk sees so many writes: what comes with a larger seq is refused, so that counting on never overflows.
pub const SEQ_MAX: u64 = 1 << 62;

/// Which write a unit holds. Of two replicas of a chunk, the one with the larger stamp has the newer unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteStamp {
    /// The chunk's version when the write was ordered.
    pub version: Version,
    /// The write's place among those to its chunk; rises across versions too.
    pub seq: u64,
}

impl WriteStamp {
    /// Returns the largest stamp that is smaller. Only the stamp of units that were never written has none.
    pub fn just_below(self) -> Self {
        match self.seq.checked_sub(1) {
            Some(seq) => Self { seq, ..self },
            None => Self { version: Version(self.version.0.saturating_sub(1)), seq: u64::MAX },
        }
    }
}

/// One unit of one replica. Equal states stand for equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitState {
    /// Which write it holds; zero if it was never written.
    pub stamp: WriteStamp,
    /// The crc32c of its 4 KiB.
    pub crc: u32,
    /// It reads as zeros and takes no room.
    pub hole: bool,
}

impl UnitState {
    /// A unit that was never written.
    pub const NEVER: Self = Self { stamp: WriteStamp { version: Version(0), seq: 0 }, crc: ZERO_UNIT_CRC, hole: true };

    /// Returns a unit with data.
    pub fn data(stamp: WriteStamp, crc: u32) -> Self {
        Self { stamp, crc, hole: false }
    }

    /// Returns a unit that was zeroed.
    pub fn tombstone(stamp: WriteStamp) -> Self {
        Self { stamp, crc: ZERO_UNIT_CRC, hole: true }
    }

    /// Returns a unit whose content is lost: it comes without any, and the checksum is that of what it should be. If that
    /// is zeros, nothing is lost.
    pub fn lost(stamp: WriteStamp, crc: u32) -> Self {
        Self { stamp, crc, hole: true }
    }

    /// Returns a unit that is lost with its entry: any write is newer.
    pub fn lost_entry() -> Self {
        Self::lost(WriteStamp { version: Version(1), seq: 1 }, !ZERO_UNIT_CRC)
    }

    /// Returns what is told of a unit that is damaged and had this entry: it is lost whatever its content was.
    pub fn damaged(self) -> Self {
        Self::lost(self.stamp, if self.crc == ZERO_UNIT_CRC { !self.crc } else { self.crc })
    }

    /// Returns whether its content is lost. Such units are told when replicas are compared, and to replicas that are filled.
    pub fn is_lost(&self) -> bool {
        self.hole && self.crc != ZERO_UNIT_CRC
    }
}
