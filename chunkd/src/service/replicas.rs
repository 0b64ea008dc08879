//! The replicas that are open: found by chunk, bounded in number.
//!
//! A replica that was closed has lost its role: as a primary it compares the members again, as a secondary it asks
//! to be activated again. Nothing else depends on staying open.

use std::sync::Arc;

use dfs_proto::replica_set::Grant;
use dfs_proto::{ChunkId, FsError, Version};
use lru::LruCache;
use parking_lot::Mutex;

use super::replica::{End, Replica};
use super::shared::store_failure;
use crate::core::replica::{Recovered, ReplicaCore};
use crate::store::header::Header;
use crate::store::replica_store::{OpenReplica, ReplicaStore};

/// Locks for opening: one chunk always has the same one.
const OPENING_LOCKS: usize = 64;
/// Replicas in use that are passed over, at most, in the search for one to close.
const BUSY_SKIPPED_MAX: usize = 16;

/// The open replicas.
pub(super) struct Replicas {
    // Taken after an opening lock, never before.
    open: Mutex<LruCache<ChunkId, Arc<Replica>>>,
    opening: Vec<Mutex<()>>,
    open_max: usize,
}

impl Replicas {
    pub fn new(open_max: usize) -> Self {
        let opening = (0..OPENING_LOCKS).map(|_| Mutex::default()).collect();
        Self { open: Mutex::new(LruCache::unbounded()), opening, open_max: open_max.max(64) }
    }

    /// Returns how many may be open.
    pub fn open_max(&self) -> usize {
        self.open_max
    }

    /// Returns the replica of `chunk` if it is open.
    pub fn find_open(&self, chunk: ChunkId) -> Option<Arc<Replica>> {
        self.open.lock().get(&chunk).cloned()
    }

    /// Returns the replica of `chunk`, opened if need be; `None` if this server has none.
    pub fn find(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<Option<Arc<Replica>>, FsError> {
        if let Some(found) = self.find_open(chunk)
            && found.check().is_ok()
        {
            return Ok(Some(found));
        }
        let _opening = self.opening_lock(chunk).lock();
        self.open_one(store, chunk)
    }

    /// Returns the replica that `grant` is about, made if there is none: incomplete, unless nothing was ever committed.
    pub fn find_or_create(&self, store: &ReplicaStore, grant: &Grant) -> Result<Arc<Replica>, FsError> {
        let found = match self.find_open(grant.chunk).filter(|found| found.check().is_ok()) {
            Some(found) => found,
            None => self.open_or_create(store, grant)?,
        };
        if found.open.header.chunk_size_log2 != grant.chunk_size_log2 {
            return Err(FsError::Stale("the chunk has another size"));
        }
        Ok(found)
    }

    fn open_or_create(&self, store: &ReplicaStore, grant: &Grant) -> Result<Arc<Replica>, FsError> {
        let _opening = self.opening_lock(grant.chunk).lock();
        if let Some(found) = self.open_one(store, grant.chunk)? {
            return Ok(found);
        }
        if store.was_deleted(grant.chunk, grant.version) {
            return Err(FsError::Stale("the replica was deleted"));
        }
        let header = Header {
            chunk: grant.chunk,
            version: grant.version,
            home: grant.home,
            chunk_size_log2: grant.chunk_size_log2,
            incomplete: !grant.may_create,
        };
        let made = store.create_replica(&header).map_err(store_failure)?;
        Ok(self.insert(made))
    }

    fn open_one(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<Option<Arc<Replica>>, FsError> {
        if let Some(found) = self.find_open(chunk) {
            match found.check() {
                Ok(()) => return Ok(Some(found)),
                // Its last calls may still be at its files.
                Err(FsError::TryAgain(_)) if found.is_deserted() => drop(self.open.lock().pop(&chunk)),
                Err(error) => return Err(error),
            }
        }
        let opened = store.open_replica(chunk).map_err(store_failure)?;
        Ok(opened.map(|opened| self.insert(opened)))
    }

    fn insert(&self, mut opened: OpenReplica) -> Arc<Replica> {
        let header = opened.header;
        let recovered = Recovered {
            home: header.home,
            keys: std::mem::take(&mut opened.keys),
            highest_seq: opened.file.table().iter().map(|(_, state)| state.stamp.seq).max().unwrap_or(0),
        };
        let (chunk, size) = (header.chunk, header.chunk_size_log2);
        let core = ReplicaCore::new(header.version, header.incomplete, chunk, size, recovered);
        let replica = Arc::new(Replica::new(opened, core));
        let mut closed = Vec::new();
        let mut open = self.open.lock();
        let mut skipped = 0;
        while open.len() >= self.open_max && skipped < BUSY_SKIPPED_MAX {
            let Some((oldest, candidate)) = open.pop_lru() else { break };
            // Clones are only made under this lock, so a count of 1 means that nobody has it or will get it.
            if Arc::strong_count(&candidate) == 1 && candidate.is_idle() {
                closed.push(candidate);
            } else {
                open.put(oldest, candidate);
                skipped += 1;
            }
        }
        open.put(header.chunk, Arc::clone(&replica));
        drop(open);
        for replica in closed {
            // With the descriptor goes the error that a later sync would be told: what was written is synced while there
            // is one. A disk that fails is fenced by it.
            if replica.open.file.is_unsynced()
                && let Err(error) = replica.open.sync()
            {
                tracing::warn!(chunk = %replica.open.header.chunk, %error, "cannot sync a replica that is closed");
            }
        }
        replica
    }

    /// Deletes the replica of `chunk`, which may not be made again.
    pub fn delete(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<(), FsError> {
        let _opening = self.opening_lock(chunk).lock();
        if let Some(replica) = self.find_open(chunk) {
            replica.end(End::Deleted, |_| true);
        }
        self.open.lock().pop(&chunk);
        store.delete(chunk).map_err(store_failure)
    }

    /// Deletes the replica of `chunk` if its version is below `below`: others replace it, and it may come back here one day.
    /// Returns whether there is none now. Grants of a version below `below` make none.
    pub fn discard(&self, store: &ReplicaStore, chunk: ChunkId, below: Version) -> Result<bool, FsError> {
        let _opening = self.opening_lock(chunk).lock();
        if let Some(replica) = self.open_one(store, chunk)? {
            if !replica.end(End::Deleted, |version| version < below) {
                return Ok(false);
            }
            self.open.lock().pop(&chunk);
        }
        store.discard(chunk, below).map_err(store_failure)?;
        Ok(true)
    }

    /// Ends all open replicas; each is opened anew when it is next asked for.
    pub fn end_all(&self) {
        let open: Vec<_> = self.open.lock().iter().map(|(_, replica)| Arc::clone(replica)).collect();
        for replica in open {
            replica.end(End::Reopened, |_| true);
        }
    }

    fn opening_lock(&self, chunk: ChunkId) -> &Mutex<()> {
        &self.opening[chunk.0 as usize % OPENING_LOCKS]
    }
}
