//! Becoming the active primary of a chunk: every other member takes the version, then all are made equal.
//!
//! One round trip to all members in parallel (their tables come back), then pulls and pushes for what differs: nothing
//! as a rule. Writes that an earlier activation left unanswered are in our own replica or nowhere, so afterwards they are
//! everywhere or nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::env::random_u64;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::{ChunkId, FsError, Version};
use parking_lot::MutexGuard;

use super::read::check_disk;
use super::replica::{Active, Replica, Role, State};
use super::shared::{Shared, store_failure};
use super::translate;
use crate::core::admission::{self, Grant, Member};
use crate::core::reconcile::{self, Copy, Table};
use crate::core::unit::{SEQ_MAX, UnitState};
use crate::store::chunk_file::UnitRead;
use crate::store::header::Header;
use crate::store::layout::UNIT_BYTES;

const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Checks that a request of a mount or the master may be served here, and returns the replica it is for.
pub(super) fn admit(shared: &Shared, request: &pb::DataRequest) -> Result<(Arc<Replica>, Arc<Grant>), FsError> {
    shared.check_lease()?;
    let (chunk, version) = (ChunkId(request.chunk), Version(request.version));
    if let Some(replica) = shared.replicas.find_open(chunk) {
        let known = match &replica.lock().verified {
            Some((bytes, grant)) if *bytes == request.grant && grant.version == version => Some(Arc::clone(grant)),
            _ => None,
        };
        if let Some(grant) = known {
            return Ok((replica, grant));
        }
    }
    let membership = shared.membership()?;
    let grant = membership.key.open(&request.grant).ok_or(FsError::Stale("the grant's seal is not ours"))?;
    let grant = Arc::new(grant);
    admission::check_primary(&grant, chunk, version, membership.node, shared.boot)?;
    let (replica, _) = shared.replicas.find_or_create(&shared.store, &new_header(&grant))?;
    let mut state = replica.lock();
    if state.header.chunk_size_log2 != grant.chunk_size_log2 {
        return Err(FsError::Stale("the chunk has another size"));
    }
    if version < state.header.version {
        // Not even noted: an activation under a newer grant may be under way.
        return Err(FsError::Stale("this replica has a newer version"));
    }
    // The bytes are part of a whole frame: keep a copy of their own.
    state.verified = Some((Bytes::copy_from_slice(&request.grant), Arc::clone(&grant)));
    drop(state);
    Ok((replica, grant))
}

/// Returns the header of a replica that is made for `grant`.
pub(super) fn new_header(grant: &Grant) -> Header {
    Header {
        chunk: grant.chunk,
        version: grant.version,
        home: grant.home,
        chunk_size_log2: grant.chunk_size_log2,
        incomplete: !grant.may_create,
    }
}

/// Returns the right to serve, activating the replica if it has none: again and again until the deadline.
pub(super) fn ensure_active(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    deadline: Instant,
) -> Result<Active, FsError> {
    let mut pause = RETRY_FIRST;
    loop {
        let number = match begin(shared, replica, grant, deadline)? {
            Begun::Is(active) => return Ok(active),
            Begun::Now(number) => number,
        };
        let unfinished = Unfinished { replica, number };
        let outcome = activate(shared, replica, grant, number, deadline);
        std::mem::forget(unfinished);
        let mut state = replica.lock();
        let is_ours = matches!(state.role, Role::Activating(current) if current == number);
        let outcome = match outcome {
            Ok(highest_seq) if is_ours => finish(shared, replica, &mut state, grant, number, highest_seq),
            Ok(_) => Err(FsError::TryAgain("another server became primary meanwhile")),
            Err(error) => Err(error),
        };
        if outcome.is_err() && is_ours {
            state.role = Role::Idle;
        }
        replica.notify(&state);
        drop(state);
        match outcome {
            Ok(active) => return Ok(active),
            Err(error @ (FsError::NoReplica(_) | FsError::TryAgain(_) | FsError::TimedOut(_)))
                if Instant::now() + pause < deadline =>
            {
                tracing::debug!(chunk = %grant.chunk, %error, "activation failed, trying again");
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_MAX);
            }
            Err(error) => {
                tracing::warn!(chunk = %grant.chunk, version = %grant.version, %error, "activation failed");
                return Err(error);
            }
        }
    }
}

