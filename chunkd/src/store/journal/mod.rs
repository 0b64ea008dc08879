//! The journal of one disk: what changes replicas, in order, before it is in their files.
//!
//! ```text
//!  put of units that hold something ──▶ record with their content ──▶ overlay ── flush ──▶ chunk file
//!  first write of many units ─────────▶ chunk file, then a record with their checksums
//!  barrier ───────────────────────────▶ fdatasync of the chunk file if it had first writes, and a record that says so
//!                                       fdatasync of the journal, one for all who wait
//!  flush (each second, or 8 MiB) ─────▶ fdatasync of the journal, then the overlay goes into the chunk files
//!  checkpoint (half full) ────────────▶ flush, unit tables into the chunk files, fdatasync of those, space is freed
//! ```
//!
//! - [`record`]: the records' bytes
//! - [`log`]: segments; appending and syncing
//! - [`scan`], [`replay`], [`recovery`]: what is in it after a crash, and bringing it into the chunk files
//!
//! # What must always be true
//!
//! 1. A chunk file's units that were ever written, and its table, are touched only after a record that says what they will
//!    hold is on stable media. A crash in the middle is repaired from the journal.
//! 2. A record is given up only after everything it says is in the chunk files on stable media, or a later record on
//!    stable media says otherwise.
//! 3. An entry of a table in a file is written only when the record of the state it shows is on stable media, and the state
//!    is in the file. So tables need no second copy: a torn entry is one whose record is still there.
//! 4. After a write or sync of a disk failed, nothing on it is used.

pub mod log;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod scan;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use dfs_proto::ChunkId;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::log::{DIRECTORY, Log};
use self::record::Record;
use super::StoreError;
use super::chunk_file::ChunkFile;
use super::options::StoreOptions;
use super::volume::Volume;
use crate::core::message::WriteKey;

/// Requests of a disk that are remembered across restarts.
const KEYS_MAX: usize = 8192;
/// Keys in one record.
const KEYS_PER_RECORD: usize = 1024;
/// With so many replicas in the journal it is time for a checkpoint: each keeps a file open.
const DIRTY_MAX: usize = 1024;

/// What the journal of a disk has done and has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalFigures {
    /// Bytes of records that are kept.
    pub used_bytes: u64,
    /// Bytes in memory that are not in the chunk files yet.
    pub pending_bytes: u64,
    /// Bytes that were ever added in this run.
    pub appended_bytes: u64,
    /// Syncs of the journal in this run.
    pub syncs: u64,
    /// Checkpoints in this run.
    pub checkpoints: u64,
    /// Replicas that have something in the journal.
    pub dirty_replicas: u64,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// [`Journal::flush`], although its second has not passed.
    pub flush: bool,
    /// [`Journal::checkpoint`].
    pub checkpoint: bool,
}

/// The journal of one disk.
#[derive(Debug)]
pub struct Journal {
    volume: Arc<dyn Volume>,
    log: Log,
    begin: u64,
    journal_max: u64,
    pending_max: u64,
    /// Shared by who adds a record and then notes in memory what it says; alone, nobody is between the two.
    gate: RwLock<()>,
    /// Held by a flush or a checkpoint.
    tending: Mutex<()>,
    dirty: Mutex<BTreeMap<u64, Arc<ChunkFile>>>,
    pending: AtomicI64,
    checkpoints: AtomicU64,
    keys: Mutex<VecDeque<(ChunkId, WriteKey)>>,
    /// Directories that files were removed from since the last checkpoint.
    removals: Mutex<BTreeSet<String>>,
}

impl Journal {
    /// Begins the journal of a disk at `position`, with what is remembered of earlier requests. It is on stable media when
    /// it is returned.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Read`], [`StoreError::Write`].
    pub fn begin(
        volume: &Arc<dyn Volume>,
        position: u64,
        keys: Vec<(ChunkId, WriteKey)>,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let log = Log::begin(Arc::clone(volume), position, options.segment_bytes, options.fresh_salt)?;
        let kept = keys.len().saturating_sub(KEYS_MAX);
        let journal = Self {
            volume: Arc::clone(volume),
            log,
            begin: position,
            journal_max: options.journal_max,
            pending_max: options.pending_max,
            gate: RwLock::default(),
            tending: Mutex::default(),
            dirty: Mutex::default(),
            pending: AtomicI64::new(0),
            checkpoints: AtomicU64::new(0),
            keys: Mutex::new(keys.into_iter().skip(kept).collect()),
            removals: Mutex::default(),
        };
        // In this order: with the checkpoint the journal takes the place of the one before, keys and all.
        journal.repeat_keys()?;
        journal.log.append(&Record::Checkpoint(position), &[])?;
        journal.log.sync(journal.log.wanted())?;
        volume.sync_directory(DIRECTORY).map_err(StoreError::Write)?;
        Ok(journal)
    }

