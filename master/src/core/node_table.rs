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
//! # Invariants
//!
//! - A node id belongs to one boot session at a time, the last that registered; pulses of any other are unknown.
//! - Nothing here reads a clock: `now` is an argument, and never goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::limits::CHUNK_SIZE;
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId};

use super::care::NodeFacts;
use super::placement::{self, Candidate, PlacementError, Wanted};
use super::ring::Ring;

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
    /// with this run of the master, and nobody would honour a grant.
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
    /// The run of its process that holds the id; `None` until it has registered with this run of the master.
    pub boot: Option<BootSession>,
    /// When it was last heard of; `None` as for `boot`.
    pub last_seen: Option<MonoMs>,
    /// Its disks, as last reported.
    pub disks: Vec<Disk>,
    /// End of its node lease as the master counts it.
    pub lease_until: MonoMs,
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
            facts,
            boot: None,
            last_seen: None,
            disks: Vec::new(),
            lease_until: MonoMs(0),
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
    nodes: BTreeMap<NodeId, Node>,
    ring: Ring,
}

impl NodeTable {
    /// Returns an empty table: leases of `lease_ms`, offline after `offline_ms` of silence.
    pub fn new(lease_ms: u64, offline_ms: u64) -> Self {
        Self { lease_ms, offline_ms, nodes: BTreeMap::new(), ring: Ring::new() }
    }

