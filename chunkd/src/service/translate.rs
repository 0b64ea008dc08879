//! Between messages of the wire and the vocabulary of the cores. What comes from outside is checked here: lengths, ranges,
//! and content against its checksums.

use bytes::Bytes;
use dfs_proto::limits::{DATA_BYTES_MAX, UNIT_SIZE};
use dfs_proto::replica_set::Grant;
use dfs_proto::unit::verify;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::{ChunkId, FsError, Version};

use crate::core::admission::unit_range;
use crate::core::message::{ClientRequest, PeerAnswer, PeerRequest, Prepare, Reply, Sealed, WriteKey};
use crate::core::reconcile::{COPY_UNITS_MAX, Table};
use crate::core::unit::{SEQ_MAX, UnitState, WriteStamp};

/// Whole units that one write of at most 1 MiB touches at most.
const PREPARE_UNITS_MAX: u32 = DATA_BYTES_MAX / UNIT_SIZE + 1;

/// Returns what a mount or the master asks; `None` if `body` is for chunk servers among themselves.
///
/// # Errors
///
/// [`FsError::Invalid`], and [`FsError::Corrupt`] if the data was damaged on its way.
pub(super) fn client_request(
    body: &data_request::Body,
    payload: &Bytes,
    grant: &Grant,
) -> Result<Option<ClientRequest>, FsError> {
    use data_request::Body;
    let in_chunk = |offset, length| unit_range(offset, length, grant.chunk_size_log2).map(|_| ());
    Ok(Some(match body {
        Body::Write(ask) => {
            if payload.len() > DATA_BYTES_MAX as usize {
                return Err(FsError::Invalid("a write above 1 MiB"));
            }
            in_chunk(ask.offset, payload.len() as u32)?;
            verify(ask.offset, payload, &ask.crcs)
                .map_err(|piece| FsError::Corrupt(format!("piece {piece} of the write was damaged on its way")))?;
            ClientRequest::Write {
                offset: ask.offset,
                crcs: ask.crcs.clone(),
                data: payload.clone(),
                client: ask.client,
                number: ask.number,
            }
        }
        Body::Zero(ask) => {
            in_chunk(ask.offset, ask.length)?;
            ClientRequest::Zero { offset: ask.offset, length: ask.length, client: ask.client, number: ask.number }
        }
        Body::Read(ask) => {
            if ask.length > DATA_BYTES_MAX {
                return Err(FsError::Invalid("a read above 1 MiB"));
            }
            in_chunk(ask.offset, ask.length)?;
            ClientRequest::Read { offset: ask.offset, length: ask.length }
        }
        Body::Barrier(ask) => ClientRequest::Barrier { since: Version(ask.since) },
        Body::Extents(ask) => {
            in_chunk(ask.offset, ask.length)?;
            ClientRequest::Extents { offset: ask.offset, length: ask.length }
        }
        Body::Activate(_)
        | Body::Prepare(_)
        | Body::PeerBarrier(_)
        | Body::FetchUnits(_)
        | Body::PushUnits(_)
        | Body::VerifyUnits(_) => return Ok(None),
    }))
}

