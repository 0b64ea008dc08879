//! From the messages of the wire to our own types, checking what a peer sent.

use std::sync::Arc;

use dfs_proto::wire::pb::{self, meta_request};
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, Kind, NodeId, Seq, UnixNanos, Version};

use super::location::{Location, Replica};
use crate::fs::Attr;

/// Reads the attributes of an inode.
pub(super) fn attr(message: Option<pb::Attr>) -> Result<Attr, FsError> {
    let message = message.ok_or_else(|| missing("attributes"))?;
    if message.inode == 0 || message.chunk_size_log2 > 40 {
        return Err(FsError::Protocol(format!("attributes that cannot be: {message:?}")));
    }
    Ok(Attr {
        inode: InodeId(message.inode),
        kind: kind(message.kind)?,
        mode: message.mode & 0o7777,
        nlink: message.nlink,
        uid: message.uid,
        gid: message.gid,
        size: message.size,
        rdev: message.rdev,
        atime: UnixNanos(message.atime),
        mtime: UnixNanos(message.mtime),
        ctime: UnixNanos(message.ctime),
        btime: UnixNanos(message.btime),
        data_version: message.data_version,
        chunks: message.chunks,
        is_inline: message.is_inline,
        parent: InodeId(message.parent),
        chunk_size_log2: if message.chunk_size_log2 == 0 {
            dfs_proto::limits::CHUNK_SIZE_LOG2
        } else {
            message.chunk_size_log2
        },
        seq: Seq(message.seq),
    })
}

/// Reads the kind of an inode.
pub(super) fn kind(number: u32) -> Result<Kind, FsError> {
    Kind::from_u32(number).ok_or_else(|| FsError::Protocol(format!("inode kind {number}")))
}

/// Reads a chunk's location.
pub(super) fn location(message: pb::ChunkLocation) -> Location {
    Location {
        index: ChunkIndex(message.index),
        chunk: ChunkId(message.chunk),
        version: Version(message.version),
        replicas: message
            .replicas
            .into_iter()
            .map(|replica| Replica { node: NodeId(replica.node), address: Arc::from(replica.address) })
            .collect(),
        grant: message.grant,
    }
}

/// Returns the error for a reply without the part that its request asks for.
pub(super) fn missing(what: &str) -> FsError {
    FsError::Protocol(format!("the reply has no {what}"))
}

/// Returns the name of a request in logs.
pub(super) fn op_name(body: &meta_request::Body) -> &'static str {
    use meta_request::Body;
    match body {
        Body::SessionOpen(_) => "session_open",
        Body::SessionReclaim(_) => "session_reclaim",
        Body::SessionClose(_) => "session_close",
        Body::Ping(_) => "ping",
        Body::Sync(_) => "sync",
        Body::Lookup(_) => "lookup",
        Body::GetAttr(_) => "get_attr",
        Body::SetAttr(_) => "set_attr",
        Body::Make(_) => "make",
        Body::Unlink(_) => "unlink",
        Body::Rmdir(_) => "rmdir",
        Body::Rename(_) => "rename",
        Body::Link(_) => "link",
        Body::ReadLink(_) => "read_link",
        Body::Open(_) => "open",
        Body::Release(_) => "release",
        Body::ReadDir(_) => "read_dir",
        Body::StatFs(_) => "stat_fs",
        Body::SetXattr(_) => "set_xattr",
        Body::GetXattr(_) => "get_xattr",
        Body::ListXattr(_) => "list_xattr",
        Body::RemoveXattr(_) => "remove_xattr",
        Body::GetChunks(_) => "get_chunks",
        Body::AllocateChunks(_) => "allocate_chunks",
        Body::CommitWrite(_) => "commit_write",
        Body::GetInline(_) => "get_inline",
        Body::PunchChunks(_) => "punch_chunks",
        Body::ReportBadReplica(_) => "report_bad_replica",
    }
}
