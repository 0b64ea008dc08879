//! Which chunks of a file were written and not synced, and what has to be still there for an fsync to say that it is.
//!
//! With each chunk goes the lowest version of it under which one of these writes was acknowledged, as the answer to the
//! write says. If the servers of a chunk all lost their power since, its *loss version* is above that, and the barrier is
//! refused: the mount has no copy of the bytes any more, so all it can do is to say so.

use std::collections::BTreeMap;

use dfs_proto::{ChunkIndex, Version};

/// The chunks, with the lowest version under which a write was acknowledged; 0 if no server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsynced {
    chunks: BTreeMap<ChunkIndex, Version>,
}

impl Unsynced {
    /// Notes that a write to a chunk was acknowledged under `version`.
    pub fn note(&mut self, index: ChunkIndex, version: Version) {
        let lowest = self.chunks.entry(index).or_insert(version);
        // 0 asks for nothing: what is known of the others is asked for all the same.
        if *lowest == Version(0) || (version < *lowest && version != Version(0)) {
            *lowest = version;
        }
    }

    /// Notes what could not be brought to stable media.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(index, version)| self.note(index, version));
    }

    /// Takes out what lies below chunk `end`.
    pub fn take_below(&mut self, end: ChunkIndex) -> Self {
        let above = self.chunks.split_off(&end);
        Self { chunks: std::mem::replace(&mut self.chunks, above) }
    }

    /// Keeps the chunks of which `is_kept` says so.
    pub fn retain(&mut self, mut is_kept: impl FnMut(ChunkIndex) -> bool) {
        self.chunks.retain(|index, _| is_kept(*index));
    }

    /// Forgets a chunk: it is gone, or what was written to it is lost and that was said.
    pub fn remove(&mut self, index: ChunkIndex) {
        self.chunks.remove(&index);
    }

    /// Returns whether there is nothing to sync.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Returns the chunks, ascending, with what their barriers have to ask for.
    pub fn iter(&self) -> impl Iterator<Item = (ChunkIndex, Version)> {
        self.chunks.iter().map(|(index, version)| (*index, *version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(versions: &[u64]) -> Unsynced {
        let mut unsynced = Unsynced::default();
        versions.iter().for_each(|version| unsynced.note(ChunkIndex(3), Version(*version)));
        unsynced
    }

    fn asked(unsynced: &Unsynced) -> Vec<u64> {
        unsynced.iter().map(|(_, version)| version.0).collect()
    }

    #[test]
    fn the_lowest_version_counts_and_unknown_ones_hide_none() {
        assert_eq!(asked(&noted(&[5, 4, 6])), [4]);
        assert_eq!(asked(&noted(&[0, 5])), [5]);
        assert_eq!(asked(&noted(&[5, 0])), [5]);
        assert_eq!(asked(&noted(&[0])), [0]);
    }

    #[test]
    fn what_was_not_synced_keeps_its_lowest_version_beside_later_writes() {
        let mut later = noted(&[7]);
        later.merge(&noted(&[4]));
        assert_eq!(asked(&later), [4]);
        let mut earlier = noted(&[4]);
        earlier.merge(&noted(&[7]));
        assert_eq!(asked(&earlier), [4]);
    }

    #[test]
    fn what_is_below_is_taken_out() {
        let mut unsynced = noted(&[1]);
        unsynced.note(ChunkIndex(4), Version(2));
        assert_eq!(unsynced.take_below(ChunkIndex(4)), noted(&[1]));
        assert_eq!(asked(&unsynced), [2]);
    }
}
