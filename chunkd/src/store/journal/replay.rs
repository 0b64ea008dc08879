//! Bringing what a journal says into the chunk files.
//!
//! Only the last word on each unit counts. Doing it twice, or half and then again, comes to the same.
//!
//! First writes are in the chunk file already, or were lost. One whose content does not match its checksum
//!
//! - and whose chunk was not synced since was never promised to anybody: the unit is as if it had never been written;
//! - and whose chunk was synced since is damaged: its entry stays, reads of it fail, and another replica has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dfs_proto::ChunkId;

use super::super::StoreError;
use super::super::chunk_file::{load_table, read_header, write_error};
use super::super::data_dir::{aside_path, replica_path};
use super::super::header::Header;
use super::super::layout::{ENTRY_BYTES, UNIT_BYTES, data_offset, entry_offset};
use super::super::raw_file::RawFile;
use super::super::unit_table::Slot;
use super::super::volume::Volume;
use super::record::{self, Record, RunKind};
use super::scan::{Found, Scan};
use crate::core::admission::units;
use crate::core::unit::UnitState;

/// What a journal says of one replica.
#[derive(Debug, Default)]
pub struct Change {
    /// It was made since the last checkpoint.
    pub is_new: bool,
    /// It was deleted, and not made again.
    pub is_deleted: bool,
    /// Its header, if that changed.
    pub header: Option<Header>,
    /// The units that were written.
    pub units: BTreeMap<u32, (UnitState, Source)>,
    /// First writes in records before this position were synced.
    durable: u64,
}

/// Where the content of a unit is.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the chunk file, or nowhere; the record was at this position.
    Direct(u64),
    /// In the journal: in this segment, at this offset.
    Journal(Arc<dyn RawFile>, u64),
    /// It is a hole.
    Hole,
    /// Nowhere: it is damaged.
    Lost,
}

/// What became of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds what the journal says.
    Good,
    /// It was never synced and is lost: a hole again.
    Lost,
    /// It was synced and is damaged.
    Damaged,
}

/// Sorts the records of a journal by chunk.
pub fn changes(scan: &Scan) -> BTreeMap<ChunkId, Change> {
    let mut changes: BTreeMap<ChunkId, Change> = BTreeMap::new();
    for found in &scan.records {
        match &found.record {
            Record::Create(header) => {
                changes.insert(header.chunk, Change { is_new: true, header: Some(*header), ..Change::default() });
            }
            Record::Header(header) => changes.entry(header.chunk).or_default().header = Some(*header),
            Record::Delete(chunk) => {
                changes.insert(*chunk, Change { is_deleted: true, ..Change::default() });
            }
            Record::Durable { chunk, before } => {
                let change = changes.entry(*chunk).or_default();
                change.durable = change.durable.max(*before);
            }
            Record::Write { chunk, .. } => note_write(changes.entry(*chunk).or_default(), found),
            Record::Keys(_) | Record::Checkpoint(_) | Record::Synced | Record::End => {}
        }
    }
    changes
}

fn note_write(change: &mut Change, found: &Found) {
    let Record::Write { runs, crcs, .. } = &found.record else { return };
    for (unit, state, kind, place) in record::units(runs, crcs) {
        let source = match (kind, place) {
            (RunKind::Direct, _) => Source::Direct(found.position),
            (RunKind::Lost, _) => Source::Lost,
            (_, Some(place)) => Source::Journal(Arc::clone(&found.payload.0), found.payload.1 + place as u64),
            _ => Source::Hole,
        };
        change.units.insert(unit, (state, source));
    }
}

impl Change {
    /// Says what `unit` holds after all, with room for its content.
    ///
    /// # Errors
    ///
    /// The journal's; a chunk file that cannot be read has lost the unit, or it is damaged.
    pub fn verdict(&self, file: &dyn RawFile, unit: u32, content: &mut [u8]) -> io::Result<Verdict> {
        let (state, source) = &self.units[&unit];
        match source {
            Source::Hole => Ok(Verdict::Good),
            Source::Lost => Ok(Verdict::Damaged),
            Source::Journal(segment, offset) => segment.read_at(content, *offset).map(|()| Verdict::Good),
            Source::Direct(position) => {
                let is_read = file.read_at(content, data_offset(unit)).is_ok();
                Ok(match is_read && crc32c::crc32c(content) == state.crc {
                    true => Verdict::Good,
                    false if *position < self.durable => Verdict::Damaged,
                    false => Verdict::Lost,
                })
            }
        }
    }
}

