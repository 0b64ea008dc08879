//! Ordered key-value engines: bytes in, bytes out, and the promise of what survives.
//!
//! An engine knows nothing of records. It keeps keys in the order of their bytes, takes whole batches, and says how
//! far the log of batches is on stable media.
//!
//! # Invariants
//!
//! - A batch is all or nothing, and batches survive in order: what is found after a crash is a prefix of what was
//!   committed, at least up to the last [`MetaStore::sync`].
//! - A committed batch survives kill -9 of the process (not power loss) from when `commit` returns.
//! - `seq` rises strictly from batch to batch (gaps are allowed), and [`MetaStore::last_seq`] after a restart is that
//!   of the last batch found: it is written inside the batch.

#![allow(clippy::disallowed_methods, reason = "a shell: engines own files")]

#[cfg(test)]
mod conformance;
pub mod embedded;
mod journal;
pub mod memory;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::Seq;

/// Most bytes of a key.
pub const KEY_BYTES_MAX: usize = 65_535;
/// Most bytes of a value: far above any record, far below what would harm an engine.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// Why an engine cannot go on. The executor stops for good at the first one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine or the disk below it failed.
    #[error("metadata store: {0}")]
    Engine(String),
    /// What is stored is not what was written.
    #[error("metadata store is corrupt: {0}")]
    Corrupt(String),
    /// Another process uses it.
    #[error("metadata store: {0}")]
    Locked(String),
    /// The caller broke a rule of [`Batch`]; nothing was changed.
    #[error("metadata store: batch refused: {0}")]
    Refused(String),
}

/// What keeps the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Main memory: for tests; everything is gone when the process ends.
    Memory,
    /// An LSM tree in the data directory.
    Embedded,
}

impl EngineKind {
    /// Returns its name, as `dfs status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Embedded => "embedded",
        }
    }
}

/// Opens the engine `kind` with its files in `directory`, which is made if absent (and left alone by an engine without
/// files).
///
/// # Errors
///
/// [`StoreError::Locked`] if another process has it open, [`StoreError::Corrupt`] if it is damaged.
pub fn open(kind: EngineKind, directory: &Path) -> Result<Arc<dyn MetaStore>, StoreError> {
    Ok(match kind {
        EngineKind::Memory => Arc::new(memory::MemoryStore::new()),
        EngineKind::Embedded => Arc::new(embedded::EmbeddedStore::open(directory)?),
    })
}

/// Checks the rules of [`Batch`], for all engines alike.
fn check_batch(batch: &Batch, last_seq: Seq) -> Result<(), StoreError> {
    if batch.seq <= last_seq {
        return Err(StoreError::Refused(format!("seq {} does not rise above {last_seq}", batch.seq)));
    }
    for key in batch.puts.iter().map(|(key, _)| key).chain(&batch.deletes) {
        if key.is_empty() || key[0] == 0 || key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Refused(format!("a key of {} bytes, or one that begins with 0", key.len())));
        }
    }
    match batch.puts.iter().find(|(_, value)| value.len() > VALUE_BYTES_MAX) {
        Some((_, value)) => Err(StoreError::Refused(format!("a value of {} bytes", value.len()))),
        None => Ok(()),
    }
}

/// A change of many keys that happens as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Position of its last change in the log: above that of every batch before.
    pub seq: Seq,
    /// Keys that get a value. A key is in at most one of the two lists, once. Its first byte is not 0: such keys are
    /// the engine's own.
    pub puts: Vec<(Bytes, Bytes)>,
    /// Keys that go.
    pub deletes: Vec<Bytes>,
}

/// An ordered key-value store with atomic batches.
///
/// `commit` is called by one thread at a time; `get` and `scan` by that same thread; `sync` by another one meanwhile.
pub trait MetaStore: Send + Sync {
    /// Returns the value of `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Returns the first `limit` pairs with `start <= key < end`, in order of key.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Applies `batch`: visible to `get` and `scan`, and safe from kill -9, when it returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: it is not known whether the batch was applied.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Puts everything that was committed before the call on stable media, and returns the highest `seq` so covered.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing may be called durable on the strength of a later attempt.
    fn sync(&self) -> Result<Seq, StoreError>;

    /// Returns the `seq` of the last committed batch, 0 if there was none.
    fn last_seq(&self) -> Seq;

    /// Returns all pairs as they are now, to be read by any thread while others go on. Called by the thread that commits.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError>;
}

/// The pairs of one moment.
pub trait Snapshot: Send {
    /// As [`MetaStore::scan`].
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
}
