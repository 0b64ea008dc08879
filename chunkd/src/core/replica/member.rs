//! What other chunk servers ask of this one: to follow a primary, and for units.
//!
//! Nothing here asks a third server.

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::planted::{self, Bug};
use dfs_proto::{BootSession, FsError, NodeId, Version};

use super::super::admission;
use super::super::message::{DiskAnswer, DiskJob, Event, PeerAnswer, PeerRequest, Prepare, Reply, Tag, WriteKey};
use super::super::reconcile::{COPY_UNITS_MAX, Table};
use super::super::unit::{SEQ_MAX, UnitState, WriteStamp};
use super::super::write_order::Access;
use super::call::{Call, Flow, Interest, News, Step};
use super::copying::{cut, data_of, keyed_puts};
use super::dedupe::{Fate, RequestKey};
use super::follow::{Follow, Verdict};
use super::{Job, ReplicaCore, Role};

/// Activations that are remembered, so that a late copy of one is known.
const PAST_ACTIVATIONS_MAX: usize = 64;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct From {
    pub node: NodeId,
    pub boot: BootSession,
    pub version: Version,
}

/// What another server asked for, from its beginning to its answer.
#[derive(Debug)]
pub(super) enum Member {
    Activate(Activate),
    Change(Change),
    Barrier { from: From, seq: u64, activation: u64, keys: Vec<WriteKey>, state: Syncing },
    Units { first: u32, count: u32, version: Version, is_check: bool, tag: Option<Tag> },
}

/// Taking an activation in.
#[derive(Debug)]
pub(super) struct Activate {
    from: From,
    activation: u64,
    is_filled: bool,
    state: Activating,
}

#[derive(Debug)]
enum Activating {
    /// Until no change of the file is under way.
    Draining,
    /// Until the version is on stable media.
    Persisting(Tag),
    Reading(Tag),
}

/// Changing units: a write of the primary, or copies of its units.
#[derive(Debug)]
pub(super) struct Change {
    from: From,
    activation: u64,
    first: u32,
    count: u32,
    what: What,
    state: Changing,
}

#[derive(Debug)]
enum What {
    Write { seq: u64, base: u64, key: RequestKey },
    Copy { keys: Vec<WriteKey> },
}

#[derive(Debug)]
enum Changing {
    /// What is to be written. Empty: holes.
    Begun(Vec<UnitState>, Bytes),
    Queued(Vec<UnitState>, Bytes),
    /// Jobs that are under way, and whether one has failed.
    Writing(Vec<Tag>, Option<FsError>),
    Over,
}

/// Bringing everything to stable media.
#[derive(Debug)]
pub(super) enum Syncing {
    Begun,
    Waiting(Tag),
    Marking(Tag),
}

impl Member {
    /// Returns what is told when the time is up.
    pub fn timed_out(&self) -> FsError {
        match self {
            Self::Activate(_) => FsError::TryAgain("earlier changes of this replica are still under way"),
            Self::Change(_) => FsError::TryAgain("earlier changes of these units are still under way"),
            Self::Barrier { .. } => FsError::TimedOut("the sync"),
            Self::Units { .. } => FsError::TimedOut("the read"),
        }
    }
}

