//! The bytes of a replica file.
//!
//! ```text
//! offset (bytes)  size (bytes)    what
//! 0               512             header, see `header`
//! 512             32 per unit     unit table, see `unit_table`: 512 KiB for a chunk of 64 MiB; sparse
//! 1 MiB           4096 per unit   data; sparse
//! ```
//!
//! The header has a sector of its own: a torn write of it leaves the old or the new one. 16 entries of the table fill a
//! sector, none straddles two. Header and first entries share a page, so that a chunk of one unit takes 8 KiB on disk.
//!
//! While a server runs, the truth about a replica is the file and the journal of its disk together ([`super::journal`]): a
//! change is in the journal first, header and table are brought up to date at checkpoints, and a unit that held
//! something is overwritten only once the journal has its new content on stable media. So whatever a crash leaves of a
//! write to this file, the journal has it whole. Only a unit that was never written is written here first; its entry is
//! still zeros then, and what lies in it does not matter.
//!
//! An entry of zeros was never written, and its data is a hole. Data that does not match its entry's checksum is damaged,
//! and so is an entry whose own checksum does not match: the unit is repaired from another replica.

use dfs_proto::limits::UNIT_SIZE;

/// Bytes of the header: one sector.
pub const HEADER_BYTES: usize = 512;
/// Where the unit table begins.
pub const TABLE_OFFSET: u64 = 512;
/// Bytes of an entry of the unit table.
pub const ENTRY_BYTES: usize = 32;
/// Where the data begins.
pub const DATA_OFFSET: u64 = 1 << 20;
/// Bytes of a unit.
pub const UNIT_BYTES: usize = UNIT_SIZE as usize;

const _: () = assert!(TABLE_OFFSET as usize >= HEADER_BYTES && TABLE_OFFSET.is_multiple_of(512));
const _: () = assert!(512usize.is_multiple_of(ENTRY_BYTES));
const _: () = assert!(DATA_OFFSET.is_multiple_of(UNIT_SIZE as u64));
const _: () = assert!(
    TABLE_OFFSET + ((1 << *crate::core::admission::CHUNK_SIZE_LOG2.end()) / UNIT_SIZE as u64) * ENTRY_BYTES as u64
        <= DATA_OFFSET
);

/// Returns where the entry of `unit` begins.
pub fn entry_offset(unit: u32) -> u64 {
    TABLE_OFFSET + u64::from(unit) * ENTRY_BYTES as u64
}

/// Returns where the data of `unit` begins.
pub fn data_offset(unit: u32) -> u64 {
    DATA_OFFSET + u64::from(unit) * u64::from(UNIT_SIZE)
}
