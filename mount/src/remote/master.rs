//! The calls of the master, one method each, in our own types.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::{ChunkIndex, FsError, InodeId, Kind, Name, NodeId, Seq, SessionId, UnixNanos};

use super::chunk::ChunkClient;
use super::convert::{self, missing};
use super::session::{Effect, Session, SessionConfig};
use crate::core::{Damage, Location, Policy};
use crate::fs::{Attr, Caller};
use crate::metrics::Metrics;

/// The master, as seen by one mount. Shared by all threads; a call blocks the thread that makes it.
///
/// Every method retries under one request number until the policy's deadline while the master cannot be reached or
/// answers `TryAgain`; then it returns [`FsError::TimedOut`]. What the methods name as errors comes on top.
#[derive(Clone, Debug)]
pub struct MasterClient {
    session: Arc<Session>,
}

/// Which times a change sets, and to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeChange {
    /// Leaves it.
    #[default]
    Keep,
    /// Sets it to the master's clock.
    Now,
    /// Sets it to this time.
    To(UnixNanos),
}

/// A change of attributes; `None` and [`TimeChange::Keep`] leave what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: cuts the content, or extends it with a hole.
    pub size: Option<u64>,
    /// Time of the last read.
    pub atime: TimeChange,
    /// Time of the last change of the content.
    pub mtime: TimeChange,
    /// Drops the set-user-id and set-group-id bits, as a write by an unprivileged caller does.
    pub clear_suid_sgid: bool,
}

/// A name to be made, with a new inode behind it.
#[derive(Clone, Debug)]
pub struct Make {
    /// The directory.
    pub parent: InodeId,
    /// The name in it.
    pub name: Name,
    /// What to make.
    pub kind: Kind,
    /// Permission bits, umask applied.
    pub mode: u32,
    /// Of device nodes.
    pub rdev: u64,
    /// Of symlinks.
    pub target: Bytes,
    /// Opens the file too; an existing regular file is opened unless `exclusive`.
    pub open: bool,
    /// An existing name is an error.
    pub exclusive: bool,
}

/// A file that is now held open by this session.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its attributes.
    pub attr: Attr,
    /// Its whole content if `attr.is_inline`, else empty.
    pub content: Bytes,
}

/// What is behind a name now.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its attributes.
    pub attr: Attr,
    /// It was made by this call.
    pub created: bool,
    /// When: the directory's new mtime and ctime.
    pub time: UnixNanos,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Dirent {
    /// Where the listing goes on after it. Stable: never that of another name of the directory.
    pub cookie: u64,
    /// The name.
    pub name: Bytes,
    /// What it refers to.
    pub inode: InodeId,
    /// The kind of that.
    pub kind: Kind,
    /// Its attributes, if they were asked for and it still exists.
    pub attr: Option<Attr>,
}

/// A page of a directory, ascending by cookie, without `.` and `..`.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Dirent>,
    /// Nothing follows.
    pub end: bool,
    /// The directory's parent.
    pub parent: InodeId,
}

/// Room in the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Of user data, in bytes.
    pub total_bytes: u64,
    /// Of it free.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
}

/// Locations of chunks, and the file's attributes at that moment.
#[derive(Clone, Debug)]
pub struct Chunks {
    /// Ascending by index. A hole is a location with chunk 0, or absent from the list.
    pub locations: Vec<Location>,
    /// Of the file.
    pub attr: Attr,
}

impl Chunks {
    /// Returns whether there is a chunk at this place.
    pub fn has(&self, index: ChunkIndex) -> bool {
        self.locations.iter().any(|location| location.index == index && !location.is_hole())
    }
}

/// The content of an inline file.
#[derive(Clone, Debug)]
pub struct InlineData {
    /// Of the file; look at `is_inline` before using `content`.
    pub attr: Attr,
    /// All of it.
    pub content: Bytes,
}

/// Tells the master what was written.
#[derive(Clone, Debug)]
pub struct CommitWrite {
    /// The file.
    pub inode: InodeId,
    /// The size becomes at least this.
    pub end: u64,
    /// When it was written.
    pub mtime: UnixNanos,
    /// Chunks that now hold data.
    pub written: Vec<ChunkIndex>,
    /// The whole new content of an inline file; its length is the new size.
    pub content: Option<Bytes>,
    /// The inline content was copied into chunks: drop it.
    pub leave_inline: bool,
    /// With `content` and `leave_inline`: `Stale` unless the data version is still this.
    pub if_data_version: u64,
    /// The writer is unprivileged: drop the set-user-id and set-group-id bits.
    pub clear_suid_sgid: bool,
}

