//! The invariants that are looked after at each step, by their ids.
//!
//! | rule | what must hold |
//! |---|---|
//! | R1 | whoever tells what it read goes by the newest version that anybody has answered under |
//! | R2 | the version of a replica on a disk never falls, and is never above the master's; nobody acknowledges a write under a version that a member has not on its disk |
//! | R3 | who comes into a set has everything that the primary has, and no later write is acknowledged by the set as it was |
//! | ack | when a write is acknowledged, every member in sync has it, and there are enough |
//! | F2 | what was on stable media once can be read after any end of its server, whatever came after it |
//! | R6 | a replica is deleted only if no record wants it |
//!
//! They also keep account of which copies are *good*: in sync, and not robbed of what was not synced since they came
//! into the set. When a fault leaves a chunk without a good copy, what was not brought to stable media may go, and the
//! history is told so. A run in *atlas* mode allows no such fault.

use std::collections::{BTreeMap, BTreeSet};

use dfs_chunkd::core::unit::UnitState;
use dfs_master::core::record::Chunk;
use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, NodeId, Version};

use super::chunk_node::ChunkNode;
use super::context::Context;
use super::files::chunk_span;
use super::scheduler::Time;
use super::seen::Seen;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: String,
    /// What happened.
    pub what: String,
}

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Checks {
    /// The chunks on record, by id.
    pub sets: BTreeMap<ChunkId, (Home, Chunk)>,
    servers: BTreeMap<NodeId, u32>,
    /// Ids of servers that came back with an empty disk, and so as others.
    gone: BTreeSet<NodeId>,
    kept: BTreeMap<(u32, ChunkId), Version>,
    served: BTreeMap<ChunkId, (Version, u32)>,
    tainted: BTreeSet<(ChunkId, u32)>,
    /// Replicas with damage that only a comparison of every byte, or nobody, comes across.
    rotten: BTreeSet<(ChunkId, u32)>,
    /// Servers with such damage anywhere, until they get an empty disk.
    hurt: BTreeSet<u32>,
    /// Servers whose disks do what they should not.
    pub sick: BTreeSet<u32>,
    /// Chunks that had no good copy, and the version then.
    lost: BTreeMap<ChunkId, Version>,
    /// Chunks that ever had none.
    bereft: BTreeSet<ChunkId>,
    /// How often a chunk was found without one.
    losses: usize,
    forgotten: BTreeSet<ChunkId>,
    /// Servers whose disks were ever made worse than by a loss of power.
    pub unreliable: BTreeSet<u32>,
    /// The version with which a chunk's set grew last, and the last write before that.
    grown: BTreeMap<ChunkId, (Version, u64)>,
    /// What was found wrong.
    pub violations: Vec<Violation>,
}

impl Checks {
    /// Notes a broken rule.
    pub fn violated(&mut self, rule: &str, what: String) {
        self.violations.push(Violation { rule: rule.to_owned(), what });
    }

    /// Returns the server that has this id.
    pub fn server(&self, node: NodeId) -> Option<u32> {
        self.servers.get(&node).copied()
    }

    /// Takes what was seen in a step.
    pub fn take(
        &mut self,
        seen: Vec<Seen>,
        context: &mut Context,
        nodes: &[ChunkNode],
        sets: impl Fn() -> BTreeMap<Home, Chunk>,
    ) {
        for fact in seen {
            match fact {
                Seen::SetsChanged => self.sets_changed(sets(), context, nodes),
                Seen::VersionKept { server, chunk, version } => self.version_kept(server, chunk, version),
                Seen::Served { server, chunk, version, is_read, written, .. } => {
                    self.served(server, chunk, version, is_read);
                    if let Some((units, seq, committed_under)) = written {
                        self.check_acknowledged(chunk, (version, committed_under), units, seq, nodes);
                    }
                }
                Seen::Deleted { server, chunk, version } => self.deleted(server, chunk, version),
                Seen::DiskFailed { server } => self.robbed(context, server),
                Seen::Stopped { .. } => {}
                Seen::Barrier { chunk, asked, seq } => self.check_barrier(chunk, asked, seq, nodes),
                Seen::ZerosInLog { what } => self.violated("size-follows-data", what),
                Seen::Wrong { rule, what } => self.violated(rule, what),
            }
        }
    }

