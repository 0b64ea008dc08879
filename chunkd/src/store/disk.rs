//! One data directory as a disk: its space, its journal, and whether it can still be trusted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::StoreError;
use super::data_dir::mark_suspect;
use super::journal::{Due, Journal, JournalFigures};
use super::volume::Volume;

/// A disk of this server.
#[derive(Debug)]
pub struct Disk {
    /// Made when the directory was first used, kept on it.
    pub id: [u8; 16],
    volume: Arc<dyn Volume>,
    path: PathBuf,
    /// None if the disk could not be taken into use.
    journal: OnceLock<Journal>,
    /// The server's other disks.
    others: OnceLock<Vec<Arc<dyn Volume>>>,
    failed: AtomicBool,
    replicas: AtomicU64,
    capacity: AtomicU64,
    /// What may still be written before the next look at the file system: free bytes less the reserve.
    room: AtomicI64,
    reserve_max: u64,
    is_mute: AtomicBool,
}

impl Disk {
    /// Returns the disk on `volume`. Of its space `reserve_max` bytes are left alone, but at most 5 %.
    ///
    /// # Errors
    ///
    /// If the file system cannot be asked for its space.
    pub fn new(id: [u8; 16], volume: Arc<dyn Volume>, reserve_max: u64) -> io::Result<Self> {
        let disk = Self {
            id,
            path: PathBuf::from(volume.label()),
            volume,
            journal: OnceLock::new(),
            others: OnceLock::new(),
            failed: AtomicBool::new(false),
            replicas: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
            room: AtomicI64::new(0),
            reserve_max,
            is_mute: AtomicBool::new(false),
        };
        disk.measure()?;
        Ok(disk)
    }

    /// Gives the disk its journal.
    pub(super) fn set_journal(&self, journal: Journal) {
        assert!(self.journal.set(journal).is_ok(), "a disk has one journal");
    }

    /// Tells the disk where else a failure of it may be noted.
    pub(super) fn set_others(&self, others: Vec<Arc<dyn Volume>>) {
        assert!(self.others.set(others).is_ok(), "it is told once");
    }

    /// Returns the data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what its files are in.
    pub fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// Returns its journal.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if there is none: it was found corrupt.
    pub(super) fn journal(&self) -> Result<&Journal, StoreError> {
        self.journal.get().ok_or_else(|| self.fenced())
    }

    /// Returns what the journal has done and has to do.
    pub fn journal_figures(&self) -> JournalFigures {
        self.journal.get().map(Journal::figures).unwrap_or_default()
    }

    /// Says what is due: whoever runs the store looks from time to time, at least each second.
    pub fn due(&self) -> Due {
        if self.has_failed() { Due::default() } else { self.journal.get().map(Journal::due).unwrap_or_default() }
    }

    /// Brings everything that was done to stable media, and into the chunk files: due each second, so that a power loss
    /// costs no more than that of what was not synced.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`]: some of it stays in memory and in the journal. [`StoreError::Write`],
    /// [`StoreError::Fenced`]: the disk is fenced.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.check()?;
        self.judge(self.journal()?.flush())
    }

    /// As [`Self::flush`], and the tables too, so that the journal's space is free again.
    ///
    /// # Errors
    ///
    /// As of [`Self::flush`].
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.check()?;
        self.judge(self.journal()?.checkpoint())
    }

    /// Asks the file system for its space, and whether the directory is still the one that was taken into use. A
    /// directory that has gone, or lies under another mount now, fences the disk.
    ///
    /// # Errors
    ///
    /// The operating system's; logged.
    pub fn measure(&self) -> io::Result<()> {
        let outcome = self.look();
        match &outcome {
            Ok(()) => self.is_mute.store(false, Ordering::Relaxed),
            Err(error) if self.has_failed() || self.is_mute.swap(true, Ordering::Relaxed) => {
                tracing::debug!(disk = %self.path.display(), %error, "cannot ask for the disk's space");
            }
            Err(error) => tracing::warn!(disk = %self.path.display(), %error, "cannot ask for the disk's space"),
        }
        outcome
    }

    fn look(&self) -> io::Result<()> {
        if !self.volume.is_in_place()? {
            self.fence("its directory has gone, or is another one now");
            return Err(io::ErrorKind::NotFound.into());
        }
        let space = self.volume.space()?;
        let reserve = self.reserve_max.min(space.capacity / 20);
        self.capacity.store(space.capacity, Ordering::Relaxed);
        self.room.store(space.free as i64 - reserve as i64, Ordering::Relaxed);
        Ok(())
    }

    /// Takes `bytes` of the room for a write.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] if it would go into the reserve; [`StoreError::Fenced`].
    pub fn take_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.check()?;
        if self.room.fetch_sub(bytes as i64, Ordering::Relaxed) >= bytes as i64 {
            return Ok(());
        }
        // Overwrites were counted as if they took room: look again before saying no.
        self.measure().map_err(StoreError::Read)?;
        if self.room.load(Ordering::Relaxed) >= bytes as i64 { Ok(()) } else { Err(StoreError::NoSpace) }
    }

    /// Checks that the disk has not failed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`].
    pub fn check(&self) -> Result<(), StoreError> {
        if self.has_failed() { Err(self.fenced()) } else { Ok(()) }
    }

    fn fenced(&self) -> StoreError {
        StoreError::Fenced(self.path.display().to_string())
    }

    /// Returns whether the disk has failed in this run.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Passes `result` on, and stops the use of the disk for good if it is a failed write or sync: what the kernel
    /// could not write is lost from the page cache, so a later sync that succeeds would prove nothing.
    ///
    /// # Errors
    ///
    /// Those of `result`.
    pub fn judge<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Write(error)) = &result {
            self.fence(&error.to_string());
        }
        result
    }

    /// Stops the use of the disk for good, and notes on every disk that still works that the next start is suspect.
    pub fn fence(&self, reason: &str) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(disk = %self.path.display(), reason, "the disk has failed: it is not used any more");
        let reason = format!("the disk {} has failed: {reason}", self.path.display());
        let others = self.others.get().into_iter().flatten();
        for volume in others.chain([&self.volume]) {
            // Not into the empty directory that an unmounted disk leaves.
            let marked = volume.is_in_place().and_then(|is_in_place| match is_in_place {
                true => mark_suspect(&**volume, &reason),
                false => Ok(()),
            });
            if let Err(error) = marked {
                tracing::warn!(disk = %volume.label(), %error, "cannot note that the next start is suspect");
            }
        }
    }

    /// Returns the bytes of the file system, and those that are left for replicas.
    pub fn space(&self) -> (u64, u64) {
        (self.capacity.load(Ordering::Relaxed), self.room.load(Ordering::Relaxed).max(0) as u64)
    }

    /// Returns the number of replicas on it.
    pub fn replicas(&self) -> u64 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Counts replicas that came or went.
    pub(super) fn count_replicas(&self, change: i64) {
        self.replicas.fetch_add(change as u64, Ordering::Relaxed);
    }
}
