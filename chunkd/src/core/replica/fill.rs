//! Filling a replica that is not in sync, by order of the master, and having it taken into the set.
//!
//! ```text
//! compare ─▶ push what differs, a MiB at a time ─▶ sync ─▶ compare again … few differ
//!         ─▶ let no write in, compare, push the rest, sync ─▶ the master: FinishSync ─▶ activate under the new grant
//! ```
//!
//! Each comparison begins with an Activate of its own number, so that nothing that was sent before reaches the replica
//! after it has told its table. From then on it is sent every write, under that number, and nobody waits for it: what it
//! misses, the next comparison finds. What it holds from before counts for nothing, however new it looks: it may be
//! writes that were never committed.
//!
//! A unit that is damaged here and that no member can give does not hold up the rest: see [`super::lost_units`].
//!
//! At most one push is under way, so that a shell can hold the filling to a bandwidth. Writes wait for the last
//! comparison only, and while the master is asked; reads go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::{ChangeKind, Member, OrderReport};
use dfs_proto::{FsError, MonoMs, NodeId};

use super::super::message::{DiskAnswer, DiskJob, Event, PeerAnswer, PeerRequest, Reply, Tag};
use super::super::reconcile::{COPY_UNITS_MAX, Table};
use super::super::unit::{UnitState, WriteStamp};
use super::super::write_order::Access;
use super::activation::Ready;
use super::barrier::unfit;
use super::call::{ATTEMPT_MS, Call, Flow, Interest, News, Step, Work};
use super::change::{Heard, Leave};
use super::copying::data_of;
use super::repair::{Repair, Repaired};
use super::{Active, Job, ReplicaCore};

/// With no more units than this to copy, writes may wait for it.
const FEW_UNITS: u32 = COPY_UNITS_MAX;
/// Comparisons after which writes wait, however many units differ: they change faster than they are copied.
const ROUNDS_MAX: u32 = 8;
/// A push or a sync of the replica that is filled may take so long: its disk is busy, and nobody waits.
const PATIENCE_MS: u64 = 10_000;
/// It may fail to answer so often before it is given up.
const FAILURES_MAX: u32 = 3;
pub(super) const PAUSE_MS: u64 = 300;

/// The filling of one replica.
#[derive(Debug)]
pub(super) struct Fill {
    pub node: NodeId,
    pub state: State,
    /// Comparisons that were made.
    rounds: u32,
    failures: u32,
    /// Writes wait from now on.
    is_last: bool,
    /// Units that are to be copied.
    left: VecDeque<(u32, u32)>,
    /// What the replica that is filled had at the last comparison.
    pub theirs: Table,
    /// How often units could be neither read nor repaired.
    pub tries: BTreeMap<u32, u32>,
    /// Those that are lost, as far as what they were is known.
    pub lost: BTreeMap<u32, UnitState>,
    pub report: OrderReport,
}

#[derive(Debug)]
pub(super) enum State {
    Begun,
    /// Until it is time to try again.
    Pausing(MonoMs),
    /// Until no write is under way.
    Queued(Target),
    /// Until both tables are known.
    Comparing(Target, Box<Comparison>),
    /// Until no write of the units is under way.
    QueuedToCopy(Target, (u32, u32)),
    Reading(Target, (u32, u32), Tag),
    QueuedToRepair(Target, u32),
    Repairing(Target, Repair),
    /// Until it is known what a damaged unit was.
    Recalling(Target, u32, Tag),
    /// Until the replica that is filled gave a unit that is damaged here.
    Fetching(Target, u32, UnitState, Tag),
    Mending(Target, u32, Tag),
    Pushing(Target, u32, Tag),
    Syncing(Target, Tag),
    /// Until the master has taken it into the set.
    Finishing(Target, Tag),
    /// Until the master was told that it cannot be filled.
    Dropping(FsError, Tag),
}

