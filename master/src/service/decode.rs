//! Messages of mounts into requests, every limit checked; replies into messages.

use std::collections::BTreeMap;

use bytes::Bytes;
use dfs_proto::limits::{
    INLINE_BYTES_MAX, LISTING_ENTRIES_MAX, LOCATIONS_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX,
};
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::{ChunkIndex, FsError, InodeId, Kind, Name, Seq, SessionId, UnixNanos};

use crate::core::outcome::{Body, Listed};
use crate::core::record::Inode;
use crate::core::request::{Call, CommitWrite, Make, Rename, Replay, Request, SessionOpen, SetAttr, SetTime, SetXattr};

/// Most bytes of any text a mount says of itself.
const TEXT_BYTES_MAX: usize = 1_024;
/// Most inodes in one reclaim or release.
const OPENS_MAX: usize = 65_536;
/// Most chunks named by one commit.
const WRITTEN_MAX: usize = 4_096;
/// Most names from the root to the directory that is mounted.
const SUBDIR_NAMES_MAX: usize = 256;

/// What a mount can ask the master for.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// An operation on the records.
    Call(Box<Call>),
    /// To wait until the log is durable up to a position; 0: all of it.
    Sync(Seq),
    /// A replica with wrong bytes was met.
    BadReplica(pb::ReportBadReplica),
}

/// Returns what `message`, of a connection of `session`, asks for.
///
/// # Errors
///
/// [`FsError::Protocol`] for what no mount of any version sends; else what the call would fail with whatever the
/// records say.
pub(super) fn request(session: SessionId, message: pb::MetaRequest) -> Result<Asked, FsError> {
    let body = message.body.ok_or_else(|| FsError::Protocol("a request without a body".into()))?;
    let request = match body {
        meta_request::Body::Sync(sync) => return Ok(Asked::Sync(Seq(sync.seq))),
        meta_request::Body::ReportBadReplica(report) => return Ok(Asked::BadReplica(report)),
        body => request_body(body)?,
    };
    let replay = message.replay.map(|replay| Replay { time: UnixNanos(replay.time), inode: InodeId(replay.inode) });
    Ok(Asked::Call(Box::new(Call {
        session,
        number: message.number,
        acked_below: message.acked_below,
        uid: message.uid,
        gid: message.gid,
        replay,
        request,
    })))
}

fn request_body(body: meta_request::Body) -> Result<Request, FsError> {
    use meta_request::Body as B;
    Ok(match body {
        B::Sync(_) | B::ReportBadReplica(_) => return Err(FsError::NotSupported),
        B::SessionOpen(open) => Request::SessionOpen(session_open(open)?),
        B::SessionReclaim(reclaim) => Request::SessionReclaim { opens: opens(reclaim.opens)?, is_last: reclaim.last },
        B::SessionClose(_) => Request::SessionClose,
        B::Ping(_) => Request::Ping,
        B::Lookup(lookup) if &lookup.name[..] == b"." => Request::GetAttr { inode: inode(lookup.parent)? },
        B::Lookup(lookup) => Request::Lookup { parent: inode(lookup.parent)?, name: Name::new(lookup.name)? },
        B::GetAttr(get) => Request::GetAttr { inode: inode(get.inode)? },
        B::SetAttr(set) => Request::SetAttr(set_attr(&set)?),
        B::Make(make) => Request::Make(self::make(make)?),
        B::Unlink(unlink) => Request::Unlink { parent: inode(unlink.parent)?, name: Name::new(unlink.name)? },
        B::Rmdir(rmdir) => Request::Rmdir { parent: inode(rmdir.parent)?, name: Name::new(rmdir.name)? },
        B::Rename(rename) => Request::Rename(Rename {
            parent: inode(rename.parent)?,
            name: Name::new(rename.name)?,
            new_parent: inode(rename.new_parent)?,
            new_name: Name::new(rename.new_name)?,
            flags: rename.flags,
        }),
        B::Link(link) => {
            Request::Link { inode: inode(link.inode)?, parent: inode(link.parent)?, name: Name::new(link.name)? }
        }
        B::ReadLink(read) => Request::ReadLink { inode: inode(read.inode)? },
        B::Open(open) => Request::Open { inode: inode(open.inode)? },
        B::Release(release) => Request::Release { opens: opens(release.opens)? },
        B::ReadDir(read) => Request::ReadDir {
            inode: inode(read.inode)?,
            after: read.after,
            limit: match read.limit {
                0 => LISTING_ENTRIES_MAX,
                limit => limit.min(LISTING_ENTRIES_MAX),
            } as usize,
            plus: read.plus,
        },
        B::StatFs(_) => Request::StatFs,
        B::SetXattr(set) => Request::SetXattr(set_xattr(set)?),
        B::GetXattr(get) => Request::GetXattr { inode: inode(get.inode)?, name: xattr_name(get.name)? },
        B::ListXattr(list) => Request::ListXattr { inode: inode(list.inode)? },
        B::RemoveXattr(remove) => Request::RemoveXattr { inode: inode(remove.inode)?, name: xattr_name(remove.name)? },
        B::GetChunks(get) => Request::GetChunks {
            inode: inode(get.inode)?,
            first: ChunkIndex(get.first),
            count: places(get.first, get.count)?,
        },
        B::AllocateChunks(allocate) => Request::AllocateChunks {
            inode: inode(allocate.inode)?,
            first: ChunkIndex(allocate.first),
            count: places(allocate.first, allocate.count)?,
        },
        B::CommitWrite(commit) => Request::CommitWrite(commit_write(commit)?),
        B::GetInline(get) => Request::GetInline { inode: inode(get.inode)? },
        B::PunchChunks(punch) if punch.count > 0 => Request::PunchChunks {
            inode: inode(punch.inode)?,
            first: ChunkIndex(punch.first),
            count: punch.count,
            mtime: UnixNanos(punch.mtime),
        },
        B::PunchChunks(_) => return Err(FsError::Invalid("no chunk is named")),
    })
}

