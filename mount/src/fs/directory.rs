//! Open directories: pages of names, the next one fetched while the present one is read.
//!
//! ```text
//! kernel offset   0        1      2       c + 2
//! entry after it  "."      ".."   first   the one behind the master's cookie c
//! ```
//!
//! A handle holds two pages at most, however large the directory is. A listing that begins at 0 asks the master anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::limits::LISTING_ENTRIES_MAX;
use dfs_proto::{FsError, InodeId, MonoMs};
use parking_lot::{Condvar, Mutex};

use super::attr_cache::Mark;
use crate::remote::Listing;

/// The kernel's offset behind `.`.
pub const AFTER_DOT: u64 = 1;
/// The kernel's offset behind `..`; those of other entries are their cookies above this.
pub const AFTER_DOT_DOT: u64 = 2;

/// Entries behind one cookie, as the master listed them at one moment.
#[derive(Debug)]
pub struct Page {
    /// The cookie the entries come after.
    pub after: u64,
    /// The entries have attributes.
    pub plus: bool,
    /// The entries.
    pub listing: Listing,
    /// When the master was asked.
    pub asked: MonoMs,
    /// This mount's changes up to then are in it.
    pub mark: Mark,
}

impl Page {
    /// Returns the index of the first entry behind `cookie`, if this page can tell.
    fn index_after(&self, cookie: u64) -> Option<usize> {
        if cookie == self.after {
            return Some(0);
        }
        let at = self.listing.entries.binary_search_by_key(&cookie, |entry| entry.cookie).ok()?;
        Some(at + 1)
    }

    fn last_cookie(&self) -> u64 {
        self.listing.entries.last().map_or(self.after, |entry| entry.cookie)
    }
}

/// A page that is fetched in the background, or by whoever needs it first.
#[derive(Debug, Default)]
pub struct Promise {
    is_taken: AtomicBool,
    page: Mutex<Option<Result<Page, FsError>>>,
    arrived: Condvar,
}

impl Promise {
    /// Returns whether the one who asks is the first, and so has to fetch the page. Without this, readers that fill all
    /// threads could wait for jobs that wait for a thread.
    pub fn take(&self) -> bool {
        !self.is_taken.swap(true, Ordering::AcqRel)
    }

    /// Hands the page to whoever waits for it.
    pub fn keep(&self, page: Result<Page, FsError>) {
        *self.page.lock() = Some(page);
        self.arrived.notify_all();
    }

    fn wait(&self) -> Result<Page, FsError> {
        let mut page = self.page.lock();
        loop {
            if let Some(page) = page.take() {
                return page;
            }
            self.arrived.wait(&mut page);
        }
    }

    fn is_kept(&self) -> bool {
        self.page.lock().is_some()
    }
}

/// Fetches pages, now or in the background.
pub trait Pages: Send + Sync {
    /// Asks the master for the entries of `inode` behind `after`.
    fn fetch(&self, inode: InodeId, after: u64, plus: bool) -> Result<Page, FsError>;
    /// Does the same in the background.
    fn fetch_ahead(&self, inode: InodeId, after: u64, plus: bool) -> Arc<Promise>;
}

/// One open directory.
#[derive(Debug)]
pub struct Directory {
    inode: InodeId,
    stream: Mutex<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    page: Option<Arc<Page>>,
    next: Option<NextPage>,
}

/// The page behind the present one, on its way.
#[derive(Debug)]
struct NextPage {
    after: u64,
    plus: bool,
    promise: Arc<Promise>,
}

impl NextPage {
    /// Returns whether it will do as the page behind `cookie`.
    fn is_behind(&self, cookie: u64, plus: bool) -> bool {
        self.after == cookie && (self.plus || !plus)
    }
}

impl Stream {
    /// Returns the present page and the index in it of the first entry behind `cookie`, past its end only at the end of
    /// the directory, if this page can tell.
    fn page_behind(&self, cookie: u64, plus: bool) -> Option<(&Arc<Page>, usize)> {
        let page = self.page.as_ref().filter(|page| page.plus || !plus)?;
        let index = page.index_after(cookie)?;
        (index < page.listing.entries.len() || page.listing.end).then_some((page, index))
    }
}

impl Directory {
    /// Returns the directory that was opened.
    pub fn inode(&self) -> InodeId {
        self.inode
    }

    /// Returns whether [`Self::at`] would answer without waiting for the master.
    pub fn is_ready(&self, cookie: u64, plus: bool) -> bool {
        let Some(stream) = self.stream.try_lock() else { return false };
        // A listing that begins at 0 asks anew.
        if cookie == 0 {
            return false;
        }
        stream.page_behind(cookie, plus).is_some()
            || stream.next.as_ref().is_some_and(|next| next.is_behind(cookie, plus) && next.promise.is_kept())
    }