impl ReplicaCore {
    /// Returns the work that a request of another server means, if it may be asked for at all.
    pub(super) fn take_in_from_peer(
        &mut self,
        step: &Step<'_>,
        from: From,
        request: PeerRequest,
        payload: Bytes,
    ) -> Result<Member, FsError> {
        Ok(match request {
            PeerRequest::Activate { grant, activation } => {
                let (grant, me) = (&*grant.grant, step.context.node);
                let peer = (from.node, from.boot);
                admission::check_member(grant, self.chunk, from.version, me, peer)?;
                if grant.chunk_size_log2 != self.chunk_size_log2 {
                    return Err(FsError::Stale("the chunk has another size"));
                }
                if from.version < self.version {
                    return Err(FsError::Stale("this replica has a newer version"));
                }
                if matches!(&self.role, Role::Primary(active) if active.version == from.version) {
                    return Err(FsError::Stale("this server is the primary at this version"));
                }
                self.check_not_past(from, activation)?;
                let is_filled = !grant.members.iter().any(|member| member.node == me);
                if is_filled && self.filled_under == from.version {
                    // An attempt to fill it that was given up and comes late, or one after an answer that was lost: the
                    // primary drops this replica then, if the master has not taken it into the set.
                    return Err(FsError::TryAgain("this replica was filled under this version already"));
                }
                self.home = grant.home;
                if !planted::is(Bug::TableBeforeVersion) {
                    self.begin_to_follow(from, activation, is_filled);
                }
                Member::Activate(Activate { from, activation, is_filled, state: Activating::Draining })
            }
            PeerRequest::Prepare(prepare) => Member::Change(self.take_in_write(from, prepare, payload)?),
            PeerRequest::Push { first, states, activation, keys } => {
                let count = states.len() as u32;
                self.check_units(first, count)?;
                check_length(&states, &payload)?;
                if states.iter().any(|state| state.stamp.seq > SEQ_MAX) {
                    return Err(FsError::Protocol("a seq beyond all writes".into()));
                }
                let state = Changing::Begun(states, payload);
                Member::Change(Change { from, activation, first, count, what: What::Copy { keys }, state })
            }
            PeerRequest::Barrier { seq, activation, keys } => {
                Member::Barrier { from, seq, activation, keys, state: Syncing::Begun }
            }
            PeerRequest::Fetch { first, count } => self.take_in_read(from, first, count, false)?,
            PeerRequest::Verify { first, count } => self.take_in_read(from, first, count, true)?,
        })
    }

    fn take_in_write(&self, from: From, prepare: Prepare, payload: Bytes) -> Result<Change, FsError> {
        let Prepare { seq, first, count, zero, crcs, client, number, part, activation, base } = prepare;
        self.check_units(first, count)?;
        let stamp = WriteStamp { version: from.version, seq };
        let states: Vec<UnitState> = if zero {
            Vec::new()
        } else {
            if crcs.len() != count as usize {
                return Err(FsError::Protocol("not a checksum for each unit".into()));
            }
            crcs.into_iter().map(|crc| UnitState::data(stamp, crc)).collect()
        };
        check_length(&states, &payload)?;
        let key = RequestKey { client, number, part };
        let state = Changing::Begun(states, payload);
        Ok(Change { from, activation, first, count, what: What::Write { seq, base, key }, state })
    }

    fn take_in_read(&self, from: From, first: u32, count: u32, is_check: bool) -> Result<Member, FsError> {
        self.check_units(first, count)?;
        if count > COPY_UNITS_MAX {
            return Err(FsError::Invalid("too many units"));
        }
        Ok(Member::Units { first, count, version: from.version, is_check, tag: None })
    }

    fn check_units(&self, first: u32, count: u32) -> Result<(), FsError> {
        let end = u64::from(first) + u64::from(count);
        if count == 0 || end > u64::from(self.units()) {
            return Err(FsError::Invalid("units outside the chunk"));
        }
        Ok(())
    }

    pub(super) fn follow(&mut self, step: &mut Step<'_>, call: &mut Call, member: &mut Member, news: News) -> Flow {
        match member {
            Member::Activate(activate) => self.activated_by(step, call, activate, news),
            Member::Change(change) => self.change(step, call, change, news),
            Member::Barrier { .. } => self.peer_barrier(step, call, member, news),
            Member::Units { first, count, version, is_check, tag } => {
                let asked = (*first, *count, *version, *is_check);
                self.tell_units(step, call, asked, tag, news)
            }
        }
    }

    /// Returns the activation that is followed, if it is the one that `from` goes by.
    fn following(&mut self, from: From, activation: u64) -> Result<&mut Follow, FsError> {
        let Role::Secondary(follow) = &mut self.role else {
            return Err(FsError::TryAgain("activate this replica first"));
        };
        follow.check(from.node, from.version, activation)?;
        follow.is_used = true;
        Ok(follow)
    }

