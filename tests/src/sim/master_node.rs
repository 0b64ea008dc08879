//! The master: its real state on an engine in memory, driven by simulated time.
//!
//! What its shell does in a real master is done here as events: a call is run and committed, its answer waits until what
//! it must not outlive is on stable media, and that is brought there now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use dfs_master::core::care::{Counters, NodeFacts};
use dfs_master::core::care_loop::{Care, CareSettings, Event};
use dfs_master::core::inventory::{Held as HeldReplica, Page};
use dfs_master::core::key::Key;
use dfs_master::core::node_table::{Disk, NodeState, NodeTable};
use dfs_master::core::record::{Chunk, Inode, Record, StoredCounters};
use dfs_master::core::request::Request;
use dfs_master::core::session;
use dfs_master::state::{self, MasterState, Settings, StateWorld};
use dfs_master::store::memory::MemoryStore;
use dfs_master::store::{Batch, MetaStore};
use dfs_mount::core::{Location, Replica};
use dfs_proto::env::Clock;
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::{ChangeAnswer, Home};
use dfs_proto::{BootSession, ChunkId, ChunkIndex, FsError, InodeId, Kind, MonoMs, Seq, UnixNanos, Version};
use parking_lot::RwLock;

use super::context::{Context, Wake};
use super::files::CHUNK_SIZE_LOG2;
use super::message::{Answer, Ask, MetaAnswer, Pulse, Pulsed, Question, Registered, Registration, Report, RpcId};
use super::network::Place;
use super::scheduler::{Time, ms};
use super::seen::Seen;

const TICK_SYNC: u32 = 1;
const TICK_CARE: u32 = 2;
/// Deletions that are ordered in one tick, and chunks of removed files that are handed over to that.
const DELETIONS: usize = 100;
const PURGED: usize = 100;

/// The times by which a master goes, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Of chunk servers' leases.
    pub lease_ms: u64,
    /// Until a silent chunk server is given up.
    pub offline_ms: u64,
    /// Of sessions.
    pub session_ms: u64,
    /// For sessions to come back after a restart.
    pub reclaim_window_ms: u64,
    /// Until replicas of removed files are deleted.
    pub reclaim_delay_ms: u64,
    /// Until replicas of no known chunk are.
    pub unknown_grace_ms: u64,
    /// In which each chunk is checked and compared once; 0: never.
    pub scrub_period_ms: u64,
    /// The longest time between two syncs.
    pub sync_ms: u64,
}

/// The clock of the master's host, set before each step.
#[derive(Debug, Default)]
struct StepClock {
    mono: AtomicU64,
    wall: AtomicI64,
}

impl Clock for StepClock {
    fn mono(&self) -> MonoMs {
        MonoMs(self.mono.load(Ordering::Relaxed))
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(self.wall.load(Ordering::Relaxed))
    }
}

/// An answer that waits for the log to be on stable media.
struct Waiting {
    until: Seq,
    from: Place,
    rpc: RpcId,
    answer: Held,
}

enum Held {
    Ready(Box<Answer>),
    Meta(Box<state::Answer>, Vec<Location>),
    Register(Box<state::Registration>, state::Registered),
}

struct Run {
    boot: BootSession,
    state: MasterState,
    clock: Arc<StepClock>,
    care: Care,
    began: Time,
    waiting: Vec<Waiting>,
    sync_planned: bool,
}

/// The master.
pub struct MasterNode {
    times: Times,
    store: MemoryStore,
    key: GrantKey,
    run: Option<Run>,
    /// The log's last position when the sets were last looked at.
    seen_seq: Seq,
    /// The chunks on record then, and since when others are not.
    known: BTreeSet<ChunkId>,
    gone: BTreeMap<ChunkId, Time>,
}

impl MasterNode {
    /// Returns a master of a new cluster whose files have small chunks.
    pub fn new(times: Times) -> Self {
        let store = MemoryStore::new();
        let mut root = Inode::new(InodeId::ROOT, Kind::Directory, 0o755, UnixNanos(0));
        root.parent = InodeId::ROOT;
        root.chunk_size_log2 = CHUNK_SIZE_LOG2;
        root.seq = Seq(1);
        let counters = Counters { inodes: 1, ..Default::default() };
        let record = |key: Key, record: Record| (key.encode(), record.encode());
        let stored = StoredCounters { counters, seq: Seq(1) };
        let puts = vec![
            record(Key::Inode(InodeId::ROOT), Record::Inode(root.into())),
            record(Key::Counters, Record::Counters(stored)),
        ];
        store.commit(&Batch { seq: Seq(1), puts, deletes: Vec::new() }).expect("an empty store takes a batch");
        store.sync().expect("main memory does not fail");
        Self {
            times,
            store,
            key: GrantKey::new([7; 32]),
            run: None,
            seen_seq: Seq(0),
            known: BTreeSet::new(),
            gone: BTreeMap::new(),
        }
    }

