//! A chunk server: real cores and a store, driven by simulated time.
//!
//! What its shell does in a real server is done here as events: it registers and pulses, opens replicas and tells them
//! what came, carries out what they want, a little later and one thing after the other, and keeps what orders came to.

mod control;
mod jobs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_chunkd::core::admission;
use dfs_chunkd::core::message::{
    CallId, ClientRequest, Context as CoreContext, DiskAnswer, DiskJob, Effect, Event as CoreEvent, Input,
    MasterAnswer, PeerRequest, ReplicaOrder, Reply, Request, Sealed, Tag,
};
use dfs_chunkd::core::replica::ReplicaCore;
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::{ChangeKind, ChangeRequest, Order, OrderKind, OrderOutcome, OrderReport};
use dfs_proto::{BootSession, ChunkId, ClusterId, FsError, MonoMs, NodeId, SessionId, Version};

use super::context::{Context, Failure, Wake};
use super::message::{Answer, Ask, Pulse, Question, Registered, Registration, Report, RpcId};
use super::network::Place;
use super::scheduler::{Time, ms};
use super::seen::Seen;
use super::store::{Found, NodeStore};

/// A request of a client must have been answered within this.
const OP_TIMEOUT_MS: u64 = 10_000;
/// A peer has this long.
const PEER_TIMEOUT_MS: u64 = 5_000;
/// An order has this long.
const ORDER_TIMEOUT_MS: u64 = 60_000;
/// The control plane's patience.
const CONTROL_TIMEOUT_US: u64 = ms(2_000);
/// The one cluster there is.
const CLUSTER: ClusterId = ClusterId([9; 16]);
/// Orders that are carried out at the same time.
const ORDERS_MAX: usize = 4;

const TICK_PULSE: u32 = 1;
const TICK_REPORT: u32 = 2;
const TICK_FLUSH: u32 = 3;
const TICK_CLOSE: u32 = 4;

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// It closes replicas that are idle.
    pub closes_idle: bool,
    /// Time between its reports, in milliseconds.
    pub report_ms: u64,
    /// Longest time of a disk job, in microseconds; a sync takes up to twenty times as long.
    pub disk_us: u64,
}

enum Caller {
    Remote {
        from: Place,
        rpc: RpcId,
    },
    Order(u64),
    /// This server itself, whose disk has failed.
    Leaving,
}

struct CallState {
    chunk: ChunkId,
    caller: Caller,
    session: SessionId,
    is_client: bool,
    written: Option<(u32, u32)>,
    /// Of a barrier: when it was asked for, and the last write that was acknowledged then.
    covers: Option<(Time, u64)>,
    deadline: MonoMs,
    /// When its last disk job is carried out.
    disk_at: Time,
    expires: Option<MonoMs>,
    words: String,
}

enum Purpose {
    Register,
    Pulse { sent: MonoMs, results: Vec<u64>, deleted: Vec<ChunkId> },
    Report { damaged: BTreeSet<ChunkId> },
    Leave { chunk: ChunkId },
    Change { chunk: ChunkId, call: CallId, tag: Tag },
    Peer { chunk: ChunkId, call: CallId, tag: Tag },
}

enum Job {
    Carry { chunk: ChunkId, call: CallId, tag: Tag, job: DiskJob },
    Done { chunk: ChunkId, call: CallId, tag: Tag, result: Result<DiskAnswer, FsError> },
    Expire { call: CallId, at: MonoMs },
}

