//! Reading a journal after a start: which records it has, and whether its end is torn or its middle corrupt.
//!
//! A record that cannot be read was either on its way when the host lost its power, or it was damaged afterwards. Every
//! record says up to where the journal was on stable media when it was written. If any record behind the bad one says
//! that the bad one was, it is corruption, and nothing behind it may be given up: the disk is stopped. If none does, it
//! was not synced, nobody was told that it was, and the journal ends there.
//!
//! Without a power loss the page cache keeps everything in the order it was written in. Then a record behind the bad one
//! is enough to tell.

use std::io;
use std::sync::Arc;

use dfs_proto::ChunkId;
use dfs_proto::planted::{self, Bug};

use super::super::layout::UNIT_BYTES;
use super::super::raw_file::RawFile;
use super::super::volume::{NameKind, Volume};
use super::log::{DIRECTORY, parse_name, segment_path};
use super::record::{self, ALIGNMENT, HEAD_BYTES, Head, Record};
use crate::core::message::WriteKey;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It cannot be read.
    #[error("the journal cannot be read: {0}")]
    Read(#[from] io::Error),
    /// What was on stable media is damaged.
    #[error("the journal is corrupt: {0}")]
    Corrupt(String),
}

/// A record that was found.
#[derive(Debug)]
pub struct Found {
    /// Where it begins.
    pub position: u64,
    /// What it says.
    pub record: Record,
    /// Where its payload is: the segment, and the offset in it.
    pub payload: (Arc<dyn RawFile>, u64),
}

/// What is in a journal.
#[derive(Debug, Default)]
pub struct Scan {
    /// The records that are not in the chunk files yet, in order.
    pub records: Vec<Found>,
    /// The requests that all records tell of, also those that are not needed for anything else.
    pub keys: Vec<(ChunkId, WriteKey)>,
    /// The paths of all segments.
    pub segments: Vec<String>,
    /// A position that is behind everything in it.
    pub end: u64,
    /// Its end was torn off.
    pub is_torn: bool,
    /// There is one: it has a checkpoint.
    pub is_begun: bool,
}

/// One segment in memory.
struct Loaded {
    base: u64,
    salt: u64,
    file: Arc<dyn RawFile>,
    bytes: Vec<u8>,
}

impl Loaded {
    fn limit(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }
}

/// Records without a gap between them.
#[derive(Default)]
struct Chain {
    begin: u64,
    /// The checksum of the last one.
    last: Option<u32>,
    records: Vec<Found>,
    fault: Option<String>,
    is_torn: bool,
}

/// How the reading of a segment ended.
enum Outcome {
    /// Its end mark was found; the next one begins here.
    Ended(u64),
    /// Nothing more can be read from this position on.
    Stopped(u64),
}

/// Reads the journal of a disk. Nothing is changed. `lost_power`: what was not synced may be missing in any part.
///
/// # Errors
///
/// [`ScanError`].
pub fn scan(volume: &dyn Volume, lost_power: bool) -> Result<Scan, ScanError> {
    let segments = load(volume)?;
    let end = segments.iter().map(Loaded::limit).max().unwrap_or(0);
    let paths = segments.iter().map(|segment| segment_path(segment.base, segment.salt)).collect();
    let mut chains: Vec<Chain> = Vec::new();
    let mut expected = None;
    for (at, segment) in segments.iter().enumerate() {
        let begins = expected != Some(segment.base);
        if begins {
            if !has_begun(&segments[at..], lost_power) {
                // Made and not begun: a crash can leave such a one at the end.
                continue;
            }
            chains.push(Chain { begin: segment.base, ..Chain::default() });
        }
        let chain = chains.last_mut().expect("the first segment begins one");
        expected = match read_segment(segment, chain) {
            Outcome::Ended(next) => Some(next),
            Outcome::Stopped(position) => {
                if is_evidence_behind(&segments[at..], position, lost_power) {
                    chain.fault = Some(format!("the record at {position} is damaged, and later ones are whole"));
                } else {
                    chain.is_torn = segment.bytes[(position - segment.base) as usize..].iter().any(|byte| *byte != 0);
                }
                None
            }
        };
    }
    let Some((mut chain, checkpoint)) = judge(chains)? else {
        return Ok(Scan { segments: paths, end, ..Scan::default() });
    };
    let keys = chain.records.iter().flat_map(|found| match &found.record {
        Record::Keys(keys) => keys.clone(),
        Record::Write { chunk, key: Some(key), .. } => vec![(*chunk, *key)],
        _ => Vec::new(),
    });
    let keys = keys.collect();
    chain.records.retain(|found| found.position >= checkpoint);
    Ok(Scan { records: chain.records, keys, segments: paths, end, is_torn: chain.is_torn, is_begun: true })
}

