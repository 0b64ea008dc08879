//! Looking at a replica from outside: what a start would make of it, without changing anything.

use std::io;

use dfs_proto::ChunkId;

use super::StoreError;
use super::chunk_file::{load_table, read_header};
use super::data_dir::replica_path;
use super::header::Header;
use super::journal::replay::{Change, Source, Verdict, changes};
use super::journal::scan::{ScanError, scan};
use super::layout::{UNIT_BYTES, data_offset};
use super::unit_table::Slot;
use super::volume::Volume;
use crate::core::reconcile::Table;

/// Why a replica cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Its disk's journal.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Its file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its header.
    pub header: Header,
    /// Its units that were ever written and are whole.
    pub table: Table,
    /// Its units that are damaged.
    pub bad: Vec<u32>,
}

/// Reads and checks the replica of `chunk` on `volume`, as it would be after a start; `None` if there is none. A server
/// that uses the volume must not be writing.
///
/// # Errors
///
/// [`LookError`].
pub fn look(volume: &dyn Volume, chunk: ChunkId) -> Result<Option<Seen>, LookError> {
    let found = scan(volume, false)?;
    let mut changes = changes(&found);
    let change = changes.remove(&chunk).unwrap_or_default();
    if change.is_deleted {
        return Ok(None);
    }
    let file = match volume.open(&replica_path(chunk).1) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(StoreError::Read)?,
    };
    let header = change.header.map_or_else(|| read_header(&*file, chunk), Ok)?;
    let mut seen = Seen { header, table: Table::new(), bad: Vec::new() };
    let map = load_table(&*file, &header)?;
    let mut content = vec![0; UNIT_BYTES];
    for unit in 0..map.units() {
        let is_good = match (change.units.get(&unit), map.get(unit)) {
            (Some((state, _)), _) => {
                let verdict = settled(&change, &*file, unit, &mut content)?;
                match verdict {
                    Verdict::Good => seen.table.push((unit, *state)),
                    Verdict::Lost => {}
                    Verdict::Damaged => seen.bad.push(unit),
                }
                continue;
            }
            (None, Slot::Never) => continue,
            (None, Slot::Damaged) => None,
            (None, Slot::Known(state)) if state.hole => Some(state),
            (None, Slot::Known(state)) => {
                let is_read = file.read_at(&mut content, data_offset(unit)).is_ok();
                (is_read && crc32c::crc32c(&content) == state.crc).then_some(state)
            }
        };
        match is_good {
            Some(state) => seen.table.push((unit, state)),
            None => seen.bad.push(unit),
        }
    }
    Ok(Some(seen))
}

fn settled(
    change: &Change,
    file: &dyn super::raw_file::RawFile,
    unit: u32,
    content: &mut [u8],
) -> Result<Verdict, StoreError> {
    let verdict = change.verdict(file, unit, content).map_err(StoreError::Read)?;
    let (state, source) = &change.units[&unit];
    let is_content = matches!(source, Source::Journal(..)) && verdict == Verdict::Good;
    Ok(if is_content && crc32c::crc32c(content) != state.crc { Verdict::Damaged } else { verdict })
}
