//! What goes into the core of a replica and what comes out of it.
//!
//! The core ([`super::replica`]) is a state machine: it is told of requests, of answers and of time, and says what is to
//! be sent, read, written and replied. A shell of threads carries that out in a server; a simulator carries it out in one
//! thread with a clock, a network and disks of its own.
//!
//! ```text
//!            Input                                    Effect
//!   Begin, Answered, DiskDone,  ──▶  one replica  ──▶  Send, Disk, AskMaster,
//!   MasterAnswered, Expired                            Reply, Expire
//! ```
//!
//! Everything belongs to a *call*: a request that began and has not been replied to. Each `Send`, `Disk` and `AskMaster`
//! is answered by one input with the same call and tag. A call that was replied to may still have answers to come: those
//! of disk jobs are always told, the others are ignored. A shell may carry out the effects of different calls in any
//! order, those of one call in the order they come.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::replica_set::{ChangeAnswer, ChangeRequest, Grant, Member, OrderReport};
use dfs_proto::{BootSession, FsError, MonoMs, NodeId, Version};

use super::reconcile::Table;
use super::unit::{UnitState, WriteStamp};

/// A request that is being worked on; unique within one run of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Which effect of a call an answer belongs to; unique within the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

/// What this server knows at the moment of a step, beside its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The time, on the clock that counts suspends.
    pub now: MonoMs,
    /// This server.
    pub node: NodeId,
    /// Its present run.
    pub boot: BootSession,
    /// Until when its node lease runs.
    pub lease_until: MonoMs,
    /// Bytes that may be written to this replica's disk before its reserve is touched.
    pub disk_room: u64,
    /// A number nobody can guess, new for each step.
    pub random: u64,
}

/// A grant whose seal was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// What it says.
    pub grant: Arc<Grant>,
    /// As it came, to be passed on.
    pub bytes: Bytes,
}

/// What is asked of a replica.
#[derive(Clone, Debug)]
pub enum Request {
    /// By a mount, or by the master on behalf of one: of the primary.
    Client {
        /// The right to ask.
        grant: Sealed,
        /// What for.
        request: ClientRequest,
    },
    /// By another chunk server.
    Peer {
        /// Which one.
        node: NodeId,
        /// In which run.
        boot: BootSession,
        /// The version it goes by.
        version: Version,
        /// What for.
        request: PeerRequest,
        /// Units that came with it; already held against their checksums.
        payload: Bytes,
    },
    /// By order of the master, of the primary: [`dfs_proto::replica_set::OrderKind`].
    Order {
        /// The right to carry it out.
        grant: Sealed,
        /// What for.
        order: ReplicaOrder,
    },
    /// By this server: its disk has failed, or is about to be given up. It leaves the replica set.
    Leave {
        /// Why, for the master's log.
        reason: String,
    },
}

/// What a mount asks of the primary.
#[derive(Clone, Debug)]
pub enum ClientRequest {
    /// Write `data` at `offset` in the chunk.
    Write {
        /// In bytes.
        offset: u32,
        /// Checksums of its pieces cut at unit boundaries; already held against `data`.
        crcs: Vec<u32>,
        /// 1 byte to 1 MiB.
        data: Bytes,
        /// Who asks, by a random number; 0: no protection against repeats is wanted.
        client: u64,
        /// Its number of the request.
        number: u64,
    },
    /// Make a range read as zeros.
    Zero {
        /// In bytes.
        offset: u32,
        /// In bytes, not 0.
        length: u32,
        /// As of a write.
        client: u64,
        /// As of a write.
        number: u64,
    },
    /// Read a range.
    Read {
        /// In bytes.
        offset: u32,
        /// In bytes, 1 to 1 MiB.
        length: u32,
    },
    /// Bring what was answered before to stable media, on all members.
    Barrier {
        /// The lowest version under which a write was acknowledged that it is to cover. 0: what was lost is not asked for.
        since: Version,
    },
    /// Which parts of a range hold data.
    Extents {
        /// In bytes.
        offset: u32,
        /// In bytes, not 0.
        length: u32,
    },
}

/// Orders of the master that need the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaOrder {
    /// Fill this syncing member, then have it taken into the set.
    Fill {
        /// Who is to be filled.
        node: NodeId,
    },
    /// Compare all members and repair; `deep`: after each has checked every unit.
    Scrub {
        /// Read the data too.
        deep: bool,
    },
    /// Stop to serve, and leave.
    HandOver,
}