/// Finds out which records count, and from which position on. Whatever is before a checkpoint does not, whether it is
/// whole or not; and a journal that has none was not begun to the end, and takes the place of none.
fn judge(mut chains: Vec<Chain>) -> Result<Option<(Chain, u64)>, ScanError> {
    while let Some(mut chain) = chains.pop() {
        if chain.is_torn && planted::is(Bug::TornTailIsCorruption) {
            chain.fault = Some("its end is torn".into());
        }
        if let Some(fault) = chain.fault.take().filter(|_| !planted::is(Bug::CorruptionIsTornTail)) {
            return Err(ScanError::Corrupt(fault));
        }
        let checkpoint = chain.records.iter().rev().find_map(|found| match found.record {
            Record::Checkpoint(position) => Some(position),
            _ => None,
        });
        match checkpoint {
            Some(position) if position >= chain.begin => return Ok(Some((chain, position))),
            Some(position) => {
                let before = chains.pop().and_then(|chain| chain.fault);
                let missing = || format!("what was from {position} to {} is missing", chain.begin);
                return Err(ScanError::Corrupt(before.unwrap_or_else(missing)));
            }
            None => {}
        }
    }
    Ok(None)
}

fn load(volume: &dyn Volume) -> Result<Vec<Loaded>, ScanError> {
    let names = match volume.list(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let files = names.iter().filter(|name| name.kind == NameKind::File);
    let mut found: Vec<(u64, u64)> = files.filter_map(|name| parse_name(&name.name)).collect();
    found.sort_unstable();
    let load = |(base, salt)| {
        let file: Arc<dyn RawFile> = Arc::from(volume.open(&segment_path(base, salt))?);
        let mut bytes = vec![0; file.length()? as usize];
        file.read_at(&mut bytes, 0)?;
        Ok(Loaded { base, salt, file, bytes })
    };
    found.into_iter().map(load).collect()
}

/// Returns whether anything was ever recorded in the first of `segments`.
fn has_begun(segments: &[Loaded], lost_power: bool) -> bool {
    let segment = &segments[0];
    record::open(&segment.bytes, segment.base, segment.salt).is_some()
        || is_evidence_behind(segments, segment.base, lost_power)
}

/// Adds the records of `segment` to `chain` until there is no next one.
fn read_segment(segment: &Loaded, chain: &mut Chain) -> Outcome {
    let mut at = 0;
    loop {
        let position = segment.base + at as u64;
        let rest = &segment.bytes[at.min(segment.bytes.len())..];
        let Some((head, record)) = read_record(rest, position, segment.salt, chain.last) else {
            return Outcome::Stopped(position);
        };
        chain.last = Some(head.crc);
        at += head.length() as usize;
        match record {
            Record::End => return Outcome::Ended(segment.base + at as u64),
            Record::Synced => {}
            record => {
                let payload = (Arc::clone(&segment.file), (at - head.payload) as u64);
                chain.records.push(Found { position, record, payload });
            }
        }
    }
}

/// Returns the record at the beginning of `bytes`, if it is whole, its payload too, and follows the one before.
fn read_record(bytes: &[u8], position: u64, salt: u64, before: Option<u32>) -> Option<(Head, Record)> {
    let head = record::open(bytes, position, salt)?;
    if bytes.len() < head.length() as usize || before.is_some_and(|before| before != head.place.previous) {
        return None;
    }
    let (body, rest) = bytes[HEAD_BYTES..].split_at(head.body);
    let record = Record::decode(&head, body)?;
    if let Record::Write { runs, crcs, .. } = &record {
        for (_, state, _, place) in record::units(runs, crcs) {
            let is_good = place.is_none_or(|place| crc32c::crc32c(&rest[place..place + UNIT_BYTES]) == state.crc);
            if !is_good {
                return None;
            }
        }
    }
    Some((head, record))
}

/// Returns whether a record behind `position`, which is in the first of `segments`, shows that something whole was there.
fn is_evidence_behind(segments: &[Loaded], position: u64, lost_power: bool) -> bool {
    let mut limit = segments[0].limit();
    for segment in segments {
        if segment.base > limit {
            // A journal that was begun after this one was read.
            return false;
        }
        limit = segment.limit();
        let from = (position.max(segment.base) - segment.base) as usize;
        for at in (from.next_multiple_of(ALIGNMENT)..segment.bytes.len()).step_by(ALIGNMENT) {
            if !record::may_begin(&segment.bytes[at..]) {
                continue;
            }
            let head = record::open(&segment.bytes[at..], segment.base + at as u64, segment.salt);
            let place = head.map(|head| head.place).filter(|place| place.position > position);
            if place.is_some_and(|place| !lost_power || place.synced > position) {
                return true;
            }
        }
    }
    false
}
