//! Finding inodes and reading what they are.

use dfs_proto::{FsError, InodeId, Kind, Name};

use crate::core::outcome::{Body, Outcome};
use crate::core::view::{Stop, View};

/// Finds `name` in `parent`.
///
/// # Errors
///
/// [`FsError::NoEntry`], [`FsError::NotDirectory`]; [`Stop`].
pub(super) fn lookup(view: &View<'_>, parent: InodeId, name: &Name) -> Result<Outcome, Stop> {
    let Some(dentry) = view.find_dentry(parent, name)? else {
        // Tell a missing name from a parent that can have none.
        view.directory(parent)?;
        return Err(FsError::NoEntry.into());
    };
    getattr(view, dentry.inode)
}

/// Reads the attributes of an inode.
///
/// # Errors
///
/// [`FsError::NoEntry`]; [`Stop`].
pub(super) fn getattr(view: &View<'_>, inode: InodeId) -> Result<Outcome, Stop> {
    let inode = view.inode(inode)?;
    Ok(Outcome::read(view, Body::Entry { inode, is_created: false }))
}

/// Reads the target of a symlink.
///
/// # Errors
///
/// [`FsError::Invalid`] if it is none, as readlink(2) says; [`FsError::NoEntry`]; [`Stop`].
pub(super) fn readlink(view: &View<'_>, inode: InodeId) -> Result<Outcome, Stop> {
    if view.inode(inode)?.kind != Kind::Symlink {
        return Err(FsError::Invalid("not a symbolic link").into());
    }
    let target = view.inline(inode)?;
    Ok(Outcome::read(view, Body::Target(target)))
}
