//! Becoming the active primary: every other member takes the version, then all are made equal.
//!
//! ```text
//! drain ─▶ persist the version ─▶ ask all members for their tables, side by side ─▶ copy what differs ─▶ serve
//!   ▲                                  │ a member is silent, or has no replica
//!   └──────── the new grant ◀── have the master drop it
//! ```
//!
//! Writes that an earlier activation left unanswered are in our own replica or nowhere, so afterwards they are everywhere
//! or nowhere. The same holds for a new primary: what any member has is brought to all.
//!
//! One call, the *owner*, carries an activation on; others that need it wait. It ends with the owner's deadline at the
//! latest, and whoever waits next begins anew. A replica that is being filled takes no part: its filling has a comparison
//! of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::{ChangeKind, Member};
use dfs_proto::{FsError, MonoMs, NodeId, Version};

use super::super::message::{
    CallId, DiskAnswer, DiskJob, Event, MasterAnswer, PeerAnswer, PeerRequest, Sealed, Tag, WriteKey,
};
use super::super::reconcile::Table;
use super::super::unit::SEQ_MAX;
use super::call::{ATTEMPT_MS, Call, Interest, News, Step};
use super::change::Heard;
use super::copying::{Copied, Copying};
use super::{Active, Job, ReplicaCore, Role};

/// A member that refuses connections may be restarting: it is asked again for this long.
const REFUSED_MS: u64 = 1_000;
/// Between two questions to such a member.
const REFUSED_PAUSE_MS: u64 = 50;
const PAUSE_FIRST_MS: u64 = 10;
const PAUSE_MAX_MS: u64 = 500;
/// The master is asked so often for one change before the members are asked again.
const ASKS_MAX: u32 = 3;

/// How an activation goes on.
pub(super) enum Driven {
    /// When there is news.
    Pending,
    /// This replica is the active primary.
    Done,
    /// It cannot become it now.
    Failed(FsError),
    /// It must not: its own replica is unfit.
    Leave(String),
}

/// What a call that needs the active primary can do.
pub(super) enum Ready {
    Now(Arc<Active>),
    /// It is told when the role changes.
    Later,
    Never(FsError),
    /// It must have this replica leave the set.
    Leave(String),
}

/// An attempt to become the active primary.
#[derive(Debug)]
pub(super) struct Activation {
    pub owner: CallId,
    /// Told to the members; new for each attempt.
    pub number: u64,
    pub grant: Sealed,
    pub others: Vec<Member>,
    /// What members' tables, and ours first, said.
    pub tables: Vec<Table>,
    phase: Phase,
    /// Effects that were not answered yet.
    tags: BTreeSet<Tag>,
    /// When the member that was asked last is given up.
    pub until: MonoMs,
    highest_seq: u64,
    /// The requests that each member has carried out.
    pub keys: Vec<Vec<WriteKey>>,
    pause_ms: u64,
    asks: u32,
}

#[derive(Debug)]
enum Phase {
    /// Until no change of the file is under way.
    Draining,
    /// Until the version is on stable media.
    Persisting(Tag),
    Asking(Asking),
    /// Until the master has said whether the set is as we think, or as these members do.
    Refreshing(Tag, Vec<NodeId>),
    /// Until the master has dropped a member.
    Dropping(Tag),
    /// Until it is time to ask the master again.
    AskingLater(MonoMs),
    /// Until nobody reads: units of this replica are about to change.
    EndingReads(Copying),
    Copying(Copying),
    /// Until all have noted which requests the others have carried out.
    Teaching(Copying, BTreeMap<Tag, NodeId>),
    /// Until it is time for another attempt.
    Pausing(MonoMs),
}

/// The questions to all members.
#[derive(Debug)]
struct Asking {
    began: MonoMs,
    until: MonoMs,
    others: Vec<Asked>,
    own: Option<Tag>,
    own_table: Option<Table>,
}

/// One of them.
#[derive(Debug)]
enum Asked {
    Now(Tag),
    /// It refused; it is asked again then.
    Later(MonoMs),
    Told(Told),
    Lost(String),
    /// It has heard of a newer version.
    Newer,
}

