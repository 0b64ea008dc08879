//! A client: several operations at a time, each a list of calls of the master and of chunk servers.
//!
//! What it does with an answer is decided by the real cores of a mount: [`ChunkCall`] (whom to ask next) and
//! [`SyncPlan`] (in which order an fsync goes).

mod calls;
mod covers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_chunkd::core::message::{ClientRequest, Reply};
use dfs_master::core::outcome::Body;
use dfs_master::core::request::{CommitWrite, Make, Request};
use dfs_mount::core::{
    ChunkCall, Input, Location, LookUp, Outcome as CallOutcome, Policy, Step, SyncPlan, SyncStep, Trouble,
};
use dfs_proto::{ChunkIndex, FsError, InodeId, Kind, MonoMs, SessionId, Version, unit};

use covers::Covers;

use super::client_session::{ClientSession, Outcome};
use super::context::{Context, Failure, Wake};
use super::files::{CHUNK_SLOTS, Purpose, chunk_span, place};
use super::history::{Begun, FileId, SLOT_BYTES, Span, stamp};
use super::message::{Answer, Ask, MetaAnswer, RpcId};
use super::network::Place;
use super::scheduler::{Time, ms};
use super::seen::Seen;

/// Stands for all lanes.
pub const ALL_LANES: u32 = u32::MAX;
/// Something is due for the session.
pub const TICK_SESSION: u32 = 1_000;
/// The session's regular look.
const TICK_ALIVE: u32 = 1_001;

/// What a client does, and how often (as weights).
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Writes anywhere.
    pub write: u64,
    /// Reads anywhere.
    pub read: u64,
    /// Makes a range zeros.
    pub zero: u64,
    /// Brings a file to stable media.
    pub sync: u64,
    /// Adds to its log.
    pub append: u64,
    /// Reads a log.
    pub look: u64,
    /// Makes another file in the place of one that it removes.
    pub replace: u64,
    /// The longest pause between two operations, in milliseconds.
    pub think_ms: u64,
    /// Most slots of a write or read.
    pub slots_max: u32,
    /// An operation fails after so long.
    pub patience_ms: u64,
    /// How often the master is told of a write at once, in percent.
    pub commit_percent: u64,
    /// Slots of each chunk that are used.
    pub slots: u32,
}

/// One call that an operation makes.
#[derive(Clone, Debug)]
enum Act {
    Data { index: ChunkIndex, request: ClientRequest, allocates: bool, begun: Option<Begun> },
    Meta { request: Request, is_change: bool },
}

#[derive(Clone, Debug)]
enum What {
    Write {
        span: Span,
    },
    Read {
        span: Span,
        is_log: bool,
    },
    Zero,
    /// With what is to be pushed first.
    Sync {
        plan: SyncPlan,
        buffered: Option<Span>,
        covers: Covers,
        end: u64,
    },
    Look,
    Make,
    Remove,
}

enum Doing {
    Data { call: Box<ChunkCall>, rpc: Option<RpcId>, generation: u64, reply: Option<Reply> },
    Meta { number: u64, pause_ms: u64 },
}

struct Operation {
    file: FileId,
    what: What,
    began: Time,
    deadline: MonoMs,
    acts: VecDeque<Act>,
    doing: Option<Doing>,
}

enum Timer {
    /// The pause of a data call is over.
    Passed { lane: u32, generation: u64 },
    /// A data call finds out whether anybody is there.
    Check { lane: u32, generation: u64 },
    /// A call of the master is made again.
    Again { lane: u32 },
}