fn inode(id: u64) -> Result<InodeId, FsError> {
    if id == 0 { Err(FsError::Protocol("inode 0".into())) } else { Ok(InodeId(id)) }
}

/// Checks a range of chunk places, and returns how many.
fn places(first: u32, count: u32) -> Result<u32, FsError> {
    match count {
        0 => Err(FsError::Invalid("no chunk is named")),
        count if count > LOCATIONS_MAX => Err(FsError::Invalid("more chunks than one reply holds")),
        count if first.checked_add(count - 1).is_none() => Err(FsError::FileTooBig),
        count => Ok(count),
    }
}

fn text(text: String) -> Result<String, FsError> {
    if text.len() > TEXT_BYTES_MAX { Err(FsError::Protocol("a text is too long".into())) } else { Ok(text) }
}

fn session_open(open: pb::SessionOpen) -> Result<SessionOpen, FsError> {
    if open.client_id.len() != 16 {
        return Err(FsError::Protocol("a client id has 16 bytes".into()));
    }
    let subdir: Vec<Name> = open
        .subdir
        .split('/')
        .filter(|name| !name.is_empty())
        .take(SUBDIR_NAMES_MAX + 1)
        .map(|name| Name::new(name.as_bytes().to_vec()))
        .collect::<Result<_, _>>()?;
    if subdir.len() > SUBDIR_NAMES_MAX {
        return Err(FsError::NameTooLong);
    }
    Ok(SessionOpen {
        client_id: open.client_id,
        host: text(open.host)?,
        mount_point: text(open.mount_point)?,
        software: text(open.software)?,
        metrics_address: text(open.metrics_address)?,
        subdir,
        is_read_only: open.read_only,
    })
}

fn opens(counts: Vec<pb::OpenCount>) -> Result<Vec<(InodeId, u64)>, FsError> {
    if counts.len() > OPENS_MAX {
        return Err(FsError::Protocol("too many opens in one message".into()));
    }
    // One that is named twice counts once, with the sum.
    let mut merged: BTreeMap<InodeId, u64> = BTreeMap::new();
    for open in counts {
        *merged.entry(inode(open.inode)?).or_default() += u64::from(open.count);
    }
    Ok(merged.into_iter().collect())
}

fn set_attr(set: &pb::SetAttr) -> Result<SetAttr, FsError> {
    let time = |is_now, at: Option<i64>| match (is_now, at) {
        (true, _) => Some(SetTime::Now),
        (false, at) => at.map(|at| SetTime::At(UnixNanos(at))),
    };
    Ok(SetAttr {
        inode: inode(set.inode)?,
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: time(set.atime_now, set.atime),
        mtime: time(set.mtime_now, set.mtime),
        ctime: set.ctime.map(UnixNanos),
        clear_suid_sgid: set.clear_suid_sgid,
    })
}

