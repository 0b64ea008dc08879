//! The disk of one server with one replica: what survives when the server is killed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::{FsError, Version};

use super::super::super::message::{DiskAnswer, DiskJob, WriteKey};
use super::super::super::unit::UnitState;
use super::super::Recovered;

#[derive(Debug, Default)]
pub struct Disk {
    pub exists: bool,
    pub version: Version,
    pub incomplete: bool,
    pub units: BTreeMap<u32, (UnitState, Bytes)>,
    pub keys: Vec<WriteKey>,
    /// Units whose bytes have changed by themselves, and those of them that were noticed.
    pub rotten: BTreeSet<u32>,
    pub noticed: BTreeSet<u32>,
    pub is_full: bool,
}

impl Disk {
    pub fn recovered(&self) -> Recovered {
        let highest_seq = self.units.values().map(|(state, _)| state.stamp.seq).max().unwrap_or(0);
        Recovered { keys: self.keys.clone(), highest_seq, ..Recovered::default() }
    }

    pub fn table(&self) -> Vec<(u32, UnitState)> {
        let known = self.units.iter().filter(|(unit, _)| !self.noticed.contains(unit));
        known.map(|(unit, (state, _))| (*unit, *state)).collect()
    }

    fn told(&self) -> Vec<(u32, UnitState)> {
        let told = |unit: &u32, state: UnitState| if self.noticed.contains(unit) { state.damaged() } else { state };
        self.units.iter().map(|(unit, (state, _))| (*unit, told(unit, *state))).collect()
    }

    /// Carries a job out, or the first so many units of it if it is cut short by a crash.
    pub fn carry_out(&mut self, job: &DiskJob, cut: Option<usize>) -> Result<DiskAnswer, FsError> {
        match job {
            DiskJob::Table => return Ok(DiskAnswer::Table(self.told())),
            DiskJob::Entries { first, count } => {
                let known = self.units.range(*first..first + count);
                return Ok(DiskAnswer::Table(known.map(|(unit, (state, _))| (*unit, *state)).collect()));
            }
            DiskJob::Read { first, count } => {
                let mut content = BytesMut::new();
                let mut states = Vec::new();
                for unit in *first..first + count {
                    let (state, bytes) = self.unit(unit);
                    content.extend_from_slice(&bytes);
                    let is_rotten = self.rotten.contains(&unit);
                    if is_rotten {
                        self.noticed.insert(unit);
                    }
                    states.push((!is_rotten).then_some(state));
                }
                return Ok(DiskAnswer::Units(states, content.freeze()));
            }
            DiskJob::Put { first, states, payload, key, needs_room } => {
                let is_allocated = (*first..).zip(states).all(|(unit, _)| self.units.contains_key(&unit));
                if self.is_full && *needs_room && !is_allocated {
                    return Err(FsError::NoSpace);
                }
                let mut payload = payload.clone();
                for (unit, state) in (*first..).zip(states).take(cut.unwrap_or(states.len())) {
                    let bytes = if state.hole { hole() } else { payload.split_to(UNIT_SIZE as usize) };
                    if state.is_lost() {
                        self.units.insert(unit, (UnitState::data(state.stamp, state.crc), bytes));
                        self.rotten.insert(unit);
                        self.noticed.insert(unit);
                        continue;
                    }
                    assert_eq!(crc32c::crc32c(&bytes), state.crc, "a unit and its checksum");
                    self.rotten.remove(&unit);
                    self.noticed.remove(&unit);
                    self.units.insert(unit, (*state, bytes));
                    if *state == UnitState::NEVER {
                        self.units.remove(&unit);
                    }
                }
                self.remember(*key, cut);
            }
            DiskJob::Zero { first, count, stamp, key } => {
                for unit in (*first..first + count).take(cut.unwrap_or(usize::MAX)) {
                    if let Some(entry) = self.units.get_mut(&unit) {
                        *entry = (UnitState::tombstone(*stamp), hole());
                        self.rotten.remove(&unit);
                        self.noticed.remove(&unit);
                    }
                }
                self.remember(*key, cut);
            }
            DiskJob::SetHeader { version, incomplete } => {
                (self.version, self.incomplete) = (*version, *incomplete);
            }
            DiskJob::Sync => {}
            DiskJob::Extents { first, count } => {
                let mut extents: Vec<(u32, u32)> = Vec::new();
                for unit in (*first..first + count).filter(|unit| !self.unit(*unit).0.hole) {
                    match extents.last_mut() {
                        Some((_, end)) if *end == unit => *end += 1,
                        _ => extents.push((unit, unit + 1)),
                    }
                }
                return Ok(DiskAnswer::Extents(extents));
            }
        }
        Ok(DiskAnswer::Done)
    }

    fn remember(&mut self, key: Option<WriteKey>, cut: Option<usize>) {
        self.keys.extend(key.filter(|_| cut.is_none()));
    }

    fn unit(&self, unit: u32) -> (UnitState, Bytes) {
        self.units.get(&unit).cloned().unwrap_or((UnitState::NEVER, hole()))
    }
}

fn hole() -> Bytes {
    Bytes::from_static(&[0; UNIT_SIZE as usize])
}
