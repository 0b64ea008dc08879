//! The chunk servers: who they are, whether they live, what they hold, what they are told to delete.
//!
//! In memory only. After a restart of the master the table is filled with the nodes on record, all of them silent;
//! each registers again when its next pulse is answered "unknown".
//!
//! ```text
//!              register                 no pulse for lease_ms           no sign for offline_ms
//!   on record ──────────▶ online ────────────────────────▶ lease expired ────────────────────▶ offline
//!                          ▲ ▲        pulse or report of the same boot session  │                 │
//!                          │ └──────────────────────────────────────────────────┴─────────────────┤
//!                          └──────────────────────────── register ────────────────────────────────┘
//! ```
//!
//! A lease is over for a server a little before it is for the master, who counts from its answer and adds a guard for clocks
//! that run at different speeds. A restarted master does not know the leases that it gave before: they are over once as
//! long as one has passed.
//!
//! # Invariants
//!
//! - A node id belongs to one boot session (run) at a time, the last that registered; pulses of any other are unknown.
//! - A run whose lease was certainly over when others were given its roles has ended: its lease is never renewed.
//! - Nothing here reads a clock: `now` is an argument, and never goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::limits::CHUNK_SIZE;
use dfs_proto::planted::{self, Bug};
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Seq, SessionId};

use super::care::NodeFacts;
use super::fences::Fences;
use super::placement::{self, Candidate, PlacementError, Wanted};
use super::record;
use super::ring::Ring;
use super::standing::Standing;

/// Most chunk ids in the delete queue of one node. What does not fit is planned again later.
pub const DELETE_QUEUE_MAX: usize = 10_000;
/// Most deletions in the answer to one pulse.
pub const DELETE_ORDERS_MAX: usize = 1_000;

/// One disk of a chunk server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Made when the disk was first used.
    pub disk_id: Vec<u8>,
    /// Where it is, on its host.
    pub path: String,
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes left for replicas, the reserve taken off.
    pub free_bytes: u64,
    /// Replicas on it.
    pub replicas: u64,
    /// Fenced after a failure.
    pub failed: bool,
}

/// Whether a node can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// It holds a node lease.
    Online,
    /// It was heard of lately, but holds no lease.
    LeaseExpired,
    /// Nothing was heard of it for long.
    Offline,
}

impl NodeState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Online, Self::LeaseExpired, Self::Offline];

    /// Returns the word for it in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::LeaseExpired => "lease_expired",
            Self::Offline => "offline",
        }
    }
}

/// Where a chunk server is, and whether it may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLocation {
    /// `host:port` of its data plane.
    pub address: String,
    /// The run of its process that registered last; grants name it. 0 (which no process has): it has not registered
    /// with this run of the master, or its run has ended, and nobody would honour a grant.
    pub boot: BootSession,
    /// Its node lease runs.
    pub lease_valid: bool,
    /// A sign of life within the offline verdict.
    pub online: bool,
}

/// Bytes over all servers that are not offline, raw (not divided by replicas).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Capacity of working disks.
    pub total_bytes: u64,
    /// Free for replicas.
    pub free_bytes: u64,
}

/// One chunk server.
#[derive(Debug)]
pub struct Node {
    /// What it said of itself.
    pub facts: NodeFacts,
    /// Where its data plane is, to be shared.
    pub data_address: Arc<str>,
    /// The run of its process that holds the id; `None` until it has registered with this run of the master.
    pub boot: Option<BootSession>,
    /// When it was last heard of; `None` as for `boot`.
    pub last_seen: Option<MonoMs>,
    /// Its disks, as last reported.
    pub disks: Vec<Disk>,
    /// End of its node lease as the master counts it.
    pub lease_until: MonoMs,
    /// End of the last lease of any run before the present one.
    former_until: MonoMs,
    /// Others were given the roles of its present run.
    has_ended: bool,
    /// Where the log stood when it last came back without what it had not synced; 0: never.
    pub suspect_seq: Seq,
    /// It is to be emptied: nothing is placed there.
    pub is_draining: bool,
    /// Fences up to here are in force there.
    fenced_up_to: Seq,
    /// Chunks placed there since its last report. A number to balance by, so that placement can share the table.
    recent: AtomicU64,
    deletions: BTreeSet<ChunkId>,
    /// Deletions that were reported as done and are not on record as such yet.
    deleted: BTreeSet<ChunkId>,
    recorded_replicas: u64,
}

impl Node {
    fn new(facts: NodeFacts) -> Self {
        Self {
            data_address: Arc::from(facts.data_address.as_str()),
            facts,
            boot: None,
            last_seen: None,
            disks: Vec::new(),
            lease_until: MonoMs(0),
            former_until: MonoMs(0),
            has_ended: false,
            suspect_seq: Seq(0),
            is_draining: false,
            fenced_up_to: Seq(0),
            recent: AtomicU64::new(0),
            deletions: BTreeSet::new(),
            deleted: BTreeSet::new(),
            recorded_replicas: 0,
        }
    }

