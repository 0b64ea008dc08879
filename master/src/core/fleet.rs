//! The chunk servers as planners see them: who is there, with how much room, and where.
//!
//! A copy, made anew for each round of planning, so that nothing is locked meanwhile. The ring is kept from round to
//! round: it changes only with sizes.

use std::collections::BTreeMap;

use dfs_proto::{BootSession, MonoMs, NodeId, Seq};

use super::care::ChunkFacts;
use super::node_table::{NodeState, NodeTable};
use super::placement::FREE_BYTES_MIN;
use super::ring::Ring;

/// One chunk server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetNode {
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Its present run.
    pub boot: BootSession,
    /// Its host's name.
    pub host: String,
    /// Its rack, empty if it has none.
    pub rack: String,
    /// Size of its working disks, in bytes.
    pub capacity_bytes: u64,
    /// What is left there.
    pub free_bytes: u64,
    /// What is left on the emptiest of them.
    pub free_on_one_disk: u64,
    /// It is to be emptied.
    pub is_draining: bool,
    /// Chunks whose set changed last before this position cannot trust its replica; 0: none.
    pub suspect_seq: Seq,
}

impl FleetNode {
    /// Returns all servers of `table` as they are now.
    pub fn all(table: &NodeTable, now: MonoMs) -> BTreeMap<NodeId, Self> {
        let nodes = table.iter().map(|(id, node)| {
            let working = node.disks.iter().filter(|disk| !disk.failed);
            let this = Self {
                state: table.state(id, now),
                boot: node.granted_boot(),
                host: node.facts.host.clone(),
                rack: node.facts.rack.clone(),
                capacity_bytes: node.capacity_bytes(),
                free_bytes: node.free_bytes(),
                // A replica is on one disk.
                free_on_one_disk: working.map(|disk| disk.free_bytes).max().unwrap_or(0),
                is_draining: node.is_draining,
                suspect_seq: node.suspect_seq,
            };
            (id, this)
        });
        nodes.collect()
    }

    /// Returns how full it is, in thousandths.
    pub fn fill_permille(&self) -> u64 {
        let used = self.capacity_bytes.saturating_sub(self.free_bytes);
        if self.capacity_bytes == 0 {
            1_000
        } else {
            (u128::from(used) * 1_000 / u128::from(self.capacity_bytes)) as u64
        }
    }
}

/// The chunk servers on record.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    nodes: BTreeMap<NodeId, FleetNode>,
    ring: Ring,
}

/// Fills under way, by the servers they burden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// By the primary that copies.
    pub leading: BTreeMap<NodeId, u32>,
    /// By the server that is filled.
    pub filling: BTreeMap<NodeId, u32>,
    /// All of them.
    pub total: u32,
}

/// How many fills may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillLimits {
    /// At one primary's server. It carries out a few at a time, within its budget of bytes; the others are there so that it
    /// need not wait for a pulse after each of many small ones.
    pub per_primary: u32,
    /// At one server that is filled.
    pub per_target: u32,
    /// In the whole cluster.
    pub total: u32,
}

impl Default for FillLimits {
    fn default() -> Self {
        Self { per_primary: 16, per_target: 32, total: 128 }
    }
}

impl Load {
    /// Notes one more fill.
    pub fn add(&mut self, primary: NodeId, target: NodeId) {
        *self.leading.entry(primary).or_default() += 1;
        *self.filling.entry(target).or_default() += 1;
        self.total += 1;
    }

    /// Forgets one that was noted.
    pub fn forget(&mut self, primary: NodeId, target: NodeId) {
        let counts = [self.leading.get_mut(&primary), self.filling.get_mut(&target), Some(&mut self.total)];
        counts.into_iter().flatten().for_each(|count| *count = count.saturating_sub(1));
    }

    /// Returns whether `primary` may fill one more replica.
    pub fn may_lead(&self, primary: NodeId, limits: &FillLimits) -> bool {
        self.total < limits.total && self.leading.get(&primary).copied().unwrap_or(0) < limits.per_primary
    }

