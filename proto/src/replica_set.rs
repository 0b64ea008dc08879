//! The replica set of a chunk: who holds it, who orders its writes, and how that is changed.
//!
//! The master alone changes a replica set, each time by a compare-and-set on its `version`, which rises with it
//! (PacificA, MSR-TR-2008-25). Chunk servers ask for changes ([`ChangeRequest`]), and learn of them by a [`Grant`].
//!
//! ```text
//!            repair, a move: the master          the primary has made it equal: FinishSync
//!  (nothing) ────────────────────────▶ syncing ─────────────────────────────────────────▶ in sync
//!      ▲  an old replica there is          │  cannot be filled: Drop                        │
//!      └──── deleted, or filled again ◀────┴────────────────────────────────────────────────┘
//!                                                     silent or refusing: Drop; its own word: Leave
//! ```

use std::sync::Arc;

use crate::{BootSession, ChunkId, ChunkIndex, FsError, InodeId, NodeId, Version};

/// Which piece of which file a chunk is: where the master finds its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home {
    /// The file.
    pub inode: InodeId,
    /// The place in it.
    pub index: ChunkIndex,
}

/// One server of a replica set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which server.
    pub node: NodeId,
    /// Its data plane, `host:port`.
    pub address: Arc<str>,
}

/// The right to be the primary of a chunk, or to be led by it: what the master seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The chunk it is for.
    pub chunk: ChunkId,
    /// Where the master has its record.
    pub home: Home,
    /// The version of its replica set.
    pub version: Version,
    /// Who orders its writes.
    pub primary: NodeId,
    /// The run of the primary that it is for; void for any other.
    pub primary_boot: BootSession,
    /// The replicas that are in sync, the primary's too.
    pub members: Vec<Member>,
    /// Replicas that are being filled: they are sent every write, and nobody waits for them.
    pub syncing: Vec<Member>,
    /// With fewer members than this, writes and syncs are not acknowledged.
    pub min_in_sync: u32,
    /// Nothing was committed yet: an absent replica is an empty one.
    pub may_create: bool,
    /// log2 of the chunk's bytes.
    pub chunk_size_log2: u32,
    /// What was acknowledged under versions before this and never synced may be lost; 0: nothing ever was.
    pub loss_version: Version,
}

impl Grant {
    /// Returns the in-sync members other than `node`.
    pub fn others(&self, node: NodeId) -> Vec<Member> {
        self.members.iter().filter(|member| member.node != node).cloned().collect()
    }

    /// Returns whether `node` is in sync or being filled.
    pub fn names(&self, node: NodeId) -> bool {
        self.members.iter().chain(&self.syncing).any(|member| member.node == node)
    }
}

/// What a chunk server asks the master to change about a replica set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The primary: this member or syncing replica is silent, refuses, or is damaged. One reporter's word is enough to
    /// leave, never to enter.
    Drop {
        /// Who is to leave.
        node: NodeId,
    },
    /// Any holder: this server cannot keep its own replica (its disk failed, its file is gone, it is to be emptied). If it
    /// is the primary, it has stopped to serve and will not again under this version.
    Leave,
    /// The primary: this syncing replica has everything, and no write is let in until the answer.
    FinishSync {
        /// Who is in sync now.
        node: NodeId,
    },
    /// The primary: nothing; it does not know what became of an earlier request, and asks how the set stands.
    Refresh,
}

/// A request of a chunk server to change the replica set of one chunk. Refused as `Stale` unless the set is still at
/// `version`, the sender is what [`ChangeKind`] asks for, and `boot` is its present run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRequest {
    /// Who asks.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// For which chunk.
    pub chunk: ChunkId,
    /// Where its record is.
    pub home: Home,
    /// The version that the sender knows.
    pub version: Version,
    /// What it asks for.
    pub kind: ChangeKind,
    /// Why, for the master's log.
    pub reason: String,
}

/// The answer to a [`ChangeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeAnswer {
    /// Whether it was done, now or by an earlier copy of the request.
    pub result: Result<(), FsError>,
    /// How the set stands now, sealed, if the sender is its primary.
    pub grant: Option<bytes::Bytes>,
}

/// Something the master has a chunk server do; repeated with each pulse until its outcome was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Chosen by the master; unique within one run of it.
    pub id: u64,
    /// The chunk it is about.
    pub chunk: ChunkId,
    /// What to do.
    pub kind: OrderKind,
    /// The grant of the primary, sealed; empty for [`OrderKind::Discard`].
    pub grant: bytes::Bytes,
}

/// What an [`Order`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// To the primary: copy to this syncing replica what it lacks, then ask for [`ChangeKind::FinishSync`].
    Fill {
        /// Who is to be filled.
        node: NodeId,
    },
    /// To the primary: compare the unit tables of all members and repair what differs; `deep`: each member reads and
    /// checks every unit first.
    Scrub {
        /// Read the data too.
        deep: bool,
    },
    /// To the primary: stop to serve and ask for [`ChangeKind::Leave`]; its server is to be emptied.
    HandOver,
    /// To any server: delete its replica if the version of it is below this one.
    Discard {
        /// The first version that is kept.
        below: Version,
    },
}

/// What became of an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderOutcome {
    /// Which order.
    pub id: u64,
    /// What was done, or why it was not.
    pub result: Result<OrderReport, FsError>,
}

/// What was done for an [`Order`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrderReport {
    /// Bytes of units that were copied between servers.
    pub copied_bytes: u64,
    /// Units whose data was read and checked, over all members.
    pub checked_units: u64,
    /// Units that were damaged or differed.
    pub bad_units: u64,
    /// Those of them that are good again everywhere.
    pub repaired_units: u64,
}
