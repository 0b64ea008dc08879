//! unlink(2).

use dfs_proto::{FsError, InodeId, Kind, Name, UnixNanos};

use super::{entry, removal};
use crate::core::outcome::Outcome;
use crate::core::view::{Stop, View};

/// Removes `name` from `parent`, and the inode too once nothing refers to it.
///
/// An open file outlives its last name: the inode then stays as an orphan, with `nlink` 0, until the last handle
/// closes, as unlink(2) promises.
///
/// # Errors
///
/// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::IsDirectory`] (POSIX names EPERM, Linux answers
/// EISDIR); [`Stop`].
pub(super) fn unlink(view: &View<'_>, now: UnixNanos, parent: InodeId, name: &Name) -> Result<Outcome, Stop> {
    view.directory(parent)?;
    let dentry = view.dentry(parent, name)?;
    if dentry.kind == Kind::Directory {
        return Err(FsError::IsDirectory.into());
    }
    let mut outcome = Outcome::new(view);
    entry::remove(&mut outcome, view, now, parent, name, dentry.cookie)?;
    removal::lose_name(&mut outcome, view, now, dentry.inode)?;
    Ok(outcome)
}
