//! The replicas of one simulated chunk server: the real store, on a simulated disk.
//!
//! The disk belongs to the host and outlives the process; what is open of it does not.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dfs_chunkd::core::message::{DiskAnswer, DiskJob};
use dfs_chunkd::core::replica::Recovered;
use dfs_chunkd::core::unit::UnitState;
use dfs_chunkd::store::StoreError;
use dfs_chunkd::store::chunk_file::UnitRead;
use dfs_chunkd::store::header::Header;
use dfs_chunkd::store::options::StoreOptions;
use dfs_chunkd::store::replica_store::{OpenReplica, ReplicaStore};
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::{Grant, Home};
use dfs_proto::{ChunkId, ClusterId, FsError, Version};

use super::disk::Disk;
use super::scheduler::Time;
use super::volume::SharedDisk;
use crate::random::Random;

thread_local! {
    /// Where this run is with numbers that stores make for themselves.
    static FRESH: Cell<u64> = const { Cell::new(0) };
}

/// Begins a run: from now on stores in this thread make the numbers that follow from `seed`.
pub fn begin_run(seed: u64) {
    FRESH.set(seed);
}

fn fresh_number() -> u64 {
    let at = FRESH.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    FRESH.set(at);
    Random::new(at).next() | 1
}

fn fresh_id() -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&fresh_number().to_le_bytes());
    id[8..].copy_from_slice(&fresh_number().to_le_bytes());
    id
}

/// What is found when a replica is opened.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its header's.
    pub version: Version,
    /// Its header's.
    pub incomplete: bool,
    /// Its header's.
    pub chunk_size_log2: u32,
    /// The rest.
    pub recovered: Recovered,
}

/// The replicas of one server, on one disk.
#[derive(Debug)]
pub struct NodeStore {
    /// The disk.
    pub disk: SharedDisk,
    options: StoreOptions,
    /// Counts the starts of the host.
    boots: u64,
    store: Option<ReplicaStore>,
    open: BTreeMap<ChunkId, OpenReplica>,
    damaged: BTreeSet<ChunkId>,
    /// Of replicas with writes that no sync followed: when the first of them came, and the lowest place of all.
    unsynced: BTreeMap<ChunkId, (Time, u64)>,
    /// The units of each replica that were brought to stable media once.
    durable: BTreeMap<ChunkId, BTreeSet<u32>>,
}

impl NodeStore {
    /// Returns the store of a server that was never started.
    pub fn new(disk: Disk, pending_max: u64) -> Self {
        let options = StoreOptions {
            reserve_max: 1 << 20,
            segment_bytes: 256 << 10,
            journal_max: 1 << 20,
            pending_max,
            is_scaled: false,
            fresh_salt: fresh_number,
            fresh_id,
        };
        Self {
            disk: SharedDisk::new(disk),
            options,
            boots: 1,
            store: None,
            open: BTreeMap::new(),
            damaged: BTreeSet::new(),
            unsynced: BTreeMap::new(),
            durable: BTreeMap::new(),
        }
    }

    /// The process starts: takes the disk into use.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    pub fn start(&mut self) -> Result<(), String> {
        let opened =
            ReplicaStore::open_on(vec![Arc::new(self.disk.clone())], &format!("boot {}", self.boots), &self.options);
        self.store = Some(opened.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// The process ends, and with it what it knew.
    pub fn close(&mut self) {
        self.open.clear();
        self.damaged.clear();
        self.store = None;
        self.disk.lock().end_of_process();
    }

    /// The host loses power, after its process has ended.
    pub fn power_cut(&mut self) {
        self.boots += 1;
        self.unsynced.clear();
        self.disk.lock().power_cut();
    }

    /// Replaces the disk by an empty one, while no process runs.
    pub fn wipe(&mut self) {
        self.unsynced.clear();
        self.durable.clear();
        self.disk.lock().wipe();
    }

    fn store(&self) -> &ReplicaStore {
        self.store.as_ref().expect("the process runs")
    }

    /// Returns whether the store is in use.
    pub fn is_open(&self) -> bool {
        self.store.is_some()
    }

    /// Returns the server's id.
    pub fn server(&self) -> [u8; 16] {
        self.store().server()
    }

    /// Notes the cluster.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn join(&self, cluster: ClusterId) -> std::io::Result<()> {
        self.store().join(cluster)
    }

    /// Returns whether acknowledged writes may be missing.
    pub fn is_suspect(&self) -> bool {
        self.store().is_suspect()
    }

    /// The master knows that.
    pub fn clear_suspect(&self) {
        self.store().clear_suspect();
    }

    /// Returns the replica of `chunk`.
    ///
    /// # Errors
    ///
    /// What callers are told.
    pub fn open(&mut self, chunk: ChunkId) -> Result<Option<Found>, FsError> {
        match self.store().open_replica(chunk).map_err(failure)? {
            Some(opened) => Ok(Some(self.insert(opened))),
            None => Ok(None),
        }
    }