impl MasterClient {
    /// Connects to the first master that answers, opens a session, and returns it with the attributes of the
    /// directory that is mounted. From then on the session is kept alive until [`Self::close`].
    ///
    /// # Errors
    ///
    /// The last master's refusal or failure once `config.connect_ms` have passed; [`FsError::NoEntry`] or
    /// [`FsError::NotDirectory`] for the subdirectory.
    pub fn open_session(config: SessionConfig, metrics: Arc<Metrics>) -> Result<(Self, Attr), FsError> {
        let (session, root) = Session::open(config, metrics)?;
        Ok((Self { session }, root))
    }

    /// Makes everything durable, gives the session back, and ends its threads. Further calls fail.
    ///
    /// # Errors
    ///
    /// If the master could not be told; the session then ends by itself when its lease does.
    pub fn close(&self) -> Result<(), FsError> {
        self.session.close()
    }

    /// Returns a client of the cluster's chunk servers.
    ///
    /// # Errors
    ///
    /// [`FsError::Protocol`] if the master has not said which cluster this is.
    pub fn chunk_client(&self, metrics: Arc<Metrics>) -> Result<ChunkClient, FsError> {
        let cluster = self.session.cluster().ok_or_else(|| missing("cluster id"))?;
        Ok(ChunkClient::new(cluster, self.session.boot(), self.session.id(), metrics))
    }

    /// Returns the session's id.
    pub fn session(&self) -> SessionId {
        self.session.id()
    }

    /// Returns a number that rises each time the session was lost and another one opened. Dirty data that is older
    /// than the change is lost: it fails with [`FsError::SessionLost`].
    pub fn generation(&self) -> u64 {
        self.session.generation()
    }

    /// Says what is to be done when the session was lost and another one, which it is given, opened: dirty data is void by
    /// then. `act` must not call the master.
    pub fn on_session_lost(&self, act: impl Fn(SessionId) + Send + Sync + 'static) {
        self.session.on_lost(act);
    }