    /// Returns the size of its working disks, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.working_disks().map(|disk| disk.capacity_bytes).sum()
    }

    /// Returns what is left on its working disks, in bytes.
    pub fn free_bytes(&self) -> u64 {
        self.working_disks().map(|disk| disk.free_bytes).sum()
    }

    /// Returns the replicas on its working disks.
    pub fn replicas(&self) -> u64 {
        self.working_disks().map(|disk| disk.replicas).sum()
    }

    /// Returns the replicas it should have, as of the caretaker's last count of the chunk records.
    pub fn recorded_replicas(&self) -> u64 {
        self.recorded_replicas
    }

    /// Returns how many deletions it has been told of, or will be, and has not reported as done.
    pub fn pending_deletions(&self) -> usize {
        self.deletions.len()
    }

    /// Returns the run that grants are made for; 0: none.
    pub fn granted_boot(&self) -> BootSession {
        if self.has_ended { BootSession(0) } else { self.boot.unwrap_or_default() }
    }

    fn working_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| !disk.failed)
    }

    /// A replica is on one disk, so what counts for it is the emptiest.
    fn free_bytes_of_one_disk(&self) -> u64 {
        self.working_disks().map(|disk| disk.free_bytes).max().unwrap_or(0)
    }
}

/// All chunk servers that ever registered.
#[derive(Debug)]
pub struct NodeTable {
    lease_ms: u64,
    offline_ms: u64,
    /// When this run of the master began.
    started: MonoMs,
    nodes: BTreeMap<NodeId, Node>,
    ring: Ring,
    fences: Fences,
}

/// What a chunk server is told with each pulse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PulseAnswer {
    /// Replicas to delete, the lowest ids first; repeated until reported as deleted.
    pub delete: Vec<ChunkId>,
    /// Sessions whose requests are to be refused.
    pub fenced: Vec<SessionId>,
    /// The position of the last fence.
    pub fence_seq: Seq,
}

impl NodeTable {
    /// Returns an empty table: leases of `lease_ms`, offline after `offline_ms` of silence.
    pub fn new(lease_ms: u64, offline_ms: u64) -> Self {
        Self {
            lease_ms,
            offline_ms,
            started: MonoMs(0),
            nodes: BTreeMap::new(),
            ring: Ring::new(),
            fences: Fences::default(),
        }
    }

    /// Notes when this run of the master began: leases that an earlier one gave may still run.
    pub fn begin(&mut self, now: MonoMs) {
        self.started = now;
    }

    /// Returns when this run of the master began.
    pub fn started(&self) -> MonoMs {
        self.started
    }

    /// Returns the sessions that are fenced.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }

    /// Returns the sessions that are fenced, to be changed.
    pub fn fences_mut(&mut self) -> &mut Fences {
        &mut self.fences
    }

    /// Adds nodes that are on record but have not registered with this run of the master: offline until they do.
    pub fn restore(&mut self, known: impl IntoIterator<Item = (NodeId, NodeFacts)>) {
        for (id, facts) in known {
            self.nodes.entry(id).or_insert_with(|| Node::new(facts));
        }
    }