    // ------------------------------------------------------------------------------------------------ activation

    /// Refuses a late copy of an earlier activation: what was sent under it would be heard again, and a replica that was
    /// filled under it would be incomplete again.
    fn check_not_past(&self, from: From, activation: u64) -> Result<(), FsError> {
        let has_begun = match &self.role {
            Role::Secondary(follow) if follow.activation == activation => follow.is_used,
            _ => self.past_activations.contains(&(from.version, activation)),
        };
        if has_begun {
            return Err(FsError::TryAgain("this activation was followed already"));
        }
        Ok(())
    }

    /// Hears nobody else from now on.
    fn begin_to_follow(&mut self, from: From, activation: u64, is_filled: bool) {
        self.version = from.version;
        self.reading = None;
        self.past_activations.retain(|(version, known)| *version == from.version && *known != activation);
        if self.past_activations.len() >= PAST_ACTIVATIONS_MAX {
            self.past_activations.remove(0);
        }
        self.past_activations.push((from.version, activation));
        self.turn(Role::Secondary(Follow::new(from.node, from.version, activation, is_filled)));
    }

    fn activated_by(&mut self, step: &mut Step<'_>, call: &mut Call, activate: &mut Activate, news: News) -> Flow {
        let (version, activation) = (activate.from.version, activate.activation);
        let is_followed = matches!(&self.role, Role::Secondary(follow) if follow.activation == activation);
        if !is_followed && !planted::is(Bug::TableBeforeVersion) {
            return Flow::End(Err(FsError::TryAgain("another activation came meanwhile")));
        }
        match (&activate.state, news) {
            (Activating::Draining, _) => {
                if self.changes > 0 && !planted::is(Bug::TableBeforeVersion) {
                    return call.wait_for(Interest::All);
                }
                if activate.is_filled {
                    // What it has may never have been committed. The primary tells what counts.
                    self.window.clear();
                    if self.has_noted {
                        self.has_noted = false;
                        let key = RequestKey::FORGET.stamped(WriteStamp { version, seq: 0 });
                        self.start(
                            step,
                            call,
                            DiskJob::Zero { first: 0, count: 0, stamp: WriteStamp::default(), key },
                            Job::Look,
                        );
                    }
                }
                let incomplete = self.incomplete || activate.is_filled;
                let is_known = self.persisted >= version && incomplete == self.incomplete;
                if !is_known && !planted::is(Bug::VersionNotPersisted) && !planted::is(Bug::TableBeforeVersion) {
                    let header = DiskJob::SetHeader { version, incomplete };
                    let tag = self.start(step, call, header, Job::Header { version, incomplete });
                    activate.state = Activating::Persisting(tag);
                    return Flow::Wait;
                }
            }
            (Activating::Persisting(tag), News::Disk(known, result)) if known == *tag => {
                if let Err(error) = result {
                    return Flow::End(Err(error));
                }
            }
            (Activating::Reading(tag), News::Disk(known, result)) if known == *tag => {
                let table = match result {
                    Ok(DiskAnswer::Table(table)) => table,
                    Ok(_) => return Flow::End(Err(FsError::Protocol("the disk answered something else".into()))),
                    Err(error) => return Flow::End(Err(error)),
                };
                if planted::is(Bug::TableBeforeVersion) {
                    if activate.from.version < self.version {
                        return Flow::End(Err(FsError::Stale("this replica has a newer version")));
                    }
                    let incomplete = self.incomplete || activate.is_filled;
                    self.begin_to_follow(activate.from, activation, activate.is_filled);
                    let header = DiskJob::SetHeader { version, incomplete };
                    self.start(step, call, header, Job::Header { version, incomplete });
                }
                if let Role::Secondary(follow) = &mut self.role {
                    follow.is_ready = true;
                }
                return self.tell_table(table, activate.is_filled);
            }
            (Activating::Persisting(_) | Activating::Reading(_), _) => return Flow::Wait,
        }
        if let Role::Secondary(follow) = &mut self.role {
            // Another copy of the request may have been answered.
            follow.is_ready = false;
        }
        activate.state = Activating::Reading(self.start(step, call, DiskJob::Table, Job::Compare));
        Flow::Wait
    }

