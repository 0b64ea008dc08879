//! The first inode of a new file system.

use dfs_proto::{InodeId, Kind, UnixNanos};

use crate::core::outcome::Outcome;
use crate::core::record::Inode;
use crate::core::view::{Stop, View};

/// Makes the root directory, unless it is there.
///
/// # Errors
///
/// [`Stop`].
pub fn make_root(view: &View<'_>, now: UnixNanos) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    if view.find(&crate::core::key::Key::Inode(InodeId::ROOT))?.is_none() {
        let mut root = Inode::new(InodeId::ROOT, Kind::Directory, 0o755, now);
        root.parent = InodeId::ROOT;
        outcome.make(root);
    }
    Ok(outcome)
}
