//! The attributes of an inode, as the master states them.

use dfs_proto::{InodeId, Kind, Seq, UnixNanos};

/// What `stat` shows of an inode, and what the data path needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Its names; 0 for an orphan.
    pub nlink: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes of content (a symlink's: of its target).
    pub size: u64,
    /// The device, as Linux `dev_t`, of device nodes.
    pub rdev: u64,
    /// Last read.
    pub atime: UnixNanos,
    /// Last change of the content.
    pub mtime: UnixNanos,
    /// Last change of anything.
    pub ctime: UnixNanos,
    /// When it was made.
    pub btime: UnixNanos,
    /// Rises at every change of content or size: equal numbers mean equal content.
    pub data_version: u64,
    /// Chunks allocated.
    pub chunks: u64,
    /// All content is in the inode record at the master.
    pub is_inline: bool,
    /// A directory's parent; 0 for others.
    pub parent: InodeId,
    /// log2 of the bytes in a chunk of this file.
    pub chunk_size_log2: u32,
    /// The log position of the last change.
    pub seq: Seq,
}

impl Attr {
    /// Returns whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Returns the bytes in a chunk of this file.
    pub fn chunk_size(&self) -> u64 {
        1 << self.chunk_size_log2
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns attributes of an empty regular file.
    pub(crate) fn attr(inode: u64) -> Attr {
        Attr {
            inode: InodeId(inode),
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            rdev: 0,
            atime: UnixNanos(0),
            mtime: UnixNanos(0),
            ctime: UnixNanos(0),
            btime: UnixNanos(0),
            data_version: 1,
            chunks: 0,
            is_inline: true,
            parent: InodeId(0),
            chunk_size_log2: dfs_proto::limits::CHUNK_SIZE_LOG2,
            seq: Seq(1),
        }
    }
}
