//! What other chunk servers ask of this one: to follow a primary, and for units.
//!
//! Nothing here asks a third server, and every wait is bounded: a thread that serves a peer always becomes free.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::wire::{Peer, pb};
use dfs_proto::{ChunkId, FsError, Version};

use super::barrier::sync;
use super::primary::new_header;
use super::read::check_disk;
use super::replica::{Replica, Role};
use super::shared::{Shared, store_failure};
use super::translate;
use crate::core::admission;
use crate::core::dedupe::{Fate, RequestKey};
use crate::core::follow::{Follow, Verdict};
use crate::core::reconcile::COPY_UNITS_MAX;
use crate::core::unit::{UnitState, WriteStamp};
use crate::store::StoreError;
use crate::store::chunk_file::UnitRead;
use crate::store::layout::UNIT_BYTES;
use crate::store::unit_table::Slot;

/// Takes the version, follows the peer from now on, and answers with the unit table.
pub(super) fn activate(
    shared: &Shared,
    peer: &Peer,
    request: &pb::DataRequest,
    activate: &pb::Activate,
) -> Result<pb::UnitTable, FsError> {
    let membership = shared.membership()?;
    let grant = membership.key.open(&request.grant).ok_or(FsError::Stale("the grant's seal is not ours"))?;
    let (chunk, version) = (ChunkId(request.chunk), Version(request.version));
    admission::check_member(&grant, chunk, version, membership.node, (peer.node, peer.boot))?;
    let (replica, was_there) = shared.replicas.find_or_create(&shared.store, &new_header(&grant))?;
    let deadline = shared.attempt_deadline(shared.deadline());
    let mut state = replica.lock();
    if state.is_gone {
        return Err(FsError::Stale("the chunk was deleted"));
    }
    if state.header.chunk_size_log2 != grant.chunk_size_log2 {
        return Err(FsError::Stale("the chunk has another size"));
    }
    replica.raise_version(&mut state, version)?;
    state.follow(Follow::new(peer.node, version, activate.activation));
    replica.notify(&state);
    replica.drain(&mut state, deadline)?;
    let present = was_there && !state.header.incomplete;
    let seq = state.order.last_seq();
    drop(state);
    let table = replica.open.file.table();
    check_disk(&replica)?;
    let highest = table.iter().map(|(_, state)| state.stamp.seq).max().unwrap_or(0);
    Ok(pb::UnitTable {
        present,
        version: version.0,
        seq: seq.max(highest),
        runs: translate::table_to_runs(&table),
        writes: Vec::new(),
    })
}

/// Applies a write of the primary that is followed, in its turn.
pub(super) fn prepare(
    shared: &Shared,
    peer: &Peer,
    request: &pb::DataRequest,
    prepare: &pb::Prepare,
    payload: &Bytes,
) -> Result<pb::Prepared, FsError> {
    let replica = find(shared, request)?;
    let (first, count) = (prepare.first_unit, prepare.units);
    check_units(&replica, first, count)?;
    let stamp = WriteStamp { version: Version(request.version), seq: prepare.seq };
    let states: Vec<UnitState> = if prepare.zero {
        Vec::new()
    } else {
        if prepare.crcs.len() != count as usize {
            return Err(FsError::Protocol("not a checksum for each unit".into()));
        }
        prepare.crcs.iter().map(|crc| UnitState::data(stamp, *crc)).collect()
    };
    // Before the wait for our turn, so that the threads of several writes do it side by side.
    translate::check_content(&states, payload)?;

    let deadline = shared.attempt_deadline(shared.deadline());
    let mut state = replica.lock();
    loop {
        if state.is_gone {
            return Err(FsError::Stale("the chunk was deleted"));
        }
        let follow = following(&mut state.role)?;
        follow.check(peer.node, stamp.version, prepare.activation)?;
        match follow.judge(prepare.seq, prepare.base) {
            Verdict::Apply => break,
            Verdict::Acknowledge => return Ok(pb::Prepared { seq: prepare.seq }),
            Verdict::Refuse(error) => return Err(error),
            Verdict::Wait => replica
                .wait(&mut state, deadline)
                .map_err(|_| FsError::TryAgain("an earlier write of this chunk has not come"))?,
        }
    }
    let under_way = replica.begin_change(&mut state);
    let completed = replica.mark_complete(&mut state);
    drop(state);

    let open = &replica.open;
    let change = || -> Result<(), StoreError> {
        if prepare.zero {
            return open.file.zero(first, count, stamp, None);
        }
        open.take_room(first, count)?;
        open.file.put(first, &states, payload, None)
    };
    let applied =
        completed.and_then(|()| open.disk.judge(open.disk.check().and_then(|()| change())).map_err(store_failure));

    let mut state = under_way.end();
    // `applying` kept the role: another activation waits for it. A newer number may be noted already, though.
    if let Role::Secondary(follow) = &mut state.role
        && follow.activation == prepare.activation
    {
        match &applied {
            Ok(()) => follow.done(prepare.seq),
            Err(_) => follow.failed(prepare.seq),
        }
    }
    if applied.is_ok() {
        let key = RequestKey { client: prepare.client, number: prepare.number, part: 0 };
        let fate = Fate::Applied { activation: prepare.activation, version: stamp.version, seq: prepare.seq };
        state.window.set(key, fate);
        state.order.raise(prepare.seq);
    }
    replica.notify(&state);
    applied.map(|()| pb::Prepared { seq: prepare.seq })
}

