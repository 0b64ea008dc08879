//! Where the chunks of one open file are, as far as it was asked lately.
//!
//! # Invariants
//!
//! - Bounded: at most [`LOCATIONS_KEPT_MAX`], so that what is not kept may well exist. Only a reply says that there is
//!   no chunk, never this.
//! - What is kept was true at some moment since the last [`KnownLocations::forget_from`] that reached it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_proto::ChunkIndex;

use crate::core::Location;

/// Most locations kept of one file: 256 GiB of the default layout. Few in tests, which go past it.
pub(super) const LOCATIONS_KEPT_MAX: usize = if cfg!(test) { 32 } else { 4096 };

/// The locations that are kept.
#[derive(Debug, Default)]
pub(super) struct KnownLocations {
    kept: BTreeMap<ChunkIndex, Arc<Location>>,
    epoch: u64,
}

impl KnownLocations {
    /// Rises whenever locations die, so that one that was looked up before is not taken in after.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns where a chunk is, if that is kept: `None` says nothing about whether there is one.
    pub(super) fn get(&self, index: ChunkIndex) -> Option<Arc<Location>> {
        self.kept.get(&index).cloned()
    }

    /// Keeps a location, in place of an older one of the chunk or, if there are too many, of the chunk that is farthest
    /// from it: neighbours are needed next. Returns what is kept: a newer one, if an answer was overtaken.
    pub(super) fn remember(&mut self, location: Location) -> Arc<Location> {
        let index = location.index;
        if let Some(kept) = self.kept.get(&index)
            && kept.chunk == location.chunk
            && kept.version > location.version
        {
            return Arc::clone(kept);
        }
        let location = Arc::new(location);
        self.kept.insert(index, Arc::clone(&location));
        if self.kept.len() > LOCATIONS_KEPT_MAX {
            let below = self.kept.first_key_value().map_or(0, |(first, _)| index.0 - first.0);
            let above = self.kept.last_key_value().map_or(0, |(last, _)| last.0 - index.0);
            if below > above {
                self.kept.pop_first()
            } else {
                self.kept.pop_last()
            };
        }
        location
    }

    /// Forgets a location that a server refused, unless a newer one is kept by now.
    pub(super) fn forget(&mut self, wrong: &Location) {
        if self.kept.get(&wrong.index).is_some_and(|kept| **kept == *wrong) {
            self.kept.remove(&wrong.index);
        }
    }

    /// Forgets the locations from `first` on: their chunks are gone.
    pub(super) fn forget_from(&mut self, first: ChunkIndex) {
        self.kept.split_off(&first);
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dfs_proto::{ChunkId, Version};

    use super::*;

    const MAX: u32 = LOCATIONS_KEPT_MAX as u32;

    fn location(index: u32, version: u64) -> Location {
        let (index, chunk) = (ChunkIndex(index), ChunkId(u64::from(index) + 1));
        Location { index, chunk, version: Version(version), replicas: Vec::new(), grant: Bytes::new() }
    }

    /// Returns the locations of the chunks from `first` on, as many as are kept.
    fn full_from(first: u32) -> KnownLocations {
        let mut known = KnownLocations::default();
        for index in first..first + MAX {
            known.remember(location(index, 1));
        }
        known
    }

    fn kept(known: &KnownLocations) -> Vec<u32> {
        known.kept.keys().map(|index| index.0).collect()
    }

    #[test]
    fn the_farthest_makes_room() {
        let mut known = full_from(100);
        known.remember(location(3, 1));
        assert_eq!(kept(&known), std::iter::once(3).chain(100..100 + MAX - 1).collect::<Vec<_>>());
        known.remember(location(100 + MAX, 1));
        assert_eq!(kept(&known), (100..100 + MAX - 1).chain([100 + MAX]).collect::<Vec<_>>());
    }

    #[test]
    fn a_newer_location_of_a_kept_chunk_takes_no_further_room() {
        let mut known = full_from(0);
        known.remember(location(7, 2));
        assert_eq!(kept(&known), (0..MAX).collect::<Vec<_>>());
        assert_eq!(known.get(ChunkIndex(7)).map(|location| location.version), Some(Version(2)));
    }

    #[test]
    fn an_answer_that_was_overtaken_does_not_bring_an_old_version_back() {
        let mut known = KnownLocations::default();
        known.remember(location(7, 3));
        assert_eq!(known.remember(location(7, 2)).version, Version(3));
        let other = Location { chunk: ChunkId(99), ..location(7, 1) };
        assert_eq!(known.remember(other).chunk, ChunkId(99));
    }

    #[test]
    fn a_refused_location_does_not_take_the_newer_one_with_it() {
        let mut known = full_from(0);
        known.remember(location(7, 2));
        known.forget(&location(7, 1));
        assert!(known.get(ChunkIndex(7)).is_some());
        known.forget(&location(7, 2));
        assert!(known.get(ChunkIndex(7)).is_none());
    }
}
