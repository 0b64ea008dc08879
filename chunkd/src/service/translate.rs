//! Between messages of the wire and the vocabulary of the cores.

use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::wire::pb;
use dfs_proto::{FsError, Version};

use crate::core::reconcile::Table;
use crate::core::unit::{SEQ_MAX, UnitState, WriteStamp};

/// Returns the message for a table, neighbours in one run.
pub(super) fn table_to_runs(table: &Table) -> Vec<pb::UnitRun> {
    let mut runs = Vec::new();
    for part in table.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
        let has_holes = part.iter().any(|(_, state)| state.hole);
        runs.push(pb::UnitRun {
            first: part[0].0,
            crcs: part.iter().map(|(_, state)| state.crc).collect(),
            versions: part.iter().map(|(_, state)| state.stamp.version.0).collect(),
            seqs: part.iter().map(|(_, state)| state.stamp.seq).collect(),
            holes: if has_holes { part.iter().map(|(_, state)| state.hole).collect() } else { Vec::new() },
        });
    }
    runs
}

/// Returns the table in a message, for a chunk of `units` units.
pub(super) fn table_from_runs(runs: &[pb::UnitRun], units: u32) -> Result<Table, FsError> {
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
pub(super) fn states(crcs: &[u32], versions: &[u64], seqs: &[u64], holes: &[bool]) -> Result<Vec<UnitState>, FsError> {
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
            UnitState::tombstone(stamp)
        } else {
            UnitState::data(stamp, crcs[at])
        }
    };
    Ok((0..count).map(state).collect())
}

/// Checks that `payload` is the content of those of `states` that are not holes.
pub(super) fn check_content(states: &[UnitState], payload: &[u8]) -> Result<(), FsError> {
    let with_data = || states.iter().filter(|state| !state.hole);
    if payload.len() != with_data().count() * UNIT_SIZE as usize {
        return Err(FsError::Protocol("the payload is not as long as its units".into()));
    }
    for (state, content) in with_data().zip(payload.chunks_exact(UNIT_SIZE as usize)) {
        if crc32c::crc32c(content) != state.crc {
            return Err(FsError::Corrupt("a unit was damaged on its way".into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_the_wire() {
        let stamp = |seq| WriteStamp { version: Version(3), seq };
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
}
