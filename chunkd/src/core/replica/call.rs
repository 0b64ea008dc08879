//! One request that is being worked on: what it is doing, what it waits for, and what it holds.

use bytes::Bytes;
use dfs_proto::replica_set::Member;
use dfs_proto::{FsError, MonoMs, Version};

use super::super::message::{
    CallId, Context, DiskAnswer, Effect, Event, MasterAnswer, PeerAnswer, PeerRequest, Reply, Tag,
};
use super::super::write_order::Ticket;
use super::barrier::Barrier;
use super::change::Leave;
use super::fill::Fill;
use super::member::Member as MemberWork;
use super::read::Look;
use super::scrub::Scrub;
use super::write::Write;

/// A peer that does not answer within this time is given up: soon enough that a write goes on without it within 4 s.
pub(super) const ATTEMPT_MS: u64 = 1_500;

/// The moment of a step, and what it brings about.
pub(super) struct Step<'a> {
    pub context: &'a Context,
    pub out: &'a mut Vec<Effect>,
}

impl Step<'_> {
    /// Returns the time.
    pub fn now(&self) -> MonoMs {
        self.context.now
    }

    /// Returns whether this server may act as a primary.
    pub fn has_lease(&self) -> bool {
        self.context.now < self.context.lease_until
    }

    /// Tells what happened.
    pub fn note(&mut self, event: Event) {
        self.out.push(Effect::Note(event));
    }
}

/// What a call is told.
#[derive(Debug)]
pub(super) enum News {
    /// It begins, or something changed that it may wait for.
    Resume,
    /// A peer answered.
    Peer(Tag, Result<PeerAnswer, FsError>),
    /// A disk job is done.
    Disk(Tag, Result<DiskAnswer, FsError>),
    /// The master answered.
    Master(Tag, Result<MasterAnswer, FsError>),
    /// A time has come.
    Timer,
}

/// How a call goes on.
#[derive(Debug)]
pub(super) enum Flow {
    /// When there is news.
    Wait,
    /// It is over.
    End(Result<Reply, FsError>),
    /// As other work.
    Become(Work),
}

/// Which changes of the replica's state a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    None,
    /// Those of its role.
    Role,
    /// All: also places in the order, the ends of changes, the fates of writes.
    All,
}

/// What a call is doing.
#[derive(Debug)]
pub(super) enum Work {
    Write(Box<Write>),
    Look(Box<Look>),
    Barrier(Box<Barrier>),
    Fill(Box<Fill>),
    Scrub(Box<Scrub>),
    Leave(Box<Leave>),
    Member(Box<MemberWork>),
    /// Its work is in hand at this moment.
    Taken,
}

/// A call, from its beginning until it was replied to and its disk jobs have ended.
#[derive(Debug)]
pub(super) struct Call {
    pub id: CallId,
    pub deadline: MonoMs,
    pub work: Work,
    pub interest: Interest,
    /// Its place in the order. Given back when it is not needed, at the latest with the call's last disk job.
    pub ticket: Option<Ticket>,
    /// Disk jobs under way.
    pub jobs: u32,
    /// It was replied to.
    pub is_over: bool,
    armed: Option<MonoMs>,
    next_tag: u32,
}

impl Call {
    pub fn new(id: CallId, deadline: MonoMs, work: Work) -> Self {
        Self {
            id,
            deadline,
            work,
            interest: Interest::None,
            ticket: None,
            jobs: 0,
            is_over: false,
            armed: None,
            next_tag: 0,
        }
    }

    /// Returns a name for an effect.
    pub fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }

    /// Returns when to give a peer up that is asked now.
    pub fn attempt(&self, step: &Step<'_>, ms: u64) -> MonoMs {
        self.deadline.min(step.now().plus(ms))
    }

    /// Asks a peer.
    pub fn send(
        &mut self,
        step: &mut Step<'_>,
        to: &Member,
        version: Version,
        request: PeerRequest,
        payload: Bytes,
        until: MonoMs,
    ) -> Tag {
        let (call, tag) = (self.id, self.tag());
        step.out.push(Effect::Send { call, tag, to: to.clone(), version, request, payload, until });
        tag
    }

    /// Has [`News::Timer`] told at `at`, at the latest at the deadline.
    pub fn arm(&mut self, step: &mut Step<'_>, at: MonoMs) {
        let at = at.min(self.deadline);
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            step.out.push(Effect::Expire { call: self.id, at });
        }
    }

    /// Sees to it that the call ends at its deadline.
    pub fn arm_deadline(&mut self, step: &mut Step<'_>) {
        if self.armed.is_none() {
            self.arm(step, self.deadline);
        }
    }

    /// Notes that the time came.
    pub fn disarm(&mut self) {
        self.armed = None;
    }

    /// Waits for a change of the replica's state.
    pub fn wait_for(&mut self, interest: Interest) -> Flow {
        self.interest = interest;
        Flow::Wait
    }
}
