//! Calls by name: look up, make, remove, move, list.

use bytes::Bytes;
use dfs_proto::{FsError, InodeId, Kind, Name};

use super::attr_cache::{DirectoryChange, Shown, TTL_MS};
use super::caller::Caller;
use super::directory::{AFTER_DOT, AFTER_DOT_DOT, Page};
use super::filesystem::FileSystem;
use crate::remote::{Dirent, Make};

/// What `mknod`, `mkdir` and `symlink` make.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits, umask applied.
    pub mode: u32,
    /// Of device nodes, as Linux `dev_t`.
    pub rdev: u64,
    /// Of symlinks.
    pub target: Bytes,
}

/// An entry that is handed to the kernel.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The kernel's offset behind it.
    pub offset: u64,
    /// The name; `.` and `..` too.
    pub name: &'a [u8],
    /// What it refers to.
    pub inode: InodeId,
    /// The kind of that.
    pub kind: Kind,
    /// What is known of it, in a listing with attributes; `None` for `.` and `..`.
    pub shown: Option<Shown>,
}

impl FileSystem {
    /// Looks a name up. `.` and `..` are taken too: the kernel asks for them when it resolves a file handle.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `NotDirectory`, `NameTooLong`.
    pub fn lookup(&self, caller: Caller, parent: InodeId, name: Bytes) -> Result<Shown, FsError> {
        match &name[..] {
            b"." => return self.get_attr(parent),
            b".." if parent == self.root => return self.get_attr(parent),
            b".." => {
                let parent = self.get_attr(parent)?.attr.parent;
                return self.get_attr(parent);
            }
            _ => {}
        }
        let name = Name::new(name)?;
        let (asked, mark) = (self.now(), self.attrs.mark());
        let attr = self.master.lookup(caller, parent, &name)?;
        self.attrs.learn(&attr, mark, asked);
        self.attrs.learn_name(parent, &name, attr.inode);
        Ok(self.shown(attr, asked))
    }

