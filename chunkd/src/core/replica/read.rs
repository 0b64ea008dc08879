//! Reads at the primary: checked units, repaired from another member where damaged.
//!
//! Cost: one disk job. The lease and the role are looked at after the data was read, so what is answered was current
//! while the request was open.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::limits::{DATA_BYTES_MAX, UNIT_SIZE};
use dfs_proto::planted::{self, Bug};
use dfs_proto::unit::pieces;

use super::super::admission::unit_range;
use super::super::message::{DiskAnswer, DiskJob, Reply, Tag};
use super::super::unit::UnitState;
use super::super::write_order::Access;
use super::activation::Ready;
use super::barrier::unfit;
use super::call::{Call, Flow, Interest, News, Step, Work};
use super::change::Leave;
use super::repair::{Repair, Repaired};
use super::{Active, Job, ReplicaCore, Role};

/// A look at the units `[first, end)`, while no write of them is under way.
#[derive(Debug)]
pub(super) struct Look {
    first: u32,
    end: u32,
    wanted: Wanted,
    state: State,
}

#[derive(Debug)]
enum Wanted {
    Data { offset: u32, length: u32 },
    Extents,
}

#[derive(Debug)]
enum State {
    /// Until this replica may be read.
    Begun,
    /// Until its turn has come.
    Queued(Arc<Active>),
    Reading(Arc<Active>, Tag),
    /// Until a damaged unit may be touched.
    QueuedToRepair(Arc<Active>, u32),
    Repairing(Arc<Active>, Repair),
}

impl Look {
    /// Returns the read of a range.
    pub fn data(offset: u32, length: u32, size_log2: u32) -> Result<Self, FsError> {
        if length > DATA_BYTES_MAX {
            return Err(FsError::Invalid("a read above 1 MiB"));
        }
        let (first, end) = unit_range(offset, length, size_log2)?;
        Ok(Self { first, end, wanted: Wanted::Data { offset, length }, state: State::Begun })
    }

    /// Returns the question which parts of a range hold data.
    pub fn extents(offset: u32, length: u32, size_log2: u32) -> Result<Self, FsError> {
        let (first, end) = unit_range(offset, length, size_log2)?;
        Ok(Self { first, end, wanted: Wanted::Extents, state: State::Begun })
    }
}

impl ReplicaCore {
    pub(super) fn look(&mut self, step: &mut Step<'_>, call: &mut Call, look: &mut Look, news: News) -> Flow {
        let mut news = Some(news);
        let (first, end) = (look.first, look.end);
        loop {
            let news = news.take().unwrap_or(News::Resume);
            match std::mem::replace(&mut look.state, State::Begun) {
                State::Begun => {
                    let active = match self.ensure_readable(step, call, first, end) {
                        Ready::Now(active) => active,
                        Ready::Later => return Flow::Wait,
                        Ready::Never(error) => return Flow::End(Err(error)),
                        Ready::Leave(reason) => return Flow::Become(Work::Leave(Box::new(Leave::unfit(reason)))),
                    };
                    if let Err(error) = self.enter(call, first, end, Access::Read) {
                        return Flow::End(Err(error));
                    }
                    look.state = State::Queued(active);
                }
                State::Queued(active) => {
                    if !self.may_read(active.activation) {
                        self.give_back(call);
                        continue;
                    }
                    if !self.may_start(call) && !planted::is(Bug::DirtyRead) {
                        look.state = State::Queued(active);
                        return call.wait_for(Interest::All);
                    }
                    let count = end - first;
                    let job = match look.wanted {
                        Wanted::Data { .. } => DiskJob::Read { first, count },
                        Wanted::Extents => DiskJob::Extents { first, count },
                    };
                    let tag = self.start(step, call, job, Job::Look);
                    look.state = State::Reading(active, tag);
                    return Flow::Wait;
                }
                State::Reading(active, tag) => {
                    let answer = match news {
                        News::Disk(known, Ok(answer)) if known == tag => answer,
                        News::Disk(known, Err(error)) if known == tag => {
                            self.give_back(call);
                            return unfit(&error);
                        }
                        _ => {
                            look.state = State::Reading(active, tag);
                            return Flow::Wait;
                        }
                    };
                    let bad = match &answer {
                        DiskAnswer::Units(states, _) => states.iter().position(Option::is_none),
                        DiskAnswer::Table(_) | DiskAnswer::Extents(_) | DiskAnswer::Done => None,
                    };
                    let is_current = self.may_read(active.activation)
                        && (self.is_resolved(first, end) || planted::is(Bug::DirtyRead));
                    self.give_back(call);
                    if !step.has_lease() && !planted::is(Bug::NoLeaseCheckOnRead) {
                        return Flow::End(Err(FsError::TryAgain("this server has no valid lease")));
                    }
                    if !is_current {
                        continue;
                    }
                    let Some(bad) = bad else { return Flow::End(look.answer(answer)) };
                    if matches!(self.role, Role::Activating) {
                        // The comparison looks after it, or it is repaired afterwards.
                        return call.wait_for(Interest::Role);
                    }
                    // Others may be reading it: it is repaired when they are done.
                    let unit = first + bad as u32;
                    if let Err(error) = self.enter(call, unit, unit + 1, Access::Write(u64::from(UNIT_SIZE))) {
                        return Flow::End(Err(error));
                    }
                    look.state = State::QueuedToRepair(active, unit);
                }
                State::QueuedToRepair(active, unit) => {
                    if !self.may_read(active.activation) || !self.is_resolved(unit, unit + 1) {
                        self.give_back(call);
                        continue;
                    }
                    if !self.may_start(call) {
                        look.state = State::QueuedToRepair(active, unit);
                        return call.wait_for(Interest::All);
                    }
                    let repair = Repair::new(step, &active, unit);
                    look.state = State::Repairing(active, repair);
                }
                State::Repairing(active, mut repair) => match self.repair(step, call, &active, &mut repair, news) {
                    Repaired::Pending => {
                        look.state = State::Repairing(active, repair);
                        return Flow::Wait;
                    }
                    Repaired::Done | Repaired::Ended => self.give_back(call),
                    Repaired::Failed(error) => return Flow::End(Err(error)),
                    Repaired::OwnDisk(error) => {
                        self.give_back(call);
                        return unfit(&error);
                    }
                },
            }
        }
    }
}

impl Look {
    fn answer(&self, found: DiskAnswer) -> Result<Reply, FsError> {
        match (&self.wanted, found) {
            (Wanted::Extents, DiskAnswer::Extents(extents)) => Ok(Reply::Extents(extents)),
            (Wanted::Data { offset, length }, DiskAnswer::Units(states, content)) => {
                Ok(data(*offset, *length, self.first, &states, &content))
            }
            _ => Err(FsError::Protocol("the disk answered something else".into())),
        }
    }
}

/// Returns the bytes `[offset, offset + length)` of what was read from unit `first` on.
fn data(offset: u32, length: u32, first: u32, states: &[Option<UnitState>], content: &Bytes) -> Reply {
    if states.iter().flatten().all(|state| state.hole) {
        return Reply::Data { crcs: Vec::new(), data: Bytes::new() };
    }
    let start = (offset - first * UNIT_SIZE) as usize;
    let data = content.slice(start..start + length as usize);
    let crcs = pieces(offset, length)
        .zip(states.iter().flatten())
        .map(|((at, length), state)| {
            // The checksum of a whole unit was checked against its data a moment ago.
            if length == UNIT_SIZE as usize { state.crc } else { crc32c::crc32c(&data[at..at + length]) }
        })
        .collect();
    Reply::Data { crcs, data }
}
