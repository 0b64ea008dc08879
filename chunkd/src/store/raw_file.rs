//! The file operations that a replica needs.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

/// A file that is read and written at offsets, and may have holes.
pub trait RawFile: fmt::Debug + Send + Sync {
    /// Fills `buffer` from `offset` on; what lies past the end reads as zeros.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data`.
    ///
    /// # Errors
    ///
    /// The operating system's. Some of the data may have been written.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a hole. The file keeps its length.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Brings everything written to stable media, as fdatasync(2).
    ///
    /// # Errors
    ///
    /// The operating system's. The file is suspect then.
    fn sync(&self) -> io::Result<()>;

    /// Returns the first part of `[from, end)` that may hold anything but a hole.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn next_data(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>>;

    /// Returns the file's length.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn length(&self) -> io::Result<u64>;

    /// Takes room for `[offset, offset + length)`, so that writing there does not fail for want of it. What is there
    /// stays, what was a hole reads as zeros; the file grows if it is shorter.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// A file of the operating system.
#[derive(Debug)]
pub struct OsFile(pub File);

impl RawFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => {
                    buffer[filled..].fill(0);
                    return Ok(());
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.0, flags, offset as i64, length as i64)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn next_data(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match lseek64(&self.0, from as i64, Whence::SeekData) {
            Ok(at) => at as u64,
            Err(nix::errno::Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if start >= end {
            return Ok(None);
        }
        let stop = lseek64(&self.0, start as i64, Whence::SeekHole)? as u64;
        Ok(Some((start, stop.min(end))))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(fallocate(&self.0, FallocateFlags::empty(), offset as i64, length as i64)?)
    }
}
