//! What a client wrote and has not synced: what its mount would know of it, and the writes themselves.

use std::collections::BTreeMap;

use dfs_mount::core::Unsynced;
use dfs_proto::{ChunkIndex, Version};

use crate::sim::history::Begun;

/// Acknowledged writes that an fsync has to cover.
#[derive(Clone, Debug, Default)]
pub(super) struct Covers {
    /// As a mount keeps it.
    pub(super) unsynced: Unsynced,
    writes: BTreeMap<ChunkIndex, Vec<Begun>>,
}

impl Covers {
    /// Notes that a write was acknowledged.
    pub(super) fn note(&mut self, index: ChunkIndex, version: Version, write: Option<Begun>) {
        self.unsynced.note(index, version);
        self.writes.entry(index).or_default().extend(write);
    }

    /// Notes what is still to be covered.
    pub(super) fn merge(&mut self, other: Self) {
        self.unsynced.merge(&other.unsynced);
        for (index, writes) in other.writes {
            self.writes.entry(index).or_default().extend(writes);
        }
    }

    /// Forgets what was written to a chunk.
    pub(super) fn remove(&mut self, index: ChunkIndex) {
        self.unsynced.remove(index);
        self.writes.remove(&index);
    }

    /// Returns the writes to a chunk.
    pub(super) fn writes(&self, index: ChunkIndex) -> &[Begun] {
        self.writes.get(&index).map_or(&[], Vec::as_slice)
    }
}