/// A client.
pub struct ClientNode {
    /// Where it is.
    pub place: Place,
    at: u32,
    /// Operations it has yet to begin.
    pub budget: u32,
    mix: Mix,
    session: ClientSession,
    data_client: u64,
    next_number: u64,
    next_generation: u64,
    lanes: Vec<Option<Operation>>,
    locations: BTreeMap<(FileId, ChunkIndex), Arc<Location>>,
    unsynced: BTreeMap<FileId, Covers>,
    uncommitted: BTreeMap<FileId, BTreeSet<ChunkIndex>>,
    ends: BTreeMap<FileId, u64>,
    timers: BTreeMap<u64, Timer>,
    rpcs: BTreeMap<RpcId, (u32, u64)>,
    look_ups: BTreeSet<u32>,
    /// Operations that were answered, and those that failed.
    pub done: (u32, u32),
    is_quiet: bool,
}

impl ClientNode {
    /// Returns a client that begins `budget` operations, in as many `lanes`.
    pub fn new(at: u32, lanes: usize, budget: u32, mix: Mix, context: &mut Context) -> Self {
        let place = Place::Client(at);
        Self {
            place,
            at,
            budget,
            mix,
            session: ClientSession::new(place, context),
            data_client: context.rng.next(),
            next_number: 1,
            next_generation: 1,
            lanes: (0..lanes).map(|_| None).collect(),
            locations: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            ends: BTreeMap::new(),
            timers: BTreeMap::new(),
            rpcs: BTreeMap::new(),
            look_ups: BTreeSet::new(),
            done: (0, 0),
            is_quiet: false,
        }
    }

    /// Begins a run: a mount that nobody knows yet.
    pub fn start(&mut self, context: &mut Context) {
        let (done, is_quiet) = (self.done, self.is_quiet);
        context.files.give_up(&self.session.unsettled());
        *self = Self::new(self.at, self.lanes.len(), self.budget, self.mix, context);
        (self.done, self.is_quiet) = (done, is_quiet);
        context.start(self.place);
        let (now, place) = (context.now(), self.place);
        context.trace.note(now, [21, place.number()], || format!("{place} starts"));
        context.wake_after(place, 0, Wake::Tick(TICK_ALIVE));
        for lane in 0..self.lanes.len() as u32 {
            self.think(context, lane);
        }
    }

    /// Returns whether it has nothing more to do.
    pub fn is_idle(&self) -> bool {
        self.budget == 0 && self.lanes.iter().all(Option::is_none)
    }

    /// Begins no operation any more, but those it is told to.
    pub fn be_quiet(&mut self) {
        self.budget = 0;
        self.is_quiet = true;
    }

    /// Returns an operation that should have ended.
    pub fn overdue(&self, now: MonoMs, grace_ms: u64) -> Option<String> {
        let late = self.lanes.iter().flatten().find(|operation| operation.deadline.plus(grace_ms) < now)?;
        Some(format!(
            "{}: {:?} of file {} began at {} and does not end",
            self.place, late.what, late.file.0, late.began
        ))
    }

    /// Returns the session, 0 if there is none.
    pub fn session(&self) -> SessionId {
        self.session.id
    }

    /// Returns how long an operation waits for its end.
    pub fn patience_ms(&self) -> u64 {
        self.mix.patience_ms
    }

    /// Returns the operations that are under way, by file.
    pub fn busy(&self) -> Vec<(FileId, String)> {
        let words =
            |busy: &Operation| format!("{}: {:?} of file {} since {}", self.place, busy.what, busy.file.0, busy.began);
        self.lanes.iter().flatten().map(|busy| (busy.file, words(busy))).collect()
    }

    // ------------------------------------------------------------ events

    /// Something that was planned is due.
    pub fn wake(&mut self, context: &mut Context, what: Wake) {
        match what {
            Wake::Tick(TICK_SESSION) => self.session.tick(context),
            Wake::Tick(TICK_ALIVE) => {
                self.session.tick(context);
                context.wake_after(self.place, ms(1_500), Wake::Tick(TICK_ALIVE));
            }
            Wake::Tick(lane) => self.begin_any(context, lane),
            Wake::Job(number) => match self.timers.remove(&number) {
                Some(Timer::Passed { lane, generation }) => self.data_event(context, lane, generation, Input::Passed),
                Some(Timer::Check { lane, generation }) => self.check(context, lane, generation),
                Some(Timer::Again { lane }) => self.go_on(context, lane),
                None => {}
            },
        }
    }