    /// Returns whether one more replica of `target` may be filled.
    pub fn may_fill(&self, target: NodeId, limits: &FillLimits) -> bool {
        self.total < limits.total && self.filling.get(&target).copied().unwrap_or(0) < limits.per_target
    }
}

impl Fleet {
    /// Takes the servers as they are now.
    pub fn refresh(&mut self, nodes: BTreeMap<NodeId, FleetNode>) {
        for gone in self.nodes.keys().filter(|id| !nodes.contains_key(id)) {
            self.ring.remove(*gone);
        }
        for (id, node) in &nodes {
            if node.is_draining {
                self.ring.remove(*id);
            } else {
                self.ring.set(*id, node.capacity_bytes);
            }
        }
        self.nodes = nodes;
    }

    /// Returns server `id`.
    pub fn node(&self, id: NodeId) -> Option<&FleetNode> {
        self.nodes.get(&id)
    }

    /// Returns all servers by id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &FleetNode)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// Returns the state of server `id`; one that is not on record is offline.
    pub fn state(&self, id: NodeId) -> NodeState {
        self.nodes.get(&id).map_or(NodeState::Offline, |node| node.state)
    }

    /// Returns whether server `id` holds its lease.
    pub fn is_online(&self, id: NodeId) -> bool {
        self.state(id) == NodeState::Online
    }

    /// Returns whether server `id` is to be emptied.
    pub fn is_draining(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.is_draining)
    }

    /// Returns whether acknowledged writes may be missing on the replica that server `id` has of `chunk`.
    pub fn is_tainted(&self, chunk: &ChunkFacts, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| chunk.set_seq < node.suspect_seq)
    }

    /// Returns how full server `id` is, in thousandths; one that is not on record is full.
    pub fn fill_permille(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(1_000, FleetNode::fill_permille)
    }

    /// Returns the servers that the ring proposes for a chunk, the best first.
    pub fn proposals(&self, chunk: &ChunkFacts) -> impl Iterator<Item = NodeId> + '_ {
        self.ring.walk(chunk.chunk.0)
    }

    /// Returns whether a replica of `chunk` could go to `id`: it is online, not to be emptied, and has room beside what is
    /// on its way there.
    pub fn has_room_for(&self, chunk: &ChunkFacts, id: NodeId, load: &Load) -> bool {
        self.takes_replicas(id) && self.room(id, chunk, load) >= chunk.chunk_bytes()
    }

    fn takes_replicas(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.state == NodeState::Online && !node.is_draining)
    }

    fn room(&self, id: NodeId, chunk: &ChunkFacts, load: &Load) -> u64 {
        let coming = u64::from(load.filling.get(&id).copied().unwrap_or(0)) * chunk.chunk_bytes();
        self.nodes.get(&id).map_or(0, |node| node.free_on_one_disk.saturating_sub(coming))
    }

    /// Chooses a server for one more replica of `chunk`, beside those in `beside`; `is_allowed` has the last word. The
    /// ring proposes; wishes are given up one after the other:
    ///
    /// ```text
    /// 1  room for a whole chunk, a rack and a host of its own
    /// 2  …                       a host of its own
    /// 3  …                       any host                        (all on one machine)
    /// 4  also nearly full ones
    /// ```
    pub fn choose(
        &self,
        chunk: &ChunkFacts,
        beside: &[NodeId],
        load: &Load,
        is_allowed: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let candidates: Vec<(NodeId, &FleetNode)> = self
            .proposals(chunk)
            .filter(|id| self.takes_replicas(*id) && !beside.contains(id) && is_allowed(*id))
            .filter(|id| self.room(*id, chunk, load) >= FREE_BYTES_MIN)
            .filter_map(|id| Some((id, self.nodes.get(&id)?)))
            .collect();
        let neighbours: Vec<&FleetNode> = beside.iter().filter_map(|id| self.nodes.get(id)).collect();
        (1..=4).find_map(|wishes| {
            let fits = |(id, node): &&(NodeId, &FleetNode)| {
                (wishes >= 4 || self.room(*id, chunk, load) >= chunk.chunk_bytes())
                    && (wishes >= 3 || neighbours.iter().all(|other| other.host != node.host))
                    && (wishes >= 2 || neighbours.iter().all(|other| other.rack != node.rack))
            };
            candidates.iter().find(fits).map(|(id, _)| *id)
        })
    }
}

