//! One open replica: units with their checksums and stamps. See [`super::layout`] for its file, [`super::journal`] for the
//! order in which things reach it.
//!
//! Callers see to it that no two calls touch the same unit at once unless both read; calls on different units may run
//! side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::ChunkId;
use dfs_proto::planted::{self, Bug};
use parking_lot::Mutex;

use super::StoreError;
use super::disk::Disk;
use super::header::Header;
use super::journal::Journal;
use super::journal::record::{Record, Run, RunKind};
use super::layout::{ENTRY_BYTES, HEADER_BYTES, TABLE_OFFSET, UNIT_BYTES, data_offset, entry_offset};
use super::overlay::{Overlay, Pending};
use super::raw_file::RawFile;
use super::unit_map::UnitMap;
use super::unit_table::Slot;
use super::write_plan::{WritePlan, runs_of};
use crate::core::admission::units;
use crate::core::message::WriteKey;
use crate::core::reconcile::Table;
use crate::core::unit::{UnitState, WriteStamp};

/// Entries that are read at once when a table is loaded: 64 KiB.
const LOAD_ENTRIES: u32 = 2048;
/// What a table is read by where it cannot be read at once.
const SECTOR_BYTES: usize = 512;
/// Units that are written at once when the overlay goes into the file: 1 MiB.
const WRITE_BACK_UNITS: usize = 256;

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
pub struct ChunkFile {
    file: Box<dyn RawFile>,
    disk: Arc<Disk>,
    chunk: ChunkId,
    units: u32,
    serial: u64,
    directory: String,
    state: Mutex<State>,
    /// Held while the file is synced: an error of the operating system's is told to one caller only.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    header: Header,
    is_header_changed: bool,
    map: UnitMap,
    overlay: Overlay,
    /// The position after the last record of this replica.
    last: u64,
    /// The position after the last record of first writes in the file.
    direct: u64,
    /// First writes in records before it are on stable media.
    direct_synced: u64,
    is_name_durable: bool,
    /// The journal has this replica in its list.
    is_dirty: bool,
    is_deleted: bool,
}

/// What a checkpoint writes into a replica's file.
#[derive(Debug)]
pub(super) struct Snapshot {
    header: Option<Header>,
    entries: Vec<(u32, UnitState)>,
}

impl ChunkFile {
    /// Makes the replica that `header` describes in `file`, which is empty and in `directory`.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] and [`StoreError::Write`].
    pub(super) fn create(
        file: Box<dyn RawFile>,
        disk: &Arc<Disk>,
        directory: String,
        header: &Header,
    ) -> Result<Arc<Self>, StoreError> {
        file.write_at(&header.encode(), 0).map_err(write_error)?;
        let map = UnitMap::new(units(header.chunk_size_log2));
        let made = Self::new(file, disk, directory, header, map);
        made.state.lock().is_name_durable = false;
        let journal = disk.journal()?;
        let _entered = journal.enter();
        let end = journal.append(&Record::Create(*header), &[])?;
        made.note_record(&mut made.state.lock(), journal, end);
        Ok(made)
    }

    /// Opens the replica in `file`.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadFile`] if it is not a replica of `chunk`, [`StoreError::OtherFormat`], and [`StoreError::Read`].
    pub(super) fn open(
        file: Box<dyn RawFile>,
        disk: &Arc<Disk>,
        directory: String,
        chunk: ChunkId,
    ) -> Result<Arc<Self>, StoreError> {
        let header = read_header(&*file, chunk)?;
        let map = load_table(&*file, &header)?;
        Ok(Self::new(file, disk, directory, &header, map))
    }

    fn new(file: Box<dyn RawFile>, disk: &Arc<Disk>, directory: String, header: &Header, map: UnitMap) -> Arc<Self> {
        static SERIALS: AtomicU64 = AtomicU64::new(0);
        let state = State {
            header: *header,
            is_header_changed: false,
            map,
            overlay: Overlay::default(),
            last: 0,
            direct: 0,
            direct_synced: 0,
            is_name_durable: true,
            is_dirty: false,
            is_deleted: false,
        };
        Arc::new(Self {
            file,
            disk: Arc::clone(disk),
            chunk: header.chunk,
            units: units(header.chunk_size_log2),
            serial: SERIALS.fetch_add(1, Ordering::Relaxed),
            directory,
            state: Mutex::new(state),
            syncing: Mutex::default(),
        })
    }

    /// Returns the units of the chunk.
    pub fn units(&self) -> u32 {
        self.units
    }

