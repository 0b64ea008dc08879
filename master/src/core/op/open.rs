//! open(2) of what exists, and the last close.

use bytes::Bytes;
use dfs_proto::{FsError, InodeId, Kind, UnixNanos};

use super::removal;
use crate::core::key::Key;
use crate::core::outcome::{Body, OpenChange, Outcome};
use crate::core::record::{Inode, Record};
use crate::core::view::{Stop, View};

/// Opens an inode; the content of an inline file comes along.
///
/// # Errors
///
/// [`FsError::NoEntry`]; [`Stop`].
pub(super) fn open(view: &View<'_>, inode: InodeId) -> Result<Outcome, Stop> {
    let opened = view.inode(inode)?;
    let content = inline_content(view, &opened)?;
    let mut outcome = Outcome::read(view, Body::Opened { inode: opened, content, is_created: false });
    outcome.opens.push(OpenChange::Open { inode, count: 1 });
    Ok(outcome)
}

/// Returns the content of an inline file; of any other inode, nothing.
///
/// # Errors
///
/// [`Stop::Read`].
pub(super) fn inline_content(view: &View<'_>, inode: &Inode) -> Result<Bytes, Stop> {
    if inode.kind == Kind::File && inode.is_inline && inode.size > 0 { view.inline(inode.id) } else { Ok(Bytes::new()) }
}

/// Gives back opens, each inode named once. An orphan goes with the last of them.
///
/// # Errors
///
/// [`Stop`].
pub(super) fn release(view: &View<'_>, now: UnixNanos, opens: &[(InodeId, u64)]) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    for &(inode, count) in opens {
        outcome.opens.push(OpenChange::Release { inode, count });
        if !view.opens.is_last(view.session, inode, count) || view.opens.held(view.session, inode) == 0 {
            continue;
        }
        match view.find(&Key::Inode(inode))? {
            Some(Record::Inode(orphan)) if orphan.nlink == 0 => {
                removal::close_orphan(&mut outcome, view, now, &orphan)?;
            }
            // Gone already: an earlier release of it was the last one.
            _ => {}
        }
    }
    Ok(outcome)
}

/// Refuses an inode that is not a regular file.
///
/// # Errors
///
/// [`FsError::IsDirectory`], [`FsError::Invalid`].
pub(super) fn check_file(kind: Kind) -> Result<(), FsError> {
    match kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid("not a regular file")),
    }
}