/// What one run of the process knows.
struct Run {
    boot: BootSession,
    node: Option<NodeId>,
    key: Option<GrantKey>,
    lease_until: MonoMs,
    is_registered: bool,
    /// The master has heard of this run.
    is_known: bool,
    cores: BTreeMap<ChunkId, ReplicaCore>,
    calls: BTreeMap<CallId, CallState>,
    rpcs: BTreeMap<RpcId, Purpose>,
    jobs: BTreeMap<u64, Job>,
    next: u64,
    orders: VecDeque<Order>,
    orders_known: BTreeSet<u64>,
    orders_running: BTreeSet<u64>,
    results: Vec<OrderOutcome>,
    deleted: Vec<ChunkId>,
    fenced: BTreeSet<SessionId>,
    fence_seq: u64,
    /// Replicas of a failed disk that have left their sets, and whether one is about to.
    left: BTreeSet<ChunkId>,
    is_leaving: bool,
    gave_up: bool,
    /// Replicas with damage that the master was not told of.
    damaged: BTreeSet<ChunkId>,
    /// Of each chunk the last write that was acknowledged here.
    acked: BTreeMap<ChunkId, u64>,
    ticks: u64,
}

/// A chunk server.
pub struct ChunkNode {
    /// Where it is.
    pub place: Place,
    /// Its number, from 1.
    pub at: u32,
    /// Its replicas.
    pub store: NodeStore,
    habits: Habits,
    run: Option<Run>,
}

impl ChunkNode {
    /// Returns a server that was not started yet.
    pub fn new(at: u32, store: NodeStore, habits: Habits) -> Self {
        Self { place: Place::Chunk(at), at, store, habits, run: None }
    }

    /// Begins a run.
    ///
    /// # Errors
    ///
    /// Why it does not start; it is to be tried again.
    pub fn start(&mut self, context: &mut Context) -> Result<(), String> {
        let boot = BootSession(context.rng.next());
        if let Err(reason) = self.store.start() {
            let (now, place) = (context.now(), self.place);
            context.trace.note(now, [15, u64::from(self.at)], || format!("{place} cannot start: {reason}"));
            self.store.close();
            return Err(reason);
        }
        let is_suspect = self.store.is_suspect();
        self.run = Some(Run {
            boot,
            node: None,
            key: None,
            lease_until: MonoMs(0),
            is_registered: false,
            is_known: false,
            cores: BTreeMap::new(),
            calls: BTreeMap::new(),
            rpcs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next: 1,
            orders: VecDeque::new(),
            orders_known: BTreeSet::new(),
            orders_running: BTreeSet::new(),
            results: Vec::new(),
            deleted: Vec::new(),
            fenced: BTreeSet::new(),
            fence_seq: 0,
            left: BTreeSet::new(),
            is_leaving: false,
            gave_up: false,
            damaged: BTreeSet::new(),
            acked: BTreeMap::new(),
            ticks: 0,
        });
        context.start(self.place);
        let now = context.now();
        let (place, at) = (self.place, u64::from(self.at));
        context.trace.note(now, [10, at, boot.0], || {
            format!("{place} starts, boot {:x}{}", boot.0, if is_suspect { ", suspect" } else { "" })
        });
        for (tick, within) in [
            (TICK_PULSE, ms(50)),
            (TICK_REPORT, ms(self.habits.report_ms)),
            (TICK_FLUSH, ms(1_000)),
            (TICK_CLOSE, ms(4_000)),
        ] {
            let delay = context.rng.below(within);
            context.wake_after(self.place, delay, Wake::Tick(tick));
        }
        Ok(())
    }

    /// The process ends without warning.
    pub fn kill(&mut self) {
        self.run = None;
        self.store.close();
    }

    /// Returns this server's id, as far as its process knows.
    pub fn node(&self) -> Option<NodeId> {
        self.run.as_ref()?.node
    }

    /// Returns whether it is the active primary of `chunk` under its lease at `now`.
    pub fn is_primary(&self, chunk: ChunkId, now: MonoMs) -> bool {
        self.run.as_ref().is_some_and(|run| {
            now < run.lease_until && run.cores.get(&chunk).is_some_and(|core| core.active_version().is_some())
        })
    }

    /// Returns what waits longer than its deadline.
    pub fn overdue(&self, now: MonoMs, grace_ms: u64) -> Option<String> {
        let run = self.run.as_ref()?;
        let late = run.calls.values().find(|call| call.deadline.plus(grace_ms) < now)?;
        Some(format!(
            "{}: {} of chunk {} was to be answered until {}, now is {}",
            self.place, late.words, late.chunk, late.deadline.0, now.0
        ))
    }