    /// Returns the chunk.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// Returns the header.
    pub fn header(&self) -> Header {
        self.state.lock().header
    }

    /// Returns the bytes of memory that the table and what is not in the file yet take.
    pub fn memory(&self) -> usize {
        let state = self.state.lock();
        state.map.memory() + state.overlay.memory() as usize
    }

    /// Returns the entries of `count` units from `first` on.
    pub fn slots(&self, first: u32, count: u32) -> Vec<Slot> {
        self.check_range(first, count);
        let state = self.state.lock();
        (first..first + count).map(|unit| state.map.get(unit)).collect()
    }

    /// Returns what is known of `count` units from `first` on, of damaged ones too.
    pub fn entries(&self, first: u32, count: u32) -> Table {
        let slots = self.slots(first, count);
        (first..).zip(slots).filter_map(|(unit, slot)| Some((unit, slot.state()?))).collect()
    }

    /// Returns the units that were ever written, tombstones too, without those that are known to be damaged.
    pub fn table(&self) -> Table {
        self.told().into_iter().filter(|(_, state)| !state.is_lost()).collect()
    }

    /// Returns the same with those that are damaged, as lost: so replicas are compared.
    pub fn told(&self) -> Table {
        let mut told = Table::new();
        let state = self.state.lock();
        state.map.walk(0, self.units, |unit, slot| match slot.state() {
            Some(entry) => told.push((unit, if state.map.is_damaged(unit) { entry.damaged() } else { entry })),
            None => told.push((unit, UnitState::lost_entry())),
        });
        told
    }

    /// Returns whether all of `count` units from `first` on hold data, so that writing them takes no room.
    pub fn is_allocated(&self, first: u32, count: u32) -> bool {
        self.check_range(first, count);
        let state = self.state.lock();
        (first..first + count).all(|unit| state.map.get(unit).holds_data())
    }

    /// Returns the parts `[first, end)` of `count` units from `first` on that hold data, ascending.
    pub fn extents(&self, first: u32, count: u32) -> Vec<(u32, u32)> {
        self.check_range(first, count);
        let mut extents: Vec<(u32, u32)> = Vec::new();
        self.state.lock().map.walk(first, first + count, |unit, slot| {
            // A damaged entry stands for data: a read of it says what is wrong.
            let is_data = slot.holds_data() || slot == Slot::Damaged;
            match extents.last_mut() {
                Some((_, end)) if is_data && *end == unit => *end += 1,
                _ if is_data => extents.push((unit, unit + 1)),
                _ => {}
            }
        });
        extents
    }

    /// Notes that `unit` is damaged: it is left out of the table, and told as lost, until it is written.
    pub fn note_damage(&self, unit: u32) {
        self.state.lock().map.note_damage(unit);
    }

    /// Reads `count` units from `first` on into `buffer`, which is as long, and checks each. Holes read as zeros; the
    /// content of bad units is undefined.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`]; data that cannot be read makes its units bad.
    pub fn read(&self, first: u32, count: u32, buffer: &mut [u8]) -> Result<Vec<UnitRead>, StoreError> {
        assert_eq!(buffer.len(), count as usize * UNIT_BYTES);
        self.check_range(first, count);
        self.disk.check()?;
        let (slots, pending) = {
            let state = self.state.lock();
            let slots: Vec<Slot> = (first..first + count).map(|unit| state.map.get(unit)).collect();
            let pending = state.overlay.range(first, first + count);
            (slots, pending.map(|(unit, pending)| (unit, pending.clone())).collect::<Vec<_>>())
        };
        let is_pending = |unit: u32| pending.binary_search_by_key(&unit, |(unit, _)| *unit).ok();
        let in_file = |at: &usize| slots[*at].holds_data() && is_pending(first + *at as u32).is_none();
        let from = (0..slots.len()).find(in_file).unwrap_or(0);
        let to = (from..slots.len()).rfind(in_file).map_or(from, |last| last + 1);
        let span = &mut buffer[from * UNIT_BYTES..to * UNIT_BYTES];
        let is_read = span.is_empty() || self.file.read_at(span, data_offset(first + from as u32)).is_ok();
        let units = slots.iter().zip(buffer.chunks_exact_mut(UNIT_BYTES)).zip(first..);
        let checked = units.map(|((slot, content), unit)| {
            if !slot.holds_data() {
                content.fill(0);
            } else if let Some(at) = is_pending(unit) {
                if let Pending::Data(data) = &pending[at].1 {
                    content.copy_from_slice(data);
                }
            } else if !is_read && self.file.read_at(content, data_offset(unit)).is_err() {
                // A bad sector somewhere in the span: the good units around it are still served.
                return UnitRead::Bad;
            }
            check(slot, content)
        });
        let checked = checked.collect();
        // What a disk could not write it may show as it was before.
        self.disk.check()?;
        Ok(checked)
    }

