//! From the messages of the wire to our own types, checking what a peer sent.

use std::sync::Arc;

use dfs_proto::wire::pb;
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, Kind, NodeId, Seq, UnixNanos, Version};

use crate::core::{Location, Replica};
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
            .map(|replica| Replica {
                node: NodeId(replica.node),
                address: Arc::from(replica.address),
                is_alive: replica.alive,
            })
            .collect(),
        grant: message.grant,
    }
}

/// Returns the error for a reply without the part that its request asks for.
pub(super) fn missing(what: &str) -> FsError {
    FsError::Protocol(format!("the reply has no {what}"))
}
