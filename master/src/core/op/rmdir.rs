//! rmdir(2).

use dfs_proto::{FsError, InodeId, Kind, Name, UnixNanos};

use super::{entry, removal};
use crate::core::outcome::Outcome;
use crate::core::view::{Stop, View};

/// Removes the empty directory `name` from `parent`.
///
/// # Errors
///
/// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::NotEmpty`]; [`Stop`].
pub(super) fn rmdir(view: &View<'_>, now: UnixNanos, parent: InodeId, name: &Name) -> Result<Outcome, Stop> {
    view.directory(parent)?;
    let dentry = view.dentry(parent, name)?;
    if dentry.kind != Kind::Directory {
        return Err(FsError::NotDirectory.into());
    }
    if view.inode(dentry.inode)?.entries > 0 {
        return Err(FsError::NotEmpty.into());
    }
    let mut outcome = Outcome::new(view);
    entry::remove(&mut outcome, view, now, parent, name, dentry.cookie)?;
    outcome.edit_directory(view, parent, |parent| parent.nlink -= 1)?;
    removal::lose_name(&mut outcome, view, now, dentry.inode)?;
    Ok(outcome)
}
