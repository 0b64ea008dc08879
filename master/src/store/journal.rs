//! Checks the journals of the embedded engine before fjall reads them.
//!
//! fjall cuts a journal off at the first byte it does not understand, without asking what is behind it, and refuses a
//! journal whose last batch has a wrong checksum. Neither is right for us: after a power cut the tail that was not
//! synced can hold any mix of old and new pages, and has to be cut; and a flipped bit in front of synced batches must
//! stop the master, not drop them. So this module reads the journals first, under the engine's lock:
//!
//! ```text
//! ├ good … good ┤ zeros or end of file                       clean
//! ├ good … good ┤ anything, no good batch in it              torn tail: cut
//! ├ good … good ┤ bad ┤ good, made before `p` was synced ┤   a tail that reached the disk out of order: cut
//! ├ good … p    ┤ bad ┤ good, made when more was synced  ┤   corrupt: stop
//! ```
//!
//! What makes that possible is the [`Mark`] that the engine puts first into each batch: the batch's `seq`, the `seq`
//! of the batch before it, and how far the log was synced when it was written. fjall's checksum covers it.
//!
//! ```text
//! a journal: batches, then zeros       (fjall 3.1, all numbers little endian)
//! start   1, count u32, seqno u64                                             not covered by the checksum
//! item    2, kind u8 (0 put, 1 delete), compression u8 (0), keyspace u64, key length u16, value length u32,
//!         stored length u32, key, value                                       `count` of them
//! end     3, xxh3-64 of all items u64, "FJL\x03"
//! ```

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use dfs_proto::Seq;

use super::StoreError;

/// The key of the mark: before all keys of records.
pub(super) const MARK_KEY: &[u8] = &[0];
const MARK_FORMAT: u8 = 1;
const MARK_BYTES: usize = 25;
/// fjall counts a few of its own steps between two batches; a jump above this is a flipped bit.
const SEQNO_STEP_MAX: u64 = 1 << 32;

/// What each batch says of its place in the log.
///
/// ```text
/// offset (bytes)  size (bytes)   field, little endian
/// 0               1              format version, now 1
/// 1               8              seq of this batch
/// 9               8              seq of the batch before it
/// 17              8              every batch up to this seq was on stable media before this one was written
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) seq: Seq,
    pub(super) previous: Seq,
    pub(super) durable: Seq,
}

impl Mark {
    pub(super) fn encode(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[0] = MARK_FORMAT;
        bytes[1..9].copy_from_slice(&self.seq.0.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.previous.0.to_le_bytes());
        bytes[17..].copy_from_slice(&self.durable.0.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.first() != Some(&MARK_FORMAT) {
            return Err(StoreError::Corrupt(format!(
                "a mark of format {:?}, this build knows {MARK_FORMAT}: written by a newer dfs?",
                bytes.first()
            )));
        }
        let bytes: &[u8; MARK_BYTES] = bytes
            .try_into()
            .map_err(|_| StoreError::Corrupt(format!("a mark of {} bytes, not {MARK_BYTES}", bytes.len())))?;
        let number = |at: usize| Seq(u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")));
        Ok(Self { seq: number(1), previous: number(9), durable: number(17) })
    }
}

/// What the journals hold, and what is to be cut from the newest one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// The mark of the last good batch, if the journals have any.
    pub(super) last: Option<Mark>,
    /// Good batches.
    pub(super) batches: u64,
    /// The newest journal is to be cut to this many bytes: what follows was never durable.
    pub(super) cut: Option<(PathBuf, u64)>,
}

/// Returns the journals in `directory` with their numbers, oldest first.
pub(super) fn list(directory: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    Ok(journals)
}

/// Reads all journals in `directory`. Changes nothing.
///
/// # Errors
///
/// [`StoreError::Corrupt`] if batches that were synced are damaged or missing; it names the journal and the place.
pub(super) fn check(directory: &Path) -> Result<Checked, StoreError> {
    let journals = list(directory).map_err(|error| io(directory, &error))?;
    let mut checked = Checked::default();
    let mut seqno = None;
    for (at, (_, path)) in journals.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(|error| io(path, &error))?;
        let is_newest = at + 1 == journals.len();
        let end = follow(&bytes, path, &mut checked, &mut seqno)?;
        let rest = &bytes[end..];
        if rest.iter().all(|byte| *byte == 0) {
            continue;
        }
        let damage = |why: String| {
            StoreError::Corrupt(format!("{} at byte {end}, after batch {}: {why}", path.display(), position(&checked)))
        };
        if !is_newest {
            // fjall syncs a journal before it begins the next one.
            return Err(damage("an older journal, synced as a whole, does not end there".into()));
        }
        let durable = best_claim_behind(rest);
        if durable > position(&checked) {
            return Err(damage(format!("batches behind it say that everything up to {durable} was on stable media")));
        }
        checked.cut = Some((path.clone(), end as u64));
    }
    Ok(checked)
}