    fn sets_changed(&mut self, sets: BTreeMap<Home, Chunk>, context: &mut Context, nodes: &[ChunkNode]) {
        for node in nodes {
            if let Some(id) = node.node() {
                self.servers.insert(id, node.at);
            }
        }
        let sets: BTreeMap<_, _> = sets.into_iter().map(|(home, chunk)| (chunk.id, (home, chunk))).collect();
        let before = std::mem::replace(&mut self.sets, sets);
        self.check_grown(&before, nodes);
        let (sets, servers) = (&self.sets, &self.servers);
        self.tainted.retain(|(chunk, server)| {
            sets.get(chunk).is_some_and(|(_, set)| set.in_sync.iter().any(|node| servers.get(node) == Some(server)))
        });
        // The last good copy may be one that the master has to leave: it hears nothing of its server.
        let bereft = |(chunk, (_, set)): (&ChunkId, &(Home, Chunk))| {
            let is_new = self.lost.get(chunk).is_none_or(|then| *then < set.version);
            (is_new && self.good(*chunk).is_empty()).then_some(*chunk)
        };
        let bereft: Vec<ChunkId> = self.sets.iter().filter_map(bereft).collect();
        bereft.into_iter().for_each(|chunk| self.lose(context, chunk));
        let mut found = Vec::new();
        for ((server, chunk), version) in &self.kept {
            if let Some((_, set)) = self.sets.get(chunk)
                && *version > set.version
            {
                found.push(format!("chunk {chunk}: chunk{server} has version {version}, the master {}", set.version));
            }
        }
        for what in found {
            self.violated("R2", what);
        }
        if let Some(chunk) = self.forgotten.iter().find(|chunk| self.sets.contains_key(chunk)) {
            let what = format!("chunk {chunk} is on record again after a replica of it was deleted as unknown");
            self.violated("R6", what);
        }
    }

    /// R3: who was filled has what the primary has, in the very moment in which it is taken into the set.
    fn check_grown(&mut self, before: &BTreeMap<ChunkId, (Home, Chunk)>, nodes: &[ChunkNode]) {
        let (mut found, mut grown) = (Vec::new(), Vec::new());
        for (chunk, (_, set)) in &self.sets {
            let Some((_, old)) = before.get(chunk) else { continue };
            let Some(newcomer) = set.in_sync.iter().find(|node| !old.in_sync.contains(node)) else { continue };
            if old.primary != set.primary || self.was_bereft(*chunk) {
                continue;
            }
            let (Some(primary), Some(at)) = (self.server(set.primary), self.server(*newcomer)) else { continue };
            let table = |at: u32| nodes[at as usize - 1].store.peek(*chunk).filter(|_| self.is_good(*chunk, at));
            let Some(ours) = table(primary) else { continue };
            let last = ours.values().map(|state| state.stamp.seq).max().unwrap_or(0);
            grown.push((*chunk, (set.version, last)));
            let Some(theirs) = table(at) else { continue };
            let lacks = |(unit, state): &(&u32, &UnitState)| theirs.get(unit).is_none_or(|it| it.stamp != state.stamp);
            if let Some((unit, state)) = ours.iter().find(lacks) {
                found.push(format!(
                    "chunk {chunk}: chunk{at} comes into the set of version {} without write {:?} of unit {unit}",
                    set.version, state.stamp
                ));
            }
        }
        self.grown.extend(grown);
        for what in found {
            self.violated("R3", what);
        }
    }

    fn version_kept(&mut self, server: u32, chunk: ChunkId, version: Version) {
        // A disk that loses writes keeps nothing.
        if !self.sick.contains(&server)
            && let Some(before) = self.kept.insert((server, chunk), version)
            && before > version
        {
            self.violated(
                "R2",
                format!("chunk {chunk}: the version at chunk{server} falls from {before} to {version}"),
            );
        }
        if let Some((_, set)) = self.sets.get(&chunk)
            && version > set.version
        {
            let what = format!("chunk {chunk}: chunk{server} takes version {version}, the master has {}", set.version);
            self.violated("R2", what);
        }
    }

    /// Checks what a server finds on its disk when it starts: the versions, and a unit that cannot be read.
    pub fn found_at_start(&mut self, server: u32, held: &[(ChunkId, Version)], torn: Option<(ChunkId, u32)>) {
        if let Some((chunk, unit)) = torn
            && !self.unreliable.contains(&server)
            && self.is_good_disk(chunk, server)
            && !self.was_bereft(chunk)
        {
            self.violated("F2", format!("chunk {chunk}: chunk{server} cannot read unit {unit}, which was synced once"));
        }
        let held: BTreeMap<ChunkId, Version> = held.iter().copied().collect();
        let kept: Vec<_> = self
            .kept
            .iter()
            .filter(|((at, _), _)| *at == server)
            .map(|((_, chunk), version)| (*chunk, *version))
            .collect();
        for (chunk, version) in kept {
            match held.get(&chunk) {
                // A kill in the midst of a sync leaves what was to be synced.
                Some(found) if *found >= version => {
                    self.kept.insert((server, chunk), *found);
                }
                Some(found) => self.violated(
                    "R2",
                    format!("chunk {chunk}: chunk{server} comes back with version {found}, it had {version}"),
                ),
                None => {}
            }
        }
    }