/// What is known of two tables.
#[derive(Debug)]
pub(super) struct Comparison {
    asked: Option<Tag>,
    theirs: Option<(u64, Table)>,
    listing: Option<Tag>,
    ours: Table,
    measuring: Option<Tag>,
    /// Where this replica holds data, damaged units too, which the table leaves out.
    extents: Vec<(u32, u32)>,
}

/// Whom the pushes go to, under which activation.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub active: Arc<Active>,
    pub member: Member,
    number: u64,
}

impl Fill {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            state: State::Begun,
            rounds: 0,
            failures: 0,
            is_last: false,
            left: VecDeque::new(),
            theirs: Table::new(),
            tries: BTreeMap::new(),
            lost: BTreeMap::new(),
            report: OrderReport::default(),
        }
    }
}

/// How the filling goes on.
pub(super) enum Turn {
    Again,
    Flow(Flow),
}

impl ReplicaCore {
    pub(super) fn fill(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill, news: News) -> Flow {
        let mut news = Some(news);
        loop {
            let news = news.take().unwrap_or(News::Resume);
            let turn = match std::mem::replace(&mut fill.state, State::Begun) {
                State::Begun => self.begin_round(step, call, fill),
                State::Pausing(at) if step.now() < at => {
                    call.arm(step, at);
                    fill.state = State::Pausing(at);
                    Turn::Flow(Flow::Wait)
                }
                State::Pausing(_) => Turn::Again,
                State::Queued(target) => self.compare(step, call, fill, target),
                State::Comparing(target, comparison) => self.compared(step, call, fill, target, comparison, news),
                State::QueuedToCopy(target, units) => self.read_to_copy(step, call, fill, target, units),
                State::Reading(target, units, tag) => self.read(step, call, fill, (target, units, tag), news),
                State::QueuedToRepair(target, unit) => {
                    if !self.may_go_on(&target) {
                        self.give_back(call);
                        Turn::Again
                    } else if self.may_start(call) {
                        let repair = Repair::new(step, &target.active, unit);
                        fill.state = State::Repairing(target, repair);
                        Turn::Again
                    } else {
                        fill.state = State::QueuedToRepair(target, unit);
                        Turn::Flow(call.wait_for(Interest::All))
                    }
                }
                State::Repairing(target, mut repair) => {
                    match self.repair(step, call, &target.active, &mut repair, news) {
                        Repaired::Pending => {
                            fill.state = State::Repairing(target, repair);
                            Turn::Flow(Flow::Wait)
                        }
                        Repaired::Done => {
                            fill.report.bad_units += 1;
                            fill.report.repaired_units += 1;
                            self.give_back(call);
                            Turn::Again
                        }
                        Repaired::Ended => {
                            self.give_back(call);
                            Turn::Again
                        }
                        Repaired::Failed(_) if repair.is_certain() => {
                            self.unrepaired(step, call, fill, target, repair.unit())
                        }
                        Repaired::Failed(error) => Turn::Flow(Flow::End(Err(error))),
                        Repaired::OwnDisk(error) => Turn::Flow(unfit(&error)),
                    }
                }
                State::Recalling(target, unit, tag) => self.recalled(step, call, fill, (target, unit, tag), news),
                State::Fetching(target, unit, state, tag) => {
                    self.fetched_back(step, call, fill, (target, unit, state, tag), news)
                }
                State::Mending(target, unit, tag) => match news {
                    News::Disk(known, Ok(_)) if known == tag => {
                        step.note(Event::Repaired { unit });
                        fill.report.bad_units += 1;
                        fill.report.repaired_units += 1;
                        self.give_back(call);
                        Turn::Again
                    }
                    News::Disk(known, Err(error)) if known == tag => Turn::Flow(unfit(&error)),
                    _ => {
                        fill.state = State::Mending(target, unit, tag);
                        Turn::Flow(Flow::Wait)
                    }
                },
                State::Pushing(target, units, tag) => self.pushed(step, call, fill, (target, units, tag), news),
                State::Syncing(target, tag) => self.synced(step, call, fill, target, tag, news),
                State::Finishing(target, tag) => self.finished(step, fill, target, tag, news),
                State::Dropping(error, tag) => match news {
                    News::Master(known, _) if known == tag => Turn::Flow(Flow::End(Err(error))),
                    _ => {
                        fill.state = State::Dropping(error, tag);
                        Turn::Flow(Flow::Wait)
                    }
                },
            };
            match turn {
                Turn::Again => {}
                Turn::Flow(flow) => return flow,
            }
        }
    }

