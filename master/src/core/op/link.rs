//! link(2).

use dfs_proto::{FsError, InodeId, Name, UnixNanos, limits};

use super::entry;
use crate::core::outcome::{Body, Outcome};
use crate::core::view::{Stop, View};

/// Gives `inode` one more name.
///
/// # Errors
///
/// [`FsError::NotPermitted`] for a directory, [`FsError::NoEntry`] for an orphan (it has no name to link from),
/// [`FsError::TooManyLinks`], [`FsError::Exists`], [`FsError::NotDirectory`]; [`Stop`].
pub(super) fn link(
    view: &View<'_>,
    now: UnixNanos,
    inode: InodeId,
    parent: InodeId,
    name: &Name,
) -> Result<Outcome, Stop> {
    let directory = view.directory(parent)?;
    let linked = view.inode(inode)?;
    // In the order of Linux: do_linkat(), may_create(), vfs_link().
    if view.find_dentry(parent, name)?.is_some() {
        return Err(FsError::Exists.into());
    }
    if directory.nlink == 0 {
        return Err(FsError::NoEntry.into());
    }
    if linked.is_directory() {
        return Err(FsError::NotPermitted.into());
    }
    if linked.nlink == 0 {
        return Err(FsError::NoEntry.into());
    }
    if linked.nlink >= limits::LINKS_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let mut outcome = Outcome::new(view);
    entry::add(&mut outcome, view, now, parent, name, (inode, linked.kind), None)?;
    let inode = outcome.edit(view, inode, |inode| {
        inode.nlink += 1;
        inode.touch_attributes(now);
    })?;
    Ok(outcome.reply(Body::Entry { inode, is_created: false }))
}
