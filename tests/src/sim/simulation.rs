//! One run of one seed: a cluster, its clients, its faults, and what must hold in the end.
//!
//! ```text
//! set-up: files are made ─▶ work: operations and faults ─▶ heal: everything is mended, all operations end
//!   ─▶ rest: the redundancy is back ─▶ compare: all is read, all replicas are equal
//!   ─▶ again: everything is killed and started ─▶ all is read and compared once more
//! ```

use std::collections::BTreeMap;

use dfs_master::core::record::Chunk;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::{ChunkId, ChunkIndex, NodeId, SessionId};

use super::checks::{Checks, Violation};
use super::chunk_node::{ChunkNode, Habits};
use super::client_node::{ClientNode, Mix};
use super::context::{Context, Event, Failure};
use super::disk::{Disk, Sickness};
use super::faults::{Mode, Swarm, is_duel};
use super::files::{CHUNK_SIZE_LOG2, CHUNK_SLOTS, Purpose};
use super::history::FileId;
use super::master_node::{MasterNode, Times};
use super::network::{Network, Place};
use super::scheduler::{HostClock, Time, ms, seconds};
use super::seen::Seen;
use super::store::{NodeStore, begin_run};
use super::strikes::Strikes;
use super::trace::Trace;
use crate::random::Random;

/// Chunk servers of a cluster.
pub const SERVERS: u32 = 5;
/// Clients of a cluster.
pub const CLIENTS: u32 = 3;
/// Bytes of each disk; little of it is ever used.
const DISK_BYTES: u64 = 1 << 33;
/// Operations of all clients, at least.
const OPERATIONS: u32 = 310;
/// After faults are mended, operations end within this.
const HEAL_US: u64 = seconds(30);
/// And the redundancy is back within this.
const REST_US: u64 = seconds(420);
/// And so much later where all who are left of a set are suspect: who is away is waited for.
const AWAY_US: u64 = seconds(600);
/// An operation may take so long beyond its deadline.
const GRACE_MS: u64 = 3_000;

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Stands for everything that happened.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// Faults that struck.
    pub strikes: BTreeMap<&'static str, u32>,
    /// Operations of clients that were answered, and that failed.
    pub operations: (u32, u32),
    /// How long it was, in simulated time.
    pub lasted: Time,
    /// The rule that was broken first, if any was.
    pub violation: Option<Violation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    SetUp,
    Work,
    Heal,
    Rest,
    Compare,
    Restart,
    CompareAgain,
    Over,
}

/// A cluster in one thread.
pub struct Simulation {
    pub(super) context: Context,
    pub(super) master: MasterNode,
    pub(super) servers: Vec<ChunkNode>,
    pub(super) clients: Vec<ClientNode>,
    pub(super) checks: Checks,
    pub(super) swarm: Swarm,
    pub(super) strikes: Strikes,
    seed: u64,
    pub(super) phase: Phase,
    pub(super) since: Time,
    pub(super) reads: Vec<(FileId, ChunkIndex)>,
    pub(super) reads_failed: u32,
    /// The redundancy is back within this, after the last fault was mended.
    pub(super) rest_us: u64,
    /// The session in which all is read.
    pub(super) reader: SessionId,
    /// How often a chunk had been found without a good copy when all began to be read.
    pub(super) losses: usize,
}

