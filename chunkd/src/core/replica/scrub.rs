//! Comparing all members and repairing what differs, by order of the master; a deep one has each read its units first.
//!
//! A unit that is found damaged is left out of its server's table from then on, so the activation that follows brings it
//! from another member.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::replica_set::OrderReport;

use super::super::message::{DiskAnswer, DiskJob, Event, PeerAnswer, PeerRequest, Reply, Tag};
use super::super::reconcile::COPY_UNITS_MAX;
use super::super::write_order::Access;
use super::activation::Ready;
use super::barrier::unfit;
use super::call::{Call, Flow, Interest, News, Step, Work};
use super::change::Leave;
use super::{Active, Job, ReplicaCore};

/// A member's disk may take so long to read a MiB.
const PATIENCE_MS: u64 = 10_000;

/// A scrub of the whole chunk.
#[derive(Debug)]
pub(super) struct Scrub {
    state: State,
    /// Units that are to be read, if it is deep and they are known.
    left: Option<VecDeque<(u32, u32)>>,
    is_deep: bool,
    /// The activation to which the members were compared last.
    compared: Option<u64>,
    report: OrderReport,
}

#[derive(Debug)]
enum State {
    Begun,
    /// Until no write is under way.
    QueuedToList(Arc<Active>),
    Listing(Tag),
    QueuedToRead(Arc<Active>, (u32, u32)),
    Reading {
        own: Option<Tag>,
        others: Vec<Tag>,
    },
}

impl Scrub {
    pub fn new(is_deep: bool) -> Self {
        Self { state: State::Begun, left: None, is_deep, compared: None, report: OrderReport::default() }
    }
}

impl ReplicaCore {
    pub(super) fn scrub(&mut self, step: &mut Step<'_>, call: &mut Call, scrub: &mut Scrub, news: News) -> Flow {
        let mut news = Some(news);
        loop {
            let news = news.take().unwrap_or(News::Resume);
            match std::mem::replace(&mut scrub.state, State::Begun) {
                State::Begun => {
                    let active = match self.ensure_active(step, call) {
                        Ready::Now(active) => active,
                        Ready::Later => return Flow::Wait,
                        Ready::Never(error) => return Flow::End(Err(error)),
                        Ready::Leave(reason) => return Flow::Become(Work::Leave(Box::new(Leave::unfit(reason)))),
                    };
                    if let Some(compared) = scrub.compared
                        && compared != active.activation
                    {
                        return Flow::End(Ok(Reply::Order(scrub.found(&active))));
                    }
                    let (first, end) = match &mut scrub.left {
                        _ if !scrub.is_deep => (0, 0),
                        None => (0, self.units()),
                        Some(left) => left.front().map_or((0, 0), |(first, count)| (*first, first + count)),
                    };
                    if first == end {
                        // Everything was read: now all are compared.
                        scrub.compared = Some(active.activation);
                        self.deactivate(active.activation);
                        continue;
                    }
                    if let Err(error) = self.enter(call, first, end, Access::Read) {
                        return Flow::End(Err(error));
                    }
                    scrub.state = match &scrub.left {
                        None => State::QueuedToList(active),
                        Some(_) => State::QueuedToRead(active, (first, end - first)),
                    };
                }
                State::QueuedToList(active) => {
                    if !self.is_active(active.activation) {
                        self.give_back(call);
                        continue;
                    }
                    if !self.may_start(call) {
                        scrub.state = State::QueuedToList(active);
                        return call.wait_for(Interest::All);
                    }
                    let job = DiskJob::Extents { first: 0, count: self.units() };
                    scrub.state = State::Listing(self.start(step, call, job, Job::Look));
                    return Flow::Wait;
                }
                State::Listing(tag) => {
                    match news {
                        News::Disk(known, Ok(DiskAnswer::Extents(extents))) if known == tag => {
                            scrub.left = Some(extents.into_iter().flat_map(pieces).collect());
                        }
                        News::Disk(known, Err(error)) if known == tag => return unfit(&error),
                        _ => {
                            scrub.state = State::Listing(tag);
                            return Flow::Wait;
                        }
                    }
                    self.give_back(call);
                }
                State::QueuedToRead(active, (first, count)) => {
                    if !self.is_active(active.activation) {
                        self.give_back(call);
                        continue;
                    }
                    if !self.may_start(call) {
                        scrub.state = State::QueuedToRead(active, (first, count));
                        return call.wait_for(Interest::All);
                    }
                    let until = call.attempt(step, PATIENCE_MS);
                    let verify = PeerRequest::Verify { first, count };
                    let others = active
                        .others
                        .iter()
                        .map(|member| call.send(step, member, active.version, verify.clone(), Bytes::new(), until))
                        .collect();
                    let own = Some(self.start(step, call, DiskJob::Read { first, count }, Job::Look));
                    scrub.state = State::Reading { own, others };
                    return Flow::Wait;
                }
                State::Reading { mut own, mut others } => {
                    match news {
                        News::Disk(tag, result) if own == Some(tag) => {
                            own = None;
                            match result {
                                Ok(DiskAnswer::Units(states, _)) => self.note_read(step, scrub, &states),
                                Ok(_) => return Flow::End(Err(FsError::Protocol("units were to be read".into()))),
                                Err(error) => return unfit(&error),
                            }
                        }
                        News::Peer(tag, result) if others.contains(&tag) => {
                            others.retain(|known| *known != tag);
                            // A member that does not answer is looked after by the comparison.
                            if let Ok(PeerAnswer::Verified { checked, bad }) = result {
                                scrub.report.checked_units += u64::from(checked);
                                scrub.report.bad_units += bad.len() as u64;
                            }
                        }
                        _ => {}
                    }
                    if own.is_some() || !others.is_empty() {
                        scrub.state = State::Reading { own, others };
                        return Flow::Wait;
                    }
                    if let Some(left) = &mut scrub.left {
                        left.pop_front();
                    }
                    self.give_back(call);
                }
            }
        }
    }

    fn note_read(&self, step: &mut Step<'_>, scrub: &mut Scrub, states: &[Option<super::super::unit::UnitState>]) {
        let bad = states.iter().filter(|state| state.is_none()).count();
        scrub.report.checked_units += states.len() as u64;
        scrub.report.bad_units += bad as u64;
        let front = scrub.left.as_ref().and_then(|left| left.front());
        if let (Some(at), Some((first, _))) = (states.iter().position(Option::is_none), front) {
            step.note(Event::Damaged { unit: first + at as u32, count: bad as u32, node: step.context.node });
        }
    }
}

impl Scrub {
    /// Returns what was found, once `active` has made all equal.
    fn found(&self, active: &Active) -> OrderReport {
        let OrderReport { checked_units, bad_units, .. } = self.report;
        let differing = active.copied + active.doubts;
        OrderReport {
            copied_bytes: active.copied * u64::from(dfs_proto::limits::UNIT_SIZE),
            checked_units,
            bad_units: bad_units.max(differing),
            repaired_units: differing,
        }
    }
}

/// Cuts the units `[first, end)` into runs of one message's size.
fn pieces((first, end): (u32, u32)) -> impl Iterator<Item = (u32, u32)> {
    (first..end).step_by(COPY_UNITS_MAX as usize).map(move |at| (at, COPY_UNITS_MAX.min(end - at)))
}