/// Returns the right to read units `[first, end)`: the one of the last activation, even if a member was lost since.
pub(super) fn ensure_readable(
    shared: &Shared,
    replica: &Replica,
    grant: &Grant,
    (first, end): (u32, u32),
    deadline: Instant,
) -> Result<Active, FsError> {
    {
        let state = replica.lock();
        if let Some(active) = &state.reading
            && active.version == grant.version
            && state.is_resolved(first, end)
            && !state.is_gone
        {
            return Ok(active.clone());
        }
    }
    ensure_active(shared, replica, grant, deadline)
}

/// Ends an activation whose thread panicked.
struct Unfinished<'a> {
    replica: &'a Replica,
    number: u64,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut state = self.replica.lock();
        if matches!(state.role, Role::Activating(number) if number == self.number) {
            state.role = Role::Idle;
        }
        self.replica.notify(&state);
    }
}

enum Begun {
    Is(Active),
    Now(u64),
}

fn begin(shared: &Shared, replica: &Replica, grant: &Grant, deadline: Instant) -> Result<Begun, FsError> {
    let mut state = replica.lock();
    loop {
        if state.is_gone {
            return Err(FsError::Stale("the chunk was deleted"));
        }
        if grant.version < state.header.version {
            return Err(FsError::Stale("this replica has a newer version"));
        }
        match &state.role {
            Role::Primary(active) if active.version == grant.version => return Ok(Begun::Is(active.clone())),
            Role::Activating(_) => replica.wait(&mut state, deadline)?,
            Role::Secondary(follow) if follow.version == grant.version => {
                return Err(FsError::Stale("another server is primary at this version"));
            }
            _ => break,
        }
    }
    shared.check_lease()?;
    replica.raise_version(&mut state, grant.version)?;
    let number = random_u64();
    state.role = Role::Activating(number);
    // Whoever waits for its turn under the old activation must come again.
    replica.notify(&state);
    let drained = replica.drain(&mut state, deadline);
    if let Err(error) = drained {
        state.role = Role::Idle;
        replica.notify(&state);
        return Err(error);
    }
    Ok(Begun::Now(number))
}

fn finish(
    shared: &Shared,
    replica: &Replica,
    state: &mut MutexGuard<'_, State>,
    grant: &Grant,
    number: u64,
    highest_seq: u64,
) -> Result<Active, FsError> {
    replica.mark_complete(state)?;
    state.order.raise(highest_seq);
    let base = state.order.last_seq();
    state.committed = state.committed.max(base);
    let me = shared.membership()?.node;
    let active = Active { version: grant.version, activation: number, base, others: grant.others(me).into() };
    state.serve_as(active.clone());
    shared.metrics.activations.inc();
    Ok(active)
}

/// Makes all members equal, and returns the highest seq that any of them has seen.
fn activate(shared: &Shared, replica: &Replica, grant: &Grant, number: u64, deadline: Instant) -> Result<u64, FsError> {
    let membership = shared.membership()?;
    let (own, others) = (shared.identity(), grant.others(membership.node));
    let attempt = shared.attempt_deadline(deadline);
    let sealed = match &replica.lock().verified {
        Some((bytes, verified)) if verified.version == grant.version => bytes.clone(),
        _ => return Err(FsError::Stale("a newer grant was shown meanwhile")),
    };
    let request = pb::DataRequest {
        chunk: grant.chunk.0,
        version: grant.version.0,
        grant: sealed,
        body: Some(data_request::Body::Activate(pb::Activate { activation: number })),
    };
    let calls = shared.peers.send(&own, &others, &request, &[], attempt);
    let mut tables: Vec<Table> = vec![replica.open.file.table()];
    let own_disk = check_disk(replica);
    let mut has_content = !replica.lock().header.incomplete;
    // Every answer is read, even after a failure, so that its connection can be used again.
    let answers: Vec<_> = calls.into_iter().map(|call| shared.peers.receive(call, attempt)).collect();
    own_disk?;
    let mut seq = 0;
    let mut refilled = Vec::new();
    for (answer, member) in answers.into_iter().zip(&others) {
        let (reply, _) = answer?;
        let Some(data_reply::Body::UnitTable(table)) = reply.body else {
            return Err(FsError::Protocol("the answer to activate has no unit table".into()));
        };
        has_content |= table.present;
        if !table.present && !grant.may_create {
            refilled.push(member.clone());
        }
        if table.seq > SEQ_MAX {
            return Err(FsError::Protocol("a seq beyond all writes".into()));
        }
        seq = seq.max(table.seq);
        tables.push(translate::table_from_runs(&table.runs, replica.open.file.units())?);
    }
    if !has_content && !grant.may_create {
        tracing::error!(chunk = %grant.chunk, version = %grant.version, "no member has this chunk any more");
        return Err(FsError::Corrupt(format!("chunk {}: no replica is left", grant.chunk)));
    }
    let plan = reconcile::plan(&tables);
    let round = Round { shared, replica, grant, others: &others, number, deadline };
    if !plan.pulls.is_empty() || !plan.doubts.is_empty() {
        round.end_reads()?;
    }
    for (unit, holders) in &plan.doubts {
        round.settle_doubt(*unit, holders)?;
    }
    for pull in &plan.pulls {
        round.pull(&tables, pull)?;
    }
    for push in &plan.pushes {
        round.push(&tables, push)?;
    }
    // A replica that was made in place of a lost one is whole now, and may say so.
    let barrier = pb::PeerBarrier { seq: 0, activation: number, writes: Vec::new() };
    let request = pb::DataRequest {
        chunk: grant.chunk.0,
        version: grant.version.0,
        grant: Bytes::new(),
        body: Some(data_request::Body::PeerBarrier(barrier)),
    };
    for member in &refilled {
        shared.peers.call(&own, member, &request, &[], deadline)?;
    }
    if !plan.pulls.is_empty() || !plan.pushes.is_empty() || !plan.doubts.is_empty() {
        let (pulls, pushes, doubts) = (plan.pulls.len(), plan.pushes.len(), plan.doubts.len());
        tracing::info!(chunk = %grant.chunk, pulls, pushes, doubts, "made the replicas of a chunk equal");
    }
    Ok(seq.max(plan.highest_seq))
}