#[derive(Debug)]
struct Told {
    seq: u64,
    table: Table,
    keys: Vec<WriteKey>,
}

impl Activation {
    /// Returns whether `news` of its owner are for it.
    pub fn wants(&self, news: &News) -> bool {
        match news {
            News::Resume | News::Timer => true,
            News::Peer(tag, _) | News::Disk(tag, _) | News::Master(tag, _) => self.tags.contains(tag),
        }
    }

    /// Asks a member as part of this activation.
    pub fn send(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        member: usize,
        request: PeerRequest,
        payload: Bytes,
    ) -> Tag {
        let until = call.attempt(step, ATTEMPT_MS);
        self.until = until;
        let to = self.others[member].clone();
        let tag = call.send(step, &to, self.grant.grant.version, request, payload, until);
        self.tags.insert(tag);
        tag
    }

    /// Notes an effect of this activation.
    pub fn owns(&mut self, tag: Tag) -> Tag {
        self.tags.insert(tag);
        tag
    }
}

impl ReplicaCore {
    /// Returns the right to serve, or has this replica become active.
    pub(super) fn ensure_active(&mut self, step: &mut Step<'_>, call: &mut Call) -> Ready {
        let Some(grant) = self.leading() else {
            return Ready::Never(FsError::Stale("this replica has a newer version"));
        };
        match &self.role {
            Role::Primary(active) if active.version == grant.grant.version => return Ready::Now(Arc::clone(active)),
            Role::Activating => {
                // Its owner, which may come here with an answer to what it asked before, goes on with any change.
                let is_owner = self.activation.as_ref().is_some_and(|activation| activation.owner == call.id);
                call.wait_for(if is_owner { Interest::All } else { Interest::Role });
                return Ready::Later;
            }
            Role::Secondary(follow) if follow.version >= grant.grant.version => {
                return Ready::Never(FsError::Stale("another server is primary at this version"));
            }
            Role::Idle | Role::Primary(_) | Role::Secondary(_) => {}
        }
        if !step.has_lease() {
            return Ready::Never(FsError::TryAgain("this server has no valid lease"));
        }
        let grant = grant.clone();
        self.turn(Role::Activating);
        self.activation = Some(Box::new(Activation {
            owner: call.id,
            number: 0,
            others: Vec::new(),
            grant,
            tables: Vec::new(),
            phase: Phase::Draining,
            tags: BTreeSet::new(),
            until: MonoMs(0),
            highest_seq: 0,
            keys: Vec::new(),
            pause_ms: PAUSE_FIRST_MS,
            asks: 0,
        }));
        match self.drive(step, call, News::Resume) {
            Driven::Pending => {
                call.wait_for(Interest::All);
                Ready::Later
            }
            Driven::Failed(error) => Ready::Never(error),
            Driven::Leave(reason) => Ready::Leave(reason),
            Driven::Done => match &self.role {
                Role::Primary(active) => Ready::Now(Arc::clone(active)),
                Role::Idle | Role::Activating | Role::Secondary(_) => Ready::Later,
            },
        }
    }

    /// Returns the right to read units `[first, end)`: the one of the last activation, even if a member was lost since.
    pub(super) fn ensure_readable(&mut self, step: &mut Step<'_>, call: &mut Call, first: u32, end: u32) -> Ready {
        if let (Some(active), Some(grant)) = (&self.reading, self.leading())
            && active.version == grant.grant.version
            && (self.is_resolved(first, end) || planted::is(Bug::DirtyRead))
        {
            return Ready::Now(Arc::clone(active));
        }
        self.ensure_active(step, call)
    }

    /// Carries the activation on.
    pub(super) fn drive(&mut self, step: &mut Step<'_>, call: &mut Call, news: News) -> Driven {
        let Some(mut activation) = self.activation.take() else { return Driven::Done };
        if let News::Peer(tag, _) | News::Disk(tag, _) | News::Master(tag, _) = &news {
            activation.tags.remove(tag);
        }
        let driven = self.drive_on(step, call, &mut activation, news);
        match &driven {
            Driven::Pending => self.activation = Some(activation),
            Driven::Done => {}
            Driven::Failed(_) | Driven::Leave(_) => self.turn(Role::Idle),
        }
        driven
    }

