//! Writes and zeroing at the primary.
//!
//! ```text
//! activation → duplicate? → place in the order (waits for overlaps) → post-image of whole units → seq
//!            → send to all members, and apply here → their answers → commit in order → answer
//! ```
//!
//! Cost of an aligned write: one message to each member with the buffer it came in, one disk job. Only partial units at
//! its edges are read first.
//!
//! A write that was sent out is always applied here, whatever the members say. So if one of them is lost, the next
//! activation makes them all equal to our replica, and the write is committed by that. The exceptions are a member that
//! was full when last asked, and our own disk if it is about to be: these are asked first, and if they refuse, nobody
//! applies the write.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::{DATA_BYTES_MAX, UNIT_SIZE};
use dfs_proto::planted::{self, Bug};
use dfs_proto::{FsError, MonoMs, NodeId, Version};

use super::super::admission::unit_range;
use super::super::message::{DiskAnswer, DiskJob, PeerAnswer, PeerRequest, Prepare, Reply, Tag};
use super::super::unit::{UnitState, WriteStamp};
use super::super::write_order::Access;
use super::activation::Ready;
use super::barrier::unfit;
use super::call::{ATTEMPT_MS, Call, Flow, Interest, News, Step, Work};
use super::change::Leave;
use super::dedupe::{Fate, RequestKey};
use super::image::{Content, Image, Part, image_of};
use super::repair::{Repair, Repaired};
use super::{Active, Job, ReplicaCore};

/// After a member said that it is full, writes to its chunks that need room are refused without asking it for this long.
/// What it refuses while others take it must be brought to it by the next activation all the same, and eats up its reserve;
/// so afterwards it is asked alone, until it takes a write.
const FULL_MS: u64 = 5_000;

/// A request to change units: one write, or for zeroing up to three.
#[derive(Debug)]
pub(super) struct Write {
    /// What is left to do; the first is under way.
    parts: VecDeque<Part>,
    /// The last seq that was used.
    seq: u64,
    /// The lowest version under which all members were found to have a part.
    version: Option<Version>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Until this replica is active, and no copy of the request is being worked on.
    Begun,
    /// Until its turn has come.
    Queued(Arc<Active>),
    /// Until it is known whether it needs room.
    Measuring(Arc<Active>, Tag),
    /// Until the partial units at its edges were read: which are left, and what was read.
    Reading {
        active: Arc<Active>,
        suspects: Vec<NodeId>,
        left: Vec<u32>,
        edges: Vec<(u32, UnitState, Bytes)>,
        tag: Tag,
    },
    /// Until a damaged one was repaired.
    Repairing {
        active: Arc<Active>,
        suspects: Vec<NodeId>,
        left: Vec<u32>,
        edges: Vec<(u32, UnitState, Bytes)>,
        repair: Repair,
    },
    /// Until those have answered that may have no room.
    Probing(Sent),
    /// Until all members and our disk have it.
    Sent(Sent),
    /// All have it; until earlier ones are committed.
    Committing(Arc<Active>, WriteStamp),
}

/// A write that was sent out.
#[derive(Debug)]
struct Sent {
    active: Arc<Active>,
    stamp: WriteStamp,
    image: Image,
    /// Members that were full when they were last asked.
    suspects: Vec<NodeId>,
    /// Answers that are still to come.
    awaited: Vec<(Tag, NodeId)>,
    until: MonoMs,
    put: Option<Tag>,
    full: Vec<NodeId>,
    /// A member did not take it, for another reason than want of room.
    is_failed: bool,
}

impl Write {
    /// Returns the write of `data` at `offset`.
    pub fn data(offset: u32, crcs: Vec<u32>, data: Bytes, key: RequestKey, size_log2: u32) -> Result<Self, FsError> {
        if data.len() > DATA_BYTES_MAX as usize {
            return Err(FsError::Invalid("a write above 1 MiB"));
        }
        let (first, end) = unit_range(offset, data.len() as u32, size_log2)?;
        if crcs.len() != (end - first) as usize {
            return Err(FsError::Invalid("not a checksum for each piece"));
        }
        Ok(Self::new([Part { first, end, key, content: Content::Data { offset, data, crcs } }]))
    }

