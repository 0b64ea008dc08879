//! What is written: cells of 512 bytes that say where they belong and who wrote them, so that a byte in the wrong place
//! is seen without looking anything up.
//!
//! ```text
//! offset  size  field, little endian
//! 0       4     magic, b"CHAO"
//! 4       4     writer
//! 8       8     file
//! 16      4     index of the cell in the file
//! 20      4     number of the write, from 1
//! 24      484   any bytes, from those above
//! 508     4     crc32c of bytes 0..508
//! ```
//!
//! A cell is smaller than the unit (4 KiB) that dfs checks and stores, so that writes of parts of units are stamped too.

use crate::random::Random;

/// Bytes of a cell.
pub const CELL: u64 = 512;
const MAGIC: &[u8; 4] = b"CHAO";

/// What a run of equal cells of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Nothing was written there.
    Zeros,
    /// A stamp of this file and place.
    Stamp(u32),
    /// Something else: [`explain`] says what.
    Foreign,
}

/// Returns a cell.
pub fn cell(writer: u32, file: u64, index: u32, number: u32) -> [u8; CELL as usize] {
    let mut bytes = [0; CELL as usize];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..8].copy_from_slice(&writer.to_le_bytes());
    bytes[8..16].copy_from_slice(&file.to_le_bytes());
    bytes[16..20].copy_from_slice(&index.to_le_bytes());
    bytes[20..24].copy_from_slice(&number.to_le_bytes());
    let mut random = Random::of(file << 32 | u64::from(index), u64::from(number));
    for word in bytes[24..504].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[..508]);
    bytes[508..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Returns the content of cells from `first` on.
pub fn cells(writer: u32, file: u64, first: u32, count: u32, number: u32) -> Vec<u8> {
    (first..first + count).flat_map(|index| cell(writer, file, index, number)).collect()
}

/// Returns what a cell at `index` of `file` holds.
pub fn read(file: u64, index: u32, bytes: &[u8]) -> Content {
    if bytes.iter().all(|byte| *byte == 0) {
        return Content::Zeros;
    }
    match fields(bytes) {
        Some((_, of, at, number)) if (of, at) == (file, index) => Content::Stamp(number),
        _ => Content::Foreign,
    }
}

/// Says what a foreign cell is.
pub fn explain(bytes: &[u8]) -> String {
    match fields(bytes) {
        Some((writer, file, index, number)) => {
            format!("write {number} of writer {writer} to cell {index} of file {file}")
        }
        None if bytes.starts_with(MAGIC) => format!("a stamp that was changed: {:02x?}", &bytes[..24]),
        None => format!("{} bytes: {:02x?}…", bytes.len(), &bytes[..bytes.len().min(24)]),
    }
}

fn fields(bytes: &[u8]) -> Option<(u32, u64, u32, u32)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if bytes.len() != CELL as usize || !bytes.starts_with(MAGIC) || word(508)? != crc32c::crc32c(&bytes[..508]) {
        return None;
    }
    let file = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
    Some((word(4)?, file, word(16)?, word(20)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_known_in_its_place_only_and_as_a_whole_only() {
        let bytes = cell(3, 77, 5, 9);
        assert_eq!(read(77, 5, &bytes), Content::Stamp(9));
        assert_eq!((read(77, 6, &bytes), read(78, 5, &bytes)), (Content::Foreign, Content::Foreign));
        assert_eq!(read(77, 5, &[0; CELL as usize]), Content::Zeros);
        assert_eq!(explain(&bytes), "write 9 of writer 3 to cell 5 of file 77");
        for at in 0..CELL as usize {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(read(77, 5, &changed), Content::Foreign, "byte {at}");
        }
        assert_eq!(read(77, 5, &bytes[..100]), Content::Foreign);
    }
}