    // ------------------------------------------------------------ events

    /// Something that was planned is due.
    pub fn wake(&mut self, context: &mut Context, what: Wake) {
        match what {
            Wake::Tick(TICK_PULSE) => self.pulse(context),
            Wake::Tick(TICK_REPORT) => self.report(context),
            Wake::Tick(TICK_FLUSH) => {
                let run = self.run();
                run.ticks += 1;
                let is_time = run.ticks.is_multiple_of(4);
                self.store.tend(is_time);
                context.wake_after(self.place, ms(250), Wake::Tick(TICK_FLUSH));
                if !self.look_at_fuse(context) && is_time {
                    self.leave_failed_disk(context);
                }
            }
            Wake::Tick(_) => self.close_idle(context),
            Wake::Job(number) => self.job(context, number),
        }
    }

    fn run(&mut self) -> &mut Run {
        self.run.as_mut().expect("events come only while it runs")
    }

    /// A question arrived.
    pub fn asked(&mut self, context: &mut Context, question: Question) {
        let Question { rpc, from, ask, .. } = question;
        match ask {
            Ask::Data { chunk, version, grant, session, request } => {
                let began = self.begin_client(context, (from, rpc), (chunk, version), (grant, session), request);
                if let Err(error) = began {
                    context.answer(self.place, from, rpc, Answer::Data(Err(error)));
                }
            }
            Ask::Peer { whom, chunk, node, boot, version, request, payload } => {
                if self.run().node != Some(whom) {
                    let other = FsError::NoReplica("another server answers there".into());
                    return context.answer(self.place, from, rpc, Answer::Peer(Err(other)));
                }
                let began = self.begin_peer(context, (from, rpc), chunk, (node, boot, version), (request, payload));
                if let Err(error) = began {
                    context.answer(self.place, from, rpc, Answer::Peer(Err(error)));
                }
            }
            _ => {}
        }
    }

    fn begin_client(
        &mut self,
        context: &mut Context,
        (from, rpc): (Place, RpcId),
        (chunk, version): (ChunkId, Version),
        (bytes, session): (Bytes, SessionId),
        request: ClientRequest,
    ) -> Result<(), FsError> {
        let run = self.run();
        if run.fenced.contains(&session) {
            return Err(FsError::UnknownSession);
        }
        let (Some(key), Some(node), boot) = (&run.key, run.node, run.boot) else {
            return Err(FsError::TryAgain("not registered yet"));
        };
        let grant = key.open(&bytes).ok_or(FsError::Stale("the grant's seal is not ours"))?;
        admission::check_primary(&grant, chunk, version, node, boot)?;
        self.ensure_core(chunk, &grant)?;
        let units = |offset: u32, length: u32| admission::unit_range(offset, length, grant.chunk_size_log2).ok();
        let written = match &request {
            ClientRequest::Write { offset, data, .. } => units(*offset, data.len() as u32),
            ClientRequest::Zero { .. }
            | ClientRequest::Read { .. }
            | ClientRequest::Barrier { .. }
            | ClientRequest::Extents { .. } => None,
        };
        let words = super::message::request_words(&request);
        let sealed = Sealed { grant: Arc::new(grant), bytes };
        let remote = Caller::Remote { from, rpc };
        let acked = self.run().acked.get(&chunk).copied().unwrap_or(0);
        let covers = matches!(request, ClientRequest::Barrier { .. }).then(|| (context.now(), acked));
        let call = CallState { session, is_client: true, written, covers, ..self.call(context, chunk, remote, words) };
        self.begin(context, call, OP_TIMEOUT_MS, Request::Client { grant: sealed, request });
        Ok(())
    }

