//! The unit table of an open replica, in memory.
//!
//! Blocks of 64 units. A block whose units were written by one write takes 320 bytes, one with stamps of its own for each
//! unit 1,344; where nothing was ever written there is none. So a chunk of 64 MiB takes 82 KiB if it was written in one
//! go and 338 KiB at most, and a chunk of one unit 2.3 KiB.

use super::unit_table::Slot;
use crate::core::unit::{UnitState, WriteStamp};
use dfs_proto::unit::ZERO_UNIT_CRC;

/// Units of a block: the bits of a word.
const BLOCK_UNITS: u32 = 64;

/// The units of one replica.
#[derive(Debug)]
pub struct UnitMap {
    blocks: Vec<Option<Box<Block>>>,
    units: u32,
}

/// 64 units, one bit each in every set.
#[derive(Clone, Debug)]
struct Block {
    data: u64,
    zeroed: u64,
    /// Their entries are not to be trusted.
    bad_entries: u64,
    /// Their content is not to be trusted.
    damaged: u64,
    /// Their entries in the file are older.
    changed: u64,
    crcs: [u32; BLOCK_UNITS as usize],
    stamps: Stamps,
}

#[derive(Clone, Debug)]
enum Stamps {
    One(WriteStamp),
    Each(Box<[WriteStamp; BLOCK_UNITS as usize]>),
}

impl Block {
    fn new() -> Self {
        Self {
            data: 0,
            zeroed: 0,
            bad_entries: 0,
            damaged: 0,
            changed: 0,
            crcs: [0; BLOCK_UNITS as usize],
            stamps: Stamps::One(WriteStamp::default()),
        }
    }

    fn slot(&self, at: u32) -> Slot {
        let bit = 1 << at;
        if self.bad_entries & bit != 0 {
            return Slot::Damaged;
        }
        if (self.data | self.zeroed) & bit == 0 {
            return Slot::Never;
        }
        let stamp = match &self.stamps {
            Stamps::One(stamp) => *stamp,
            Stamps::Each(stamps) => stamps[at as usize],
        };
        let is_hole = self.zeroed & bit != 0;
        let crc = if is_hole { ZERO_UNIT_CRC } else { self.crcs[at as usize] };
        Slot::Known(UnitState { stamp, crc, hole: is_hole })
    }

    fn set(&mut self, at: u32, state: &UnitState) {
        let bit = 1 << at;
        let others = (self.data | self.zeroed) & !bit;
        match &mut self.stamps {
            Stamps::One(stamp) if others == 0 => *stamp = state.stamp,
            Stamps::One(stamp) if *stamp == state.stamp => {}
            Stamps::One(stamp) => {
                let mut stamps = Box::new([*stamp; BLOCK_UNITS as usize]);
                stamps[at as usize] = state.stamp;
                self.stamps = Stamps::Each(stamps);
            }
            Stamps::Each(stamps) => stamps[at as usize] = state.stamp,
        }
        self.crcs[at as usize] = state.crc;
        (self.data, self.zeroed) =
            if state.hole { (self.data & !bit, self.zeroed | bit) } else { (self.data | bit, self.zeroed & !bit) };
        self.bad_entries &= !bit;
        self.damaged &= !bit;
    }
}

impl UnitMap {
    /// Returns a map of `units` units that were never written.
    pub fn new(units: u32) -> Self {
        Self { blocks: vec![None; units.div_ceil(BLOCK_UNITS) as usize], units }
    }

    /// Returns the number of units.
    pub fn units(&self) -> u32 {
        self.units
    }

    fn block(&self, unit: u32) -> Option<&Block> {
        self.blocks[(unit / BLOCK_UNITS) as usize].as_deref()
    }

    fn block_mut(&mut self, unit: u32) -> &mut Block {
        self.blocks[(unit / BLOCK_UNITS) as usize].get_or_insert_with(|| Box::new(Block::new()))
    }

    /// Returns the entry of `unit`.
    pub fn get(&self, unit: u32) -> Slot {
        self.block(unit).map_or(Slot::Never, |block| block.slot(unit % BLOCK_UNITS))
    }

    /// Takes an entry over from the file.
    pub fn load(&mut self, unit: u32, slot: &Slot) {
        match slot {
            Slot::Never => {}
            Slot::Known(state) => self.block_mut(unit).set(unit % BLOCK_UNITS, state),
            Slot::Damaged => self.block_mut(unit).bad_entries |= 1 << (unit % BLOCK_UNITS),
        }
    }

    /// Notes that units from `first` on were written.
    pub fn set(&mut self, first: u32, states: &[UnitState]) {
        let mut unit = first;
        let mut rest = states;
        while !rest.is_empty() {
            let at = unit % BLOCK_UNITS;
            let (now, later) = rest.split_at(rest.len().min((BLOCK_UNITS - at) as usize));
            let block = self.block_mut(unit);
            let bits = (u64::MAX >> (BLOCK_UNITS as usize - now.len())) << at;
            if (block.data | block.zeroed) & !bits == 0 && now.iter().all(|state| state.stamp == now[0].stamp) {
                block.stamps = Stamps::One(now[0].stamp);
            }
            for (state, at) in now.iter().zip(at..) {
                block.set(at, state);
            }
            block.changed |= bits;
            unit += now.len() as u32;
            rest = later;
        }
    }

    /// Notes that the content of `unit` is damaged, until it is written.
    pub fn note_damage(&mut self, unit: u32) {
        self.block_mut(unit).damaged |= 1 << (unit % BLOCK_UNITS);
    }

