//! Reads at the primary: checked units, repaired from another member where damaged.
//!
//! Cost: one read of table entries, one read of data, one checksum pass. The lease and the role are looked at after the
//! data was read, so what is answered was current while the request was open.

use std::ops::Range;
use std::time::Instant;

use dfs_proto::FsError;
use dfs_proto::limits::{DATA_BYTES_MAX, UNIT_SIZE};
use dfs_proto::unit::pieces;
use dfs_proto::wire::pb;

use super::primary::{ensure_readable, fetch_units};
use super::replica::{Active, Held, Replica};
use super::shared::{Shared, store_failure};
use crate::core::admission::{Grant, unit_range};
use crate::core::unit::UnitState;
use crate::core::write_order::Access;
use crate::store::chunk_file::UnitRead;
use crate::store::layout::UNIT_BYTES;

/// Reads a range into `buffer`, and returns the answer and where in the buffer its bytes are.
pub(super) fn read(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    request: &pb::Read,
    buffer: &mut Vec<u8>,
    deadline: Instant,
) -> Result<(pb::ReadData, Range<usize>), FsError> {
    if request.length > DATA_BYTES_MAX {
        return Err(FsError::Invalid("a read above 1 MiB"));
    }
    let (first, end) = unit_range(request.offset, request.length, grant.chunk_size_log2)?;
    let states = while_current(shared, replica, grant, (first, end), deadline, |active| {
        let bytes = (end - first) as usize * UNIT_BYTES;
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        let content = &mut buffer[..bytes];
        let reads = replica.open.file.read(first, end - first, content).map_err(store_failure)?;
        let mut states = Vec::with_capacity(reads.len());
        for (at, read) in reads.iter().enumerate() {
            states.push(match read {
                UnitRead::Good(state) => *state,
                UnitRead::Bad => {
                    let content = &mut content[at * UNIT_BYTES..(at + 1) * UNIT_BYTES];
                    repair(shared, replica, active, first + at as u32, content, deadline)?
                }
            });
        }
        Ok(states)
    })?;
    Ok(answer(shared, request, first, &states, buffer))
}

/// Returns what `look` finds in the units `first..end` while no write of them is under way, and while this server was
/// their primary from before until after it looked: else it looks again, until the deadline.
fn while_current<T>(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    (first, end): (u32, u32),
    deadline: Instant,
    mut look: impl FnMut(&Active) -> Result<T, FsError>,
) -> Result<T, FsError> {
    loop {
        let active = ensure_readable(shared, replica, grant, (first, end), deadline)?;
        match attempt(shared, replica, &active, (first, end), deadline, &mut look)? {
            None if Instant::now() < deadline => {}
            None => return Err(FsError::TimedOut("the read")),
            Some(found) => return Ok(found),
        }
    }
}

/// `None`: the activation ended meanwhile.
fn attempt<T>(
    shared: &Shared,
    replica: &Replica,
    active: &Active,
    (first, end): (u32, u32),
    deadline: Instant,
    look: impl FnOnce(&Active) -> Result<T, FsError>,
) -> Result<Option<T>, FsError> {
    let mut state = replica.lock();
    let ticket = match replica.enter(&mut state, active, (first, end), Access::Read, deadline) {
        Ok(ticket) => ticket,
        Err(_) if !state.may_read(active.activation) => return Ok(None),
        Err(error) => return Err(error),
    };
    drop(state);
    let held = Held { replica, ticket, forget: None };
    let found = look(active)?;
    let is_current = {
        let state = replica.lock();
        state.may_read(active.activation) && state.is_resolved(first, end)
    };
    drop(held);
    shared.check_lease()?;
    check_disk(replica)?;
    Ok(is_current.then_some(found))
}

