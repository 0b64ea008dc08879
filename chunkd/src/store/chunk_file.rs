//! One replica's file: units with their checksums and stamps. See [`super::layout`] for the order of writes.
//!
//! Callers see to it that no two calls touch the same unit at once unless both read; calls on different units may run
//! side by side.

use std::collections::BTreeSet;
use std::io;
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::ChunkId;
use parking_lot::Mutex;

use super::StoreError;
use super::header::Header;
use super::layout::{ENTRY_BYTES, HEADER_BYTES, TABLE_OFFSET, UNIT_BYTES, data_offset, entry_offset};
use super::raw_file::{OsFile, RawFile};
use super::unit_table::Slot;
use crate::core::admission::units;
use crate::core::reconcile::Table;
use crate::core::unit::{UnitState, WriteStamp};

/// Entries that are read at once when a table is walked: 64 KiB.
const WALK_ENTRIES: u32 = 2048;

/// What a unit holds, its data checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitRead {
    /// Data that matches its checksum, or a hole.
    Good(UnitState),
    /// Its data or its entry is damaged.
    Bad,
}

/// The file of one replica.
#[derive(Debug)]
pub struct ChunkFile<F = OsFile> {
    file: F,
    chunk: ChunkId,
    units: u32,
    /// Units that were found damaged and not written since.
    damaged: Mutex<BTreeSet<u32>>,
    /// Changes of the file that have ended; those before it was opened count as one.
    changes: AtomicU64,
    synced: Mutex<Synced>,
}

/// How far the file is on stable media.
#[derive(Debug, Default)]
struct Synced {
    /// All of the first so many changes are.
    changes: u64,
    /// A sync failed: the error is told once to a descriptor, and what it was about is lost.
    has_failed: bool,
}

impl<F: RawFile> ChunkFile<F> {
    /// Makes the replica that `header` describes in `file`, which is empty.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] and [`StoreError::Write`].
    pub fn create(file: F, header: &Header) -> Result<Self, StoreError> {
        file.write_at(&header.encode(), 0).map_err(write_error)?;
        Ok(Self::new(file, header))
    }