    /// Returns whether `unit` is known to be damaged.
    pub fn is_damaged(&self, unit: u32) -> bool {
        self.block(unit).is_some_and(|block| (block.damaged | block.bad_entries) & (1 << (unit % BLOCK_UNITS)) != 0)
    }

    /// Calls `visit` with all units in `[first, end)` that were ever written, ascending. One that was made as if it had
    /// never been is none, whether it has an entry or not: replicas that hold the same tell the same.
    pub fn walk(&self, first: u32, end: u32, mut visit: impl FnMut(u32, Slot)) {
        let mut unit = first;
        while unit < end {
            let stop = ((unit / BLOCK_UNITS + 1) * BLOCK_UNITS).min(end);
            if let Some(block) = self.block(unit) {
                for unit in unit..stop {
                    let slot = block.slot(unit % BLOCK_UNITS);
                    if slot != Slot::Never && slot != Slot::Known(UnitState::NEVER) {
                        visit(unit, slot);
                    }
                }
            }
            unit = stop;
        }
    }

    /// Returns the entries that are newer than those in the file, ascending, and takes them for written from then on;
    /// those that `is_pending` stay.
    pub fn take_changed(&mut self, is_pending: impl Fn(u32) -> bool) -> Vec<(u32, UnitState)> {
        let mut taken = Vec::new();
        for (block, first) in self.blocks.iter_mut().zip((0..).step_by(BLOCK_UNITS as usize)) {
            let Some(block) = block.as_deref_mut().filter(|block| block.changed != 0) else { continue };
            for at in 0..BLOCK_UNITS {
                let is_changed = block.changed & (1 << at) != 0;
                if is_changed
                    && !is_pending(first + at)
                    && let Slot::Known(state) = block.slot(at)
                {
                    block.changed &= !(1 << at);
                    taken.push((first + at, state));
                }
            }
        }
        taken
    }

    /// Notes that the entry of `unit` in the file is older after all.
    pub fn note_changed(&mut self, unit: u32) {
        self.block_mut(unit).changed |= 1 << (unit % BLOCK_UNITS);
    }

    /// Returns the bytes that it takes.
    pub fn memory(&self) -> usize {
        let each = |block: &Block| {
            let stamps = if matches!(block.stamps, Stamps::Each(_)) { BLOCK_UNITS as usize * 16 } else { 0 };
            size_of::<Block>() + stamps
        };
        self.blocks.len() * size_of::<usize>() + self.blocks.iter().flatten().map(|block| each(block)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dfs_proto::Version;
    use proptest::prelude::*;

    use super::*;

    fn stamp(seq: u64) -> WriteStamp {
        WriteStamp { version: Version(1), seq }
    }

    #[test]
    fn a_chunk_that_was_written_in_one_go_takes_82_kib_and_never_more_than_338() {
        let mut map = UnitMap::new(16_384);
        for first in (0..16_384).step_by(256) {
            map.set(first, &[UnitState::data(stamp(u64::from(first)), 7); 256]);
        }
        assert!(map.memory() <= 82 << 10, "{}", map.memory());
        for unit in 0..16_384 {
            map.set(unit, &[UnitState::data(stamp(u64::from(unit) + 20_000), 7)]);
        }
        assert!(map.memory() <= 338 << 10, "{}", map.memory());
        let mut small = UnitMap::new(16_384);
        small.set(0, &[UnitState::data(stamp(1), 7)]);
        assert!(small.memory() <= 2_400, "{}", small.memory());
    }

    #[test]
    fn a_unit_that_was_made_as_if_it_had_never_been_written_is_not_told_of_but_reaches_the_file() {
        let mut map = UnitMap::new(64);
        map.set(3, &[UnitState::data(stamp(1), 7), UnitState::data(stamp(1), 8)]);
        assert_eq!(map.take_changed(|_| false).len(), 2);
        map.set(3, &[UnitState::NEVER]);
        let mut told = Vec::new();
        map.walk(0, 64, |unit, _| told.push(unit));
        assert_eq!(told, [4]);
        assert_eq!(map.take_changed(|_| false), [(3, UnitState::NEVER)]);
    }

    proptest! {
        #[test]
        fn it_is_a_map_from_units_to_states(
            writes in proptest::collection::vec((0u32..200, 1usize..90, 0u64..4, any::<bool>()), 1..40)
        ) {
            let mut map = UnitMap::new(300);
            let mut model = BTreeMap::new();
            for (first, count, seq, hole) in writes {
                let states: Vec<UnitState> = (0..count)
                    .map(|at| if hole { UnitState::tombstone(stamp(seq)) } else { UnitState::data(stamp(seq), at as u32) })
                    .collect();
                map.set(first, &states);
                model.extend((first..).zip(states));
            }
            let mut walked = BTreeMap::new();
            map.walk(0, 300, |unit, slot| { walked.insert(unit, slot.state().expect("known")); });
            prop_assert_eq!(&walked, &model);
            let odd: BTreeMap<_, _> = map.take_changed(|unit| unit % 2 == 0).into_iter().collect();
            let even: BTreeMap<_, _> = map.take_changed(|_| false).into_iter().collect();
            prop_assert!(odd.keys().all(|unit| unit % 2 == 1) && even.keys().all(|unit| unit % 2 == 0));
            prop_assert_eq!(odd.into_iter().chain(even).collect::<BTreeMap<_, _>>(), model);
            prop_assert!(map.take_changed(|_| false).is_empty());
        }
    }
}