    /// From the next run on, everything is scrubbed every few seconds.
    pub fn scrub_often(&mut self) {
        self.times.scrub_period_ms = 15_000;
    }

    /// Begins a run.
    pub fn start(&mut self, context: &mut Context) {
        let boot = BootSession(context.rng.next());
        context.start(Place::Master);
        let now = context.now();
        context.trace.note(now, [30, boot.0], || format!("master starts, boot {:x}", boot.0));
        let clock = Arc::new(StepClock::default());
        set(&clock, context);
        let times = self.times;
        let settings = Settings {
            reclaim_delay_ms: times.reclaim_delay_ms,
            session_ms: times.session_ms,
            reclaim_window_ms: times.reclaim_window_ms,
            seed: context.rng.next(),
        };
        let nodes = Arc::new(RwLock::new(NodeTable::new(times.lease_ms, times.offline_ms)));
        let store: Arc<dyn MetaStore> = Arc::new(self.store.clone());
        match MasterState::load(store, nodes, Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(()), settings) {
            Ok(state) => {
                let settings = CareSettings {
                    scrub_period_ms: times.scrub_period_ms,
                    unknown_grace_ms: times.unknown_grace_ms,
                    census_period_ms: 5_000,
                    ..CareSettings::default()
                };
                let care = Care::new(settings);
                self.run = Some(Run { boot, state, clock, care, began: now, waiting: Vec::new(), sync_planned: false });
            }
            Err(error) => {
                context.seen.push(Seen::Wrong { rule: "D3", what: format!("the master does not start: {error}") })
            }
        }
        context.wake_after(Place::Master, ms(100), Wake::Tick(TICK_CARE));
        context.wake_after(Place::Master, ms(self.times.sync_ms), Wake::Tick(TICK_SYNC));
    }

    /// The process ends without warning; with `loses_power` so does its host.
    pub fn kill(&mut self, context: &mut Context, loses_power: bool) {
        self.run = None;
        if loses_power {
            let kept = context.rng.below(self.store.unsynced() as u64 + 1) as usize;
            self.store.crash_keeping(kept);
        }
    }

    /// Something that was planned is due.
    pub fn wake(&mut self, context: &mut Context, what: &Wake) {
        match what {
            Wake::Tick(TICK_SYNC) => {
                self.sync(context);
                context.wake_after(Place::Master, ms(self.times.sync_ms), Wake::Tick(TICK_SYNC));
            }
            Wake::Tick(TICK_CARE) => {
                self.care(context);
                context.wake_after(Place::Master, ms(200), Wake::Tick(TICK_CARE));
            }
            Wake::Tick(_) | Wake::Job(_) => {
                if let Some(run) = &mut self.run {
                    run.sync_planned = false;
                }
                self.sync(context);
            }
        }
    }

    /// A question arrived.
    pub fn asked(&mut self, context: &mut Context, question: Question) {
        let Some(run) = &mut self.run else { return };
        set(&run.clock, context);
        let Question { rpc, from, ask, .. } = question;
        let (until, answer) = match ask {
            Ask::Register(registration) => Self::register(run, from, registration),
            Ask::Pulse(pulse) => (Seq(0), Held::Ready(Box::new(Self::pulse(run, self.times.lease_ms, pulse)))),
            Ask::Report(report) => (Seq(0), Held::Ready(Box::new(Self::report(run, report)))),
            Ask::Change(change) => {
                let reply = run.state.change_replicas(&change);
                let grant = reply.grant.map(|grant| self.key.seal(&grant));
                let answer = Answer::Changed(ChangeAnswer { result: reply.result, grant });
                (reply.durable_first, Held::Ready(Box::new(answer)))
            }
            Ask::Meta { boot, .. } if boot != run.boot => (Seq(0), Held::Ready(Box::new(Answer::AnotherRun(run.boot)))),
            Ask::Meta { call, .. } => {
                let answer = run.state.perform(&call);
                let locations = locations(&run.state, &self.key, &answer);
                let until = match call.request {
                    Request::Sync if answer.result.is_ok() => Seq(u64::MAX),
                    _ => answer.durable_first,
                };
                (until, Held::Meta(Box::new(answer), locations))
            }
            Ask::Data { .. } | Ask::Peer { .. } => return,
        };
        if let Err(error) = run.state.commit() {
            context.seen.push(Seen::Wrong { rule: "D3", what: format!("the master's store: {error}") });
            return;
        }
        let until = until.min(run.state.durability().committed());
        run.waiting.push(Waiting { until, from, rpc, answer });
        self.release(context);
        self.look_at_sets(context);
    }