impl Simulation {
    /// Returns the cluster of `seed`, not yet started. It keeps its story in words if `keeps_words`.
    pub fn new(seed: u64, keeps_words: bool) -> Self {
        let mut rng = Random::new(seed);
        begin_run(rng.next());
        let mut swarm = Swarm::draw(&mut rng);
        if is_duel(seed) {
            swarm.make_duel(&mut Random::of(seed, 1));
        }
        let network = Network::new(swarm.calm, rng.fork());
        let mut context = Context::new(network, Trace::new(keeps_words), rng.fork());
        let lease_ms = 5_000;
        let times = Times {
            lease_ms,
            offline_ms: *rng.pick(&[10_000, 15_000, 30_000]),
            session_ms: *rng.pick(&[10_000, 20_000, 60_000]),
            reclaim_window_ms: 3_000,
            reclaim_delay_ms: *rng.pick(&[500, 5_000]),
            unknown_grace_ms: *rng.pick(&[2_000, 10_000]),
            scrub_period_ms: *rng.pick(&[0, 20_000, 100_000]),
            sync_ms: *rng.pick(&[5, 50, 500]),
        };
        let clock =
            |rng: &mut Random| HostClock::new(1_000 + rng.below(1_000_000_000), rng.between(0, 9_000) as i64 - 4_500);
        context.add(Place::Master, clock(&mut rng));
        let mut servers = Vec::new();
        for at in 1..=SERVERS {
            context.add(Place::Chunk(at), clock(&mut rng));
            let habits = Habits {
                // One that was closed has forgotten which activations are past: it is used again only when no message of
                // theirs can come once more.
                closes_idle: rng.in_a_million(500_000) && swarm.calm.echo_max_us == 0,
                report_ms: rng.between(2_000, 8_000),
                disk_us: *rng.pick(&[50, 300, 2_000]),
            };
            let mut disk = Disk::new(DISK_BYTES, rng.fork());
            disk.sickness.writeback_ppm = swarm.writeback_ppm;
            let pending_max = *rng.pick(&[64 << 10, 512 << 10, 32 << 20]);
            servers.push(ChunkNode::new(at, NodeStore::new(disk, pending_max), habits));
        }
        let weight = |rng: &mut Random, most: u64| if rng.in_a_million(700_000) { rng.between(1, most) } else { 0 };
        let mut mix = Mix {
            write: rng.between(4, 12),
            read: rng.between(2, 12),
            zero: weight(&mut rng, 4),
            sync: weight(&mut rng, 6),
            append: weight(&mut rng, 6),
            look: weight(&mut rng, 6),
            replace: weight(&mut rng, 1),
            think_ms: *rng.pick(&[100, 1_000, 3_000]),
            slots_max: *rng.pick(&[1, 4, 16, CHUNK_SLOTS]),
            patience_ms: *rng.pick(&[15_000, 30_000, 120_000]),
            commit_percent: *rng.pick(&[0, 50, 100]),
            slots: CHUNK_SLOTS,
        };
        if swarm.is_duel {
            mix = Mix { append: 0, look: 0, replace: 0, think_ms: 400, slots_max: 2, slots: 6, ..mix };
        }
        let mut clients = Vec::new();
        for at in 1..=CLIENTS {
            context.add(Place::Client(at), clock(&mut rng));
            let lanes = if swarm.is_duel { 4 } else { rng.between(1, 4) as usize };
            clients.push(ClientNode::new(at, lanes, 0, mix, &mut context));
        }
        let files = if swarm.is_duel { 1 } else { rng.between(1, 3) };
        for _ in 0..files {
            let chunks = if swarm.is_duel { 1 } else { rng.between(1, 2) as u32 };
            context.files.plan(Purpose::Shared, chunks);
        }
        for at in 1..=CLIENTS {
            if mix.append > 0 {
                context.files.plan(Purpose::Log(at), 3);
            }
        }
        let strikes = Strikes::new(rng.fork());
        Self {
            context,
            master: MasterNode::new(times),
            servers,
            clients,
            checks: Checks::default(),
            swarm,
            strikes,
            seed,
            phase: Phase::SetUp,
            since: Time(0),
            reads: Vec::new(),
            reads_failed: 0,
            rest_us: REST_US,
            reader: SessionId(0),
            losses: 0,
        }
    }