    /// Returns the attributes of what `name` refers to in `parent`.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `NotDirectory`, `Denied`.
    pub fn lookup(&self, caller: Caller, parent: InodeId, name: &Name) -> Result<Attr, FsError> {
        let body = meta_request::Body::Lookup(pb::Lookup { parent: parent.0, name: name.clone().into_bytes() });
        self.entry(caller, body, Effect::Reads)
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    ///
    /// `NoEntry` if it is gone.
    pub fn get_attr(&self, inode: InodeId) -> Result<Attr, FsError> {
        self.entry(Caller::MOUNT, meta_request::Body::GetAttr(pb::GetAttr { inode: inode.0 }), Effect::Reads)
    }

    /// Changes attributes and returns them all. A new size is already carried through to the replicas.
    ///
    /// # Errors
    ///
    /// `NotPermitted`, `Denied`, `IsDirectory`, `FileTooBig`, `NoEntry`.
    pub fn set_attr(&self, caller: Caller, inode: InodeId, change: &AttrChange) -> Result<Attr, FsError> {
        let time = |change: TimeChange| match change {
            TimeChange::Keep => (None, false),
            TimeChange::Now => (None, true),
            TimeChange::To(time) => (Some(time.0), false),
        };
        let (atime, atime_now) = time(change.atime);
        let (mtime, mtime_now) = time(change.mtime);
        let body = meta_request::Body::SetAttr(pb::SetAttr {
            inode: inode.0,
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime,
            mtime,
            atime_now,
            mtime_now,
            ctime: None,
            clear_suid_sgid: change.clear_suid_sgid,
        });
        self.entry(caller, body, Effect::Changes)
    }

    /// Makes a name with a new inode behind it. With `make.open` the session holds it open: [`Self::release`] it.
    ///
    /// # Errors
    ///
    /// `Exists`, `NoEntry`, `NotDirectory`, `Denied`, `NoSpace`, `IsDirectory` (open of one).
    pub fn make(&self, caller: Caller, make: &Make) -> Result<Made, FsError> {
        let body = meta_request::Body::Make(pb::Make {
            parent: make.parent.0,
            name: make.name.clone().into_bytes(),
            kind: make.kind as u32,
            mode: make.mode,
            rdev: make.rdev,
            target: make.target.clone(),
            open: make.open,
            exclusive: make.exclusive,
            umask_applied: true,
        });
        let effect = if make.open { Effect::ChangesAndOpens } else { Effect::Changes };
        let answer = self.session.call(caller, body, effect)?;
        match answer.body {
            meta_reply::Body::Opened(opened) => {
                Ok(Made { attr: convert::attr(opened.attr)?, created: opened.created, time: answer.time })
            }
            meta_reply::Body::Entry(entry) if !make.open => {
                Ok(Made { attr: convert::attr(entry.attr)?, created: true, time: answer.time })
            }
            _ => Err(missing("new inode")),
        }
    }

    /// Removes a name of anything but a directory, and returns when: the directory's new mtime and ctime.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `IsDirectory`, `Denied`, `NotPermitted` (sticky directory).
    pub fn unlink(&self, caller: Caller, parent: InodeId, name: &Name) -> Result<UnixNanos, FsError> {
        let body = meta_request::Body::Unlink(pb::Unlink { parent: parent.0, name: name.clone().into_bytes() });
        self.done_at(caller, body)
    }

    /// Removes an empty directory, and returns when: the parent's new mtime and ctime.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `NotDirectory`, `NotEmpty`, `Denied`, `NotPermitted`.
    pub fn rmdir(&self, caller: Caller, parent: InodeId, name: &Name) -> Result<UnixNanos, FsError> {
        let body = meta_request::Body::Rmdir(pb::Rmdir { parent: parent.0, name: name.clone().into_bytes() });
        self.done_at(caller, body)
    }

    /// Moves a name, over another one perhaps; `flags` as in renameat2(2). Returns when: the new mtime and ctime of both
    /// directories.
    ///
    /// # Errors
    ///
    /// `NoEntry`, `Exists`, `NotEmpty`, `IntoItself`, `IsDirectory`, `NotDirectory`, `Denied`, `NotPermitted`,
    /// `Invalid`.
    pub fn rename(
        &self,
        caller: Caller,
        (parent, name): (InodeId, &Name),
        (new_parent, new_name): (InodeId, &Name),
        flags: u32,
    ) -> Result<UnixNanos, FsError> {
        let body = meta_request::Body::Rename(pb::Rename {
            parent: parent.0,
            name: name.clone().into_bytes(),
            new_parent: new_parent.0,
            new_name: new_name.clone().into_bytes(),
            flags,
        });
        self.done_at(caller, body)
    }

    /// Makes a further name for an inode.
    ///
    /// # Errors
    ///
    /// `Exists`, `NoEntry`, `NotPermitted` (directories), `TooManyLinks`, `Denied`.
    pub fn link(&self, caller: Caller, inode: InodeId, parent: InodeId, name: &Name) -> Result<Attr, FsError> {
        let body =
            meta_request::Body::Link(pb::Link { inode: inode.0, parent: parent.0, name: name.clone().into_bytes() });
        self.entry(caller, body, Effect::Changes)
    }

    /// Returns a symlink's target.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is none.
    pub fn read_link(&self, inode: InodeId) -> Result<Bytes, FsError> {
        let body = meta_request::Body::ReadLink(pb::ReadLink { inode: inode.0 });
        match self.call(Caller::MOUNT, body, Effect::Reads)? {
            meta_reply::Body::Target(target) => Ok(target.target),
            _ => Err(missing("target")),
        }
    }

    /// Holds a file open: it outlives its last name until [`Self::release`].
    ///
    /// # Errors
    ///
    /// `NoEntry`, `Denied`.
    pub fn open(&self, caller: Caller, inode: InodeId, write: bool) -> Result<Opened, FsError> {
        let body = meta_request::Body::Open(pb::Open { inode: inode.0, write });
        match self.call(caller, body, Effect::Opens)? {
            meta_reply::Body::Opened(opened) => {
                Ok(Opened { attr: convert::attr(opened.attr)?, content: opened.content })
            }
            _ => Err(missing("open file")),
        }
    }

    /// Ends one open of a file. Returns at once; the master is told in the background, many at a time.
    pub fn release(&self, inode: InodeId) {
        self.session.release(inode);
    }

    /// Returns the entries after the one with the cookie `after` (0: from the start), at most `limit`.
    ///
    /// # Errors
    ///
    /// `NoEntry` if the directory is gone, `NotDirectory`.
    pub fn read_dir(&self, inode: InodeId, after: u64, limit: u32, plus: bool) -> Result<Listing, FsError> {
        let body = meta_request::Body::ReadDir(pb::ReadDir { inode: inode.0, after, limit, plus });
        match self.call(Caller::MOUNT, body, Effect::Reads)? {
            meta_reply::Body::Listing(listing) => {
                let mut entries = Vec::with_capacity(listing.entries.len());
                for entry in listing.entries {
                    entries.push(Dirent {
                        cookie: entry.cookie,
                        name: entry.name,
                        inode: InodeId(entry.inode),
                        kind: convert::kind(entry.kind)?,
                        attr: entry.attr.map(|attr| convert::attr(Some(attr))).transpose()?,
                    });
                }
                Ok(Listing { entries, end: listing.end, parent: InodeId(listing.parent) })
            }
            _ => Err(missing("listing")),
        }
    }

    /// Returns how much room there is.
    ///
    /// # Errors
    ///
    /// None of its own.
    pub fn stat_fs(&self) -> Result<StatFs, FsError> {
        match self.call(Caller::MOUNT, meta_request::Body::StatFs(pb::StatFs {}), Effect::Reads)? {
            meta_reply::Body::StatFs(reply) => Ok(StatFs {
                total_bytes: reply.total_bytes,
                free_bytes: reply.free_bytes,
                inodes: reply.inodes,
                inodes_free: reply.inodes_free,
            }),
            _ => Err(missing("room")),
        }
    }

    /// Sets an extended attribute; `flags` as in setxattr(2).
    ///
    /// # Errors
    ///
    /// `Exists`, `NoAttribute`, `AttributeTooBig`, `NotPermitted`, `NotSupported` (a namespace dfs has not).
    pub fn set_xattr(
        &self,
        caller: Caller,
        inode: InodeId,
        name: Bytes,
        value: Bytes,
        flags: u32,
    ) -> Result<(), FsError> {
        let body = meta_request::Body::SetXattr(pb::SetXattr { inode: inode.0, name, value, flags });
        self.done(caller, body, Effect::Changes)
    }

    /// Returns an extended attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotSupported`.
    pub fn get_xattr(&self, caller: Caller, inode: InodeId, name: Bytes) -> Result<Bytes, FsError> {
        let body = meta_request::Body::GetXattr(pb::GetXattr { inode: inode.0, name });
        match self.call(caller, body, Effect::Reads)? {
            meta_reply::Body::XattrValue(reply) => Ok(reply.value),
            _ => Err(missing("attribute value")),
        }
    }

    /// Returns the names of all extended attributes.
    ///
    /// # Errors
    ///
    /// `NoEntry`.
    pub fn list_xattr(&self, caller: Caller, inode: InodeId) -> Result<Vec<Bytes>, FsError> {
        let body = meta_request::Body::ListXattr(pb::ListXattr { inode: inode.0 });
        match self.call(caller, body, Effect::Reads)? {
            meta_reply::Body::XattrNames(reply) => Ok(reply.names),
            _ => Err(missing("attribute names")),
        }
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotPermitted`, `NotSupported`.
    pub fn remove_xattr(&self, caller: Caller, inode: InodeId, name: Bytes) -> Result<(), FsError> {
        let body = meta_request::Body::RemoveXattr(pb::RemoveXattr { inode: inode.0, name });
        self.done(caller, body, Effect::Changes)
    }

    /// Returns where `count` chunks (at most `LOCATIONS_MAX`) from `first` on are. `lost`: a primary that does not answer;
    /// the master moves it, if it may.
    ///
    /// # Errors
    ///
    /// `NoEntry`; `Invalid` if it is no regular file.
    pub fn get_chunks(
        &self,
        within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        lost: Option<NodeId>,
    ) -> Result<Chunks, FsError> {
        let lost = lost.into_iter().map(|node| node.0).collect();
        let body = meta_request::Body::GetChunks(pb::GetChunks { inode: inode.0, first: first.0, count, lost });
        self.chunks(within, body, Effect::Reads)
    }

    /// Makes the chunks that are missing of `count` from `first` on, and returns where all of them are.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `NoReplica`, `NoEntry`; `SessionLost` if the session that wanted to write is gone.
    pub fn allocate_chunks(
        &self,
        within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
    ) -> Result<Chunks, FsError> {
        let body = meta_request::Body::AllocateChunks(pb::AllocateChunks { inode: inode.0, first: first.0, count });
        self.chunks(within, body, Effect::ChangesContent)
    }

    /// Tells the master what was written, and returns the attributes that came of it.
    ///
    /// # Errors
    ///
    /// `Stale` (the data version is another one), `FileTooBig`, `NoEntry`; `SessionLost` if the session whose data it
    /// is was lost.
    pub fn commit_write(&self, commit: CommitWrite) -> Result<Attr, FsError> {
        let body = meta_request::Body::CommitWrite(pb::CommitWrite {
            inode: commit.inode.0,
            end: commit.end,
            mtime: commit.mtime.0,
            written: commit.written.into_iter().map(|index| index.0).collect(),
            content: commit.content,
            leave_inline: commit.leave_inline,
            if_data_version: commit.if_data_version,
            clear_suid_sgid: commit.clear_suid_sgid,
        });
        self.entry(Caller::MOUNT, body, Effect::ChangesContent)
    }

    /// Returns the content of an inline file.
    ///
    /// # Errors
    ///
    /// `NoEntry`.
    pub fn get_inline(&self, inode: InodeId) -> Result<InlineData, FsError> {
        let body = meta_request::Body::GetInline(pb::GetInline { inode: inode.0 });
        match self.call(Caller::MOUNT, body, Effect::Reads)? {
            meta_reply::Body::InlineData(reply) => {
                Ok(InlineData { attr: convert::attr(reply.attr)?, content: reply.content })
            }
            _ => Err(missing("inline content")),
        }
    }

    /// Makes holes of `count` whole chunks from `first` on.
    ///
    /// # Errors
    ///
    /// `NoEntry`; `SessionLost`.
    pub fn punch_chunks(
        &self,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        mtime: UnixNanos,
    ) -> Result<Attr, FsError> {
        let body =
            meta_request::Body::PunchChunks(pb::PunchChunks { inode: inode.0, first: first.0, count, mtime: mtime.0 });
        self.entry(Caller::MOUNT, body, Effect::ChangesContent)
    }

    /// Tells the master of a replica without a good copy.
    ///
    /// # Errors
    ///
    /// None of its own.
    pub fn report_damage(&self, within: Policy, damage: &Damage) -> Result<(), FsError> {
        let body = meta_request::Body::ReportBadReplica(pb::ReportBadReplica {
            chunk: damage.chunk.0,
            version: damage.version.0,
            node: damage.node.0,
            detail: damage.detail.clone(),
        });
        self.session.call_within(within, Caller::MOUNT, body, Effect::Reads).map(drop)
    }

    /// Waits until every change this mount has been told of is on the master's stable media.
    ///
    /// # Errors
    ///
    /// None of its own.
    pub fn sync(&self) -> Result<(), FsError> {
        self.session.sync()
    }

    /// Waits until the change with this log position (`Attr::seq`) is on the master's stable media: at once, without
    /// a round trip, if that is known already.
    ///
    /// # Errors
    ///
    /// None of its own.
    pub fn sync_to(&self, seq: Seq) -> Result<(), FsError> {
        self.session.sync_to(seq)
    }

    fn call(&self, caller: Caller, body: meta_request::Body, effect: Effect) -> Result<meta_reply::Body, FsError> {
        self.session.call(caller, body, effect).map(|answer| answer.body)
    }

    fn done_at(&self, caller: Caller, body: meta_request::Body) -> Result<UnixNanos, FsError> {
        self.session.call(caller, body, Effect::Changes).map(|answer| answer.time)
    }

    fn entry(&self, caller: Caller, body: meta_request::Body, effect: Effect) -> Result<Attr, FsError> {
        match self.call(caller, body, effect)? {
            meta_reply::Body::Entry(entry) => convert::attr(entry.attr),
            _ => Err(missing("entry")),
        }
    }

    fn done(&self, caller: Caller, body: meta_request::Body, effect: Effect) -> Result<(), FsError> {
        // Whatever else a newer master says with its yes.
        self.call(caller, body, effect).map(drop)
    }

    fn chunks(&self, within: Policy, body: meta_request::Body, effect: Effect) -> Result<Chunks, FsError> {
        match self.session.call_within(within, Caller::MOUNT, body, effect)?.body {
            meta_reply::Body::Chunks(reply) => Ok(Chunks {
                locations: reply.locations.into_iter().map(convert::location).collect(),
                attr: convert::attr(reply.attr)?,
            }),
            _ => Err(missing("locations")),
        }
    }
}