/// Returns what another chunk server asks about a chunk of `units` units; `None` for an activation, which needs its grant
/// opened, and for what only mounts may ask.
///
/// # Errors
///
/// As [`client_request`]; [`FsError::Protocol`].
pub(super) fn peer_request(
    body: &data_request::Body,
    payload: &Bytes,
    units: u32,
) -> Result<Option<PeerRequest>, FsError> {
    use data_request::Body;
    let check = |first: u32, count: u32, most: u32| {
        let end = u64::from(first) + u64::from(count);
        if count == 0 || end > u64::from(units) {
            return Err(FsError::Invalid("units outside the chunk"));
        }
        if count > most { Err(FsError::Invalid("too many units")) } else { Ok(()) }
    };
    Ok(Some(match body {
        Body::Prepare(ask) => {
            check(ask.first_unit, ask.units, if ask.zero { u32::MAX } else { PREPARE_UNITS_MAX })?;
            check_prepare(ask, payload)?;
            PeerRequest::Prepare(Prepare {
                seq: ask.seq,
                first: ask.first_unit,
                count: ask.units,
                zero: ask.zero,
                crcs: ask.crcs.clone(),
                client: ask.client,
                number: ask.number,
                part: u8::try_from(ask.part).map_err(|_| FsError::Protocol("a part beyond all parts".into()))?,
                activation: ask.activation,
                base: ask.base,
            })
        }
        Body::PeerBarrier(ask) => PeerRequest::Barrier {
            seq: ask.seq,
            activation: ask.activation,
            keys: ask.writes.iter().map(write_key).collect::<Result<_, _>>()?,
        },
        Body::FetchUnits(ask) => {
            check(ask.first_unit, ask.units, COPY_UNITS_MAX)?;
            PeerRequest::Fetch { first: ask.first_unit, count: ask.units }
        }
        Body::PushUnits(ask) => {
            let states = states(&ask.crcs, &ask.versions, &ask.seqs, &ask.holes)?;
            check(ask.first_unit, states.len() as u32, COPY_UNITS_MAX)?;
            check_content(&states, payload)?;
            let keys = ask.writes.iter().map(write_key).collect::<Result<_, _>>()?;
            PeerRequest::Push { first: ask.first_unit, states, activation: ask.activation, keys }
        }
        Body::VerifyUnits(ask) => {
            check(ask.first_unit, ask.units, COPY_UNITS_MAX)?;
            PeerRequest::Verify { first: ask.first_unit, count: ask.units }
        }
        Body::Activate(_) | Body::Write(_) | Body::Zero(_) | Body::Read(_) | Body::Barrier(_) | Body::Extents(_) => {
            return Ok(None);
        }
    }))
}

fn check_prepare(ask: &pb::Prepare, payload: &[u8]) -> Result<(), FsError> {
    if ask.seq > SEQ_MAX {
        return Err(FsError::Protocol("a seq beyond all writes".into()));
    }
    let units = if ask.zero { 0 } else { ask.units as usize };
    if ask.crcs.len() != units {
        return Err(FsError::Protocol("not a checksum for each unit".into()));
    }
    check_units(ask.crcs.iter().copied(), payload)
}

/// Returns the message that asks a peer.
pub(super) fn ask_message(chunk: ChunkId, version: Version, request: PeerRequest) -> pb::DataRequest {
    use data_request::Body;
    let mut grant = Bytes::new();
    let body = match request {
        PeerRequest::Activate { grant: sealed, activation } => {
            grant = sealed.bytes;
            Body::Activate(pb::Activate { activation })
        }
        PeerRequest::Prepare(ask) => Body::Prepare(pb::Prepare {
            seq: ask.seq,
            first_unit: ask.first,
            units: ask.count,
            zero: ask.zero,
            crcs: ask.crcs,
            client: ask.client,
            number: ask.number,
            part: ask.part.into(),
            activation: ask.activation,
            base: ask.base,
        }),
        PeerRequest::Barrier { seq, activation, keys } => {
            let writes = keys.iter().map(remembered_write).collect();
            Body::PeerBarrier(pb::PeerBarrier { seq, activation, writes })
        }
        PeerRequest::Fetch { first, count } => Body::FetchUnits(pb::FetchUnits { first_unit: first, units: count }),
        PeerRequest::Push { first, states, activation, keys } => {
            let Lists { crcs, versions, seqs, holes } = Lists::of(states.iter());
            let writes = keys.iter().map(remembered_write).collect();
            Body::PushUnits(pb::PushUnits { first_unit: first, crcs, versions, seqs, holes, activation, writes })
        }
        PeerRequest::Verify { first, count } => Body::VerifyUnits(pb::VerifyUnits { first_unit: first, units: count }),
    };
    pb::DataRequest { chunk: chunk.0, version: version.0, grant, body: Some(body) }
}