    /// Writes units from `first` on: `payload` has the content of those that are not holes, in order. Checksums are the
    /// caller's and are not computed again. `key` says whose request it is, if that is to be remembered. Units whose content
    /// is lost are damaged here too.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`]: nothing of it counts; [`StoreError::Write`], [`StoreError::Fenced`]: the disk is fenced;
    /// [`StoreError::Deleted`].
    pub fn put(
        self: &Arc<Self>,
        first: u32,
        states: &[UnitState],
        payload: &Bytes,
        key: Option<WriteKey>,
    ) -> Result<(), StoreError> {
        self.check_range(first, states.len() as u32);
        let data_units = states.iter().filter(|state| !state.hole).count();
        assert_eq!(payload.len(), data_units * UNIT_BYTES, "a unit of payload for each unit with data");
        self.disk.check()?;
        let plan = WritePlan::new(first, states, &self.slots(first, states.len() as u32));
        self.disk.judge(self.write(first, states, &plan, payload, key))
    }

    fn write(
        self: &Arc<Self>,
        first: u32,
        states: &[UnitState],
        plan: &WritePlan,
        payload: &Bytes,
        key: Option<WriteKey>,
    ) -> Result<(), StoreError> {
        let journal = self.disk.journal()?;
        journal.admit()?;
        for (unit, range) in &plan.direct {
            self.file.write_at(&payload[range.clone()], data_offset(*unit)).map_err(write_error)?;
        }
        for (unit, count) in &plan.allocate {
            self.file.allocate(data_offset(*unit), u64::from(*count) * UNIT_BYTES as u64).map_err(write_error)?;
        }
        let journaled = plan.journaled_payload(payload);
        if planted::is(Bug::OverwriteInPlace) {
            for (unit, range) in &plan.journaled {
                self.file.write_at(&payload[range.clone()], data_offset(*unit)).map_err(write_error)?;
            }
        }
        let crcs = states.iter().filter(|state| !state.hole || state.is_lost()).map(|state| state.crc).collect();
        let record = Record::Write { chunk: self.chunk, key, runs: plan.runs.clone(), crcs };
        let (_entered, end) = journal.append_write(&record, &journaled, || self.check_not_deleted())?;
        let mut state = self.state.lock();
        for run in &plan.runs {
            let at = (run.first - first) as usize;
            let run_states = &states[at..at + run.count as usize];
            if run.kind != RunKind::Lost {
                state.map.set(run.first, run_states);
                continue;
            }
            // Whatever lies there is not what the entry says.
            for (unit, lost) in (run.first..).zip(run_states) {
                state.map.set(unit, &[UnitState::data(lost.stamp, lost.crc)]);
                state.map.note_damage(unit);
            }
        }
        if !plan.direct.is_empty() {
            state.direct = state.direct.max(end);
        }
        let mut at = 0;
        let mut grown = 0;
        for run in &plan.runs {
            for unit in run.first..run.first + run.count {
                let pending = match run.kind {
                    RunKind::Direct | RunKind::Lost => continue,
                    RunKind::Zeroed => Pending::Hole,
                    RunKind::Journaled => {
                        at += UNIT_BYTES;
                        Pending::Data(journaled.slice(at - UNIT_BYTES..at))
                    }
                };
                grown += state.overlay.insert(unit, end, pending);
            }
        }
        journal.count_pending(grown);
        self.note_record(&mut state, journal, end);
        Ok(())
    }

    /// Turns `count` units from `first` on into holes. Those that were written before keep `stamp`; the others need none.
    ///
    /// # Errors
    ///
    /// As [`Self::put`].
    pub fn zero(
        self: &Arc<Self>,
        first: u32,
        count: u32,
        stamp: WriteStamp,
        key: Option<WriteKey>,
    ) -> Result<(), StoreError> {
        self.check_range(first, count);
        self.disk.check()?;
        let mut written = Vec::new();
        self.state.lock().map.walk(first, first + count, |unit, _| written.push(unit));
        let runs = runs_of(written.iter().copied())
            .map(|(first, count)| Run { first, count, kind: RunKind::Zeroed, stamp })
            .collect();
        self.disk.judge(self.write_zeros(runs, stamp, key))
    }