    fn drive_on(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        mut news: News,
    ) -> Driven {
        match self.leading() {
            None => return Driven::Failed(FsError::Stale("this replica has a newer version")),
            Some(grant) if grant.grant.version > activation.grant.grant.version => {
                activation.grant = grant.clone();
                activation.tags.clear();
                activation.phase = Phase::Draining;
                news = News::Resume;
            }
            Some(_) => {}
        }
        loop {
            let told = std::mem::replace(&mut news, News::Resume);
            let phase = std::mem::replace(&mut activation.phase, Phase::Draining);
            let next = match phase {
                Phase::Draining => self.begin_attempt(step, call, activation),
                Phase::Persisting(tag) => match told {
                    News::Disk(known, Ok(_)) if known == tag => Next::Go(self.ask_members(step, call, activation)),
                    News::Disk(known, Err(error)) if known == tag => Next::End(own_disk(&error)),
                    _ => Next::Wait(Phase::Persisting(tag)),
                },
                Phase::Asking(asking) => self.hear_members(step, call, activation, asking, told),
                Phase::Refreshing(tag, _) | Phase::Dropping(tag) => {
                    self.hear_master(step, call, activation, phase, tag, told)
                }
                Phase::AskingLater(at) => {
                    if step.now() < at {
                        call.arm(step, at);
                        Next::Wait(Phase::AskingLater(at))
                    } else {
                        self.ask_master(step, call, activation)
                    }
                }
                Phase::EndingReads(copying) => {
                    if self.order.has_no_reads() {
                        Next::Go(Phase::Copying(copying))
                    } else {
                        Next::Wait(Phase::EndingReads(copying))
                    }
                }
                Phase::Copying(copying) => self.copy_on(step, call, activation, copying, told),
                Phase::Teaching(copying, tags) => self.taught(step, call, activation, copying, tags, told),
                Phase::Pausing(at) => {
                    if step.now() < at {
                        call.arm(step, at);
                        Next::Wait(Phase::Pausing(at))
                    } else {
                        Next::Go(Phase::Draining)
                    }
                }
            };
            match next {
                Next::Go(phase) => activation.phase = phase,
                Next::Wait(phase) => {
                    activation.phase = phase;
                    return Driven::Pending;
                }
                Next::End(driven) => return driven,
            }
        }
    }

    fn begin_attempt(&mut self, step: &mut Step<'_>, call: &mut Call, activation: &mut Activation) -> Next {
        let grant = Arc::clone(&activation.grant.grant);
        if !step.has_lease() {
            return Next::End(Driven::Failed(FsError::TryAgain("this server has no valid lease")));
        }
        if grant.version > self.version {
            self.version = grant.version;
            self.reading = None;
            self.is_turned = true;
        }
        if self.changes > 0 {
            return Next::Wait(Phase::Draining);
        }
        if self.incomplete {
            return Next::End(Driven::Leave("it has no complete replica".into()));
        }
        activation.asks = 0;
        activation.others = grant.others(step.context.node);
        if self.must_ask_master(activation) {
            return self.ask_master(step, call, activation);
        }
        if self.persisted < grant.version && !planted::is(Bug::VersionNotPersisted) {
            let header = DiskJob::SetHeader { version: grant.version, incomplete: self.incomplete };
            let job = Job::Header { version: grant.version, incomplete: self.incomplete };
            let tag = self.start(step, call, header, job);
            return Next::Wait(Phase::Persisting(activation.owns(tag)));
        }
        Next::Go(self.ask_members(step, call, activation))
    }

