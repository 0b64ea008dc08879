//! The operations, one POSIX idea a file: `fn(view, now, request) -> Result<Outcome, Stop>`.
//!
//! Each reads like its manual page. It asks for records, decides, and returns what is to change; a call that fails
//! changes nothing. Permission bits and the sticky bit are the kernel's to check (`default_permissions`), so no
//! operation looks at who calls, except to name the owner of what it makes.

mod allocate_chunks;
mod chunk_list;
mod commit_write;
mod cut;
mod entry;
mod get_chunks;
mod link;
mod lookup;
mod make;
mod mend;
mod node;
mod open;
mod punch_chunks;
mod purge;
mod raise_version;
mod readdir;
mod reclaim;
mod reclaim_unknown;
mod removal;
mod rename;
pub mod replica_set;
mod rmdir;
mod root;
mod session_open;
mod setattr;
mod statfs;
mod unlink;
mod xattr;

use dfs_proto::{FsError, InodeId, UnixNanos};

pub use chunk_list::DROPPED_AT_ONCE;
pub use cut::{cut_done, drop_more, pending};
pub use mend::mend;
pub use node::{drain_node, register_node, remove_node};
pub use purge::purge;
pub use raise_version::raise_version;
pub use reclaim::reclaim_done;
pub use reclaim_unknown::reclaim_unknown;
pub use root::make_root;
pub use session_open::session_open;

use super::outcome::{Body, OpenChange, Outcome};
use super::request::{Call, Request};
use super::view::{Stop, View};

/// A truncate or punch of the file has yet to zero or drop chunks: the caller waits for that and asks again.
pub const CUT_PENDING: FsError = FsError::TryAgain("a truncate is being finished");
/// The file has to leave its inline content before it can get this size: the caller sees to it and asks again.
pub const MUST_LEAVE_INLINE: FsError = FsError::Stale("the file must leave its inline content first");

/// Runs the operation that `call` asks for. Opening and closing sessions is not among them: that is for whoever keeps
/// the sessions.
///
/// # Errors
///
/// [`Stop`]; [`FsError::NotSupported`] for what is not an operation on records.
pub fn run(view: &View<'_>, now: UnixNanos, call: &Call) -> Result<Outcome, Stop> {
    match &call.request {
        Request::Lookup { parent, name } => lookup::lookup(view, *parent, name),
        Request::GetAttr { inode } => lookup::getattr(view, *inode),
        Request::SetAttr(request) => setattr::setattr(view, now, request),
        Request::Make(request) => make::make(view, now, call, request),
        Request::Unlink { parent, name } => unlink::unlink(view, now, *parent, name),
        Request::Rmdir { parent, name } => rmdir::rmdir(view, now, *parent, name),
        Request::Rename(request) => rename::rename(view, now, request),
        Request::Link { inode, parent, name } => link::link(view, now, *inode, *parent, name),
        Request::ReadLink { inode } => lookup::readlink(view, *inode),
        Request::Open { inode } => open::open(view, *inode),
        Request::Release { opens } => open::release(view, now, opens),
        Request::ReadDir { inode, after, limit, plus } => readdir::readdir(view, *inode, *after, *limit, *plus),
        Request::StatFs => Ok(statfs::statfs(view)),
        Request::SetXattr(request) => xattr::setxattr(view, now, request),
        Request::GetXattr { inode, name } => xattr::getxattr(view, *inode, name),
        Request::ListXattr { inode } => xattr::listxattr(view, *inode),
        Request::RemoveXattr { inode, name } => xattr::removexattr(view, now, *inode, name),
        Request::GetChunks { inode, first, count } => get_chunks::get_chunks(view, *inode, *first, *count),
        Request::AllocateChunks { inode, first, count } => {
            allocate_chunks::allocate_chunks(view, *inode, *first, *count)
        }
        Request::CommitWrite(request) => commit_write::commit_write(view, now, request),
        Request::GetInline { inode } => get_chunks::get_inline(view, *inode),
        Request::PunchChunks { inode, first, count, mtime } => {
            punch_chunks::punch_chunks(view, now, *inode, *first, *count, *mtime)
        }
        Request::SessionReclaim { opens, .. } => {
            let mut outcome = Outcome::new(view);
            // A retry counts nothing twice: what is listed is all that the session holds.
            let missing = |&(inode, count): &(InodeId, u64)| {
                let count = count.saturating_sub(view.opens.held(view.session, inode));
                OpenChange::Open { inode, count }
            };
            outcome.opens = opens.iter().map(missing).collect();
            Ok(outcome)
        }
        Request::Ping | Request::Sync => Ok(Outcome::read(view, Body::Done)),
        Request::SessionOpen(_) | Request::SessionClose => Err(FsError::NotSupported.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