    fn tell_table(&self, table: Table, is_filled: bool) -> Flow {
        let highest = table.iter().map(|(_, state)| state.stamp.seq).max().unwrap_or(0);
        let keys = if is_filled { Vec::new() } else { self.window.keys() };
        let seq = self.order.last_seq().max(highest);
        Flow::End(Ok(Reply::Peer(PeerAnswer::Table { present: !self.incomplete, seq, table, keys })))
    }

    // ------------------------------------------------------------------------------------------------ changes

    fn change(&mut self, step: &mut Step<'_>, call: &mut Call, change: &mut Change, news: News) -> Flow {
        match std::mem::replace(&mut change.state, Changing::Over) {
            Changing::Begun(states, payload) => {
                let verdict = match self.judge(change) {
                    Ok(verdict) => verdict,
                    Err(error) => return Flow::End(Err(error)),
                };
                match verdict {
                    Verdict::Apply => {}
                    Verdict::Acknowledge => return Flow::End(Ok(acknowledgement(change))),
                    Verdict::Refuse(error) => return Flow::End(Err(error)),
                    Verdict::Wait => {
                        change.state = Changing::Begun(states, payload);
                        return call.wait_for(Interest::All);
                    }
                }
                let bytes = states.len() as u64 * u64::from(UNIT_SIZE);
                if let Err(error) = self.enter(call, change.first, change.first + change.count, Access::Write(bytes)) {
                    self.not_applied(change);
                    return Flow::End(Err(error));
                }
                self.put(step, call, change, states, payload)
            }
            Changing::Queued(states, payload) => self.put(step, call, change, states, payload),
            Changing::Writing(tags, failure) => {
                change.state = Changing::Writing(tags, failure);
                match news {
                    News::Disk(tag, result) => match self.put_done(change, tag, &result) {
                        Some(Ok(reply)) => Flow::End(Ok(reply)),
                        Some(Err(error)) => Flow::End(Err(error)),
                        None => Flow::Wait,
                    },
                    _ => Flow::Wait,
                }
            }
            Changing::Over => Flow::Wait,
        }
    }

    fn judge(&mut self, change: &Change) -> Result<Verdict, FsError> {
        let follow = self.following(change.from, change.activation)?;
        match change.what {
            What::Write { seq, base, .. } => Ok(follow.judge(seq, base)),
            // The primary has begun to write, so this is a copy that comes late.
            What::Copy { .. } if follow.has_begun() && !follow.is_filled && !planted::is(Bug::NoStampOrder) => {
                Ok(Verdict::Refuse(FsError::TryAgain("units were pushed after writes had begun")))
            }
            What::Copy { .. } => Ok(Verdict::Apply),
        }
    }

