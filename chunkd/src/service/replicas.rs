//! The replicas that are open: found by chunk, bounded in number.
//!
//! A replica that was closed has lost its role: as a primary it compares the members again, as a secondary it asks
//! to be activated again. Nothing else depends on staying open.

use std::sync::Arc;

use dfs_proto::{ChunkId, FsError};
use lru::LruCache;
use parking_lot::Mutex;

use super::replica::Replica;
use super::shared::store_failure;
use crate::store::header::Header;
use crate::store::replica_store::ReplicaStore;

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

    /// Returns the replica of `chunk` if it is open.
    pub fn find_open(&self, chunk: ChunkId) -> Option<Arc<Replica>> {
        self.open.lock().get(&chunk).cloned()
    }

    /// Returns the replica of `chunk`, opened if need be; `None` if this server has none.
    pub fn find(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<Option<Arc<Replica>>, FsError> {
        if let Some(found) = self.find_open(chunk) {
            return Ok(Some(found));
        }
        let _opening = self.opening_lock(chunk).lock();
        self.open_one(store, chunk)
    }

    /// Returns the replica that `header` names, made from it if there is none, and whether there was one.
    pub fn find_or_create(&self, store: &ReplicaStore, header: &Header) -> Result<(Arc<Replica>, bool), FsError> {
        if let Some(found) = self.find_open(header.chunk) {
            return Ok((found, true));
        }
        let _opening = self.opening_lock(header.chunk).lock();
        if let Some(found) = self.open_one(store, header.chunk)? {
            return Ok((found, true));
        }
        if store.was_deleted(header.chunk) {
            return Err(FsError::Stale("the chunk was deleted"));
        }
        let made = store.create_replica(header).map_err(store_failure)?;
        Ok((self.insert(header.chunk, Replica::new(made)), false))
    }

    fn open_one(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<Option<Arc<Replica>>, FsError> {
        if let Some(found) = self.find_open(chunk) {
            return Ok(Some(found));
        }
        let opened = store.open_replica(chunk).map_err(store_failure)?;
        Ok(opened.map(|opened| self.insert(chunk, Replica::new(opened))))
    }

    fn insert(&self, chunk: ChunkId, replica: Replica) -> Arc<Replica> {
        let replica = Arc::new(replica);
        let mut closed = Vec::new();
        let mut open = self.open.lock();
        let mut skipped = 0;
        while open.len() >= self.open_max && skipped < BUSY_SKIPPED_MAX {
            let Some((oldest, candidate)) = open.pop_lru() else { break };
            // Clones are only made under this lock, so a count of 1 means that nobody has it or will get it.
            if Arc::strong_count(&candidate) == 1 {
                closed.push(candidate);
            } else {
                open.put(oldest, candidate);
                skipped += 1;
            }
        }
        open.put(chunk, Arc::clone(&replica));
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

    /// Deletes the replica of `chunk` and closes it.
    pub fn delete(&self, store: &ReplicaStore, chunk: ChunkId) -> Result<(), FsError> {
        let _opening = self.opening_lock(chunk).lock();
        let open = self.open.lock().pop(&chunk);
        if let Some(replica) = open {
            let mut state = replica.lock();
            state.is_gone = true;
            replica.notify(&state);
        }
        store.delete(chunk).map_err(store_failure)
    }

    fn opening_lock(&self, chunk: ChunkId) -> &Mutex<()> {
        &self.opening[chunk.0 as usize % OPENING_LOCKS]
    }
}
