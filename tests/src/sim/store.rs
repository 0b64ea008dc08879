//! The replicas of one simulated chunk server. A stand-in with the same promises as the real store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs_chunkd::core::message::{DiskAnswer, DiskJob, WriteKey};
use dfs_chunkd::core::replica::Recovered;
use dfs_chunkd::core::unit::UnitState;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::{Grant, Home};
use dfs_proto::{ChunkId, FsError, Version};

use crate::random::Random;

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

#[derive(Clone, Debug)]
struct Replica {
    home: Home,
    version: Version,
    incomplete: bool,
    chunk_size_log2: u32,
    units: BTreeMap<u32, (UnitState, Bytes)>,
    stable: BTreeMap<u32, (UnitState, Bytes)>,
    keys: Vec<WriteKey>,
    stable_keys: Vec<WriteKey>,
}

/// The replicas of one server, on one disk.
#[derive(Debug)]
pub struct NodeStore {
    replicas: BTreeMap<ChunkId, Replica>,
    deleted: BTreeSet<ChunkId>,
    is_suspect: bool,
    rng: Random,
}

impl NodeStore {
    /// Returns an empty store.
    pub fn new(rng: Random) -> Self {
        Self { replicas: BTreeMap::new(), deleted: BTreeSet::new(), is_suspect: false, rng }
    }

    /// The process ends, and with it what it knew.
    pub fn close(&mut self) {
        self.deleted.clear();
    }

    /// Loses what was not synced.
    pub fn power_cut(&mut self) {
        self.is_suspect = true;
        for replica in self.replicas.values_mut() {
            let units: BTreeSet<u32> = replica.units.keys().chain(replica.stable.keys()).copied().collect();
            for unit in units {
                if self.rng.in_a_million(500_000) {
                    continue;
                }
                match replica.stable.get(&unit) {
                    Some(stable) => replica.units.insert(unit, stable.clone()),
                    None => replica.units.remove(&unit),
                };
            }
            replica.stable = replica.units.clone();
            replica.keys = replica.stable_keys.clone();
        }
    }

    /// Replaces the disk by an empty one.
    pub fn wipe(&mut self) {
        self.replicas.clear();
        self.is_suspect = false;
    }

    /// Returns whether acknowledged writes may be missing; asked at a start.
    pub fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.is_suspect)
    }

    /// Returns the replica of `chunk`.
    pub fn open(&self, chunk: ChunkId) -> Option<Found> {
        let replica = self.replicas.get(&chunk)?;
        let highest_seq = replica.units.values().map(|(state, _)| state.stamp.seq).max().unwrap_or(0);
        Some(Found {
            version: replica.version,
            incomplete: replica.incomplete,
            chunk_size_log2: replica.chunk_size_log2,
            recovered: Recovered { home: replica.home, keys: replica.keys.clone(), highest_seq },
        })
    }

    /// Makes the replica that `grant` names.
    ///
    /// # Errors
    ///
    /// `Stale` if it was deleted.
    pub fn create(&mut self, grant: &Grant) -> Result<Found, FsError> {
        if self.deleted.contains(&grant.chunk) {
            return Err(FsError::Stale("the chunk was deleted"));
        }
        let replica = Replica {
            home: grant.home,
            version: grant.version,
            incomplete: !grant.may_create,
            chunk_size_log2: grant.chunk_size_log2,
            units: BTreeMap::new(),
            stable: BTreeMap::new(),
            keys: Vec::new(),
            stable_keys: Vec::new(),
        };
        self.replicas.insert(grant.chunk, replica);
        Ok(self.open(grant.chunk).expect("just made"))
    }

    /// Deletes the replica of `chunk`.
    pub fn delete(&mut self, chunk: ChunkId) {
        self.deleted.insert(chunk);
        self.replicas.remove(&chunk);
    }

    /// Returns what each unit of a replica holds, as far as it was ever written.
    pub fn peek(&self, chunk: ChunkId) -> Option<BTreeMap<u32, UnitState>> {
        Some(self.replicas.get(&chunk)?.units.iter().map(|(unit, (state, _))| (*unit, *state)).collect())
    }

    /// Returns all replicas.
    pub fn held(&self) -> Vec<(ChunkId, Home, Version)> {
        self.replicas.iter().map(|(chunk, replica)| (*chunk, replica.home, replica.version)).collect()
    }

    /// Returns bytes that may be written.
    pub fn room(&self) -> u64 {
        1 << 40
    }

    /// Brings to stable media what has waited for it.
    pub fn flush(&mut self) {}

    /// Returns whether the disk was given up.
    pub fn has_failed(&self) -> bool {
        false
    }

    /// Carries a job out.
    ///
    /// # Errors
    ///
    /// What the core is told.
    pub fn perform(&mut self, chunk: ChunkId, job: DiskJob) -> Result<DiskAnswer, FsError> {
        let replica = self.replicas.get_mut(&chunk).ok_or_else(|| FsError::NoReplica("it is gone".into()))?;
        match job {
            DiskJob::Table => {
                Ok(DiskAnswer::Table(replica.units.iter().map(|(unit, (state, _))| (*unit, *state)).collect()))
            }
            DiskJob::Read { first, count } => {
                let mut states = Vec::new();
                let mut bytes = vec![0; (count * UNIT_SIZE) as usize];
                for (at, unit) in (first..first + count).enumerate() {
                    let (state, content) =
                        replica.units.get(&unit).cloned().unwrap_or((UnitState::NEVER, Bytes::new()));
                    if !content.is_empty() {
                        bytes[at * UNIT_SIZE as usize..(at + 1) * UNIT_SIZE as usize].copy_from_slice(&content);
                    }
                    states.push(Some(state));
                }
                Ok(DiskAnswer::Units(states, bytes.into()))
            }
            DiskJob::Put { first, states, payload, key, .. } => {
                let mut at = 0;
                for (unit, state) in (first..).zip(states) {
                    let content = if state.hole {
                        Bytes::new()
                    } else {
                        at += UNIT_SIZE as usize;
                        payload.slice(at - UNIT_SIZE as usize..at)
                    };
                    replica.units.insert(unit, (state, content));
                }
                replica.keys.extend(key);
                Ok(DiskAnswer::Done)
            }
            DiskJob::Zero { first, count, stamp, key } => {
                for unit in first..first + count {
                    if let Some(entry) = replica.units.get_mut(&unit) {
                        *entry = (UnitState::tombstone(stamp), Bytes::new());
                    }
                }
                replica.keys.extend(key);
                Ok(DiskAnswer::Done)
            }
            DiskJob::SetHeader { version, incomplete } => {
                replica.version = version;
                if incomplete {
                    replica.keys.clear();
                    replica.stable_keys.clear();
                }
                replica.incomplete = incomplete;
                Ok(DiskAnswer::Done)
            }
            DiskJob::Sync => {
                replica.stable = replica.units.clone();
                replica.stable_keys = replica.keys.clone();
                Ok(DiskAnswer::Done)
            }
            DiskJob::Extents { first, count } => {
                let has = |unit: &u32| replica.units.get(unit).is_some_and(|(state, _)| !state.hole);
                Ok(DiskAnswer::Extents((first..first + count).filter(has).map(|unit| (unit, unit + 1)).collect()))
            }
        }
    }
}