    /// Returns whether the activation under which `target` is filled is still in force.
    pub(super) fn may_go_on(&self, target: &Target) -> bool {
        self.is_active(target.active.activation)
    }

    fn begin_round(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill) -> Turn {
        self.filling.remove(&fill.node);
        if call.jobs > 0 {
            // Its place covers the job.
            return Turn::Flow(Flow::Wait);
        }
        self.give_back(call);
        fill.left.clear();
        fill.is_last = false;
        let active = match self.ensure_active(step, call) {
            Ready::Now(active) => active,
            Ready::Later => return Turn::Flow(Flow::Wait),
            Ready::Never(error) => return Turn::Flow(Flow::End(Err(error))),
            Ready::Leave(reason) => return Turn::Flow(Flow::Become(Work::Leave(Box::new(Leave::unfit(reason))))),
        };
        if active.others.iter().any(|member| member.node == fill.node) {
            return Turn::Flow(Flow::End(Ok(Reply::Order(fill.report))));
        }
        let Some(member) = active.syncing.iter().find(|member| member.node == fill.node).cloned() else {
            return Turn::Flow(Flow::End(Err(FsError::Stale("this replica is not to be filled any more"))));
        };
        if let Err(error) = self.enter(call, 0, self.units(), Access::Read) {
            return Turn::Flow(Flow::End(Err(error)));
        }
        fill.state = State::Queued(Target { active, member, number: 0 });
        Turn::Again
    }

    // ------------------------------------------------------------------------------------------------ comparing

    fn compare(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill, mut target: Target) -> Turn {
        if !self.may_go_on(&target) {
            return Turn::Again;
        }
        if !self.may_start(call) {
            fill.state = State::Queued(target);
            return Turn::Flow(call.wait_for(Interest::All));
        }
        let Some(grant) = self.grant.clone().filter(|grant| grant.grant.version == target.active.version) else {
            self.deactivate(target.active.activation);
            return Turn::Again;
        };
        target.number = self.new_number(step);
        let until = call.attempt(step, ATTEMPT_MS);
        let request = PeerRequest::Activate { grant, activation: target.number };
        let version = target.active.version;
        let asked = Some(call.send(step, &target.member.clone(), version, request, Bytes::new(), until));
        let listing = Some(self.start(step, call, DiskJob::Table, Job::Compare));
        let measuring = DiskJob::Extents { first: 0, count: self.units() };
        let measuring = Some(self.start(step, call, measuring, Job::Look));
        let (ours, extents) = (Table::new(), Vec::new());
        let comparison = Comparison { asked, theirs: None, listing, ours, measuring, extents };
        fill.state = State::Comparing(target, Box::new(comparison));
        Turn::Flow(Flow::Wait)
    }