/// What a peer was asked, as far as its answer is judged by it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Table { units: u32 },
    Prepared,
    Done,
    Units { count: u32 },
    Verified { first: u32, count: u32 },
}

impl Asked {
    /// Returns it for `request`, about a chunk of `units` units.
    pub fn of(request: &PeerRequest, units: u32) -> Self {
        match request {
            PeerRequest::Activate { .. } => Self::Table { units },
            PeerRequest::Prepare(_) => Self::Prepared,
            PeerRequest::Barrier { .. } | PeerRequest::Push { .. } => Self::Done,
            PeerRequest::Fetch { count, .. } => Self::Units { count: *count },
            PeerRequest::Verify { first, count } => Self::Verified { first: *first, count: *count },
        }
    }
}

/// Returns the answer of a peer.
///
/// # Errors
///
/// [`FsError::Protocol`] if it does not fit what was asked; [`FsError::Corrupt`] if units were damaged on their way.
pub(super) fn peer_answer(asked: Asked, reply: pb::DataReply, payload: Bytes) -> Result<PeerAnswer, FsError> {
    use data_reply::Body;
    match (asked, reply.body) {
        (Asked::Table { units }, Some(Body::UnitTable(table))) => {
            if table.seq > SEQ_MAX {
                return Err(FsError::Protocol("a seq beyond all writes".into()));
            }
            Ok(PeerAnswer::Table {
                present: table.present,
                seq: table.seq,
                table: table_from_runs(&table.runs, units)?,
                keys: table.writes.iter().map(write_key).collect::<Result<_, _>>()?,
            })
        }
        (Asked::Prepared, Some(Body::Prepared(prepared))) => Ok(PeerAnswer::Prepared { seq: prepared.seq }),
        (Asked::Done, Some(Body::Synced(_))) => Ok(PeerAnswer::Done),
        (Asked::Units { count }, Some(Body::Units(units))) => {
            let states = states(&units.crcs, &units.versions, &units.seqs, &units.holes)?;
            if states.len() != count as usize {
                return Err(FsError::Protocol("another number of units than was asked for".into()));
            }
            check_content(&states, &payload)?;
            Ok(PeerAnswer::Units { states, payload })
        }
        (Asked::Verified { first, count }, Some(Body::Verified(verified))) => {
            let is_asked_for = |unit: &u32| unit.checked_sub(first).is_some_and(|at| at < count);
            if verified.checked > count || !verified.bad.iter().all(is_asked_for) {
                return Err(FsError::Protocol("it checked other units than it was asked to".into()));
            }
            Ok(PeerAnswer::Verified { checked: verified.checked, bad: verified.bad })
        }
        _ => Err(FsError::Protocol("it answers something else than it was asked".into())),
    }
}

/// Returns the message of a reply, and its payload. `version` is that of the request.
pub(super) fn reply_message(reply: Reply, version: u64) -> (data_reply::Body, Bytes) {
    use data_reply::Body;
    let plain = |body| (body, Bytes::new());
    match reply {
        Reply::Written { seq, version } => plain(Body::Written(pb::Written { seq, version: version.0 })),
        Reply::Data { crcs, data } => {
            let all_zero = data.is_empty();
            (Body::ReadData(pb::ReadData { crcs, all_zero }), data)
        }
        Reply::Done | Reply::Order(_) | Reply::Peer(PeerAnswer::Done) => plain(Body::Synced(pb::Synced {})),
        Reply::Extents(extents) => {
            let extent =
                |(first, end): (u32, u32)| pb::Extent { offset: first * UNIT_SIZE, length: (end - first) * UNIT_SIZE };
            plain(Body::ExtentMap(pb::ExtentMap { extents: extents.into_iter().map(extent).collect() }))
        }
        Reply::Peer(PeerAnswer::Table { present, seq, table, keys }) => {
            let writes = keys.iter().map(remembered_write).collect();
            plain(Body::UnitTable(pb::UnitTable { present, version, seq, runs: table_to_runs(&table), writes }))
        }
        Reply::Peer(PeerAnswer::Prepared { seq }) => plain(Body::Prepared(pb::Prepared { seq })),
        Reply::Peer(PeerAnswer::Units { states, payload }) => {
            let Lists { crcs, versions, seqs, holes } = Lists::of(states.iter());
            (Body::Units(pb::Units { crcs, versions, seqs, holes }), payload)
        }
        Reply::Peer(PeerAnswer::Verified { checked, bad }) => plain(Body::Verified(pb::Verified { checked, bad })),
    }
}

