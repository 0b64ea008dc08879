//! One mounted file system: the master, the open files and directories, and what is known for the moment.

use std::sync::Arc;

use dfs_proto::env::Clock;
use dfs_proto::limits::LISTING_ENTRIES_MAX;
use dfs_proto::{FsError, InodeId, Kind, MonoMs, Seq};

use super::attr::Attr;
use super::attr_cache::{AttrCache, Shown, TTL_MS};
use super::directory::{DirectoryTable, Page, Pages, Promise};
use super::elastic_pool::ElasticPool;
use super::file::FileTable;
use crate::remote::MasterClient;

/// The calls of a mount. All threads share it; each call blocks for as long as the policy lets it.
pub struct FileSystem {
    pub(super) root: InodeId,
    pub(super) master: MasterClient,
    pub(super) files: Arc<FileTable>,
    pub(super) attrs: Arc<AttrCache>,
    pub(super) directories: DirectoryTable,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) pages: PageFetcher,
    /// Mounted with `sync` or `dirsync`: a change of names is on stable media before the call returns.
    pub(super) is_dirsync: bool,
}

impl FileSystem {
    /// Returns the file system below `root`.
    pub fn new(
        root: &Attr,
        master: MasterClient,
        files: Arc<FileTable>,
        clock: Arc<dyn Clock>,
        pool: Arc<ElasticPool>,
        is_dirsync: bool,
    ) -> Self {
        let attrs = Arc::new(AttrCache::default());
        let pages = PageFetcher { master: master.clone(), attrs: Arc::clone(&attrs), clock: Arc::clone(&clock), pool };
        let directories = DirectoryTable::default();
        Self { root: root.inode, master, files, attrs, directories, clock, pages, is_dirsync }
    }

    /// Returns the inode that is mounted.
    pub fn root(&self) -> InodeId {
        self.root
    }

    /// The session was lost: nothing that is cached or buffered counts any more.
    pub fn session_lost(&self) {
        self.attrs.clear();
        self.files.session_lost();
    }

    /// Writes everything out and gives the session back.
    ///
    /// # Errors
    ///
    /// The first failure: what was buffered may be lost.
    pub fn shut_down(&self) -> Result<(), FsError> {
        let flushed = self.files.flush_all();
        let closed = self.master.close();
        flushed.and(closed)
    }

    /// Makes every change of names and attributes that this mount made durable: `fsync` of a directory.
    ///
    /// # Errors
    ///
    /// Those of the master.
    pub fn sync(&self) -> Result<(), FsError> {
        self.master.sync()
    }

    pub(super) fn now(&self) -> MonoMs {
        self.clock.mono()
    }

    /// Returns what the caller is shown of attributes the master was asked for at `asked`.
    pub(super) fn shown(&self, mut attr: Attr, asked: MonoMs) -> Shown {
        if attr.kind == Kind::File {
            self.files.note_attr(&attr);
            self.files.overlay(&mut attr);
        }
        Shown { attr, ttl_ms: TTL_MS.saturating_sub(self.now().since(asked)) }
    }

    pub(super) fn after_change(&self) -> Result<(), FsError> {
        if self.is_dirsync { self.master.sync() } else { Ok(()) }
    }

    /// Waits until the change is on stable media if the mount asks for that.
    pub(super) fn after_change_of(&self, seq: Seq) -> Result<(), FsError> {
        if self.is_dirsync { self.master.sync_to(seq) } else { Ok(()) }
    }
}

/// Fetches pages of directories.
#[derive(Clone)]
pub(super) struct PageFetcher {
    master: MasterClient,
    attrs: Arc<AttrCache>,
    clock: Arc<dyn Clock>,
    pool: Arc<ElasticPool>,
}

impl Pages for PageFetcher {
    fn fetch(&self, inode: InodeId, after: u64, plus: bool) -> Result<Page, FsError> {
        let (asked, mark) = (self.clock.mono(), self.attrs.mark());
        let listing = self.master.read_dir(inode, after, LISTING_ENTRIES_MAX, plus)?;
        Ok(Page { after, plus, listing, asked, mark })
    }

    fn fetch_ahead(&self, inode: InodeId, after: u64, plus: bool) -> Arc<Promise> {
        let promise = Arc::new(Promise::default());
        let (fetcher, kept) = (self.clone(), Arc::clone(&promise));
        self.pool.spawn(move || {
            if kept.take() {
                kept.keep(fetcher.fetch(inode, after, plus));
            }
        });
        promise
    }
}
