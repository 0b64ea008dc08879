//! Chunks of closed files that were written and not synced, so that an `fsync` after a reopen covers them.
//!
//! fsync(2) speaks of the file, not of the descriptor: programs write and close in one process and sync in another.
//! Of more files than are kept here, the ones that were closed first are forgotten, and with them what other mounts
//! wrote was never known here: for these `fsync` promises what `close` did.

use std::num::NonZeroUsize;

use dfs_proto::InodeId;
use lru::LruCache;
use parking_lot::Mutex;

use crate::core::Unsynced;

const FILES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");

/// The chunks, by file.
#[derive(Debug)]
pub(super) struct UnsyncedFiles {
    files: Mutex<LruCache<InodeId, Unsynced>>,
}

impl UnsyncedFiles {
    pub(super) fn new() -> Self {
        Self { files: Mutex::new(LruCache::new(FILES_MAX)) }
    }

    /// Notes what is left of a file that nobody has open any more.
    pub(super) fn put(&self, inode: InodeId, chunks: Unsynced) {
        if !chunks.is_empty() {
            self.files.lock().put(inode, chunks);
        }
    }

    /// Returns what was left of a file that is opened again.
    pub(super) fn take(&self, inode: InodeId) -> Unsynced {
        self.files.lock().pop(&inode).unwrap_or_default()
    }
}