    fn insert(&mut self, opened: OpenReplica) -> Found {
        let header = opened.header;
        let recovered = Recovered {
            home: header.home,
            keys: opened.keys.clone(),
            highest_seq: opened.file.table().iter().map(|(_, state)| state.stamp.seq).max().unwrap_or(0),
        };
        self.open.insert(header.chunk, opened);
        Found {
            version: header.version,
            incomplete: header.incomplete,
            chunk_size_log2: header.chunk_size_log2,
            recovered,
        }
    }

    /// Makes the replica that `grant` names.
    ///
    /// # Errors
    ///
    /// `Stale` if it was deleted; what callers are told.
    pub fn create(&mut self, grant: &Grant) -> Result<Found, FsError> {
        if self.store().was_deleted(grant.chunk, grant.version) {
            return Err(FsError::Stale("the replica was deleted"));
        }
        let header = Header {
            chunk: grant.chunk,
            version: grant.version,
            home: grant.home,
            chunk_size_log2: grant.chunk_size_log2,
            incomplete: !grant.may_create,
        };
        let made = self.store().create_replica(&header).map_err(failure)?;
        Ok(self.insert(made))
    }

    /// Closes a replica that nobody uses.
    pub fn close_replica(&mut self, chunk: ChunkId) {
        if let Some(opened) = self.open.remove(&chunk)
            && opened.file.is_unsynced()
        {
            // A disk that fails is fenced by it.
            if opened.sync().is_ok() {
                self.unsynced.remove(&chunk);
            }
        }
    }

    /// Deletes the replica of `chunk`, which may not be made again.
    ///
    /// # Errors
    ///
    /// What the master is told.
    pub fn delete(&mut self, chunk: ChunkId) -> Result<(), FsError> {
        self.open.remove(&chunk);
        self.unsynced.remove(&chunk);
        self.durable.remove(&chunk);
        self.store().delete(chunk).map_err(failure)
    }

    /// Deletes the replica of `chunk`, which may come back one day under version `below` or a later one.
    ///
    /// # Errors
    ///
    /// What the master is told.
    pub fn discard(&mut self, chunk: ChunkId, below: Version) -> Result<(), FsError> {
        self.open.remove(&chunk);
        self.unsynced.remove(&chunk);
        self.durable.remove(&chunk);
        self.store().discard(chunk, below).map_err(failure)
    }

    /// Returns what each unit of an open replica holds, as far as it was ever written.
    pub fn peek(&self, chunk: ChunkId) -> Option<BTreeMap<u32, UnitState>> {
        Some(self.open.get(&chunk)?.file.table().into_iter().collect())
    }

    /// Returns what a replica holds, whether it is open or not: its units, `None` if damaged, and their bytes.
    ///
    /// # Errors
    ///
    /// What callers are told.
    pub fn inspect(&self, chunk: ChunkId, units: u32) -> Result<(Vec<Option<UnitState>>, Vec<u8>), FsError> {
        let opened;
        let file = match self.open.get(&chunk) {
            Some(open) => &open.file,
            None => {
                let store = self.store.as_ref().ok_or_else(|| FsError::NoReplica("it does not run".into()))?;
                opened = store.open_replica(chunk).map_err(failure)?;
                &opened.as_ref().ok_or_else(|| FsError::NoReplica("there is none".into()))?.file
            }
        };
        let mut bytes = vec![0; (units * UNIT_SIZE) as usize];
        let reads = file.read(0, units, &mut bytes).map_err(failure)?;
        let state = |read| match read {
            UnitRead::Good(state) => Some(state),
            UnitRead::Bad => None,
        };
        Ok((reads.into_iter().map(state).collect(), bytes))
    }

    /// Returns since when a replica has writes that no sync followed, and the lowest place of them.
    pub fn unsynced_since(&self, chunk: ChunkId) -> Option<(Time, u64)> {
        self.unsynced.get(&chunk).copied()
    }

    /// Returns a unit that was on stable media once, and cannot be read: a later write of it has torn it.
    pub fn torn(&self, units: u32) -> Option<(ChunkId, u32)> {
        self.durable.iter().find_map(|(chunk, durable)| {
            let (states, _) = self.inspect(*chunk, units).ok()?;
            let unit = durable.iter().find(|unit| states.get(**unit as usize) == Some(&None))?;
            Some((*chunk, *unit))
        })
    }

    /// Returns whether the disk is used although a sync of it has failed (D4).
    pub fn trusts_failed_sync(&self) -> bool {
        self.is_open() && !self.has_failed() && self.disk.lock().failed_syncs() > 0
    }

    /// Returns all replicas on disks that work.
    pub fn held(&self) -> Vec<(ChunkId, Home, Version)> {
        let Some(store) = &self.store else { return Vec::new() };
        let (notes, _) = store.inventory(None, usize::MAX);
        notes.into_iter().map(|note| (note.chunk, note.home, note.version)).collect()
    }

    /// Returns all replicas on disks that have failed, as far as they can be told.
    pub fn stranded(&self) -> Vec<(ChunkId, Option<(Home, Version)>)> {
        let stranded = self.store().stranded().into_iter();
        stranded.map(|(chunk, note)| (chunk, note.map(|note| (note.home, note.version)))).collect()
    }