    /// Runs it to its end, or to the first broken rule.
    pub fn run(mut self) -> Outcome {
        let swarm = self.swarm.clone();
        self.context.trace.say(Time(0), || format!("seed {}: {swarm:?}", self.seed));
        self.master.start(&mut self.context);
        for at in 1..=SERVERS {
            self.start_server(at);
        }
        for client in &mut self.clients {
            client.start(&mut self.context);
        }
        self.context.scheduler.after(ms(200), Event::Phase);
        while self.phase != Phase::Over && self.checks.violations.is_empty() {
            let Some(event) = self.context.scheduler.pop() else { break };
            self.dispatch(event);
            if !self.context.seen.is_empty() {
                let seen = std::mem::take(&mut self.context.seen);
                for fact in &seen {
                    if let Seen::Stopped { server } = fact {
                        self.stopped(*server);
                    }
                }
                let master = &self.master;
                self.checks.take(seen, &mut self.context, &self.servers, || master.chunks());
            }
        }
        if self.checks.violations.is_empty()
            && let Err(what) = self.context.history.check()
        {
            self.checks.violated("C2", what);
        }
        let operations = self.clients.iter().fold((0, 0), |sum, client| (sum.0 + client.done.0, sum.1 + client.done.1));
        let lasted = self.context.now();
        if let Some(violation) = self.checks.violations.first().cloned() {
            self.context.trace.say(lasted, || format!("VIOLATION of {}: {}", violation.rule, violation.what));
        }
        Outcome {
            seed: self.seed,
            hash: self.context.trace.hash(),
            events: self.context.trace.events(),
            strikes: self.strikes.counts,
            operations,
            lasted,
            violation: self.checks.violations.into_iter().next(),
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Asked(question) => {
                let to = question.to;
                if !self.context.is_up(to) {
                    return self.context.refuse(&question);
                }
                if let Some(Event::Asked(question)) = self.context.admit(to, None, Event::Asked(question)) {
                    match to {
                        Place::Master => self.master.asked(&mut self.context, question),
                        Place::Chunk(at) => self.servers[at as usize - 1].asked(&mut self.context, question),
                        Place::Client(_) => {}
                    }
                }
            }
            Event::AskedAgain(question, run) => {
                if self.context.process(question.to).run == run {
                    self.dispatch(Event::Asked(question));
                }
            }
            Event::Answered(rpc, result) => {
                let Some((from, run)) = self.context.asker(rpc) else { return };
                let Some(Event::Answered(_, result)) =
                    self.context.admit(from, Some(run), Event::Answered(rpc, result))
                else {
                    return;
                };
                if self.context.close(rpc).is_some() {
                    match from {
                        Place::Master => {}
                        Place::Chunk(at) => self.servers[at as usize - 1].answered(&mut self.context, rpc, result),
                        Place::Client(at) => self.clients[at as usize - 1].answered(&mut self.context, rpc, result),
                    }
                }
            }
            Event::Patience(rpc) => {
                self.dispatch(Event::Answered(rpc, Err(Failure::TimedOut)));
            }
            Event::Wake { place, run, what } => {
                let Some(Event::Wake { what, .. }) =
                    self.context.admit(place, Some(run), Event::Wake { place, run, what })
                else {
                    return;
                };
                match place {
                    Place::Master => self.master.wake(&mut self.context, &what),
                    Place::Chunk(at) => self.servers[at as usize - 1].wake(&mut self.context, what),
                    Place::Client(at) => self.clients[at as usize - 1].wake(&mut self.context, what),
                }
            }
            Event::Fault(number) => self.strike(number),
            Event::Phase => self.look(),
        }
    }

    // ------------------------------------------------------------ phases

    pub(super) fn go_to(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = self.context.now();
        let now = self.since;
        self.context.trace.note(now, [40, phase as u64], || format!("---- {phase:?}"));
    }

    /// A regular look at whether the present phase is over.
    fn look(&mut self) {
        self.look_for_late();
        let elapsed = self.context.now().0 - self.since.0;
        match self.phase {
            Phase::SetUp => self.set_up(elapsed),
            Phase::Work => {
                if self.clients.iter().all(ClientNode::is_idle) && self.strikes.is_over() || elapsed > seconds(240) {
                    self.heal();
                    self.go_to(Phase::Heal);
                }
            }
            Phase::Heal => self.healing(elapsed),
            Phase::Rest => self.resting(elapsed),
            Phase::Compare | Phase::CompareAgain => self.comparing(elapsed),
            Phase::Restart => self.restart(),
            Phase::Over => {}
        }
        self.context.scheduler.after(ms(250), Event::Phase);
    }