    /// Opens the replica in `file`.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadFile`] if it is not a replica of `chunk`, and [`StoreError::Read`].
    pub fn open(file: F, chunk: ChunkId) -> Result<(Self, Header), StoreError> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_at(&mut bytes, 0).map_err(StoreError::Read)?;
        let header = Header::decode(&bytes)?;
        if header.chunk != chunk {
            return Err(StoreError::BadFile(format!("it holds chunk {}", header.chunk)));
        }
        Ok((Self::new(file, &header), header))
    }

    fn new(file: F, header: &Header) -> Self {
        Self {
            file,
            chunk: header.chunk,
            units: units(header.chunk_size_log2),
            damaged: Mutex::default(),
            changes: AtomicU64::new(1),
            synced: Mutex::default(),
        }
    }

    /// Returns the units of the chunk.
    pub fn units(&self) -> u32 {
        self.units
    }

    /// Returns the file below.
    pub fn raw(&self) -> &F {
        &self.file
    }

    /// Replaces the header.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn set_header(&self, header: &Header) -> Result<(), StoreError> {
        let written = self.file.write_at(&header.encode(), 0).map_err(write_error);
        self.note_change();
        written
    }

    /// Brings every change that has ended to stable media; free if that was done. Of several calls at once one does the
    /// work for those that came while an earlier one was under way.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`], from then on always.
    pub fn sync(&self) -> Result<(), StoreError> {
        let wanted = self.changes.load(Ordering::Acquire);
        let mut synced = self.synced.lock();
        if synced.has_failed {
            return Err(StoreError::Write(io::Error::other("an earlier sync of this replica failed")));
        }
        if synced.changes >= wanted {
            return Ok(());
        }
        let covered = self.changes.load(Ordering::Acquire);
        if let Err(error) = self.file.sync() {
            synced.has_failed = true;
            return Err(StoreError::Write(error));
        }
        synced.changes = covered;
        Ok(())
    }

    /// Returns whether there may be changes that are not on stable media.
    pub fn is_unsynced(&self) -> bool {
        self.synced.lock().changes < self.changes.load(Ordering::Acquire)
    }

    /// Counts a change once it is in the file, and before anyone is told of it: a sync that begins afterwards covers it.
    fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Returns the entries of `count` units from `first` on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`].
    pub fn slots(&self, first: u32, count: u32) -> Result<Vec<Slot>, StoreError> {
        self.check_range(first, count);
        let mut bytes = vec![0; count as usize * ENTRY_BYTES];
        self.file.read_at(&mut bytes, entry_offset(first)).map_err(StoreError::Read)?;
        Ok(bytes
            .chunks_exact(ENTRY_BYTES)
            .zip(first..)
            .map(|(entry, unit)| Slot::decode(entry, self.chunk, unit))
            .collect())
    }

    /// Reads `count` units from `first` on into `buffer`, which is as long, and checks each. Holes read as zeros; the
    /// content of bad units is undefined.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] if the table cannot be read; data that cannot be read makes its units bad.
    pub fn read(&self, first: u32, count: u32, buffer: &mut [u8]) -> Result<Vec<UnitRead>, StoreError> {
        assert_eq!(buffer.len(), count as usize * UNIT_BYTES);
        let slots = self.slots(first, count)?;
        let from = slots.iter().position(Slot::holds_data).unwrap_or(0);
        let to = slots.iter().rposition(Slot::holds_data).map_or(from, |last| last + 1);
        let span = &mut buffer[from * UNIT_BYTES..to * UNIT_BYTES];
        let is_read = span.is_empty() || self.file.read_at(span, data_offset(first + from as u32)).is_ok();
        let units = slots.iter().zip(buffer.chunks_exact_mut(UNIT_BYTES)).zip(first..);
        let checked = units.map(|((slot, content), unit)| {
            if !slot.holds_data() {
                content.fill(0);
            } else if !is_read && self.file.read_at(content, data_offset(unit)).is_err() {
                // A bad sector somewhere in the span: the good units around it are still served.
                return UnitRead::Bad;
            }
            check(slot, content)
        });
        Ok(checked.collect())
    }

    /// Writes units from `first` on: `payload` has the content of those that are not holes, in order. Checksums are the
    /// caller's and are not computed again.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`]: nothing of it counts; [`StoreError::Read`], [`StoreError::Write`].
    pub fn put(&self, first: u32, states: &[UnitState], payload: &[u8]) -> Result<(), StoreError> {
        let count = states.len() as u32;
        let data_units = states.iter().filter(|state| !state.hole).count();
        assert_eq!(payload.len(), data_units * UNIT_BYTES, "a unit of payload for each unit with data");
        let slots = self.slots(first, count)?;
        let written = self.write_entries(first, states, &slots).and_then(|()| self.put_data(first, states, payload));
        self.finish(first, count, written.map_err(write_error))
    }

    /// Writes the entries of units from `first` on, which had `slots` until now.
    fn write_entries<'a>(
        &self,
        first: u32,
        states: impl IntoIterator<Item = &'a UnitState>,
        slots: &[Slot],
    ) -> io::Result<()> {
        let mut table = Vec::with_capacity(slots.len() * ENTRY_BYTES);
        for ((state, slot), unit) in states.into_iter().zip(slots).zip(first..) {
            table.extend_from_slice(&Slot::encode(state, slot.as_previous(), self.chunk, unit));
        }
        self.file.write_at(&table, entry_offset(first))
    }

    fn put_data(&self, first: u32, states: &[UnitState], payload: &[u8]) -> io::Result<()> {
        let mut unit = first;
        let mut rest = payload;
        for run in states.chunk_by(|one, next| one.hole == next.hole) {
            let bytes = run.len() * UNIT_BYTES;
            if run[0].hole {
                self.file.punch(data_offset(unit), bytes as u64)?;
            } else {
                let (data, after) = rest.split_at(bytes);
                self.file.write_at(data, data_offset(unit))?;
                rest = after;
            }
            unit += run.len() as u32;
        }
        Ok(())
    }

    /// Turns `count` units from `first` on into holes. Those that were written before keep `stamp`; the others need none.
    ///
    /// # Errors
    ///
    /// As [`Self::put`].
    pub fn zero(&self, first: u32, count: u32, stamp: WriteStamp) -> Result<(), StoreError> {
        self.check_range(first, count);
        let tombstone = UnitState::tombstone(stamp);
        let zeroed = self.walk(first, count, |unit, slots| {
            // Runs of written units, so that entries of zeros stay entries of zeros.
            let mut at = unit;
            for run in slots.chunk_by(|one, next| (*one == Slot::Never) == (*next == Slot::Never)) {
                if run[0] != Slot::Never {
                    self.write_entries(at, iter::repeat(&tombstone), run).map_err(write_error)?;
                }
                at += run.len() as u32;
            }
            Ok(())
        });
        let zeroed = match zeroed {
            Ok(()) => self.file.punch(data_offset(first), u64::from(count) * UNIT_BYTES as u64).map_err(write_error),
            // Entries before the one that cannot be read may have been written: the disk has failed a write half-way.
            Err(StoreError::Read(error)) => Err(write_error(error)),
            failed => failed,
        };
        self.finish(first, count, zeroed)
    }

    /// Ends a write: on success its units are whole again; after a failure each is settled to what it really holds.
    fn finish(&self, first: u32, count: u32, written: Result<(), StoreError>) -> Result<(), StoreError> {
        self.note_change();
        match written {
            Ok(()) => {
                self.damaged.lock().retain(|unit| !(first..first + count).contains(unit));
                Ok(())
            }
            Err(error) => {
                let settled = self.settle(first, count);
                self.note_change();
                settled?;
                Err(error)
            }
        }
    }

    /// Calls `visit` with runs of entries of `count` units from `first` on, in order, without those parts of the table
    /// that are holes in the file.
    pub(super) fn walk(
        &self,
        first: u32,
        count: u32,
        mut visit: impl FnMut(u32, &[Slot]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let end = first + count;
        let mut unit = first;
        while unit < end {
            let segment = self.file.next_data(entry_offset(unit), entry_offset(end)).map_err(StoreError::Read)?;
            let Some((from, to)) = segment else { break };
            // Segments begin and end with blocks of the file system, which may begin inside the header.
            let index = |offset: u64| (offset.saturating_sub(TABLE_OFFSET)) / ENTRY_BYTES as u64;
            unit = unit.max(index(from) as u32);
            let stop = end.min(index(to + ENTRY_BYTES as u64 - 1) as u32).max(unit + 1).min(end);
            while unit < stop {
                let batch = WALK_ENTRIES.min(stop - unit);
                visit(unit, &self.slots(unit, batch)?)?;
                unit += batch;
            }
        }
        Ok(())
    }

    /// Returns the units that were ever written, tombstones too, without those that are known to be damaged.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`].
    pub fn table(&self) -> Result<Table, StoreError> {
        let mut table = Table::new();
        let damaged = self.damaged.lock().clone();
        self.walk(0, self.units, |first, slots| {
            for (slot, unit) in slots.iter().zip(first..) {
                if let Slot::Known { state, .. } = slot
                    && !damaged.contains(&unit)
                {
                    table.push((unit, *state));
                }
            }
            Ok(())
        })?;
        Ok(table)
    }

    /// Returns whether all of `count` units from `first` on hold data, so that writing them takes no room.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`].
    pub fn is_allocated(&self, first: u32, count: u32) -> Result<bool, StoreError> {
        Ok(self.slots(first, count)?.iter().all(Slot::holds_data))
    }

    /// Returns the parts `[first, end)` of `count` units from `first` on that hold data, ascending.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`].
    pub fn extents(&self, first: u32, count: u32) -> Result<Vec<(u32, u32)>, StoreError> {
        self.check_range(first, count);
        let mut extents: Vec<(u32, u32)> = Vec::new();
        self.walk(first, count, |first, slots| {
            for (slot, unit) in slots.iter().zip(first..) {
                // A damaged entry stands for data: a read of it says what is wrong.
                let is_data = slot.holds_data() || *slot == Slot::Damaged;
                match extents.last_mut() {
                    Some((_, end)) if is_data && *end == unit => *end += 1,
                    _ if is_data => extents.push((unit, unit + 1)),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(extents)
    }

    /// Notes that `unit` is damaged: it is left out of the table until it is written.
    pub fn note_damage(&self, unit: u32) {
        self.damaged.lock().insert(unit);
    }

    /// Returns the chunk.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    fn check_range(&self, first: u32, count: u32) {
        let end = u64::from(first) + u64::from(count);
        assert!(end <= u64::from(self.units), "units {first}+{count} of {}", self.units);
    }
}

/// Holds what was read of a unit against its entry. The content of a hole does not matter.
fn check(slot: &Slot, content: &[u8]) -> UnitRead {
    match slot {
        Slot::Never => UnitRead::Good(UnitState::NEVER),
        Slot::Known { state, .. } if state.hole || crc32c::crc32c(content) == state.crc => UnitRead::Good(*state),
        Slot::Known { .. } | Slot::Damaged => UnitRead::Bad,
    }
}

pub(super) fn write_error(error: io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::NoSpace,
        _ if error.kind() == io::ErrorKind::StorageFull => StoreError::NoSpace,
        _ => StoreError::Write(error),
    }
}