    /// What was written, or synced, before the role ended may be said later. What is read must be current.
    fn served(&mut self, server: u32, chunk: ChunkId, version: Version, is_read: bool) {
        match self.served.get(&chunk) {
            Some((newest, _)) if *newest > version && !is_read => {}
            Some((newest, other)) if *newest > version => {
                let what = format!(
                    "chunk {chunk}: chunk{server} answers under version {version} after chunk{other} did under {newest}"
                );
                self.violated("R1", what);
            }
            Some((same, other)) if *same == version && *other != server => {
                let what = format!("chunk {chunk}: chunk{server} and chunk{other} both answer under version {version}");
                self.violated("R1", what);
            }
            _ => {
                self.served.insert(chunk, (version, server));
            }
        }
        if self.lost.get(&chunk).is_some_and(|then| version > *then) {
            self.lost.remove(&chunk);
            self.tainted.retain(|(tainted, _)| *tainted != chunk);
        }
    }

    fn check_acknowledged(
        &mut self,
        chunk: ChunkId,
        (version, committed_under): (Version, Version),
        units: (u32, u32),
        seq: u64,
        nodes: &[ChunkNode],
    ) {
        let Some((_, set)) = self.sets.get(&chunk) else { return };
        // Of what lost all its good copies, a repeated write may be all that is left. Whatever the version: nobody comes
        // into a set without what was written before.
        if self.was_bereft(chunk) {
            return;
        }
        // One that has come since the records changed last is known to itself only.
        let server = |id: NodeId| {
            let node = nodes.iter().find(|node| node.node() == Some(id));
            node.map(|node| node.at).or_else(|| self.server(id))
        };
        let members: Vec<u32> = set.in_sync.iter().filter_map(|node| server(*node)).collect();
        // What the write itself says: a primary may have heard of the next version by now.
        let made_under = |at: &u32| {
            let table = nodes[*at as usize - 1].store.peek(chunk)?;
            table.get(&units.0).map(|state| state.stamp).filter(|stamp| stamp.seq == seq).map(|stamp| stamp.version)
        };
        if let Some(version) = members.iter().find_map(made_under)
            && let Some(at) =
                members.iter().find(|at| self.kept.get(&(**at, chunk)).is_some_and(|kept| *kept < version))
        {
            let what =
                format!("chunk {chunk}: write {seq} of version {version} is acknowledged, which chunk{at} lacks");
            return self.violated("R2", what);
        }
        if let Some((since, last)) = self.grown.get(&chunk)
            && version < *since
            && seq > *last
        {
            let what = format!(
                "chunk {chunk}: write {seq} is acknowledged under version {version}; the set grew with version {since}, after write {last}"
            );
            return self.violated("R3", what);
        }
        let has = |at: u32| {
            // It had it, and has lost it since; or what it has cannot be seen at the moment.
            let Some(table) = nodes[at as usize - 1].store.peek(chunk).filter(|_| self.is_good(chunk, at)) else {
                return true;
            };
            (units.0..units.1).all(|unit| table.get(&unit).is_some_and(|state| state.stamp.seq >= seq))
        };
        let with: Vec<u32> = members.iter().copied().filter(|at| has(*at)).collect();
        if with.len() < members.len() {
            let what = format!(
                "chunk {chunk} units {}..{}: acknowledged under version {version} with {with:?} of {members:?} having it",
                units.0, units.1
            );
            self.violated("ack", what);
        } else if with.len() < 2 && set.version == committed_under {
            // What all members of a set had may be told after the set has changed: its answer could have been on its way.
            self.violated("ack", format!("chunk {chunk}: a write is acknowledged that only {with:?} has, of {set:?}"));
        }
    }

    /// D1: what was acknowledged when a barrier was asked for is on stable media of every member when it is answered.
    fn check_barrier(&mut self, chunk: ChunkId, asked: Time, seq: u64, nodes: &[ChunkNode]) {
        let Some((_, set)) = self.sets.get(&chunk) else { return };
        let is_behind = |at: &u32| {
            let since = nodes[*at as usize - 1].store.unsynced_since(chunk);
            self.is_good(chunk, *at) && since.is_some_and(|(since, lowest)| since < asked && lowest <= seq)
        };
        let members: Vec<u32> = set.in_sync.iter().filter_map(|node| self.server(*node)).collect();
        if let Some(at) = members.iter().find(|at| is_behind(at)) {
            let what = format!(
                "chunk {chunk}: a barrier is answered, and chunk{at} of {members:?} has not synced writes up to {seq}"
            );
            self.violated("D1", what);
        }
    }