    fn look_for_late(&mut self) {
        for server in &self.servers {
            let process = self.context.process(server.place);
            if process.is_up
                && !process.is_paused
                && !self.strikes.was_disturbed(server.place, self.context.now())
                && let Some(what) = server.overdue(self.context.mono(server.place), GRACE_MS)
            {
                self.checks.violated("F3", what);
            }
        }
        for client in &self.clients {
            let process = self.context.process(client.place);
            if process.is_up
                && !process.is_paused
                && !self.strikes.was_disturbed(client.place, self.context.now())
                && let Some(what) = client.overdue(self.context.mono(client.place), GRACE_MS)
            {
                self.checks.violated("F3", what);
            }
        }
    }

    fn set_up(&mut self, elapsed: u64) {
        if elapsed > seconds(60) {
            return self.checks.violated("F3", "the files of the simulation cannot be made".into());
        }
        let planned = self.context.files.iter().find(|file| file.inode.is_none()).map(|file| file.id);
        let client = &mut self.clients[0];
        let Some(file) = planned else {
            if self.servers.iter().any(|server| server.node().is_none())
                || self.clients.iter().any(|client| !client.is_ready())
            {
                return;
            }
            for client in &mut self.clients {
                client.budget = OPERATIONS / CLIENTS + 1;
                client.wake_lanes(&mut self.context);
            }
            self.begin_strikes();
            return self.go_to(Phase::Work);
        };
        if client.is_ready()
            && client.is_idle()
            && let Some(lane) = client.free_lane()
        {
            client.begin_make(&mut self.context, lane, file);
        }
    }

    fn healing(&mut self, elapsed: u64) {
        if self.clients.iter().all(ClientNode::is_idle) {
            return self.go_to(Phase::Rest);
        }
        if elapsed > HEAL_US {
            // What waits for data that are gone for good may do so until its own deadline.
            let may_wait = |file: FileId| self.may_be_lost(file, None);
            let busy = self.clients.iter().flat_map(ClientNode::busy).find(|(file, _)| !may_wait(*file));
            if let Some((_, what)) = busy {
                self.checks.violated("F3", format!("30 s after the last fault was mended: {what}"));
            } else if elapsed > seconds(150) {
                self.checks.violated("F3", "an operation has no end".into());
            }
        }
    }

    fn resting(&mut self, elapsed: u64) {
        // Where a disk with a last copy has failed, and so was not replaced, nothing can be put.
        let usable = self.servers.iter().filter(|server| server.store.is_open() && !server.store.has_failed()).count();
        // A server that came back with an empty disk is another one.
        let is_gone = |node: &NodeId| self.servers.iter().all(|server| server.node() != Some(*node));
        let is_thin = |chunk: &ChunkId, set: &Chunk| {
            (set.in_sync.len() < usable.min(3) || !set.syncing.is_empty() || set.in_sync.iter().any(is_gone))
                && !self.is_exempt(*chunk)
        };
        let thin = self.checks.sets.iter().find(|(chunk, (_, set))| is_thin(chunk, set));
        match (thin, self.swarm.mode) {
            (None, _) if self.swarm.mode != Mode::Unlimited || elapsed > seconds(60) => self.compare(Phase::Compare),
            (Some((chunk, (_, set))), Mode::Atlas | Mode::Power) if elapsed > self.rest_us => {
                if set.in_sync.iter().any(is_gone) && self.rest_us == REST_US {
                    self.rest_us += AWAY_US;
                    return;
                }
                let what =
                    format!("{} s after the last fault was mended, chunk {chunk} has {set:?}", elapsed / 1_000_000);
                self.checks.violated("R7", what);
            }
            _ => {}
        }
    }

    fn restart(&mut self) {
        self.context.stop(Place::Master, false);
        self.master.kill(&mut self.context, false);
        for at in 1..=SERVERS {
            self.kill_server(at, false);
        }
        self.master.scrub_often();
        self.master.start(&mut self.context);
        for at in 1..=SERVERS {
            self.start_server(at);
        }
        self.compare(Phase::CompareAgain);
    }