    /// Returns a page and the index in it of the first entry behind `cookie`; the index is past its end only at the end
    /// of the directory.
    ///
    /// # Errors
    ///
    /// Those of the master.
    pub fn at(&self, pages: &dyn Pages, cookie: u64, plus: bool, restart: bool) -> Result<(Arc<Page>, usize), FsError> {
        let mut stream = self.stream.lock();
        if restart {
            *stream = Stream::default();
        }
        if let Some((page, index)) = stream.page_behind(cookie, plus) {
            return Ok((Arc::clone(page), index));
        }
        let page = match stream.next.take() {
            Some(next) if next.is_behind(cookie, plus) && !next.promise.take() => next.promise.wait()?,
            _ => pages.fetch(self.inode, cookie, plus)?,
        };
        if page.listing.entries.is_empty() && !page.listing.end {
            return Err(FsError::Protocol("an empty page in the middle of a directory".into()));
        }
        if page.listing.entries.len() > LISTING_ENTRIES_MAX as usize
            || !page.listing.entries.is_sorted_by_key(|entry| entry.cookie)
            || page.listing.entries.first().is_some_and(|entry| entry.cookie <= cookie)
            || page.last_cookie() > i64::MAX as u64 - AFTER_DOT_DOT
        {
            return Err(FsError::Protocol("a page of a directory whose cookies do not rise".into()));
        }
        if !page.listing.end {
            let after = page.last_cookie();
            stream.next = Some(NextPage { after, plus, promise: pages.fetch_ahead(self.inode, after, plus) });
        }
        let page = Arc::new(page);
        stream.page = Some(Arc::clone(&page));
        Ok((page, 0))
    }
}

/// The open directories of a mount.
#[derive(Debug, Default)]
pub struct DirectoryTable {
    open: Mutex<BTreeMap<u64, Arc<Directory>>>,
    last_handle: AtomicU64,
}

impl DirectoryTable {
    /// Opens a directory and returns its handle: never reused, never 0.
    pub fn open(&self, inode: InodeId) -> u64 {
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().insert(handle, Arc::new(Directory { inode, stream: Mutex::default() }));
        handle
    }

    /// Returns an open directory.
    pub fn get(&self, handle: u64) -> Option<Arc<Directory>> {
        self.open.lock().get(&handle).cloned()
    }

    /// Ends a handle.
    pub fn close(&self, handle: u64) {
        self.open.lock().remove(&handle);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use dfs_proto::Kind;

    use super::*;
    use crate::fs::attr_cache::AttrCache;
    use crate::remote::Dirent;

    /// A directory of the cookies in `range`, in pages of three.
    struct Numbers {
        range: Range<u64>,
        asked: Mutex<Vec<String>>,
    }

    impl Numbers {
        fn page(&self, after: u64, plus: bool) -> Page {
            let rest: Vec<u64> = self.range.clone().filter(|cookie| *cookie > after).collect();
            let entries = rest.iter().take(3).map(|&cookie| Dirent {
                cookie,
                name: cookie.to_string().into(),
                inode: InodeId(100 + cookie),
                kind: Kind::File,
                attr: None,
            });
            let listing = Listing { entries: entries.collect(), end: rest.len() <= 3, parent: InodeId::ROOT };
            Page { after, plus, listing, asked: MonoMs(0), mark: AttrCache::default().mark() }
        }
    }

    impl Pages for Numbers {
        fn fetch(&self, _: InodeId, after: u64, plus: bool) -> Result<Page, FsError> {
            self.asked.lock().push(format!("now {after}"));
            Ok(self.page(after, plus))
        }

        fn fetch_ahead(&self, _: InodeId, after: u64, plus: bool) -> Arc<Promise> {
            self.asked.lock().push(format!("ahead {after}"));
            let promise = Arc::new(Promise::default());
            assert!(promise.take());
            promise.keep(Ok(self.page(after, plus)));
            promise
        }
    }

    fn list(directory: &Directory, pages: &Numbers, from: u64, restart: bool) -> Vec<u64> {
        let (mut cookie, mut seen, mut restart) = (from, Vec::new(), restart);
        loop {
            let (page, index) = directory.at(pages, cookie, true, restart).unwrap();
            restart = false;
            let Some(entry) = page.listing.entries.get(index) else { return seen };
            cookie = entry.cookie;
            seen.push(cookie);
        }
    }

    #[test]
    fn each_entry_comes_once_and_pages_are_fetched_ahead() {
        let pages = Numbers { range: 1..8, asked: Mutex::default() };
        let table = DirectoryTable::default();
        let directory = table.get(table.open(InodeId(1))).unwrap();
        assert_eq!(list(&directory, &pages, 0, true), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(*pages.asked.lock(), ["now 0", "ahead 3", "ahead 6"]);
        assert_eq!(list(&directory, &pages, 5, false), [6, 7], "seekdir goes back");
        assert_eq!(list(&directory, &pages, 0, true), [1, 2, 3, 4, 5, 6, 7], "rewinddir asks anew");
    }

    #[test]
    fn a_listing_is_ready_if_the_page_it_goes_on_in_is_here_with_what_it_needs() {
        let pages = Numbers { range: 1..8, asked: Mutex::default() };
        let table = DirectoryTable::default();
        let directory = table.get(table.open(InodeId(1))).unwrap();
        assert!(!directory.is_ready(0, true));
        directory.at(&pages, 0, true, true).unwrap();
        assert!(!directory.is_ready(0, true), "a listing from the start asks anew");
        assert!(directory.is_ready(2, true));
        assert!(directory.is_ready(3, true) && directory.is_ready(3, false));
        assert!(!directory.is_ready(5, true), "two pages on");
        // Names alone from here: what follows is fetched without attributes.
        directory.at(&pages, 3, false, false).unwrap();
        assert!(directory.is_ready(4, true) && directory.is_ready(6, false));
        assert!(!directory.is_ready(6, true), "the page that is here has no attributes");
    }

    #[test]
    fn an_empty_directory_ends_at_once() {
        let pages = Numbers { range: 0..0, asked: Mutex::default() };
        let table = DirectoryTable::default();
        let directory = table.get(table.open(InodeId(1))).unwrap();
        assert_eq!(list(&directory, &pages, 0, true), [0u64; 0]);
    }
}
