//! The header of a replica file.
//!
//! ```text
//! offset (bytes)  size (bytes)   field, little endian
//! 0               8              magic, b"DFSCHUNK"
//! 8               4              format version, now 2
//! 12              4              flags: bit 0 incomplete
//! 16              8              chunk id
//! 24              8              chunk version
//! 32              4              log2 of the chunk's bytes
//! 36              4              index of the chunk in its file
//! 40              8              inode of its file
//! 48              460            zero
//! 508             4              crc32c of bytes 0..508
//! ```

use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, ChunkIndex, InodeId, Version};

use super::StoreError;
use super::layout::HEADER_BYTES;
use crate::core::admission::CHUNK_SIZE_LOG2;

const MAGIC: [u8; 8] = *b"DFSCHUNK";
/// The format that is written.
pub const FORMAT: u32 = 2;
const INCOMPLETE: u32 = 1;
const CRC_AT: usize = HEADER_BYTES - 4;

/// What a replica file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose replica it is.
    pub chunk: ChunkId,
    /// The newest version of the replica set that this replica has heard of.
    pub version: Version,
    /// Where the master has the chunk's record.
    pub home: Home,
    /// log2 of the chunk's bytes.
    pub chunk_size_log2: u32,
    /// Made in place of one that is gone, and not yet filled from the others: what it lacks are not holes.
    pub incomplete: bool,
}

impl Header {
    /// Returns the bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&(if self.incomplete { INCOMPLETE } else { 0 }).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.chunk.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.version.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.chunk_size_log2.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.home.index.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.home.inode.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the header in `bytes`.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadFile`] with the reason; [`StoreError::OtherFormat`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadFile(reason);
        if bytes[0..8] != MAGIC {
            return Err(bad("no replica file: wrong magic number".into()));
        }
        let format = read_u32(bytes, 8);
        if read_u32(bytes, CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Err(bad("the header's checksum does not match".into()));
        }
        if format != FORMAT {
            return Err(StoreError::OtherFormat(format));
        }
        let flags = read_u32(bytes, 12);
        let header = Self {
            chunk: ChunkId(read_u64(bytes, 16)),
            version: Version(read_u64(bytes, 24)),
            home: Home { inode: InodeId(read_u64(bytes, 40)), index: ChunkIndex(read_u32(bytes, 36)) },
            chunk_size_log2: read_u32(bytes, 32),
            incomplete: flags & INCOMPLETE != 0,
        };
        if flags & !INCOMPLETE != 0 || !CHUNK_SIZE_LOG2.contains(&header.chunk_size_log2) {
            return Err(bad(format!("flags {flags:#x}, chunk size 2^{}", header.chunk_size_log2)));
        }
        Ok(header)
    }
}

/// Returns the little-endian number at `at`.
pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Returns the little-endian number at `at`.
pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        chunk: ChunkId(0x0102_0304),
        version: Version(5),
        home: Home { inode: InodeId(6), index: ChunkIndex(7) },
        chunk_size_log2: 26,
        incomplete: true,
    };

    #[test]
    fn the_stored_sample_of_format_2_still_decodes() {
        let mut sample = [0; HEADER_BYTES];
        sample[..48].copy_from_slice(&[
            b'D', b'F', b'S', b'C', b'H', b'U', b'N', b'K', 2, 0, 0, 0, 1, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 5, 0, 0, 0,
            0, 0, 0, 0, 26, 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        ]);
        sample[508..].copy_from_slice(&[0x3c, 0xaa, 0x92, 0xff]);
        assert_eq!(Header::decode(&sample).expect("decodes"), HEADER);
        assert_eq!(HEADER.encode(), sample);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = HEADER.encode();
        for bit in 0..good.len() * 8 {
            let mut torn = good;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&torn).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_format_is_refused_by_name() {
        for other in [1, 3] {
            let mut bytes = HEADER.encode();
            bytes[8] = other;
            let crc = crc32c::crc32c(&bytes[..CRC_AT]);
            bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            let error = Header::decode(&bytes).expect_err("refused").to_string();
            assert!(error.contains(&format!("format {other}")), "{error}");
        }
    }
}
