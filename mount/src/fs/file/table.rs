//! All open files of a mount: what the adapter calls.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::env::Clock;
use dfs_proto::{FsError, InodeId};

use super::backend::Backend;
use crate::fs::Attr;
use crate::metrics::Metrics;
use crate::remote::Policy;

/// One open of a file on this mount. Never reused, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandleId(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// O_APPEND: writes go to the end of the file, whatever their offset says.
    pub append: bool,
    /// O_DIRECT: no read-ahead.
    pub direct: bool,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

/// Bounds of the data path.
#[derive(Clone, Copy, Debug)]
pub struct FileSettings {
    /// How long calls wait for the cluster.
    pub policy: Policy,
    /// Most bytes of buffered writes of all files; at least 4 MiB are granted.
    pub dirty_bytes_max: u64,
    /// Most bytes that are read ahead of one handle; 0: none.
    pub read_ahead_bytes: u64,
    /// Threads that push writes.
    pub push_threads: usize,
    /// Threads that read ahead.
    pub read_threads: usize,
    /// A buffered write is pushed, and the size that covers it committed, once it is this old, in milliseconds.
    pub push_age_ms: u64,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self {
            policy: Policy::DEFAULT,
            dirty_bytes_max: 256 << 20,
            read_ahead_bytes: 8 << 20,
            push_threads: 6,
            read_threads: 4,
            push_age_ms: 700,
        }
    }
}

/// All open files of one mount. Methods block for as long as the cluster lets them, within the policy's deadline.
pub struct FileTable {}

#[allow(unused_variables, reason = "signatures first")]
impl FileTable {
    /// Starts the threads that push and read ahead. They end when the table is dropped.
    pub fn new(
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        settings: FileSettings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {})
    }

    /// Adds a handle to a file that the master was just told of. `attr` and `content` are from its answer; `content`
    /// is `None` if the answer did not carry it (it is then fetched when needed).
    ///
    /// Returns whether the kernel may keep the pages it has of the file (FOPEN_KEEP_CACHE).
    pub fn open(&self, attr: &Attr, content: Option<Bytes>, options: OpenOptions) -> (HandleId, bool) {
        (HandleId(0), false)
    }

    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    ///
    /// Those of the cluster, once the policy's deadline has passed.
    pub fn read(&self, handle: HandleId, offset: u64, size: u32) -> Result<Bytes, FsError> {
        Err(FsError::NotSupported)
    }

    /// Takes `data` to be written at `offset` (O_APPEND: at the end). `kill_suid_sgid`: the writer is unprivileged,
    /// the set-user-id and set-group-id bits go (FUSE_WRITE_KILL_SUIDGID).
    ///
    /// # Errors
    ///
    /// `FileTooBig`; `TimedOut` if no room for dirty data came free in time.
    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8], kill_suid_sgid: bool) -> Result<u32, FsError> {
        Err(FsError::NotSupported)
    }

    /// `close`: everything written is on replicas and its size is visible to others, though not on stable media.
    ///
    /// # Errors
    ///
    /// The first failure of any push since this handle last reported one.
    pub fn flush(&self, handle: HandleId) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// `fsync`: everything written, and the size that covers it, is on stable media.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`], and those of the barriers.
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// Ends a handle. What is still dirty is pushed first; failures are logged.
    pub fn release(&self, handle: HandleId) {}

    /// Returns whether the file has something to push or commit, so that `flush`, `fsync` and `release` may wait.
    pub fn has_dirty(&self, handle: HandleId) -> bool {
        false
    }

    /// Corrects attributes for buffered writes: size, mtime, ctime, the set-id bits, and whatever the file knows better
    /// than an answer that was overtaken by a later one.
    pub fn overlay(&self, attr: &mut Attr) {}

    /// Takes note of attributes the master just sent. Content that changed behind our back drops what is cached here.
    pub fn note_attr(&self, attr: &Attr) {}

    /// Pushes and commits what `inode` has buffered: before any change of attributes but the size, and before calls
    /// whose outcome other mounts must see in order.
    ///
    /// # Errors
    ///
    /// Those of the cluster; they stay to be reported by the handles too.
    pub fn settle(&self, inode: InodeId) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// Sets the size. `attr` is the newest that is known of the file; `send` makes the master's SetAttr (with all else
    /// that the call changes) and is called once, in its right order among pushes and commits. Returns its answer,
    /// corrected as by [`Self::overlay`]. Works for files that are not open too.
    ///
    /// # Errors
    ///
    /// Those of `send` and of the cluster; `FileTooBig`.
    pub fn truncate(
        &self,
        attr: &Attr,
        size: u64,
        send: impl FnOnce() -> Result<Attr, FsError>,
    ) -> Result<Attr, FsError> {
        Err(FsError::NotSupported)
    }

    /// `fallocate` with the kernel's mode bits. Mode 0 makes the file as long as asked but sets no space aside.
    ///
    /// # Errors
    ///
    /// `NotSupported` for modes other than 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE.
    pub fn fallocate(&self, handle: HandleId, mode: i32, offset: u64, length: u64) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// Finds the next data or hole at or after `offset`.
    ///
    /// # Errors
    ///
    /// `PastEnd` (ENXIO).
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: Whence) -> Result<u64, FsError> {
        Err(FsError::NotSupported)
    }

    /// `copy_file_range`: copies up to `length` bytes, perhaps fewer, and returns how many.
    ///
    /// # Errors
    ///
    /// `Invalid` if the ranges overlap in one file.
    pub fn copy_range(&self, from: (HandleId, u64), to: (HandleId, u64), length: u64) -> Result<u64, FsError> {
        Err(FsError::NotSupported)
    }

    /// Pushes and commits everything, for `syncfs` and unmount.
    ///
    /// # Errors
    ///
    /// The first failure; all files are tried.
    pub fn flush_all(&self) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }

    /// The session is gone, and with it the right to write what is buffered: all of it fails, nothing cached stays.
    pub fn session_lost(&self) {}
}
