//! What is left of a replica after the process died, or after a write failed half-way.

use super::StoreError;
use super::chunk_file::ChunkFile;
use super::layout::{UNIT_BYTES, data_offset, entry_offset};
use super::raw_file::RawFile;
use super::unit_table::Slot;
use crate::core::unit::UnitState;

/// What [`ChunkFile::settle`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Units that hold what their entry says.
    pub good: u32,
    /// Units whose last write had not reached their data; their entries say so now.
    pub settled_back: u32,
    /// Units that must be repaired from another replica.
    pub damaged: u32,
}

impl<F: RawFile> ChunkFile<F> {
    /// Reads `count` units from `first` on and makes each entry say what the unit really holds. Damaged units are noted.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] if the table cannot be read, [`StoreError::Write`] if it cannot be corrected: corrections
    /// overwrite what exists and need no room, so a full disk is no excuse.
    pub fn settle(&self, first: u32, count: u32) -> Result<Settled, StoreError> {
        let mut settled = Settled::default();
        let mut content = vec![0; UNIT_BYTES];
        self.walk(first, count, |first, slots| {
            for (slot, unit) in slots.iter().zip(first..) {
                match self.verdict(slot, unit, &mut content) {
                    Verdict::Never => {}
                    Verdict::Good => settled.good += 1,
                    Verdict::PunchAgain => {
                        self.punch_unit(unit)?;
                        settled.good += 1;
                    }
                    Verdict::Back(before) => {
                        self.settle_back(unit, &before)?;
                        settled.settled_back += 1;
                    }
                    Verdict::Damaged => {
                        self.note_damage(unit);
                        settled.damaged += 1;
                    }
                }
            }
            Ok(())
        })?;
        Ok(settled)
    }

    /// Says what is to be done with a unit. `content` is room for what it holds.
    fn verdict(&self, slot: &Slot, unit: u32, content: &mut [u8]) -> Verdict {
        let (state, previous) = match slot {
            Slot::Never => return Verdict::Never,
            Slot::Damaged => return Verdict::Damaged,
            Slot::Known { state, previous } => (state, previous),
        };
        if self.raw().read_at(content, data_offset(unit)).is_err() {
            return Verdict::Damaged;
        }
        let found = crc32c::crc32c(content);
        if found == state.crc {
            return Verdict::Good;
        }
        match previous {
            Some(previous) if previous.crc == found => {
                let stamp = state.stamp.just_below();
                Verdict::Back(if previous.hole { UnitState::tombstone(stamp) } else { UnitState::data(stamp, found) })
            }
            // Whatever lies in a hole is not data.
            _ if state.hole => Verdict::PunchAgain,
            _ => Verdict::Damaged,
        }
    }

    fn settle_back(&self, unit: u32, before: &UnitState) -> Result<(), StoreError> {
        let entry = Slot::encode(before, None, self.chunk(), unit);
        self.raw().write_at(&entry, entry_offset(unit)).map_err(StoreError::Write)?;
        if before.hole { self.punch_unit(unit) } else { Ok(()) }
    }

    fn punch_unit(&self, unit: u32) -> Result<(), StoreError> {
        self.raw().punch(data_offset(unit), UNIT_BYTES as u64).map_err(StoreError::Write)
    }
}

/// What the entry of a unit and its content together say.
enum Verdict {
    Never,
    Good,
    /// A hole with something in it.
    PunchAgain,
    /// The last write did not reach the data: the unit holds what it held before.
    Back(UnitState),
    Damaged,
}