    fn compared(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        target: Target,
        mut known: Box<Comparison>,
        news: News,
    ) -> Turn {
        match news {
            News::Disk(_, Err(error)) => return Turn::Flow(unfit(&error)),
            News::Disk(tag, Ok(DiskAnswer::Table(table))) if known.listing == Some(tag) => {
                known.listing = None;
                known.ours = without_lost(table);
            }
            News::Disk(tag, Ok(DiskAnswer::Extents(extents))) if known.measuring == Some(tag) => {
                known.measuring = None;
                known.extents = extents;
            }
            News::Peer(tag, result) if known.asked == Some(tag) => {
                known.asked = None;
                match result {
                    Ok(PeerAnswer::Table { seq, table, .. }) => known.theirs = Some((seq, without_lost(table))),
                    Ok(_) => {
                        let error = FsError::Protocol("the answer to activate has no unit table".into());
                        return self.fill_failed(step, call, fill, error);
                    }
                    Err(error) => return self.fill_failed(step, call, fill, error),
                }
            }
            _ => {}
        }
        let may_go_on = self.may_go_on(&target);
        if known.listing.is_some() || known.measuring.is_some() || (known.asked.is_some() && may_go_on) {
            fill.state = State::Comparing(target, known);
            return Turn::Flow(call.wait_for(Interest::Role));
        }
        let Some((seq, theirs)) = known.theirs.filter(|_| may_go_on) else { return Turn::Again };
        fill.rounds += 1;
        if seq > self.order.last_seq() {
            // It holds writes that were lost here: ours must have other stamps.
            self.order.raise(seq);
            self.deactivate(target.active.activation);
            return Turn::Again;
        }
        fill.left = differing(&known.ours, &theirs, &known.extents);
        fill.theirs = theirs;
        if planted::is(Bug::FinishSyncEarly) {
            fill.left.clear();
        }
        let units: u32 = fill.left.iter().map(|(_, count)| *count).sum();
        if !fill.is_last && (units <= FEW_UNITS || fill.rounds > ROUNDS_MAX) {
            // Writes have waited for this comparison; they go on waiting.
            fill.is_last = true;
        } else if !fill.is_last {
            self.filling.insert(fill.node, target.number);
            self.give_back(call);
        }
        self.copy_next(step, call, fill, target)
    }

    // ------------------------------------------------------------------------------------------------ copying

    fn copy_next(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill, target: Target) -> Turn {
        let Some((first, count)) = fill.left.pop_front() else { return self.sync_filled(step, call, fill, target) };
        if !fill.is_last
            && let Err(error) = self.enter(call, first, first + count, Access::Read)
        {
            return Turn::Flow(Flow::End(Err(error)));
        }
        fill.state = State::QueuedToCopy(target, (first, count));
        Turn::Again
    }

    fn read_to_copy(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        target: Target,
        (first, count): (u32, u32),
    ) -> Turn {
        if !self.may_go_on(&target) {
            return Turn::Again;
        }
        if !self.may_start(call) {
            fill.state = State::QueuedToCopy(target, (first, count));
            return Turn::Flow(call.wait_for(Interest::All));
        }
        let tag = self.start(step, call, DiskJob::Read { first, count }, Job::Look);
        fill.state = State::Reading(target, (first, count), tag);
        Turn::Flow(Flow::Wait)
    }

    fn read(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        (target, (first, count), tag): (Target, (u32, u32), Tag),
        news: News,
    ) -> Turn {
        let (mut states, content) = match news {
            News::Disk(known, Ok(DiskAnswer::Units(states, content))) if known == tag => (states, content),
            News::Disk(known, Err(error)) if known == tag => return Turn::Flow(unfit(&error)),
            _ => {
                fill.state = State::Reading(target, (first, count), tag);
                return Turn::Flow(Flow::Wait);
            }
        };
        if !self.may_go_on(&target) {
            return Turn::Again;
        }
        for (unit, state) in (first..).zip(&mut states) {
            *state = state.or_else(|| fill.lost.get(&unit).copied());
        }
        if let Some(bad) = states.iter().position(Option::is_none) {
            // Others may be reading it: it is repaired when they are done. Then all is compared again.
            self.give_back(call);
            fill.is_last = false;
            let unit = first + bad as u32;
            if let Err(error) = self.enter(call, unit, unit + 1, Access::Write(u64::from(UNIT_SIZE))) {
                return Turn::Flow(Flow::End(Err(error)));
            }
            fill.state = State::QueuedToRepair(target, unit);
            return Turn::Again;
        }
        let payload = data_of(&states, &content);
        let states: Vec<UnitState> = states.into_iter().flatten().collect();
        let request = PeerRequest::Push { first, states, activation: target.number, keys: Vec::new() };
        let until = call.attempt(step, PATIENCE_MS);
        let tag = call.send(step, &target.member, target.active.version, request, payload, until);
        fill.state = State::Pushing(target, count, tag);
        Turn::Flow(Flow::Wait)
    }

