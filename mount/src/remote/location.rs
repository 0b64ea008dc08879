//! Where chunks are, and the bounded cache of it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkId, ChunkIndex, InodeId, NodeId, Version};
use lru::LruCache;
use parking_lot::Mutex;

/// One replica of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The chunk server.
    pub node: NodeId,
    /// Its data plane, `host:port`.
    pub address: Arc<str>,
    /// The master heard of it lately.
    pub alive: bool,
}

/// Where the replicas of one chunk of a file are, and the right to use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The place in the file.
    pub index: ChunkIndex,
    /// The chunk; 0: nothing was ever written there, reads are zeros.
    pub chunk: ChunkId,
    /// How fresh the replica set is.
    pub version: Version,
    /// The primary first.
    pub replicas: Vec<Replica>,
    /// Sealed by the master, passed on unread.
    pub grant: Bytes,
}

impl Location {
    /// Returns whether there is no chunk: a hole.
    pub fn is_hole(&self) -> bool {
        self.chunk == ChunkId(0)
    }

    /// Returns the server that orders writes and answers reads.
    pub fn primary(&self) -> Option<&Replica> {
        self.replicas.first()
    }
}

/// Locations by (inode, index), least recently used dropped first. Holes are not kept: they fill up any moment.
///
/// What is here may be out of date; servers notice (`Stale`), and then the caller drops the entry and asks again.
#[derive(Debug)]
pub struct LocationCache {
    entries: Mutex<LruCache<(InodeId, ChunkIndex), Arc<Location>>>,
}

impl LocationCache {
    /// Returns an empty cache of at most `entries_max` locations.
    pub fn new(entries_max: NonZeroUsize) -> Self {
        Self { entries: Mutex::new(LruCache::new(entries_max)) }
    }

    /// Returns what is known of a chunk.
    pub fn get(&self, inode: InodeId, index: ChunkIndex) -> Option<Arc<Location>> {
        self.entries.lock().get(&(inode, index)).cloned()
    }

    /// Remembers `location`, unless it is a hole, and returns it shared.
    pub fn insert(&self, inode: InodeId, location: Location) -> Arc<Location> {
        let location = Arc::new(location);
        if !location.is_hole() {
            self.entries.lock().put((inode, location.index), Arc::clone(&location));
        }
        location
    }

    /// Forgets one chunk, if it is still the location that was found wrong.
    pub fn forget(&self, inode: InodeId, wrong: &Location) {
        let mut entries = self.entries.lock();
        if entries.peek(&(inode, wrong.index)).is_some_and(|kept| **kept == *wrong) {
            entries.pop(&(inode, wrong.index));
        }
    }

    /// Forgets the chunks of `inode` from `first` on, as after a truncate.
    pub fn forget_from(&self, inode: InodeId, first: ChunkIndex) {
        let mut entries = self.entries.lock();
        let gone: Vec<_> = entries.iter().map(|(key, _)| *key).filter(|key| key.0 == inode && key.1 >= first).collect();
        for key in gone {
            entries.pop(&key);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(index: u32, version: u64) -> Location {
        Location {
            index: ChunkIndex(index),
            chunk: ChunkId(7),
            version: Version(version),
            replicas: Vec::new(),
            grant: Bytes::new(),
        }
    }

    #[test]
    fn only_the_location_that_was_wrong_is_forgotten() {
        let cache = LocationCache::new(NonZeroUsize::MIN.saturating_add(7));
        let inode = InodeId(5);
        let old = cache.insert(inode, location(0, 1));
        cache.insert(inode, location(0, 2));
        cache.forget(inode, &old);
        assert_eq!(cache.get(inode, ChunkIndex(0)).map(|kept| kept.version), Some(Version(2)));
    }

    #[test]
    fn a_truncate_forgets_the_chunks_behind_it_of_that_file_only() {
        let cache = LocationCache::new(NonZeroUsize::MIN.saturating_add(7));
        for index in 0..3 {
            cache.insert(InodeId(5), location(index, 1));
            cache.insert(InodeId(6), location(index, 1));
        }
        cache.forget_from(InodeId(5), ChunkIndex(1));
        assert!(cache.get(InodeId(5), ChunkIndex(0)).is_some());
        assert!(cache.get(InodeId(5), ChunkIndex(1)).is_none());
        assert!(cache.get(InodeId(6), ChunkIndex(2)).is_some());
    }
}
