//! What an operation decides: records to put and delete, the reply, and what changes beside the records.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkIndex, InodeId, Kind, Name, NodeId, Seq, SessionId};

use super::care::{Counters, CutIntent};
use super::key::Key;
use super::record::{Chunk, Inode, Record};
use super::view::{Stop, View};

/// What an operation decides. Nothing has happened yet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Position in the log that the change will have.
    seq: Seq,
    /// What the caller is told.
    pub reply: Body,
    /// Opens and releases of the calling session.
    pub opens: Vec<OpenChange>,
    /// How the totals change.
    pub totals: Delta,
    /// What has to be finished before the caller is told.
    pub cut: Option<CutIntent>,
    /// Orphans that nobody has open, too large to go in one step.
    pub purgeable: Vec<InodeId>,
    /// The log up to here must be durable before the caller is told; 0 if that does not matter.
    pub durable_first: Seq,
    /// Others are given the roles of this server, if its run can be ended at this moment; else nothing happens.
    pub ends_run: Option<NodeId>,
    inodes: Vec<Arc<Inode>>,
    writes: Vec<(Key, Option<Record>)>,
}

/// A change in who has what open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what their names say")]
pub enum OpenChange {
    Open { inode: InodeId, count: u64 },
    Release { inode: InodeId, count: u64 },
}

/// What the caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the messages of the same name")]
pub enum Body {
    Done,
    Session { session: SessionId, root: Arc<Inode> },
    Entry { inode: Arc<Inode>, is_created: bool },
    Opened { inode: Arc<Inode>, content: Bytes, is_created: bool },
    Target(Bytes),
    Listing { entries: Vec<Listed>, is_end: bool, parent: InodeId },
    StatFs { total_bytes: u64, free_bytes: u64, inodes: u64 },
    XattrValue(Bytes),
    XattrNames(Vec<Bytes>),
    Chunks { inode: Arc<Inode>, chunks: Vec<(ChunkIndex, Option<Arc<Chunk>>)> },
    Inline { inode: Arc<Inode>, content: Bytes },
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the message")]
pub struct Listed {
    pub cookie: u64,
    pub name: Name,
    pub inode: InodeId,
    pub kind: Kind,
    /// With `plus`.
    pub attributes: Option<Arc<Inode>>,
}

/// How the totals change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of `Counters`")]
pub struct Delta {
    pub inodes: i64,
    pub chunks: i64,
    pub logical_bytes: i64,
    pub orphans: i64,
    pub reclaim_pending: i64,
}

impl Delta {
    /// Applies the change.
    pub fn apply(&self, counters: &mut Counters) {
        self.try_apply(counters).expect("totals are exact, so none falls below 0");
    }

    /// Applies the change, unless a total would fall below 0: then `None`, and `counters` is of no use any more.
    #[must_use]
    pub fn try_apply(&self, counters: &mut Counters) -> Option<()> {
        let add = |total: &mut u64, change: i64| {
            *total = total.checked_add_signed(change)?;
            Some(())
        };
        add(&mut counters.inodes, self.inodes)?;
        add(&mut counters.chunks, self.chunks)?;
        counters.logical_bytes = counters.logical_bytes.checked_add_signed(self.logical_bytes.into())?;
        add(&mut counters.orphans, self.orphans)?;
        add(&mut counters.reclaim_pending, self.reclaim_pending)
    }
}

impl Outcome {
    /// Starts an outcome that changes nothing and says "done".
    pub fn new(view: &View<'_>) -> Self {
        Self {
            seq: view.seq,
            reply: Body::Done,
            opens: Vec::new(),
            totals: Delta::default(),
            cut: None,
            purgeable: Vec::new(),
            durable_first: Seq(0),
            ends_run: None,
            inodes: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Returns this outcome with a reply.
    pub fn reply(mut self, reply: Body) -> Self {
        self.reply = reply;
        self
    }

    /// Returns an outcome that changes nothing.
    pub fn read(view: &View<'_>, reply: Body) -> Self {
        Self::new(view).reply(reply)
    }

    /// Returns the position of the change.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Returns whether any record changes.
    pub fn is_change(&self) -> bool {
        !self.inodes.is_empty() || !self.writes.is_empty() || self.totals != Delta::default()
    }

    /// Puts a record that is not an inode, and is not put twice by the same operation unless the later one counts.
    pub fn put(&mut self, key: Key, record: Record) {
        debug_assert!(!matches!(key, Key::Inode(_)), "inodes are made and edited");
        self.writes.push((key, Some(record)));
    }

    /// Deletes a record that is not an inode.
    pub fn delete(&mut self, key: Key) {
        debug_assert!(!matches!(key, Key::Inode(_)), "inodes are removed");
        self.writes.push((key, None));
    }

    /// Puts a new inode.
    pub fn make(&mut self, mut inode: Inode) {
        inode.seq = self.seq;
        self.totals.inodes += 1;
        self.totals.logical_bytes += inode.logical_bytes() as i64;
        self.inodes.push(Arc::new(inode));
    }

    /// Returns the inode as it will be.
    ///
    /// # Errors
    ///
    /// As [`View::inode`].
    pub fn inode(&self, view: &View<'_>, id: InodeId) -> Result<Arc<Inode>, Stop> {
        match self.inodes.iter().find(|inode| inode.id == id) {
            Some(inode) => Ok(Arc::clone(inode)),
            None => view.inode(id),
        }
    }

    /// Changes an inode; several changes of one inode add up.
    ///
    /// # Errors
    ///
    /// As [`View::inode`].
    pub fn edit(&mut self, view: &View<'_>, id: InodeId, change: impl FnOnce(&mut Inode)) -> Result<Arc<Inode>, Stop> {
        let at = match self.inodes.iter().position(|inode| inode.id == id) {
            Some(at) => at,
            None => {
                self.inodes.push(view.inode(id)?);
                self.inodes.len() - 1
            }
        };
        let inode = &mut self.inodes[at];
        let before = inode.logical_bytes();
        let edited = Arc::make_mut(inode);
        change(edited);
        edited.seq = self.seq;
        self.totals.logical_bytes += edited.logical_bytes() as i64 - before as i64;
        Ok(Arc::clone(inode))
    }

    /// As [`Self::edit`], for a directory in which a name changes: its other attributes are not shown to the caller.
    ///
    /// # Errors
    ///
    /// As [`View::directory`].
    pub fn edit_directory(
        &mut self,
        view: &View<'_>,
        id: InodeId,
        change: impl FnOnce(&mut Inode),
    ) -> Result<Arc<Inode>, Stop> {
        if !self.inodes.iter().any(|inode| inode.id == id) {
            self.inodes.push(view.directory(id)?);
        }
        self.edit(view, id, change)
    }

    /// Deletes an inode for good.
    ///
    /// # Errors
    ///
    /// As [`View::inode`].
    pub fn remove(&mut self, view: &View<'_>, id: InodeId) -> Result<(), Stop> {
        let inode = self.inode(view, id)?;
        self.inodes.retain(|inode| inode.id != id);
        self.totals.inodes -= 1;
        self.totals.logical_bytes -= inode.logical_bytes() as i64;
        self.writes.push((Key::Inode(id), None));
        Ok(())
    }

    /// Returns all writes; of several to one key the last counts.
    pub fn into_writes(self) -> impl Iterator<Item = (Key, Option<Record>)> {
        let inodes = self.inodes.into_iter().map(|inode| (Key::Inode(inode.id), Some(Record::Inode(inode))));
        self.writes.into_iter().chain(inodes)
    }
}