    fn begin_peer(
        &mut self,
        context: &mut Context,
        (from, rpc): (Place, RpcId),
        chunk: ChunkId,
        (node, boot, version): (NodeId, BootSession, Version),
        (mut request, payload): (PeerRequest, Bytes),
    ) -> Result<(), FsError> {
        if let PeerRequest::Activate { grant: sealed, .. } = &mut request {
            let run = self.run();
            let (Some(key), Some(me)) = (&run.key, run.node) else {
                return Err(FsError::TryAgain("not registered yet"));
            };
            let grant = key.open(&sealed.bytes).ok_or(FsError::Stale("the grant's seal is not ours"))?;
            if !grant.names(me) {
                return Err(FsError::Stale("the grant does not name this server"));
            }
            self.ensure_core(chunk, &grant)?;
            sealed.grant = Arc::new(grant);
        } else if !self.open_core(chunk)? {
            return Err(FsError::TryAgain("no such replica here: activate first"));
        }
        let words = super::message::peer_words(&request);
        let call = self.call(context, chunk, Caller::Remote { from, rpc }, words);
        self.begin(context, call, PEER_TIMEOUT_MS, Request::Peer { node, boot, version, request, payload });
        Ok(())
    }

    fn open_core(&mut self, chunk: ChunkId) -> Result<bool, FsError> {
        if self.run().cores.contains_key(&chunk) {
            return Ok(true);
        }
        let Some(found) = self.store.open(chunk)? else { return Ok(false) };
        self.insert_core(chunk, found);
        Ok(true)
    }

    fn ensure_core(&mut self, chunk: ChunkId, grant: &dfs_proto::replica_set::Grant) -> Result<(), FsError> {
        if !self.open_core(chunk)? {
            let found = self.store.create(grant)?;
            self.insert_core(chunk, found);
        }
        Ok(())
    }

    fn insert_core(&mut self, chunk: ChunkId, found: Found) {
        let Found { version, incomplete, chunk_size_log2, recovered } = found;
        let core = ReplicaCore::new(version, incomplete, chunk, chunk_size_log2, recovered);
        self.run().cores.insert(chunk, core);
    }

    fn call(&self, context: &Context, chunk: ChunkId, caller: Caller, words: String) -> CallState {
        CallState {
            chunk,
            caller,
            session: SessionId(0),
            is_client: false,
            written: None,
            covers: None,
            deadline: MonoMs(0),
            disk_at: context.now(),
            expires: None,
            words,
        }
    }

    fn begin(&mut self, context: &mut Context, mut call: CallState, timeout_ms: u64, request: Request) {
        let deadline = context.mono(self.place).plus(timeout_ms);
        call.deadline = deadline;
        let chunk = call.chunk;
        let run = self.run();
        let id = CallId(run.next);
        run.next += 1;
        run.calls.insert(id, call);
        self.step(context, chunk, Input::Begin { call: id, deadline, request });
    }

    /// Tells a core something and carries out what it wants.
    fn step(&mut self, context: &mut Context, chunk: ChunkId, input: Input) {
        let now = context.mono(self.place);
        let disk_room = self.store.space().1;
        let random = context.rng.next() | 1;
        let run = self.run.as_mut().expect("it runs");
        let core_context = CoreContext {
            now,
            node: run.node.unwrap_or_default(),
            boot: run.boot,
            lease_until: run.lease_until,
            disk_room,
            random,
        };
        // It was deleted, or closed, meanwhile.
        let Some(core) = run.cores.get_mut(&chunk) else { return };
        let mut effects = Vec::new();
        core.step(&core_context, input, &mut effects);
        for effect in effects {
            self.carry_out(context, chunk, effect);
        }
    }

