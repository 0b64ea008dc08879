//! Units that are damaged here and that no member can give, while a replica is filled.
//!
//! They do not hold up the rest. The replica that is filled gives them back, if it has the same state from before; else it
//! takes them as lost, so that they are known as damaged there too, and never read as something older or as zeros.

use bytes::Bytes;
use dfs_proto::FsError;

use super::super::message::{DiskAnswer, DiskJob, PeerRequest, Tag};
use super::super::unit::UnitState;
use super::barrier::unfit;
use super::call::{ATTEMPT_MS, Call, Flow, News, Step};
use super::copying::units_of;
use super::fill::{Fill, PAUSE_MS, State, Target, Turn};
use super::{Job, ReplicaCore};

/// A unit that cannot be read or repaired so often is lost.
const LOST_AFTER: u32 = 3;

impl ReplicaCore {
    /// Goes on after neither this replica nor a member could give a unit.
    pub(super) fn unrepaired(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        target: Target,
        unit: u32,
    ) -> Turn {
        let tries = fill.tries.entry(unit).or_default();
        *tries += 1;
        if *tries < LOST_AFTER {
            self.give_back(call);
            let at = step.now().plus(PAUSE_MS);
            call.arm(step, at);
            fill.state = State::Pausing(at);
            return Turn::Flow(Flow::Wait);
        }
        let tag = self.start(step, call, DiskJob::Entries { first: unit, count: 1 }, Job::Look);
        fill.state = State::Recalling(target, unit, tag);
        Turn::Flow(Flow::Wait)
    }

    pub(super) fn recalled(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        (target, unit, tag): (Target, u32, Tag),
        news: News,
    ) -> Turn {
        let entry = match news {
            News::Disk(known, Ok(DiskAnswer::Table(entries))) if known == tag => {
                entries.first().map(|(_, entry)| *entry)
            }
            News::Disk(known, Err(error)) if known == tag => return Turn::Flow(unfit(&error)),
            _ => {
                fill.state = State::Recalling(target, unit, tag);
                return Turn::Flow(Flow::Wait);
            }
        };
        let theirs = fill.theirs.binary_search_by_key(&unit, |(unit, _)| *unit).ok().map(|at| fill.theirs[at].1);
        match entry {
            Some(entry) if theirs == Some(entry) && self.may_go_on(&target) => {
                let until = call.attempt(step, ATTEMPT_MS);
                let request = PeerRequest::Fetch { first: unit, count: 1 };
                let tag = call.send(step, &target.member, target.active.version, request, Bytes::new(), until);
                fill.state = State::Fetching(target, unit, entry, tag);
                Turn::Flow(Flow::Wait)
            }
            entry => self.lost(call, fill, unit, entry),
        }
    }

    pub(super) fn fetched_back(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        fill: &mut Fill,
        (target, unit, state, tag): (Target, u32, UnitState, Tag),
        news: News,
    ) -> Turn {
        let result = match news {
            News::Peer(known, result) if known == tag => result,
            _ => {
                fill.state = State::Fetching(target, unit, state, tag);
                return Turn::Flow(Flow::Wait);
            }
        };
        if !self.may_go_on(&target) || !self.is_resolved(unit, unit + 1) {
            self.give_back(call);
            return Turn::Again;
        }
        match result.and_then(|answer| units_of(answer, 1)) {
            Ok((states, payload)) if states == [state] => {
                let put = DiskJob::Put { first: unit, states, payload, key: None, needs_room: false };
                let tag = self.start(step, call, put, Job::Copy);
                fill.state = State::Mending(target, unit, tag);
                Turn::Flow(Flow::Wait)
            }
            Ok(_) | Err(FsError::Corrupt(_)) => self.lost(call, fill, unit, Some(state)),
            Err(error) => Turn::Flow(Flow::End(Err(error))),
        }
    }

    /// Gives a unit up: the rest is worth more than to wait for it.
    fn lost(&mut self, call: &mut Call, fill: &mut Fill, unit: u32, entry: Option<UnitState>) -> Turn {
        fill.report.bad_units += 1;
        let lost = entry.map_or_else(UnitState::lost_entry, |entry| UnitState::lost(entry.stamp, entry.crc));
        fill.lost.insert(unit, lost);
        self.give_back(call);
        Turn::Again
    }
}