    /// Returns the zeroing of a range: whole units become holes, the edges are written.
    pub fn zero(offset: u32, length: u32, key: RequestKey, size_log2: u32) -> Result<Self, FsError> {
        let (first, end) = unit_range(offset, length, size_log2)?;
        let stop = offset + length;
        // The whole units within.
        let (from, to) = (offset.div_ceil(UNIT_SIZE), stop / UNIT_SIZE);
        let edge = |part, unit, offset, end| Part {
            first: unit,
            end: unit + 1,
            key: RequestKey { part, ..key },
            content: Content::Zeros { offset, end },
        };
        if from > to {
            // Within one unit, touching neither of its ends.
            return Ok(Self::new([edge(0, first, offset, stop)]));
        }
        let head = (first < from).then(|| edge(0, first, offset, from * UNIT_SIZE));
        let holes = (from < to).then_some(Part {
            first: from,
            end: to,
            key: RequestKey { part: 1, ..key },
            content: Content::Holes,
        });
        let tail = (to < end).then(|| edge(2, to, to * UNIT_SIZE, stop));
        Ok(Self::new(head.into_iter().chain(holes).chain(tail)))
    }

    fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { parts: parts.into_iter().collect(), seq: 0, version: None, state: State::Begun }
    }

    /// Notes that all members have a part.
    fn note_committed(&mut self, seq: u64, version: Version) {
        self.seq = self.seq.max(seq);
        self.version = Some(self.version.map_or(version, |lowest| lowest.min(version)));
    }

    fn reply(&self) -> Reply {
        Reply::Written { seq: self.seq, version: self.version.unwrap_or_default() }
    }

    /// Returns who asked for what is left to do.
    pub fn keys(&self) -> impl Iterator<Item = RequestKey> {
        self.parts.iter().map(|part| part.key)
    }
}

/// How an attempt goes on.
enum Turn {
    /// At once, from the state it is in.
    Again,
    Flow(Flow),
}

impl ReplicaCore {
    pub(super) fn write(&mut self, step: &mut Step<'_>, call: &mut Call, write: &mut Write, news: News) -> Flow {
        let mut news = Some(news);
        loop {
            let news = news.take().unwrap_or(News::Resume);
            let turn = match std::mem::replace(&mut write.state, State::Begun) {
                State::Begun => self.begin_part(step, call, write),
                State::Queued(active) => self.queued(step, call, write, active),
                State::Measuring(active, tag) => self.measured(step, call, write, active, tag, news),
                State::Reading { active, suspects, left, edges, tag } => {
                    self.edge_read(step, call, write, (active, suspects, left, edges), tag, news)
                }
                State::Repairing { active, suspects, left, edges, mut repair } => {
                    match self.repair(step, call, &active, &mut repair, news) {
                        Repaired::Pending => {
                            write.state = State::Repairing { active, suspects, left, edges, repair };
                            Turn::Flow(Flow::Wait)
                        }
                        Repaired::Done => self.read_edges(step, call, write, (active, suspects, left, edges)),
                        Repaired::Ended => self.again(call, write),
                        Repaired::Failed(error) => self.fail(call, write, error),
                        Repaired::OwnDisk(error) => self.unfit_for(call, write, &error),
                    }
                }
                State::Probing(sent) => self.probed(step, call, write, sent, news),
                State::Sent(sent) => self.answered(step, call, write, sent, news),
                State::Committing(active, stamp) => self.commit(call, write, active, stamp),
            };
            match turn {
                Turn::Again => {}
                Turn::Flow(flow) => return flow,
            }
        }
    }

    /// Ends a write whose time is up.
    pub(super) fn write_timed_out(&mut self, write: &mut Write) -> Result<Reply, FsError> {
        match (&write.state, write.parts.front()) {
            // All members have it, so nothing that comes later can undo it.
            (State::Committing(active, stamp), _) if write.parts.len() == 1 => {
                let (seq, version) = (stamp.seq, active.version);
                write.note_committed(seq, version);
                return Ok(write.reply());
            }
            (State::Probing(sent) | State::Sent(sent), Some(part)) => {
                self.leave_unresolved(sent.active.activation, part.first, part.end);
                if sent.put.is_none() {
                    self.window.forget(part.key);
                }
            }
            (State::Begun | State::Committing(..), _) | (_, None) => {}
            (_, Some(part)) => self.window.forget(part.key),
        }
        Err(FsError::TimedOut("the write"))
    }