    /// Makes a new inode with a name.
    ///
    /// # Errors
    ///
    /// `Exists`, `NoEntry`, `NotDirectory`, `NameTooLong`, `NoSpace`.
    pub fn make(&self, caller: Caller, parent: InodeId, name: Bytes, node: NewNode) -> Result<Shown, FsError> {
        let name = Name::new(name)?;
        let asked = self.now();
        let make = Make {
            parent,
            name: name.clone(),
            kind: node.kind,
            mode: node.mode,
            rdev: node.rdev,
            target: node.target,
            open: false,
            exclusive: true,
        };
        let made = self.master.make(caller, &make)?;
        self.attrs.add_name(parent, &name, &made.attr, made.time, asked);
        self.after_change()?;
        Ok(self.shown(made.attr, asked))
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `IsDirectory`, `NotPermitted`.
    pub fn unlink(&self, caller: Caller, parent: InodeId, name: Bytes) -> Result<(), FsError> {
        let name = Name::new(name)?;
        let time = self.master.unlink(caller, parent, &name)?;
        self.attrs.change_name(parent, &name, DirectoryChange::Name, time);
        self.after_change()
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `NotDirectory`, `NotEmpty`, `NotPermitted`.
    pub fn rmdir(&self, caller: Caller, parent: InodeId, name: Bytes) -> Result<(), FsError> {
        let name = Name::new(name)?;
        let time = self.master.rmdir(caller, parent, &name)?;
        self.attrs.change_name(parent, &name, DirectoryChange::DirectoryRemoved, time);
        self.after_change()
    }

    /// Moves a name; `flags` as in renameat2(2).
    ///
    /// # Errors
    ///
    /// `NoEntry`, `Exists`, `NotEmpty`, `IntoItself`, `IsDirectory`, `NotDirectory`, `Invalid`.
    pub fn rename(
        &self,
        caller: Caller,
        (parent, name): (InodeId, Bytes),
        (new_parent, new_name): (InodeId, Bytes),
        flags: u32,
    ) -> Result<(), FsError> {
        let name = Name::new(name)?;
        let new_name = Name::new(new_name)?;
        let time = self.master.rename(caller, (parent, &name), (new_parent, &new_name), flags)?;
        let moved = self.attrs.change_name(parent, &name, DirectoryChange::Name, time);
        self.attrs.change_name(new_parent, &new_name, DirectoryChange::Name, time);
        if let Some(inode) = moved.filter(|_| flags & libc::RENAME_EXCHANGE == 0) {
            self.attrs.learn_name(new_parent, &new_name, inode);
        }
        // Their links may have changed, if a directory moved or was replaced.
        self.attrs.forget(parent);
        self.attrs.forget(new_parent);
        self.after_change()
    }

    /// Makes a further name for an inode.
    ///
    /// # Errors
    ///
    /// `Exists`, `NoEntry`, `NotPermitted`, `TooManyLinks`.
    pub fn link(&self, caller: Caller, inode: InodeId, parent: InodeId, name: Bytes) -> Result<Shown, FsError> {
        let name = Name::new(name)?;
        let asked = self.now();
        let attr = self.master.link(caller, inode, parent, &name)?;
        self.attrs.add_name(parent, &name, &attr, attr.ctime, asked);
        self.after_change_of(attr.seq)?;
        Ok(self.shown(attr, asked))
    }

    /// Returns a symlink's target.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is none.
    pub fn read_link(&self, inode: InodeId) -> Result<Bytes, FsError> {
        self.master.read_link(inode)
    }

    /// Opens a directory and returns its handle.
    pub fn open_dir(&self, inode: InodeId) -> u64 {
        self.directories.open(inode)
    }

    /// Ends a directory's handle.
    pub fn release_dir(&self, handle: u64) {
        self.directories.close(handle);
    }

    /// Returns whether [`Self::read_dir`] would answer from what is here.
    pub fn is_listing_ready(&self, handle: u64, offset: u64, plus: bool) -> bool {
        let cookie = offset.saturating_sub(AFTER_DOT_DOT);
        self.directories.get(handle).is_some_and(|directory| directory.is_ready(cookie, plus))
    }

    /// Hands entries from the kernel's `offset` on to `add`, until it returns false or a page ends: at least one, if any
    /// is left. With `plus` entries have attributes.
    ///
    /// # Errors
    ///
    /// `Invalid` for a handle that is not open, else those of the master.
    pub fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        mut add: impl FnMut(&Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let directory = self.directories.get(handle).ok_or(FsError::Invalid("no such directory handle"))?;
        let mut cookie = offset.saturating_sub(AFTER_DOT_DOT);
        let (mut page, mut index) = directory.at(&self.pages, cookie, plus, offset == 0)?;
        let inode = directory.inode();
        let has_parent = inode != self.root && page.listing.parent != InodeId(0);
        let parent = if has_parent { page.listing.parent } else { inode };
        for (after, name, inode) in [(AFTER_DOT, &b"."[..], inode), (AFTER_DOT_DOT, b"..", parent)] {
            if offset < after && !add(&Entry { offset: after, name, inode, kind: Kind::Directory, shown: None }) {
                return Ok(());
            }
        }
        loop {
            let mut is_empty = true;
            for entry in &page.listing.entries[index..] {
                cookie = entry.cookie;
                let shown = if plus { self.listed(inode, &page, entry)? } else { None };
                if plus && shown.is_none() {
                    continue;
                }
                is_empty = false;
                let offset = cookie + AFTER_DOT_DOT;
                if !add(&Entry { offset, name: &entry.name, inode: entry.inode, kind: entry.kind, shown }) {
                    return Ok(());
                }
            }
            if !is_empty || page.listing.end {
                return Ok(());
            }
            // Nothing of this page exists any more. An empty answer would mean the end of the directory.
            (page, index) = directory.at(&self.pages, cookie, plus, false)?;
        }
    }

    /// Returns what an entry of a page is shown with, or `None` if it is gone.
    fn listed(&self, parent: InodeId, page: &Page, entry: &Dirent) -> Result<Option<Shown>, FsError> {
        let Some(mut attr) = entry.attr else { return Ok(None) };
        let name =
            Name::new(entry.name.clone()).map_err(|_| FsError::Protocol("a listed name that cannot be one".into()))?;
        // What this mount has changed since is shown as it was, but not for a moment longer: the next look asks.
        let is_changed =
            self.attrs.is_inode_changed(attr.inode, page.mark) || self.attrs.is_name_changed(parent, &name, page.mark);
        if !is_changed {
            self.attrs.learn(&attr, page.mark, page.asked);
            self.attrs.learn_name(parent, &name, attr.inode);
        }
        if attr.kind == Kind::File {
            self.files.overlay(&mut attr);
        }
        let age_ms = self.now().since(page.asked);
        Ok(Some(Shown { attr, ttl_ms: if is_changed { 0 } else { TTL_MS.saturating_sub(age_ms) } }))
    }
}