    fn register(run: &mut Run, from: Place, registration: Registration) -> (Seq, Held) {
        let disk = Disk {
            disk_id: registration.server.to_vec(),
            path: "/".into(),
            capacity_bytes: registration.capacity,
            free_bytes: registration.free,
            replicas: 0,
            failed: registration.has_failed,
        };
        let facts = NodeFacts {
            server_id: registration.server,
            data_address: from.to_string(),
            host: from.to_string(),
            ..Default::default()
        };
        let registration = state::Registration {
            facts,
            boot: registration.boot,
            is_suspect: registration.is_suspect,
            disks: vec![disk],
        };
        match run.state.register(&registration) {
            Ok(registered) => (registered.durable_first, Held::Register(Box::new(registration), registered)),
            Err(error) => (Seq(0), Held::Ready(Box::new(Answer::Registered(Err(error))))),
        }
    }

    fn pulse(run: &Run, lease_ms: u64, pulse: Pulse) -> Answer {
        let pulse = state::Pulse {
            node: pulse.node,
            boot: pulse.boot,
            deleted: pulse.deleted,
            results: pulse.results,
            fence_seq: Seq(pulse.fence_seq),
        };
        let reply = run.state.pulse(pulse, run.clock.mono());
        Answer::Pulsed(reply.map(|reply| Pulsed {
            lease_ms,
            delete: reply.delete,
            orders: reply.orders,
            fenced: reply.fenced,
            fence_seq: reply.fence_seq.0,
        }))
    }

    fn report(run: &Run, report: Report) -> Answer {
        let disk = Disk {
            disk_id: Vec::new(),
            path: "/".into(),
            capacity_bytes: report.capacity,
            free_bytes: report.free,
            replicas: report.held.len() as u64,
            failed: report.has_failed,
        };
        let held = |(chunk, home, version): (ChunkId, Home, Version)| HeldReplica { chunk, home, version };
        let page = Page {
            node: report.node,
            boot: report.boot,
            held: report.held.into_iter().map(held).collect(),
            after: ChunkId(0),
            is_end: true,
        };
        let report = state::Report {
            node: report.node,
            boot: report.boot,
            disks: vec![disk],
            page: Some(page),
            damaged: report.damaged.into_iter().map(|(_, home, _)| home).collect(),
        };
        Answer::Reported(run.state.report(report, run.clock.mono()))
    }

