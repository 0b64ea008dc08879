//! Names in a directory: the dentry, the cookie it is listed by, and what the directory itself remembers.

use dfs_proto::{InodeId, Kind, Name, UnixNanos};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{CookieEntry, Dentry, Record};
use crate::core::view::{Stop, View};

/// Adds `name` to `parent`, pointing at an inode. A name that takes the place of another in the same directory keeps
/// that one's `cookie`.
///
/// # Errors
///
/// As [`View::directory`].
pub(super) fn add(
    outcome: &mut Outcome,
    view: &View<'_>,
    now: UnixNanos,
    parent: InodeId,
    name: &Name,
    (inode, kind): (InodeId, Kind),
    cookie: Option<u64>,
) -> Result<(), Stop> {
    let directory = outcome.edit_directory(view, parent, |directory| {
        directory.entries += 1;
        if cookie.is_none() {
            directory.next_cookie += 1;
        }
        directory.touch_content(now);
    })?;
    let cookie = cookie.unwrap_or(directory.next_cookie - 1);
    let seq = outcome.seq();
    outcome.put(Key::Dentry(parent, name.clone()), Record::Dentry(Dentry { inode, kind, cookie, seq }));
    outcome.put(Key::Cookie(parent, cookie), Record::Cookie(CookieEntry { name: name.clone(), inode, kind, seq }));
    Ok(())
}

/// Takes `name` with its `cookie` out of `parent`.
///
/// # Errors
///
/// As [`View::directory`].
pub(super) fn remove(
    outcome: &mut Outcome,
    view: &View<'_>,
    now: UnixNanos,
    parent: InodeId,
    name: &Name,
    cookie: u64,
) -> Result<(), Stop> {
    outcome.edit_directory(view, parent, |directory| {
        directory.entries -= 1;
        directory.touch_content(now);
    })?;
    outcome.delete(Key::Dentry(parent, name.clone()));
    outcome.delete(Key::Cookie(parent, cookie));
    Ok(())
}
