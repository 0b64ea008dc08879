//! One replica of a chunk: the state machine that a server's threads, or a simulator, drive.
//!
//! ```text
//!             a request needs the active primary       reconciled
//!   Idle ────────────────────────────────▶ Activating ───────────▶ Primary
//!    ▲  ▲                                      │ failed               │ a member was lost, or the grant is a newer one
//!    │  └──────────────────────────────────────┴──────────────────────┘
//!    └──▶ Secondary: from anywhere, when the primary of this or a newer version says Activate
//! ```
//!
//! - [`role`]: what this replica is, and how that changes
//! - [`call`]: what a request is doing, and what it holds
//! - [`activation`], [`copying`]: becoming the primary; making the members equal
//! - [`write`], [`image`], [`read`], [`repair`], [`barrier`]: what mounts ask for
//! - [`member`], [`follow`]: what a primary asks of the others
//! - [`fill`], [`scrub`], [`change`]: orders of the master, and what it is asked
//! - [`dedupe`]: which writes were applied, by who asked
//!
//! # Invariants
//!
//! - Every disk job on units is covered by a place in the order, or by the activation, which lets no write in and ends
//!   reads before it changes units. So no two jobs that are under way touch the same unit, unless both read.
//! - A change of role waits until no change of the file is under way before the unit table is read. So no write of an old
//!   role reaches the file after the table was compared.
//! - Reads go on when a member is lost, under the last activation (`reading`), except of units whose last write is not
//!   resolved: that write may yet be lost with this server, and must not have been seen. Before units are pulled into
//!   this replica, reads end.
//! - The version only grows. It is on stable media before anything is done or answered under it; what comes under an older
//!   one is refused from the moment it is heard of.
//! - After a request to leave the set was sent, nothing is served under that version, whatever the answer is.
//! - After a request to take a filled replica into the set was sent, nothing is committed under that version until it is
//!   known not to have been done, and that it never will be.

mod activation;
mod barrier;
mod call;
mod change;
mod copying;
mod dedupe;
mod fill;
mod follow;
mod image;
mod lost_units;
mod member;
mod read;
mod repair;
mod role;
mod scrub;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::Home;
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::admission;
use super::message::{
    CallId, ClientRequest, Context, DiskAnswer, DiskJob, Effect, Input, ReplicaOrder, Reply, Request, Sealed, Tag,
    WriteKey,
};
use super::unit::WriteStamp;
use super::write_order::{Access, Ticket, WriteOrder};
use activation::{Activation, Driven};
use barrier::Barrier;
use call::{Call, Flow, Interest, News, Step, Work};
use change::Leave;
use dedupe::{DedupeWindow, Fate, RequestKey};
use fill::Fill;
use read::Look;
use role::{Active, Role};
use scrub::Scrub;
use write::Write;

/// What is known of a replica from its disk when it is opened.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Which piece of which file it is.
    pub home: Home,
    /// The keys it was given with disk jobs, the oldest first.
    pub keys: Vec<WriteKey>,
    /// The highest seq of any of its units.
    pub highest_seq: u64,
}

/// The state of one replica.
#[derive(Debug)]
pub struct ReplicaCore {
    chunk: ChunkId,
    chunk_size_log2: u32,
    home: Home,
    /// The newest version that was heard of.
    version: Version,
    /// The version that is on stable media.
    persisted: Version,
    incomplete: bool,
    /// Keys of requests may be on disk, beside [`RequestKey::FORGET`].
    has_noted: bool,
    /// The newest grant that makes this server, in this run, the primary.
    grant: Option<Sealed>,
    /// The run of this server for which the role was granted.
    run: BootSession,
    /// This server asked to leave a set of this version: it is not its primary any more.
    given_up: Version,
    /// The master was asked, at this version, to take this replica into the set, and may yet do it.
    doubtful: Option<(Version, NodeId)>,
    role: Role,
    activation: Option<Box<Activation>>,
    /// The activation under which reads may be served.
    reading: Option<Arc<Active>>,
    /// Units `[first, end)` of writes that were applied here and perhaps not by all.
    unresolved: Vec<(u32, u32)>,
    /// Members that were silent for too long, and are to be dropped by the next activation; why.
    lost: BTreeMap<NodeId, String>,
    /// Members that had no room when they were last asked, and until when they are not asked again.
    full: BTreeMap<NodeId, MonoMs>,
    /// Activations that were followed under the present version.
    past_activations: Vec<(Version, u64)>,
    /// The version under which this replica was filled last, and told that it is whole: it may be in sync since.
    filled_under: Version,
    /// Replicas that are being filled, and the number that each follows.
    filling: BTreeMap<NodeId, u64>,
    order: WriteOrder,
    window: DedupeWindow,
    /// The highest seq that all members have.
    committed: u64,
    /// Numbers of activations that were made up.
    numbers: u64,
    calls: BTreeMap<CallId, Call>,
    /// Disk jobs under way.
    jobs: BTreeMap<(CallId, Tag), Job>,
    /// Those of them that change the file, or compare it.
    changes: u32,
    /// Calls with an interest in all changes of state, and in those of the role.
    waiting: BTreeSet<CallId>,
    watching: BTreeSet<CallId>,
    is_stirred: bool,
    is_turned: bool,
}

