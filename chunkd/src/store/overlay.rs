//! What was written to a replica and is not in its file yet: the file may be touched only once the journal has it on
//! stable media.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::layout::UNIT_BYTES;

/// What an entry takes beside its content, about.
const ENTRY_OVERHEAD: usize = 64;

/// The content of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// 4 KiB.
    Data(Bytes),
    /// It becomes a hole.
    Hole,
}

impl Pending {
    fn memory(&self) -> usize {
        match self {
            Self::Data(_) => UNIT_BYTES + ENTRY_OVERHEAD,
            Self::Hole => ENTRY_OVERHEAD,
        }
    }
}

/// The units of one replica that are not in its file yet.
#[derive(Debug, Default)]
pub struct Overlay {
    /// With the position in the journal after their records.
    units: BTreeMap<u32, (u64, Pending)>,
}

impl Overlay {
    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Returns whether `unit` is here.
    pub fn contains(&self, unit: u32) -> bool {
        self.units.contains_key(&unit)
    }

    /// Adds what a record says, which ends at `position`. Returns by how many bytes of memory it grew.
    pub fn insert(&mut self, unit: u32, position: u64, pending: Pending) -> i64 {
        let grown = pending.memory() as i64;
        let before = self.units.insert(unit, (position, pending));
        grown - before.map_or(0, |(_, pending)| pending.memory() as i64)
    }

    /// Returns the units in `[first, end)`.
    pub fn range(&self, first: u32, end: u32) -> impl Iterator<Item = (u32, &Pending)> {
        self.units.range(first..end).map(|(unit, (_, pending))| (*unit, pending))
    }

    /// Returns those whose records end at `position` or before.
    pub fn before(&self, position: u64) -> Vec<(u32, u64, Pending)> {
        let due = self.units.iter().filter(|(_, (end, _))| *end <= position);
        due.map(|(unit, (end, pending))| (*unit, *end, pending.clone())).collect()
    }

    /// Takes those out that are in the file now, unless they were written again. Returns by how many bytes of memory it
    /// shrank.
    pub fn remove(&mut self, written: &[(u32, u64, Pending)]) -> i64 {
        let mut shrunk = 0;
        for (unit, end, _) in written {
            if self.units.get(unit).is_some_and(|(present, _)| present == end) {
                let (_, pending) = self.units.remove(unit).expect("it was looked at");
                shrunk += pending.memory() as i64;
            }
        }
        shrunk
    }

    /// Returns its bytes of memory.
    pub fn memory(&self) -> i64 {
        self.units.values().map(|(_, pending)| pending.memory() as i64).sum()
    }
}