    /// Changes those units that are not newer, once it is this call's turn.
    fn put(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        change: &mut Change,
        states: Vec<UnitState>,
        payload: Bytes,
    ) -> Flow {
        // The role may have changed while it waited.
        let Change { from, activation, first, count, .. } = *change;
        let may_start = self.may_start(call);
        let follow = match self.following(from, activation) {
            Ok(follow) => follow,
            Err(error) => {
                self.not_applied(change);
                return Flow::End(Err(error));
            }
        };
        if !may_start {
            change.state = Changing::Queued(states, payload);
            return call.wait_for(Interest::All);
        }
        let stamp = WriteStamp { version: from.version, seq: 0 };
        let (key, runs, needs_room, stamp) = match change.what {
            What::Write { seq, key, .. } => {
                let runs = follow.replaceable(first, count, seq);
                follow.wrote(&runs, seq);
                let stamp = WriteStamp { seq, ..stamp };
                self.order.raise(seq);
                self.has_noted = true;
                (key.stamped(stamp), runs, true, stamp)
            }
            What::Copy { .. } => {
                let runs = replaceable_by(follow, first, &states);
                states.iter().for_each(|state| self.order.raise(state.stamp.seq));
                (None, runs, false, stamp)
            }
        };
        let noted = match &change.what {
            What::Copy { keys } => &keys[..],
            What::Write { .. } => &[],
        };
        self.has_noted |= !noted.is_empty();
        let mut jobs = Vec::with_capacity(runs.len());
        for (at, end) in runs {
            if states.is_empty() {
                jobs.push(DiskJob::Zero { first: at, count: end - at, stamp, key });
                continue;
            }
            let (states, payload) = cut(&states, &payload, (at - first) as usize, (end - first) as usize);
            if noted.is_empty() {
                jobs.push(DiskJob::Put { first: at, states, payload, key, needs_room });
            } else {
                jobs.extend(keyed_puts(at, &states, &payload, noted));
            }
        }
        let mut tags = Vec::with_capacity(jobs.len());
        for job in jobs {
            tags.push(self.start(step, call, job, Job::Copy));
        }
        if tags.is_empty() {
            self.applied(change);
            return Flow::End(Ok(acknowledgement(change)));
        }
        change.state = Changing::Writing(tags, None);
        Flow::Wait
    }

    /// Takes in that a job of `change` is done, and returns the answer with the last one.
    fn put_done(
        &mut self,
        change: &mut Change,
        tag: Tag,
        result: &Result<DiskAnswer, FsError>,
    ) -> Option<Result<Reply, FsError>> {
        let Changing::Writing(tags, failure) = &mut change.state else { return None };
        let at = tags.iter().position(|known| *known == tag)?;
        tags.swap_remove(at);
        if let Err(error) = result {
            *failure = Some(error.clone());
        }
        if !tags.is_empty() {
            return None;
        }
        match failure.take() {
            Some(error) => {
                self.not_applied(change);
                Some(Err(error))
            }
            None => {
                self.applied(change);
                Some(Ok(acknowledgement(change)))
            }
        }
    }

    /// Takes in that a job is done whose call was told that its time is up.
    pub(super) fn settle_late(&mut self, member: &mut Member, tag: Tag, result: &Result<DiskAnswer, FsError>) {
        if let Member::Change(change) = member {
            self.put_done(change, tag, result);
        }
    }

    fn applied(&mut self, change: &Change) {
        let activation = change.activation;
        match &change.what {
            What::Write { seq, key, .. } => {
                let stamp = WriteStamp { version: change.from.version, seq: *seq };
                self.window.set(*key, Fate::Applied { activation, stamp });
                if let Some(follow) = self.same_follow(change) {
                    follow.done(*seq);
                }
            }
            What::Copy { keys } => {
                for key in keys {
                    self.window.set(RequestKey::of(key), Fate::Applied { activation, stamp: key.stamp });
                }
            }
        }
        self.is_stirred = true;
    }

    fn not_applied(&mut self, change: &Change) {
        let What::Write { seq, .. } = change.what else { return };
        if let Some(follow) = self.same_follow(change) {
            follow.failed(seq);
        }
        self.is_stirred = true;
    }

    /// Returns the activation that is followed, if `change` began under it. A newer one may be noted already.
    fn same_follow(&mut self, change: &Change) -> Option<&mut Follow> {
        match &mut self.role {
            Role::Secondary(follow) if follow.activation == change.activation => Some(follow),
            _ => None,
        }
    }

    // ------------------------------------------------------------------------------------------------ syncs and reads

