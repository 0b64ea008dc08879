//! What an operation sees: the records it asks for, and the few facts beside them.
//!
//! An operation asks for the records it needs. One that is not at hand stops it with [`Stop::Read`]; whoever runs it
//! fetches the record and calls again, so an operation never waits and never knows the engine.

use std::cell::Cell;
use std::sync::Arc;

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, Name, NodeId, Seq, SessionId};

use super::care::Counters;
use super::ids::FreshIds;
use super::key::{Key, Range};
use super::node_table::Space;
use super::opens::Opens;
use super::record::{Chunk, Dentry, Inode, Record};
use super::request::Replay;
use super::standing::Standing;
use super::unsettled::Unsettled;

/// Why an operation did not come to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It needs these records: fetch them and call again.
    Read(Vec<Key>),
    /// It needs the records of this range: fetch them and call again.
    Scan(Range),
    /// The reserved ids are used up: reserve more and call again.
    Ids,
    /// The call fails; nothing changes.
    Fail(FsError),
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Self::Fail(error)
    }
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub enum Known {
    /// It holds this.
    Present(Record),
    /// It holds nothing, since this position of the log (or longer).
    Absent(Seq),
}

/// The records of a range, in order of their keys.
pub type Scanned = Arc<Vec<(Key, Record)>>;

/// The records at hand.
pub trait Records {
    /// Returns what is known of `key`; `None` if it has to be fetched.
    fn find(&self, key: &Key) -> Option<Known>;
    /// Returns the records of `range`; `None` if they have to be fetched.
    fn scanned(&self, range: &Range) -> Option<Scanned>;
}

/// The chunk servers, as far as operations care.
pub trait Cluster {
    /// Chooses servers for a new chunk, the primary first.
    ///
    /// # Errors
    ///
    /// [`FsError::NoSpace`], [`FsError::NoReplica`].
    fn place(&self, seed: u64, replicas: usize) -> Result<Vec<NodeId>, FsError>;
    /// Returns the space of all servers.
    fn space(&self) -> Space;
    /// Returns how a server stands.
    fn standing(&self, node: NodeId) -> Standing;
}

/// The directory's state is not shown by this read (only changed), so nobody has to wait for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Yes,
    No,
}

/// What one run of an operation sees.
pub struct View<'a> {
    /// The session that asks.
    pub session: SessionId,
    /// The position in the log that its change will have.
    pub seq: Seq,
    /// Who has what open.
    pub opens: &'a Opens,
    /// The chunk servers.
    pub cluster: &'a dyn Cluster,
    /// How long replicas of dropped chunks are kept, in nanoseconds.
    pub reclaim_delay_ns: i64,
    /// The totals before this operation.
    pub counters: Counters,
    /// What an earlier reply to the same request said.
    pub replay: Option<&'a Replay>,
    records: &'a dyn Records,
    unsettled: &'a Unsettled,
    ids: Cell<FreshIds>,
    seen: Cell<Seq>,
}

impl<'a> View<'a> {
    /// Returns a view of `records` for a call of `session`.
    #[allow(clippy::too_many_arguments, reason = "each is a different fact, named by its field")]
    pub fn new(
        records: &'a dyn Records,
        session: SessionId,
        seq: Seq,
        opens: &'a Opens,
        cluster: &'a dyn Cluster,
        unsettled: &'a Unsettled,
        ids: FreshIds,
        reclaim_delay_ns: i64,
        counters: Counters,
        replay: Option<&'a Replay>,
    ) -> Self {
        Self {
            session,
            seq,
            opens,
            cluster,
            reclaim_delay_ns,
            counters,
            replay,
            records,
            unsettled,
            ids: Cell::new(ids),
            seen: Cell::new(Seq(0)),
        }
    }

    /// Returns the ids left after this run: they count only if it came to an end.
    pub fn ids(&self) -> FreshIds {
        self.ids.get()
    }

    /// Returns the last change that is shown by this run, somebody else's, and not durable yet; 0 if there is none.
    pub fn seen(&self) -> Seq {
        self.seen.get()
    }

    /// Returns the record of `key`.
    ///
    /// # Errors
    ///
    /// [`Stop::Read`].
    pub fn find(&self, key: &Key) -> Result<Option<Record>, Stop> {
        self.find_and(key, Shown::Yes)
    }

    fn find_and(&self, key: &Key, shown: Shown) -> Result<Option<Record>, Stop> {
        match self.records.find(key) {
            None => Err(Stop::Read(vec![key.clone()])),
            Some(Known::Present(record)) => {
                self.note(record.seq(), shown);
                Ok(Some(record))
            }
            Some(Known::Absent(seq)) => {
                self.note(seq, shown);
                Ok(None)
            }
        }
    }

    fn note(&self, seq: Seq, shown: Shown) {
        if shown == Shown::Yes && seq > self.seen.get() && self.unsettled.is_foreign(seq, self.session) {
            self.seen.set(seq);
        }
    }

    /// Returns the records of `range`, in order of their keys.
    ///
    /// # Errors
    ///
    /// [`Stop::Scan`].
    pub fn scan(&self, range: Range) -> Result<Scanned, Stop> {
        let Some(found) = self.records.scanned(&range) else { return Err(Stop::Scan(range)) };
        for (_, record) in found.iter() {
            self.note(record.seq(), Shown::Yes);
        }
        Ok(found)
    }

