//! rename(2), with RENAME_NOREPLACE and RENAME_EXCHANGE.

use std::sync::Arc;

use dfs_proto::{FsError, InodeId, UnixNanos, limits};

use super::{entry, removal};
use crate::core::outcome::Outcome;
use crate::core::record::{Dentry, Inode};
use crate::core::request::Rename;
use crate::core::view::{Stop, View};

const NO_REPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

/// Gives an inode another name, in one step; whatever had that name before loses it.
///
/// Two names of the same inode: nothing happens, as POSIX asks.
///
/// # Errors
///
/// [`FsError::NoEntry`], [`FsError::NotDirectory`], [`FsError::IsDirectory`], [`FsError::NotEmpty`],
/// [`FsError::IntoItself`], [`FsError::Exists`] with RENAME_NOREPLACE, [`FsError::TooManyLinks`],
/// [`FsError::Invalid`], [`FsError::NotSupported`] for RENAME_WHITEOUT; [`Stop`].
pub(super) fn rename(view: &View<'_>, now: UnixNanos, request: &Rename) -> Result<Outcome, Stop> {
    check_flags(request.flags)?;
    view.directory(request.parent)?;
    let new_parent = view.directory(request.new_parent)?;
    let source = view.dentry(request.parent, &request.name)?;
    let target = view.find_dentry(request.new_parent, &request.new_name)?;
    if new_parent.nlink == 0 {
        return Err(FsError::NoEntry.into());
    }
    if request.flags & NO_REPLACE != 0 && target.is_some() {
        return Err(FsError::Exists.into());
    }
    if request.flags & EXCHANGE != 0 && target.is_none() {
        return Err(FsError::NoEntry.into());
    }
    let moved = view.inode(source.inode)?;
    if moved.is_directory() {
        check_not_below(view, request.new_parent, moved.id)?;
    }
    match target {
        Some(target) if target.inode == source.inode => Ok(Outcome::new(view)),
        Some(target) if request.flags & EXCHANGE != 0 => exchange(view, now, request, (&source, &moved), &target),
        target => replace(view, now, request, (&source, &moved), target.as_ref()),
    }
}

fn check_flags(flags: u32) -> Result<(), FsError> {
    if flags & WHITEOUT != 0 {
        return Err(FsError::NotSupported);
    }
    if flags & !(NO_REPLACE | EXCHANGE) != 0 || flags == NO_REPLACE | EXCHANGE {
        return Err(FsError::Invalid("flags of rename"));
    }
    Ok(())
}

/// Refuses to put directory `moved` into itself or anything below it.
fn check_not_below(view: &View<'_>, new_parent: InodeId, moved: InodeId) -> Result<(), Stop> {
    let mut at = new_parent;
    loop {
        if at == moved {
            return Err(FsError::IntoItself.into());
        }
        if at == InodeId::ROOT {
            return Ok(());
        }
        let directory = view.directory(at)?;
        if directory.nlink == 0 {
            // A removed directory hangs on nothing any more.
            return Ok(());
        }
        at = directory.parent;
    }
}

fn replace(
    view: &View<'_>,
    now: UnixNanos,
    request: &Rename,
    (source, moved): (&Dentry, &Arc<Inode>),
    target: Option<&Dentry>,
) -> Result<Outcome, Stop> {
    let replaced = target.map(|target| view.inode(target.inode)).transpose()?;
    if let Some(replaced) = &replaced {
        match (moved.is_directory(), replaced.is_directory()) {
            (true, false) => return Err(FsError::NotDirectory.into()),
            (false, true) => {
                // do_renameat2() looks at where the directory is before it looks at what is moved.
                return Err(match check_not_below(view, request.parent, replaced.id) {
                    Ok(()) => FsError::IsDirectory.into(),
                    Err(Stop::Fail(FsError::IntoItself)) => FsError::NotEmpty.into(),
                    Err(stop) => stop,
                });
            }
            (true, true) if replaced.entries > 0 => return Err(FsError::NotEmpty.into()),
            _ => {}
        }
    }
    let is_other_parent = request.parent != request.new_parent;
    let is_new_subdirectory = moved.is_directory() && is_other_parent && replaced.is_none();
    if is_new_subdirectory && view.directory(request.new_parent)?.nlink >= limits::LINKS_MAX {
        return Err(FsError::TooManyLinks.into());
    }

    let mut outcome = Outcome::new(view);
    if let (Some(target), Some(replaced)) = (target, &replaced) {
        entry::remove(&mut outcome, view, now, request.new_parent, &request.new_name, target.cookie)?;
        if replaced.is_directory() {
            outcome.edit_directory(view, request.new_parent, |parent| parent.nlink -= 1)?;
        }
        removal::lose_name(&mut outcome, view, now, replaced.id)?;
    }
    entry::remove(&mut outcome, view, now, request.parent, &request.name, source.cookie)?;
    // A listing that is under way must not meet the file again: within a directory it keeps its place.
    let cookie = (!is_other_parent).then_some(source.cookie);
    entry::add(&mut outcome, view, now, request.new_parent, &request.new_name, (moved.id, moved.kind), cookie)?;
    if moved.is_directory() && is_other_parent {
        outcome.edit_directory(view, request.parent, |parent| parent.nlink -= 1)?;
        outcome.edit_directory(view, request.new_parent, |parent| parent.nlink += 1)?;
    }
    outcome.edit(view, moved.id, |inode| settle_in(inode, request.new_parent, now))?;
    Ok(outcome)
}

fn exchange(
    view: &View<'_>,
    now: UnixNanos,
    request: &Rename,
    (source, moved): (&Dentry, &Arc<Inode>),
    target: &Dentry,
) -> Result<Outcome, Stop> {
    let other = view.inode(target.inode)?;
    if other.is_directory() {
        check_not_below(view, request.parent, other.id)?;
    }
    let (parent, new_parent) = (request.parent, request.new_parent);
    let mut outcome = Outcome::new(view);
    entry::remove(&mut outcome, view, now, parent, &request.name, source.cookie)?;
    entry::remove(&mut outcome, view, now, new_parent, &request.new_name, target.cookie)?;
    let (here, there) = ((other.id, other.kind), (moved.id, moved.kind));
    entry::add(&mut outcome, view, now, parent, &request.name, here, Some(source.cookie))?;
    entry::add(&mut outcome, view, now, new_parent, &request.new_name, there, Some(target.cookie))?;
    if parent != new_parent && moved.is_directory() != other.is_directory() {
        let (loses, gains) = if moved.is_directory() { (parent, new_parent) } else { (new_parent, parent) };
        if view.directory(gains)?.nlink >= limits::LINKS_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        outcome.edit_directory(view, loses, |directory| directory.nlink -= 1)?;
        outcome.edit_directory(view, gains, |directory| directory.nlink += 1)?;
    }
    outcome.edit(view, moved.id, |inode| settle_in(inode, new_parent, now))?;
    outcome.edit(view, other.id, |inode| settle_in(inode, parent, now))?;
    Ok(outcome)
}

fn settle_in(inode: &mut Inode, parent: InodeId, now: UnixNanos) {
    if inode.is_directory() {
        inode.parent = parent;
    }
    inode.touch_attributes(now);
}