    // ------------------------------------------------------------------------------------------------ pushing

    fn pushed(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        (target, count, tag): (Target, u32, Tag),
        news: News,
    ) -> Turn {
        match news {
            News::Peer(known, Ok(PeerAnswer::Done)) if known == tag => {
                fill.report.copied_bytes += u64::from(count) * u64::from(UNIT_SIZE);
                if !fill.is_last {
                    self.give_back(call);
                }
                self.copy_next(step, call, fill, target)
            }
            News::Peer(known, result) if known == tag => {
                let error = result.err().unwrap_or(FsError::Protocol("it answered something else to a push".into()));
                self.fill_failed(step, call, fill, error)
            }
            _ if !self.may_go_on(&target) => Turn::Again,
            _ => {
                fill.state = State::Pushing(target, count, tag);
                Turn::Flow(call.wait_for(Interest::Role))
            }
        }
    }

    /// Brings what was copied to stable media. Writes do not wait for that, but for the little that the last comparison
    /// has found.
    fn sync_filled(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill, target: Target) -> Turn {
        let (seq, keys) = if fill.is_last { (self.committed.max(1), self.window.keys()) } else { (0, Vec::new()) };
        let request = PeerRequest::Barrier { seq, activation: target.number, keys };
        let until = call.attempt(step, PATIENCE_MS);
        let tag = call.send(step, &target.member, target.active.version, request, Bytes::new(), until);
        fill.state = State::Syncing(target, tag);
        Turn::Flow(Flow::Wait)
    }

    fn synced(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        target: Target,
        tag: Tag,
        news: News,
    ) -> Turn {
        match news {
            News::Peer(known, Ok(PeerAnswer::Done)) if known == tag => {}
            News::Peer(known, result) if known == tag => {
                let error = result.err().unwrap_or(FsError::Protocol("it answered something else to a sync".into()));
                return self.fill_failed(step, call, fill, error);
            }
            _ if !self.may_go_on(&target) => return Turn::Again,
            _ => {
                fill.state = State::Syncing(target, tag);
                return Turn::Flow(call.wait_for(Interest::Role));
            }
        }
        if !fill.is_last || !self.may_go_on(&target) {
            return Turn::Again;
        }
        // From this moment the set may be one with it, whatever we hear.
        self.doubtful = Some((target.active.version, fill.node));
        let tag = self.ask(step, call, ChangeKind::FinishSync { node: fill.node }, "it was filled".into());
        fill.state = State::Finishing(target, tag);
        Turn::Flow(Flow::Wait)
    }

    fn finished(&mut self, step: &mut Step<'_>, fill: &mut Fill, target: Target, tag: Tag, news: News) -> Turn {
        let News::Master(known, result) = news else {
            fill.state = State::Finishing(target, tag);
            return Turn::Flow(Flow::Wait);
        };
        if known != tag {
            fill.state = State::Finishing(target, tag);
            return Turn::Flow(Flow::Wait);
        }
        if planted::is(Bug::UnknownIsRefused) && result.is_err() {
            self.doubtful = None;
            return Turn::Flow(Flow::End(Err(FsError::TryAgain("the master did not take it into the set"))));
        }
        // Whatever it was, nothing is committed before the version has moved on: the activation sees to that.
        self.deactivate(target.active.activation);
        if self.heard(step, target.active.version, &result) == Heard::NotPrimary {
            return Turn::Flow(Flow::End(Err(FsError::Stale("another server is primary now"))));
        }
        Turn::Again
    }

