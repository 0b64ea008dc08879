//! The bytes of a replica file.
//!
//! ```text
//! offset (bytes)  size (bytes)    what
//! 0               512             header, see `header`
//! 512             32 per unit     unit table, see `unit_table`: 512 KiB for a chunk of 64 MiB; sparse
//! 1 MiB           4096 per unit   data; sparse
//! ```
//!
//! The header has a sector of its own and is rewritten in place only when the chunk's version changes: a torn write
//! leaves the old or the new one. 16 entries of the table fill a sector, none straddles two. Header and first entries
//! share a page, so that a chunk of one unit takes 8 KiB on disk.
//!
//! # How a unit is written
//!
//! 1. the table entry, with the checksum of the new content *and* that of the present content (`previous`);
//! 2. the data (or, for a zeroed unit, the hole).
//!
//! A unit has at most one write under way, and step 1 of the next one begins after step 2 of the last.
//!
//! # After kill -9
//!
//! The page cache survives. A write to it can be cut short only between pages, and neither a unit's data nor a table
//! entry straddles pages. So, for each unit, by where the process died:
//!
//! - before or within step 1, this unit's entry not yet replaced: the entry describes the old content, and the data
//!   is old, because no data is written before all entries of the write are;
//! - entry replaced, data of this unit not: the data matches `previous`. It is *settled back*: the entry becomes that
//!   of the old content. The stamp of the old content is not in the entry any more; the settled entry gets the seq just
//!   below the lost write's. That is never below the true stamp, and no other write to this unit lies between the two, so
//!   the settled unit loses against a replica that has the write and wins against any that is older;
//! - entry and data replaced: the data matches the entry, the write is there.
//!
//! Data that matches neither checksum is damaged, and so is an entry whose own checksum does not match: the unit is
//! repaired from another replica. An entry of zeros was never written, and its data is a hole. `previous` is only believed
//! right after a restart ([`super::recover`]); while the process lives it knows that step 2 was done.
//!
//! A write of several units can end up old in some and new in others, as an unacknowledged write may.
//!
//! # After power loss
//!
//! Pages reach the disk in any order until `fdatasync`. Everything before the last one that succeeded is safe **unless
//! it was overwritten since**: a unit overwritten after its last sync may be torn, or may be new under an old entry. Such a
//! unit is found damaged, never returned, and repaired from a replica on a host that kept its power. If all hosts lose power
//! at the same moment, a unit that was being overwritten at that moment can be damaged on all of them, and then what was
//! synced there before is lost: reads of it fail. The journal for overwrites, planned, closes this; the format version in
//! the header is there for it.

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