    fn write_zeros(
        self: &Arc<Self>,
        runs: Vec<Run>,
        stamp: WriteStamp,
        key: Option<WriteKey>,
    ) -> Result<(), StoreError> {
        if runs.is_empty() && key.is_none() {
            return Ok(());
        }
        let journal = self.disk.journal()?;
        journal.admit()?;
        let record = Record::Write { chunk: self.chunk, key, runs, crcs: Vec::new() };
        let (_entered, end) = journal.append_write(&record, &[], || self.check_not_deleted())?;
        let Record::Write { runs, .. } = record else { unreachable!("made above") };
        let mut state = self.state.lock();
        let mut grown = 0;
        for run in &runs {
            state.map.set(run.first, &vec![UnitState::tombstone(stamp); run.count as usize]);
            for unit in run.first..run.first + run.count {
                grown += state.overlay.insert(unit, end, Pending::Hole);
            }
        }
        journal.count_pending(grown);
        self.note_record(&mut state, journal, end);
        Ok(())
    }

    /// Replaces the header. It is on stable media when this returns, and so is everything that was done before.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Write`], [`StoreError::Fenced`], [`StoreError::Deleted`].
    pub fn set_header(self: &Arc<Self>, header: &Header) -> Result<(), StoreError> {
        assert_eq!(header.chunk, self.chunk, "a header of this chunk");
        self.disk.check()?;
        let written = self.sync_first_writes().and_then(|()| {
            let journal = self.disk.journal()?;
            let entered = journal.enter();
            self.check_not_deleted()?;
            let end = journal.append(&Record::Header(*header), &[])?;
            let mut state = self.state.lock();
            state.header = *header;
            state.is_header_changed = true;
            self.note_record(&mut state, journal, end);
            drop(state);
            drop(entered);
            journal.sync(end)
        });
        self.disk.judge(written)
    }

    /// Brings every change that has ended to stable media; free if that was done. Several callers share the work.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`], [`StoreError::Fenced`]: from then on always. [`StoreError::NoSpace`]: it is not done.
    pub fn sync(self: &Arc<Self>) -> Result<(), StoreError> {
        self.disk.check()?;
        let synced = self.sync_first_writes().and_then(|()| {
            let last = self.state.lock().last;
            self.disk.journal()?.sync(last)
        });
        self.disk.judge(synced)?;
        // Another thread may have been given the error that would have been ours.
        self.disk.check()
    }

    /// Brings first writes in the file to stable media, and says so in the journal.
    fn sync_first_writes(self: &Arc<Self>) -> Result<(), StoreError> {
        let is_needed = || {
            let state = self.state.lock();
            state.direct > state.direct_synced
        };
        if !is_needed() {
            return Ok(());
        }
        let _one = self.syncing.lock();
        self.disk.check()?;
        if !is_needed() {
            return Ok(());
        }
        let journal = self.disk.journal()?;
        let before = journal.end();
        self.disk.judge(self.sync_file())?;
        if let Some(directory) = self.unsynced_directory() {
            self.disk.judge(self.disk.volume().sync_directory(directory).map_err(StoreError::Write))?;
            self.note_name_is_durable();
        }
        let _entered = journal.enter();
        self.check_not_deleted()?;
        let end = journal.append(&Record::Durable { chunk: self.chunk, before }, &[])?;
        let mut state = self.state.lock();
        state.direct_synced = state.direct_synced.max(before);
        self.note_record(&mut state, journal, end);
        Ok(())
    }

    fn sync_file(&self) -> Result<(), StoreError> {
        match self.file.sync() {
            Err(_) if planted::is(Bug::RetriedSync) && self.file.sync().is_ok() => Ok(()),
            synced => synced.map_err(StoreError::Write),
        }
    }

    /// Returns whether there may be changes that are not on stable media. Closing a replica loses none of them: the journal
    /// keeps it until they are in the file.
    pub fn is_unsynced(&self) -> bool {
        let state = self.state.lock();
        let is_synced = |journal: &Journal| journal.is_synced(state.last);
        state.direct > state.direct_synced || self.disk.journal().is_ok_and(|journal| !is_synced(journal))
    }

    /// Says that the replica is deleted: nothing is recorded of it any more. The caller has entered the journal alone.
    pub(super) fn note_deleted(&self) {
        let mut state = self.state.lock();
        state.is_deleted = true;
        state.is_dirty = true;
        let dropped = std::mem::take(&mut state.overlay).memory();
        if let Ok(journal) = self.disk.journal() {
            journal.count_pending(-dropped);
            journal.forget(self);
        }
    }

