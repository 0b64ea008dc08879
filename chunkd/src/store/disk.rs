//! One data directory as a disk: its space, and whether it can still be trusted.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use nix::fcntl::Flock;

use super::StoreError;

/// A disk of this server.
#[derive(Debug)]
pub struct Disk {
    /// Made when the directory was first used, kept on it.
    pub id: [u8; 16],
    path: PathBuf,
    failed: AtomicBool,
    replicas: AtomicU64,
    capacity: AtomicU64,
    /// What may still be written before the next look at the file system: free bytes less the reserve.
    room: AtomicI64,
    reserve_max: u64,
    is_mute: AtomicBool,
    lock: Flock<File>,
}

impl Disk {
    /// Returns the disk at `path`, which `lock` keeps for us. Of its space `reserve_max` bytes are left alone, but at
    /// most 5 %.
    ///
    /// # Errors
    ///
    /// If the file system cannot be asked for its space.
    pub fn new(id: [u8; 16], path: PathBuf, lock: Flock<File>, reserve_max: u64) -> std::io::Result<Self> {
        let disk = Self {
            id,
            path,
            failed: AtomicBool::new(false),
            replicas: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
            room: AtomicI64::new(0),
            reserve_max,
            is_mute: AtomicBool::new(false),
            lock,
        };
        disk.measure()?;
        Ok(disk)
    }

    /// Returns the data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the file system for its space, and whether the directory is still the one that was taken into use. A
    /// directory that has gone, or lies under another mount now, fences the disk.
    ///
    /// # Errors
    ///
    /// The operating system's; logged.
    pub fn measure(&self) -> std::io::Result<()> {
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

    fn look(&self) -> std::io::Result<()> {
        if !self.is_in_place()? {
            self.fence("its directory has gone, or is another one now");
            return Err(ErrorKind::NotFound.into());
        }
        let stat = nix::sys::statvfs::statvfs(&self.path)?;
        let capacity = stat.blocks() * stat.fragment_size();
        let free = stat.blocks_available() * stat.fragment_size();
        let reserve = self.reserve_max.min(capacity / 20);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.room.store(free as i64 - reserve as i64, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether the path still leads to the directory that was taken into use. A disk that was unmounted leaves an
    /// empty directory, on the root disk, where nothing may be written.
    ///
    /// # Errors
    ///
    /// The operating system's, except that there is nothing.
    pub fn is_in_place(&self) -> std::io::Result<bool> {
        let ours = self.lock.metadata()?;
        match std::fs::symlink_metadata(self.path.join("LOCK")) {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings everything on the file system to stable media.
    ///
    /// # Errors
    ///
    /// The operating system's, also for what it failed to write since the disk was taken into use.
    pub fn sync_all(&self) -> std::io::Result<()> {
        // Errors are told to descriptors that were open when they happened: the lock's was, all the time.
        Ok(nix::unistd::syncfs(&*self.lock)?)
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
        if self.has_failed() { Err(StoreError::Fenced(self.path.display().to_string())) } else { Ok(()) }
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

    /// Stops the use of the disk for good.
    pub fn fence(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = %self.path.display(), reason, "the disk has failed: it is not used any more");
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