    /// Takes over from the record of node `id` what does not come from the server itself.
    pub fn note_record(&mut self, id: NodeId, record: &record::Node) {
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(record.facts.clone()));
        (node.suspect_seq, node.is_draining) = (record.suspect_seq, record.is_draining);
    }

    /// Forgets node `id`.
    pub fn remove(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.ring.remove(id);
    }

    /// Takes note of a start of node `id`, and gives it a lease. The caller has made its id durable.
    ///
    /// An earlier boot session loses the id at once: whoever registers holds the lock of the data directory, so the
    /// other process is gone.
    pub fn register(&mut self, id: NodeId, facts: NodeFacts, boot: BootSession, disks: Vec<Disk>, now: MonoMs) {
        let mut node = Node {
            boot: Some(boot),
            last_seen: Some(now),
            disks,
            lease_until: now.plus(self.lease_ms),
            former_until: self.started.plus(self.lease_ms),
            ..Node::new(facts)
        };
        if let Some(before) = self.nodes.remove(&id) {
            let is_same_run = before.boot == Some(boot) && !before.has_ended;
            node.former_until = match before.boot {
                Some(_) if is_same_run => before.former_until,
                Some(_) => before.former_until.max(before.lease_until),
                None => node.former_until,
            };
            node.fenced_up_to = if is_same_run { before.fenced_up_to } else { Seq(0) };
            node.suspect_seq = before.suspect_seq;
            node.is_draining = before.is_draining;
            node.deletions = before.deletions;
            node.deleted = before.deleted;
            node.recorded_replicas = before.recorded_replicas;
        }
        self.ring.set(id, node.capacity_bytes());
        self.nodes.insert(id, node);
    }

    /// Renews the lease of node `id`, which has fences up to `fenced_up_to` in force, and forgets the deletions it has
    /// done.
    ///
    /// `None`: unknown, it has to register.
    pub fn pulse(
        &mut self,
        id: NodeId,
        boot: BootSession,
        deleted: &[ChunkId],
        fenced_up_to: Seq,
        now: MonoMs,
    ) -> Option<PulseAnswer> {
        let lease_until = now.plus(self.lease_ms);
        let node = self.of_session(id, boot)?;
        // Pulses may come in any order; the server goes by the latest.
        node.last_seen = node.last_seen.max(Some(now));
        node.lease_until = node.lease_until.max(lease_until);
        node.fenced_up_to = node.fenced_up_to.max(fenced_up_to);
        for chunk in deleted {
            node.deletions.remove(chunk);
            // What does not fit is ordered again, and reported again.
            if node.deleted.len() < DELETE_QUEUE_MAX {
                node.deleted.insert(*chunk);
            }
        }
        let delete = node.deletions.iter().take(DELETE_ORDERS_MAX).copied().collect();
        Some(PulseAnswer { delete, fenced: self.fences.sessions(), fence_seq: self.fences.last() })
    }

    /// Takes note of the disks of node `id`. Returns whether it is known. A report is a sign of life but no lease.
    pub fn report(&mut self, id: NodeId, boot: BootSession, disks: Vec<Disk>, now: MonoMs) -> bool {
        let Some(node) = self.of_session(id, boot) else { return false };
        node.last_seen = Some(now);
        node.disks = disks;
        node.recent = AtomicU64::new(0);
        let capacity_bytes = node.capacity_bytes();
        self.ring.set(id, capacity_bytes);
        true
    }

    fn of_session(&mut self, id: NodeId, boot: BootSession) -> Option<&mut Node> {
        self.nodes.get_mut(&id).filter(|node| node.boot == Some(boot) && !node.has_ended)
    }

    /// Puts `chunks` on the delete queue of node `id`, as far as there is room.
    pub fn order_deletions(&mut self, id: NodeId, chunks: impl IntoIterator<Item = ChunkId>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for chunk in chunks {
            if node.deletions.len() == DELETE_QUEUE_MAX {
                break;
            }
            node.deletions.insert(chunk);
        }
    }

    /// Takes the deletions that were reported as done since the last call, by node.
    pub fn take_deleted(&mut self) -> Vec<(NodeId, Vec<ChunkId>)> {
        let with_any = self.nodes.iter_mut().filter(|(_, node)| !node.deleted.is_empty());
        with_any.map(|(id, node)| (*id, std::mem::take(&mut node.deleted).into_iter().collect())).collect()
    }

    /// Takes note of how many replicas each node holds by the chunk records; nodes that are not in `counts` hold none.
    pub fn set_recorded_replicas(&mut self, counts: &BTreeMap<NodeId, u64>) {
        for (id, node) in &mut self.nodes {
            node.recorded_replicas = counts.get(id).copied().unwrap_or(0);
        }
    }

    /// Returns node `id`.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Returns all nodes by id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// Returns the state of node `id`; one that is not known is offline.
    pub fn state(&self, id: NodeId, now: MonoMs) -> NodeState {
        self.nodes.get(&id).map_or(NodeState::Offline, |node| self.state_of(node, now))
    }

    fn state_of(&self, node: &Node, now: MonoMs) -> NodeState {
        match node.last_seen {
            Some(_) if now < node.lease_until && !node.has_ended => NodeState::Online,
            Some(seen) if now.since(seen) < self.offline_ms => NodeState::LeaseExpired,
            _ => NodeState::Offline,
        }
    }

    /// Returns how node `id` stands. One that is not known holds nothing.
    pub fn standing(&self, id: NodeId, now: MonoMs) -> Standing {
        let Some(node) = self.nodes.get(&id) else {
            let silent_ms = now.since(self.started);
            return Standing { is_lease_over: self.is_over(MonoMs(0), now), silent_ms, ..Standing::default() };
        };
        Standing {
            boot: node.granted_boot(),
            is_online: self.state_of(node, now) == NodeState::Online,
            is_lease_over: self.is_lease_over(node, now),
            are_former_leases_over: self.is_over(node.former_until, now),
            suspect_seq: node.suspect_seq,
            silent_ms: now.since(node.last_seen.unwrap_or(self.started)),
        }
    }

    /// Returns whether no run of node `id` can hold a lease any more.
    pub fn lease_certainly_over(&self, id: NodeId, now: MonoMs) -> bool {
        self.standing(id, now).is_lease_over
    }

    /// Ends the present run of node `id`, if it cannot hold a lease any more: others may be given its roles, and it is not
    /// believed again before it registers as a new one. Returns whether that is so.
    pub fn end_run(&mut self, id: NodeId, now: MonoMs) -> bool {
        let is_over = self.lease_certainly_over(id, now);
        if is_over && let Some(node) = self.nodes.get_mut(&id) {
            node.has_ended |= node.boot.is_some();
        }
        is_over
    }

    fn is_lease_over(&self, node: &Node, now: MonoMs) -> bool {
        if planted::is(Bug::TakeOverTooEarly) {
            return node.last_seen.is_none_or(|seen| now.since(seen) >= self.lease_ms / 2);
        }
        node.has_ended || self.is_over(node.lease_until.max(node.former_until), now)
    }

    /// Returns whether a lease up to `until` has certainly ended for whoever held it, and those of an earlier run of the
    /// master too.
    fn is_over(&self, until: MonoMs, now: MonoMs) -> bool {
        let earlier_until =
            if planted::is(Bug::NoWaitAfterRestart) { MonoMs(0) } else { self.started.plus(self.lease_ms) };
        now >= until.max(earlier_until).plus(self.guard_ms())
    }

    /// What clocks may differ by in the span of a lease.
    fn guard_ms(&self) -> u64 {
        self.lease_ms / 100 + 100
    }

    /// Returns whether nobody takes requests of `session` any more: it is fenced, and every server has that in force or
    /// holds no lease. One that is not fenced, or no longer, is none of our concern.
    pub fn is_fence_complete(&self, session: SessionId, now: MonoMs) -> bool {
        self.fences
            .seq(session)
            .is_none_or(|seq| self.nodes.values().all(|node| node.fenced_up_to >= seq || self.is_lease_over(node, now)))
    }

    /// Returns where node `id` is, if it ever registered.
    pub fn location(&self, id: NodeId, now: MonoMs) -> Option<NodeLocation> {
        let node = self.nodes.get(&id)?;
        let state = self.state_of(node, now);
        Some(NodeLocation {
            address: node.facts.data_address.clone(),
            boot: node.granted_boot(),
            lease_valid: state == NodeState::Online,
            online: state != NodeState::Offline,
        })
    }

    /// Returns the space of all nodes that are not offline.
    pub fn space(&self, now: MonoMs) -> Space {
        let there = self.nodes.values().filter(|node| self.state_of(node, now) != NodeState::Offline);
        there.fold(Space::default(), |sum, node| Space {
            total_bytes: sum.total_bytes + node.capacity_bytes(),
            free_bytes: sum.free_bytes + node.free_bytes(),
        })
    }

    /// Chooses distinct nodes for a new chunk, the primary first: `replicas` of them, or fewer (but at least 2, or 1 if
    /// `replicas` is 1) if not more are fit.
    ///
    /// # Errors
    ///
    /// [`FsError::NoSpace`] if nodes are alive but full, [`FsError::NoReplica`] if too few are alive.
    pub fn place(&self, seed: u64, replicas: usize, now: MonoMs) -> Result<Vec<NodeId>, FsError> {
        let wanted = Wanted { replicas, replicas_min: replicas.min(2), chunk_bytes: CHUNK_SIZE, seed, exclude: &[] };
        self.place_wanted(&wanted, now).map_err(|error| match error {
            PlacementError::NoSpace { .. } => FsError::NoSpace,
            PlacementError::TooFewNodes { .. } => FsError::NoReplica(error.to_string()),
        })
    }

    /// Chooses nodes for a chunk and remembers that they have more to do. The first one is to be the primary.
    ///
    /// # Errors
    ///
    /// [`PlacementError`].
    pub fn place_wanted(&self, wanted: &Wanted<'_>, now: MonoMs) -> Result<Vec<NodeId>, PlacementError> {
        let candidates: BTreeMap<NodeId, Candidate<'_>> = self
            .nodes
            .iter()
            .map(|(id, node)| {
                let candidate = Candidate {
                    host: &node.facts.host,
                    rack: &node.facts.rack,
                    free_bytes: node.free_bytes_of_one_disk(),
                    is_usable: self.state_of(node, now) == NodeState::Online && !node.is_draining,
                    recent: node.recent.load(Ordering::Relaxed),
                };
                (*id, candidate)
            })
            .collect();
        let chosen = placement::place(&self.ring, &candidates, wanted)?;
        for node in chosen.iter().filter_map(|id| self.nodes.get(id)) {
            node.recent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(chosen)
    }
}

#[cfg(test)]
#[path = "node_table_tests.rs"]
mod tests;