    fn peer_barrier(&mut self, step: &mut Step<'_>, call: &mut Call, member: &mut Member, news: News) -> Flow {
        let Member::Barrier { from, seq, activation, keys, state } = member else { return Flow::Wait };
        let is_filled = match self.following(*from, *activation) {
            Ok(follow) if !follow.has_applied(*seq) => {
                return Flow::End(Err(FsError::TryAgain("writes before the barrier have not come")));
            }
            Ok(follow) => follow.is_filled,
            Err(error) => return Flow::End(Err(error)),
        };
        match (&*state, news) {
            (Syncing::Begun, _) => {
                for key in self.window.unknown(keys) {
                    self.note_key(step, call, key);
                }
                *state = Syncing::Waiting(self.start(step, call, DiskJob::Sync, Job::Look));
                Flow::Wait
            }
            (Syncing::Waiting(tag) | Syncing::Marking(tag), News::Disk(known, Err(error))) if known == *tag => {
                Flow::End(Err(error))
            }
            // A replica that was filled is whole now, and may say so.
            (Syncing::Waiting(tag), News::Disk(known, Ok(_)))
                if known == *tag && is_filled && *seq > 0 && self.incomplete =>
            {
                let (version, incomplete) = (self.version, false);
                let job = Job::Header { version, incomplete };
                *state = Syncing::Marking(self.start(step, call, DiskJob::SetHeader { version, incomplete }, job));
                Flow::Wait
            }
            (Syncing::Waiting(tag) | Syncing::Marking(tag), News::Disk(known, Ok(_))) if known == *tag => {
                self.window.remember(std::mem::take(keys));
                if is_filled && *seq > 0 {
                    self.filled_under = self.version;
                }
                Flow::End(Ok(Reply::Peer(PeerAnswer::Done)))
            }
            _ => Flow::Wait,
        }
    }

    /// Tells units, or only whether they are good.
    fn tell_units(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        (first, count, version, is_check): (u32, u32, Version, bool),
        tag: &mut Option<Tag>,
        news: News,
    ) -> Flow {
        if self.version != version {
            return Flow::End(Err(FsError::Stale("this replica has another version")));
        }
        let Some(reading) = *tag else {
            if call.ticket.is_none()
                && let Err(error) = self.enter(call, first, first + count, Access::Read)
            {
                return Flow::End(Err(error));
            }
            if !self.may_start(call) {
                return call.wait_for(Interest::All);
            }
            *tag = Some(self.start(step, call, DiskJob::Read { first, count }, Job::Look));
            return Flow::Wait;
        };
        let (states, content) = match news {
            News::Disk(known, Ok(DiskAnswer::Units(states, content))) if known == reading => (states, content),
            News::Disk(known, Err(error)) if known == reading => return Flow::End(Err(error)),
            _ => return Flow::Wait,
        };
        let bad = (first..).zip(&states).filter(|(_, state)| state.is_none()).map(|(unit, _)| unit);
        let bad: Vec<u32> = bad.collect();
        if let Some(unit) = bad.first() {
            step.note(Event::Damaged { unit: *unit, count: bad.len() as u32, node: step.context.node });
        }
        let answer = if is_check {
            PeerAnswer::Verified { checked: count, bad }
        } else if let Some(unit) = bad.first() {
            return Flow::End(Err(FsError::Corrupt(format!("unit {unit}"))));
        } else {
            let payload = data_of(&states, &content);
            PeerAnswer::Units { states: states.into_iter().flatten().collect(), payload }
        };
        Flow::End(Ok(Reply::Peer(answer)))
    }
}

fn acknowledgement(change: &Change) -> Reply {
    Reply::Peer(match change.what {
        What::Write { seq, .. } => PeerAnswer::Prepared { seq },
        What::Copy { .. } => PeerAnswer::Done,
    })
}

/// Returns those of the pushed units that may replace what is here.
fn replaceable_by(follow: &Follow, first: u32, states: &[UnitState]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (unit, state) in (first..).zip(states) {
        if follow.replaceable(unit, 1, state.stamp.seq.saturating_add(1)).is_empty() {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == unit => *end += 1,
            _ => runs.push((unit, unit + 1)),
        }
    }
    runs
}

fn check_length(states: &[UnitState], payload: &[u8]) -> Result<(), FsError> {
    let units = states.iter().filter(|state| !state.hole).count();
    if payload.len() != units * UNIT_SIZE as usize {
        return Err(FsError::Protocol("the payload is not as long as its units".into()));
    }
    Ok(())
}