fn answer(
    shared: &Shared,
    request: &pb::Read,
    first: u32,
    states: &[UnitState],
    buffer: &[u8],
) -> (pb::ReadData, Range<usize>) {
    shared.metrics.read_bytes.inc_by(u64::from(request.length));
    if states.iter().all(|state| state.hole) {
        return (pb::ReadData { crcs: Vec::new(), all_zero: true }, 0..0);
    }
    let start = (request.offset - first * UNIT_SIZE) as usize;
    let data = &buffer[start..start + request.length as usize];
    let crcs = pieces(request.offset, request.length)
        .zip(states)
        .map(|((at, length), state)| {
            // The checksum of a whole unit was checked against its data a moment ago.
            if length == UNIT_BYTES { state.crc } else { crc32c::crc32c(&data[at..at + length]) }
        })
        .collect();
    (pb::ReadData { crcs, all_zero: false }, start..start + request.length as usize)
}

/// Checks, after something was read, that its disk has not failed: what a disk could not write it may show as it was before,
/// entry and data alike.
pub(super) fn check_disk(replica: &Replica) -> Result<(), FsError> {
    replica.open.disk.check().map_err(store_failure)
}

/// Reads one unit into `content`, repaired if need be. The caller holds a ticket for it.
pub(super) fn good_unit(
    shared: &Shared,
    replica: &Replica,
    active: &Active,
    unit: u32,
    content: &mut [u8],
    deadline: Instant,
) -> Result<UnitState, FsError> {
    let reads = replica.open.file.read(unit, 1, content).map_err(store_failure)?;
    check_disk(replica)?;
    match reads[0] {
        UnitRead::Good(state) => Ok(state),
        UnitRead::Bad => repair(shared, replica, active, unit, content, deadline),
    }
}

/// Fetches a damaged unit from another member into `content`, and writes it here. The caller holds a ticket for it.
fn repair(
    shared: &Shared,
    replica: &Replica,
    active: &Active,
    unit: u32,
    content: &mut [u8],
    deadline: Instant,
) -> Result<UnitState, FsError> {
    let chunk = replica.open.file.chunk();
    shared.metrics.corrupt_units.inc();
    tracing::error!(%chunk, unit, "a unit is damaged");
    // A member that is behind, which only a double fault can leave, has no good copy.
    let entry = replica.open.file.slots(unit, 1)[0].state();
    let mut failure = None;
    for member in active.others.iter() {
        let until = shared.attempt_deadline(deadline);
        match fetch_units(shared, member, chunk, active.version, (unit, 1), until) {
            Ok((states, _)) if entry.is_some_and(|entry| states[0].stamp < entry.stamp) => {
                failure = Some(FsError::Corrupt(format!("node {} has only an older one", member.node)));
            }
            Ok((states, payload)) => {
                let state = states[0];
                if state.hole {
                    content.fill(0);
                } else {
                    content.copy_from_slice(&payload);
                }
                replica.repair(active, unit, || replica.open.file.put(unit, &states, &payload, None))?;
                shared.metrics.repaired_units.inc();
                tracing::info!(%chunk, unit, from = %member.node, "repaired a unit");
                return Ok(state);
            }
            Err(error) => failure = Some(error),
        }
    }
    let reason = failure.map_or_else(|| "there is no other member".to_owned(), |error| error.to_string());
    Err(FsError::Corrupt(format!("chunk {chunk} unit {unit}, and no other copy: {reason}")))
}

/// Returns the allocated parts of a range, whole units.
pub(super) fn extents(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    request: &pb::Extents,
    deadline: Instant,
) -> Result<pb::ExtentMap, FsError> {
    let (first, end) = unit_range(request.offset, request.length, grant.chunk_size_log2)?;
    let extents = while_current(shared, replica, grant, (first, end), deadline, |_| {
        Ok(replica.open.file.extents(first, end - first))
    })?;
    let extent = |(first, end): (u32, u32)| pb::Extent { offset: first * UNIT_SIZE, length: (end - first) * UNIT_SIZE };
    Ok(pb::ExtentMap { extents: extents.into_iter().map(extent).collect() })
}