    /// Returns the replicas in which damage was found since the last call.
    pub fn take_damaged(&mut self) -> BTreeSet<ChunkId> {
        std::mem::take(&mut self.damaged)
    }

    /// Returns bytes of the disk, and those that may be written.
    pub fn space(&self) -> (u64, u64) {
        self.store.as_ref().map_or((0, 0), |store| store.disks()[0].space())
    }

    /// Returns whether the disk was given up.
    pub fn has_failed(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.disks()[0].has_failed())
    }

    /// Does what the journal needs; `is_time`: a second has passed.
    pub fn tend(&mut self, is_time: bool) {
        let disk = &self.store().disks()[0];
        let due = disk.due();
        // What goes wrong is noted by the disk itself.
        let _ = if due.checkpoint {
            disk.checkpoint()
        } else if (due.flush || is_time) && !disk.has_failed() {
            disk.flush()
        } else {
            Ok(())
        };
        if is_time {
            let _ = disk.measure();
        }
    }

    /// Carries a job out on a replica that is open.
    ///
    /// # Errors
    ///
    /// What the core is told.
    pub fn perform(&mut self, now: Time, chunk: ChunkId, job: DiskJob) -> Result<DiskAnswer, FsError> {
        let placed = match &job {
            // What comes once more changes nothing, so there is nothing more to be synced.
            DiskJob::Put { first, states, .. } if self.holds(chunk, *first, states) => None,
            DiskJob::Put { states, .. } => states.iter().map(|state| state.stamp.seq).min(),
            DiskJob::Zero { stamp, .. } => Some(stamp.seq),
            _ => None,
        };
        let syncs = matches!(job, DiskJob::SetHeader { .. } | DiskJob::Sync);
        let answer = self.carry_out(chunk, job)?;
        if let Some(seq) = placed {
            let (_, lowest) = self.unsynced.entry(chunk).or_insert((now, seq));
            *lowest = seq.min(*lowest);
        }
        if syncs {
            self.unsynced.remove(&chunk);
            let units = self.peek(chunk).unwrap_or_default();
            self.durable.entry(chunk).or_default().extend(units.into_keys());
        }
        Ok(answer)
    }

    fn holds(&self, chunk: ChunkId, first: u32, states: &[UnitState]) -> bool {
        let entries = self.open.get(&chunk).map(|open| open.file.entries(first, states.len() as u32));
        entries.is_some_and(|entries| entries.iter().map(|(_, entry)| entry).eq(states))
    }

    fn carry_out(&mut self, chunk: ChunkId, job: DiskJob) -> Result<DiskAnswer, FsError> {
        let Some(open) = self.open.get(&chunk) else {
            return Err(FsError::Stale("the replica was deleted"));
        };
        let checked = || open.disk.check().map_err(failure);
        let change =
            |work: &dyn Fn() -> Result<(), StoreError>| open.disk.judge(open.disk.check().and_then(|()| work()));
        let done = match job {
            DiskJob::Table => {
                let table = open.file.told();
                checked()?;
                return Ok(DiskAnswer::Table(table));
            }
            DiskJob::Extents { first, count } => {
                let extents = open.file.extents(first, count);
                checked()?;
                return Ok(DiskAnswer::Extents(extents));
            }
            DiskJob::Entries { first, count } => {
                let entries = open.file.entries(first, count);
                checked()?;
                return Ok(DiskAnswer::Table(entries));
            }
            DiskJob::Read { first, count } => {
                let mut buffer = vec![0; (count * UNIT_SIZE) as usize];
                let reads = open.file.read(first, count, &mut buffer).map_err(failure)?;
                checked()?;
                let mut states = Vec::with_capacity(reads.len());
                for (unit, read) in (first..).zip(reads) {
                    match read {
                        UnitRead::Good(state) => states.push(Some(state)),
                        UnitRead::Bad => {
                            open.file.note_damage(unit);
                            self.damaged.insert(chunk);
                            states.push(None);
                        }
                    }
                }
                return Ok(DiskAnswer::Units(states, Bytes::from(buffer)));
            }
            DiskJob::Put { first, states, payload, key, needs_room } => change(&|| {
                if needs_room {
                    open.take_room(first, states.len() as u32)?;
                }
                open.file.put(first, &states, &payload, key)
            }),
            DiskJob::Zero { first, count, stamp, key } => change(&|| open.file.zero(first, count, stamp, key)),
            DiskJob::SetHeader { version, incomplete } => {
                let header = Header { version, incomplete, ..open.header };
                change(&|| open.file.set_header(&header)).and_then(|()| open.sync())
            }
            DiskJob::Sync => open.sync(),
        };
        done.map(|()| DiskAnswer::Done).map_err(failure)
    }
}

/// Returns what a request is told when the store fails.
fn failure(error: StoreError) -> FsError {
    match error {
        StoreError::NoSpace => FsError::NoSpace,
        StoreError::BadFile(reason) => FsError::Corrupt(reason),
        StoreError::Deleted => FsError::Stale("the replica was deleted"),
        error => FsError::NoReplica(format!("this server's disk: {error}")),
    }
}