    /// Adds nodes that are on record but have not registered with this run of the master: offline until they do.
    pub fn restore(&mut self, known: impl IntoIterator<Item = (NodeId, NodeFacts)>) {
        for (id, facts) in known {
            self.nodes.entry(id).or_insert_with(|| Node::new(facts));
        }
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
            ..Node::new(facts)
        };
        if let Some(before) = self.nodes.remove(&id) {
            node.deletions = before.deletions;
            node.deleted = before.deleted;
            node.recorded_replicas = before.recorded_replicas;
        }
        self.ring.set(id, node.capacity_bytes());
        self.nodes.insert(id, node);
    }

    /// Renews the lease of node `id`, forgets the deletions it has done, and answers with those it has not, the lowest
    /// ids first.
    ///
    /// `None`: unknown, it has to register.
    pub fn pulse(&mut self, id: NodeId, boot: BootSession, deleted: &[ChunkId], now: MonoMs) -> Option<Vec<ChunkId>> {
        let lease_until = now.plus(self.lease_ms);
        let node = self.of_session(id, boot)?;
        node.last_seen = Some(now);
        node.lease_until = lease_until;
        for chunk in deleted {
            node.deletions.remove(chunk);
            // What does not fit is ordered again, and reported again.
            if node.deleted.len() < DELETE_QUEUE_MAX {
                node.deleted.insert(*chunk);
            }
        }
        Some(node.deletions.iter().take(DELETE_ORDERS_MAX).copied().collect())
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
        self.nodes.get_mut(&id).filter(|node| node.boot == Some(boot))
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
            Some(_) if now < node.lease_until => NodeState::Online,
            Some(seen) if now.since(seen) < self.offline_ms => NodeState::LeaseExpired,
            _ => NodeState::Offline,
        }
    }

    /// Returns where node `id` is, if it ever registered.
    pub fn location(&self, id: NodeId, now: MonoMs) -> Option<NodeLocation> {
        let node = self.nodes.get(&id)?;
        let state = self.state_of(node, now);
        Some(NodeLocation {
            address: node.facts.data_address.clone(),
            boot: node.boot.unwrap_or_default(),
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
    fn place_wanted(&self, wanted: &Wanted<'_>, now: MonoMs) -> Result<Vec<NodeId>, PlacementError> {
        let candidates: BTreeMap<NodeId, Candidate<'_>> = self
            .nodes
            .iter()
            .map(|(id, node)| {
                let candidate = Candidate {
                    host: &node.facts.host,
                    rack: &node.facts.rack,
                    free_bytes: node.free_bytes_of_one_disk(),
                    is_usable: self.state_of(node, now) == NodeState::Online,
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
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const ONE: NodeId = NodeId(1);
    const BOOT: BootSession = BootSession(11);

    fn facts(id: u8) -> NodeFacts {
        NodeFacts {
            server_id: [id; 16],
            data_address: format!("127.0.0.1:{}", 7100 + u16::from(id)),
            host: format!("host{id}"),
            ..Default::default()
        }
    }

    fn disks(free_gib: u64) -> Vec<Disk> {
        vec![Disk { capacity_bytes: 100 * GIB, free_bytes: free_gib * GIB, replicas: 5, ..Default::default() }]
    }

    fn table() -> NodeTable {
        let mut table = NodeTable::new(5_000, 90_000);
        table.register(ONE, facts(1), BOOT, disks(50), MonoMs(1_000));
        table
    }

    /// Runs a script against a table with lease 5 s and offline after 90 s, and compares each line's result.
    #[track_caller]
    fn check(script: &str) {
        let mut table = NodeTable::new(5_000, 90_000);
        table.restore([(NodeId(1), facts(1)), (NodeId(2), facts(2))]);
        for line in script.lines().filter(|line| !line.trim().is_empty()) {
            let (left, expected) = line.split_once("->").expect("has an arrow");
            let words: Vec<&str> = left.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            let (now, id) = (MonoMs(number(0)), NodeId(number(1) as u32));
            let boot = BootSession(words.get(3).map_or(0, |_| number(3)));
            let result = match words[2] {
                "register" => {
                    table.register(id, facts(number(1) as u8), boot, disks(50), now);
                    "done"
                }
                "pulse" => table.pulse(id, boot, &[], now).map_or("unknown", |_| "known"),
                "report" => {
                    if table.report(id, boot, disks(40), now) {
                        "known"
                    } else {
                        "unknown"
                    }
                }
                "state" => table.state(id, now).word(),
                other => panic!("{other}"),
            };
            assert_eq!(result, expected.trim(), "{line}");
        }
    }

    #[test]
    fn a_node_on_record_is_offline_until_it_registers() {
        check(
            "
            0       1 state        -> offline
            0       1 pulse 11     -> unknown
            0       1 report 11    -> unknown
            10      1 register 11  -> done
            10      1 state        -> online
            10      2 state        -> offline
            ",
        );
    }

    #[test]
    fn a_lease_runs_from_the_last_pulse() {
        check(
            "
            1000    1 register 11  -> done
            5999    1 state        -> online
            6000    1 state        -> lease_expired
            7000    1 pulse 11     -> known
            11999   1 state        -> online
            12000   1 state        -> lease_expired
            ",
        );
    }

    #[test]
    fn a_report_is_a_sign_of_life_but_no_lease() {
        check(
            "
            0       1 register 11  -> done
            50000   1 report 11    -> known
            50000   1 state        -> lease_expired
            139999  1 state        -> lease_expired
            140000  1 state        -> offline
            140000  1 pulse 11     -> known
            140000  1 state        -> online
            ",
        );
    }

    #[test]
    fn only_the_last_boot_session_holds_the_id() {
        check(
            "
            0       1 register 11  -> done
            1       1 register 12  -> done
            2       1 pulse 11     -> unknown
            2       1 report 11    -> unknown
            2       1 pulse 12     -> known
            2       3 pulse 12     -> unknown
            ",
        );
    }

    #[test]
    fn deletions_are_repeated_until_reported_as_done() {
        let mut table = table();
        table.order_deletions(ONE, [ChunkId(7), ChunkId(5), ChunkId(7)]);
        assert_eq!(table.node(ONE).unwrap().pending_deletions(), 2);
        table.order_deletions(NodeId(9), [ChunkId(7)]);
        assert!(table.node(NodeId(9)).is_none(), "nobody is node 9");
        let pulse = |table: &mut NodeTable, deleted: &[u64]| {
            let deleted: Vec<ChunkId> = deleted.iter().copied().map(ChunkId).collect();
            let to_delete = table.pulse(ONE, BOOT, &deleted, MonoMs(2_000)).expect("known");
            to_delete.into_iter().map(|chunk| chunk.0).collect::<Vec<_>>()
        };
        assert_eq!(pulse(&mut table, &[]), [5, 7]);
        assert_eq!(pulse(&mut table, &[5, 99]), [7]);
        assert_eq!(pulse(&mut table, &[7]), Vec::<u64>::new());
        assert_eq!(table.take_deleted(), [(ONE, vec![ChunkId(5), ChunkId(7), ChunkId(99)])]);
        assert_eq!(table.take_deleted(), []);
    }

    #[test]
    fn deletions_outlive_a_restart_of_the_node() {
        let mut table = table();
        table.order_deletions(ONE, [ChunkId(7)]);
        table.register(ONE, facts(1), BootSession(12), disks(50), MonoMs(3_000));
        let to_delete = table.pulse(ONE, BootSession(12), &[], MonoMs(3_000)).unwrap();
        assert_eq!(to_delete, [ChunkId(7)]);
    }

    #[test]
    fn the_delete_queue_and_one_answer_are_bounded() {
        let mut table = table();
        let many = DELETE_QUEUE_MAX as u64 + 5;
        let pending = |table: &NodeTable| table.node(ONE).unwrap().pending_deletions();
        table.order_deletions(ONE, (1..=many).map(ChunkId));
        assert_eq!(pending(&table), DELETE_QUEUE_MAX);
        table.order_deletions(ONE, [ChunkId(1)]);
        assert_eq!(pending(&table), DELETE_QUEUE_MAX);
        let to_delete = table.pulse(ONE, BOOT, &[], MonoMs(2_000)).unwrap();
        assert_eq!(to_delete.len(), DELETE_ORDERS_MAX);
        assert_eq!(to_delete[0], ChunkId(1), "one that is on it already stays");
    }

    #[test]
    fn failed_disks_count_for_nothing() {
        let mut table = table();
        let mut two = disks(50);
        two.push(Disk { failed: true, ..disks(90)[0].clone() });
        assert!(table.report(ONE, BOOT, two, MonoMs(2_000)));
        let node = table.node(ONE).unwrap();
        assert_eq!((node.capacity_bytes(), node.free_bytes(), node.replicas()), (100 * GIB, 50 * GIB, 5));
        let there = Space { total_bytes: 100 * GIB, free_bytes: 50 * GIB };
        assert_eq!(table.space(MonoMs(2_000)), there);
        assert_eq!(table.space(MonoMs(92_000)), Space::default(), "offline nodes hold nothing that can be had");
    }

    #[test]
    fn placement_uses_nodes_with_a_lease_only() {
        let mut table = NodeTable::new(5_000, 90_000);
        for id in 1..=4 {
            let now = MonoMs(if id == 4 { 0 } else { 1_000 });
            table.register(NodeId(id), facts(id as u8), BOOT, disks(50), now);
        }
        for seed in 0..100 {
            let mut nodes = table.place(seed, 3, MonoMs(5_000)).unwrap();
            nodes.sort_unstable();
            assert_eq!(nodes, [NodeId(1), NodeId(2), NodeId(3)], "node 4's lease ended at 5000");
        }
        assert!(matches!(table.place(0, 3, MonoMs(6_000)), Err(FsError::NoReplica(_))));
        for id in 1..=4 {
            assert!(table.report(NodeId(id), BOOT, disks(0), MonoMs(5_500)));
        }
        assert_eq!(table.place(0, 3, MonoMs(5_500)), Err(FsError::NoSpace));
    }

    #[test]
    fn one_replica_needs_one_node() {
        let table = table();
        assert_eq!(table.place(0, 1, MonoMs(1_000)), Ok(vec![ONE]));
        assert!(matches!(table.place(0, 2, MonoMs(1_000)), Err(FsError::NoReplica(_))));
    }

    #[test]
    fn only_who_registered_in_this_run_can_be_named_in_a_grant() {
        let mut table = table();
        table.restore([(NodeId(2), facts(2)), (ONE, facts(9))]);
        // What is on record does not overwrite one that has registered.
        let location = table.location(ONE, MonoMs(1_000)).unwrap();
        assert_eq!((location.address.as_str(), location.boot), ("127.0.0.1:7101", BOOT));
        assert!(location.lease_valid && location.online);
        let silent = table.location(NodeId(2), MonoMs(1_000)).unwrap();
        assert_eq!((silent.boot, silent.lease_valid, silent.online), (BootSession(0), false, false));
        assert_eq!(table.location(NodeId(3), MonoMs(1_000)), None);
    }
}
