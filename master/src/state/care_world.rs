//! What the care for replicas is lent by the state of a master.

use std::collections::BTreeMap;

use bytes::Bytes;
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq};

use super::MasterState;
use super::care::chunk_facts;
use crate::core::care::{ChunkFacts, SetChange};
use crate::core::care_loop::{Care, World};
use crate::core::check::Mend;
use crate::core::fleet::FleetNode;
use crate::core::key::{Key, Range};
use crate::core::op;
use crate::core::orders::Orders;
use crate::core::record::Record;
use crate::core::view::{Known, Records};

impl MasterState {
    /// Returns up to `limit` chunks after `after` in order of their homes, with what their files want of them; `None` begins
    /// with the first.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn facts_page(
        &mut self,
        after: Option<(InodeId, ChunkIndex)>,
        limit: usize,
    ) -> Result<Vec<ChunkFacts>, FsError> {
        let found = self.scan(Range::chunks_after(after, limit))?;
        let mut file = None;
        let mut page = Vec::with_capacity(found.len());
        for (key, record) in &found {
            let Key::Chunk(inode, _) = key else { continue };
            if file.as_ref().is_none_or(|(of, _)| of != inode) {
                file = Some((*inode, self.look_up(&Key::Inode(*inode))?));
            }
            let inode = match &file {
                Some((_, Some(Record::Inode(inode)))) => Some(&**inode),
                _ => None,
            };
            page.extend(chunk_facts(key, record, inode));
        }
        Ok(page)
    }

    /// Returns the chunks at `homes`, in their order, with what their files want of them.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn facts_of(&mut self, homes: &[Home]) -> Result<Vec<Option<ChunkFacts>>, FsError> {
        self.commit().map_err(|error| self.stop_serving(&error))?;
        let mut facts = Vec::with_capacity(homes.len());
        for home in homes {
            let key = Key::Chunk(home.inode, home.index);
            let Some(record) = self.look_up(&key)? else {
                facts.push(None);
                continue;
            };
            let inode = match self.look_up(&Key::Inode(home.inode))? {
                Some(Record::Inode(inode)) => Some(inode),
                _ => None,
            };
            facts.push(chunk_facts(&key, &record, inode.as_deref()));
        }
        Ok(facts)
    }

    /// Reads a record past the cache if it is not in there: a pass over all of them must not drive out those in use. What
    /// was done so far is committed.
    fn look_up(&self, key: &Key) -> Result<Option<Record>, FsError> {
        match self.records.find(key) {
            Some(Known::Present(record)) => Ok(Some(record)),
            Some(Known::Absent(_)) => Ok(None),
            None => self.records.read(key).map_err(|error| self.stop_serving(&error)),
        }
    }

    /// Has the replica that `node` holds of a chunk that is not on record deleted, in the way of all deletions.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn reclaim_unknown(&mut self, node: NodeId, chunk: ChunkId) -> Result<(), FsError> {
        let now = self.clock.wall();
        self.internal(|view| op::reclaim_unknown(view, now, node, chunk)).map(|_| ())
    }

    /// Returns whether the records are certain to be all there are: no mounts are to come back with what was not durable.
    pub fn may_delete(&mut self) -> bool {
        !self.is_in_reclaim_window()
    }

    /// Returns the chunk servers as planners see them now.
    pub fn fleet(&self) -> BTreeMap<NodeId, FleetNode> {
        FleetNode::all(&self.nodes().read(), self.clock.mono())
    }

    /// Corrects numbers that a check found to be wrong.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] if they are not what they were; [`FsError::Io`].
    pub fn mend(&mut self, mend: &Mend) -> Result<(), FsError> {
        self.internal(|view| op::mend(view, mend)).map(|_| ())
    }

    /// Has `care` do a bounded piece of its work, for whoever holds the state alone: a simulator does this every second.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`] if the master cannot serve.
    pub fn care(&mut self, care: &mut Care, grant_key: &GrantKey) -> Result<(), FsError> {
        let (now, nodes) = (self.clock.mono(), self.fleet());
        let inbox = std::mem::take(&mut *self.control().inbox.lock());
        care.tick(now, nodes, inbox, &mut StateWorld { state: self, grant_key })
    }

    /// As [`World::change`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn change_facts(&mut self, chunk: &ChunkFacts, change: SetChange) -> Result<Option<ChunkFacts>, FsError> {
        self.change_by_master(chunk.home(), chunk.version, change)?;
        Ok(self.facts_of(&[chunk.home()])?.pop().flatten())
    }

    /// As [`World::make_usable`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn usable_facts(&mut self, home: Home) -> Result<Option<ChunkFacts>, FsError> {
        match self.make_usable(home) {
            Ok(_) | Err(FsError::TryAgain(_)) => Ok(self.facts_of(&[home])?.pop().flatten()),
            Err(error) => Err(error),
        }
    }
}

/// The state as the care sees it, for whoever holds it alone: it syncs when something must be durable.
pub struct StateWorld<'a> {
    /// The state.
    pub state: &'a mut MasterState,
    /// Seals grants.
    pub grant_key: &'a GrantKey,
}

impl World for StateWorld<'_> {
    fn chunk_page(&mut self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        self.state.facts_page(after, limit)
    }

    fn chunks(&mut self, homes: &[Home]) -> Result<Vec<Option<ChunkFacts>>, FsError> {
        self.state.facts_of(homes)
    }

    fn change(&mut self, chunk: &ChunkFacts, change: SetChange) -> Result<Option<ChunkFacts>, FsError> {
        self.state.change_facts(chunk, change)
    }

    fn make_usable(&mut self, home: Home) -> Result<Option<ChunkFacts>, FsError> {
        self.state.usable_facts(home)
    }

    fn grant(&mut self, chunk: &ChunkFacts) -> Result<Option<Bytes>, FsError> {
        let granted = match self.state.grant(chunk.home()) {
            Ok(Some(granted)) => granted,
            Ok(None) | Err(FsError::TryAgain(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if granted.durable_first > self.state.durability().durable() {
            self.state.sync().map_err(|error| self.state.stop_serving(&error))?;
        }
        Ok(Some(self.grant_key.seal(&granted.grant)))
    }

    fn reclaim(&mut self, node: NodeId, chunk: ChunkId) -> Result<(), FsError> {
        self.state.reclaim_unknown(node, chunk)
    }

    fn may_delete(&mut self) -> bool {
        self.state.may_delete()
    }

    fn seq(&mut self) -> Seq {
        self.state.durability().committed()
    }

    fn durable(&mut self) -> Seq {
        self.state.durability().durable()
    }

    fn orders<T>(&mut self, work: impl FnOnce(&mut Orders) -> T) -> T {
        work(&mut self.state.control().orders.lock())
    }
}
