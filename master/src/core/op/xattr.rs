//! Extended attributes: setxattr(2), getxattr(2), listxattr(2), removexattr(2).

use bytes::Bytes;
use dfs_proto::{FsError, InodeId, UnixNanos, limits};

use crate::core::key::{Key, Range};
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Record, Xattr};
use crate::core::request::SetXattr;
use crate::core::view::{Stop, View};

/// Sets an attribute.
///
/// # Errors
///
/// [`FsError::Exists`] with `create`, [`FsError::NoAttribute`] with `replace`, [`FsError::NoSpace`] if the names of
/// all attributes would be more than a list can hold; [`Stop`].
pub(super) fn setxattr(view: &View<'_>, now: UnixNanos, request: &SetXattr) -> Result<Outcome, Stop> {
    let inode = view.inode(request.inode)?;
    let key = Key::Xattr(request.inode, request.name.clone());
    let exists = view.find(&key)?.is_some();
    if exists && request.create {
        return Err(FsError::Exists.into());
    }
    if !exists && request.replace {
        return Err(FsError::NoAttribute.into());
    }
    let name_bytes = request.name.len() as u32 + 1;
    if !exists && (inode.xattr_name_bytes + name_bytes) as usize > limits::XATTR_LIST_BYTES_MAX {
        return Err(FsError::NoSpace.into());
    }
    let mut outcome = Outcome::new(view);
    outcome.edit(view, request.inode, |inode| {
        if !exists {
            inode.xattrs += 1;
            inode.xattr_name_bytes += name_bytes;
        }
        inode.touch_attributes(now);
    })?;
    let seq = outcome.seq();
    outcome.put(key, Record::Xattr(Xattr { value: request.value.clone(), seq }));
    Ok(outcome)
}

/// Reads an attribute.
///
/// # Errors
///
/// [`FsError::NoAttribute`], [`FsError::NoEntry`]; [`Stop`].
pub(super) fn getxattr(view: &View<'_>, inode: InodeId, name: &Bytes) -> Result<Outcome, Stop> {
    // Most files have none, and the kernel asks for security.capability at every write.
    if view.inode(inode)?.xattrs == 0 {
        return Err(FsError::NoAttribute.into());
    }
    match view.find(&Key::Xattr(inode, name.clone()))? {
        Some(Record::Xattr(xattr)) => Ok(Outcome::read(view, Body::XattrValue(xattr.value))),
        _ => Err(FsError::NoAttribute.into()),
    }
}

/// Lists the names of all attributes.
///
/// # Errors
///
/// [`FsError::NoEntry`]; [`Stop`].
pub(super) fn listxattr(view: &View<'_>, inode: InodeId) -> Result<Outcome, Stop> {
    if view.inode(inode)?.xattrs == 0 {
        return Ok(Outcome::read(view, Body::XattrNames(Vec::new())));
    }
    let found = view.scan(Range::xattrs(inode))?;
    let names = found.iter().filter_map(|(key, _)| match key {
        Key::Xattr(_, name) => Some(name.clone()),
        _ => None,
    });
    Ok(Outcome::read(view, Body::XattrNames(names.collect())))
}

/// Removes an attribute.
///
/// # Errors
///
/// [`FsError::NoAttribute`], [`FsError::NoEntry`]; [`Stop`].
pub(super) fn removexattr(view: &View<'_>, now: UnixNanos, inode: InodeId, name: &Bytes) -> Result<Outcome, Stop> {
    view.inode(inode)?;
    let key = Key::Xattr(inode, name.clone());
    if view.find(&key)?.is_none() {
        return Err(FsError::NoAttribute.into());
    }
    let mut outcome = Outcome::new(view);
    outcome.edit(view, inode, |inode| {
        inode.xattrs -= 1;
        inode.xattr_name_bytes -= name.len() as u32 + 1;
        inode.touch_attributes(now);
    })?;
    outcome.delete(key);
    Ok(outcome)
}
