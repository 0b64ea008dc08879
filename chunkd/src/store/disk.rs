//! One data directory as a disk: its space, and whether it can still be trusted.

use std::fs::File;
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
    _lock: Flock<File>,
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
            _lock: lock,
        };
        disk.measure()?;
        Ok(disk)
    }

    /// Returns the data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the file system for its space.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn measure(&self) -> std::io::Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.path)?;
        let capacity = stat.blocks() * stat.fragment_size();
        let free = stat.blocks_available() * stat.fragment_size();
        let reserve = self.reserve_max.min(capacity / 20);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.room.store(free as i64 - reserve as i64, Ordering::Relaxed);
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
        if let Err(StoreError::Write(error)) = &result
            && !self.failed.swap(true, Ordering::AcqRel)
        {
            tracing::error!(disk = %self.path.display(), %error, "the disk failed a write: it is not used any more");
        }
        result
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