/// What a disk job is for.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// It changes nothing, and a place in the order covers it.
    Look,
    /// It changes nothing, and is part of a comparison: nothing may be changed meanwhile.
    Compare,
    /// A write of this primary.
    Write { key: RequestKey, stamp: WriteStamp, activation: u64 },
    /// Units that another server has sent.
    Copy,
    /// The header.
    Header { version: Version, incomplete: bool },
}

impl ReplicaCore {
    /// Returns the replica whose header on disk has this version and mark. It has no role until it is told of one.
    pub fn new(
        header_version: Version,
        incomplete: bool,
        chunk: ChunkId,
        chunk_size_log2: u32,
        recovered: Recovered,
    ) -> Self {
        let has_noted = !recovered.keys.is_empty();
        let mut order = WriteOrder::default();
        order.raise(recovered.highest_seq);
        let mut window = DedupeWindow::default();
        if !incomplete {
            window.recover(&recovered.keys);
        }
        Self {
            chunk,
            chunk_size_log2,
            home: recovered.home,
            version: header_version,
            persisted: header_version,
            incomplete,
            has_noted,
            grant: None,
            run: BootSession::default(),
            given_up: Version(0),
            doubtful: None,
            role: Role::Idle,
            activation: None,
            reading: None,
            unresolved: Vec::new(),
            lost: BTreeMap::new(),
            full: BTreeMap::new(),
            past_activations: Vec::new(),
            filled_under: Version(0),
            filling: BTreeMap::new(),
            order,
            window,
            committed: 0,
            numbers: 0,
            calls: BTreeMap::new(),
            jobs: BTreeMap::new(),
            changes: 0,
            waiting: BTreeSet::new(),
            watching: BTreeSet::new(),
            is_stirred: false,
            is_turned: false,
        }
    }

    /// Takes `input` in, and adds to `out` what is to be done now.
    pub fn step(&mut self, context: &Context, input: Input, out: &mut Vec<Effect>) {
        let mut step = Step { context, out };
        self.note_run(context.boot);
        match input {
            Input::Begin { call, deadline, request } => self.begin(&mut step, call, deadline, request),
            Input::Answered { call, tag, result } => self.run(&mut step, call, News::Peer(tag, result)),
            Input::DiskDone { call, tag, result } => self.disk_done(&mut step, call, tag, result),
            Input::MasterAnswered { call, tag, result } => {
                if let Ok(answer) = &result {
                    self.hear(context, answer);
                }
                self.run(&mut step, call, News::Master(tag, result));
            }
            Input::Expired { call } => self.expired(&mut step, call),
            Input::Abandoned { call } => self.abandoned(call),
        }
        self.wake(&mut step);
    }

