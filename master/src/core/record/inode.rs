//! The inode: a file itself, whatever its names.

use bytes::Bytes;
use dfs_proto::mode::without_set_id;
use dfs_proto::{InodeId, Kind, Seq, UnixNanos, limits};

use super::{RecordError, open, seal};

/// A file itself, whatever its names.
///
/// # Invariants
///
/// - `nlink` is the number of dentries that point here; of a directory, 2 and the number of its subdirectories. 0 only
///   for an orphan (or a removed directory that is one).
/// - `size` is the length of the content while `is_inline`.
/// - `chunks`, `entries`, `xattrs` and `xattr_name_bytes` are what a scan would count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "words of stat(2)")]
pub struct Inode {
    pub id: InodeId,
    pub kind: Kind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// Linux `dev_t`, for device nodes.
    pub rdev: u64,
    pub atime: UnixNanos,
    pub mtime: UnixNanos,
    pub ctime: UnixNanos,
    pub btime: UnixNanos,
    /// Rises at every change of content or size.
    pub data_version: u64,
    /// Chunk records.
    pub chunks: u64,
    /// All content is in the inline record (absent if empty).
    pub is_inline: bool,
    /// A truncate or punch is not finished: there is a cut record.
    pub is_cut_pending: bool,
    /// Directories: the directory that has this one's name.
    pub parent: InodeId,
    /// Directories: names in it.
    pub entries: u64,
    /// Directories: the cookie of the next new name; they are never reused.
    pub next_cookie: u64,
    /// Extended attributes.
    pub xattrs: u32,
    /// Bytes of their names, with a NUL each.
    pub xattr_name_bytes: u32,
    /// log2 of the chunk size.
    pub chunk_size_log2: u32,
    /// Replicas wanted of each chunk.
    pub replicas: u32,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Inode {
    /// Returns a new inode without content, of the default layout.
    pub fn new(id: InodeId, kind: Kind, mode: u32, now: UnixNanos) -> Self {
        Self {
            id,
            kind,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            size: 0,
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            data_version: 1,
            chunks: 0,
            is_inline: kind == Kind::File,
            is_cut_pending: false,
            parent: InodeId(0),
            entries: 0,
            next_cookie: 1,
            xattrs: 0,
            xattr_name_bytes: 0,
            chunk_size_log2: limits::CHUNK_SIZE_LOG2,
            replicas: limits::REPLICAS,
            seq: Seq(0),
        }
    }

    /// Returns whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Returns the bytes that count as user data.
    pub fn logical_bytes(&self) -> u64 {
        if self.kind == Kind::File { self.size } else { 0 }
    }

    /// Returns the bytes in a chunk of this file.
    pub fn chunk_size(&self) -> u64 {
        1 << self.chunk_size_log2
    }

    /// Notes a change of the attributes. ctime never goes back, even if the clock does.
    pub fn touch_attributes(&mut self, now: UnixNanos) {
        self.ctime = self.ctime.max(now);
    }

    /// Notes a change of the content, or of the names in a directory.
    pub fn touch_content(&mut self, now: UnixNanos) {
        self.mtime = now;
        self.touch_attributes(now);
    }

    /// Drops the set-id bits as a write by an unprivileged caller does. Directories keep theirs.
    pub fn clear_suid_sgid(&mut self) {
        if !self.is_directory() {
            self.mode = without_set_id(self.mode);
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let directory = self.is_directory();
        seal(&StoredInode {
            kind: self.kind as u32,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            size: self.size,
            rdev: self.rdev,
            atime: self.atime.0,
            mtime: self.mtime.0,
            ctime: self.ctime.0,
            btime: self.btime.0,
            data_version: self.data_version,
            chunks: self.chunks,
            is_inline: self.is_inline,
            is_cut_pending: self.is_cut_pending,
            parent: self.parent.0,
            entries: self.entries,
            next_cookie: if directory { self.next_cookie } else { 0 },
            xattrs: self.xattrs,
            xattr_name_bytes: self.xattr_name_bytes,
            chunk_size_log2: self.chunk_size_log2,
            replicas: self.replicas,
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(id: InodeId, bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredInode = open("inode", bytes)?;
        let wrong = |what| RecordError { kind: "inode", what };
        let kind = Kind::from_u32(stored.kind).ok_or_else(|| wrong("unknown kind"))?;
        if !(12..=31).contains(&stored.chunk_size_log2) {
            return Err(wrong("impossible chunk size"));
        }
        if stored.size > limits::FILE_BYTES_MAX {
            return Err(wrong("impossible size"));
        }
        Ok(Self {
            id,
            kind,
            mode: stored.mode & 0o7777,
            uid: stored.uid,
            gid: stored.gid,
            nlink: stored.nlink,
            size: stored.size,
            rdev: stored.rdev,
            atime: UnixNanos(stored.atime),
            mtime: UnixNanos(stored.mtime),
            ctime: UnixNanos(stored.ctime),
            btime: UnixNanos(stored.btime),
            data_version: stored.data_version,
            chunks: stored.chunks,
            is_inline: stored.is_inline,
            is_cut_pending: stored.is_cut_pending,
            parent: InodeId(stored.parent),
            entries: stored.entries,
            next_cookie: stored.next_cookie.max(1),
            xattrs: stored.xattrs,
            xattr_name_bytes: stored.xattr_name_bytes,
            chunk_size_log2: stored.chunk_size_log2,
            replicas: stored.replicas,
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredInode {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    mode: u32,
    #[prost(uint32, tag = "3")]
    uid: u32,
    #[prost(uint32, tag = "4")]
    gid: u32,
    #[prost(uint32, tag = "5")]
    nlink: u32,
    #[prost(uint64, tag = "6")]
    size: u64,
    #[prost(uint64, tag = "7")]
    rdev: u64,
    #[prost(sfixed64, tag = "8")]
    atime: i64,
    #[prost(sfixed64, tag = "9")]
    mtime: i64,
    #[prost(sfixed64, tag = "10")]
    ctime: i64,
    #[prost(sfixed64, tag = "11")]
    btime: i64,
    #[prost(uint64, tag = "12")]
    data_version: u64,
    #[prost(uint64, tag = "13")]
    chunks: u64,
    #[prost(bool, tag = "14")]
    is_inline: bool,
    #[prost(bool, tag = "15")]
    is_cut_pending: bool,
    #[prost(uint64, tag = "16")]
    parent: u64,
    #[prost(uint64, tag = "17")]
    entries: u64,
    #[prost(uint64, tag = "18")]
    next_cookie: u64,
    #[prost(uint32, tag = "19")]
    xattrs: u32,
    #[prost(uint32, tag = "20")]
    xattr_name_bytes: u32,
    #[prost(uint32, tag = "21")]
    chunk_size_log2: u32,
    #[prost(uint32, tag = "22")]
    replicas: u32,
    #[prost(uint64, tag = "23")]
    seq: u64,
}
