//! A store under a random load, what was promised to whom and when, and whether an image keeps the promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, ChunkIndex, InodeId, Version};

use super::memory::{Event, Image, MemoryVolume};
use super::random::Random;
use crate::core::message::WriteKey;
use crate::core::unit::{UnitState, WriteStamp};
use crate::store::chunk_file::UnitRead;
use crate::store::header::Header;
use crate::store::layout::UNIT_BYTES;
use crate::store::options::StoreOptions;
use crate::store::replica_store::{OpenReplica, ReplicaStore};

/// 32 units.
const CHUNK_SIZE_LOG2: u32 = 17;
const UNITS: u32 = 32;
const CHUNKS: u64 = 3;
const CLIENT: u64 = 99;

/// What a unit held from some moment on: the seq of its write, whether that zeroed it; `None`: never written.
type Held = Option<(u64, bool)>;

/// One change of a unit.
#[derive(Clone, Copy, Debug)]
struct Step {
    held: Held,
    /// Events before it began, and when its caller was answered.
    begun: usize,
    ended: usize,
}

/// What happened to one chunk.
#[derive(Clone, Debug, Default)]
struct ChunkHistory {
    units: BTreeMap<u32, Vec<Step>>,
    /// Barriers: what had ended before this many events is durable once so many events have happened.
    barriers: Vec<(usize, usize)>,
    /// Versions, with the event by which they were durable.
    versions: Vec<(Version, usize)>,
    /// Keys, with the event by which their writes were answered.
    keys: Vec<(WriteKey, usize)>,
    /// When it was made or deleted: `true` for made.
    lives: Vec<(bool, usize, usize)>,
}

/// A load that was carried out on a disk.
pub struct History {
    pub start: Image,
    pub events: Vec<Event>,
    chunks: BTreeMap<ChunkId, ChunkHistory>,
}

/// What an image may have gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process died: everything that was answered is there.
    Process,
    /// The host lost its power: everything that was synced is there.
    Power,
    /// A bit was flipped after the process died: units and whole replicas may be missing, if that is told.
    Flip,
}

/// What a start found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub is_refused: bool,
    pub is_fenced: bool,
    pub bad_units: u32,
    pub missing: u32,
}

fn salt() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub fn options() -> StoreOptions {
    StoreOptions {
        reserve_max: 0,
        segment_bytes: 96 << 10,
        journal_max: 384 << 10,
        pending_max: 256 << 10,
        is_scaled: false,
        fresh_salt: salt,
        fresh_id: || [5; 16],
    }
}

pub fn open(volume: &MemoryVolume, boot_id: &str) -> Result<ReplicaStore, String> {
    ReplicaStore::open_on(vec![Arc::new(volume.clone())], boot_id, &options()).map_err(|error| error.to_string())
}

