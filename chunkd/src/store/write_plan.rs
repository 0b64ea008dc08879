//! How a write reaches the disk: which of its units go straight into the chunk file, and which through the journal.
//!
//! A unit that was never written may be written in place: if the write is lost, it is a hole again. That saves the second
//! write of most bytes, but costs a sync of the chunk file at the next barrier, and that of a file that grows is the
//! dearest kind. So short runs go through the journal although they need not.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::journal::record::{Run, RunKind};
use super::layout::UNIT_BYTES;
use super::unit_table::Slot;
use crate::core::unit::UnitState;

/// Runs of first writes that are shorter go through the journal: 32 KiB.
pub const DIRECT_UNITS_MIN: usize = 8;
/// What the journal keeps in memory is copied if it is smaller than this, so that it does not hold on to a larger buffer.
const COPIED_MAX: usize = 64 << 10;

/// How one write reaches the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WritePlan {
    /// All its units, in order.
    pub runs: Vec<Run>,
    /// Runs that are written to the chunk file at once: the first unit, and where in the payload.
    pub direct: Vec<(u32, Range<usize>)>,
    /// Runs that go through the journal.
    pub journaled: Vec<(u32, Range<usize>)>,
    /// Runs of units that need room in the chunk file when they leave the journal.
    pub allocate: Vec<(u32, u32)>,
}

impl WritePlan {
    /// Plans the write of `states` to units from `first` on, which have `slots` now.
    pub fn new(first: u32, states: &[UnitState], slots: &[Slot]) -> Self {
        let mut plan = Self::default();
        let never = |at: usize| slots[at] == Slot::Never && !states[at].hole;
        let mut is_direct = vec![false; states.len()];
        let mut at = 0;
        while at < states.len() {
            let length = (at..states.len()).take_while(|at| never(*at)).count();
            is_direct[at..at + length].fill(length >= DIRECT_UNITS_MIN);
            at += length.max(1);
        }
        let mut payload_at = 0;
        for (at, state) in states.iter().enumerate() {
            let unit = first + at as u32;
            if *state == UnitState::NEVER && slots[at] == Slot::Never {
                continue;
            }
            let kind = match (state.hole, is_direct[at]) {
                _ if state.is_lost() => RunKind::Lost,
                (true, _) => RunKind::Zeroed,
                (_, true) => RunKind::Direct,
                _ => RunKind::Journaled,
            };
            match plan.runs.last_mut() {
                Some(run) if run.kind == kind && run.stamp == state.stamp && run.first + run.count == unit => {
                    run.count += 1
                }
                _ => plan.runs.push(Run { first: unit, count: 1, kind, stamp: state.stamp }),
            }
            if !state.hole {
                let range = payload_at..payload_at + UNIT_BYTES;
                payload_at = range.end;
                let list = if kind == RunKind::Direct { &mut plan.direct } else { &mut plan.journaled };
                match list.last_mut() {
                    Some((begin, before)) if *begin + (before.len() / UNIT_BYTES) as u32 == unit => {
                        before.end = range.end;
                    }
                    _ => list.push((unit, range)),
                }
            }
            if kind == RunKind::Journaled && !slots[at].holds_data() {
                match plan.allocate.last_mut() {
                    Some((begin, count)) if *begin + *count == unit => *count += 1,
                    _ => plan.allocate.push((unit, 1)),
                }
            }
        }
        plan
    }

    /// Returns the part of the payload that goes through the journal.
    pub fn journaled_payload(&self, payload: &Bytes) -> Bytes {
        let length: usize = self.journaled.iter().map(|(_, range)| range.len()).sum();
        match self.journaled.as_slice() {
            [] => Bytes::new(),
            [(_, range)] if length > COPIED_MAX && length * 2 > payload.len() => payload.slice(range.clone()),
            parts => {
                let mut joined = BytesMut::with_capacity(length);
                parts.iter().for_each(|(_, range)| joined.extend_from_slice(&payload[range.clone()]));
                joined.freeze()
            }
        }
    }
}

/// Returns runs of neighbours, as first and count, of ascending `units`.
pub fn runs_of(units: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, u32)> {
    let mut units = units.peekable();
    std::iter::from_fn(move || {
        let first = units.next()?;
        let mut count = 1;
        while units.next_if_eq(&(first + count)).is_some() {
            count += 1;
        }
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use dfs_proto::Version;

    use super::*;
    use crate::core::unit::WriteStamp;

    fn stamp(seq: u64) -> WriteStamp {
        WriteStamp { version: Version(1), seq }
    }

    #[test]
    fn a_long_first_write_goes_into_the_file_what_is_there_and_short_runs_through_the_journal() {
        let known = Slot::Known(UnitState::data(stamp(1), 1));
        let states = vec![UnitState::data(stamp(2), 2); 12];
        let mut slots = vec![Slot::Never; 12];
        slots[2] = known;
        slots[11] = Slot::Known(UnitState::tombstone(stamp(1)));
        let plan = WritePlan::new(100, &states, &slots);
        let kinds: Vec<_> = plan.runs.iter().map(|run| (run.first, run.count, run.kind)).collect();
        use RunKind::{Direct, Journaled};
        assert_eq!(kinds, [(100, 3, Journaled), (103, 8, Direct), (111, 1, Journaled)]);
        assert_eq!(plan.direct, [(103, 3 * UNIT_BYTES..11 * UNIT_BYTES)]);
        assert_eq!(plan.journaled, [(100, 0..3 * UNIT_BYTES), (111, 11 * UNIT_BYTES..12 * UNIT_BYTES)]);
        assert_eq!(plan.allocate, [(100, 2), (111, 1)]);
        let payload: Bytes = (0..12 * UNIT_BYTES).map(|at| (at / UNIT_BYTES) as u8).collect();
        let journaled = plan.journaled_payload(&payload);
        assert_eq!((journaled.len(), journaled[2 * UNIT_BYTES], journaled[3 * UNIT_BYTES]), (4 * UNIT_BYTES, 2, 11));
    }

    #[test]
    fn runs_are_cut_where_stamps_differ_and_holes_take_no_payload() {
        let states = [
            UnitState::data(stamp(1), 2),
            UnitState::tombstone(stamp(1)),
            UnitState::tombstone(stamp(3)),
            UnitState::data(stamp(3), 4),
        ];
        let plan = WritePlan::new(0, &states, &[Slot::Never; 4]);
        assert_eq!(plan.runs.len(), 4);
        assert_eq!(plan.journaled, [(0, 0..UNIT_BYTES), (3, UNIT_BYTES..2 * UNIT_BYTES)]);
        let holes =
            [UnitState::NEVER, UnitState::tombstone(stamp(1)), UnitState::NEVER, UnitState::tombstone(stamp(1))];
        let plan = WritePlan::new(5, &holes, &[Slot::Never; 4]);
        let runs: Vec<_> = plan.runs.iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(runs, [(6, 1), (8, 1)], "what was never written stays so");
        assert_eq!(runs_of([1, 2, 3, 7, 9, 10].into_iter()).collect::<Vec<_>>(), [(1, 3), (7, 1), (9, 2)]);
    }
}
