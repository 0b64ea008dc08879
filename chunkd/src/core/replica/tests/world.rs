//! A few servers with one chunk, their master and their clients, in one thread under one seed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::ChangeRequest;
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::super::super::message::{
    CallId, Context, DiskJob, Effect, Input, MasterAnswer, PeerAnswer, PeerRequest, ReplicaOrder, Reply, Request, Tag,
};
use super::super::super::unit::UnitState;
use super::super::ReplicaCore;
use super::client::{Client, Wish};
use super::disk::Disk;
use super::history::{Operation, is_linearizable};
use super::master::{LEASE_MS, Master};

pub const CHUNK: ChunkId = ChunkId(9);
/// 8 units.
pub const SIZE_LOG2: u32 = 15;
/// Units that clients use, and the registers in each.
pub const UNITS: u32 = 3;
pub const HALVES: u32 = 2;
pub const HALF: u32 = UNIT_SIZE / HALVES;
const NODES: u32 = 4;
const CLIENTS: usize = 3;
pub const CALL_MS: u64 = 4_000;

/// What may go wrong; per mille, or whether at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub drop: u64,
    pub duplicate: u64,
    pub is_slow: bool,
    pub kills: bool,
    pub pauses: bool,
    pub partitions: bool,
    pub rot: bool,
    pub full: bool,
    pub orders: bool,
}

/// A small generator (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    Begin { node: NodeId, boot: Option<BootSession>, origin: Origin, request: Request, wait: u64 },
    Answer { node: NodeId, boot: BootSession, call: CallId, tag: Tag, result: Result<PeerAnswer, FsError> },
    Disk { node: NodeId, boot: BootSession, call: CallId, tag: Tag, job: DiskJob },
    Ask { boot: BootSession, call: CallId, tag: Tag, request: ChangeRequest },
    MasterSaid { node: NodeId, boot: BootSession, call: CallId, tag: Tag, result: Result<MasterAnswer, FsError> },
    Expire { node: NodeId, boot: BootSession, call: CallId },
    Replied { client: usize, attempt: u64, result: Result<Reply, FsError> },
    Retry { client: usize, attempt: u64 },
    Pulse { node: NodeId },
    Care,
    Fault,
    Restart { node: NodeId },
}

#[derive(Clone, Copy, Debug)]
pub enum Origin {
    Client { client: usize, attempt: u64 },
    Peer { node: NodeId, boot: BootSession, call: CallId, tag: Tag },
    Order,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    boot: BootSession,
    is_up: bool,
    core: Option<ReplicaCore>,
    disk: Disk,
    lease_until: u64,
    paused_until: u64,
    is_slow: bool,
    open: BTreeMap<CallId, (Origin, u64)>,
    awaited: BTreeSet<(CallId, Tag)>,
    jobs: BTreeMap<(CallId, Tag), DiskJob>,
    next_call: u64,
}

pub struct World {
    pub random: Random,
    pub now: u64,
    pub faults: Faults,
    may_be_late: bool,
    pub master: Master,
    nodes: Vec<Node>,
    pub clients: Vec<Client>,
    queue: BTreeMap<(u64, u64), Event>,
    next: u64,
    cut: BTreeSet<(u32, u32)>,
    pub history: BTreeMap<(u32, u32), Vec<Operation>>,
    pub violations: Vec<String>,
    pub trace: Option<Vec<String>>,
    pub value: u64,
    /// Requests of clients that were carried out.
    pub done: u64,
    pub reports: u64,
}

fn units_of(job: &DiskJob) -> Option<(u32, u32, bool)> {
    match job {
        DiskJob::Table => Some((0, 1 << (SIZE_LOG2 - 12), true)),
        DiskJob::Read { first, count } | DiskJob::Extents { first, count } | DiskJob::Entries { first, count } => {
            Some((*first, first + count, true))
        }
        DiskJob::Put { first, states, .. } => Some((*first, first + states.len() as u32, false)),
        DiskJob::Zero { first, count, .. } => Some((*first, first + count, false)),
        DiskJob::SetHeader { .. } | DiskJob::Sync => None,
    }
}