    fn carry_out(&mut self, context: &mut Context, chunk: ChunkId, effect: Effect) {
        match effect {
            Effect::Send { call, tag, to, version, request, payload, until } => {
                let patience = self.patience(context, until);
                let run = self.run();
                let (whom, node) = (to.node, run.node.unwrap_or_default());
                let ask = Ask::Peer { whom, chunk, node, boot: run.boot, version, request, payload };
                let to = place_of(&to.address);
                let rpc = context.ask(self.place, to, patience, ask);
                self.run().rpcs.insert(rpc, Purpose::Peer { chunk, call, tag });
            }
            Effect::Disk { call, tag, job } => self.plan_disk(context, chunk, call, tag, job),
            Effect::AskMaster { call, tag, request, until } => {
                let patience = self.patience(context, until);
                let rpc = context.ask(self.place, Place::Master, patience, Ask::Change(request));
                self.run().rpcs.insert(rpc, Purpose::Change { chunk, call, tag });
            }
            Effect::Expire { call, at } => {
                if let Some(state) = self.run().calls.get_mut(&call) {
                    state.expires = Some(at);
                    let number = self.keep(Job::Expire { call, at });
                    context.wake_at(self.place, at, Wake::Job(number));
                }
            }
            Effect::Note(event) => self.note(context, chunk, &event),
            Effect::Reply { call, result } => self.reply(context, call, result),
        }
    }

    fn note(&mut self, context: &mut Context, chunk: ChunkId, event: &CoreEvent) {
        let (now, place) = (context.now(), self.place);
        context.trace.say(now, || format!("{place} chunk {chunk}: {event:?}"));
    }

    fn patience(&self, context: &Context, until: MonoMs) -> u64 {
        let when = context.process(self.place).clock.when(until);
        when.0.saturating_sub(context.now().0)
    }

    fn reply(&mut self, context: &mut Context, call: CallId, result: Result<Reply, FsError>) {
        let Some(state) = self.run().calls.remove(&call) else {
            context
                .seen
                .push(Seen::Wrong { rule: "F3", what: format!("{}: call {} was answered twice", self.place, call.0) });
            return;
        };
        match state.caller {
            Caller::Remote { from, rpc } => {
                if let (true, Ok(reply)) = (state.is_client, &result) {
                    let core = self.run().cores.get(&state.chunk);
                    let version = core.map(ReplicaCore::version).unwrap_or_default();
                    let seen = Seen::Served {
                        server: self.at,
                        chunk: state.chunk,
                        version,
                        is_read: matches!(reply, Reply::Data { .. } | Reply::Extents(_)),
                        written: match (state.written, reply) {
                            (Some(units), Reply::Written { seq, version }) => Some((units, *seq, *version)),
                            _ => None,
                        },
                        session: state.session,
                    };
                    context.seen.push(seen);
                    if let Some((asked, seq)) = state.covers {
                        context.seen.push(Seen::Barrier { chunk: state.chunk, asked, seq });
                    }
                    if let Reply::Written { seq, .. } = reply {
                        let last = self.run().acked.entry(state.chunk).or_default();
                        *last = (*last).max(*seq);
                    }
                }
                let answer = match (state.is_client, result) {
                    (true, result) => Answer::Data(result),
                    (false, Ok(Reply::Peer(answer))) => Answer::Peer(Ok(answer)),
                    (false, Ok(other)) => Answer::Peer(Err(FsError::Protocol(format!("{other:?} to a peer")))),
                    (false, Err(error)) => Answer::Peer(Err(error)),
                };
                context.answer(self.place, from, rpc, answer);
            }
            Caller::Order(id) => {
                let report = match result {
                    Ok(Reply::Order(report)) => Ok(report),
                    Ok(_) => Ok(OrderReport::default()),
                    Err(error) => Err(error),
                };
                self.order_done(context, id, report);
            }
            Caller::Leaving => {
                self.run().is_leaving = false;
                if matches!(result, Ok(_) | Err(FsError::Stale(_))) {
                    self.run().left.insert(state.chunk);
                }
            }
        }
    }