/// The copying of one activation. Members are counted as in the plan: 0 is our own replica.
struct Round<'a> {
    shared: &'a Shared,
    replica: &'a Replica,
    grant: &'a Grant,
    others: &'a [Member],
    number: u64,
    deadline: Instant,
}

impl Round<'_> {
    /// Waits until nobody reads: units of this replica are about to change.
    fn end_reads(&self) -> Result<(), FsError> {
        let mut state = self.replica.lock();
        state.reading = None;
        self.replica.notify(&state);
        while !state.order.has_no_reads() {
            self.replica.wait(&mut state, self.deadline)?;
        }
        Ok(())
    }

    fn change(&self, first: u32, states: &[UnitState], payload: &Bytes) -> Result<(), FsError> {
        let under_way = {
            let mut state = self.replica.lock();
            if !matches!(state.role, Role::Activating(number) if number == self.number) {
                return Err(FsError::TryAgain("another server became primary meanwhile"));
            }
            self.replica.begin_change(&mut state)
        };
        let open = &self.replica.open;
        let result = open.disk.judge(open.disk.check().and_then(|()| open.file.put(first, states, payload, None)));
        drop(under_way.end());
        result.map_err(store_failure)
    }

    fn pull(&self, tables: &[Table], pull: &Copy) -> Result<(), FsError> {
        let fetched = self.fetch(pull.member, pull.first, pull.count);
        let Err(error) = fetched else { return Ok(()) };
        // One unit may be damaged at the source: take each from whoever has it.
        for unit in pull.first..pull.first + pull.count {
            let wanted = state_at(&tables[pull.member], unit);
            let mut holders = (1..tables.len()).filter(|member| state_at(&tables[*member], unit) == wanted);
            if !holders.any(|member| self.fetch(member, unit, 1).is_ok()) {
                return Err(error);
            }
        }
        Ok(())
    }

    fn fetch(&self, member: usize, first: u32, count: u32) -> Result<(), FsError> {
        let source = &self.others[member - 1];
        let until = self.shared.attempt_deadline(self.deadline);
        let (states, payload) =
            fetch_units(self.shared, source, self.grant.chunk, self.grant.version, (first, count), until)?;
        self.change(first, &states, &payload)
    }

    fn push(&self, tables: &[Table], push: &Copy) -> Result<(), FsError> {
        let Copy { member, first, count } = *push;
        let target = &self.others[member - 1];
        let mut buffer = vec![0; count as usize * UNIT_BYTES];
        let read = |buffer: &mut [u8]| self.replica.open.file.read(first, count, buffer).map_err(store_failure);
        let mut reads = read(&mut buffer)?;
        if reads.contains(&UnitRead::Bad) && self.heal(tables, first, &reads)? {
            reads = read(&mut buffer)?;
        }
        let mut at = 0;
        for run in reads.chunk_by(|one, next| (*one == UnitRead::Bad) == (*next == UnitRead::Bad)) {
            let (start, end) = (at, at + run.len());
            at = end;
            if run[0] == UnitRead::Bad {
                // It stays as it is everywhere: reads of it go on to say so, or find a good copy.
                let unit = first + start as u32;
                tracing::error!(chunk = %self.grant.chunk, unit, units = run.len(), "damaged units cannot be copied");
                self.shared.metrics.corrupt_units.inc_by(run.len() as u64);
                continue;
            }
            let states: Vec<UnitState> = run
                .iter()
                .filter_map(|read| if let UnitRead::Good(state) = read { Some(*state) } else { None })
                .collect();
            let mut payload = Vec::with_capacity(run.len() * UNIT_BYTES);
            for (state, content) in states.iter().zip(buffer[start * UNIT_BYTES..].chunks_exact(UNIT_BYTES)) {
                if !state.hole {
                    payload.extend_from_slice(content);
                }
            }
            let request = pb::DataRequest {
                chunk: self.grant.chunk.0,
                version: self.grant.version.0,
                grant: Bytes::new(),
                body: Some(data_request::Body::PushUnits(pb::PushUnits {
                    first_unit: first + start as u32,
                    crcs: states.iter().map(|state| state.crc).collect(),
                    versions: states.iter().map(|state| state.stamp.version.0).collect(),
                    seqs: states.iter().map(|state| state.stamp.seq).collect(),
                    holes: states.iter().map(|state| state.hole).collect(),
                    activation: self.number,
                })),
            };
            let until = self.shared.attempt_deadline(self.deadline);
            self.shared.peers.call(&self.shared.identity(), target, &request, &payload, until)?;
        }
        Ok(())
    }

    /// Fetches our damaged units from members that have the same ones, and returns whether any was there. Without this a
    /// member that is behind would stay behind, and be taken for a good copy later.
    fn heal(&self, tables: &[Table], first: u32, reads: &[UnitRead]) -> Result<bool, FsError> {
        let mut is_any = false;
        for (unit, _) in (first..).zip(reads).filter(|(_, read)| **read == UnitRead::Bad) {
            let wanted = self.replica.open.file.slots(unit, 1)[0].state();
            let has_it = |member: usize| wanted.is_some() && state_at(&tables[member], unit) == wanted;
            is_any |= (1..tables.len()).any(|member| has_it(member) && self.fetch(member, unit, 1).is_ok());
        }
        Ok(is_any)
    }

    /// Equal stamps, different content: whoever's data matches its checksum is right; ours is asked first.
    fn settle_doubt(&self, unit: u32, holders: &[usize]) -> Result<(), FsError> {
        tracing::error!(chunk = %self.grant.chunk, unit, "replicas differ in a unit of equal age");
        let mut buffer = vec![0; UNIT_BYTES];
        let own = self.replica.open.file.read(unit, 1, &mut buffer).map_err(store_failure)?;
        let is_own_good = holders.contains(&0) && own[0] != UnitRead::Bad;
        if !is_own_good
            && !holders.iter().filter(|member| **member > 0).any(|member| self.fetch(*member, unit, 1).is_ok())
        {
            return Err(FsError::Corrupt(format!("chunk {} unit {unit}: no good copy", self.grant.chunk)));
        }
        (1..=self.others.len()).try_for_each(|member| self.push(&[], &Copy { member, first: unit, count: 1 }))
    }
}

fn state_at(table: &Table, unit: u32) -> Option<UnitState> {
    table.binary_search_by_key(&unit, |(number, _)| *number).ok().map(|at| table[at].1)
}

/// Fetches `(first, count)` units from a member, checked against their checksums.
pub(super) fn fetch_units(
    shared: &Shared,
    source: &Member,
    chunk: ChunkId,
    version: Version,
    (first, count): (u32, u32),
    deadline: Instant,
) -> Result<(Vec<UnitState>, Bytes), FsError> {
    let request = pb::DataRequest {
        chunk: chunk.0,
        version: version.0,
        grant: Bytes::new(),
        body: Some(data_request::Body::FetchUnits(pb::FetchUnits { first_unit: first, units: count })),
    };
    let (reply, payload) = shared.peers.call(&shared.identity(), source, &request, &[], deadline)?;
    let Some(data_reply::Body::Units(units)) = reply.body else {
        return Err(FsError::Protocol("the answer to fetch has no units".into()));
    };
    let states = translate::states(&units.crcs, &units.versions, &units.seqs, &units.holes)?;
    if states.len() != count as usize {
        return Err(FsError::Protocol("another number of units than was asked for".into()));
    }
    translate::check_content(&states, &payload)?;
    Ok((states, payload))
}