impl World {
    pub fn new(seed: u64, faults: Faults, operations: u32) -> Self {
        let mut random = Random(seed);
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            let boot = BootSession(random.next());
            let disk = Disk { exists: id <= 3, version: Version(1), ..Disk::default() };
            nodes.push(Node {
                id: NodeId(id),
                boot,
                is_up: true,
                core: None,
                disk,
                lease_until: 0,
                paused_until: 0,
                is_slow: false,
                open: BTreeMap::new(),
                awaited: BTreeSet::new(),
                jobs: BTreeMap::new(),
                next_call: 0,
            });
        }
        let min_in_sync = 1 + random.below(2) as u32;
        let master = Master::new(&[NodeId(1), NodeId(2), NodeId(3)], nodes[0].boot, min_in_sync);
        let mut world = Self {
            random,
            now: 1,
            faults,
            may_be_late: faults.pauses,
            master,
            nodes,
            clients: (0..CLIENTS).map(|_| Client { left: operations, ..Client::default() }).collect(),
            queue: BTreeMap::new(),
            next: 0,
            cut: BTreeSet::new(),
            history: BTreeMap::new(),
            violations: Vec::new(),
            trace: None,
            value: 0,
            done: 0,
            reports: 0,
        };
        for id in 1..=NODES {
            world.at(0, Event::Pulse { node: NodeId(id) });
        }
        world.at(10, Event::Care);
        world.at(500, Event::Fault);
        for client in 0..CLIENTS {
            world.at(20, Event::Retry { client, attempt: 0 });
        }
        world
    }

    pub fn at(&mut self, delay: u64, event: Event) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), event);
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize - 1]
    }

    fn violation(&mut self, what: String) {
        self.violations.push(format!("at {}: {what}", self.now));
    }

    fn log(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>7} {}", line()));
        }
    }

    /// Runs until `end`, or until something is wrong.
    pub fn run(&mut self, end: u64) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > end || !self.violations.is_empty() {
                break;
            }
            self.now = at;
            let event = entry.remove();
            self.handle(event);
        }
        self.now = self.now.max(end);
    }

    fn handle(&mut self, event: Event) {
        // A paused server takes nothing in until it goes on.
        let target = match &event {
            Event::Begin { node, .. }
            | Event::Answer { node, .. }
            | Event::Disk { node, .. }
            | Event::MasterSaid { node, .. }
            | Event::Expire { node, .. }
            | Event::Pulse { node } => Some(*node),
            _ => None,
        };
        if let Some(node) = target {
            let until = self.node(node).paused_until;
            if until > self.now {
                let wait = until - self.now;
                return self.at(wait, event);
            }
        }
        match event {
            Event::Begin { node, boot, origin, request, wait } => self.begin(node, boot, origin, request, wait),
            Event::Answer { node, boot, call, tag, result } => {
                if self.node(node).boot == boot && self.node(node).awaited.remove(&(call, tag)) {
                    self.step(node, Input::Answered { call, tag, result });
                }
            }
            Event::Disk { node, boot, call, tag, job } => {
                if self.node(node).boot == boot && self.node(node).jobs.remove(&(call, tag)).is_some() {
                    let result = self.node(node).disk.carry_out(&job, None);
                    self.step(node, Input::DiskDone { call, tag, result });
                }
            }
            Event::Ask { boot, call, tag, request } => {
                let answer = self.master.change(self.now, &request);
                self.log(|| {
                    format!(
                        "master: {:?} of {} at {} -> {:?}",
                        request.kind, request.node, request.version, answer.result
                    )
                });
                let node = request.node;
                if !self.is_cut(NodeId(0), node) {
                    let delay = self.delay();
                    self.at(delay, Event::MasterSaid { node, boot, call, tag, result: Ok(answer) });
                }
            }
            Event::MasterSaid { node, boot, call, tag, result } => {
                if self.node(node).boot == boot && self.node(node).awaited.remove(&(call, tag)) {
                    self.step(node, Input::MasterAnswered { call, tag, result });
                }
            }
            Event::Expire { node, boot, call } => {
                if self.node(node).boot == boot {
                    self.step(node, Input::Expired { call });
                }
            }
            Event::Replied { client, attempt, result } => self.replied(client, attempt, result),
            Event::Retry { client, attempt } => self.retry(client, attempt),
            Event::Pulse { node } => self.pulse(node),
            Event::Care => self.care(),
            Event::Fault => self.fault(),
            Event::Restart { node } => {
                let boot = BootSession(self.random.next());
                let node = self.node(node);
                (node.boot, node.is_up) = (boot, true);
            }
        }
    }

    fn is_cut(&mut self, one: NodeId, other: NodeId) -> bool {
        self.cut.contains(&(one.0, other.0)) || self.random.chance(self.faults.drop)
    }

    pub fn delay(&mut self) -> u64 {
        if self.random.chance(self.faults.drop) { self.random.below(3_000) } else { self.random.below(8) }
    }

    fn pulse(&mut self, id: NodeId) {
        self.at(400, Event::Pulse { node: id });
        let now = self.now;
        if !self.node(id).is_up || self.is_cut(id, NodeId(0)) {
            return;
        }
        let boot = self.node(id).boot;
        let is_renewed = self.master.pulse(now, id, boot);
        if self.is_cut(NodeId(0), id) {
            return;
        }
        if is_renewed {
            self.node(id).lease_until = now + LEASE_MS;
        } else {
            self.end_run(id);
            self.node(id).is_up = true;
        }
    }

    fn care(&mut self) {
        self.at(350, Event::Care);
        let mut nodes: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        let turn = self.random.below(u64::from(NODES)) as usize;
        nodes.rotate_left(turn);
        let coin = self.random.chance(500);
        self.master.care(self.now, &nodes, coin);
        let order = match self.master.syncing.first() {
            Some(node) => ReplicaOrder::Fill { node: *node },
            None if !self.faults.orders || !self.random.chance(200) => return,
            None if self.random.chance(300) => ReplicaOrder::HandOver,
            None => ReplicaOrder::Scrub { deep: self.random.chance(500) },
        };
        let (node, grant) = (self.master.primary, self.master.grant());
        if !self.is_cut(NodeId(0), node) {
            let request = Request::Order { grant, order };
            self.at(3, Event::Begin { node, boot: None, origin: Origin::Order, request, wait: 8_000 });
        }
    }

    fn fault(&mut self) {
        let wait = 200 + self.random.below(1_500);
        self.at(wait, Event::Fault);
        let id = NodeId(1 + self.random.below(u64::from(NODES)) as u32);
        let (faults, now, choice) = (self.faults, self.now, self.random.below(8));
        match choice {
            0 if faults.kills && self.node(id).is_up => {
                self.log(|| format!("kill {id}"));
                let jobs: Vec<_> = self.node(id).jobs.values().cloned().collect();
                for job in jobs {
                    // Done, half done, or not at all.
                    match self.random.below(3) {
                        0 => _ = self.node(id).disk.carry_out(&job, None),
                        1 => _ = self.node(id).disk.carry_out(&job, Some(1)).ok(),
                        _ => {}
                    }
                }
                self.end_run(id);
                let wait = if self.random.chance(500) { 100 } else { self.random.below(9_000) };
                self.at(wait, Event::Restart { node: id });
            }
            1 if faults.pauses => self.node(id).paused_until = now + self.random.below(8_000),
            2 | 3 if faults.partitions => {
                let other = self.random.below(u64::from(NODES) + 1) as u32;
                self.cut.insert((id.0, other));
                if self.random.chance(600) {
                    self.cut.insert((other, id.0));
                }
                self.log(|| format!("cut {id} and {other}"));
            }
            4 if faults.rot => {
                // One fault at a time: the others have what goes bad here, or it was never acknowledged.
                let members = self.master.members.clone();
                let tables: Vec<_> = members.iter().map(|id| self.node(*id).disk.units.clone()).collect();
                let is_everywhere = |unit: &u32| {
                    let state = |table: &BTreeMap<u32, (UnitState, Bytes)>| table.get(unit).map(|(state, _)| *state);
                    tables.iter().all(|table| state(table) == state(&tables[0]))
                };
                let may_be_anywhere = members.len() > 1 && self.random.chance(500);
                let may_rot = |unit: &u32| may_be_anywhere || is_everywhere(unit);
                let units: Vec<u32> = self.node(id).disk.units.keys().copied().filter(may_rot).collect();
                if !units.is_empty() && self.nodes.iter().all(|node| node.disk.rotten.is_empty()) {
                    let unit = units[self.random.below(units.len() as u64) as usize];
                    self.node(id).disk.rotten.insert(unit);
                }
            }
            5 if faults.full => self.node(id).disk.is_full ^= true,
            6 if faults.is_slow => self.node(id).is_slow ^= true,
            _ => {
                self.cut.clear();
                self.nodes.iter_mut().for_each(|node| (node.is_slow, node.disk.is_full) = (false, false));
            }
        }
    }

    /// Nothing of the present run of a server goes on.
    fn end_run(&mut self, id: NodeId) {
        let boot = BootSession(self.random.next());
        let node = self.node(id);
        node.jobs.clear();
        (node.is_up, node.core, node.boot, node.paused_until) = (false, None, boot, 0);
        node.lease_until = 0;
        node.open.clear();
        node.awaited.clear();
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.cut.clear();
        let now = self.now;
        for node in &mut self.nodes {
            (node.is_slow, node.disk.is_full) = (false, false);
            node.paused_until = node.paused_until.min(now);
        }
    }

    // ------------------------------------------------------------------------------------------------ servers

    fn begin(&mut self, id: NodeId, boot: Option<BootSession>, origin: Origin, request: Request, wait: u64) {
        let node = self.node(id);
        if !node.is_up || boot.is_some_and(|boot| boot != node.boot) {
            // Refused by the system, as a rule at once.
            if let Origin::Peer { node, boot, call, tag } = origin {
                let result = Err(FsError::NoReplica("refused".into()));
                self.at(1, Event::Answer { node, boot, call, tag, result });
            }
            return;
        }
        if node.core.is_none() {
            let grant = match &request {
                Request::Client { grant, .. } | Request::Order { grant, .. } => Some(grant),
                Request::Peer { request: PeerRequest::Activate { grant, .. }, .. } => Some(grant),
                Request::Peer { .. } | Request::Leave { .. } => None,
            };
            if !node.disk.exists
                && let Some(grant) = grant
            {
                let version = grant.grant.version;
                node.disk = Disk { exists: true, version, incomplete: true, ..Disk::default() };
            }
            if node.disk.exists {
                let (version, incomplete) = (node.disk.version, node.disk.incomplete);
                node.core = Some(ReplicaCore::new(version, incomplete, CHUNK, SIZE_LOG2, node.disk.recovered()));
            } else if let Origin::Peer { node, boot, call, tag } = origin {
                let result = Err(FsError::TryAgain("no such replica"));
                return self.at(1, Event::Answer { node, boot, call, tag, result });
            }
        }
        let now = self.now;
        let node = self.node(id);
        let call = CallId(node.next_call);
        node.next_call += 1;
        node.open.insert(call, (origin, now + wait));
        self.step(id, Input::Begin { call, deadline: MonoMs(now + wait), request });
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let (now, random) = (self.now, self.random.next());
        self.log(|| format!("{id} <- {}", brief(&input)));
        let node = self.node(id);
        let Some(core) = &mut node.core else { return };
        let context = Context {
            now: MonoMs(now),
            node: id,
            boot: node.boot,
            lease_until: MonoMs(node.lease_until),
            disk_room: if node.disk.is_full { 0 } else { u64::MAX },
            random,
        };
        let mut out = Vec::new();
        let before = core.version();
        core.step(&context, input, &mut out);
        if core.version() < before {
            self.violation(format!("the version of {id} went back"));
        }
        for effect in out {
            self.carry_out(id, effect);
        }
    }

    fn carry_out(&mut self, id: NodeId, effect: Effect) {
        let (now, boot) = (self.now, self.node(id).boot);
        match effect {
            Effect::Send { call, tag, to, version, request, payload, until } => {
                self.node(id).awaited.insert((call, tag));
                let silent = Err(FsError::NoReplica("silent".into()));
                let wait = until.0.saturating_sub(now);
                self.at(wait, Event::Answer { node: id, boot, call, tag, result: silent });
                let request = Request::Peer { node: id, boot, version, request, payload };
                let origin = Origin::Peer { node: id, boot, call, tag };
                let copies = 1 + u32::from(self.random.chance(self.faults.duplicate));
                for copy in 0..copies {
                    if self.is_cut(id, to.node) {
                        continue;
                    }
                    let mut delay = self.delay();
                    if copy > 0 {
                        delay += self.random.below(2_000);
                    }
                    let target = Some(self.node(to.node).boot);
                    let (node, request) = (to.node, request.clone());
                    self.at(delay, Event::Begin { node, boot: target, origin, request, wait: 3_000 });
                }
            }
            Effect::Disk { call, tag, job } => {
                if let Some((first, end, reads)) = units_of(&job) {
                    let clash = self.node(id).jobs.values().find(|other| {
                        units_of(other).is_some_and(|(a, b, also)| !(reads && also) && a < end && first < b)
                    });
                    if let Some(clash) = clash {
                        let what = format!("{id} does {} beside {}", brief(&job), brief(clash));
                        self.violation(what);
                    }
                }
                self.node(id).jobs.insert((call, tag), job.clone());
                let delay = if self.node(id).is_slow { self.random.below(2_500) } else { self.random.below(4) };
                self.at(delay, Event::Disk { node: id, boot, call, tag, job });
            }
            Effect::AskMaster { call, tag, request, until } => {
                self.node(id).awaited.insert((call, tag));
                let wait = until.0.saturating_sub(now);
                let lost = Err(FsError::TimedOut("the master"));
                self.at(wait, Event::MasterSaid { node: id, boot, call, tag, result: lost });
                if !self.is_cut(id, NodeId(0)) {
                    let delay = self.delay();
                    if self.random.chance(self.faults.duplicate) {
                        let later = delay + self.random.below(4_000);
                        self.at(later, Event::Ask { boot, call, tag, request: request.clone() });
                    }
                    self.at(delay, Event::Ask { boot, call, tag, request });
                }
            }
            Effect::Expire { call, at } => {
                let wait = at.0.saturating_sub(now);
                self.at(wait, Event::Expire { node: id, boot, call });
            }
            Effect::Note(event) => self.log(|| format!("{id}: {event:?}")),
            Effect::Reply { call, result } => {
                self.log(|| format!("{id} -> {call:?} {}", brief(&result)));
                let Some((origin, deadline)) = self.node(id).open.remove(&call) else {
                    return self.violation(format!("{id} replies to {call:?} twice"));
                };
                if now > deadline && !self.may_be_late {
                    self.violation(format!("{id} replies to {call:?} {} ms late", now - deadline));
                }
                match (origin, result) {
                    (Origin::Client { client, attempt }, result) => {
                        let delay = self.delay();
                        if !self.random.chance(self.faults.drop) {
                            self.at(delay, Event::Replied { client, attempt, result });
                        }
                    }
                    (Origin::Peer { node, boot, call, tag }, result) => {
                        if self.is_cut(id, node) {
                            return;
                        }
                        let delay = self.delay();
                        let result = match result {
                            Ok(Reply::Peer(answer)) => Ok(answer),
                            Ok(other) => return self.violation(format!("{other:?} to a peer")),
                            Err(error) => Err(error),
                        };
                        self.at(delay, Event::Answer { node, boot, call, tag, result });
                    }
                    (Origin::Order, Ok(Reply::Order(_))) => self.reports += 1,
                    (Origin::Order, _) => {}
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ judgement

    /// Reads everything once more, and judges all that was seen.
    pub fn judge(&mut self) {
        let start = self.now;
        for client in &mut self.clients {
            client.attempt += 1;
            client.left = 0;
        }
        for at in 0..CLIENTS {
            if let Some((wish, value)) = self.clients[at].wish.take() {
                self.record(at, wish, value, u64::MAX, None);
            }
        }
        let client = &mut self.clients[0];
        client.number += 1;
        client.started = start;
        client.wish = Some((Wish::Read { first: 0, count: UNITS }, 0));
        self.ask(0);
        self.run(start + 20_000);
        if self.clients[0].wish.is_some() {
            self.violation("the chunk cannot be read any more".into());
        }
        self.run(start + 60_000);
        for (register, operations) in &self.history {
            let short: Vec<_> = operations.iter().take(128).copied().collect();
            if !is_linearizable(&short) {
                self.violations.push(format!("register {register:?} is not linearizable: {short:?}"));
            }
        }
        let Master { members, version, .. } = &self.master;
        let (members, version) = (members.clone(), *version);
        let tables: Vec<_> = members.iter().map(|id| (*id, self.node(*id).disk.table())).collect();
        let has_rot = self.nodes.iter().any(|node| !node.disk.rotten.is_empty());
        if !has_rot && tables.iter().any(|(_, table)| *table != tables[0].1) {
            self.violation(format!("members differ at {version}: {tables:?}"));
        }
        let now = self.now;
        let late: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| {
                node.open.iter().filter(|(_, (_, deadline))| *deadline < now).map(|(id, _)| (node.id, *id))
            })
            .collect();
        if !late.is_empty() {
            self.violation(format!("never replied to: {late:?}"));
        }
    }
}

fn brief(what: &impl std::fmt::Debug) -> String {
    // Without the content of units.
    let text = format!("{what:?}");
    let mut brief = text.replace("\\0", "");
    brief.truncate(500);
    brief
}