fn write_key(write: &pb::RememberedWrite) -> Result<WriteKey, FsError> {
    if write.seq > SEQ_MAX {
        return Err(FsError::Protocol("a seq beyond all writes".into()));
    }
    Ok(WriteKey {
        client: write.client,
        number: write.number,
        part: u8::try_from(write.part).map_err(|_| FsError::Protocol("a part beyond all parts".into()))?,
        stamp: WriteStamp { version: Version(write.version), seq: write.seq },
    })
}

fn remembered_write(key: &WriteKey) -> pb::RememberedWrite {
    pb::RememberedWrite {
        client: key.client,
        number: key.number,
        part: key.part.into(),
        version: key.stamp.version.0,
        seq: key.stamp.seq,
    }
}

/// Returns the grant in `bytes` with them, which may be part of a whole frame: a copy of their own is kept.
pub(super) fn sealed(grant: Grant, bytes: &[u8]) -> Sealed {
    Sealed { grant: grant.into(), bytes: Bytes::copy_from_slice(bytes) }
}

/// States as messages have them.
struct Lists {
    crcs: Vec<u32>,
    versions: Vec<u64>,
    seqs: Vec<u64>,
    holes: Vec<bool>,
}

impl Lists {
    fn of<'a>(states: impl Iterator<Item = &'a UnitState> + Clone) -> Self {
        let has_holes = states.clone().any(|state| state.hole);
        Self {
            crcs: states.clone().map(|state| state.crc).collect(),
            versions: states.clone().map(|state| state.stamp.version.0).collect(),
            seqs: states.clone().map(|state| state.stamp.seq).collect(),
            holes: if has_holes { states.map(|state| state.hole).collect() } else { Vec::new() },
        }
    }
}

/// Returns the message for a table, neighbours in one run.
fn table_to_runs(table: &Table) -> Vec<pb::UnitRun> {
    let run = |part: &[(u32, UnitState)]| {
        let Lists { crcs, versions, seqs, holes } = Lists::of(part.iter().map(|(_, state)| state));
        pb::UnitRun { first: part[0].0, crcs, versions, seqs, holes }
    };
    table.chunk_by(|(one, _), (next, _)| one + 1 == *next).map(run).collect()
}

/// Returns the table in a message, for a chunk of `units` units.
fn table_from_runs(runs: &[pb::UnitRun], units: u32) -> Result<Table, FsError> {
    let mut table = Table::new();
    for run in runs {
        let states = states(&run.crcs, &run.versions, &run.seqs, &run.holes)?;
        for (at, state) in states.into_iter().enumerate() {
            let unit = u64::from(run.first) + at as u64;
            let rises = table.last().is_none_or(|(last, _)| u64::from(*last) < unit);
            if unit >= u64::from(units) || !rises {
                return Err(FsError::Protocol("a unit table is not ascending or too long".into()));
            }
            table.push((unit as u32, state));
        }
    }
    Ok(table)
}