    /// Returns the version that this replica goes by. It only grows.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns whether this replica lacks what others have.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Returns whether the replica may be closed: nothing is under way, and nothing would be forgotten that forbids to serve
    /// or to commit under its version. It loses its role with that.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.given_up < self.version && self.doubtful.is_none()
    }

    /// Returns the version under which this replica is the active primary, if it is.
    pub fn active_version(&self) -> Option<Version> {
        match &self.role {
            Role::Primary(active) => Some(active.version),
            Role::Idle | Role::Activating | Role::Secondary(_) => None,
        }
    }

    /// Returns the newest grant that makes this server the primary, so that its seal need not be checked again.
    pub fn grant(&self) -> Option<&Sealed> {
        self.grant.as_ref()
    }

    fn units(&self) -> u32 {
        admission::units(self.chunk_size_log2)
    }

    // ------------------------------------------------------------------------------------------------ calls

    fn begin(&mut self, step: &mut Step<'_>, id: CallId, deadline: MonoMs, request: Request) {
        match self.take_in(step, request) {
            Ok(work) => {
                self.calls.insert(id, Call::new(id, deadline, work));
                self.run(step, id, News::Resume);
            }
            Err(error) => step.out.push(Effect::Reply { call: id, result: Err(error) }),
        }
    }

    /// Returns the work that `request` means, if it may be asked for at all.
    fn take_in(&mut self, step: &mut Step<'_>, request: Request) -> Result<Work, FsError> {
        match request {
            Request::Client { grant, request } => {
                let is_read = matches!(request, ClientRequest::Read { .. });
                let is_unchecked = is_read && planted::is(Bug::NoLeaseCheckOnRead);
                if !step.has_lease() && !is_unchecked {
                    return Err(FsError::TryAgain("this server has no valid lease"));
                }
                self.admit(step, &grant)?;
                let size = self.chunk_size_log2;
                Ok(match request {
                    ClientRequest::Write { offset, crcs, data, client, number } => {
                        let key = RequestKey { client, number, part: 0 };
                        Work::Write(Box::new(Write::data(offset, crcs, data, key, size)?))
                    }
                    ClientRequest::Zero { offset, length, client, number } => {
                        let key = RequestKey { client, number, part: 0 };
                        Work::Write(Box::new(Write::zero(offset, length, key, size)?))
                    }
                    ClientRequest::Read { offset, length } => Work::Look(Box::new(Look::data(offset, length, size)?)),
                    ClientRequest::Extents { offset, length } => {
                        Work::Look(Box::new(Look::extents(offset, length, size)?))
                    }
                    ClientRequest::Barrier { since } => Work::Barrier(Box::new(Barrier::new(since))),
                })
            }
            Request::Order { grant, order } => {
                if !step.has_lease() {
                    return Err(FsError::TryAgain("this server has no valid lease"));
                }
                self.admit(step, &grant)?;
                Ok(match order {
                    ReplicaOrder::Fill { node } => Work::Fill(Box::new(Fill::new(node))),
                    ReplicaOrder::Scrub { deep } => Work::Scrub(Box::new(Scrub::new(deep))),
                    ReplicaOrder::HandOver => Work::Leave(Box::new(Leave::hand_over())),
                })
            }
            Request::Leave { reason } => Ok(Work::Leave(Box::new(Leave::asked(reason)))),
            Request::Peer { node, boot, version, request, payload } => {
                let peer = member::From { node, boot, version };
                Ok(Work::Member(Box::new(self.take_in_from_peer(step, peer, request, payload)?)))
            }
        }
    }

    /// Checks that a mount or the master may ask, and takes its grant if it is news.
    fn admit(&mut self, step: &Step<'_>, grant: &Sealed) -> Result<(), FsError> {
        let (context, says) = (step.context, &*grant.grant);
        admission::check_primary(says, self.chunk, says.version, context.node, context.boot)?;
        if says.chunk_size_log2 != self.chunk_size_log2 {
            return Err(FsError::Stale("the chunk has another size"));
        }
        if self.grant.as_ref().is_none_or(|known| known.grant.version < says.version) {
            // Not even noted if it is old: an activation under a newer one may be under way.
            if says.version < self.version {
                return Err(FsError::Stale("this replica has a newer version"));
            }
            self.take_grant(grant.clone());
        }
        Ok(())
    }

    /// Tells a call its news, and carries out what it makes of them.
    fn run(&mut self, step: &mut Step<'_>, id: CallId, news: News) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        if call.is_over {
            self.calls.insert(id, call);
            return;
        }
        match call.interest {
            Interest::None => {}
            Interest::Role => _ = self.watching.remove(&id),
            Interest::All => _ = self.waiting.remove(&id),
        }
        call.interest = Interest::None;
        let mut flow = match self.drive_as_owner(step, &mut call, news) {
            Ok(news) => self.go_on(step, &mut call, news),
            Err(flow) => flow,
        };
        while let Flow::Become(work) = flow {
            self.end_fill(&call);
            call.work = work;
            flow = self.go_on(step, &mut call, News::Resume);
        }
        match flow {
            Flow::End(result) => self.finish(step, call, result),
            Flow::Wait | Flow::Become(_) => {
                call.arm_deadline(step);
                match call.interest {
                    Interest::None => {}
                    Interest::Role => _ = self.watching.insert(id),
                    Interest::All => _ = self.waiting.insert(id),
                }
                self.calls.insert(id, call);
            }
        }
    }

    /// Goes on with the activation if it is this call's and the news are for it. Returns the news for the call's own work,
    /// if any.
    fn drive_as_owner(&mut self, step: &mut Step<'_>, call: &mut Call, news: News) -> Result<News, Flow> {
        let is_for_it = self.activation.as_ref().is_some_and(|one| one.owner == call.id && one.wants(&news));
        if !is_for_it {
            return Ok(news);
        }
        match self.drive(step, call, news) {
            Driven::Pending => Err(call.wait_for(Interest::All)),
            Driven::Done => Ok(News::Resume),
            Driven::Failed(error) => Err(Flow::End(Err(error))),
            Driven::Leave(reason) => Err(Flow::Become(Work::Leave(Box::new(Leave::unfit(reason))))),
        }
    }

    fn go_on(&mut self, step: &mut Step<'_>, call: &mut Call, news: News) -> Flow {
        let mut work = std::mem::replace(&mut call.work, Work::Taken);
        let flow = match &mut work {
            Work::Write(write) => self.write(step, call, write, news),
            Work::Look(look) => self.look(step, call, look, news),
            Work::Barrier(barrier) => self.barrier(step, call, barrier, news),
            Work::Fill(fill) => self.fill(step, call, fill, news),
            Work::Scrub(scrub) => self.scrub(step, call, scrub, news),
            Work::Leave(leave) => self.leave_set(step, call, leave, news),
            Work::Member(member) => self.follow(step, call, member, news),
            Work::Taken => Flow::Wait,
        };
        call.work = work;
        flow
    }

    fn finish(&mut self, step: &mut Step<'_>, mut call: Call, result: Result<Reply, FsError>) {
        step.out.push(Effect::Reply { call: call.id, result });
        call.is_over = true;
        self.end_fill(&call);
        if call.jobs > 0 {
            // Its place in the order covers the jobs.
            self.calls.insert(call.id, call);
        } else {
            self.give_back(&mut call);
        }
    }

    fn expired(&mut self, step: &mut Step<'_>, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.disarm();
        if step.context.now < call.deadline {
            self.run(step, id, News::Timer);
            return;
        }
        let Some(mut call) = self.calls.remove(&id) else { return };
        if call.is_over {
            self.calls.insert(id, call);
            return;
        }
        self.forget_interest(&call);
        if self.activation.as_ref().is_some_and(|activation| activation.owner == id) {
            self.turn(Role::Idle);
        }
        let mut work = std::mem::replace(&mut call.work, Work::Taken);
        let result = match &mut work {
            Work::Write(write) => self.write_timed_out(write),
            Work::Look(_) => Err(FsError::TimedOut("the read")),
            Work::Barrier(_) => Err(FsError::TimedOut("the sync")),
            Work::Fill(_) | Work::Scrub(_) | Work::Leave(_) => Err(FsError::TimedOut("the order")),
            Work::Member(member) => Err(member.timed_out()),
            Work::Taken => Err(FsError::TimedOut("the request")),
        };
        call.work = work;
        self.finish(step, call, result);
    }

    fn abandoned(&mut self, id: CallId) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        self.forget_interest(&call);
        // What was under way may have been done or not: the next activation compares.
        self.turn(Role::Idle);
        self.reading = None;
        let jobs: Vec<_> = self.jobs.range((id, Tag(0))..=(id, Tag(u32::MAX))).map(|(name, _)| *name).collect();
        for name in jobs {
            if let Some(job) = self.jobs.remove(&name) {
                self.settle(job, false);
            }
        }
        if let Work::Write(write) = &call.work {
            write.keys().for_each(|key| self.window.forget(key));
        }
        self.end_fill(&call);
        self.give_back(&mut call);
    }

    /// Sends no more writes to the replica that `call` was filling.
    fn end_fill(&mut self, call: &Call) {
        if let Work::Fill(fill) = &call.work {
            self.filling.remove(&fill.node);
        }
    }

    fn forget_interest(&mut self, call: &Call) {
        self.waiting.remove(&call.id);
        self.watching.remove(&call.id);
    }

    /// Lets the calls go on that wait for what has changed.
    fn wake(&mut self, step: &mut Step<'_>) {
        while self.is_stirred || self.is_turned {
            let mut woken: Vec<CallId> = Vec::new();
            if std::mem::take(&mut self.is_turned) {
                woken.extend(&self.watching);
            }
            self.is_stirred = false;
            woken.extend(&self.waiting);
            woken.sort_unstable();
            for id in woken {
                self.run(step, id, News::Resume);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ places and jobs

    /// Takes a place in the order for `call`.
    fn enter(&mut self, call: &mut Call, first: u32, end: u32, access: Access) -> Result<(), FsError> {
        debug_assert!(call.ticket.is_none(), "a call has one place at a time");
        call.ticket = Some(self.order.enter(first, end, access)?);
        Ok(())
    }

    /// Returns whether the call's place lets it go on.
    fn may_start(&self, call: &Call) -> bool {
        call.ticket.is_some_and(|ticket: Ticket| self.order.may_start(ticket))
    }

    /// Gives the call's place back, if it has one.
    fn give_back(&mut self, call: &mut Call) {
        if let Some(ticket) = call.ticket.take() {
            self.order.leave(ticket);
            self.is_stirred = true;
        }
    }

    /// Has the disk do something.
    fn start(&mut self, step: &mut Step<'_>, call: &mut Call, what: DiskJob, job: Job) -> Tag {
        let tag = call.tag();
        call.jobs += 1;
        if !matches!(job, Job::Look) {
            self.changes += 1;
        }
        self.jobs.insert((call.id, tag), job);
        step.out.push(Effect::Disk { call: call.id, tag, job: what });
        tag
    }

    /// Has the disk note a request that was carried out elsewhere.
    fn note_key(&mut self, step: &mut Step<'_>, call: &mut Call, key: WriteKey) -> Tag {
        self.has_noted = true;
        self.start(step, call, DiskJob::Zero { first: 0, count: 0, stamp: key.stamp, key: Some(key) }, Job::Look)
    }

    fn disk_done(&mut self, step: &mut Step<'_>, id: CallId, tag: Tag, result: Result<DiskAnswer, FsError>) {
        let Some(job) = self.jobs.remove(&(id, tag)) else { return };
        self.settle(job, result.is_ok());
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.jobs -= 1;
        if !call.is_over {
            self.run(step, id, News::Disk(tag, result));
            return;
        }
        if let Some(mut call) = self.calls.remove(&id) {
            if let Work::Member(member) = &mut call.work {
                self.settle_late(member, tag, &result);
            }
            if call.jobs > 0 {
                self.calls.insert(id, call);
            } else {
                self.give_back(&mut call);
            }
        }
    }

    /// Notes what became of a job, whether or not anybody waits for it.
    fn settle(&mut self, job: Job, is_done: bool) {
        if matches!(job, Job::Look) {
            return;
        }
        self.changes -= 1;
        self.is_stirred = true;
        match job {
            Job::Write { key, stamp, activation } if is_done => {
                self.window.set(key, Fate::Applied { activation, stamp });
            }
            Job::Write { key, .. } => self.window.forget(key),
            Job::Header { version, incomplete } if is_done => {
                self.persisted = self.persisted.max(version);
                self.incomplete = incomplete;
            }
            Job::Header { .. } | Job::Look | Job::Compare | Job::Copy => {}
        }
    }
}
