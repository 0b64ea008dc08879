//! The entries of the unit table.
//!
//! ```text
//! offset (bytes)  size (bytes)   field, little endian
//! 0               4              crc32c of the unit's content
//! 4               4              zero
//! 8               8              version of the last write's stamp
//! 16              8              seq of the last write's stamp
//! 24              4              flags: bit 0 data, bit 1 zeroed (exactly one of them)
//! 28              4              crc32c of chunk id (8), unit (4) and bytes 0..28
//! ```
//!
//! 32 zero bytes: the unit was never written. Chunk and unit are part of the entry's checksum, so that an entry that was
//! written to a wrong place is noticed.

use dfs_proto::{ChunkId, Version};

use super::header::{read_u32, read_u64};
use super::layout::ENTRY_BYTES;
use crate::core::unit::{UnitState, WriteStamp};

const DATA: u32 = 1;
const ZEROED: u32 = 2;
const CRC_AT: usize = 28;

/// An entry of the table, as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Never written.
    Never,
    /// Written.
    Known(UnitState),
    /// Not to be trusted: its checksum does not match.
    Damaged,
}

impl Slot {
    /// Returns whether the entry says that the unit holds data.
    pub fn holds_data(&self) -> bool {
        matches!(self, Self::Known(state) if !state.hole)
    }

    /// Returns what the unit holds, if the entry says so.
    pub fn state(&self) -> Option<UnitState> {
        match self {
            Self::Known(state) => Some(*state),
            Self::Never | Self::Damaged => None,
        }
    }

    /// Returns the bytes of the entry of `unit`.
    pub fn encode(state: &UnitState, chunk: ChunkId, unit: u32) -> [u8; ENTRY_BYTES] {
        let flags = if state.hole { ZEROED } else { DATA };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0..4].copy_from_slice(&state.crc.to_le_bytes());
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
        let is_known = matches!(flags, DATA | ZEROED);
        if read_u32(bytes, CRC_AT) != checksum(bytes, chunk, unit) || !is_known {
            return Self::Damaged;
        }
        let stamp = WriteStamp { version: Version(read_u64(bytes, 8)), seq: read_u64(bytes, 16) };
        Self::Known(UnitState { stamp, crc: read_u32(bytes, 0), hole: flags == ZEROED })
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

    fn sample_state() -> UnitState {
        UnitState::data(WriteStamp { version: Version(2), seq: 9 }, 0x0a0b_0c0d)
    }

    #[test]
    fn the_stored_sample_of_format_2_still_decodes() {
        let state = sample_state();
        let sample = [
            0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 117, 227,
            41, 93,
        ];
        assert_eq!(Slot::encode(&state, CHUNK, 3), sample);
        assert_eq!(Slot::decode(&sample, CHUNK, 3), Slot::Known(state));
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_so_is_a_wrong_place() {
        let good = Slot::encode(&sample_state(), CHUNK, 3);
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