    /// Sends Activate to all members.
    fn ask_members(&mut self, step: &mut Step<'_>, call: &mut Call, activation: &mut Activation) -> Phase {
        activation.number = self.new_number(step);
        activation.tables.clear();
        activation.keys.clear();
        activation.highest_seq = 0;
        let until = call.attempt(step, ATTEMPT_MS);
        let others = (0..activation.others.len()).map(|member| Asked::Now(activate(step, call, activation, member)));
        let others = others.collect();
        // Alone, there is nothing to compare.
        let own = (!activation.others.is_empty()).then(|| {
            let tag = self.start(step, call, DiskJob::Table, Job::Compare);
            activation.owns(tag)
        });
        Phase::Asking(Asking { began: step.now(), until, others, own, own_table: None })
    }

    fn hear_members(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        mut asking: Asking,
        news: News,
    ) -> Next {
        match news {
            News::Disk(tag, result) if asking.own == Some(tag) => match result {
                Ok(DiskAnswer::Table(table)) => {
                    asking.own = None;
                    asking.own_table = Some(table);
                }
                Ok(_) => return Next::End(Driven::Failed(FsError::Protocol("a table was asked for".into()))),
                Err(error) => return Next::End(own_disk(&error)),
            },
            News::Peer(tag, result) => {
                let is_asked = |asked: &Asked| matches!(asked, Asked::Now(known) if *known == tag);
                if let Some(member) = asking.others.iter().position(is_asked) {
                    asking.others[member] = judge(step, activation, &asking, result);
                }
            }
            _ => {}
        }
        let now = step.now();
        for (member, asked) in asking.others.iter_mut().enumerate() {
            match asked {
                Asked::Later(at) if *at <= now => *asked = Asked::Now(activate(step, call, activation, member)),
                Asked::Later(at) => call.arm(step, *at),
                _ => {}
            }
        }
        let is_open = |asked: &Asked| matches!(asked, Asked::Now(_) | Asked::Later(_));
        if asking.own.is_some() || asking.others.iter().any(is_open) {
            return Next::Wait(Phase::Asking(asking));
        }
        self.judge_answers(step, call, activation, asking)
    }

    fn judge_answers(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        asking: Asking,
    ) -> Next {
        let mut contradicting = Vec::new();
        activation.tables.extend(asking.own_table);
        for (asked, member) in asking.others.into_iter().zip(&activation.others) {
            match asked {
                Asked::Told(told) => {
                    activation.highest_seq = activation.highest_seq.max(told.seq);
                    activation.tables.push(told.table);
                    activation.keys.push(told.keys);
                }
                Asked::Lost(reason) => _ = self.lost.insert(member.node, reason),
                Asked::Newer => contradicting.push(member.node),
                Asked::Now(_) | Asked::Later(_) => {}
            }
        }
        if !contradicting.is_empty() {
            let tag = self.ask(step, call, ChangeKind::Refresh, "a member has heard of a newer version".into());
            return Next::Wait(Phase::Refreshing(activation.owns(tag), contradicting));
        }
        if self.must_ask_master(activation) {
            return self.ask_master(step, call, activation);
        }
        let copying = if planted::is(Bug::NoReconcile) { Copying::default() } else { Copying::new(&activation.tables) };
        activation.highest_seq = activation.highest_seq.max(copying.highest_seq);
        if copying.changes_us() {
            self.reading = None;
            self.is_turned = true;
            return Next::Go(Phase::EndingReads(copying));
        }
        Next::Go(Phase::Copying(copying))
    }

    fn copy_on(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        mut copying: Copying,
        news: News,
    ) -> Next {
        match self.copy(step, call, activation, &mut copying, news) {
            Copied::Pending => Next::Wait(Phase::Copying(copying)),
            Copied::Done => self.teach(step, call, activation, copying),
            Copied::Lost(node, reason) => {
                self.lost.insert(node, reason);
                self.ask_master(step, call, activation)
            }
            Copied::Again(error) => self.pause(step, call, activation, error),
            Copied::Failed(error) => Next::End(Driven::Failed(error)),
            Copied::OwnDisk(error) => Next::End(own_disk(&error)),
            Copied::Unfit(reason) => Next::End(Driven::Leave(reason)),
        }
    }

