//! One replica's file: units with their checksums and stamps. See [`super::layout`] for the order of writes.
//!
//! Callers see to it that no two calls touch the same unit at once unless both read; calls on different units may run
//! side by side.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::{ChunkId, Version};
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
    has_damage: AtomicBool,
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
            has_damage: AtomicBool::new(false),
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
        let is_data = |slot: &Slot| matches!(slot, Slot::Known { state, .. } if !state.hole);
        let mut reads = vec![UnitRead::Good(UnitState::NEVER); count as usize];
        let Some(from) = slots.iter().position(is_data) else {
            buffer.fill(0);
            for (read, slot) in reads.iter_mut().zip(&slots) {
                *read = self.judge(slot, &[]);
            }
            return Ok(reads);
        };
        let to = slots.iter().rposition(is_data).expect("there is a first one") + 1;
        let span = from * UNIT_BYTES..to * UNIT_BYTES;
        let is_read = self.file.read_at(&mut buffer[span.clone()], data_offset(first + from as u32)).is_ok();
        buffer[..span.start].fill(0);
        buffer[span.end..].fill(0);
        for (at, (slot, content)) in slots.iter().zip(buffer.chunks_exact_mut(UNIT_BYTES)).enumerate() {
            if !is_data(slot) {
                content.fill(0);
                reads[at] = self.judge(slot, &[]);
                continue;
            }
            if !is_read {
                // A bad sector somewhere in the span: the good units around it are still served.
                if self.file.read_at(content, data_offset(first + at as u32)).is_err() {
                    reads[at] = UnitRead::Bad;
                    continue;
                }
            }
            reads[at] = self.judge(slot, content);
        }
        Ok(reads)
    }

    fn judge(&self, slot: &Slot, content: &[u8]) -> UnitRead {
        match slot {
            Slot::Never => UnitRead::Good(UnitState::NEVER),
            Slot::Known { state, .. } if state.hole || crc32c::crc32c(content) == state.crc => UnitRead::Good(*state),
            Slot::Known { .. } | Slot::Damaged => UnitRead::Bad,
        }
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
        let mut table = Vec::with_capacity(states.len() * ENTRY_BYTES);
        for ((state, slot), unit) in states.iter().zip(&slots).zip(first..) {
            table.extend_from_slice(&Slot::encode(state, slot.as_previous(), self.chunk, unit));
        }
        let written =
            self.file.write_at(&table, entry_offset(first)).and_then(|()| self.put_data(first, states, payload));
        self.finish(first, count, written)
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
                    let mut table = Vec::with_capacity(run.len() * ENTRY_BYTES);
                    for (slot, unit) in run.iter().zip(at..) {
                        table.extend_from_slice(&Slot::encode(&tombstone, slot.as_previous(), self.chunk, unit));
                    }
                    self.file.write_at(&table, entry_offset(at)).map_err(write_error)?;
                }
                at += run.len() as u32;
            }
            Ok(())
        });
        let zeroed = match zeroed {
            Ok(()) => self.file.punch(data_offset(first), u64::from(count) * UNIT_BYTES as u64),
            Err(StoreError::NoSpace) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Err(StoreError::Read(error) | StoreError::Write(error)) => Err(error),
            Err(other) => {
                self.note_change();
                return Err(other);
            }
        };
        self.finish(first, count, zeroed)
    }

    /// Ends a write: on success its units are whole again; after a failure each is settled to what it really holds.
    fn finish(&self, first: u32, count: u32, written: io::Result<()>) -> Result<(), StoreError> {
        self.note_change();
        match written {
            Ok(()) => {
                if self.has_damage.load(Ordering::Acquire) {
                    let mut damaged = self.damaged.lock();
                    damaged.retain(|unit| !(first..first + count).contains(unit));
                    self.has_damage.store(!damaged.is_empty(), Ordering::Release);
                }
                Ok(())
            }
            Err(error) => {
                let settled = self.settle(first, count);
                self.note_change();
                settled?;
                Err(write_error(error))
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
        let is_data = |slot: &Slot| matches!(slot, Slot::Known { state, .. } if !state.hole);
        Ok(self.slots(first, count)?.iter().all(is_data))
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
                let is_data = !matches!(slot, Slot::Never) && !matches!(slot, Slot::Known { state, .. } if state.hole);
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
        self.has_damage.store(true, Ordering::Release);
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

/// Returns the seq and version of a stamp just below `stamp`.
pub(super) fn just_below(stamp: WriteStamp) -> WriteStamp {
    match stamp.seq.checked_sub(1) {
        Some(seq) => WriteStamp { seq, ..stamp },
        None => WriteStamp { version: Version(stamp.version.0.saturating_sub(1)), seq: u64::MAX },
    }
}

pub(super) fn write_error(error: io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::NoSpace,
        _ if error.kind() == io::ErrorKind::StorageFull => StoreError::NoSpace,
        _ => StoreError::Write(error),
    }
}