fn make(make: pb::Make) -> Result<Make, FsError> {
    if make.target.len() > SYMLINK_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    Ok(Make {
        parent: inode(make.parent)?,
        name: Name::new(make.name)?,
        kind: Kind::from_u32(make.kind).ok_or(FsError::Invalid("unknown kind of inode"))?,
        mode: make.mode,
        rdev: make.rdev,
        target: own(&make.target),
        open: make.open,
        exclusive: make.exclusive,
    })
}

fn set_xattr(set: pb::SetXattr) -> Result<SetXattr, FsError> {
    const CREATE: u32 = 1;
    const REPLACE: u32 = 2;
    if set.value.len() > XATTR_BYTES_MAX {
        return Err(FsError::AttributeTooBig);
    }
    if set.flags & !(CREATE | REPLACE) != 0 {
        return Err(FsError::Invalid("flags of setxattr"));
    }
    Ok(SetXattr {
        inode: inode(set.inode)?,
        name: xattr_name(set.name)?,
        value: own(&set.value),
        create: set.flags & CREATE != 0,
        replace: set.flags & REPLACE != 0,
    })
}

fn xattr_name(name: Bytes) -> Result<Bytes, FsError> {
    match name.len() {
        0 => Err(FsError::Invalid("an attribute without a name")),
        // setxattr(2) names ERANGE, which nothing here has; the kernel checks before it asks.
        length if length > XATTR_NAME_BYTES_MAX => Err(FsError::Invalid("the attribute's name is too long")),
        _ if name.contains(&0) => Err(FsError::Invalid("an attribute's name has no NUL")),
        _ => Ok(own(&name)),
    }
}

fn commit_write(commit: pb::CommitWrite) -> Result<CommitWrite, FsError> {
    if commit.written.len() > WRITTEN_MAX {
        return Err(FsError::Protocol("too many chunks in one commit".into()));
    }
    if commit.content.as_ref().is_some_and(|content| content.len() as u64 > INLINE_BYTES_MAX) {
        return Err(FsError::Invalid("inline content too long"));
    }
    Ok(CommitWrite {
        inode: inode(commit.inode)?,
        end: commit.end,
        mtime: (commit.mtime != 0).then_some(UnixNanos(commit.mtime)),
        written: commit.written.into_iter().map(ChunkIndex).collect(),
        content: commit.content.as_ref().map(own),
        leave_inline: commit.leave_inline,
        if_data_version: commit.if_data_version,
        clear_suid_sgid: commit.clear_suid_sgid,
    })
}

/// What is kept for long must not keep the whole receive buffer of its message alive.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Returns an inode as mounts see it.
pub(super) fn attr(inode: &Inode) -> pb::Attr {
    pb::Attr {
        inode: inode.id.0,
        kind: inode.kind as u32,
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        rdev: inode.rdev,
        atime: inode.atime.0,
        mtime: inode.mtime.0,
        ctime: inode.ctime.0,
        btime: inode.btime.0,
        data_version: inode.data_version,
        chunks: inode.chunks,
        is_inline: inode.is_inline,
        parent: inode.parent.0,
        chunk_size_log2: inode.chunk_size_log2,
        replicas: inode.replicas,
        seq: inode.seq.0,
    }
}

/// Returns the message for a reply. `locations` are those of its chunks, in order.
pub(super) fn reply_body(body: Body, locations: Vec<pb::ChunkLocation>) -> meta_reply::Body {
    use meta_reply::Body as B;
    match body {
        Body::Done => B::Done(pb::Done {}),
        Body::Session { session, root } => {
            B::SessionOpened(pb::SessionOpened { session: session.0, root: Some(attr(&root)), ..Default::default() })
        }
        Body::Entry { inode, is_created } => B::Entry(pb::Entry { attr: Some(attr(&inode)), created: is_created }),
        Body::Opened { inode, content, is_created } => {
            B::Opened(pb::Opened { attr: Some(attr(&inode)), content, created: is_created })
        }
        Body::Target(target) => B::Target(pb::Target { target }),
        Body::Listing { entries, is_end, parent } => B::Listing(pb::Listing {
            entries: entries.into_iter().map(dirent).collect(),
            end: is_end,
            parent: parent.0,
        }),
        Body::StatFs { total_bytes, free_bytes, inodes } => {
            // There is no table of inodes that could be full: what is free is a figure to go by.
            let inodes_free = u64::from(u32::MAX).saturating_sub(inodes);
            B::StatFs(pb::StatFsReply { total_bytes, free_bytes, inodes: inodes + inodes_free, inodes_free })
        }
        Body::XattrValue(value) => B::XattrValue(pb::XattrValue { value }),
        Body::XattrNames(names) => B::XattrNames(pb::XattrNames { names }),
        Body::Chunks { inode, .. } => B::Chunks(pb::Chunks { locations, attr: Some(attr(&inode)) }),
        Body::Inline { inode, content } => B::InlineData(pb::InlineData { attr: Some(attr(&inode)), content }),
    }
}

