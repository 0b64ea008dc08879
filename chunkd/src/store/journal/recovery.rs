//! What a start does with the journal that it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_proto::ChunkId;

use super::super::StoreError;
use super::super::data_dir::replica_path;
use super::super::options::StoreOptions;
use super::super::volume::Volume;
use super::Journal;
use super::log::DIRECTORY;
use super::replay::{Replayed, carry_out, changes};
use super::scan::{ScanError, scan};

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Its journal.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A disk in use has no journal.
    #[error("the journal is gone")]
    Missing,
    /// Its files.
    #[error("the journal cannot be carried out: {0}")]
    Store(#[from] StoreError),
}

/// A disk whose journal is in order.
#[derive(Debug)]
pub struct Recovered {
    /// The journal, empty.
    pub journal: Journal,
    /// Replicas with units that were on stable media and are damaged.
    pub damaged: BTreeMap<ChunkId, Vec<u32>>,
    /// Replicas that the journal had something of.
    pub replicas: usize,
    /// Units that were never synced and are lost.
    pub lost_units: u64,
    /// The journal's end was torn off.
    pub was_torn: bool,
}

/// Brings the journal of a disk into its chunk files, and begins a new one. `lost_power`: what was not synced may be
/// missing in any part.
///
/// # Errors
///
/// [`RecoveryError`]: the disk must not be used. Nothing that counts was given up.
pub fn recover(
    volume: &Arc<dyn Volume>,
    options: &StoreOptions,
    is_new: bool,
    lost_power: bool,
) -> Result<Recovered, RecoveryError> {
    // What a start that was killed left in a new directory has nothing in it.
    let found = scan(&**volume, lost_power || is_new)?;
    if !found.is_begun && !is_new {
        return Err(RecoveryError::Missing);
    }
    let (mut damaged, mut lost_units) = (BTreeMap::new(), 0);
    let mut directories = BTreeSet::new();
    let changes = changes(&found);
    for (chunk, change) in &changes {
        let replayed = carry_out(&**volume, *chunk, change)?;
        if change.is_new || change.is_deleted {
            directories.insert(replica_path(*chunk).0);
        }
        let Some(Replayed { lost, damaged: units, .. }) = replayed else { continue };
        lost_units += u64::from(lost);
        if !units.is_empty() {
            damaged.insert(*chunk, units);
        }
    }
    for directory in &directories {
        volume.sync_directory(directory).map_err(StoreError::Write)?;
    }
    // Behind everything that was ever written, so that nothing of it passes for a record of the new journal.
    let begin = found.end.next_multiple_of(4096) + 4096;
    let journal = Journal::begin(volume, begin, found.keys, options)?;
    journal.log.retire_all(&found.segments)?;
    volume.sync_directory(DIRECTORY).map_err(StoreError::Write)?;
    Ok(Recovered { journal, damaged, replicas: changes.len(), lost_units, was_torn: found.is_torn })
}