    fn deleted(&mut self, server: u32, chunk: ChunkId, version: Version) {
        self.kept.remove(&(server, chunk));
        self.rotten.remove(&(chunk, server));
        match self.sets.get(&chunk) {
            None => {
                self.forgotten.insert(chunk);
            }
            Some((_, set)) => {
                // Whether enough others are in sync is judged when it is ordered; that it lacks something stays so.
                if self.is_member(chunk, server) || version >= set.version {
                    let what = format!(
                        "chunk {chunk}: chunk{server} deletes its replica of version {version}; in sync at version {} are {:?}",
                        set.version, set.in_sync
                    );
                    self.violated("R6", what);
                }
            }
        }
    }

    // ------------------------------------------------------------ good copies

    fn is_good(&self, chunk: ChunkId, server: u32) -> bool {
        !self.tainted.contains(&(chunk, server)) && self.is_good_disk(chunk, server)
    }

    fn is_good_disk(&self, chunk: ChunkId, server: u32) -> bool {
        !self.rotten.contains(&(chunk, server)) && !self.sick.contains(&server) && !self.hurt.contains(&server)
    }

    /// Returns whether a server has a copy that is in sync.
    pub fn is_member(&self, chunk: ChunkId, server: u32) -> bool {
        let set = self.sets.get(&chunk).map(|(_, set)| set);
        set.is_some_and(|set| set.in_sync.iter().any(|node| self.servers.get(node) == Some(&server)))
    }

    /// Returns whether a chunk ever had no good copy: what is asked of the others is not asked of it.
    pub fn was_bereft(&self, chunk: ChunkId) -> bool {
        self.bereft.contains(&chunk)
    }

    /// Returns whether a server's copy has damage that perhaps nobody has come across.
    pub fn may_be_damaged(&self, chunk: ChunkId, server: u32) -> bool {
        self.rotten.contains(&(chunk, server)) || self.hurt.contains(&server)
    }

    /// Returns how often a chunk was found without a good copy.
    pub fn losses(&self) -> usize {
        self.losses
    }

    /// Returns the servers that have a good copy.
    pub fn good(&self, chunk: ChunkId) -> Vec<u32> {
        let Some((_, set)) = self.sets.get(&chunk) else { return Vec::new() };
        let there = set.in_sync.iter().filter(|node| !self.gone.contains(node));
        there.filter_map(|node| self.server(*node)).filter(|server| self.is_good(chunk, *server)).collect()
    }

    /// Returns whether every chunk that has a good copy keeps so many of them if these servers lose theirs.
    pub fn may_rob(&self, servers: &[u32], left: usize) -> bool {
        self.sets.keys().all(|chunk| {
            let good = self.good(*chunk);
            good.is_empty() || good.iter().filter(|server| !servers.contains(server)).count() >= left
        })
    }

    /// A server has lost what it had not synced, or worse.
    pub fn robbed(&mut self, context: &mut Context, server: u32) {
        let chunks: Vec<ChunkId> = self.sets.keys().copied().collect();
        for chunk in chunks {
            self.rob(context, chunk, server);
        }
    }

    /// One replica was damaged.
    pub fn rob(&mut self, context: &mut Context, chunk: ChunkId, server: u32) {
        if !self.is_member(chunk, server) {
            return;
        }
        self.tainted.insert((chunk, server));
        if self.good(chunk).is_empty() || self.lost.contains_key(&chunk) {
            self.lose(context, chunk);
        }
    }

    /// The file of a replica was damaged.
    pub fn rot(&mut self, context: &mut Context, chunk: ChunkId, server: u32) {
        self.rotten.insert((chunk, server));
        self.rob(context, chunk, server);
    }

    /// Anything on a server's disk may be damaged, without a sign of it.
    pub fn hurt(&mut self, context: &mut Context, server: u32) {
        self.hurt.insert(server);
        self.robbed(context, server);
    }

    fn lose(&mut self, context: &mut Context, chunk: ChunkId) {
        let Some((home, set)) = self.sets.get(&chunk) else { return };
        self.lost.insert(chunk, set.version);
        self.bereft.insert(chunk);
        self.losses += 1;
        if let Some(file) = context.files.of_inode(home.inode) {
            let (span, now) = (chunk_span(file.id, home.index), context.now());
            context.history.lose(span, now);
            context.trace.say(now, || format!("chunk {chunk} has no good copy: what was not synced may go"));
        }
    }

    /// A server is to come back with an empty disk.
    pub fn wiped(&mut self, server: u32) {
        let ids = self.servers.iter().filter(|(_, at)| **at == server).map(|(id, _)| *id);
        self.gone.extend(ids);
        self.hurt.remove(&server);
        self.rotten.retain(|(_, at)| *at != server);
        self.forget_versions(server);
    }

    /// What a server has on its disk cannot be relied on, or is gone.
    pub fn forget_versions(&mut self, server: u32) {
        self.kept.retain(|(at, _), _| *at != server);
    }
}