    fn begin_part(&mut self, step: &mut Step<'_>, call: &mut Call, write: &mut Write) -> Turn {
        let Some(part) = write.parts.front() else {
            return Turn::Flow(Flow::End(Ok(write.reply())));
        };
        let active = match self.ensure_active(step, call) {
            Ready::Now(active) => active,
            Ready::Later => return Turn::Flow(Flow::Wait),
            Ready::Never(error) => return Turn::Flow(Flow::End(Err(error))),
            Ready::Leave(reason) => return Turn::Flow(Flow::Become(Work::Leave(Box::new(Leave::unfit(reason))))),
        };
        if let Err(error) = active.may_acknowledge() {
            return Turn::Flow(Flow::End(Err(error)));
        }
        match self.window.look_up(part.key, active.activation) {
            None => {}
            Some(Fate::Committed { stamp }) => {
                // All have it now, whatever was lost since it was applied.
                write.note_committed(stamp.seq, active.version);
                write.parts.pop_front();
                return Turn::Again;
            }
            Some(Fate::InFlight | Fate::Applied { .. }) => return Turn::Flow(call.wait_for(Interest::All)),
            Some(Fate::Forgotten) => {
                let reason = "the write comes so late that nobody knows whether it was applied before";
                return Turn::Flow(Flow::End(Err(FsError::Io(reason.into()))));
            }
        }
        let bytes = match part.content {
            Content::Holes => 0,
            Content::Data { .. } | Content::Zeros { .. } => u64::from(part.end - part.first) * u64::from(UNIT_SIZE),
        };
        if let Err(error) = self.enter(call, part.first, part.end, Access::Write(bytes)) {
            return Turn::Flow(Flow::End(Err(error)));
        }
        self.window.set(part.key, Fate::InFlight);
        write.state = State::Queued(active);
        Turn::Again
    }

    fn queued(&mut self, step: &mut Step<'_>, call: &mut Call, write: &mut Write, active: Arc<Active>) -> Turn {
        if !self.is_active(active.activation) {
            return self.again(call, write);
        }
        if !self.may_start(call) {
            write.state = State::Queued(active);
            return Turn::Flow(call.wait_for(Interest::All));
        }
        let part = &write.parts[0];
        let (first, count) = (part.first, part.end - part.first);
        let needs_room = matches!(part.content, Content::Data { .. });
        let is_short = step.context.disk_room < u64::from(count) * u64::from(UNIT_SIZE);
        if needs_room && (is_short || !self.full.is_empty()) {
            let tag = self.start(step, call, DiskJob::Extents { first, count }, Job::Look);
            write.state = State::Measuring(active, tag);
            return Turn::Flow(Flow::Wait);
        }
        self.make_image(step, call, write, active, Vec::new())
    }

    /// What holds data already may be overwritten on a full disk; else whoever may be full is asked before the others.
    fn measured(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        active: Arc<Active>,
        tag: Tag,
        news: News,
    ) -> Turn {
        let extents = match news {
            News::Disk(known, Ok(DiskAnswer::Extents(extents))) if known == tag => extents,
            News::Disk(known, Err(error)) if known == tag => return self.unfit_for(call, write, &error),
            _ => {
                write.state = State::Measuring(active, tag);
                return Turn::Flow(Flow::Wait);
            }
        };
        let part = &write.parts[0];
        let is_allocated = matches!(extents[..], [(first, end)] if first <= part.first && part.end <= end);
        let mut suspects = Vec::new();
        if !is_allocated {
            if step.context.disk_room < u64::from(part.end - part.first) * u64::from(UNIT_SIZE) {
                return self.fail(call, write, FsError::NoSpace);
            }
            for node in active.others.iter().map(|member| member.node) {
                match self.full.get(&node) {
                    Some(until) if *until > step.now() => return self.fail(call, write, FsError::NoSpace),
                    Some(_) => suspects.push(node),
                    None => {}
                }
            }
        }
        self.make_image(step, call, write, active, suspects)
    }