    /// Returns the records of all `keys`, in their order.
    ///
    /// # Errors
    ///
    /// [`Stop::Read`] with all that are missing, so that they are fetched at once.
    pub fn find_all(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, Stop> {
        let mut missing = Vec::new();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            match self.find(key) {
                Ok(record) => found.push(record),
                Err(Stop::Read(keys)) => missing.extend(keys),
                Err(stop) => return Err(stop),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(Stop::Read(missing)) }
    }

    /// Returns the inode.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`] if there is none; [`Stop::Read`].
    pub fn inode(&self, id: InodeId) -> Result<Arc<Inode>, Stop> {
        self.inode_and(id, Shown::Yes)
    }

    fn inode_and(&self, id: InodeId, shown: Shown) -> Result<Arc<Inode>, Stop> {
        match self.find_and(&Key::Inode(id), shown)? {
            Some(Record::Inode(inode)) => Ok(inode),
            None => Err(FsError::NoEntry.into()),
            Some(_) => unreachable!("an inode key holds an inode: records are decoded by their key"),
        }
    }

    /// Returns the directory `id`, in which a name is looked up or changed. Its own attributes are not shown.
    ///
    /// # Errors
    ///
    /// [`FsError::NotDirectory`], and as [`Self::inode`].
    pub fn directory(&self, id: InodeId) -> Result<Arc<Inode>, Stop> {
        let inode = self.inode_and(id, Shown::No)?;
        if inode.is_directory() { Ok(inode) } else { Err(FsError::NotDirectory.into()) }
    }

    /// Returns what `name` in `parent` points at, if it is there.
    ///
    /// # Errors
    ///
    /// [`Stop::Read`].
    pub fn find_dentry(&self, parent: InodeId, name: &Name) -> Result<Option<Dentry>, Stop> {
        match self.find(&Key::Dentry(parent, name.clone()))? {
            Some(Record::Dentry(dentry)) => Ok(Some(dentry)),
            None => Ok(None),
            Some(_) => unreachable!("a dentry key holds a dentry: records are decoded by their key"),
        }
    }

    /// Returns what `name` in `parent` points at.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`] if it is not there; [`Stop::Read`].
    pub fn dentry(&self, parent: InodeId, name: &Name) -> Result<Dentry, Stop> {
        self.find_dentry(parent, name)?.ok_or_else(|| FsError::NoEntry.into())
    }

    /// Returns the inode that `names` lead to from `start`, one below the other; `start` itself if there are none.
    ///
    /// # Errors
    ///
    /// [`FsError::NotDirectory`], [`FsError::NoEntry`]; [`Stop::Read`].
    pub fn walk(&self, start: InodeId, names: &[Name]) -> Result<InodeId, Stop> {
        let mut at = start;
        for name in names {
            self.directory(at)?;
            at = self.dentry(at, name)?.inode;
        }
        Ok(at)
    }

    /// Returns the chunks with these indexes, in order; `None` for a hole.
    ///
    /// # Errors
    ///
    /// [`Stop::Read`].
    pub fn chunks(&self, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Vec<Option<Arc<Chunk>>>, Stop> {
        let indexes = (0..count).map_while(|at| first.0.checked_add(at));
        let keys: Vec<Key> = indexes.map(|index| Key::Chunk(inode, ChunkIndex(index))).collect();
        let records = self.find_all(&keys)?.into_iter();
        let chunk = |record| match record {
            Record::Chunk(chunk) => chunk,
            _ => unreachable!("a chunk key holds a chunk: records are decoded by their key"),
        };
        Ok(records.map(|record| record.map(chunk)).collect())
    }

    /// Returns the content of an inline file or the target of a symlink.
    ///
    /// # Errors
    ///
    /// [`Stop::Read`].
    pub fn inline(&self, inode: InodeId) -> Result<bytes::Bytes, Stop> {
        Ok(match self.find(&Key::Inline(inode))? {
            Some(Record::Inline(inline)) => inline.content,
            _ => bytes::Bytes::new(),
        })
    }

    /// Returns the id for a new inode: the one of the earlier reply if this is a replay.
    ///
    /// # Errors
    ///
    /// [`Stop::Ids`]; [`FsError::Invalid`] for a replay that names an id nobody was ever given.
    pub fn new_inode_id(&self) -> Result<InodeId, Stop> {
        let mut ids = self.ids.get();
        if let Some(replay) = self.replay
            && replay.inode != InodeId(0)
        {
            let is_free = ids.was_inode(replay.inode) && self.find(&Key::Inode(replay.inode))?.is_none();
            return if is_free { Ok(replay.inode) } else { Err(FsError::Invalid("replay of an impossible id").into()) };
        }
        let id = ids.take_inode().ok_or(Stop::Ids)?;
        self.ids.set(ids);
        Ok(id)
    }

    /// Returns the id for a new chunk. A replay has no say: an allocation is durable before anybody is told of it, so
    /// what it made is there, or was dropped since, and then its id belongs to replicas that are about to be deleted.
    ///
    /// # Errors
    ///
    /// [`Stop::Ids`].
    pub fn new_chunk_id(&self) -> Result<ChunkId, Stop> {
        let mut ids = self.ids.get();
        let id = ids.take_chunk().ok_or(Stop::Ids)?;
        self.ids.set(ids);
        Ok(id)
    }

    /// Returns the id for a new session.
    ///
    /// # Errors
    ///
    /// [`Stop::Ids`].
    pub fn new_session_id(&self) -> Result<SessionId, Stop> {
        let mut ids = self.ids.get();
        let id = ids.take_session().ok_or(Stop::Ids)?;
        self.ids.set(ids);
        Ok(id)
    }
}