fn dirent(entry: Listed) -> pb::Dirent {
    pb::Dirent {
        cookie: entry.cookie,
        name: entry.name.into_bytes(),
        inode: entry.inode.0,
        kind: entry.kind as u32,
        attr: entry.attributes.as_deref().map(attr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: meta_request::Body, refused: Option<&FsError>) {
        let message = pb::MetaRequest { body: Some(body.clone()), ..Default::default() };
        let result = request(SessionId(1), message);
        match refused {
            None => assert!(result.is_ok(), "{body:?}: {result:?}"),
            Some(error) => {
                let got = result.expect_err("refused");
                assert_eq!(got.code(), error.code(), "{body:?}: {got}");
            }
        }
    }

    #[test]
    fn both_sides_of_every_limit() {
        use meta_request::Body as B;
        let protocol = FsError::Protocol(String::new());
        let invalid = FsError::Invalid("");
        let chunks = |first, count| B::GetChunks(pb::GetChunks { inode: 1, first, count, lost: vec![] });
        check(chunks(0, LOCATIONS_MAX), None);
        check(chunks(0, LOCATIONS_MAX + 1), Some(&invalid));
        check(chunks(0, 0), Some(&invalid));
        check(chunks(u32::MAX, 1), None);
        check(chunks(u32::MAX, 2), Some(&FsError::FileTooBig));
        let xattr = |name: usize, value: usize| {
            let (name, value) = (vec![b'a'; name].into(), vec![0; value].into());
            B::SetXattr(pb::SetXattr { inode: 1, name, value, flags: 0 })
        };
        check(xattr(255, XATTR_BYTES_MAX), None);
        check(xattr(256, 0), Some(&invalid));
        check(xattr(0, 0), Some(&invalid));
        check(xattr(1, XATTR_BYTES_MAX + 1), Some(&FsError::AttributeTooBig));
        let symlink = |length: usize| {
            let target = vec![b't'; length].into();
            B::Make(pb::Make { parent: 1, name: "s".into(), kind: 3, target, ..Default::default() })
        };
        check(symlink(SYMLINK_BYTES_MAX), None);
        check(symlink(SYMLINK_BYTES_MAX + 1), Some(&FsError::NameTooLong));
        let content = |length: u64| {
            let content = Some(vec![0; length as usize].into());
            B::CommitWrite(pb::CommitWrite { inode: 1, content, ..Default::default() })
        };
        check(content(INLINE_BYTES_MAX), None);
        check(content(INLINE_BYTES_MAX + 1), Some(&invalid));
        check(B::GetAttr(pb::GetAttr { inode: 0 }), Some(&protocol));
        check(B::Lookup(pb::Lookup { parent: 1, name: ".".into() }), None);
        check(B::Lookup(pb::Lookup { parent: 1, name: "..".into() }), Some(&invalid));
        check(B::Lookup(pb::Lookup { parent: 1, name: vec![b'n'; 256].into() }), Some(&FsError::NameTooLong));
        check(B::SessionOpen(pb::SessionOpen::default()), Some(&protocol));
        let open = |subdir: &'static str| {
            let client_id = vec![1; 16].into();
            B::SessionOpen(pb::SessionOpen { client_id, subdir: subdir.into(), ..Default::default() })
        };
        check(open("/a//b/"), None);
        check(open("a/../b"), Some(&invalid));
    }

    #[test]
    fn a_request_without_a_body_is_refused() {
        assert!(matches!(request(SessionId(1), pb::MetaRequest::default()), Err(FsError::Protocol(_))));
    }
}
