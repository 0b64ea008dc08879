//! All open files of a mount: what the adapter calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::env::Clock;
use dfs_proto::limits::INLINE_BYTES_MAX;
use dfs_proto::{FsError, InodeId};
use parking_lot::{Mutex, RwLock};

use super::backend::Backend;
use super::budget::Budget;
use super::kept::KeptPages;
use super::pool::{PushPool, ReadPool, Threads};
use super::seek;
use super::state::{FileState, Shared};
use super::unsynced::UnsyncedFiles;
use super::write::WriteFlags;
use crate::core::Policy;
use crate::fs::Attr;
use crate::metrics::Metrics;

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

/// What a file has still to write out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Nothing: the master and the chunk servers have all of it.
    Nothing,
    /// Inline content, for the master.
    Inline,
    /// Bytes for chunk servers, or what they have for the master.
    Chunks,
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
///
/// Locks: `files` before a file's; `handles` is only held to look one up.
pub struct FileTable {
    shared: Arc<Shared>,
    files: Mutex<BTreeMap<InodeId, Arc<FileState>>>,
    handles: RwLock<BTreeMap<HandleId, Arc<FileState>>>,
    next_handle: AtomicU64,
    _threads: Threads,
}

impl FileTable {
    /// Starts the threads that push and read ahead. They end when the table is dropped.
    pub fn new(
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        settings: FileSettings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            backend,
            clock,
            budget: Budget::new(settings.dirty_bytes_max, metrics.dirty_bytes.clone()),
            settings,
            metrics,
            kept: KeptPages::new(),
            unsynced: UnsyncedFiles::new(),
            pushers: PushPool::default(),
            readers: ReadPool::default(),
            ahead_bytes: AtomicU64::new(0),
        });
        Arc::new(Self {
            _threads: Threads::start(&shared),
            shared,
            files: Mutex::new(BTreeMap::new()),
            handles: RwLock::new(BTreeMap::new()),
            next_handle: AtomicU64::new(1),
        })
    }

    /// Adds a handle to a file that the master was just told of. `attr` and `content` are from its answer; `content`
    /// is `None` if the answer did not carry it (it is then fetched when needed).
    ///
    /// Returns whether the kernel may keep the pages it has of the file (FOPEN_KEEP_CACHE).
    pub fn open(&self, attr: &Attr, content: Option<Bytes>, options: OpenOptions) -> (HandleId, bool) {
        let id = HandleId(self.next_handle.fetch_add(1, Ordering::Relaxed));
        let file = {
            let mut files = self.files.lock();
            let file = match files.get(&attr.inode) {
                Some(file) => {
                    file.note_attr(attr, content);
                    Arc::clone(file)
                }
                None => {
                    let file = Arc::new(FileState::new(Arc::clone(&self.shared), attr, content));
                    files.insert(attr.inode, Arc::clone(&file));
                    file
                }
            };
            file.add_handle(id, options);
            file
        };
        self.handles.write().insert(id, file);
        (id, self.shared.kept.open(attr.inode, attr.data_version))
    }

    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    ///
    /// Those of the cluster, once the policy's deadline has passed.
    pub fn read(&self, handle: HandleId, offset: u64, size: u32) -> Result<Bytes, FsError> {
        self.file(handle)?.read(handle, offset, size)
    }

    /// Takes `data` to be written at `offset` (O_APPEND: at the end). `kill_suid_sgid`: the writer is unprivileged,
    /// the set-user-id and set-group-id bits go (FUSE_WRITE_KILL_SUIDGID).
    ///
    /// # Errors
    ///
    /// `FileTooBig`; `TimedOut` if no room for dirty data came free in time.
    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8], kill_suid_sgid: bool) -> Result<u32, FsError> {
        self.file(handle)?.write(handle, offset, data, WriteFlags { kill_suid_sgid, is_write_back: false })
    }

    /// Takes `data` of mapped pages that the kernel writes back (FUSE_WRITE_CACHE): to `offset` even if the handle it
    /// happened to choose is an O_APPEND one.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_back(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32, FsError> {
        self.file(handle)?.write(handle, offset, data, WriteFlags { kill_suid_sgid: false, is_write_back: true })
    }

    /// `close`: everything written is on replicas and its size is visible to others, though not on stable media.
    ///
    /// # Errors
    ///
    /// The first failure of any push since this handle last reported one.
    pub fn flush(&self, handle: HandleId) -> Result<(), FsError> {
        self.file(handle)?.flush(handle)
    }

    /// `fsync`: everything written, and the size that covers it, is on stable media.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`], and those of the barriers.
    pub fn fsync(&self, handle: HandleId) -> Result<(), FsError> {
        self.file(handle)?.fsync(handle)
    }

    /// Ends a handle. What is still dirty is pushed first; failures are logged.
    pub fn release(&self, handle: HandleId) {
        let Some(file) = self.handles.write().remove(&handle) else { return };
        if let Err(error) = file.flush(handle) {
            tracing::warn!(inode = %file.inode, %error, "what was written before the last close was lost");
        }
        file.remove_handle(handle);
        self.drop_if_unused(&file);
    }

    /// Returns what the file still has to write out, and so what `flush`, `fsync` and `release` wait for.
    pub fn unwritten(&self, handle: HandleId) -> Unwritten {
        self.file(handle).map_or(Unwritten::Nothing, |file| file.unwritten())
    }

    /// As [`Self::unwritten`], for a file that may be open or not.
    pub fn unwritten_of(&self, inode: InodeId) -> Unwritten {
        self.open_file(inode).map_or(Unwritten::Nothing, |file| file.unwritten())
    }

    /// Corrects attributes for buffered writes: size, mtime, ctime, the set-id bits, and whatever the file knows better
    /// than an answer that was overtaken by a later one.
    pub fn overlay(&self, attr: &mut Attr) {
        if let Some(file) = self.open_file(attr.inode) {
            file.overlay(attr);
        }
    }

    /// Takes note of attributes the master just sent. Content that changed behind our back drops what is cached here.
    pub fn note_attr(&self, attr: &Attr) {
        if let Some(file) = self.open_file(attr.inode) {
            file.note_attr(attr, None);
        }
    }

    /// Pushes and commits what `inode` has buffered: before any change of attributes but the size, and before calls
    /// whose outcome other mounts must see in order.
    ///
    /// # Errors
    ///
    /// Those of the cluster; they stay to be reported by the handles too.
    pub fn settle(&self, inode: InodeId) -> Result<(), FsError> {
        self.open_file(inode).map_or(Ok(()), |file| file.settle().map(drop))
    }

    /// Sets the size. `attr` is the newest that is known of the file; `send` makes the master's SetAttr (with all else
    /// that the call changes), and is called in its right order among pushes and commits; again if the file was not
    /// what it was thought to be (`Stale`). Returns its answer,
    /// corrected as by [`Self::overlay`]. Works for files that are not open too.
    ///
    /// # Errors
    ///
    /// Those of `send` and of the cluster; `FileTooBig`.
    pub fn truncate(&self, attr: &Attr, size: u64, send: impl Fn() -> Result<Attr, FsError>) -> Result<Attr, FsError> {
        if let Some(file) = self.open_file(attr.inode) {
            return file.truncate(size, send);
        }
        let mut attr = *attr;
        if !attr.is_inline || size <= INLINE_BYTES_MAX {
            match send() {
                Err(FsError::Stale(_)) => attr = self.shared.backend.get_attr(attr.inode)?,
                answer => return answer,
            }
        }
        // Inline content has to move into chunks first: as if it were open for the time being.
        let (handle, _) = self.open(&attr, None, OpenOptions::default());
        let outcome = self.file(handle)?.truncate(size, send);
        self.release(handle);
        outcome
    }

    /// `fallocate` with the kernel's mode bits. Mode 0 makes the file as long as asked but sets no space aside.
    ///
    /// # Errors
    ///
    /// `NotSupported` for modes other than 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE.
    pub fn fallocate(&self, handle: HandleId, mode: i32, offset: u64, length: u64) -> Result<(), FsError> {
        let file = self.file(handle)?;
        file.fallocate(mode, offset, length)?;
        file.take_error(handle)
    }

    /// Finds the next data or hole at or after `offset`.
    ///
    /// # Errors
    ///
    /// `PastEnd` (ENXIO).
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: Whence) -> Result<u64, FsError> {
        self.file(handle)?.lseek(offset, whence)
    }

    /// `copy_file_range`: copies up to `length` bytes, perhaps fewer, and returns how many.
    ///
    /// # Errors
    ///
    /// `Invalid` if the ranges overlap in one file.
    pub fn copy_range(&self, from: (HandleId, u64), to: (HandleId, u64), length: u64) -> Result<u64, FsError> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        seek::copy((&source, from.0, from.1), (&target, to.0, to.1), length)
    }

    /// Pushes and commits everything, for `syncfs` and unmount.
    ///
    /// # Errors
    ///
    /// The first failure; all files are tried.
    pub fn flush_all(&self) -> Result<(), FsError> {
        let mut outcome = Ok(());
        for file in self.shared.pushers.listed() {
            outcome = outcome.and(file.settle().map(drop));
        }
        outcome
    }

    /// The session is gone, and with it the right to write what is buffered: all of it fails, nothing cached stays.
    pub fn session_lost(&self) {
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        for file in files {
            let mut state = file.state.lock();
            file.abandon(&mut state, &FsError::SessionLost);
        }
        self.shared.kept.clear();
    }

    #[cfg(test)]
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.shared.budget.used()
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.files.lock().len()
    }

    #[cfg(test)]
    pub(super) fn press(&self) {
        self.shared.pushers.press();
    }

    fn file(&self, handle: HandleId) -> Result<Arc<FileState>, FsError> {
        self.handles.read().get(&handle).cloned().ok_or(FsError::Stale("the handle is closed"))
    }

    fn open_file(&self, inode: InodeId) -> Option<Arc<FileState>> {
        self.files.lock().get(&inode).cloned()
    }

    fn drop_if_unused(&self, file: &Arc<FileState>) {
        let mut files = self.files.lock();
        let mut state = file.state.lock();
        if state.handles.is_empty() {
            if !state.is_clean() {
                // Its failure is reported and logged; nobody is left to try again.
                file.drop_buffered(&mut state);
            }
            self.shared.unsynced.put(file.inode, std::mem::take(&mut state.unsynced));
            files.remove(&file.inode);
        }
    }
}