    /// An answer came, or will not.
    pub fn answered(&mut self, context: &mut Context, rpc: RpcId, result: Result<Answer, Failure>) {
        if let Some((lane, generation)) = self.rpcs.remove(&rpc) {
            let input = match result {
                Ok(Answer::Data(Ok(reply))) => {
                    if let Some(Doing::Data { reply: slot, .. }) = self.doing(lane, generation) {
                        *slot = Some(reply);
                    }
                    Ok(())
                }
                Ok(Answer::Data(Err(error))) => Err(Trouble::Refused(error)),
                Ok(_) => Err(Trouble::Refused(FsError::Protocol("another answer".into()))),
                Err(failure) => Err(Trouble::Unanswered(format!("{failure:?}"))),
            };
            self.data_event(context, lane, generation, Input::Answered(input));
            return;
        }
        match self.session.answered(context, rpc, result) {
            Some(Some((_, Outcome::Lost))) => self.lose_all(context),
            Some(Some((lane, outcome))) => self.meta_event(context, lane, outcome),
            Some(None) | None => {}
        }
    }

    fn lose_all(&mut self, context: &mut Context) {
        self.data_client = context.rng.next();
        self.locations.clear();
        self.unsynced.clear();
        self.uncommitted.clear();
        self.look_ups.clear();
        for lane in 0..self.lanes.len() as u32 {
            if self.lanes[lane as usize].is_some() {
                self.end(context, lane, Err(FsError::SessionLost));
            }
        }
    }

    // ------------------------------------------------------------ operations

    fn think(&mut self, context: &mut Context, lane: u32) {
        let pause = context.rng.below(ms(self.mix.think_ms) + 1);
        context.wake_after(self.place, pause, Wake::Tick(lane));
    }

    fn begin_any(&mut self, context: &mut Context, lane: u32) {
        if self.lanes[lane as usize].is_some() || self.budget == 0 {
            return;
        }
        if !self.session.is_open() {
            context.wake_after(self.place, ms(100), Wake::Tick(lane));
            return;
        }
        self.budget -= 1;
        let mix = self.mix;
        let weights = [mix.write, mix.read, mix.zero, mix.sync, mix.append, mix.look, mix.replace];
        let mut draw = context.rng.below(weights.iter().sum::<u64>().max(1));
        let choice = weights.iter().position(|weight| {
            let is_it = draw < *weight;
            draw = draw.saturating_sub(*weight);
            is_it
        });
        let usable = context.files.usable();
        let shared: Vec<FileId> =
            usable.iter().copied().filter(|file| context.files.get(*file).purpose == Purpose::Shared).collect();
        let logs: Vec<FileId> =
            usable.iter().copied().filter(|file| context.files.get(*file).purpose != Purpose::Shared).collect();
        let own = logs.iter().copied().find(|file| context.files.get(*file).purpose == Purpose::Log(self.at));
        match (choice, own) {
            (Some(3), _) if !shared.is_empty() => {
                let file = *context.rng.pick(&shared);
                self.begin_sync(context, lane, file);
            }
            (Some(4), Some(own)) if !self.is_using(own) => self.begin_append(context, lane, own),
            (Some(5), _) if !logs.is_empty() => {
                let file = *context.rng.pick(&logs);
                self.begin_look(context, lane, file);
            }
            (Some(6), _) if shared.len() > 1 => {
                let file = *context.rng.pick(&shared);
                self.begin_remove(context, lane, file);
            }
            (choice, _) if !shared.is_empty() => {
                let file = *context.rng.pick(&shared);
                let span = self.any_span(context, file);
                match choice {
                    Some(0) | Some(4) => self.begin_write(context, lane, span),
                    Some(2) => self.begin_zero(context, lane, span),
                    _ => self.begin_read(context, lane, span),
                }
            }
            _ => self.think(context, lane),
        }
    }