    fn check_not_deleted(&self) -> Result<(), StoreError> {
        if self.state.lock().is_deleted { Err(StoreError::Deleted) } else { Ok(()) }
    }

    fn note_record(self: &Arc<Self>, state: &mut State, journal: &Journal, end: u64) {
        state.last = state.last.max(end);
        if !state.is_dirty {
            state.is_dirty = true;
            journal.note_dirty(self);
        }
    }

    /// Distinguishes this opening of the replica from others.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns the directory of the file, if its name there is not on stable media yet.
    pub(super) fn unsynced_directory(&self) -> Option<&str> {
        (!self.state.lock().is_name_durable).then_some(self.directory.as_str())
    }

    pub(super) fn note_name_is_durable(&self) {
        self.state.lock().is_name_durable = true;
    }

    /// Writes what records before `synced`, which are on stable media, say of units into the file.
    pub(super) fn write_back(&self, synced: u64) -> Result<(), StoreError> {
        let due = self.state.lock().overlay.before(synced);
        let mut rest = due.as_slice();
        while let Some((first, _, pending)) = rest.first() {
            let is_hole = *pending == Pending::Hole;
            let most = rest.len().min(WRITE_BACK_UNITS);
            let goes_on = |at: &usize| rest[*at].0 == first + *at as u32 && (rest[*at].2 == Pending::Hole) == is_hole;
            let count = (1..most).take_while(goes_on).count() + 1;
            let (run, after) = rest.split_at(count);
            self.write_back_run(*first, run).map_err(write_error)?;
            rest = after;
        }
        let shrunk = self.state.lock().overlay.remove(&due);
        self.disk.journal()?.count_pending(-shrunk);
        Ok(())
    }

    fn write_back_run(&self, first: u32, run: &[(u32, u64, Pending)]) -> std::io::Result<()> {
        match run {
            [(_, _, Pending::Data(data))] => self.file.write_at(data, data_offset(first)),
            [(_, _, Pending::Hole), ..] => self.file.punch(data_offset(first), (run.len() * UNIT_BYTES) as u64),
            _ => {
                let mut joined = Vec::with_capacity(run.len() * UNIT_BYTES);
                for (_, _, pending) in run {
                    if let Pending::Data(data) = pending {
                        joined.extend_from_slice(data);
                    }
                }
                self.file.write_at(&joined, data_offset(first))
            }
        }
    }

    /// Takes what is newer than the file's header and table, without units that are not in the file yet. If there are
    /// such, the journal keeps the replica.
    pub(super) fn take_snapshot(self: &Arc<Self>, journal: &Journal) -> Snapshot {
        let mut state = self.state.lock();
        let state = &mut *state;
        let overlay = &state.overlay;
        let entries = state.map.take_changed(|unit| overlay.contains(unit));
        let header = std::mem::take(&mut state.is_header_changed).then_some(state.header);
        state.is_dirty = !overlay.is_empty() || state.is_deleted;
        if state.is_dirty && !state.is_deleted {
            journal.note_dirty(self);
        }
        Snapshot { header, entries }
    }

    /// Gives back what was taken and could not be written.
    pub(super) fn put_back(self: &Arc<Self>, snapshot: &Snapshot, journal: &Journal) {
        let mut state = self.state.lock();
        for (unit, _) in &snapshot.entries {
            state.map.note_changed(*unit);
        }
        state.is_header_changed |= snapshot.header.is_some();
        if !state.is_deleted {
            state.is_dirty = true;
            journal.note_dirty(self);
        }
    }

    /// Writes a snapshot into the file, and brings that and all data to stable media. All its records are there already;
    /// those before `position` are about to be given up.
    pub(super) fn write_snapshot(&self, snapshot: &Snapshot, position: u64) -> Result<(), StoreError> {
        let _one = self.syncing.lock();
        let mut table = Vec::new();
        for (first, count) in runs_of(snapshot.entries.iter().map(|(unit, _)| *unit)) {
            table.clear();
            let at = snapshot.entries.partition_point(|(unit, _)| *unit < first);
            for (unit, state) in &snapshot.entries[at..at + count as usize] {
                table.extend_from_slice(&Slot::encode(state, self.chunk, *unit));
            }
            self.file.write_at(&table, entry_offset(first)).map_err(write_error)?;
        }
        if let Some(header) = &snapshot.header {
            self.file.write_at(&header.encode(), 0).map_err(write_error)?;
        }
        if !planted::is(Bug::FreedTooEarly) {
            self.disk.judge(self.sync_file())?;
        }
        let mut state = self.state.lock();
        state.direct_synced = state.direct_synced.max(position);
        Ok(())
    }

