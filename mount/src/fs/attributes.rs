//! Calls on inodes: attributes, extended attributes, room.

use bytes::Bytes;
use dfs_proto::limits::XATTR_NAME_BYTES_MAX;
use dfs_proto::{FsError, InodeId, Kind};

use super::attr_cache::{Shown, TTL_MS};
use super::caller::Caller;
use super::filesystem::FileSystem;
use crate::remote::{AttrChange, StatFs, TimeChange};

impl FileSystem {
    /// Returns the attributes of an inode if they can be told without asking the master.
    pub fn known_attr(&self, inode: InodeId) -> Option<Shown> {
        let mut shown = self.attrs.get(inode, self.now())?;
        if shown.attr.kind == Kind::File {
            self.files.overlay(&mut shown.attr);
        }
        Some(shown)
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    ///
    /// `Stale` if it is gone.
    pub fn get_attr(&self, inode: InodeId) -> Result<Shown, FsError> {
        if let Some(shown) = self.known_attr(inode) {
            return Ok(shown);
        }
        let (asked, mark) = (self.now(), self.attrs.mark());
        let attr = match self.master.get_attr(inode) {
            Ok(attr) => attr,
            Err(FsError::NoEntry) => {
                // A name may lead to another file by now: the kernel looks again.
                let gone = FsError::Stale("the name leads to a file that is gone");
                let attr = self.attrs.removed(inode).ok_or(gone)?;
                return Ok(Shown { attr, ttl_ms: TTL_MS });
            }
            Err(error) => return Err(error),
        };
        self.attrs.learn(&attr, mark, asked);
        Ok(self.shown(attr, asked))
    }

    /// Changes attributes, the size among them perhaps.
    ///
    /// # Errors
    ///
    /// `NotPermitted`, `IsDirectory`, `Invalid`, `FileTooBig`, and those of pushing what is buffered.
    pub fn set_attr(&self, caller: Caller, inode: InodeId, mut change: AttrChange) -> Result<Shown, FsError> {
        let asked = self.now();
        // A change of owner takes the rights that went with the old one, whoever makes it (chown(2)); a truncation does
        // so unless the caller may set them anyway.
        let is_privileged = caller.uid == 0;
        change.clear_suid_sgid |=
            change.uid.is_some() || change.gid.is_some() || (change.size.is_some() && !is_privileged);
        let attr = match change.size {
            Some(size) => {
                let known = self.get_attr(inode)?.attr;
                match known.kind {
                    Kind::File => {}
                    Kind::Directory => return Err(FsError::IsDirectory),
                    _ => return Err(FsError::Invalid("no regular file")),
                }
                let send = || self.master.set_attr(caller, inode, &change);
                self.files.truncate(&known, size, send)?
            }
            None => {
                // What is buffered would set its own mtime, or bring back set-id bits, when it is pushed later.
                let is_after_writes = change.mode.is_some()
                    || change.mtime != TimeChange::Keep
                    || change.atime != TimeChange::Keep
                    || change.clear_suid_sgid;
                if is_after_writes {
                    self.files.settle(inode)?;
                }
                self.master.set_attr(caller, inode, &change)?
            }
        };
        self.attrs.change(&attr, asked);
        self.after_change_of(attr.seq)?;
        Ok(self.shown(attr, asked))
    }

    /// Returns how much room there is.
    ///
    /// # Errors
    ///
    /// Those of the master.
    pub fn stat_fs(&self) -> Result<StatFs, FsError> {
        self.master.stat_fs()
    }

    /// Sets an extended attribute; `flags` as in setxattr(2).
    ///
    /// # Errors
    ///
    /// `NotSupported` for namespaces dfs has not; `Exists`, `NoAttribute`, `AttributeTooBig`.
    pub fn set_xattr(
        &self,
        caller: Caller,
        inode: InodeId,
        name: Bytes,
        value: Bytes,
        flags: u32,
    ) -> Result<(), FsError> {
        let name = writable_xattr(name)?;
        self.master.set_xattr(caller, inode, name, value, flags)?;
        self.attrs.forget(inode);
        self.after_change()
    }

    /// Returns whether what is to be said of an extended attribute of this name is known without asking the master.
    pub fn is_xattr_known(name: &[u8]) -> bool {
        !matches!(Xattr::of(name), Ok(Xattr::Stored))
    }

    /// Returns an extended attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotSupported`.
    pub fn get_xattr(&self, caller: Caller, inode: InodeId, name: Bytes) -> Result<Bytes, FsError> {
        match Xattr::of(&name)? {
            Xattr::Stored => self.master.get_xattr(caller, inode, name),
            Xattr::NeverThere => Err(FsError::NoAttribute),
        }
    }

    /// Returns the names of all extended attributes, each followed by a NUL.
    ///
    /// # Errors
    ///
    /// Those of the master.
    pub fn list_xattr(&self, caller: Caller, inode: InodeId) -> Result<Vec<u8>, FsError> {
        let names = self.master.list_xattr(caller, inode)?;
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotSupported`.
    pub fn remove_xattr(&self, caller: Caller, inode: InodeId, name: Bytes) -> Result<(), FsError> {
        let name = writable_xattr(name)?;
        self.master.remove_xattr(caller, inode, name)?;
        self.attrs.forget(inode);
        self.after_change()
    }
}

/// What becomes of an extended attribute's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Xattr {
    /// It is the master's.
    Stored,
    /// Nobody can set it, so it is not there: no need to ask.
    NeverThere,
}

impl Xattr {
    fn of(name: &[u8]) -> Result<Self, FsError> {
        if name.len() > XATTR_NAME_BYTES_MAX {
            return Err(FsError::Invalid("the name of an extended attribute is too long"));
        }
        // The kernel asks for it before writes and execs. To keep one would oblige us to drop it at each write.
        if name == b"security.capability" {
            return Ok(Self::NeverThere);
        }
        let namespaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
        if namespaces.iter().any(|namespace| name.starts_with(namespace)) {
            return Ok(Self::Stored);
        }
        // `system.`: ACLs, which are missing.
        Err(FsError::NotSupported)
    }
}

fn writable_xattr(name: Bytes) -> Result<Bytes, FsError> {
    match Xattr::of(&name)? {
        Xattr::Stored => Ok(name),
        Xattr::NeverThere => Err(FsError::NotSupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_that_are_kept_reach_the_master() {
        assert_eq!(Xattr::of(b"user.a"), Ok(Xattr::Stored));
        assert_eq!(Xattr::of(b"trusted.a"), Ok(Xattr::Stored));
        assert_eq!(Xattr::of(b"security.selinux"), Ok(Xattr::Stored));
        assert_eq!(Xattr::of(b"security.capability"), Ok(Xattr::NeverThere));
        assert_eq!(Xattr::of(b"system.posix_acl_access"), Err(FsError::NotSupported));
        assert_eq!(writable_xattr(Bytes::from_static(b"security.capability")), Err(FsError::NotSupported));
    }
}