    fn is_using(&self, file: FileId) -> bool {
        self.lanes.iter().flatten().any(|operation| operation.file == file)
    }

    fn any_span(&self, context: &mut Context, file: FileId) -> Span {
        let index = context.rng.below(u64::from(context.files.get(file).chunks)) as u32;
        let count = 1 + context.rng.below(u64::from(self.mix.slots_max)) as u32;
        let first = context.rng.below(u64::from(self.mix.slots - count + 1)) as u32;
        Span { file, first: index * CHUNK_SLOTS + first, count }
    }

    fn begin(&mut self, context: &mut Context, lane: u32, file: FileId, what: What, acts: Vec<Act>) {
        let (now, place) = (context.now(), self.place);
        context.trace.note(now, [22, place.number(), u64::from(lane), u64::from(file.0)], || {
            format!("{place}.{lane} begins {what:?} of file {}", file.0)
        });
        let deadline = context.mono(place).plus(self.mix.patience_ms);
        let operation = Operation { file, what, began: now, deadline, acts: acts.into(), doing: None };
        self.lanes[lane as usize] = Some(operation);
        self.go_on(context, lane);
    }

    fn write_act(&mut self, context: &mut Context, span: Span) -> Act {
        let (begun, value) = context.history.begin_write(span, context.scheduler.now());
        let (index, offset, _) = place(span);
        let data = Bytes::from(stamp(span, value));
        let crcs = unit::checksums(offset, &data);
        let number = self.next_number;
        self.next_number += 1;
        let request = ClientRequest::Write { offset, crcs, data, client: self.data_client, number };
        Act::Data { index, request, allocates: true, begun: Some(begun) }
    }

    /// Begins a write.
    pub fn begin_write(&mut self, context: &mut Context, lane: u32, span: Span) {
        let act = self.write_act(context, span);
        self.begin(context, lane, span.file, What::Write { span }, vec![act]);
    }

    fn begin_zero(&mut self, context: &mut Context, lane: u32, span: Span) {
        let begun = context.history.begin_zero(span, context.scheduler.now());
        let (index, offset, length) = place(span);
        let number = self.next_number;
        self.next_number += 1;
        let request = ClientRequest::Zero { offset, length, client: self.data_client, number };
        let act = Act::Data { index, request, allocates: false, begun: Some(begun) };
        self.begin(context, lane, span.file, What::Zero, vec![act]);
    }

    /// Begins a read.
    pub fn begin_read(&mut self, context: &mut Context, lane: u32, span: Span) {
        let act = read_act(span);
        self.begin(context, lane, span.file, What::Read { span, is_log: false }, vec![act]);
    }

    fn begin_sync(&mut self, context: &mut Context, lane: u32, file: FileId) {
        let end = self.ends.get(&file).copied().unwrap_or(0);
        let what = What::Sync { plan: SyncPlan::default(), buffered: None, covers: Covers::default(), end };
        self.begin(context, lane, file, what, Vec::new());
    }

    fn begin_append(&mut self, context: &mut Context, lane: u32, file: FileId) {
        let count = 1 + context.rng.below(4) as u32;
        let info = context.files.get_mut(file);
        // What an earlier run of this client left unfinished is written anew.
        let first = (info.synced_size / u64::from(SLOT_BYTES)) as u32;
        let left = CHUNK_SLOTS - first % CHUNK_SLOTS;
        let count = count.min(left);
        if first + count > info.chunks * CHUNK_SLOTS {
            return self.think(context, lane);
        }
        info.log_end = info.log_end.max(first + count);
        let span = Span { file, first, count };
        let end = u64::from(first + count) * u64::from(SLOT_BYTES);
        let what = What::Sync { plan: SyncPlan::default(), buffered: Some(span), covers: Covers::default(), end };
        self.begin(context, lane, file, what, Vec::new());
    }