    /// Gives the answers that may be given by now, and plans a sync for the others.
    fn release(&mut self, context: &mut Context) {
        let Some(run) = &mut self.run else { return };
        let durable = run.state.durability().durable();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut run.waiting).into_iter().partition(|waiting| waiting.until <= durable);
        run.waiting = waiting;
        if !run.waiting.is_empty() && !run.sync_planned {
            run.sync_planned = true;
            let delay = context.rng.below(ms(6));
            context.wake_after(Place::Master, delay, Wake::Job(0));
        }
        for Waiting { from, rpc, answer, .. } in ready {
            let answer = match answer {
                Held::Ready(answer) => *answer,
                Held::Meta(answer, locations) => {
                    let told = answer.durable_max.map_or(durable, |most| most.min(durable));
                    let result: Result<session::Reply, FsError> = answer.result;
                    Answer::Meta(MetaAnswer { result, durable: told, locations })
                }
                Held::Register(registration, registered) => {
                    let run = self.run.as_mut().expect("it runs");
                    Answer::Registered(run.state.enter(*registration, &registered).map(|()| Registered {
                        node: registered.node,
                        boot: registered.boot,
                        lease_ms: self.times.lease_ms,
                        key: *self.key.as_bytes(),
                    }))
                }
            };
            context.answer(Place::Master, from, rpc, answer);
        }
    }

    fn sync(&mut self, context: &mut Context) {
        let Some(run) = &mut self.run else { return };
        set(&run.clock, context);
        if let Err(error) = run.state.sync() {
            context.seen.push(Seen::Wrong { rule: "D3", what: format!("the master's store: {error}") });
        }
        self.release(context);
    }

    fn care(&mut self, context: &mut Context) {
        let Some(run) = &mut self.run else { return };
        set(&run.clock, context);
        let cared =
            run.care(&self.key).and_then(|()| run.state.commit().map_err(|error| FsError::Io(error.to_string())));
        if let Err(error) = cared {
            context.seen.push(Seen::Wrong { rule: "D3", what: format!("the care of the master: {error}") });
        }
        let now = context.now();
        for event in run.care.take_events() {
            if let Event::Reclaimed { node, chunk } = event {
                // By this host's clock, which may run fast.
                let grace = ms(self.times.unknown_grace_ms) * 99 / 100;
                let since = self.gone.get(&chunk).copied().unwrap_or_default().max(run.began);
                if now < since.plus(grace) {
                    let what =
                        format!("chunk {chunk} is not on record since {since} only, and to be deleted at node {node}");
                    context.seen.push(Seen::Wrong { rule: "R6", what });
                }
            }
            context.trace.say(now, || format!("master care: {event:?}"));
        }
        self.release(context);
        self.look_at_sets(context);
    }

    fn look_at_sets(&mut self, context: &mut Context) {
        let last = self.store.last_seq();
        if last != self.seen_seq {
            self.seen_seq = last;
            let known: BTreeSet<ChunkId> = chunks(&self.store).values().map(|chunk| chunk.id).collect();
            let now = context.now();
            self.gone.extend(self.known.difference(&known).map(|chunk| (*chunk, now)));
            self.known = known;
            context.seen.push(Seen::SetsChanged);
        }
    }

    /// Returns all chunks on record.
    pub fn chunks(&self) -> BTreeMap<Home, Chunk> {
        chunks(&self.store)
    }
}

impl Run {
    /// What the caretaker does in one tick.
    fn care(&mut self, key: &GrantKey) -> Result<(), FsError> {
        let (state, now) = (&mut self.state, self.clock.mono());
        let done = state.nodes().write().take_deleted();
        for (node, chunks) in done {
            state.reclaim_done(node, &chunks)?;
        }
        let due = state.reclaim_due(DELETIONS)?;
        if !due.is_empty() {
            // Nobody deletes what a power cut could give back to a file.
            state.sync().map_err(|error| FsError::Io(error.to_string()))?;
            let mut table = state.nodes().write();
            for entry in due {
                let there = entry.nodes.iter().filter(|node| table.state(**node, now) != NodeState::Offline);
                for node in there.copied().collect::<Vec<_>>() {
                    table.order_deletions(node, [entry.chunk]);
                }
            }
        }
        state.purge_orphans(PURGED)?;
        state.expire_sessions()?;
        let fleet = state.fleet();
        let inbox = std::mem::take(&mut *state.control().inbox.lock());
        self.care.tick(now, fleet, inbox, &mut StateWorld { state, grant_key: key })
    }
}

fn chunks(store: &MemoryStore) -> BTreeMap<Home, Chunk> {
    let key = |inode, index| Key::Chunk(InodeId(inode), ChunkIndex(index)).encode();
    let (start, end) = (key(0, 0), key(u64::MAX, u32::MAX));
    let pairs = store.scan(&start, &end, usize::MAX).unwrap_or_default();
    pairs
        .iter()
        .filter_map(|(key, value)| {
            let key = Key::decode(key)?;
            match (&key, Record::decode(&key, value).ok()?) {
                (Key::Chunk(inode, index), Record::Chunk(chunk)) => {
                    Some((Home { inode: *inode, index: *index }, Chunk::clone(&chunk)))
                }
                _ => None,
            }
        })
        .collect()
}

fn set(clock: &StepClock, context: &Context) {
    clock.mono.store(context.mono(Place::Master).0, Ordering::Relaxed);
    clock.wall.store(context.wall(Place::Master).0, Ordering::Relaxed);
}

fn locations(state: &MasterState, key: &GrantKey, answer: &state::Answer) -> Vec<Location> {
    let found = state.locations(answer);
    found
        .into_iter()
        .flatten()
        .map(|location| Location {
            index: location.index,
            chunk: location.grant.chunk,
            version: location.grant.version,
            replicas: location
                .replicas
                .iter()
                .map(|replica| Replica {
                    node: replica.member.node,
                    address: Arc::clone(&replica.member.address),
                    is_alive: replica.is_alive,
                })
                .collect(),
            grant: key.seal(&location.grant),
        })
        .collect()
}