/// A replica set as its servers are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redundancy {
    /// Replicas in sync that can be read or made primary now: online and to be trusted.
    pub online: u32,
    /// Those, and the ones that were heard of lately and are to be trusted.
    pub hoped: u32,
    /// Replicas that are being filled and may be finished.
    pub syncing: u32,
}

impl Redundancy {
    /// Returns how `chunk` stands.
    pub fn of(chunk: &ChunkFacts, fleet: &Fleet) -> Self {
        let sound = || chunk.in_sync.iter().filter(|node| !fleet.is_tainted(chunk, **node));
        Self {
            online: sound().filter(|node| fleet.is_online(**node)).count() as u32,
            hoped: sound().filter(|node| fleet.state(**node) != NodeState::Offline).count() as u32,
            syncing: chunk.syncing.iter().filter(|node| fleet.state(**node) != NodeState::Offline).count() as u32,
        }
    }

    /// Returns whether fewer replicas than wanted can be read now.
    pub fn is_under_replicated(&self, chunk: &ChunkFacts) -> bool {
        self.online < chunk.wanted
    }
}

/// Scripts for tests of planners.
#[cfg(test)]
pub(crate) mod script {
    use dfs_proto::{ChunkId, ChunkIndex, InodeId, Version};

    use super::*;

    pub(crate) const CHUNK: u64 = 64 << 20;

    /// Each line: node, host, rack, percent full, and what else there is to say (`offline`, `expired`, `draining`,
    /// `suspect=SEQ`, `full`).
    pub(crate) fn fleet(text: &str) -> Fleet {
        let mut nodes = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let state = match () {
                () if words.contains(&"offline") => NodeState::Offline,
                () if words.contains(&"expired") => NodeState::LeaseExpired,
                () => NodeState::Online,
            };
            let capacity_bytes = 1_000 * CHUNK;
            let percent: u64 = words[3].trim_end_matches('%').parse().unwrap();
            let free_bytes = if words.contains(&"full") { 0 } else { capacity_bytes / 100 * (100 - percent) };
            let suspect = words.iter().find_map(|word| word.strip_prefix("suspect="));
            let node = FleetNode {
                state,
                boot: BootSession(7),
                host: words[1].into(),
                rack: words[2].into(),
                capacity_bytes,
                free_bytes,
                free_on_one_disk: free_bytes,
                is_draining: words.contains(&"draining"),
                suspect_seq: Seq(suspect.map_or(0, |seq| seq.parse().unwrap())),
            };
            nodes.insert(NodeId(words[0].parse().unwrap()), node);
        }
        let mut fleet = Fleet::default();
        fleet.refresh(nodes);
        fleet
    }

    /// `ID: 1* 2 3 +4 -5`: in sync on 1 (the primary), 2 and 3; being filled on 4; an old replica on 5. Three are wanted,
    /// unless there is `wanted=N`.
    pub(crate) fn chunk(text: &str) -> ChunkFacts {
        let (id, set) = text.trim().split_once(':').expect("an id");
        let id: u64 = id.trim().parse().unwrap();
        let mut facts = ChunkFacts {
            inode: InodeId(id),
            index: ChunkIndex(0),
            chunk: ChunkId(id),
            version: Version(5),
            primary: NodeId(0),
            in_sync: vec![],
            syncing: vec![],
            stale: vec![],
            is_written: true,
            set_seq: Seq(100),
            seq: Seq(100),
            wanted: 3,
            chunk_size_log2: 26,
        };
        for word in set.split_whitespace() {
            if let Some(wanted) = word.strip_prefix("wanted=") {
                facts.wanted = wanted.parse().unwrap();
                continue;
            }
            let node = NodeId(word.trim_matches(['*', '+', '-']).parse().unwrap());
            if word.ends_with('*') {
                facts.primary = node;
            }
            match word.as_bytes()[0] {
                b'+' => facts.syncing.push(node),
                b'-' => facts.stale.push(node),
                _ => facts.in_sync.push(node),
            }
        }
        facts
    }
}