pub fn content(held: Held, unit: u32) -> Vec<u8> {
    match held {
        None | Some((_, true)) => vec![0; UNIT_BYTES],
        Some((seq, false)) => {
            let word = (seq << 16 | u64::from(unit)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.to_le_bytes().repeat(UNIT_BYTES / 8)
        }
    }
}

fn stamp(seq: u64) -> WriteStamp {
    WriteStamp { version: Version(1), seq }
}

/// The load while it runs.
struct Load {
    volume: MemoryVolume,
    store: ReplicaStore,
    open: BTreeMap<ChunkId, OpenReplica>,
    chunks: BTreeMap<ChunkId, ChunkHistory>,
    seq: u64,
    random: Random,
}

impl History {
    /// Carries `steps` random steps out.
    pub fn record(seed: u64, steps: usize) -> Self {
        let volume = MemoryVolume::new(Image::default(), false);
        drop(open(&volume, "boot").unwrap());
        let start = volume.image();
        let volume = MemoryVolume::new(start.clone(), true);
        let store = open(&volume, "boot").unwrap();
        let random = Random(seed);
        let mut load = Load { volume, store, open: BTreeMap::new(), chunks: BTreeMap::new(), seq: 0, random };
        (0..steps).for_each(|_| load.step());
        let Load { volume, store, open, chunks, .. } = load;
        let events = volume.take_log();
        drop((open, store));
        Self { start, events, chunks }
    }

    /// Starts a store on `image`, which is what is left after the first `at` events, and checks what it holds.
    pub fn check(&self, volume: &MemoryVolume, at: usize, crash: Crash) -> Findings {
        let mut findings = Findings::default();
        let boot_id = if crash == Crash::Power { "another boot" } else { "boot" };
        let store = match open(volume, boot_id) {
            Ok(store) => store,
            Err(error) => {
                assert_eq!(crash, Crash::Flip, "{error}");
                findings.is_refused = true;
                return findings;
            }
        };
        if store.disks()[0].has_failed() {
            assert_eq!(crash, Crash::Flip, "the disk was fenced after {at} events");
            assert!(store.is_suspect());
            findings.is_fenced = true;
            return findings;
        }
        assert_eq!(store.is_suspect(), crash == Crash::Power);
        for (chunk, history) in &self.chunks {
            history.check(&store, *chunk, at, crash, &mut findings);
        }
        findings
    }
}

impl ChunkHistory {
    fn check(&self, store: &ReplicaStore, chunk: ChunkId, at: usize, crash: Crash, findings: &mut Findings) {
        let promised = |begun: usize, ended: usize| match crash {
            Crash::Process => ended <= at,
            _ => self.barriers.iter().any(|(covered, done)| *done <= at && ended <= *covered && begun <= at),
        };
        let is_told_alive = self.lives.iter().rev().find(|(_, begun, _)| *begun <= at);
        let Some(opened) = store.open_replica(chunk).unwrap() else {
            let must_be = is_told_alive.is_some_and(|(made, begun, ended)| *made && promised(*begun, *ended));
            assert!(!must_be || crash == Crash::Flip, "chunk {chunk} is gone after {at} events");
            findings.missing += u32::from(must_be);
            return;
        };
        let is_dead = is_told_alive.is_some_and(|(made, _, ended)| !*made && *ended <= at);
        assert!(!is_dead || crash != Crash::Process, "chunk {chunk} was deleted");
        let version = self.versions.iter().filter(|(_, done)| *done <= at).map(|(version, _)| *version).max();
        if !is_dead {
            assert!(version.is_none_or(|version| opened.header.version >= version), "chunk {chunk} after {at} events");
        }
        let mut buffer = vec![0; UNITS as usize * UNIT_BYTES];
        let reads = opened.file.read(0, UNITS, &mut buffer).unwrap();
        for (unit, (found, read)) in (0..).zip(buffer.chunks_exact(UNIT_BYTES).zip(&reads)) {
            let UnitRead::Good(state) = read else {
                assert_eq!(crash, Crash::Flip, "chunk {chunk} unit {unit} is damaged after {at} events");
                findings.bad_units += 1;
                continue;
            };
            let never = [Step { held: None, begun: 0, ended: 0 }];
            let steps = self.units.get(&unit).map_or(&never[..], Vec::as_slice);
            let begun = steps.partition_point(|step| step.begun <= at);
            let from = (0..begun).rev().find(|step| promised(steps[*step].begun, steps[*step].ended)).unwrap_or(0);
            // Before the first step there was nothing.
            let nothing = (from == 0
                && !steps.first().is_some_and(|step| promised(step.begun, step.ended) && step.begun <= at))
            .then_some(None);
            let mut allowed = nothing.into_iter().chain(steps[from..begun].iter().map(|step| step.held));
            let is_allowed = allowed.any(|held| {
                let is_stamp = match held {
                    None => *state == UnitState::NEVER,
                    // Without its entry, a hole is as good as one that was never anything else.
                    Some((_, true)) if crash == Crash::Flip && *state == UnitState::NEVER => true,
                    Some((seq, hole)) => state.stamp == stamp(seq) && state.hole == hole,
                };
                is_stamp && content(held, unit) == found
            });
            let steps = &steps[from.min(begun)..begun];
            assert!(is_allowed, "{crash:?} after {at} events: chunk {chunk} unit {unit} holds {state:?}, of {steps:?}");
        }
        if crash == Crash::Process {
            let answered = self.keys.iter().filter(|(_, done)| *done <= at);
            let missing = answered.map(|(key, _)| *key).find(|key| !opened.keys.contains(key));
            assert_eq!(missing, None, "chunk {chunk} after {at} events");
        }
    }
}

impl Load {
    fn step(&mut self) {
        let chunk = ChunkId(self.random.below(CHUNKS) + 1);
        if !self.open.contains_key(&chunk) {
            return self.make(chunk);
        }
        match self.random.below(100) {
            0..=54 => self.put(chunk),
            55..=61 => self.zero(chunk),
            62..=79 => self.barrier(chunk),
            80..=83 => self.raise(chunk),
            84..=91 => self.store.disks()[0].flush().unwrap(),
            92..=95 => self.store.disks()[0].checkpoint().unwrap(),
            96..=97 => self.reopen(chunk),
            _ => self.delete(chunk),
        }
    }

    fn history(&mut self, chunk: ChunkId) -> &mut ChunkHistory {
        self.chunks.entry(chunk).or_default()
    }

    fn make(&mut self, chunk: ChunkId) {
        let begun = self.volume.log_length();
        let home = Home { inode: InodeId(chunk.0), index: ChunkIndex(0) };
        let version = self.history(chunk).versions.last().map_or(Version(1), |(version, _)| *version);
        let header = Header { chunk, version, home, chunk_size_log2: CHUNK_SIZE_LOG2, incomplete: false };
        let made = self.store.create_replica(&header).unwrap();
        self.open.insert(chunk, made);
        let ended = self.volume.log_length();
        self.history(chunk).lives.push((true, begun, ended));
    }

    fn note(
        &mut self,
        chunk: ChunkId,
        units: impl Iterator<Item = u32>,
        held: Held,
        begun: usize,
        key: Option<WriteKey>,
    ) {
        let ended = self.volume.log_length();
        let history = self.history(chunk);
        for unit in units {
            history.units.entry(unit).or_default().push(Step { held, begun, ended });
        }
        history.keys.extend(key.map(|key| (key, ended)));
    }

    fn key(&mut self) -> WriteKey {
        WriteKey { client: CLIENT, number: self.seq, part: 0, stamp: stamp(self.seq) }
    }

    fn put(&mut self, chunk: ChunkId) {
        self.seq += 1;
        let (seq, begun) = (self.seq, self.volume.log_length());
        let first = self.random.below(u64::from(UNITS)) as u32;
        let most = if self.random.below(3) == 0 { 16 } else { 3 };
        let count = (self.random.below(most) as u32 + 1).min(UNITS - first);
        let units = first..first + count;
        let payload: Vec<u8> = units.clone().flat_map(|unit| content(Some((seq, false)), unit)).collect();
        let states: Vec<UnitState> =
            payload.chunks_exact(UNIT_BYTES).map(|unit| UnitState::data(stamp(seq), crc32c::crc32c(unit))).collect();
        let key = self.key();
        self.open[&chunk].file.put(first, &states, &Bytes::from(payload), Some(key)).unwrap();
        self.note(chunk, units, Some((seq, false)), begun, Some(key));
    }

    fn zero(&mut self, chunk: ChunkId) {
        self.seq += 1;
        let (seq, begun) = (self.seq, self.volume.log_length());
        let first = self.random.below(u64::from(UNITS)) as u32;
        let count = (self.random.below(8) as u32 + 1).min(UNITS - first);
        let file = Arc::clone(&self.open[&chunk].file);
        let slots = file.slots(first, count);
        let written: Vec<u32> =
            (first..).zip(slots).filter(|(_, slot)| slot.state().is_some()).map(|(unit, _)| unit).collect();
        let key = self.key();
        file.zero(first, count, stamp(seq), Some(key)).unwrap();
        self.note(chunk, written.into_iter(), Some((seq, true)), begun, Some(key));
    }

    fn barrier(&mut self, chunk: ChunkId) {
        let covered = self.volume.log_length();
        self.open[&chunk].sync().unwrap();
        let done = self.volume.log_length();
        self.history(chunk).barriers.push((covered, done));
    }

    fn raise(&mut self, chunk: ChunkId) {
        let file = Arc::clone(&self.open[&chunk].file);
        let covered = self.volume.log_length();
        let header = file.header();
        let version = Version(header.version.0 + 1);
        file.set_header(&Header { version, ..header }).unwrap();
        let done = self.volume.log_length();
        self.history(chunk).barriers.push((covered, done));
        self.history(chunk).versions.push((version, done));
    }

    fn reopen(&mut self, chunk: ChunkId) {
        self.open.remove(&chunk);
        let opened = self.store.open_replica(chunk).unwrap().expect("it is there");
        self.open.insert(chunk, opened);
    }

    fn delete(&mut self, chunk: ChunkId) {
        let begun = self.volume.log_length();
        self.open.remove(&chunk);
        self.store.delete(chunk).unwrap();
        let ended = self.volume.log_length();
        let history = self.history(chunk);
        history.lives.push((false, begun, ended));
        for steps in history.units.values_mut() {
            steps.push(Step { held: None, begun, ended });
        }
        history.keys.clear();
    }
}