/// What was done to a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Units that hold what the journal says.
    pub good: u32,
    /// Units that were never synced and are lost.
    pub lost: u32,
    /// Units that must be repaired from another replica.
    pub damaged: Vec<u32>,
}

/// Carries out what the journal says of `chunk`, and brings it to stable media, except for its name if it is new.
/// `None` if there is no such replica any more.
///
/// # Errors
///
/// [`StoreError`] other than [`StoreError::BadFile`]: a replica that is unusable is left to who opens it. One that cannot
/// be read is put aside.
pub fn carry_out(volume: &dyn Volume, chunk: ChunkId, change: &Change) -> Result<Option<Replayed>, StoreError> {
    let (directory, path) = replica_path(chunk);
    if change.is_deleted {
        return match volume.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::Write(error)),
            _ => Ok(None),
        };
    }
    let file = match volume.open(&path) {
        Ok(file) => file,
        // Its name was durable before first writes in it were: without it the replica was deleted, else not there yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound && change.is_new && change.durable == 0 => {
            volume.create(&path).map_err(write_error)?
        }
        // Deleted, and the record of it is lost; or somebody else's, and not touched.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
        Err(error) => return Err(StoreError::Read(error)),
    };
    let header = match (change.header, read_header(&*file, chunk)) {
        (Some(header), _) => header,
        (None, Ok(header)) => header,
        (None, Err(StoreError::Read(error))) => {
            // The rest of the disk is well. Should this one be readable again one day, it lacks what is lost here.
            tracing::error!(%chunk, path, %error, "a replica's header cannot be read: put aside as .bad");
            volume.rename(&path, &aside_path(&path)).map_err(StoreError::Write)?;
            volume.sync_directory(&directory).map_err(StoreError::Write)?;
            return Ok(None);
        }
        (None, Err(_)) => return Ok(None),
    };
    let mut replayed = Replayed::default();
    let mut content = vec![0; UNIT_BYTES];
    for (unit, (state, source)) in change.units.range(..units(header.chunk_size_log2)) {
        let verdict = change.verdict(&*file, *unit, &mut content).map_err(StoreError::Read)?;
        let entry = match verdict {
            Verdict::Good | Verdict::Damaged => Slot::encode(state, chunk, *unit),
            Verdict::Lost => [0; ENTRY_BYTES],
        };
        let offset = data_offset(*unit);
        match (verdict, source) {
            (Verdict::Good, Source::Journal(..)) => file.write_at(&content, offset).map_err(write_error)?,
            (Verdict::Good, Source::Hole) | (Verdict::Lost, _) => {
                file.punch(offset, UNIT_BYTES as u64).map_err(write_error)?;
            }
            _ => {}
        }
        file.write_at(&entry, entry_offset(*unit)).map_err(write_error)?;
        match verdict {
            Verdict::Good => replayed.good += 1,
            Verdict::Lost => replayed.lost += 1,
            Verdict::Damaged => replayed.damaged.push(*unit),
        }
    }
    if change.is_new {
        forget_the_rest(&*file, &header, change)?;
    }
    if change.header.is_some() {
        file.write_at(&header.encode(), 0).map_err(write_error)?;
    }
    file.sync().map_err(StoreError::Write)?;
    Ok(Some(replayed))
}

/// Takes entries out of the table of a new replica that are not its own: its name may still lead to the file of one that
/// was deleted before it was made.
fn forget_the_rest(file: &dyn RawFile, header: &Header, change: &Change) -> Result<(), StoreError> {
    let table = load_table(file, header)?;
    let mut strangers = Vec::new();
    table
        .walk(0, table.units(), |unit, _| strangers.extend(Some(unit).filter(|unit| !change.units.contains_key(unit))));
    strangers.into_iter().try_for_each(|unit| file.write_at(&[0; ENTRY_BYTES], entry_offset(unit)).map_err(write_error))
}