    /// Tries again after the replica that is filled has failed; in the end the master is told that it cannot be.
    fn fill_failed(&mut self, step: &mut Step<'_>, call: &mut Call, fill: &mut Fill, error: FsError) -> Turn {
        fill.failures += 1;
        fill.is_last = false;
        self.filling.remove(&fill.node);
        if call.jobs == 0 {
            self.give_back(call);
        }
        if fill.failures < FAILURES_MAX {
            let at = step.now().plus(PAUSE_MS);
            call.arm(step, at);
            fill.state = State::Pausing(at);
            return Turn::Flow(Flow::Wait);
        }
        let tag = self.ask(step, call, ChangeKind::Drop { node: fill.node }, format!("it cannot be filled: {error}"));
        fill.state = State::Dropping(error, tag);
        Turn::Flow(Flow::Wait)
    }
}

/// Returns the table without what is damaged: that is not the same whatever is on the other side.
fn without_lost(mut table: Table) -> Table {
    table.retain(|(_, state)| !state.is_lost());
    table
}

/// Returns the runs of units that are not the same in a replica that is filled, cut to the size of a message. A unit that
/// only it holds becomes what it is here: never written. One that is damaged here (it holds data, and is not in the table)
/// is not the same whatever is there.
fn differing(own: &Table, theirs: &Table, extents: &[(u32, u32)]) -> VecDeque<(u32, u32)> {
    let is_written = |state: &UnitState| state.stamp != WriteStamp::default();
    let mut own = own.iter().filter(|(_, state)| is_written(state)).peekable();
    let mut theirs = theirs.iter().filter(|(_, state)| is_written(state)).peekable();
    let mut held = extents.iter().flat_map(|(first, end)| *first..*end).peekable();
    let mut runs: VecDeque<(u32, u32)> = VecDeque::new();
    loop {
        let units = [own.peek().map(|(unit, _)| *unit), theirs.peek().map(|(unit, _)| *unit), held.peek().copied()];
        let Some(unit) = units.into_iter().flatten().min() else { return runs };
        let here = own.next_if(|(known, _)| *known == unit).map(|(_, state)| *state);
        let there = theirs.next_if(|(known, _)| *known == unit).map(|(_, state)| *state);
        let is_damaged = held.next_if_eq(&unit).is_some() && here.is_none();
        if here == there && !is_damaged {
            continue;
        }
        match runs.back_mut() {
            Some((first, count)) if *first + *count == unit && *count < COPY_UNITS_MAX => *count += 1,
            _ => runs.push_back((unit, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Version;

    use super::*;

    fn state(seq: u64, crc: u32) -> UnitState {
        UnitState::data(WriteStamp { version: Version(1), seq }, crc)
    }

    #[test]
    fn whatever_is_not_the_same_is_copied_in_runs() {
        let own = vec![(0, state(1, 1)), (1, state(2, 2)), (2, state(3, 3)), (7, state(4, 4))];
        let theirs = vec![(0, state(1, 1)), (1, state(9, 2)), (2, state(3, 9)), (3, state(5, 5))];
        assert_eq!(differing(&own, &theirs, &[]), [(1, 3), (7, 1)]);
        assert_eq!(differing(&own, &own, &[(0, 3), (7, 8)]), []);
        let never = vec![(5, UnitState::NEVER)];
        assert_eq!(differing(&never, &Table::new(), &[]), [], "both read as never written");
        assert_eq!(differing(&own, &own, &[(0, 5)]), [(3, 2)], "damaged here");
    }

    #[test]
    fn a_run_is_at_most_a_message() {
        let own: Table = (0..600).map(|unit| (unit, state(1, 1))).collect();
        assert_eq!(differing(&own, &Table::new(), &[(0, 600)]), [(0, 256), (256, 256), (512, 88)]);
    }
}