    /// Everything is mended.
    fn heal(&mut self) {
        self.strikes.end();
        self.context.network.weather = self.swarm.calm;
        self.context.network.weather.lost_ppm = 0;
        self.context.network.weather.reset_ppm = 0;
        for (from, to) in self.context.network.broken() {
            self.context.mend(from, to);
        }
        if !self.context.is_up(Place::Master) {
            self.master.start(&mut self.context);
        }
        let places = (1..=SERVERS).map(Place::Chunk).chain((1..=CLIENTS).map(Place::Client)).chain([Place::Master]);
        for place in places {
            self.context.process_mut(place).slowness = 1;
            if self.context.process(place).is_paused {
                self.context.resume(place);
            }
        }
        for at in 1..=SERVERS {
            self.servers[at as usize - 1].store.disk.lock().remove_fuse();
            self.cure_disk(at);
            if self.servers[at as usize - 1].store.has_failed() {
                self.kill_server(at, false);
            }
            self.start_server(at);
            self.replace_broken_disk(at);
        }
        for at in 1..=CLIENTS {
            if !self.context.is_up(Place::Client(at)) {
                self.clients[at as usize - 1].start(&mut self.context);
            }
        }
        for client in &mut self.clients {
            client.be_quiet();
        }
    }

    // ------------------------------------------------------------ what faults use too

    pub(super) fn kill_server(&mut self, at: u32, loses_power: bool) {
        if !self.context.is_up(Place::Chunk(at)) && !loses_power {
            return;
        }
        let now = self.context.now();
        self.context.trace.note(now, [41, u64::from(at), u64::from(loses_power)], || {
            format!("chunk{at} {}", if loses_power { "loses power" } else { "is killed" })
        });
        self.context.stop(Place::Chunk(at), loses_power);
        let server = &mut self.servers[at as usize - 1];
        server.kill();
        if loses_power {
            server.store.power_cut();
            self.checks.robbed(&mut self.context, at);
        }
    }

    /// Starts a chunk server that does not run; again later, if it does not come up.
    pub(super) fn start_server(&mut self, at: u32) {
        if self.context.is_up(Place::Chunk(at)) {
            return;
        }
        let server = &mut self.servers[at as usize - 1];
        if server.start(&mut self.context).is_err() {
            return self.start_server_later(at);
        }
        let held: Vec<_> = server.store.held().into_iter().map(|(chunk, _, version)| (chunk, version)).collect();
        let torn = server.store.torn((1 << CHUNK_SIZE_LOG2) / UNIT_SIZE);
        self.checks.found_at_start(at, &held, torn);
    }

    /// A disk does again what it should. What it has may be damaged all the same.
    pub(super) fn cure_disk(&mut self, at: u32) {
        let was_silent;
        {
            let mut disk = self.servers[at as usize - 1].store.disk.lock();
            was_silent = disk.sickness.misdirected_ppm + disk.sickness.lost_write_ppm > 0;
            disk.sickness = Sickness { writeback_ppm: self.swarm.writeback_ppm, ..Sickness::default() };
            disk.taken = 0;
        }
        if self.checks.sick.contains(&at) {
            if was_silent {
                self.checks.hurt(&mut self.context, at);
            } else {
                self.checks.robbed(&mut self.context, at);
            }
            self.checks.forget_versions(at);
            self.checks.sick.remove(&at);
        }
    }

    /// Puts a new disk in the place of one that cannot be used any more, if nothing is lost by that.
    fn replace_broken_disk(&mut self, at: u32) {
        let is_up = self.context.is_up(Place::Chunk(at));
        let is_broken = !is_up || self.servers[at as usize - 1].store.has_failed();
        if is_broken
            && self.swarm.mode != Mode::Power
            && (self.swarm.mode == Mode::Unlimited || self.checks.may_rob(&[at], 1))
        {
            self.wipe_server(at);
            self.start_server(at);
        }
    }

    /// A chunk server comes back with an empty disk: it is another one for the master.
    pub(super) fn wipe_server(&mut self, at: u32) {
        self.kill_server(at, true);
        let now = self.context.now();
        self.context.trace.note(now, [42, u64::from(at)], || format!("chunk{at} has an empty disk"));
        self.servers[at as usize - 1].store.wipe();
        self.checks.wiped(at);
    }
}
