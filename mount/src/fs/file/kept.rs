//! Which content the kernel's cached pages of a file correspond to, so that a reopen may keep them.
//!
//! Outlives the open file: most files are opened again after they were closed. A version that is missing or wrong
//! only costs the kernel its pages; one that is kept wrongly would show old bytes, so whatever is doubtful is
//! forgotten.

use std::num::NonZeroUsize;

use dfs_proto::InodeId;
use lru::LruCache;
use parking_lot::Mutex;

const FILES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not 0");

/// The data version of the kernel's pages, by inode.
#[derive(Debug)]
pub(super) struct KeptPages {
    versions: Mutex<LruCache<InodeId, u64>>,
}

impl KeptPages {
    pub(super) fn new() -> Self {
        Self { versions: Mutex::new(LruCache::new(FILES_MAX)) }
    }

    /// Notes an open that shows `version`, and returns whether the kernel's pages are of that version.
    pub(super) fn open(&self, inode: InodeId, version: u64) -> bool {
        self.versions.lock().put(inode, version) == Some(version)
    }

    /// Notes a change made through this mount: the kernel's pages have it already, so that pages of `before` are now
    /// of `after`, unless somebody else's change came in between.
    pub(super) fn own_change(&self, inode: InodeId, before: u64, after: u64) {
        let mut versions = self.versions.lock();
        if let Some(version) = versions.peek_mut(&inode)
            && *version == before
            && after == before + 1
        {
            *version = after;
        }
    }

    /// The kernel's pages differ from the file.
    pub(super) fn forget(&self, inode: InodeId) {
        self.versions.lock().pop(&inode);
    }

    pub(super) fn clear(&self) {
        self.versions.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_over_own_changes_only() {
        let kept = KeptPages::new();
        let inode = InodeId(7);
        assert!(!kept.open(inode, 3), "never seen");
        kept.own_change(inode, 3, 4);
        assert!(kept.open(inode, 4));
        kept.own_change(inode, 4, 6);
        assert!(!kept.open(inode, 6), "somebody else made 5");
        assert!(kept.open(inode, 6));
        kept.forget(inode);
        assert!(!kept.open(inode, 6));
    }
}
