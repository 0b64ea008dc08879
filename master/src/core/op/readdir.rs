//! readdir(3), in pages that start after a cookie.

use dfs_proto::{FsError, InodeId};

use crate::core::key::{Key, Range};
use crate::core::outcome::{Body, Listed, Outcome};
use crate::core::record::Record;
use crate::core::view::{Stop, View};

/// Lists up to `limit` names of a directory whose cookies are above `after`, in the order of their cookies, with the
/// attributes of each if `plus`. "." and ".." are not among them.
///
/// A name that is there all the while is listed once, whatever else comes and goes: its cookie stays.
///
/// # Errors
///
/// [`FsError::NotDirectory`], [`FsError::NoEntry`]; [`Stop`].
pub(super) fn readdir(view: &View<'_>, inode: InodeId, after: u64, limit: usize, plus: bool) -> Result<Outcome, Stop> {
    let directory = view.directory(inode)?;
    let found = view.scan(Range::cookies(inode, after, limit))?;
    let mut entries: Vec<Listed> = found
        .iter()
        .map(|(key, record)| match (key, record) {
            (Key::Cookie(_, cookie), Record::Cookie(entry)) => Listed {
                cookie: *cookie,
                name: entry.name.clone(),
                inode: entry.inode,
                kind: entry.kind,
                attributes: None,
            },
            _ => unreachable!("a cookie key holds a cookie entry: records are decoded by their key"),
        })
        .collect();
    if plus {
        let keys: Vec<Key> = entries.iter().map(|entry| Key::Inode(entry.inode)).collect();
        for (entry, record) in entries.iter_mut().zip(view.find_all(&keys)?) {
            let Some(Record::Inode(inode)) = record else {
                return Err(FsError::Io(format!("inode {} has a name but no record", entry.inode)).into());
            };
            entry.attributes = Some(inode);
        }
    }
    let is_end = found.len() < limit;
    Ok(Outcome::read(view, Body::Listing { entries, is_end, parent: directory.parent }))
}