    fn check_range(&self, first: u32, count: u32) {
        let end = u64::from(first) + u64::from(count);
        assert!(end <= u64::from(self.units), "units {first}+{count} of {}", self.units);
    }
}

/// Reads the header of the replica of `chunk` in `file`.
///
/// # Errors
///
/// [`StoreError::BadFile`] if it is not one, [`StoreError::OtherFormat`], and [`StoreError::Read`].
pub(super) fn read_header(file: &dyn RawFile, chunk: ChunkId) -> Result<Header, StoreError> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_at(&mut bytes, 0).map_err(StoreError::Read)?;
    let header = Header::decode(&bytes)?;
    if header.chunk != chunk {
        return Err(StoreError::BadFile(format!("it holds chunk {}", header.chunk)));
    }
    Ok(header)
}

/// Reads the table of the replica in `file`, without those parts that are holes in the file.
///
/// # Errors
///
/// [`StoreError::Read`] if much of it cannot be read. The entries of single sectors are damaged then.
pub(super) fn load_table(file: &dyn RawFile, header: &Header) -> Result<UnitMap, StoreError> {
    let mut map = UnitMap::new(units(header.chunk_size_log2));
    let end = map.units();
    let mut bytes = vec![0; LOAD_ENTRIES as usize * ENTRY_BYTES];
    let mut unit = 0;
    while unit < end {
        let segment = file.next_data(entry_offset(unit), entry_offset(end)).map_err(StoreError::Read)?;
        let Some((from, to)) = segment else { break };
        // Segments begin and end with blocks of the file system, which may begin inside the header.
        let index = |offset: u64| offset.saturating_sub(TABLE_OFFSET) / ENTRY_BYTES as u64;
        unit = unit.max(index(from) as u32);
        let stop = end.min(index(to + ENTRY_BYTES as u64 - 1) as u32).max(unit + 1).min(end);
        while unit < stop {
            let count = LOAD_ENTRIES.min(stop - unit);
            let batch = &mut bytes[..count as usize * ENTRY_BYTES];
            let is_read = file.read_at(batch, entry_offset(unit)).is_ok();
            let mut unread = 0;
            for (sector, first) in batch.chunks_mut(SECTOR_BYTES).zip((unit..).step_by(SECTOR_BYTES / ENTRY_BYTES)) {
                // The good sectors around a bad one still count.
                let is_bad = !is_read && file.read_at(sector, entry_offset(first)).is_err();
                unread += if is_bad { sector.len() } else { 0 };
                for (entry, unit) in sector.chunks_exact(ENTRY_BYTES).zip(first..) {
                    let slot = if is_bad { Slot::Damaged } else { Slot::decode(entry, header.chunk, unit) };
                    // Nobody compares or reads what was never written, so nobody would mend its entry.
                    if slot != Slot::Damaged || !is_hole(file, unit) {
                        map.load(unit, &slot);
                    }
                }
            }
            if unread == batch.len() {
                return Err(StoreError::Read(std::io::Error::from_raw_os_error(libc::EIO)));
            }
            unit += count;
        }
    }
    Ok(map)
}

/// Returns whether there is nothing where the data of `unit` would be: it reads as zeros, whatever its entry said.
fn is_hole(file: &dyn RawFile, unit: u32) -> bool {
    let from = data_offset(unit);
    matches!(file.next_data(from, from + UNIT_BYTES as u64), Ok(None))
}

/// Holds what was read of a unit against its entry. The content of a hole does not matter.
fn check(slot: &Slot, content: &[u8]) -> UnitRead {
    match slot {
        Slot::Never => UnitRead::Good(UnitState::NEVER),
        Slot::Known(state) if state.hole || crc32c::crc32c(content) == state.crc => UnitRead::Good(*state),
        Slot::Known(state) if planted::is(Bug::NoChecksum) => UnitRead::Good(*state),
        Slot::Known(_) | Slot::Damaged => UnitRead::Bad,
    }
}

pub(super) fn write_error(error: std::io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::NoSpace,
        _ if error.kind() == std::io::ErrorKind::StorageFull => StoreError::NoSpace,
        _ => StoreError::Write(error),
    }
}