    /// Keeps checkpoints away while a record is added and noted in memory.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Waits until nobody is between adding a record and noting it, and keeps others from beginning.
    pub(super) fn enter_alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    /// Adds a record, as [`Log::append`]. The caller has entered.
    pub(super) fn append(&self, record: &Record, payload: &[u8]) -> Result<u64, StoreError> {
        let end = self.log.append(record, payload)?;
        if let Record::Write { chunk, key: Some(key), .. } = record {
            let mut keys = self.keys.lock();
            if keys.len() >= KEYS_MAX {
                keys.pop_front();
            }
            keys.push_back((*chunk, *key));
        }
        Ok(end)
    }

    /// Enters, asks whether it `may_be`, and adds the record of a write. If there is no room for it, room is made: overwrites
    /// go on when the disk is full. The caller has not entered.
    pub(super) fn append_write(
        &self,
        record: &Record,
        payload: &[u8],
        may_be: impl Fn() -> Result<(), StoreError>,
    ) -> Result<(RwLockReadGuard<'_, ()>, u64), StoreError> {
        let mut was_full = false;
        loop {
            let entered = self.enter();
            may_be()?;
            match self.append(record, payload) {
                Err(StoreError::NoSpace) if !was_full => {
                    drop(entered);
                    was_full = true;
                    self.checkpoint()?;
                }
                appended => return appended.map(|end| (entered, end)),
            }
        }
    }

    /// Returns the end of the last record.
    pub(super) fn end(&self) -> u64 {
        self.log.end()
    }

    /// Brings everything before `position` to stable media.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`], from then on always.
    pub fn sync(&self, position: u64) -> Result<(), StoreError> {
        self.log.sync(position)
    }

    /// Returns whether everything before `position` is on stable media.
    pub(super) fn is_synced(&self, position: u64) -> bool {
        self.log.synced() >= position
    }

    /// Notes that a replica has something in the journal that is not in its file on stable media.
    pub(super) fn note_dirty(&self, file: &Arc<ChunkFile>) {
        self.dirty.lock().insert(file.serial(), Arc::clone(file));
    }

    /// Lets go of a replica that was deleted.
    pub(super) fn forget(&self, file: &ChunkFile) {
        self.dirty.lock().remove(&file.serial());
    }

    /// Lets go of all replicas. What is in the journal stays there.
    pub(super) fn let_go(&self) {
        let files = std::mem::take(&mut *self.dirty.lock());
        drop(files);
    }

    /// Notes that a file was removed from `directory`. The caller has entered since before the record of it was added.
    pub(super) fn note_removal(&self, directory: String) {
        self.removals.lock().insert(directory);
    }

    /// Brings all removals of files to stable media, and the records of them before.
    pub(super) fn finish_removals(&self) -> Result<(), StoreError> {
        let _tending = self.tending.lock();
        let removals = {
            let _alone = self.enter_alone();
            self.removals.lock().clone()
        };
        self.log.sync(self.log.wanted())?;
        removals.iter().try_for_each(|directory| self.sync_names(directory))
    }

    /// Counts bytes of memory that came to wait for a flush, or were written by one.
    pub(super) fn count_pending(&self, change: i64) {
        self.pending.fetch_add(change, Ordering::Relaxed);
    }

    /// Returns the requests that wrote `chunk` not long ago, also before a restart; the oldest first.
    pub fn keys_of(&self, chunk: ChunkId) -> Vec<WriteKey> {
        self.keys.lock().iter().filter(|(of, _)| *of == chunk).map(|(_, key)| *key).collect()
    }

