//! mkdir(2), mknod(2), symlink(2), and open(2) with O_CREAT.

use dfs_proto::{FsError, InodeId, Kind, limits};

use super::{entry, open};
use crate::core::key::Key;
use crate::core::outcome::{Body, OpenChange, Outcome};
use crate::core::record::{Inline, Inode, Record};
use crate::core::request::{Call, Make};
use crate::core::view::{Stop, View};
use dfs_proto::UnixNanos;

const SET_GROUP_ID: u32 = 0o2000;

/// Makes an inode under a new name; with `open` and without `exclusive`, opens the regular file that is there.
///
/// In a directory with the set-group-id bit the new inode gets the directory's group, and a new directory the bit too
/// (inode(7)).
///
/// # Errors
///
/// [`FsError::Exists`], [`FsError::NotDirectory`], [`FsError::NoEntry`] in a removed directory,
/// [`FsError::TooManyLinks`] for a directory too many, [`FsError::Invalid`]; [`Stop`].
pub(super) fn make(view: &View<'_>, now: UnixNanos, call: &Call, request: &Make) -> Result<Outcome, Stop> {
    let parent = view.directory(request.parent)?;
    if let Some(dentry) = view.find_dentry(request.parent, &request.name)? {
        return match (request.open && !request.exclusive, dentry.kind) {
            (true, Kind::File) => open::open(view, dentry.inode),
            (true, Kind::Directory) => Err(FsError::IsDirectory.into()),
            _ => Err(FsError::Exists.into()),
        };
    }
    if parent.nlink == 0 {
        // Removed, but still open or somebody's working directory.
        return Err(FsError::NoEntry.into());
    }
    check(&parent, request)?;

    let id = view.new_inode_id()?;
    let mut inode = Inode::new(id, request.kind, request.mode, now);
    inode.uid = call.uid;
    inode.gid = call.gid;
    if parent.mode & SET_GROUP_ID != 0 {
        inode.gid = parent.gid;
        if request.kind == Kind::Directory {
            inode.mode |= SET_GROUP_ID;
        }
    }
    inode.chunk_size_log2 = parent.chunk_size_log2;
    inode.replicas = parent.replicas;

    let mut outcome = Outcome::new(view);
    match request.kind {
        Kind::Directory => {
            inode.parent = request.parent;
            outcome.edit_directory(view, request.parent, |parent| parent.nlink += 1)?;
        }
        Kind::Symlink => {
            inode.mode = 0o777;
            inode.size = request.target.len() as u64;
            let seq = outcome.seq();
            let content = request.target.clone();
            outcome.put(Key::Inline(id), Record::Inline(Inline { content, seq }));
        }
        Kind::CharDevice | Kind::BlockDevice => inode.rdev = request.rdev,
        Kind::File | Kind::Fifo | Kind::Socket => {}
    }
    entry::add(&mut outcome, view, now, request.parent, &request.name, (id, request.kind), None)?;
    outcome.make(inode);
    finish(outcome, view, id, request.open)
}

fn check(parent: &Inode, request: &Make) -> Result<(), FsError> {
    match request.kind {
        Kind::Directory if parent.nlink >= limits::LINKS_MAX => Err(FsError::TooManyLinks),
        Kind::Symlink if request.target.is_empty() => Err(FsError::NoEntry),
        Kind::Symlink if request.target.len() > limits::SYMLINK_BYTES_MAX => Err(FsError::NameTooLong),
        kind if request.open && kind != Kind::File => Err(FsError::Invalid("only regular files are made open")),
        _ => Ok(()),
    }
}

fn finish(mut outcome: Outcome, view: &View<'_>, id: InodeId, open: bool) -> Result<Outcome, Stop> {
    let inode = outcome.inode(view, id)?;
    outcome.reply = if open {
        outcome.opens.push(OpenChange::Open { inode: id, count: 1 });
        Body::Opened { inode, content: bytes::Bytes::new(), is_created: true }
    } else {
        Body::Entry { inode, is_created: true }
    };
    Ok(outcome)
}