    // ------------------------------------------------------------------------------------------------ post-image

    fn make_image(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        active: Arc<Active>,
        suspects: Vec<NodeId>,
    ) -> Turn {
        let part = &write.parts[0];
        let (offset, end) = match &part.content {
            Content::Holes => {
                return self.send_out(step, call, write, active, suspects, Image { holes: true, ..Image::default() });
            }
            Content::Data { offset, data, .. } => (*offset, offset + data.len() as u32),
            Content::Zeros { offset, end } => (*offset, *end),
        };
        let mut left = Vec::new();
        if end % UNIT_SIZE != 0 {
            left.push(part.end - 1);
        }
        if offset % UNIT_SIZE != 0 && !left.contains(&part.first) {
            left.push(part.first);
        }
        self.read_edges(step, call, write, (active, suspects, left, Vec::new()))
    }

    /// Reads the next of the partial units that are `left`; sends the write out once there is none.
    fn read_edges(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        (active, suspects, left, edges): Edges,
    ) -> Turn {
        let Some(unit) = left.last() else {
            let image = image_of(&write.parts[0], &edges);
            return self.send_out(step, call, write, active, suspects, image);
        };
        let tag = self.start(step, call, DiskJob::Read { first: *unit, count: 1 }, Job::Look);
        write.state = State::Reading { active, suspects, left, edges, tag };
        Turn::Flow(Flow::Wait)
    }