    fn begin_look(&mut self, context: &mut Context, lane: u32, file: FileId) {
        let Some(inode) = context.files.get(file).inode else { return };
        let act = Act::Meta { request: Request::GetAttr { inode }, is_change: false };
        self.begin(context, lane, file, What::Look, vec![act]);
    }

    fn begin_remove(&mut self, context: &mut Context, lane: u32, file: FileId) {
        let info = context.files.get_mut(file);
        info.is_removed = true;
        let chunks = info.chunks;
        let act = Act::Meta { request: Request::Unlink { parent: InodeId::ROOT, name: info.name() }, is_change: true };
        context.files.plan(Purpose::Shared, chunks);
        self.begin(context, lane, file, What::Remove, vec![act]);
    }

    /// Begins to make a file that was planned.
    pub fn begin_make(&mut self, context: &mut Context, lane: u32, file: FileId) {
        let make = Make {
            parent: InodeId::ROOT,
            name: context.files.get(file).name(),
            kind: Kind::File,
            mode: 0o644,
            rdev: 0,
            target: Bytes::new(),
            open: false,
            exclusive: false,
        };
        let act = Act::Meta { request: Request::Make(make), is_change: true };
        self.begin(context, lane, file, What::Make, vec![act]);
    }

    /// Lets all lanes begin.
    pub fn wake_lanes(&mut self, context: &mut Context) {
        for lane in 0..self.lanes.len() as u32 {
            self.think(context, lane);
        }
    }

    /// Returns whether its session can be used.
    pub fn is_ready(&self) -> bool {
        self.session.is_open()
    }

    /// Returns a lane without an operation.
    pub fn free_lane(&self) -> Option<u32> {
        self.lanes.iter().position(Option::is_none).map(|lane| lane as u32)
    }

    fn operation(&mut self, lane: u32) -> Option<&mut Operation> {
        self.lanes.get_mut(lane as usize)?.as_mut()
    }

    fn doing(&mut self, lane: u32, wanted: u64) -> Option<&mut Doing> {
        let doing = self.operation(lane)?.doing.as_mut()?;
        match doing {
            Doing::Data { generation, .. } if *generation == wanted => Some(doing),
            _ => None,
        }
    }

    /// Makes the next call of an operation, or ends it.
    fn go_on(&mut self, context: &mut Context, lane: u32) {
        let now = context.mono(self.place);
        let Some(operation) = self.operation(lane) else { return };
        let left_ms = operation.deadline.since(now);
        let file = operation.file;
        if left_ms == 0 {
            return self.end(context, lane, Err(FsError::TimedOut("the operation")));
        }
        let Some(act) = operation.acts.front().cloned() else { return self.acts_done(context, lane) };
        match act {
            Act::Data { index, .. } => {
                let known = self.locations.get(&(file, index)).cloned();
                let mut call = Box::new(ChunkCall::new(Policy::Soft { ms: left_ms }, now));
                let step = call.step(now, Input::Begin(known));
                let generation = self.next_generation;
                self.next_generation += 1;
                if let Some(operation) = self.operation(lane) {
                    operation.doing = Some(Doing::Data { call, rpc: None, generation, reply: None });
                }
                self.take_step(context, lane, generation, step);
            }
            Act::Meta { request, is_change } => {
                let number = match self.operation(lane).and_then(|operation| operation.doing.as_ref()) {
                    Some(Doing::Meta { number, .. }) => *number,
                    _ if is_change => self.session.number(&request),
                    _ => 0,
                };
                if let Some(operation) = self.operation(lane) {
                    let pause_ms = match operation.doing {
                        Some(Doing::Meta { pause_ms, .. }) => (pause_ms * 2).min(500),
                        _ => 10,
                    };
                    operation.doing = Some(Doing::Meta { number, pause_ms });
                }
                if self.session.is_open() {
                    self.session.ask(context, lane, number, request, None);
                } else {
                    self.again(context, lane);
                }
            }
        }
    }

