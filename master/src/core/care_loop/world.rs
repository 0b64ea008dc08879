//! What the care is lent, what it hears from others between ticks, and what it tells of what it did.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use dfs_proto::replica_set::{Home, OrderKind, OrderReport};
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq};

use super::WAITING_MAX;
use crate::core::care::{ChunkFacts, SetChange};
use crate::core::inventory::Page;
use crate::core::orders::{Duty, Orders};

/// Most pages that wait: some ten megabytes.
const PAGES_MAX: usize = 256;

/// What the care is lent: the records, and the orders.
pub trait World {
    /// Returns up to `limit` chunks after `after` in order of their homes; `None` begins with the first.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`] if the master cannot serve.
    fn chunk_page(&mut self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError>;
    /// Returns the chunks at `homes`, in their order.
    ///
    /// # Errors
    ///
    /// As [`Self::chunk_page`].
    fn chunks(&mut self, homes: &[Home]) -> Result<Vec<Option<ChunkFacts>>, FsError>;
    /// Changes the set of the chunk at `home`, if it still is what the facts say. Returns it as it then is.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] if it is not; [`FsError::Io`].
    fn change(&mut self, chunk: &ChunkFacts, change: SetChange) -> Result<Option<ChunkFacts>, FsError>;
    /// Replaces a lost primary and settles whom to believe, as far as that can be done now. Returns the chunk as it then is.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    fn make_usable(&mut self, home: Home) -> Result<Option<ChunkFacts>, FsError>;
    /// Returns a grant for the primary of a chunk, sealed, once the version is durable; `None` if it cannot have one.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    fn grant(&mut self, chunk: &ChunkFacts) -> Result<Option<Bytes>, FsError>;
    /// Has the replica that `node` holds of a chunk that is not on record deleted, in the way of all deletions.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    fn reclaim(&mut self, node: NodeId, chunk: ChunkId) -> Result<(), FsError>;
    /// Returns whether the records are certain to be all there are: no mounts are to come back with what was not durable.
    fn may_delete(&mut self) -> bool;
    /// Returns where the log stands.
    fn seq(&mut self) -> Seq;
    /// Returns up to where the log is on stable media.
    fn durable(&mut self) -> Seq;
    /// Works on the orders.
    fn orders<T>(&mut self, work: impl FnOnce(&mut Orders) -> T) -> T;
}

/// What others have to say, between ticks.
#[derive(Debug, Default)]
pub struct Inbox {
    pub(super) urgent: BTreeSet<Home>,
    pub(super) damaged: BTreeSet<Home>,
    pub(super) pages: VecDeque<Page>,
}

impl Inbox {
    /// A set was changed: the chunk is looked at in the next tick.
    pub fn changed(&mut self, home: Home) {
        if self.urgent.len() < WAITING_MAX {
            self.urgent.insert(home);
        }
    }

    /// A replica is damaged: the chunk is scrubbed soon.
    pub fn damaged(&mut self, home: Home) {
        if self.damaged.len() < WAITING_MAX {
            self.damaged.insert(home);
        }
    }

    /// A server lists what it holds. Returns whether there was room for the page; if not, its list is not whole, and it is
    /// heard with the next one.
    pub fn listed(&mut self, page: Page) -> bool {
        let has_room = self.pages.len() < PAGES_MAX;
        if has_room {
            self.pages.push_back(page);
        }
        has_room
    }
}

/// Something that was done, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what their names say")]
pub enum Event {
    /// The master changed a set.
    Changed { home: Home, chunk: ChunkId, change: SetChange, error: Option<FsError> },
    /// An order came to its end.
    Finished { home: Home, chunk: ChunkId, node: NodeId, kind: OrderKind, result: Result<OrderReport, FsError> },
    /// An order was taken back.
    Withdrawn { duty: Duty },
    /// A replica is newer than its record.
    Frozen { node: NodeId, chunk: ChunkId },
    /// A replica of a chunk that is not on record is to be deleted.
    Reclaimed { node: NodeId, chunk: ChunkId },
    /// A member does not hold its replica.
    Lost { home: Home, chunk: ChunkId, node: NodeId },
}
