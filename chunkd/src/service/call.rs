//! A call, from its beginning to its reply, carried out by one thread.
//!
//! ```text
//!   begin ──▶ step the core ──▶ carry out what it wants: send, use the disk, ask the master ──▶ reply
//!                 ▲                                 │
//!                 └── wait: answers, a mailbox, the time ◀┘
//! ```
//!
//! The thread that asks other servers reads their answers itself: it waits on the sockets of all of them at once, and on
//! its waker, by which other threads tell it that there is something in its mailbox.
//!
//! A call may be replied to before all answers have come: nobody waits for a server that is being filled. What is left is
//! then for [`super::late`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::{FsError, MonoMs};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ask::Ask;
use super::budget::Pace;
use super::disk_job;
use super::replica::Replica;
use super::shared::Shared;
use super::translate::{self, Asked};
use super::waker::Waker;
use crate::core::message::{CallId, DiskJob, Effect, Input, PeerAnswer, PeerRequest, Reply, Request, Tag};

/// A send that takes longer than this puts off the ends of those that wait behind it.
const SEND_SLOW: Duration = Duration::from_millis(20);
/// A thread without a waker looks into its mailbox this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// No wait is longer.
const WAIT_MAX: Duration = Duration::from_secs(5);

struct Due {
    tag: Tag,
    asked: Asked,
    ask: Ask,
}

/// A call under way.
pub(super) struct Call {
    shared: Arc<Shared>,
    replica: Arc<Replica>,
    id: CallId,
    todo: VecDeque<Effect>,
    scratch: Vec<Effect>,
    asked: Vec<Due>,
    expires: Option<MonoMs>,
    waker: Option<Arc<Waker>>,
    /// Time that slow sends took since the last wait.
    lost: Duration,
    pace: Option<Pace>,
    is_over: bool,
}

impl Call {
    /// Carries `request` out on `replica` and returns the reply. Copies between servers keep to `pace`.
    ///
    /// # Errors
    ///
    /// Those of the request.
    pub fn run(
        shared: &Arc<Shared>,
        replica: &Arc<Replica>,
        request: Request,
        deadline: MonoMs,
        pace: Option<Pace>,
    ) -> Result<Reply, FsError> {
        let mut call = Self::open(shared, replica, shared.next_call(), pace)?;
        let begin = Input::Begin { call: call.id, deadline, request };
        let reply = call.step(begin).and_then(|()| call.work());
        // What a replica says that was deleted meanwhile is void.
        if call.has_more_to_do() {
            replica.check()?;
            shared.late.take(call);
        } else {
            call.close()?;
        }
        reply
    }

    /// Returns a call for what the core still wants done for `id`, whose thread has gone.
    pub fn stray(shared: &Arc<Shared>, replica: &Arc<Replica>, id: CallId, effects: VecDeque<Effect>) -> Option<Self> {
        let mut call = Self::open(shared, replica, id, None).ok()?;
        call.todo = effects;
        Some(call)
    }

    fn open(shared: &Arc<Shared>, replica: &Arc<Replica>, id: CallId, pace: Option<Pace>) -> Result<Self, FsError> {
        let waker = Waker::of_this_thread();
        replica.open_call(id, waker.clone())?;
        Ok(Self {
            shared: Arc::clone(shared),
            replica: Arc::clone(replica),
            id,
            todo: VecDeque::new(),
            scratch: Vec::new(),
            asked: Vec::new(),
            expires: None,
            waker,
            lost: Duration::ZERO,
            pace,
            is_over: false,
        })
    }

    /// Does in this thread what is left of a call that was replied to.
    pub fn finish(mut self) {
        self.waker = Waker::of_this_thread();
        self.replica.move_call(self.id, self.waker.clone());
        self.expires = None;
        while self.has_more_to_do() {
            // Another reply is of no use to anybody, and an error says that the replica has ended.
            if self.work_on().is_err() {
                break;
            }
        }
        let _ = self.close();
    }

    fn has_more_to_do(&self) -> bool {
        !self.asked.is_empty() || self.todo.iter().any(|effect| !matches!(effect, Effect::Expire { .. }))
    }

    fn close(&mut self) -> Result<(), FsError> {
        self.is_over = true;
        self.replica.close_call(self.id)
    }

    /// Works until the reply.
    fn work(&mut self) -> Result<Reply, FsError> {
        loop {
            if let Some(reply) = self.work_on()? {
                return reply;
            }
        }
    }

