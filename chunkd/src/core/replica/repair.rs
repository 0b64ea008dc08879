//! Taking a damaged unit of the primary from another member.

use std::collections::VecDeque;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::replica_set::Member;

use super::super::message::{DiskJob, Event, PeerRequest, Tag};
use super::call::{ATTEMPT_MS, Call, News, Step};
use super::copying::units_of;
use super::{Active, Job, ReplicaCore, Role};

/// A repair of one unit, whose place in the order the call holds for itself.
#[derive(Debug)]
pub(super) struct Repair {
    unit: u32,
    sources: VecDeque<Member>,
    state: State,
    failure: Option<FsError>,
    is_certain: bool,
}

#[derive(Debug)]
enum State {
    Begun,
    Fetching(Tag),
    Storing(Tag),
}

/// How a repair goes on.
pub(super) enum Repaired {
    Pending,
    Done,
    /// The activation has ended, or the members may differ in the unit; nothing was changed.
    Ended,
    /// No member has a good copy.
    Failed(FsError),
    OwnDisk(FsError),
}

impl Repair {
    /// Begins the repair of `unit`, which was found damaged.
    pub fn new(step: &mut Step<'_>, active: &Active, unit: u32) -> Self {
        step.note(Event::Damaged { unit, count: 1, node: step.context.node });
        Self {
            unit,
            sources: active.others.iter().cloned().collect(),
            state: State::Begun,
            failure: None,
            is_certain: true,
        }
    }

    /// Returns the unit.
    pub fn unit(&self) -> u32 {
        self.unit
    }

    /// Returns whether every other member has said that the unit is damaged there too, once it has failed.
    pub fn is_certain(&self) -> bool {
        self.is_certain
    }
}

impl ReplicaCore {
    pub(super) fn repair(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        active: &Active,
        repair: &mut Repair,
        news: News,
    ) -> Repaired {
        let unit = repair.unit;
        match (&repair.state, news) {
            (State::Begun, _) => {}
            (State::Fetching(tag), News::Peer(known, result)) if known == *tag => {
                match result.and_then(|answer| units_of(answer, 1)) {
                    Ok((states, payload)) => {
                        // Nothing is changed while tables are compared.
                        let is_comparing = matches!(self.role, Role::Activating);
                        if !self.may_read(active.activation) || !self.is_resolved(unit, unit + 1) || is_comparing {
                            return Repaired::Ended;
                        }
                        let put = DiskJob::Put { first: unit, states, payload, key: None, needs_room: false };
                        repair.state = State::Storing(self.start(step, call, put, Job::Copy));
                        return Repaired::Pending;
                    }
                    Err(error) => {
                        repair.is_certain &= matches!(error, FsError::Corrupt(_));
                        repair.failure = Some(error);
                    }
                }
            }
            (State::Storing(tag), News::Disk(known, result)) if known == *tag => {
                return match result {
                    Ok(_) => {
                        step.note(Event::Repaired { unit });
                        Repaired::Done
                    }
                    Err(error) => Repaired::OwnDisk(error),
                };
            }
            (State::Fetching(_) | State::Storing(_), _) => return Repaired::Pending,
        }
        let Some(source) = repair.sources.pop_front() else {
            let reason =
                repair.failure.as_ref().map_or_else(|| "there is no other member".to_owned(), ToString::to_string);
            let chunk = self.chunk;
            return Repaired::Failed(FsError::Corrupt(format!(
                "chunk {chunk} unit {unit}, and no other copy: {reason}"
            )));
        };
        let request = PeerRequest::Fetch { first: unit, count: 1 };
        let until = call.attempt(step, ATTEMPT_MS);
        repair.state = State::Fetching(call.send(step, &source, active.version, request, Bytes::new(), until));
        Repaired::Pending
    }
}