    /// Says what is due.
    pub fn due(&self) -> Due {
        let is_crowded = || self.dirty.lock().len() >= DIRTY_MAX;
        Due {
            flush: self.pending_bytes() >= self.pending_max / 4,
            checkpoint: self.log.used() >= self.journal_max / 2 || is_crowded(),
        }
    }

    fn pending_bytes(&self) -> u64 {
        self.pending.load(Ordering::Relaxed).max(0) as u64
    }

    /// Returns the figures.
    pub fn figures(&self) -> JournalFigures {
        JournalFigures {
            used_bytes: self.log.used(),
            pending_bytes: self.pending_bytes(),
            appended_bytes: self.log.end() - self.begin,
            syncs: self.log.syncs(),
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
            dirty_replicas: self.dirty.lock().len() as u64,
        }
    }

    /// Makes room for one more record, if those who should have come have not: whoever writes faster than the disk does
    /// it then. The caller has not entered.
    ///
    /// # Errors
    ///
    /// As of [`Self::flush`] and [`Self::checkpoint`].
    pub(super) fn admit(&self) -> Result<(), StoreError> {
        if self.log.used() >= self.journal_max {
            self.checkpoint()?;
        } else if self.pending_bytes() >= self.pending_max {
            self.flush()?;
        }
        Ok(())
    }

    /// Brings the journal to stable media, and what it has until now into the chunk files.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`]: what is not in the files stays in memory and in the journal. [`StoreError::Write`]: the
    /// disk must not be used any more.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _tending = self.tending.lock();
        self.write_back()
    }

    fn write_back(&self) -> Result<(), StoreError> {
        self.log.sync(self.log.wanted())?;
        let synced = self.log.synced();
        let files: Vec<_> = self.dirty.lock().values().cloned().collect();
        files.iter().try_for_each(|file| file.write_back(synced))
    }

    /// Brings everything that the journal has until now into the chunk files, tables too, and these to stable media; then
    /// frees its space.
    ///
    /// # Errors
    ///
    /// As of [`Self::flush`].
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        let _tending = self.tending.lock();
        let (position, removals) = {
            let _alone = self.enter_alone();
            (self.log.end(), std::mem::take(&mut *self.removals.lock()))
        };
        let outcome = self.checkpoint_at(position, &removals);
        if outcome.is_err() {
            self.removals.lock().extend(removals);
        }
        outcome
    }

    fn checkpoint_at(&self, position: u64, removals: &BTreeSet<String>) -> Result<(), StoreError> {
        self.write_back()?;
        let files: Vec<_> = std::mem::take(&mut *self.dirty.lock()).into_values().collect();
        let snapshots: Vec<_> = files.iter().map(|file| file.take_snapshot(self)).collect();
        // What the snapshots show is on stable media in the journal before it is in any table.
        let written = self.log.sync(self.log.wanted()).and_then(|()| {
            files.iter().zip(&snapshots).try_for_each(|(file, snapshot)| file.write_snapshot(snapshot, position))
        });
        if let Err(error) = written {
            // It is all in the journal still.
            files.iter().zip(&snapshots).for_each(|(file, snapshot)| file.put_back(snapshot, self));
            return Err(error);
        }
        let unnamed = files.iter().filter_map(|file| file.unsynced_directory());
        for directory in unnamed.chain(removals.iter().map(String::as_str)).collect::<BTreeSet<_>>() {
            self.sync_names(directory)?;
        }
        files.iter().for_each(|file| file.note_name_is_durable());
        self.repeat_keys()?;
        self.log.append(&Record::Checkpoint(position), &[])?;
        self.log.sync(self.log.wanted())?;
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.log.free(position)
    }

    fn sync_names(&self, directory: &str) -> Result<(), StoreError> {
        let synced = self.volume.sync_directory(directory).map_err(StoreError::Write);
        synced.map_err(|error| error.at(|| format!("syncing the names in {directory}")))
    }

    /// Repeats what is remembered of requests, whose records are about to go.
    fn repeat_keys(&self) -> Result<(), StoreError> {
        let keys: Vec<_> = self.keys.lock().iter().copied().collect();
        for keys in keys.chunks(KEYS_PER_RECORD) {
            self.log.append(&Record::Keys(keys.to_vec()), &[])?;
        }
        Ok(())
    }
}
