//! Calls on open regular files: they begin and end here, what is between is the data path's.

use bytes::Bytes;
use dfs_proto::{FsError, InodeId, Kind, Name};

use super::attr::Attr;
use super::attr_cache::Shown;
use super::caller::Caller;
use super::file::{FileTable, HandleId, OpenOptions, Unwritten};
use super::filesystem::FileSystem;
use crate::remote::Make;

/// A file that was opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenFile {
    /// Its handle.
    pub handle: HandleId,
    /// The kernel's pages of it are still right.
    pub keep_cache: bool,
}

/// Returns whether a file that is opened with `flags`, as in open(2), can be written to through that.
pub fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl FileSystem {
    /// Opens a regular file; `flags` as in open(2), without O_TRUNC: the kernel truncates by a call of its own.
    ///
    /// # Errors
    ///
    /// `Stale` if it is gone: another mount may have given its name to another file, so that the kernel is to look again.
    pub fn open(&self, caller: Caller, inode: InodeId, flags: i32) -> Result<OpenFile, FsError> {
        let (asked, mark) = (self.now(), self.attrs.mark());
        let opened = self.master.open(caller, inode, may_write(flags)).map_err(|error| match error {
            FsError::NoEntry => FsError::Stale("the name leads to a file that is gone"),
            other => other,
        })?;
        self.attrs.learn(&opened.attr, mark, asked);
        let content = opened.attr.is_inline.then_some(opened.content);
        Ok(self.enter(&opened.attr, content, flags))
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    ///
    /// `Exists` (with O_EXCL), `NoEntry`, `NotDirectory`, `NoSpace`; `Stale` if somebody else made the file meanwhile: the
    /// kernel looks again, and checks whether the caller may open it.
    pub fn create(
        &self,
        caller: Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: i32,
    ) -> Result<(Shown, OpenFile), FsError> {
        let name = Name::new(name)?;
        let asked = self.now();
        let make = Make {
            parent,
            name: name.clone(),
            kind: Kind::File,
            mode,
            rdev: 0,
            target: Bytes::new(),
            open: true,
            exclusive: flags & libc::O_EXCL != 0,
        };
        let made = self.master.make(caller, &make)?;
        if !made.created {
            self.master.release(made.attr.inode);
            return Err(FsError::Stale("the name was made by somebody else meanwhile"));
        }
        self.attrs.add_name(parent, &name, &made.attr, made.time, asked);
        if let Err(error) = self.after_change_of(made.attr.seq) {
            self.master.release(made.attr.inode);
            return Err(error);
        }
        let open = self.enter(&made.attr, Some(Bytes::new()), flags);
        Ok((self.shown(made.attr, asked), open))
    }

    /// Ends a handle of `inode`: what is buffered goes out first.
    pub fn release(&self, inode: InodeId, handle: HandleId, may_have_written: bool) {
        let has_dirty = self.files.unwritten(handle) != Unwritten::Nothing;
        if may_have_written {
            // What the master said before the writes must not come to light again once the data path forgets the file.
            self.attrs.correct(inode, |attr| self.files.overlay(attr));
        }
        self.files.release(handle);
        if has_dirty {
            // Pages of a mapping, that came after the last close: what they made of the file only the master knows now.
            self.attrs.forget(inode);
        }
        self.master.release(inode);
    }

    /// Returns the data path, for calls on handles.
    pub fn data(&self) -> &FileTable {
        &self.files
    }

    fn enter(&self, attr: &Attr, content: Option<Bytes>, flags: i32) -> OpenFile {
        let options = OpenOptions { append: flags & libc::O_APPEND != 0, direct: flags & libc::O_DIRECT != 0 };
        let (handle, keep_cache) = self.files.open(attr, content, options);
        OpenFile { handle, keep_cache }
    }
}