/// What one server asks of another, about one chunk.
#[derive(Clone, Debug)]
pub enum PeerRequest {
    /// Take the version, follow the sender, and tell the unit table.
    Activate {
        /// The sender's right to lead.
        grant: Sealed,
        /// A random number, new for each attempt.
        activation: u64,
    },
    /// Apply a write. The payload has whole units.
    Prepare(Prepare),
    /// Bring writes up to `seq` to stable media.
    Barrier {
        /// The last write that is to be covered.
        seq: u64,
        /// Of the last Activate.
        activation: u64,
        /// Writes that all members have, for a replica that was filled: it is to know repeats of them too.
        keys: Vec<WriteKey>,
    },
    /// Tell units.
    Fetch {
        /// The first unit.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Take units; the payload has those that are no holes. Refused if a newer one is there. A unit may be lost
    /// ([`UnitState::is_lost`]).
    Push {
        /// The first unit.
        first: u32,
        /// What they hold.
        states: Vec<UnitState>,
        /// Of the last Activate.
        activation: u64,
        /// Whose writes they are, of those that are whole with them: to be noted together.
        keys: Vec<WriteKey>,
    },
    /// Read and check units, and tell damaged ones as lost from then on.
    Verify {
        /// The first unit.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// A write on its way from the primary to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// Its place in the order.
    pub seq: u64,
    /// The first unit.
    pub first: u32,
    /// How many units.
    pub count: u32,
    /// They become holes, and there is no payload.
    pub zero: bool,
    /// The checksum of each unit after the write; empty if `zero`.
    pub crcs: Vec<u32>,
    /// Who asked.
    pub client: u64,
    /// Its number of the request.
    pub number: u64,
    /// As of [`WriteKey`].
    pub part: u8,
    /// Of the last Activate.
    pub activation: u64,
    /// The seq up to which that activation made the members equal.
    pub base: u64,
}

/// The answer to a [`PeerRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    /// To Activate.
    Table {
        /// There was such a replica, and it was complete.
        present: bool,
        /// Its highest seq.
        seq: u64,
        /// Its units, ascending, those only that were ever written; lost are those that are known to be damaged.
        table: Table,
        /// The writes it remembers by who asked. What any member has applied is everywhere once all are equal, so the new
        /// primary must know a repeat of it, although it may not have had it itself.
        keys: Vec<WriteKey>,
    },
    /// To Prepare.
    Prepared {
        /// The write that was applied, now or before.
        seq: u64,
    },
    /// To Barrier and Push.
    Done,
    /// To Fetch.
    Units {
        /// What they hold.
        states: Vec<UnitState>,
        /// The content of those that are no holes, checked.
        payload: Bytes,
    },
    /// To Verify.
    Verified {
        /// Units that were read.
        checked: u32,
        /// Those that are damaged.
        bad: Vec<u32>,
    },
}

/// What is done to the files of a replica. No two jobs that are under way touch the same unit, unless both read.
#[derive(Clone, Debug)]
pub enum DiskJob {
    /// Tell the unit table, with those units as lost that are known to be damaged.
    Table,
    /// Tell the entries of units in a table, damaged units' too, as far as they are known.
    Entries {
        /// The first unit.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Read units and check them.
    Read {
        /// The first unit.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Write units.
    Put {
        /// The first unit.
        first: u32,
        /// What they hold afterwards.
        states: Vec<UnitState>,
        /// The content of those that are no holes.
        payload: Bytes,
        /// Whose write it is, to be found again after a restart.
        key: Option<WriteKey>,
        /// Refuse it if it would go into the disk's reserve (copies that make replicas equal may).
        needs_room: bool,
    },
    /// Turn units into holes.
    Zero {
        /// The first unit.
        first: u32,
        /// How many. 0: nothing but the key is noted.
        count: u32,
        /// The stamp of those that were ever written.
        stamp: WriteStamp,
        /// As of Put.
        key: Option<WriteKey>,
    },
    /// Take this version, and whether the replica lacks what others have; on stable media when it is done.
    SetHeader {
        /// The new version.
        version: Version,
        /// The new mark.
        incomplete: bool,
    },
    /// Bring everything that is done to stable media.
    Sync,
    /// Tell which units hold data.
    Extents {
        /// The first unit.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// Whose write a change of a replica is: told from then on, also after a restart, so that a repeat is not applied again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteKey {
    /// The mount.
    pub client: u64,
    /// Its number of the request.
    pub number: u64,
    /// 0, unless the request is carried out as several writes.
    pub part: u8,
    /// The stamp it was given.
    pub stamp: WriteStamp,
}

/// The answer to a [`DiskJob`].
#[derive(Clone, Debug)]
pub enum DiskAnswer {
    /// To Table and Entries.
    Table(Table),
    /// To Read: for each unit what it holds, `None` if it is damaged; and all content, holes as zeros.
    Units(Vec<Option<UnitState>>, Bytes),
    /// To Extents: `[first, end)`, ascending.
    Extents(Vec<(u32, u32)>),
    /// To all others.
    Done,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To Write and Zero.
    Written {
        /// The last place in the order that was used.
        seq: u64,
        /// The version under which all members have it; of several parts the lowest.
        version: Version,
    },
    /// To Read.
    Data {
        /// Checksums of the pieces; empty if the whole range is a hole.
        crcs: Vec<u32>,
        /// The bytes; empty if the whole range is a hole.
        data: Bytes,
    },
    /// To Barrier, Leave.
    Done,
    /// To Extents: `[first, end)` in units, ascending.
    Extents(Vec<(u32, u32)>),
    /// To a peer.
    Peer(PeerAnswer),
    /// To an order.
    Order(OrderReport),
}

/// What the core is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A request came.
    Begin {
        /// Its name from now on.
        call: CallId,
        /// When it must have been replied to.
        deadline: MonoMs,
        /// What is asked.
        request: Request,
    },
    /// A peer answered, or did not in time.
    Answered {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// `NoReplica` if it could not be reached or was silent.
        result: Result<PeerAnswer, FsError>,
    },
    /// A job is done.
    DiskDone {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// `NoSpace`; `NoReplica` if the disk has failed.
        result: Result<DiskAnswer, FsError>,
    },
    /// The master answered. An error means that nobody knows whether it was done.
    MasterAnswered {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// What it said.
        result: Result<MasterAnswer, FsError>,
    },
    /// A time came that was asked for with [`Effect::Expire`].
    Expired {
        /// Whose.
        call: CallId,
    },
    /// The call's thread broke: nobody will carry out what is left of it.
    Abandoned {
        /// Which.
        call: CallId,
    },
}

/// A [`ChangeAnswer`] whose grant's seal was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterAnswer {
    /// Whether the change was done.
    pub result: Result<(), FsError>,
    /// How the set stands, if this server is its primary.
    pub grant: Option<Sealed>,
}

impl MasterAnswer {
    /// Returns the answer with its grant opened by `open`.
    pub fn opened(answer: ChangeAnswer, open: impl FnOnce(&Bytes) -> Option<Grant>) -> Self {
        let grant = answer.grant.and_then(|bytes| open(&bytes).map(|grant| Sealed { grant: Arc::new(grant), bytes }));
        Self { result: answer.result, grant }
    }
}

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Ask another server. Answered by [`Input::Answered`], at the latest when `until` has come.
    Send {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// Who is asked.
        to: Member,
        /// The version this replica goes by.
        version: Version,
        /// What is asked.
        request: PeerRequest,
        /// Units.
        payload: Bytes,
        /// When to give up.
        until: MonoMs,
    },
    /// Use the disk. Answered by [`Input::DiskDone`].
    Disk {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// What is to be done.
        job: DiskJob,
    },
    /// Ask the master for a change of the set. Answered by [`Input::MasterAnswered`], at the latest when `until` has come.
    AskMaster {
        /// Whose effect.
        call: CallId,
        /// Which one.
        tag: Tag,
        /// What is asked.
        request: ChangeRequest,
        /// When to give up.
        until: MonoMs,
    },
    /// Tell [`Input::Expired`] once this time has come. A later one of the same call replaces it.
    Expire {
        /// Whose.
        call: CallId,
        /// When.
        at: MonoMs,
    },
    /// Nothing is to be done: something happened that an operator may want to know.
    Note(Event),
    /// The call is over: its caller is told.
    Reply {
        /// Which.
        call: CallId,
        /// What it is told.
        result: Result<Reply, FsError>,
    },
}

/// What happened to a replica, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It became the active primary.
    Activated {
        /// Under this version.
        version: Version,
        /// Units that were copied to make the members equal.
        copied: u64,
        /// Units of equal age that differed.
        doubts: u64,
    },
    /// Units were found damaged.
    Damaged {
        /// The first of them.
        unit: u32,
        /// How many.
        count: u32,
        /// On which server.
        node: NodeId,
    },
    /// A unit was taken from another member.
    Repaired {
        /// Which.
        unit: u32,
    },
    /// A member was lost, and the master is asked to drop it.
    Dropping {
        /// Which one.
        node: NodeId,
        /// What was the matter with it.
        reason: String,
    },
    /// This server stops to serve, and asks the master to leave the set.
    Leaving {
        /// Why.
        reason: String,
    },
    /// No member has the content of this chunk any more.
    Lost,
}