    fn edge_read(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        (active, suspects, mut left, mut edges): Edges,
        tag: Tag,
        news: News,
    ) -> Turn {
        match news {
            News::Disk(known, Ok(DiskAnswer::Units(states, content))) if known == tag && states.len() == 1 => {
                let Some(unit) = left.last().copied() else { return Turn::Again };
                match states[0] {
                    Some(state) => {
                        left.pop();
                        edges.push((unit, state, content));
                        self.read_edges(step, call, write, (active, suspects, left, edges))
                    }
                    None => {
                        let repair = Repair::new(step, &active, unit);
                        write.state = State::Repairing { active, suspects, left, edges, repair };
                        Turn::Again
                    }
                }
            }
            News::Disk(known, Err(error)) if known == tag => self.unfit_for(call, write, &error),
            _ => {
                write.state = State::Reading { active, suspects, left, edges, tag };
                Turn::Flow(Flow::Wait)
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ sending

    fn send_out(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        active: Arc<Active>,
        suspects: Vec<NodeId>,
        image: Image,
    ) -> Turn {
        let Some(ticket) = call.ticket.filter(|_| self.is_active(active.activation)) else {
            return self.again(call, write);
        };
        let stamp = WriteStamp { version: active.version, seq: self.order.assign(ticket) };
        let until = call.attempt(step, ATTEMPT_MS);
        let mut sent = Sent {
            active: Arc::clone(&active),
            stamp,
            image,
            suspects,
            awaited: Vec::with_capacity(active.others.len()),
            until,
            put: None,
            full: Vec::new(),
            is_failed: false,
        };
        let part = &write.parts[0];
        let is_probe = !sent.suspects.is_empty();
        for member in active.others.iter().filter(|member| !is_probe || sent.suspects.contains(&member.node)) {
            let prepare = prepare(part, &sent, active.activation);
            let payload = sent.image.payload.clone();
            let tag = call.send(step, member, active.version, PeerRequest::Prepare(prepare), payload, until);
            sent.awaited.push((tag, member.node));
        }
        if is_probe {
            write.state = State::Probing(sent);
        } else {
            self.apply(step, call, part, &mut sent);
            write.state = State::Sent(sent);
        }
        Turn::Flow(Flow::Wait)
    }

    /// Sends a write to those that are being filled, and applies it here.
    fn apply(&mut self, step: &mut Step<'_>, call: &mut Call, part: &Part, sent: &mut Sent) {
        let active = Arc::clone(&sent.active);
        for member in &active.syncing {
            // Nobody waits for its answer: what it misses is found when it is compared.
            if let Some(number) = self.filling.get(&member.node) {
                let prepare = prepare(part, sent, *number);
                let payload = sent.image.payload.clone();
                call.send(step, member, active.version, PeerRequest::Prepare(prepare), payload, sent.until);
            }
        }
        let (first, count, stamp) = (part.first, part.end - part.first, sent.stamp);
        let key = part.key.stamped(stamp);
        self.has_noted = true;
        let job = if sent.image.holes {
            DiskJob::Zero { first, count, stamp, key }
        } else {
            let crcs = std::mem::take(&mut sent.image.crcs);
            let states = crcs.into_iter().map(|crc| UnitState::data(stamp, crc)).collect();
            let payload = std::mem::take(&mut sent.image.payload);
            DiskJob::Put { first, states, payload, key, needs_room: true }
        };
        let job_of = Job::Write { key: part.key, stamp, activation: active.activation };
        sent.put = Some(self.start(step, call, job, job_of));
    }

    /// Takes in an answer to a write of those that may have no room.
    fn probed(&mut self, step: &mut Step<'_>, call: &mut Call, write: &mut Write, mut sent: Sent, news: News) -> Turn {
        let is_taken = self.note_answer(step, &mut sent, news);
        if !is_taken && !sent.awaited.is_empty() {
            write.state = State::Probing(sent);
            return Turn::Flow(Flow::Wait);
        }
        if sent.full.len() == sent.suspects.len() {
            // Nobody has it. Its seq is missing now, so a new activation has to begin above it.
            self.deactivate(sent.active.activation);
            return self.fail(call, write, FsError::NoSpace);
        }
        if !self.is_active(sent.active.activation) {
            // Whoever has it tells the next activation.
            return self.again(call, write);
        }
        // One has it, so it must be everywhere.
        let part = &write.parts[0];
        let active = Arc::clone(&sent.active);
        for member in active.others.iter().filter(|member| !sent.suspects.contains(&member.node)) {
            let prepare = prepare(part, &sent, active.activation);
            let payload = sent.image.payload.clone();
            let tag = call.send(step, member, active.version, PeerRequest::Prepare(prepare), payload, sent.until);
            sent.awaited.push((tag, member.node));
        }
        self.apply(step, call, part, &mut sent);
        write.state = State::Sent(sent);
        Turn::Flow(Flow::Wait)
    }

    /// Takes in an answer to a write, and returns whether a member has taken it.
    fn note_answer(&mut self, step: &Step<'_>, sent: &mut Sent, news: News) -> bool {
        let News::Peer(tag, result) = news else { return false };
        let Some(at) = sent.awaited.iter().position(|(known, _)| *known == tag) else { return false };
        let (_, node) = sent.awaited.swap_remove(at);
        let reason = match result {
            Ok(PeerAnswer::Prepared { seq }) if seq == sent.stamp.seq => {
                self.full.remove(&node);
                return true;
            }
            Err(FsError::NoSpace) => {
                sent.full.push(node);
                self.full.insert(node, step.now().plus(FULL_MS));
                return false;
            }
            Ok(_) => "it answered something else to a write".to_owned(),
            Err(error) => error.to_string(),
        };
        sent.is_failed = true;
        if step.now() >= sent.until {
            // It was silent: it is not asked again. One that refused may be restarting, and is.
            self.lost.insert(node, reason);
        }
        false
    }

    /// Takes in that a member or the disk has the write.
    fn answered(
        &mut self,
        step: &mut Step<'_>,
        call: &mut Call,
        write: &mut Write,
        mut sent: Sent,
        news: News,
    ) -> Turn {
        let (first, end) = (write.parts[0].first, write.parts[0].end);
        let activation = sent.active.activation;
        match news {
            News::Disk(tag, result) if sent.put == Some(tag) => {
                sent.put = None;
                if let Err(error) = result {
                    // The members may have it: compare before anything else happens.
                    self.leave_unresolved(activation, first, end);
                    if error == FsError::NoSpace {
                        return self.fail(call, write, error);
                    }
                    return self.unfit_for(call, write, &error);
                }
                if planted::is(Bug::AcknowledgedEarly) {
                    sent.awaited.clear();
                }
            }
            news => _ = self.note_answer(step, &mut sent, news),
        }
        if sent.is_failed {
            self.deactivate(activation);
        }
        if sent.put.is_some() {
            write.state = State::Sent(sent);
            return Turn::Flow(Flow::Wait);
        }
        if sent.is_failed || (!sent.awaited.is_empty() && !self.is_active(activation)) {
            // The next activation brings it to all, or to those that are left. Until then nobody may see it.
            self.leave_unresolved(activation, first, end);
            return self.again(call, write);
        }
        if !sent.awaited.is_empty() {
            write.state = State::Sent(sent);
            return Turn::Flow(call.wait_for(Interest::Role));
        }
        if !sent.full.is_empty() {
            return self.refused_by_full(step, call, write, &sent);
        }
        write.state = State::Committing(Arc::clone(&sent.active), sent.stamp);
        Turn::Again
    }

    /// Goes on after members had no room for what the others have taken: they are dropped, unless too few are left then.
    fn refused_by_full(&mut self, step: &Step<'_>, call: &mut Call, write: &mut Write, sent: &Sent) -> Turn {
        let (first, end) = (write.parts[0].first, write.parts[0].end);
        self.leave_unresolved(sent.active.activation, first, end);
        let left = sent
            .active
            .others
            .iter()
            .filter(|member| !sent.full.contains(&member.node) && !self.lost.contains_key(&member.node));
        if (left.count() as u32) + 1 >= sent.active.min_in_sync.max(1) && step.now() < call.deadline {
            self.lost.extend(sent.full.iter().map(|node| (*node, "it has no room".to_owned())));
            return self.again(call, write);
        }
        self.fail(call, write, FsError::NoSpace)
    }

    /// Waits until all earlier writes are committed. All members have this one, so if the activation ends meanwhile, it is
    /// committed too: nothing that comes later can undo it.
    fn commit(&mut self, call: &mut Call, write: &mut Write, active: Arc<Active>, stamp: WriteStamp) -> Turn {
        if self.is_active(active.activation) {
            if !self.order.may_commit(stamp.seq) {
                write.state = State::Committing(active, stamp);
                return Turn::Flow(call.wait_for(Interest::All));
            }
            self.committed = self.committed.max(stamp.seq);
        }
        if let Some(part) = write.parts.pop_front() {
            self.window.set(part.key, Fate::Committed { stamp });
        }
        write.note_committed(stamp.seq, active.version);
        self.give_back(call);
        Turn::Again
    }

    // ------------------------------------------------------------------------------------------------ ends

    /// Begins the part again, under the next activation.
    fn again(&mut self, call: &mut Call, write: &mut Write) -> Turn {
        self.forget_part(call, write);
        Turn::Again
    }

    fn fail(&mut self, call: &mut Call, write: &mut Write, error: FsError) -> Turn {
        self.forget_part(call, write);
        Turn::Flow(Flow::End(Err(error)))
    }

    fn unfit_for(&mut self, call: &mut Call, write: &mut Write, error: &FsError) -> Turn {
        self.forget_part(call, write);
        Turn::Flow(unfit(error))
    }

    /// Gives up what the part holds. Whether it was applied here is noted with its disk job.
    fn forget_part(&mut self, call: &mut Call, write: &mut Write) {
        if let Some(part) = write.parts.front() {
            self.window.forget(part.key);
        }
        write.state = State::Begun;
        self.give_back(call);
    }
}

type Edges = (Arc<Active>, Vec<NodeId>, Vec<u32>, Vec<(u32, UnitState, Bytes)>);

fn prepare(part: &Part, sent: &Sent, activation: u64) -> Prepare {
    Prepare {
        seq: sent.stamp.seq,
        first: part.first,
        count: part.end - part.first,
        zero: sent.image.holes,
        crcs: sent.image.crcs.clone(),
        client: part.key.client,
        number: part.key.number,
        part: part.key.part,
        activation,
        base: sent.active.base,
    }
}
