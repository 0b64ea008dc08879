//! Replica files that were cut short at every byte of every write, and files with flipped bits.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use dfs_proto::{ChunkId, Version};
use proptest::prelude::*;

use super::StoreError;
use super::chunk_file::{ChunkFile, UnitRead};
use super::header::Header;
use super::layout::{DATA_OFFSET, UNIT_BYTES, data_offset};
use super::raw_file::{OsFile, RawFile};
use crate::core::unit::{UnitState, WriteStamp};

const CHUNK: ChunkId = ChunkId(5);
const UNITS: u32 = 16;
const PAGE: u64 = 4096;

fn header() -> Header {
    Header { chunk: CHUNK, version: Version(1), chunk_size_log2: 16, incomplete: false }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Punch(u64, u64),
}

/// A file in memory, in pages, that notes every change.
#[derive(Debug, Default)]
struct Recorder {
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    log: Mutex<Vec<Change>>,
    /// Writes fail with this once the log has this many changes.
    fails_after: Option<(usize, i32)>,
    /// Syncs that were asked for; they fail if this says so.
    syncs: AtomicU32,
    sync_fails: AtomicBool,
}

impl Recorder {
    fn replay<'a>(changes: impl Iterator<Item = &'a Change>) -> Self {
        let file = Self::default();
        for change in changes {
            match change {
                Change::Write(offset, data) => file.store(*offset, data),
                Change::Punch(offset, length) => file.store(*offset, &vec![0; *length as usize]),
            }
        }
        file
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let mut pages = self.pages.lock().unwrap();
        for (at, byte) in data.iter().enumerate() {
            let place = offset + at as u64;
            pages.entry(place / PAGE).or_insert_with(|| vec![0; PAGE as usize])[(place % PAGE) as usize] = *byte;
        }
    }

    fn may_change(&self) -> io::Result<()> {
        match self.fails_after {
            Some((count, errno)) if self.log.lock().unwrap().len() >= count => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

impl RawFile for Recorder {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let pages = self.pages.lock().unwrap();
        for (at, byte) in buffer.iter_mut().enumerate() {
            let place = offset + at as u64;
            *byte = pages.get(&(place / PAGE)).map_or(0, |page| page[(place % PAGE) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.may_change()?;
        self.store(offset, data);
        self.log.lock().unwrap().push(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.may_change()?;
        self.store(offset, &vec![0; length as usize]);
        self.log.lock().unwrap().push(Change::Punch(offset, length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        // As the kernel does: the error is told once.
        if self.sync_fails.swap(false, Ordering::SeqCst) {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            Ok(())
        }
    }

    fn next_data(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let pages = self.pages.lock().unwrap();
        let page = pages.range(from / PAGE..).next().map(|(page, _)| *page);
        Ok(page.filter(|page| page * PAGE < end).map(|page| ((page * PAGE).max(from), ((page + 1) * PAGE).min(end))))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.pages.lock().unwrap().last_key_value().map_or(0, |(page, _)| (page + 1) * PAGE))
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn content(seed: u8) -> Vec<u8> {
    (0..UNIT_BYTES).map(|at| (at as u8).wrapping_mul(7) ^ seed).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes units with content made from these seeds.
    Put(u32, Vec<u8>),
    Zero(u32, u32),
}

/// What each unit may hold: a seed, or zeros.
type Model = Vec<Option<u8>>;

fn carry_out<F: RawFile>(file: &ChunkFile<F>, step: &Step, seq: u64) -> Result<(), StoreError> {
    let stamp = WriteStamp { version: Version(1), seq };
    match step {
        Step::Put(first, seeds) => {
            let contents: Vec<Vec<u8>> = seeds.iter().map(|seed| content(*seed)).collect();
            let states: Vec<_> =
                contents.iter().map(|content| UnitState::data(stamp, crc32c::crc32c(content))).collect();
            file.put(*first, &states, &contents.concat())
        }
        Step::Zero(first, count) => file.zero(*first, *count, stamp),
    }
}

fn apply_to_model(model: &mut Model, step: &Step) {
    match step {
        Step::Put(first, seeds) => {
            for (unit, seed) in (*first as usize..).zip(seeds) {
                model[unit] = Some(*seed);
            }
        }
        Step::Zero(first, count) => model[*first as usize..(first + count) as usize].fill(None),
    }
}

fn read_unit<F: RawFile>(file: &ChunkFile<F>, unit: u32) -> Option<Vec<u8>> {
    let mut buffer = vec![0; UNIT_BYTES];
    match file.read(unit, 1, &mut buffer).unwrap()[0] {
        UnitRead::Good(_) => Some(buffer),
        UnitRead::Bad => None,
    }
}

fn expected(seed: Option<u8>) -> Vec<u8> {
    seed.map_or_else(|| vec![0; UNIT_BYTES], content)
}

/// First writes, overwrites of data and of holes, runs, zeroing of data and of nothing.
fn workload() -> Vec<Step> {
    vec![
        Step::Put(0, vec![1]),
        Step::Put(2, vec![2, 3, 4]),
        Step::Put(0, vec![5, 6, 7]),
        Step::Zero(1, 3),
        Step::Put(2, vec![8]),
        Step::Zero(8, 2),
        Step::Zero(0, 16),
        Step::Put(3, vec![9, 10]),
    ]
}

#[test]
fn a_file_cut_at_any_byte_of_any_write_has_each_unit_old_or_new_or_says_that_it_is_damaged() {
    let recorded = ChunkFile::create(Recorder::default(), &header()).unwrap();
    let mut states = vec![vec![None; UNITS as usize]];
    let mut step_of_change = vec![0];
    for (at, step) in workload().iter().enumerate() {
        carry_out(&recorded, step, at as u64 + 1).unwrap();
        let mut model = states[at].clone();
        apply_to_model(&mut model, step);
        states.push(model);
        step_of_change.resize(recorded.raw().log.lock().unwrap().len(), at);
    }
    let log = recorded.raw().log.lock().unwrap().clone();
    let (mut cuts, mut damaged) = (0u32, 0u32);
    for at in 1..log.len() {
        let (old, new) = (&states[step_of_change[at]], &states[step_of_change[at] + 1]);
        let lengths: Vec<u64> = match &log[at] {
            Change::Write(_, data) => (0..=data.len() as u64).collect(),
            Change::Punch(_, length) => (0..=*length).step_by(PAGE as usize).collect(),
        };
        let before = Recorder::replay(log[..at].iter());
        for length in lengths {
            let (partial, place) = match &log[at] {
                Change::Write(offset, data) => {
                    (Change::Write(*offset, data[..length as usize].to_vec()), offset + length)
                }
                Change::Punch(offset, _) => (Change::Punch(*offset, length), offset + length),
            };
            let is_data = place > DATA_OFFSET;
            // What kill -9 can do: a write to the page cache ends at the end of it, or between two pages; an entry of the
            // table, which lies within a page, is whole.
            let is_possible =
                place.is_multiple_of(PAGE) || matches!(&log[at], Change::Write(_, data) if length == data.len() as u64);
            // Most cuts inside the content of a unit are alike.
            if is_data && !is_possible && !place.is_multiple_of(61) {
                continue;
            }
            let image = Recorder { pages: Mutex::new(before.pages.lock().unwrap().clone()), ..Recorder::default() };
            if let Change::Write(offset, data) = &partial {
                image.store(*offset, data)
            }
            if let Change::Punch(offset, length) = &partial {
                image.store(*offset, &vec![0; *length as usize])
            }
            let (file, _) = ChunkFile::open(image, CHUNK).unwrap();
            let settled = file.settle(0, UNITS).unwrap();
            cuts += 1;
            damaged += settled.damaged;
            assert!(!is_possible || settled.damaged == 0, "change {at} cut at {length}: {settled:?}");
            for unit in 0..UNITS {
                let (old, new) = (expected(old[unit as usize]), expected(new[unit as usize]));
                match read_unit(&file, unit) {
                    Some(found) => assert!(found == old || found == new, "change {at} cut at {length}, unit {unit}"),
                    None => assert!(!is_possible, "change {at} cut at {length}, unit {unit} is lost"),
                }
            }
            // Settled is settled: a second look finds nothing to do, and the table speaks the truth.
            assert_eq!(file.settle(0, UNITS).unwrap().settled_back, 0);
        }
    }
    assert!(cuts > 1_000 && damaged > 0, "{cuts} cuts, {damaged} damaged");
}

#[test]
fn a_settled_unit_is_older_than_the_lost_write_and_not_older_than_what_it_holds() {
    let recorded = ChunkFile::create(Recorder::default(), &header()).unwrap();
    carry_out(&recorded, &Step::Put(0, vec![1]), 3).unwrap();
    carry_out(&recorded, &Step::Put(0, vec![2]), 9).unwrap();
    let log = recorded.raw().log.lock().unwrap().clone();
    let (file, _) = ChunkFile::open(Recorder::replay(log[..log.len() - 1].iter()), CHUNK).unwrap();
    assert_eq!(file.settle(0, UNITS).unwrap().settled_back, 1);
    let stamp = WriteStamp { version: Version(1), seq: 8 };
    assert_eq!(file.table().unwrap(), [(0, UnitState::data(stamp, crc32c::crc32c(&content(1))))]);
}

#[test]
fn a_write_that_fails_half_way_leaves_what_was_there() {
    for errno in [libc::ENOSPC, libc::EIO] {
        for step in [Step::Put(0, vec![7, 8]), Step::Zero(0, 2)] {
            let file = ChunkFile::create(Recorder::default(), &header()).unwrap();
            carry_out(&file, &Step::Put(1, vec![1]), 1).unwrap();
            let log = file.raw().log.lock().unwrap().clone();
            // The entries are written, the data is not; then the disk works again for the correction.
            let failing = Recorder { fails_after: Some((1, errno)), ..Recorder::replay(log.iter()) };
            let (file, _) = ChunkFile::open(failing, CHUNK).unwrap();
            let error = carry_out(&file, &step, 2).unwrap_err();
            // The correction fails too with this recorder, so the disk is fenced whatever the first error was.
            assert!(matches!(error, StoreError::Write(_)), "{error}");
            let image = file.raw().pages.lock().unwrap().clone();
            let (file, _) =
                ChunkFile::open(Recorder { pages: Mutex::new(image), ..Recorder::default() }, CHUNK).unwrap();
            file.settle(0, UNITS).unwrap();
            assert_eq!(read_unit(&file, 0), Some(expected(None)));
            assert_eq!(read_unit(&file, 1), Some(expected(Some(1))));
        }
    }
}

#[test]
fn a_sync_is_carried_out_only_if_something_changed_since_the_last() {
    let file = ChunkFile::create(Recorder::default(), &header()).unwrap();
    let syncs = || file.raw().syncs.load(Ordering::SeqCst);
    file.sync().unwrap();
    file.sync().unwrap();
    assert_eq!(syncs(), 1);
    let changes: [&dyn Fn(); 3] = [
        &|| carry_out(&file, &Step::Put(0, vec![1]), 1).unwrap(),
        &|| carry_out(&file, &Step::Zero(0, 4), 2).unwrap(),
        &|| file.set_header(&Header { version: Version(2), ..header() }).unwrap(),
    ];
    for (at, change) in (2..).zip(changes) {
        change();
        assert!(file.is_unsynced());
        file.sync().unwrap();
        file.sync().unwrap();
        assert_eq!(syncs(), at);
        assert!(!file.is_unsynced());
    }
}

#[test]
fn a_sync_that_failed_is_never_asked_again_and_never_taken_for_done() {
    let file = ChunkFile::create(Recorder::default(), &header()).unwrap();
    carry_out(&file, &Step::Put(0, vec![1]), 1).unwrap();
    file.raw().sync_fails.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(file.sync(), Err(StoreError::Write(_))));
        carry_out(&file, &Step::Put(0, vec![2]), 2).unwrap();
    }
    assert_eq!(file.raw().syncs.load(Ordering::SeqCst), 1);
    assert!(file.is_unsynced());
}

#[test]
fn every_flipped_bit_in_data_and_table_is_detected() {
    let file = ChunkFile::create(Recorder::default(), &header()).unwrap();
    carry_out(&file, &Step::Put(1, vec![3]), 1).unwrap();
    let entry = super::layout::entry_offset(1);
    let places = (entry..entry + 32).chain((data_offset(1)..data_offset(1) + PAGE).step_by(13));
    for place in places {
        for bit in 0..8 {
            let mut byte = [0];
            file.raw().read_at(&mut byte, place).unwrap();
            file.raw().store(place, &[byte[0] ^ 1 << bit]);
            assert_eq!(read_unit(&file, 1), None, "byte {place}, bit {bit}");
            file.raw().store(place, &byte);
        }
    }
    assert_eq!(read_unit(&file, 1), Some(content(3)));
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let put = (0..UNITS, proptest::collection::vec(any::<u8>(), 1..6)).prop_map(|(first, mut seeds)| {
        seeds.truncate((UNITS - first) as usize);
        Step::Put(first, seeds)
    });
    let zero = (0..UNITS, 1..UNITS).prop_map(|(first, count)| Step::Zero(first, count.min(UNITS - first)));
    proptest::collection::vec(prop_oneof![3 => put, 1 => zero], 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_replica_file_behaves_like_a_row_of_units_and_survives_reopening(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replica");
        let open = || std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let mut file = ChunkFile::create(OsFile(open()), &header()).unwrap();
        let mut model: Model = vec![None; UNITS as usize];
        for (at, step) in steps.iter().enumerate() {
            carry_out(&file, step, at as u64 + 1).unwrap();
            apply_to_model(&mut model, step);
            if at % 5 == 4 {
                let (reopened, found) = ChunkFile::open(OsFile(open()), CHUNK).unwrap();
                prop_assert_eq!(found, header());
                let settled = reopened.settle(0, UNITS).unwrap();
                prop_assert_eq!((settled.settled_back, settled.damaged), (0, 0));
                file = reopened;
            }
            let mut buffer = vec![0xee; UNITS as usize * UNIT_BYTES];
            let reads = file.read(0, UNITS, &mut buffer).unwrap();
            for (unit, content) in buffer.chunks_exact(UNIT_BYTES).enumerate() {
                prop_assert_eq!(content, &expected(model[unit])[..]);
                let is_hole = matches!(reads[unit], UnitRead::Good(state) if state.hole);
                prop_assert_eq!(is_hole, model[unit].is_none());
            }
            let mut allocated = vec![false; UNITS as usize];
            for (first, end) in file.extents(0, UNITS).unwrap() {
                allocated[first as usize..end as usize].fill(true);
            }
            prop_assert_eq!(allocated, model.iter().map(Option::is_some).collect::<Vec<_>>());
        }
    }
}
