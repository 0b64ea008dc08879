//! Checksums of units: the crc32c of each 4 KiB of a chunk.
//!
//! They are computed where data is written, travel with it, are stored beside it, and are checked by every hop and
//! by the reader. A range that starts or ends inside a unit has a checksum for each piece between unit boundaries.

use crate::limits::UNIT_SIZE;

/// Returns the pieces of `[offset, offset + length)` cut at unit boundaries, as (start, length) relative to `offset`.
pub fn pieces(offset: u32, length: u32) -> impl Iterator<Item = (usize, usize)> {
    let end = u64::from(offset) + u64::from(length);
    let mut at = u64::from(offset);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at / u64::from(UNIT_SIZE) + 1) * u64::from(UNIT_SIZE)).min(end);
        let piece = ((at - u64::from(offset)) as usize, (next - at) as usize);
        at = next;
        Some(piece)
    })
}

/// Returns the checksum of each piece of `data`, which stands at `offset` bytes in its chunk.
pub fn checksums(offset: u32, data: &[u8]) -> Vec<u32> {
    pieces(offset, data.len() as u32).map(|(start, length)| crc32c::crc32c(&data[start..start + length])).collect()
}

/// Checks `data`, which stands at `offset` bytes in its chunk, against the checksum of each piece.
///
/// # Errors
///
/// The index of the first piece that does not match, or of the first that is missing or too many.
pub fn verify(offset: u32, data: &[u8], crcs: &[u32]) -> Result<(), usize> {
    let mut count = 0;
    for (at, (start, length)) in pieces(offset, data.len() as u32).enumerate() {
        if crcs.get(at) != Some(&crc32c::crc32c(&data[start..start + length])) {
            return Err(at);
        }
        count += 1;
    }
    if crcs.len() == count { Ok(()) } else { Err(count) }
}

/// The checksum of a unit of zeros.
pub const ZERO_UNIT_CRC: u32 = 0x98f9_4189;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_unit_boundaries() {
        let cut: Vec<_> = pieces(6 * 1024, 7 * 1024).collect();
        assert_eq!(cut, [(0, 2048), (2048, 4096), (6144, 1024)]);
        assert_eq!(pieces(4096, 0).count(), 0);
        assert_eq!(pieces(0, 4096).collect::<Vec<_>>(), [(0, 4096)]);
        assert_eq!(pieces(4095, 2).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    }

    #[test]
    fn one_flipped_bit_is_found_in_its_piece() {
        let mut data = vec![7; 10_000];
        let crcs = checksums(100, &data);
        assert_eq!(verify(100, &data, &crcs), Ok(()));
        data[5_000] ^= 1;
        assert_eq!(verify(100, &data, &crcs), Err(1));
        assert_eq!(verify(100, &data[..100], &crcs), Err(0));
    }

    #[test]
    fn the_checksum_of_zeros_is_what_it_says() {
        assert_eq!(crc32c::crc32c(&[0; UNIT_SIZE as usize]), ZERO_UNIT_CRC);
    }
}
