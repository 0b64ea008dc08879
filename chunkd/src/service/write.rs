//! Writes and zeroing at the primary.
//!
//! ```text
//! activation → duplicate? → ticket (waits for overlaps) → post-image of whole units → seq → send to all members
//!            → apply here while they work → read their answers → commit in order → answer
//! ```
//!
//! Cost of an aligned write: one checksum pass over the data, one send to each member of the buffer it came in, one read
//! and one write of table entries, one write of data. Only partial units at its edges are read first.
//!
//! A write that was sent out is always applied here, whatever the members say. So if one of them is lost, the next
//! activation makes them all equal to our replica, and the write is committed by that. The exception is a member that was
//! full when last asked: it is asked alone, and if it refuses again, nobody applies the write.

use std::time::Instant;

use bytes::Bytes;
use dfs_proto::limits::{DATA_BYTES_MAX, UNIT_SIZE};
use dfs_proto::unit::verify;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::{FsError, NodeId};
use parking_lot::MutexGuard;

use super::peers::Call;
use super::primary::ensure_active;
use super::read::good_unit;
use super::replica::{Active, Held, Replica, State};
use super::shared::{Shared, store_failure};
use crate::core::admission::{Grant, Member, unit_range};
use crate::core::dedupe::{Fate, RequestKey};
use crate::core::unit::{UnitState, WriteStamp};
use crate::core::write_order::Access;
use crate::store::layout::UNIT_BYTES;

/// What is to be done to the units `[first, end)`.
struct Job<'a> {
    first: u32,
    end: u32,
    key: RequestKey,
    content: Content<'a>,
}

enum Content<'a> {
    /// These bytes at this offset in the chunk, with the checksum of each piece, checked.
    Data { offset: u32, data: &'a Bytes, crcs: &'a [u32] },
    /// All units become holes.
    Holes,
}

/// Whole units as they are after a write.
struct PostImage {
    crcs: Vec<u32>,
    payload: Bytes,
}

/// Carries a write of `data` out on all members.
pub(super) fn write(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    request: &pb::Write,
    data: &Bytes,
    deadline: Instant,
) -> Result<u64, FsError> {
    if data.len() > DATA_BYTES_MAX as usize {
        return Err(FsError::Invalid("a write above 1 MiB"));
    }
    let (first, end) = unit_range(request.offset, data.len() as u32, grant.chunk_size_log2)?;
    verify(request.offset, data, &request.crcs)
        .map_err(|piece| FsError::Corrupt(format!("piece {piece} of the write was damaged on its way")))?;
    let key = RequestKey { client: request.client, number: request.number, part: 0 };
    let content = Content::Data { offset: request.offset, data, crcs: &request.crcs };
    let seq = carry_out(shared, replica, grant, &Job { first, end, key, content }, deadline)?;
    shared.metrics.written_bytes.inc_by(data.len() as u64);
    Ok(seq)
}

/// Zeroes a range on all members: whole units become holes, the edges are written.
pub(super) fn zero(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    request: &pb::Zero,
    deadline: Instant,
) -> Result<u64, FsError> {
    let (first, end) = unit_range(request.offset, request.length, grant.chunk_size_log2)?;
    let stop = request.offset + request.length;
    // The whole units within.
    let from = request.offset.div_ceil(UNIT_SIZE);
    let to = stop / UNIT_SIZE;
    let key = |part| RequestKey { client: request.client, number: request.number, part };
    let edge = |part, unit: u32, offset: u32, end: u32| -> Result<u64, FsError> {
        let active = ensure_active(shared, replica, grant, deadline)?;
        let extents = replica.open.file.extents(unit, 1);
        if extents.is_empty() && replica.lock().is_active(active.activation) && is_quiet(replica, unit) {
            return Ok(0);
        }
        let data = Bytes::from(vec![0; (end - offset) as usize]);
        let crcs = [crc32c::crc32c(&data)];
        let content = Content::Data { offset, data: &data, crcs: &crcs };
        carry_out(shared, replica, grant, &Job { first: unit, end: unit + 1, key: key(part), content }, deadline)
    };
    if from > to {
        // Within one unit, touching neither of its ends.
        return edge(0, first, request.offset, stop);
    }
    let mut seq = 0;
    if first < from {
        seq = edge(0, first, request.offset, from * UNIT_SIZE)?;
    }
    if from < to {
        let job = Job { first: from, end: to, key: key(1), content: Content::Holes };
        seq = seq.max(carry_out(shared, replica, grant, &job, deadline)?);
    }
    if to < end {
        seq = seq.max(edge(2, to, to * UNIT_SIZE, stop)?);
    }
    Ok(seq)
}