/// Syncs the replica.
pub(super) fn peer_barrier(
    shared: &Shared,
    peer: &Peer,
    request: &pb::DataRequest,
    barrier: &pb::PeerBarrier,
) -> Result<(), FsError> {
    let replica = find(shared, request)?;
    let mut state = replica.lock();
    let follow = following(&mut state.role)?;
    follow.check(peer.node, Version(request.version), barrier.activation)?;
    if !follow.has_applied(barrier.seq) {
        return Err(FsError::TryAgain("writes before the barrier have not come"));
    }
    replica.mark_complete(&mut state)?;
    drop(state);
    sync(shared, &replica)
}

/// Reads units for the primary or, by its order, for another member.
pub(super) fn fetch_units(
    shared: &Shared,
    request: &pb::DataRequest,
    fetch: &pb::FetchUnits,
) -> Result<(pb::Units, Bytes), FsError> {
    let replica = find(shared, request)?;
    check_units(&replica, fetch.first_unit, fetch.units)?;
    if fetch.units > COPY_UNITS_MAX {
        return Err(FsError::Invalid("too many units"));
    }
    if replica.lock().header.version != Version(request.version) {
        return Err(FsError::Stale("this replica has another version"));
    }
    let mut buffer = vec![0; fetch.units as usize * UNIT_BYTES];
    let reads = replica.open.file.read(fetch.first_unit, fetch.units, &mut buffer).map_err(store_failure)?;
    check_disk(&replica)?;
    let mut units = pb::Units::default();
    let mut payload = Vec::with_capacity(buffer.len());
    for ((read, content), unit) in reads.iter().zip(buffer.chunks_exact(UNIT_BYTES)).zip(fetch.first_unit..) {
        let UnitRead::Good(state) = read else {
            tracing::error!(chunk = request.chunk, unit, "a unit is damaged");
            shared.metrics.corrupt_units.inc();
            return Err(FsError::Corrupt(format!("unit {unit}")));
        };
        units.crcs.push(state.crc);
        units.versions.push(state.stamp.version.0);
        units.seqs.push(state.stamp.seq);
        units.holes.push(state.hole);
        if !state.hole {
            payload.extend_from_slice(content);
        }
    }
    Ok((units, payload.into()))
}

/// Takes units that the primary found to be newer than ours.
pub(super) fn push_units(
    shared: &Shared,
    peer: &Peer,
    request: &pb::DataRequest,
    push: &pb::PushUnits,
    payload: &Bytes,
) -> Result<(), FsError> {
    let replica = find(shared, request)?;
    let states = translate::states(&push.crcs, &push.versions, &push.seqs, &push.holes)?;
    check_units(&replica, push.first_unit, states.len() as u32)?;
    translate::check_content(&states, payload)?;
    let under_way = {
        let mut state = replica.lock();
        let follow = following(&mut state.role)?;
        follow.check(peer.node, Version(request.version), push.activation)?;
        replica.begin_change(&mut state)
    };
    let open = &replica.open;
    let pushed = || -> Result<bool, StoreError> {
        let slots = open.file.slots(push.first_unit, states.len() as u32);
        let is_newer = |slot: &Slot, pushed: &UnitState| match slot {
            Slot::Known(state) => state.stamp > pushed.stamp,
            Slot::Never | Slot::Damaged => false,
        };
        if slots.iter().zip(&states).any(|(slot, pushed)| is_newer(slot, pushed)) {
            return Ok(false);
        }
        open.file.put(push.first_unit, &states, payload, None)?;
        Ok(true)
    };
    let result = open.disk.judge(open.disk.check().and_then(|()| pushed()));
    let mut state = under_way.end();
    for unit in &states {
        state.order.raise(unit.stamp.seq);
    }
    drop(state);
    match result.map_err(store_failure)? {
        true => Ok(()),
        false => Err(FsError::TryAgain("a unit here is newer than the one that was pushed")),
    }
}

fn find(shared: &Shared, request: &pb::DataRequest) -> Result<Arc<Replica>, FsError> {
    let found = shared.replicas.find(&shared.store, ChunkId(request.chunk))?;
    found.ok_or(FsError::TryAgain("no such replica here: activate first"))
}

fn following(role: &mut Role) -> Result<&mut Follow, FsError> {
    match role {
        Role::Secondary(follow) => Ok(follow),
        Role::Idle | Role::Activating(_) | Role::Primary(_) => Err(FsError::TryAgain("activate this replica first")),
    }
}

fn check_units(replica: &Replica, first: u32, count: u32) -> Result<(), FsError> {
    let end = u64::from(first) + u64::from(count);
    if count == 0 || end > u64::from(replica.open.file.units()) {
        return Err(FsError::Invalid("units outside the chunk"));
    }
    Ok(())
}