    fn again(&mut self, context: &mut Context, lane: u32) {
        let pause_ms = match self.operation(lane).and_then(|operation| operation.doing.as_ref()) {
            Some(Doing::Meta { pause_ms, .. }) => *pause_ms,
            _ => 50,
        };
        let number = self.timer(Timer::Again { lane });
        context.wake_after(self.place, ms(pause_ms), Wake::Job(number));
    }

    fn timer(&mut self, timer: Timer) -> u64 {
        let number = self.next_generation;
        self.next_generation += 1;
        self.timers.insert(number, timer);
        number
    }

    // ------------------------------------------------------------ ends

    /// All calls of an operation were made: a sync goes on with its next step, others end.
    fn acts_done(&mut self, context: &mut Context, lane: u32) {
        let Some(operation) = self.operation(lane) else { return };
        let file = operation.file;
        let What::Sync { plan, buffered, covers, end } = operation.what.clone() else {
            return self.end(context, lane, Ok(()));
        };
        let mut plan = plan;
        let mut covers = covers;
        let acts = loop {
            let acts: Vec<Act> = match plan.step() {
                SyncStep::Push => buffered.map(|span| self.write_act(context, span)).into_iter().collect(),
                SyncStep::Barriers => {
                    covers.merge(self.unsynced.remove(&file).unwrap_or_default());
                    let now = context.now();
                    covers
                        .unsynced
                        .iter()
                        .map(|(index, since)| {
                            let begun = Some(context.history.begin_barrier(chunk_span(file, index), now));
                            Act::Data { index, request: ClientRequest::Barrier { since }, allocates: false, begun }
                        })
                        .collect()
                }
                SyncStep::Commit => self.commit_act(context, file, end).into_iter().collect(),
                SyncStep::SyncMaster => vec![Act::Meta { request: Request::Sync, is_change: false }],
                SyncStep::Done => {
                    if buffered.is_some() {
                        let info = context.files.get_mut(file);
                        info.synced_size = info.synced_size.max(end);
                    }
                    return self.end(context, lane, Ok(()));
                }
            };
            plan.succeeded(false);
            if !acts.is_empty() {
                break acts;
            }
        };
        if let Some(operation) = self.operation(lane) {
            operation.what = What::Sync { plan, buffered, covers, end };
            operation.acts = acts.into();
        }
        self.go_on(context, lane);
    }

    fn end(&mut self, context: &mut Context, lane: u32, result: Result<(), FsError>) {
        let Some(operation) = self.lanes.get_mut(lane as usize).and_then(Option::take) else { return };
        let (now, place) = (context.now(), self.place);
        context.trace.note(now, [24, place.number(), u64::from(lane), u64::from(result.is_ok())], || {
            format!("{place}.{lane} ends {:?}: {result:?}", operation.what)
        });
        match operation.doing {
            Some(Doing::Meta { number, .. }) if number > 0 => self.session.give_up(number),
            _ => {}
        }
        // What could not be brought to stable media is still to be.
        if let (What::Sync { covers, .. }, Err(_)) = (&operation.what, &result) {
            self.unsynced.entry(operation.file).or_default().merge(covers.clone());
        }
        self.look_ups.remove(&lane);
        match result {
            Ok(()) => self.done.0 += 1,
            Err(_) => self.done.1 += 1,
        }
        if matches!(operation.what, What::Remove) {
            self.make_planned(context, lane);
        }
        if self.lanes[lane as usize].is_none() && !self.is_quiet {
            self.think(context, lane);
        }
    }

    /// Makes a file that was planned and that nobody has made.
    fn make_planned(&mut self, context: &mut Context, lane: u32) {
        let planned = context.files.iter().find(|file| file.inode.is_none() && !file.is_removed).map(|file| file.id);
        if let Some(file) = planned {
            self.begin_make(context, lane, file);
        }
    }
}

fn read_act(span: Span) -> Act {
    let (index, offset, length) = place(span);
    Act::Data { index, request: ClientRequest::Read { offset, length }, allocates: false, begun: None }
}
