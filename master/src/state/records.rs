//! The records at hand: a bounded cache of decoded ones, the changes of the batch that is being made, and the store.
//!
//! ```text
//! view ──▶ batch being made ──▶ cache ──▶ (miss: fetch, and the operation is called again) ──▶ store
//!               └── commit ──▶ store, then cache
//! ```
//!
//! # Invariants
//!
//! - What the cache holds is what the store holds: it is written only after a commit, or from a read.
//! - A scan reads the store, so the batch is committed before it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::Seq;
use lru::LruCache;

use crate::core::key::{Key, Range};
use crate::core::record::Record;
use crate::core::view::{Known, Records, Scanned};
use crate::store::{Batch, MetaStore, StoreError};

/// Records in the cache: at about 300 bytes each, some 60 MB.
pub const CACHED_RECORDS_MAX: usize = 200_000;

/// The records at hand.
pub(crate) struct RecordStore {
    store: Arc<dyn MetaStore>,
    cache: RefCell<LruCache<Key, Known>>,
    pending: BTreeMap<Key, Known>,
    /// Position of the last change in `pending`; `None` if it has none worth a commit.
    pending_seq: Option<Seq>,
    scanned: Vec<(Range, Scanned)>,
}

impl RecordStore {
    /// Starts with an empty cache above `store`.
    pub(crate) fn new(store: Arc<dyn MetaStore>, cached_max: usize) -> Self {
        let cached_max = NonZeroUsize::new(cached_max).unwrap_or(NonZeroUsize::MIN);
        Self {
            store,
            cache: RefCell::new(LruCache::new(cached_max)),
            pending: BTreeMap::new(),
            pending_seq: None,
            scanned: Vec::new(),
        }
    }

    /// Returns the engine below.
    pub(crate) fn store(&self) -> &Arc<dyn MetaStore> {
        &self.store
    }

    /// Adds a change to the batch that is being made.
    pub(crate) fn write(&mut self, key: Key, record: Option<Record>, seq: Seq) {
        let known = record.map_or(Known::Absent(seq), Known::Present);
        self.pending.insert(key, known);
        self.pending_seq = Some(seq);
    }

    /// Adds a delete that need not be committed by itself: it goes with the next change.
    pub(crate) fn forget(&mut self, key: Key) {
        self.pending.insert(key, Known::Absent(Seq(0)));
    }

    /// Returns whether there is something to commit.
    pub(crate) fn is_dirty(&self) -> bool {
        self.pending_seq.is_some()
    }

    /// Fetches `keys` into the cache.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn fetch(&mut self, keys: Vec<Key>) -> Result<(), StoreError> {
        for key in keys {
            let known = self.read(&key)?.map_or(Known::Absent(Seq(0)), Known::Present);
            self.cache.get_mut().put(key, known);
        }
        Ok(())
    }

    /// Reads the record of `key` from the store, past the cache and the batch that is being made.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.store.get(&key.encode())?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Fetches the records of `range`, for the operation that asked. The batch must have been committed.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn fetch_range(&mut self, range: Range) -> Result<(), StoreError> {
        let found = self.read_range(&range)?;
        self.scanned.push((range, Arc::new(found)));
        Ok(())
    }

    /// Reads the records of `range` from the store.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn read_range(&self, range: &Range) -> Result<Vec<(Key, Record)>, StoreError> {
        debug_assert!(!self.is_dirty(), "a scan would miss the changes of the batch");
        let found = self.store.scan(&range.start, &range.end, range.limit)?;
        let pair = |(key_bytes, bytes): (bytes::Bytes, bytes::Bytes)| {
            let key = Key::decode(&key_bytes)
                .ok_or_else(|| StoreError::Corrupt(format!("unknown key {}", key_bytes.escape_ascii())))?;
            let record = decode(&key, &bytes)?;
            Ok((key, record))
        };
        found.into_iter().map(pair).collect()
    }

    /// Forgets what was scanned: the next operation asks for itself.
    pub(crate) fn end_of_operation(&mut self) {
        self.scanned.clear();
    }

    /// Commits the batch that was made, if there is a change in it, and returns its position and how long it took.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing may be served any more.
    pub(crate) fn commit(&mut self) -> Result<Option<(Seq, Duration)>, StoreError> {
        let Some(seq) = self.pending_seq else { return Ok(None) };
        let mut batch = Batch { seq, ..Batch::default() };
        for (key, known) in &self.pending {
            match known {
                Known::Present(record) => batch.puts.push((key.encode(), record.encode())),
                Known::Absent(_) => batch.deletes.push(key.encode()),
            }
        }
        let started = Instant::now();
        self.store.commit(&batch)?;
        let took = started.elapsed();
        self.pending_seq = None;
        let cache = self.cache.get_mut();
        for (key, known) in std::mem::take(&mut self.pending) {
            // These are only ever scanned, or never read while they are of use.
            if !matches!(key, Key::Cookie(..) | Key::Reply(..) | Key::Counters | Key::Ids) {
                cache.put(key, known);
            }
        }
        Ok(Some((seq, took)))
    }
}

fn decode(key: &Key, bytes: &bytes::Bytes) -> Result<Record, StoreError> {
    Record::decode(key, bytes).map_err(|error| StoreError::Corrupt(format!("{key:?}: {error}")))
}

impl Records for RecordStore {
    fn find(&self, key: &Key) -> Option<Known> {
        if let Some(known) = self.pending.get(key) {
            return Some(known.clone());
        }
        self.cache.borrow_mut().get(key).cloned()
    }

    fn scanned(&self, range: &Range) -> Option<Scanned> {
        self.scanned.iter().find(|(of, _)| of == range).map(|(_, found)| Arc::clone(found))
    }
}