    /// Tells each member of requests that it does not know, and that it has carried out with what was copied. Nothing as a
    /// rule.
    fn teach(&mut self, step: &mut Step<'_>, call: &mut Call, activation: &mut Activation, copying: Copying) -> Next {
        let known = std::mem::take(&mut activation.keys);
        let news = self.window.unknown(&known.concat());
        self.window.remember(news.clone());
        let all = self.window.keys();
        let mut tags = BTreeMap::new();
        for key in &news {
            let tag = self.note_key(step, call, *key);
            tags.insert(activation.owns(tag), step.context.node);
        }
        for (member, known) in known.iter().enumerate() {
            let keys: Vec<_> = all.iter().filter(|key| !known.contains(key)).copied().collect();
            if !keys.is_empty() {
                let request = PeerRequest::Barrier { seq: 0, activation: activation.number, keys };
                let tag = activation.send(step, call, member, request, Bytes::new());
                tags.insert(tag, activation.others[member].node);
            }
        }
        self.taught(step, call, activation, copying, tags, News::Resume)
    }

    fn taught(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        copying: Copying,
        mut tags: BTreeMap<Tag, NodeId>,
        news: News,
    ) -> Next {
        match news {
            News::Peer(tag, result) => {
                if let (Some(node), Err(error)) = (tags.remove(&tag), result) {
                    if step.now() < activation.until {
                        return self.pause(step, call, activation, error);
                    }
                    self.lost.insert(node, error.to_string());
                    return self.ask_master(step, call, activation);
                }
            }
            News::Disk(tag, result) => {
                if let (Some(_), Err(error)) = (tags.remove(&tag), result)
                    && error != FsError::NoSpace
                {
                    return Next::End(own_disk(&error));
                }
            }
            _ => {}
        }
        if !tags.is_empty() {
            return Next::Wait(Phase::Teaching(copying, tags));
        }
        self.finish_activation(step, activation, &copying);
        Next::End(Driven::Done)
    }

    fn finish_activation(&mut self, step: &mut Step<'_>, activation: &mut Activation, copying: &Copying) {
        let grant = &activation.grant.grant;
        self.order.raise(activation.highest_seq);
        let base = self.order.last_seq();
        self.committed = self.committed.max(base);
        self.serve_as(
            step,
            Active {
                version: grant.version,
                activation: activation.number,
                base,
                others: std::mem::take(&mut activation.others),
                syncing: grant.syncing.clone(),
                min_in_sync: grant.min_in_sync,
                copied: copying.copied,
                doubts: copying.doubts,
            },
        );
    }

    /// Tries again a little later.
    fn pause(&mut self, step: &mut Step<'_>, call: &mut Call, activation: &mut Activation, error: FsError) -> Next {
        let at = step.now().plus(activation.pause_ms);
        if at >= call.deadline {
            return Next::End(Driven::Failed(error));
        }
        activation.pause_ms = (activation.pause_ms * 2).min(PAUSE_MAX_MS);
        call.arm(step, at);
        Next::Wait(Phase::Pausing(at))
    }

    // ------------------------------------------------------------------------------------------------ the master

    /// Returns whether the set must change before the members are compared.
    fn must_ask_master(&self, activation: &Activation) -> bool {
        self.next_drop(activation).is_some()
    }

    /// Returns who is to be dropped next, and why.
    fn next_drop(&self, activation: &Activation) -> Option<(NodeId, String)> {
        if let Some((version, node)) = self.doubtful
            && version == activation.grant.grant.version
        {
            return Some((node, "it is not known whether it was taken into the set".into()));
        }
        let is_lost = |member: &&Member| self.lost.contains_key(&member.node);
        activation.others.iter().find(is_lost).map(|member| (member.node, self.lost[&member.node].clone()))
    }

    fn ask_master(&mut self, step: &mut Step<'_>, call: &mut Call, activation: &mut Activation) -> Next {
        let Some((node, reason)) = self.next_drop(activation) else { return Next::Go(Phase::Draining) };
        step.note(Event::Dropping { node, reason: reason.clone() });
        activation.asks += 1;
        let tag = self.ask(step, call, ChangeKind::Drop { node }, reason);
        Next::Wait(Phase::Dropping(activation.owns(tag)))
    }