    /// An answer came, or will not.
    pub fn answered(&mut self, context: &mut Context, rpc: RpcId, result: Result<Answer, Failure>) {
        let Some(purpose) = self.run().rpcs.remove(&rpc) else { return };
        match (purpose, result) {
            (Purpose::Peer { chunk, call, tag }, result) => {
                let result = match result {
                    Ok(Answer::Peer(answer)) => answer,
                    Ok(_) => Err(FsError::Protocol("another answer".into())),
                    Err(failure) => Err(FsError::NoReplica(format!("{failure:?}"))),
                };
                self.step(context, chunk, Input::Answered { call, tag, result });
            }
            (Purpose::Change { chunk, call, tag }, result) => {
                let key = self.run().key.clone();
                let result = match result {
                    Ok(Answer::Changed(answer)) => {
                        Ok(MasterAnswer::opened(answer, |bytes| key.as_ref().and_then(|key| key.open(bytes))))
                    }
                    Ok(_) => Err(FsError::Protocol("another answer".into())),
                    Err(_) => Err(FsError::TimedOut("the master")),
                };
                self.step(context, chunk, Input::MasterAnswered { call, tag, result });
            }
            (Purpose::Register, Ok(Answer::Registered(Ok(registered)))) => self.registered(context, &registered),
            (Purpose::Register, _) => {
                context.wake_after(self.place, ms(300), Wake::Tick(TICK_PULSE));
            }
            (Purpose::Pulse { sent, results, deleted }, Ok(Answer::Pulsed(Some(pulsed)))) => {
                let run = self.run();
                run.lease_until = run.lease_until.max(sent.plus(pulsed.lease_ms));
                run.results.retain(|outcome| !results.contains(&outcome.id));
                run.orders_known
                    .retain(|id| !results.contains(id) || pulsed.orders.iter().any(|order| order.id == *id));
                run.deleted.retain(|chunk| !deleted.contains(chunk));
                run.fenced.extend(pulsed.fenced);
                run.fence_seq = run.fence_seq.max(pulsed.fence_seq);
                for chunk in pulsed.delete {
                    if self.delete(context, chunk).is_ok() {
                        self.run().deleted.push(chunk);
                    }
                }
                for order in pulsed.orders {
                    if self.run().orders_known.insert(order.id) {
                        self.run().orders.push_back(order);
                    }
                }
                self.begin_orders(context);
                context.wake_after(self.place, ms(1_000), Wake::Tick(TICK_PULSE));
            }
            (Purpose::Pulse { .. }, Ok(Answer::Pulsed(None))) => {
                let run = self.run();
                run.is_registered = false;
                run.lease_until = MonoMs(0);
                context.wake_after(self.place, ms(100), Wake::Tick(TICK_PULSE));
            }
            (Purpose::Pulse { .. }, _) => context.wake_after(self.place, ms(1_000), Wake::Tick(TICK_PULSE)),
            (Purpose::Leave { chunk }, result) => {
                let run = self.run();
                run.is_leaving = false;
                if let Ok(Answer::Changed(changed)) = result
                    && matches!(changed.result, Ok(()) | Err(FsError::Stale(_)))
                {
                    run.left.insert(chunk);
                }
            }
            (Purpose::Report { damaged }, result) => {
                if let Ok(Answer::Reported(true)) = result {
                    self.run().damaged.retain(|chunk| !damaged.contains(chunk));
                }
                context.wake_after(self.place, ms(self.habits.report_ms), Wake::Tick(TICK_REPORT));
            }
        }
    }

    /// Replicas that nobody uses may be closed at any time.
    fn close_idle(&mut self, context: &mut Context) {
        let delay = context.rng.between(ms(1_000), ms(8_000));
        context.wake_after(self.place, delay, Wake::Tick(TICK_CLOSE));
        if !self.habits.closes_idle {
            return;
        }
        let run = self.run.as_mut().expect("it runs");
        let idle: Vec<ChunkId> = run
            .cores
            .iter()
            .filter(|(chunk, core)| core.is_idle() && !run.calls.values().any(|call| call.chunk == **chunk))
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in idle {
            if context.rng.in_a_million(300_000) {
                let (now, place) = (context.now(), self.place);
                context.trace.note(now, [14, u64::from(self.at), chunk.0], || format!("{place} closes chunk {chunk}"));
                self.run().cores.remove(&chunk);
                self.store.close_replica(chunk);
            }
        }
    }
}

/// Returns who listens at an address of the simulation.
pub fn place_of(address: &str) -> Place {
    let number = address.strip_prefix("chunk").and_then(|number| number.parse().ok());
    Place::Chunk(number.unwrap_or(0))
}
