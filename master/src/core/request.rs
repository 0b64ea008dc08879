//! What a mount can ask for, with every limit already checked by whoever decoded it.

use bytes::Bytes;
use dfs_proto::{ChunkIndex, InodeId, Kind, Name, SessionId, UnixNanos};

/// One request and who makes it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The mount's session; 0 only for opening one.
    pub session: SessionId,
    /// Of this session, rising; 0 for what need not be remembered.
    pub number: u64,
    /// Replies to smaller numbers will not be asked for again.
    pub acked_below: u64,
    /// User of the calling process.
    pub uid: u32,
    /// Group of the calling process.
    pub gid: u32,
    /// What an earlier reply said, if there was one before the master restarted.
    pub replay: Option<Replay>,
    /// What is asked for.
    pub request: Request,
}

impl Call {
    /// Returns a call of `session` on behalf of no process, which need not be remembered.
    pub fn unnumbered(session: SessionId, request: Request) -> Self {
        Self { session, number: 0, acked_below: 0, uid: 0, gid: 0, replay: None, request }
    }
}

/// What an earlier reply to the same request said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// The time the operation used.
    pub time: UnixNanos,
    /// The inode it made, or 0.
    pub inode: InodeId,
}

/// What is asked for.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each variant is the operation of its name, documented there")]
pub enum Request {
    SessionOpen(SessionOpen),
    SessionReclaim {
        /// Each inode once.
        opens: Vec<(InodeId, u64)>,
        is_last: bool,
    },
    SessionClose,
    Ping,
    /// To wait until the log is durable, which whoever asks does: here only whether the session may.
    Sync,
    Lookup {
        parent: InodeId,
        name: Name,
    },
    GetAttr {
        inode: InodeId,
    },
    SetAttr(SetAttr),
    Make(Make),
    Unlink {
        parent: InodeId,
        name: Name,
    },
    Rmdir {
        parent: InodeId,
        name: Name,
    },
    Rename(Rename),
    Link {
        inode: InodeId,
        parent: InodeId,
        name: Name,
    },
    ReadLink {
        inode: InodeId,
    },
    Open {
        inode: InodeId,
    },
    Release {
        /// Each inode once.
        opens: Vec<(InodeId, u64)>,
    },
    ReadDir {
        inode: InodeId,
        after: u64,
        limit: usize,
        plus: bool,
    },
    StatFs,
    SetXattr(SetXattr),
    GetXattr {
        inode: InodeId,
        name: Bytes,
    },
    ListXattr {
        inode: InodeId,
    },
    RemoveXattr {
        inode: InodeId,
        name: Bytes,
    },
    GetChunks {
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
    },
    AllocateChunks {
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
    },
    CommitWrite(CommitWrite),
    GetInline {
        inode: InodeId,
    },
    PunchChunks {
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        mtime: UnixNanos,
    },
}

/// Opens a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOpen {
    /// 16 random bytes of this one mount: a retry opens no second session.
    pub client_id: Bytes,
    /// Its host.
    pub host: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Version of dfs.
    pub software: String,
    /// `host:port` of its pages, or empty.
    pub metrics_address: String,
    /// Names from the root to the directory that is mounted; empty: the root.
    pub subdir: Vec<Name>,
    /// It will not change anything.
    pub is_read_only: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(UnixNanos),
}

/// chmod, chown, truncate, utimens: whatever is not `None`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "words of stat(2)")]
pub struct SetAttr {
    pub inode: InodeId,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<UnixNanos>,
    /// A chown or truncate by an unprivileged caller.
    pub clear_suid_sgid: bool,
}

/// Makes an inode of any kind under a new name.
#[derive(Clone, Debug)]
pub struct Make {
    /// The directory.
    pub parent: InodeId,
    /// The new name.
    pub name: Name,
    /// What to make.
    pub kind: Kind,
    /// Permission bits, the umask applied.
    pub mode: u32,
    /// For device nodes.
    pub rdev: u64,
    /// For symlinks.
    pub target: Bytes,
    /// O_CREAT: the file is also opened, and an existing one is too.
    pub open: bool,
    /// O_EXCL: an existing name is an error.
    pub exclusive: bool,
}

/// rename(2).
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "words of rename(2)")]
pub struct Rename {
    pub parent: InodeId,
    pub name: Name,
    pub new_parent: InodeId,
    pub new_name: Name,
    pub flags: u32,
}

/// setxattr(2).
#[derive(Clone, Debug)]
pub struct SetXattr {
    /// The file.
    pub inode: InodeId,
    /// Name of the attribute, with its namespace.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
    /// `XATTR_CREATE`: it must not exist.
    pub create: bool,
    /// `XATTR_REPLACE`: it must exist.
    pub replace: bool,
}

/// Content reached the replicas, or comes with the request and stays inline.
#[derive(Clone, Debug, Default)]
pub struct CommitWrite {
    /// The file.
    pub inode: InodeId,
    /// The size becomes at least this.
    pub end: u64,
    /// When it was written; `None`: now.
    pub mtime: Option<UnixNanos>,
    /// Chunks that now hold data.
    pub written: Vec<ChunkIndex>,
    /// The whole new content of an inline file.
    pub content: Option<Bytes>,
    /// The inline content was copied into chunks.
    pub leave_inline: bool,
    /// With `content` or `leave_inline`: what the file must still be at.
    pub if_data_version: u64,
    /// A write by an unprivileged caller.
    pub clear_suid_sgid: bool,
}