    /// Takes in what the master said to a question of this activation. A newer grant was noted before this.
    fn hear_master(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        activation: &mut Activation,
        phase: Phase,
        tag: Tag,
        news: News,
    ) -> Next {
        let News::Master(known, result) = news else { return Next::Wait(phase) };
        if known != tag {
            return Next::Wait(phase);
        }
        let refusal = match &result {
            Ok(MasterAnswer { result: Err(error), .. }) | Err(error) => error.clone(),
            Ok(_) => FsError::TryAgain("the master has not dropped a member"),
        };
        match (self.heard(step, activation.grant.grant.version, &result), phase) {
            // The loop goes on under it.
            (Heard::Newer, _) => {
                if let Some(grant) = self.leading() {
                    activation.grant = grant.clone();
                }
                Next::Go(Phase::Draining)
            }
            (Heard::NotPrimary, _) => Next::End(Driven::Failed(FsError::Stale("another server is primary now"))),
            // We are up to date, so those who say otherwise are not of this set any more.
            (Heard::Same, Phase::Refreshing(_, contradicting)) => {
                let reason = "it has a version that the master does not know";
                self.lost.extend(contradicting.into_iter().map(|node| (node, reason.to_owned())));
                self.ask_master(step, call, activation)
            }
            (Heard::Same, _) => {
                // It will not be dropped: perhaps it is back.
                self.lost.clear();
                self.pause(step, call, activation, refusal)
            }
            (Heard::Unclear, _) if activation.asks < ASKS_MAX || self.doubtful.is_some() => {
                let at = step.now().plus(activation.pause_ms);
                activation.pause_ms = (activation.pause_ms * 2).min(PAUSE_MAX_MS);
                call.arm(step, at);
                Next::Wait(Phase::AskingLater(at))
            }
            (Heard::Unclear, _) => {
                self.lost.clear();
                self.pause(step, call, activation, refusal)
            }
        }
    }
}

enum Next {
    /// At once.
    Go(Phase),
    /// When there is news.
    Wait(Phase),
    End(Driven),
}

fn activate(step: &mut Step<'_>, call: &mut Call, activation: &mut Activation, member: usize) -> Tag {
    let request = PeerRequest::Activate { grant: activation.grant.clone(), activation: activation.number };
    activation.send(step, call, member, request, Bytes::new())
}

/// Judges a member's answer to Activate.
fn judge(step: &Step<'_>, activation: &Activation, asking: &Asking, result: Result<PeerAnswer, FsError>) -> Asked {
    let error = match result {
        Ok(PeerAnswer::Table { present, seq, table, keys }) => {
            let highest = table.iter().map(|(_, state)| state.stamp.seq).max().unwrap_or(0).max(seq);
            return if !present && !activation.grant.grant.may_create {
                Asked::Lost("it has no complete replica".into())
            } else if highest > SEQ_MAX {
                Asked::Lost("it has a seq beyond all writes".into())
            } else {
                Asked::Told(Told { seq: highest, table, keys })
            };
        }
        Ok(_) => FsError::Protocol("the answer to activate has no unit table".into()),
        Err(FsError::Stale(_)) => return Asked::Newer,
        Err(error) => error,
    };
    let patience = match &error {
        FsError::NoReplica(_) => asking.began.plus(REFUSED_MS),
        FsError::TryAgain(_) | FsError::TimedOut(_) => asking.until,
        _ => MonoMs(0),
    };
    let at = step.now().plus(REFUSED_PAUSE_MS);
    if at < patience.min(asking.until) { Asked::Later(at) } else { Asked::Lost(error.to_string()) }
}

/// What an activation makes of a failure of this server's own disk.
fn own_disk(error: &FsError) -> Driven {
    Driven::Leave(format!("its own replica cannot be used: {error}"))
}

impl ReplicaCore {
    /// Returns the newest grant under which this server may be the primary.
    pub(super) fn leading(&self) -> Option<&Sealed> {
        let is_in_force = |grant: &&Sealed| {
            grant.grant.version >= self.version.max(Version(1)) && grant.grant.version > self.given_up
        };
        self.grant.as_ref().filter(is_in_force)
    }
}