/// Cuts what [`check`] found, durably.
pub(super) fn cut(checked: &Checked) -> Result<(), StoreError> {
    let Some((path, length)) = &checked.cut else { return Ok(()) };
    let result = OpenOptions::new().write(true).open(path).and_then(|file: File| {
        file.set_len(*length)?;
        file.sync_all()
    });
    result.map_err(|error| io(path, &error))
}

fn position(checked: &Checked) -> Seq {
    checked.last.map_or(Seq(0), |mark| mark.seq)
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Engine(format!("{}: {error}", path.display()))
}

/// Follows the good batches of one journal; returns where they end.
fn follow(bytes: &[u8], path: &Path, checked: &mut Checked, seqno: &mut Option<u64>) -> Result<usize, StoreError> {
    let mut at = 0;
    while let Some(found) = read_batch(bytes, at) {
        let corrupt = |why: String| StoreError::Corrupt(format!("{} at byte {at}: {why}", path.display()));
        let mark = found.mark.map_err(|error| corrupt(error.to_string()))?;
        if mark.previous >= mark.seq || mark.durable > mark.previous {
            return Err(corrupt(format!("a mark that cannot be: {mark:?}")));
        }
        if let Some(last) = checked.last
            && (mark.previous != last.seq || mark.durable < last.durable)
        {
            return Err(corrupt(format!("{mark:?} follows {last:?}: batches are missing")));
        }
        // The checksum does not cover fjall's own number, by which it decides what is newer.
        if seqno.is_some_and(|last| found.seqno <= last || found.seqno - last > SEQNO_STEP_MAX) {
            return Err(corrupt(format!("number {} after {seqno:?}", found.seqno)));
        }
        *seqno = Some(found.seqno);
        checked.last = Some(mark);
        checked.batches += 1;
        at = found.end;
    }
    Ok(at)
}

/// Returns the highest `durable` that any good batch in `rest` claims; 0 if there is none.
fn best_claim_behind(rest: &[u8]) -> Seq {
    let mut best = Seq(0);
    let mut at = 0;
    while let Some(step) = rest[at..].iter().position(|byte| *byte == START) {
        at += step;
        match read_batch(rest, at) {
            Some(Found { mark: Ok(mark), end, .. }) => {
                best = best.max(mark.durable);
                at = end;
            }
            _ => at += 1,
        }
    }
    best
}

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: &[u8; 4] = b"FJL\x03";
const ITEM_HEADER_BYTES: usize = 21;

struct Found {
    seqno: u64,
    mark: Result<Mark, StoreError>,
    end: usize,
}

/// Reads the batch that begins at `at`; `None` unless it is whole and its checksum is right.
fn read_batch(bytes: &[u8], at: usize) -> Option<Found> {
    let mut reader = Reader { bytes, at };
    if reader.u8()? != START {
        return None;
    }
    let count = u32::from_le_bytes(reader.array()?);
    let seqno = u64::from_le_bytes(reader.array()?);
    let items = reader.at;
    let mut mark = None;
    for item in 0..count {
        let header: [u8; ITEM_HEADER_BYTES] = reader.array()?;
        let key_length = usize::from(u16::from_le_bytes(header[11..13].try_into().expect("2 bytes")));
        let value_length = u32::from_le_bytes(header[13..17].try_into().expect("4 bytes"));
        let stored_length = u32::from_le_bytes(header[17..].try_into().expect("4 bytes"));
        if header[0] != ITEM || header[1] > 1 || header[2] != 0 || value_length != stored_length {
            return None;
        }
        let key = reader.slice(key_length)?;
        let value = reader.slice(stored_length as usize)?;
        if item == 0 && key == MARK_KEY {
            mark = Some(Mark::decode(value));
        }
    }
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[items..reader.at]);
    if reader.u8()? != END || u64::from_le_bytes(reader.array()?) != checksum || reader.array()? != *TRAILER {
        return None;
    }
    let mark = mark.unwrap_or_else(|| Err(StoreError::Corrupt("a batch that this engine did not write".into())));
    Some(Found { seqno, mark, end: reader.at })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let slice = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(slice)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_bytes_and_nothing_else_does() {
        let mark = Mark { seq: Seq(7), previous: Seq(5), durable: Seq(3) };
        let bytes = mark.encode();
        assert_eq!(Mark::decode(&bytes).unwrap(), mark);
        // Format 1 as it is stored.
        assert_eq!(bytes[..], *b"\x01\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert!(Mark::decode(&bytes[..24]).is_err());
        assert!(Mark::decode(&[]).is_err());
        let newer = [&[2], &bytes[1..]].concat();
        assert!(Mark::decode(&newer).unwrap_err().to_string().contains("newer"));
    }

    #[test]
    fn arbitrary_bytes_are_no_batch() {
        for length in 0..200 {
            let bytes: Vec<u8> = (0..length).map(|at| (at * at % 7) as u8).collect();
            for at in 0..=length {
                assert!(read_batch(&bytes, at).is_none());
            }
        }
        // A length that would overflow.
        let mut bytes = vec![START, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ITEM];
        bytes.resize(60, 0xff);
        assert!(read_batch(&bytes, 0).is_none());
    }
}