/// Returns the states in parallel lists; an empty list of holes means that there is none.
fn states(crcs: &[u32], versions: &[u64], seqs: &[u64], holes: &[bool]) -> Result<Vec<UnitState>, FsError> {
    let count = crcs.len();
    if versions.len() != count || seqs.len() != count || !(holes.is_empty() || holes.len() == count) {
        return Err(FsError::Protocol("lists of units differ in length".into()));
    }
    if seqs.iter().any(|seq| *seq > SEQ_MAX) {
        return Err(FsError::Protocol("a seq beyond all writes".into()));
    }
    let state = |at: usize| {
        let stamp = WriteStamp { version: Version(versions[at]), seq: seqs[at] };
        if holes.get(at).copied().unwrap_or(false) {
            UnitState { stamp, crc: crcs[at], hole: true }
        } else {
            UnitState::data(stamp, crcs[at])
        }
    };
    Ok((0..count).map(state).collect())
}

/// Checks that `payload` is the content of those of `states` that are not holes.
fn check_content(states: &[UnitState], payload: &[u8]) -> Result<(), FsError> {
    check_units(states.iter().filter(|state| !state.hole).map(|state| state.crc), payload)
}

/// Checks that `payload` has a unit for each checksum, which it matches.
fn check_units(crcs: impl Iterator<Item = u32>, payload: &[u8]) -> Result<(), FsError> {
    let mut content = payload.chunks(UNIT_SIZE as usize);
    for crc in crcs {
        let unit = content.next().filter(|unit| unit.len() == UNIT_SIZE as usize);
        let unit = unit.ok_or_else(|| FsError::Protocol("the payload is not as long as its units".into()))?;
        if crc32c::crc32c(unit) != crc {
            return Err(FsError::Corrupt("a unit was damaged on its way".into()));
        }
    }
    match content.next() {
        None => Ok(()),
        Some(_) => Err(FsError::Protocol("the payload is not as long as its units".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seq: u64) -> WriteStamp {
        WriteStamp { version: Version(3), seq }
    }

    #[test]
    fn a_table_survives_the_wire() {
        let table = vec![
            (0, UnitState::data(stamp(1), 11)),
            (1, UnitState::data(stamp(2), 12)),
            (5, UnitState::tombstone(stamp(3))),
            (6, UnitState::data(stamp(4), 13)),
        ];
        let runs = table_to_runs(&table);
        assert_eq!(runs.len(), 2);
        assert!(runs[0].holes.is_empty());
        assert_eq!(table_from_runs(&runs, 7), Ok(table));
        assert!(table_from_runs(&runs, 6).is_err(), "beyond the chunk");
        let twice = [runs[0].clone(), runs[0].clone()];
        assert!(table_from_runs(&twice, 7).is_err(), "not ascending");
    }

    #[test]
    fn an_answer_is_read_only_as_what_was_asked() {
        let reply = |reply: Reply| {
            let (body, payload) = reply_message(reply, 3);
            (pb::DataReply { failure: None, body: Some(body) }, payload)
        };
        let unit = Bytes::from(vec![7; UNIT_SIZE as usize]);
        let states = vec![UnitState::data(stamp(1), crc32c::crc32c(&unit)), UnitState::tombstone(stamp(2))];
        let units = PeerAnswer::Units { states, payload: unit };
        let (message, payload) = reply(Reply::Peer(units.clone()));
        assert_eq!(peer_answer(Asked::Units { count: 2 }, message.clone(), payload.clone()), Ok(units));
        assert!(peer_answer(Asked::Units { count: 3 }, message.clone(), payload.clone()).is_err());
        assert!(peer_answer(Asked::Done, message.clone(), payload.clone()).is_err());
        let mut damaged = payload.to_vec();
        damaged[9] ^= 1;
        let answer = peer_answer(Asked::Units { count: 2 }, message, damaged.into());
        assert!(matches!(answer, Err(FsError::Corrupt(_))));

        let verified = PeerAnswer::Verified { checked: 3, bad: vec![5] };
        let (message, _) = reply(Reply::Peer(verified.clone()));
        assert_eq!(peer_answer(Asked::Verified { first: 4, count: 3 }, message.clone(), Bytes::new()), Ok(verified));
        assert!(peer_answer(Asked::Verified { first: 6, count: 3 }, message, Bytes::new()).is_err());
    }
}