/// Returns whether no write to `unit` is under way.
fn is_quiet(replica: &Replica, unit: u32) -> bool {
    let mut state = replica.lock();
    let Ok(ticket) = state.order.enter(unit, unit + 1, Access::Read) else { return false };
    let is_quiet = state.order.may_start(ticket);
    state.order.leave(ticket);
    is_quiet
}

fn carry_out(shared: &Shared, replica: &Replica, grant: &Grant, job: &Job, deadline: Instant) -> Result<u64, FsError> {
    loop {
        let active = ensure_active(shared, replica, grant, deadline)?;
        match attempt(shared, replica, &active, job, deadline) {
            Ok(seq) => return Ok(seq),
            Err(Attempt::Again) if Instant::now() < deadline => {}
            Err(Attempt::Again) => return Err(FsError::TimedOut("the write")),
            Err(Attempt::Lost(error)) if Instant::now() < deadline => {
                tracing::warn!(chunk = %grant.chunk, %error, "a member was lost during a write");
            }
            Err(Attempt::Lost(error) | Attempt::Failed(error)) => return Err(error),
        }
    }
}

enum Attempt {
    /// The activation ended, or a copy of the request was answered: look again.
    Again,
    /// A member did not take it; it is applied here.
    Lost(FsError),
    Failed(FsError),
}

fn attempt(shared: &Shared, replica: &Replica, active: &Active, job: &Job, deadline: Instant) -> Result<u64, Attempt> {
    let bytes = match job.content {
        Content::Data { .. } => u64::from(job.end - job.first) * UNIT_BYTES as u64,
        Content::Holes => 0,
    };
    let mut state = replica.lock();
    match state.window.look_up(job.key, active.activation, active.version) {
        None => {}
        Some(Fate::Committed { seq }) => return Ok(seq),
        Some(Fate::InFlight | Fate::Applied { .. }) => {
            replica.wait(&mut state, deadline).map_err(Attempt::Failed)?;
            return Err(Attempt::Again);
        }
    }
    state.window.set(job.key, Fate::InFlight);
    let ticket = match replica.enter(&mut state, active, (job.first, job.end), Access::Write(bytes), deadline) {
        Ok(ticket) => ticket,
        Err(error) => {
            state.window.forget(job.key);
            return Err(if state.is_active(active.activation) { Attempt::Failed(error) } else { Attempt::Again });
        }
    };
    drop(state);
    let mut held = Held { replica, ticket, forget: Some(job.key) };

    let mut suspects = Vec::new();
    if let Content::Data { .. } = job.content {
        let (first, count) = (job.first, job.end - job.first);
        let failed = |error| Attempt::Failed(store_failure(error));
        replica.open.take_room(first, count).map_err(failed)?;
        match shared.suspects(&active.others) {
            Ok(members) if members.is_empty() => {}
            // What is there may be overwritten on a full disk.
            _ if replica.open.file.is_allocated(first, count) => {}
            members => suspects = members.map_err(Attempt::Failed)?,
        }
    }
    let image = post_image(shared, replica, active, job, deadline).map_err(Attempt::Failed)?;

    let mut state = replica.lock();
    if !state.is_active(active.activation) {
        drop(state);
        return Err(Attempt::Again);
    }
    let seq = state.order.assign(ticket);
    let under_way = replica.begin_change(&mut state);
    drop(state);

    let own = shared.identity();
    let until = shared.attempt_deadline(deadline);
    let request = prepare(replica, active, job, &image, seq);
    let mut answers = Vec::new();
    if !suspects.is_empty() {
        let calls = shared.peers.send(&own, &suspects, &request, &image.payload, until);
        answers = receive(shared, calls, until);
        if answers.iter().all(|(_, answer)| matches!(answer, Err(FsError::NoSpace))) {
            answers.iter().for_each(|(node, _)| shared.note_full(*node));
            // Nobody has it. Its seq is missing now, so a new activation has to begin above it.
            let mut state = under_way.end();
            state.deactivate(active.activation);
            replica.notify(&state);
            return Err(Attempt::Failed(FsError::NoSpace));
        }
    }
    let rest: Vec<Member>;
    let others = if suspects.is_empty() {
        &active.others[..]
    } else {
        rest = active.others.iter().filter(|member| !names(&suspects, member.node)).cloned().collect();
        &rest
    };
    let calls = shared.peers.send(&own, others, &request, &image.payload, until);
    let applied = apply(replica, active, job, &image, seq);
    let mut state = under_way.end();
    if let Err(error) = applied {
        // The members may have it: compare before anything else happens.
        state.leave_unresolved(active.activation, job.first, job.end);
        replica.notify(&state);
        drop(state);
        return Err(Attempt::Failed(error));
    }
    state.window.set(job.key, Fate::Applied { activation: active.activation, version: active.version, seq });
    held.forget = None;
    replica.notify(&state);
    drop(state);

    answers.extend(receive(shared, calls, until));
    let mut failure = None;
    for (node, answer) in answers {
        match answer {
            Ok(answered) if answered == seq => {
                if names(&suspects, node) {
                    shared.note_room(node);
                }
            }
            Ok(_) => failure = Some(FsError::Protocol(format!("node {node} answered something else to a write"))),
            Err(error) => {
                if error == FsError::NoSpace {
                    shared.note_full(node);
                }
                failure = Some(error);
            }
        }
    }
    let mut state = replica.lock();
    if let Some(error) = failure {
        state.leave_unresolved(active.activation, job.first, job.end);
        replica.notify(&state);
        drop(state);
        return Err(if error == FsError::NoSpace { Attempt::Failed(error) } else { Attempt::Lost(error) });
    }
    commit(replica, &mut state, active, seq, deadline);
    state.window.set(job.key, Fate::Committed { seq });
    drop(state);
    Ok(seq)
}