    /// Carries out the next effect, or waits if there is none. The outer error: the replica has ended, or this
    /// server ends.
    fn work_on(&mut self) -> Result<Option<Result<Reply, FsError>>, FsError> {
        if self.pace.is_some() && self.shared.orders.is_stopping() {
            return Err(FsError::TryAgain("this server is being stopped"));
        }
        match self.todo.pop_front() {
            Some(effect) => self.carry_out(effect),
            None => self.wait().map(|()| None),
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Option<Result<Reply, FsError>>, FsError> {
        let (shared, call) = (Arc::clone(&self.shared), self.id);
        match effect {
            Effect::Reply { result, .. } => return Ok(Some(result)),
            Effect::Note(_) => {}
            Effect::Expire { at, .. } => self.expires = Some(at),
            Effect::Send { tag, to, version, request, payload, until, .. } => {
                if let Some(pace) = &self.pace {
                    pace.before_send(&request);
                }
                if let PeerRequest::Push { .. } = &request {
                    shared.metrics.copied_bytes.inc_by(payload.len() as u64);
                }
                let began = Instant::now();
                let until = shared.instant(until) + self.lost;
                let asked = Asked::of(&request, self.replica.open.file.units());
                let message = translate::ask_message(self.replica.open.file.chunk(), version, request);
                let ask = Ask::send(&shared.peers, &shared.identity(), to, message, payload, until);
                self.asked.push(Due { tag, asked, ask });
                let took = began.elapsed();
                if took > SEND_SLOW {
                    self.lost += took;
                }
            }
            Effect::Disk { tag, job, .. } => {
                if let Some(pace) = &self.pace {
                    pace.before_job(&job);
                }
                if let DiskJob::Read { count, .. } = &job
                    && self.pace.as_ref().is_some_and(Pace::is_scrub)
                {
                    shared.metrics.checked_units.inc_by((*count).into());
                }
                let result = disk_job::carry_out(&shared, &self.replica.open, job);
                self.step(Input::DiskDone { call, tag, result })?;
            }
            Effect::AskMaster { tag, request, until, .. } => {
                let result = shared.ask_master(&request, until);
                self.step(Input::MasterAnswered { call, tag, result })?;
            }
        }
        Ok(None)
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<(), FsError> {
        self.lost = Duration::ZERO;
        self.replica.collect(self.id, &mut self.todo)?;
        if !self.todo.is_empty() {
            return Ok(());
        }
        let readable = self.poll();
        let now = Instant::now();
        let own = self.shared.identity();
        let mut at = self.asked.len();
        while at > 0 {
            at -= 1;
            let due = &mut self.asked[at];
            let Some(end) = due.ask.proceed(&self.shared.peers, &own, now, readable & 1 << at.min(63) != 0) else {
                continue;
            };
            let Due { tag, asked, .. } = self.asked.swap_remove(at);
            let result = end.and_then(|(reply, payload)| translate::peer_answer(asked, reply, payload));
            if let Ok(PeerAnswer::Units { payload, .. }) = &result {
                self.shared.metrics.copied_bytes.inc_by(payload.len() as u64);
            }
            self.step(Input::Answered { call: self.id, tag, result })?;
        }
        if self.expires.is_some_and(|at| self.shared.now() >= at) {
            self.expires = None;
            self.step(Input::Expired { call: self.id })?;
        }
        Ok(())
    }

    /// Sleeps until an answer comes, the waker is set, or a time is up; returns which of `asked` can be read, as bits.
    fn poll(&self) -> u64 {
        let now = Instant::now();
        let mut until = now + WAIT_MAX;
        if let Some(at) = self.expires {
            until = until.min(self.shared.instant(at));
        }
        let mut sockets = Vec::with_capacity(self.asked.len() + 1);
        let mut places = Vec::with_capacity(self.asked.len());
        match &self.waker {
            Some(waker) => sockets.push(PollFd::new(std::os::fd::AsFd::as_fd(&**waker), PollFlags::POLLIN)),
            None => until = until.min(now + LOOK_EVERY),
        }
        let first = sockets.len();
        for (place, due) in self.asked.iter().enumerate() {
            until = until.min(due.ask.wake_at());
            if let Some(socket) = due.ask.socket() {
                sockets.push(PollFd::new(socket, PollFlags::POLLIN));
                places.push(place);
            }
        }
        // Rounded up, or the last millisecond would be spent asking again and again.
        let left = until.saturating_duration_since(now).as_micros().div_ceil(1_000);
        let timeout = PollTimeout::try_from(left as u64).unwrap_or(PollTimeout::MAX);
        // An error is an interruption: there is nothing to read then, and the caller comes again.
        if poll(&mut sockets, timeout).is_err() {
            return 0;
        }
        let is_ready = |socket: &PollFd<'_>| socket.any().unwrap_or(true);
        if let Some(waker) = &self.waker
            && is_ready(&sockets[0])
        {
            waker.reset();
        }
        let ready = sockets[first..].iter().zip(places).filter(|(socket, _)| is_ready(socket));
        ready.fold(0, |bits, (_, place)| bits | 1 << place.min(63))
    }

    fn step(&mut self, input: Input) -> Result<(), FsError> {
        let Self { shared, replica, id, todo, scratch, .. } = self;
        let mut delivery = replica.step(|| shared.context(&replica.open), input, *id, todo, scratch)?;
        delivery.wake();
        for event in delivery.events.drain(..) {
            shared.note(&replica.open, &event);
        }
        if !delivery.strays.is_empty() {
            shared.late.take_strays(shared, replica, delivery.strays);
        }
        Ok(())
    }
}

impl Drop for Call {
    /// A thread that panics leaves its call: others may wait for what it holds.
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.step(Input::Abandoned { call: self.id });
            let _ = self.close();
        }
    }
}
