//! The entries of the unit table.
//!
//! ```text
//! offset (bytes)  size (bytes)   field, little endian
//! 0               4              crc32c of the unit's content
//! 4               4              crc32c of the content before its last write, if bit 2 of the flags is set
//! 8               8              version of the last write's stamp
//! 16              8              seq of the last write's stamp
//! 24              4              flags: bit 0 data, bit 1 zeroed (exactly one of them), bit 2 previous is valid,
//!                                bit 3 previous was a hole
//! 28              4              crc32c of chunk id (8), unit (4) and bytes 0..28
//! ```
//!
//! 32 zero bytes: the unit was never written. Chunk and unit are part of the entry's checksum, so that an entry that was
//! written to a wrong place is noticed.

use dfs_proto::unit::ZERO_UNIT_CRC;
use dfs_proto::{ChunkId, Version};

use super::header::{read_u32, read_u64};
use super::layout::ENTRY_BYTES;
use crate::core::unit::{UnitState, WriteStamp};

const DATA: u32 = 1;
const ZEROED: u32 = 2;
const PREVIOUS: u32 = 4;
const PREVIOUS_HOLE: u32 = 8;
const CRC_AT: usize = 28;

/// What a unit held before its last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The crc32c of that content.
    pub crc: u32,
    /// It was a hole.
    pub hole: bool,
}

/// An entry of the table, as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Never written.
    Never,
    /// Written.
    Known {
        /// What the unit holds.
        state: UnitState,
        /// What it held before, if that is known.
        previous: Option<Previous>,
    },
    /// Not to be trusted: its checksum does not match.
    Damaged,
}

impl Slot {
    /// Returns what the next entry of this unit says of its present content.
    pub fn as_previous(&self) -> Option<Previous> {
        match self {
            Self::Never => Some(Previous { crc: ZERO_UNIT_CRC, hole: true }),
            Self::Known { state, .. } => Some(Previous { crc: state.crc, hole: state.hole }),
            Self::Damaged => None,
        }
    }

    /// Returns whether the entry says that the unit holds data.
    pub fn holds_data(&self) -> bool {
        matches!(self, Self::Known { state, .. } if !state.hole)
    }

    /// Returns what the unit holds, if the entry says so.
    pub fn state(&self) -> Option<UnitState> {
        match self {
            Self::Known { state, .. } => Some(*state),
            Self::Never | Self::Damaged => None,
        }
    }

    /// Returns the bytes of the entry of `unit`.
    pub fn encode(state: &UnitState, previous: Option<Previous>, chunk: ChunkId, unit: u32) -> [u8; ENTRY_BYTES] {
        let mut flags = if state.hole { ZEROED } else { DATA };
        if let Some(previous) = previous {
            flags |= PREVIOUS | if previous.hole { PREVIOUS_HOLE } else { 0 };
        }
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0..4].copy_from_slice(&state.crc.to_le_bytes());
        bytes[4..8].copy_from_slice(&previous.map_or(0, |previous| previous.crc).to_le_bytes());
        bytes[8..16].copy_from_slice(&state.stamp.version.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&state.stamp.seq.to_le_bytes());
        bytes[24..28].copy_from_slice(&flags.to_le_bytes());
        let crc = checksum(&bytes, chunk, unit);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the entry of `unit` in `bytes`.
    ///
    /// # Panics
    ///
    /// If `bytes` is not an entry long.
    pub fn decode(bytes: &[u8], chunk: ChunkId, unit: u32) -> Self {
        assert_eq!(bytes.len(), ENTRY_BYTES);
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Never;
        }
        let flags = read_u32(bytes, 24);
        let is_known = matches!(flags & (DATA | ZEROED), DATA | ZEROED) && flags < 16;
        if read_u32(bytes, CRC_AT) != checksum(bytes, chunk, unit) || !is_known {
            return Self::Damaged;
        }
        let stamp = WriteStamp { version: Version(read_u64(bytes, 8)), seq: read_u64(bytes, 16) };
        let state = UnitState { stamp, crc: read_u32(bytes, 0), hole: flags & ZEROED != 0 };
        let previous =
            (flags & PREVIOUS != 0).then(|| Previous { crc: read_u32(bytes, 4), hole: flags & PREVIOUS_HOLE != 0 });
        Self::Known { state, previous }
    }
}

fn checksum(bytes: &[u8], chunk: ChunkId, unit: u32) -> u32 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&chunk.0.to_le_bytes());
    place[8..].copy_from_slice(&unit.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[..CRC_AT])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: ChunkId = ChunkId(77);

    fn sample_state() -> (UnitState, Option<Previous>) {
        let state = UnitState::data(WriteStamp { version: Version(2), seq: 9 }, 0x0a0b_0c0d);
        (state, Some(Previous { crc: 0x01, hole: false }))
    }

    #[test]
    fn the_stored_sample_of_format_1_still_decodes() {
        let (state, previous) = sample_state();
        let sample = [
            0x0d, 0x0c, 0x0b, 0x0a, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 8, 16, 68,
            156,
        ];
        assert_eq!(Slot::encode(&state, previous, CHUNK, 3), sample);
        assert_eq!(Slot::decode(&sample, CHUNK, 3), Slot::Known { state, previous });
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_so_is_a_wrong_place() {
        let (state, previous) = sample_state();
        let good = Slot::encode(&state, previous, CHUNK, 3);
        for bit in 0..good.len() * 8 {
            let mut torn = good;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&torn, CHUNK, 3), Slot::Damaged, "bit {bit}");
        }
        assert_eq!(Slot::decode(&good, CHUNK, 4), Slot::Damaged);
        assert_eq!(Slot::decode(&good, ChunkId(78), 3), Slot::Damaged);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_an_entry_by_chance(bytes in proptest::collection::vec(any::<u8>(), ENTRY_BYTES)) {
            let expected = if bytes.iter().all(|byte| *byte == 0) { Slot::Never } else { Slot::Damaged };
            prop_assert_eq!(Slot::decode(&bytes, CHUNK, 0), expected);
        }
    }
}