fn names(members: &[Member], node: NodeId) -> bool {
    members.iter().any(|member| member.node == node)
}

/// Waits for the answers to a write: the seq that each member has applied.
fn receive(shared: &Shared, calls: Vec<Call>, until: Instant) -> Vec<(NodeId, Result<u64, FsError>)> {
    let receive_one = |call: Call| {
        let node = call.member.node;
        let answer = shared.peers.receive(call, until).map(|(reply, _)| match reply.body {
            Some(data_reply::Body::Prepared(prepared)) => prepared.seq,
            _ => 0,
        });
        (node, answer)
    };
    calls.into_iter().map(receive_one).collect()
}

/// Waits until all earlier writes are committed. All members have this one, so if the activation ends or time is up
/// meanwhile, it is committed too: nothing that comes later can undo it.
fn commit(replica: &Replica, state: &mut MutexGuard<'_, State>, active: &Active, seq: u64, deadline: Instant) {
    while state.is_active(active.activation) && !state.order.may_commit(seq) {
        if replica.wait(state, deadline).is_err() {
            return;
        }
    }
    state.committed = state.committed.max(seq);
}

fn prepare(replica: &Replica, active: &Active, job: &Job, image: &PostImage, seq: u64) -> pb::DataRequest {
    pb::DataRequest {
        chunk: replica.open.file.chunk().0,
        version: active.version.0,
        grant: Bytes::new(),
        body: Some(data_request::Body::Prepare(pb::Prepare {
            seq,
            first_unit: job.first,
            units: job.end - job.first,
            zero: matches!(job.content, Content::Holes),
            crcs: image.crcs.clone(),
            client: job.key.client,
            number: job.key.number,
            part: u32::from(job.key.part),
            activation: active.activation,
            base: active.base,
        })),
    }
}

fn apply(replica: &Replica, active: &Active, job: &Job, image: &PostImage, seq: u64) -> Result<(), FsError> {
    let stamp = WriteStamp { version: active.version, seq };
    let open = &replica.open;
    let change = || match job.content {
        Content::Holes => open.file.zero(job.first, job.end - job.first, stamp, None),
        Content::Data { .. } => {
            let states: Vec<UnitState> = image.crcs.iter().map(|crc| UnitState::data(stamp, *crc)).collect();
            open.file.put(job.first, &states, &image.payload, None)
        }
    };
    open.disk.judge(open.disk.check().and_then(|()| change())).map_err(store_failure)
}

/// Returns the whole units after the write: the caller's own bytes and checksums where it covers units.
fn post_image(
    shared: &Shared,
    replica: &Replica,
    active: &Active,
    job: &Job,
    deadline: Instant,
) -> Result<PostImage, FsError> {
    let Content::Data { offset, data, crcs } = job.content else {
        return Ok(PostImage { crcs: Vec::new(), payload: Bytes::new() });
    };
    let head = (offset % UNIT_SIZE) as usize;
    let units = (job.end - job.first) as usize;
    let tail = units * UNIT_BYTES - head - data.len();
    if head == 0 && tail == 0 {
        return Ok(PostImage { crcs: crcs.to_vec(), payload: data.clone() });
    }
    let mut image = vec![0; units * UNIT_BYTES];
    let mut crcs = crcs.to_vec();
    let is_partial = |unit: usize| (unit == 0 && head > 0) || (unit == units - 1 && tail > 0);
    let edges = || [0, units - 1].into_iter().take(if units == 1 { 1 } else { 2 }).filter(|unit| is_partial(*unit));
    for unit in edges() {
        let content = &mut image[unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES];
        good_unit(shared, replica, active, job.first + unit as u32, content, deadline)?;
    }
    image[head..head + data.len()].copy_from_slice(data);
    for unit in edges() {
        crcs[unit] = crc32c::crc32c(&image[unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES]);
    }
    Ok(PostImage { crcs, payload: image.into() })
}
