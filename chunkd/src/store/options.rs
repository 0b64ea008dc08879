//! How a store is set up.

use dfs_proto::env::{random_bytes, random_u64};

/// The settings of a store; the defaults are for disks as they are.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of each disk that are left alone, but at most 5 %.
    pub reserve_max: u64,
    /// Bytes of a segment of the journal; at least 2 MiB, so that the largest record fits.
    pub segment_bytes: u64,
    /// Bytes of the journal of a disk from which on a writer makes a checkpoint itself. At half of it one is due.
    pub journal_max: u64,
    /// Bytes of memory for a disk's overwrites that are not in the chunk files yet; with more, a writer flushes itself. At
    /// a quarter of it a flush is due.
    pub pending_max: u64,
    /// The journal is smaller on a small disk.
    pub is_scaled: bool,
    /// Makes a number that nobody can guess.
    pub fresh_salt: fn() -> u64,
    /// Makes an id that nobody else has.
    pub fresh_id: fn() -> [u8; 16],
}

impl StoreOptions {
    /// Returns the settings for a disk of `capacity` bytes: on a small one the journal is small too.
    pub fn for_disk(&self, capacity: u64) -> Self {
        const SEGMENT_MIN: u64 = 2 << 20;
        if !self.is_scaled {
            return *self;
        }
        let segment_bytes = self.segment_bytes.min(capacity / 64).max(SEGMENT_MIN);
        let journal_max = self.journal_max.min(capacity / 8).max(2 * segment_bytes);
        Self { segment_bytes, journal_max, ..*self }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            reserve_max: 1 << 30,
            segment_bytes: 8 << 20,
            journal_max: 64 << 20,
            pending_max: 32 << 20,
            is_scaled: true,
            fresh_salt: random_u64,
            fresh_id: random_bytes,
        }
    }
}
