//! The journal as a file that grows at its end: segments, appending, and syncs that serve several callers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::planted::{self, Bug};
use parking_lot::{Condvar, Mutex};

use super::super::StoreError;
use super::super::chunk_file::write_error;
use super::super::raw_file::RawFile;
use super::super::volume::{NameKind, Volume, remove_if_there};
use super::record::{self, HEAD_BYTES, Place, Record};

/// Where the segments are.
pub const DIRECTORY: &str = "journal";
/// Segments that are kept for their blocks when they are not needed: one for the next records, and one that only records
/// without a payload may take.
const SPARES: usize = 2;
/// Payloads up to this size are copied behind their heads, so that one write does for both.
const JOINED_MAX: usize = 64 << 10;

/// A segment that is in use.
#[derive(Debug)]
pub struct Segment {
    /// The position of its first byte.
    pub base: u64,
    /// What the checksums in it begin with.
    pub salt: u64,
    /// Its bytes.
    pub file: Arc<dyn RawFile>,
}

/// Returns the path of a segment.
pub fn segment_path(base: u64, salt: u64) -> String {
    format!("{DIRECTORY}/{base:016x}-{salt:016x}")
}

/// Returns base and salt of the segment with this name in the directory, if it is the name of one.
pub fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (base, salt) = name.split_once('-').filter(|(base, salt)| base.len() == 16 && salt.len() == 16)?;
    Some((u64::from_str_radix(base, 16).ok()?, u64::from_str_radix(salt, 16).ok()?))
}

fn spare_path(name: u64) -> String {
    format!("{DIRECTORY}/spare-{name:016x}")
}

/// The end of a journal, where records are added.
#[derive(Debug)]
pub struct Log {
    volume: Arc<dyn Volume>,
    segment_bytes: u64,
    fresh_salt: fn() -> u64,
    /// A sync is under way. Whoever waits for it may be served by it, so nobody holds the lock meanwhile.
    is_syncing: Mutex<bool>,
    sync_ended: Condvar,
    tail: Mutex<Tail>,
    /// The end of the last record, marks of syncs aside.
    wanted: AtomicU64,
    synced: AtomicU64,
    syncs: AtomicU64,
    has_failed: AtomicBool,
}

#[derive(Debug)]
struct Tail {
    current: Arc<Segment>,
    /// Where the next record goes.
    at: u64,
    /// The checksum of the last record.
    chain: u32,
    /// Those before it, with their ends.
    older: VecDeque<(Arc<Segment>, u64)>,
    spares: Vec<String>,
}

impl Log {
    /// Begins a journal at `base`. Nothing of it is on stable media yet, its first segment's name included.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] and [`StoreError::Write`].
    pub fn begin(
        volume: Arc<dyn Volume>,
        base: u64,
        segment_bytes: u64,
        fresh_salt: fn() -> u64,
    ) -> Result<Self, StoreError> {
        let names = volume.list(DIRECTORY).map_err(StoreError::Read)?;
        let is_spare =
            |name: &&super::super::volume::Name| name.kind == NameKind::File && name.name.starts_with("spare-");
        let mut spares: Vec<String> =
            names.iter().filter(is_spare).map(|name| format!("{DIRECTORY}/{}", name.name)).collect();
        spares.sort();
        let current = Arc::new(next_segment(&*volume, &mut spares, base, segment_bytes, fresh_salt())?);
        let tail = Tail { current, at: base, chain: 0, older: VecDeque::new(), spares };
        let log = Self {
            volume,
            segment_bytes,
            fresh_salt,
            is_syncing: Mutex::default(),
            sync_ended: Condvar::new(),
            tail: Mutex::new(tail),
            wanted: AtomicU64::new(base),
            synced: AtomicU64::new(base),
            syncs: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
        };
        match log.keep_spares(&mut log.tail.lock(), SPARES) {
            // The disk is full: what there is must do.
            Ok(()) | Err(StoreError::NoSpace) => {}
            Err(error) => return Err(error),
        }
        Ok(log)
    }

    /// Returns the end of the last record.
    pub fn end(&self) -> u64 {
        self.tail.lock().at
    }

    /// Returns the end of the last record that somebody may wait for.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Acquire)
    }

    /// Returns the position that everything before is on stable media.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Returns how often it was synced.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Returns the bytes from the first record that is kept to the last.
    pub fn used(&self) -> u64 {
        let tail = self.tail.lock();
        tail.at - tail.older.front().map_or(tail.current.base, |(oldest, _)| oldest.base)
    }

    /// Adds a record, and returns the position after it. Several callers may; what one was told comes after what was
    /// told before it.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`]: nothing was added; [`StoreError::Write`], from then on always.
    pub fn append(&self, record: &Record, payload: &[u8]) -> Result<u64, StoreError> {
        let mut bytes = record.encode();
        let length = bytes.len() + payload.len();
        assert!((length + HEAD_BYTES) as u64 <= self.segment_bytes, "a record of {length} bytes fits into no segment");
        loop {
            let mut tail = self.tail.lock();
            self.check()?;
            if self.fits(&tail, length) {
                let end = self.add(&mut tail, &mut bytes, payload)?;
                self.wanted.store(end, Ordering::Release);
                return Ok(end);
            }
            drop(tail);
            self.roll(length, matches!(record, Record::Write { .. }))?;
        }
    }

    /// There is always room left for the end mark.
    fn fits(&self, tail: &Tail, length: usize) -> bool {
        tail.at + (length + HEAD_BYTES) as u64 <= tail.current.base + self.segment_bytes
    }

    fn add(&self, tail: &mut Tail, bytes: &mut Vec<u8>, payload: &[u8]) -> Result<u64, StoreError> {
        let place = Place { position: tail.at, synced: self.synced(), previous: tail.chain };
        let crc = record::seal(bytes, payload.len(), place, tail.current.salt);
        let head = bytes.len();
        let offset = tail.at - tail.current.base;
        let file = &tail.current.file;
        let written = if payload.len() <= JOINED_MAX {
            bytes.extend_from_slice(payload);
            let written = file.write_at(bytes, offset);
            bytes.truncate(head);
            written
        } else {
            file.write_at(payload, offset + head as u64).and_then(|()| file.write_at(bytes, offset))
        };
        written.map_err(|error| self.failed(error))?;
        tail.at += (head + payload.len()) as u64;
        tail.chain = crc;
        Ok(tail.at)
    }

    /// Goes on in another segment, unless somebody else has seen to it.
    fn roll(&self, length: usize, is_write: bool) -> Result<(), StoreError> {
        let _turn = self.turn(u64::MAX).expect("no sync gets so far");
        // Most of it is synced without keeping others from adding records.
        self.sync_current()?;
        let mut tail = self.tail.lock();
        self.check()?;
        if self.fits(&tail, length) {
            return Ok(());
        }
        // The last one is for what a full disk still has to do: versions, deletions, syncs.
        self.keep_spares(&mut tail, if is_write { SPARES } else { 1 })?;
        let base = tail.at + HEAD_BYTES as u64;
        let next = next_segment(&*self.volume, &mut tail.spares, base, self.segment_bytes, (self.fresh_salt)())
            .inspect_err(|error| self.note_failure(error))?;
        let named = self.volume.sync_directory(DIRECTORY).map_err(write_error);
        named.map_err(|error| self.failed(error.at(|| format!("syncing the names in {DIRECTORY}"))))?;
        let end = self.add(&mut tail, &mut Record::End.encode(), &[])?;
        self.sync_file(&*tail.current.file)?;
        self.synced.store(end, Ordering::Release);
        let before = std::mem::replace(&mut tail.current, Arc::new(next));
        tail.older.push_back((before, end));
        Ok(())
    }

    /// Brings everything before `position` to stable media; free if that was done. Of several callers at once one does
    /// the work for those that came while an earlier one was under way.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`], from then on always.
    pub fn sync(&self, position: u64) -> Result<(), StoreError> {
        if let Some(_turn) = self.turn(position) {
            self.check()?;
            self.sync_current()?;
            self.note_sync()?;
        }
        self.check()
    }

    /// Waits until no other sync is under way; `None` if everything before `position` has been synced by then.
    fn turn(&self, position: u64) -> Option<Turn<'_>> {
        let mut is_syncing = self.is_syncing.lock();
        loop {
            if self.synced() >= position {
                return None;
            }
            if !*is_syncing {
                *is_syncing = true;
                return Some(Turn { log: self });
            }
            // After a failure nothing is synced any more; then the turn is taken, and the caller finds out.
            self.sync_ended.wait(&mut is_syncing);
        }
    }

    /// Older segments are synced when they end.
    fn sync_current(&self) -> Result<(), StoreError> {
        let (segment, covered) = {
            let tail = self.tail.lock();
            (Arc::clone(&tail.current), tail.at)
        };
        self.sync_file(&*segment.file)?;
        self.synced.fetch_max(covered, Ordering::AcqRel);
        Ok(())
    }

    fn sync_file(&self, file: &dyn RawFile) -> Result<(), StoreError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        match file.sync() {
            Err(_) if planted::is(Bug::RetriedSync) && file.sync().is_ok() => Ok(()),
            synced => synced.map_err(|error| self.failed(StoreError::Write(error))),
        }
    }

    /// Says in the journal that a sync succeeded, so that damage before it can be told from a torn end. The mark itself
    /// is not waited for: the page cache keeps it when the process is killed, and the next sync takes it along.
    fn note_sync(&self) -> Result<(), StoreError> {
        let mut tail = self.tail.lock();
        if self.fits(&tail, HEAD_BYTES) {
            self.add(&mut tail, &mut Record::Synced.encode(), &[]).map(drop)
        } else {
            Ok(())
        }
    }

    /// Gives up the segments that end at `position` or before.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn free(&self, position: u64) -> Result<(), StoreError> {
        let mut tail = self.tail.lock();
        while tail.older.front().is_some_and(|(_, end)| *end <= position) {
            let (segment, _) = tail.older.pop_front().expect("it was looked at");
            self.retire(&mut tail, &segment_path(segment.base, segment.salt))?;
        }
        Ok(())
    }

    /// Gives up the segments of an earlier journal of the same disk.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn retire_all(&self, paths: &[String]) -> Result<(), StoreError> {
        let mut tail = self.tail.lock();
        for path in paths {
            self.retire(&mut tail, path)?;
        }
        Ok(())
    }

    fn retire(&self, tail: &mut Tail, path: &str) -> Result<(), StoreError> {
        let spare = spare_path((self.fresh_salt)());
        let is_wanted = tail.spares.len() < SPARES;
        let retired = if is_wanted { self.volume.rename(path, &spare) } else { self.volume.remove(path) };
        retired.map_err(|error| self.failed(write_error(error).at(|| format!("giving up {path}"))))?;
        if is_wanted {
            tail.spares.push(spare);
        }
        Ok(())
    }

    fn keep_spares(&self, tail: &mut Tail, count: usize) -> Result<(), StoreError> {
        while tail.spares.len() < count {
            self.make_spare(tail).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn make_spare(&self, tail: &mut Tail) -> Result<(), StoreError> {
        let path = spare_path((self.fresh_salt)());
        let made = self.volume.create(&path).and_then(|file| file.allocate(0, self.segment_bytes));
        match made {
            Ok(()) => {
                tail.spares.push(path);
                Ok(())
            }
            Err(error) => {
                let _ = self.volume.remove(&path);
                Err(write_error(error).at(|| format!("making {path}")))
            }
        }
    }

    /// Checks that nothing has failed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn check(&self) -> Result<(), StoreError> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(StoreError::Write(io::Error::other("an earlier write or sync of the journal failed")));
        }
        Ok(())
    }

    fn failed(&self, error: impl Into<JournalError>) -> StoreError {
        let error = error.into().0;
        self.note_failure(&error);
        error
    }

    fn note_failure(&self, error: &StoreError) {
        if matches!(error, StoreError::Write(_)) {
            self.has_failed.store(true, Ordering::Release);
        }
    }
}

/// The right to sync.
struct Turn<'a> {
    log: &'a Log,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.log.is_syncing.lock() = false;
        self.log.sync_ended.notify_all();
    }
}

/// An error that may have to do with the room that is left.
struct JournalError(StoreError);

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        Self(write_error(error))
    }
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

/// Makes a segment, out of a spare one if there is any.
fn next_segment(
    volume: &dyn Volume,
    spares: &mut Vec<String>,
    base: u64,
    segment_bytes: u64,
    salt: u64,
) -> Result<Segment, StoreError> {
    let path = segment_path(base, salt);
    let made = if let Some(spare) = spares.pop() {
        volume.rename(&spare, &path).and_then(|()| volume.open(&path))
    } else {
        remove_if_there(volume, &path).and_then(|()| volume.create(&path))
    };
    let file = made.map_err(|error| write_error(error).at(|| format!("making {path}")))?;
    if let Err(error) = file.allocate(0, segment_bytes) {
        let _ = volume.remove(&path);
        return Err(write_error(error).at(|| format!("making {path}")));
    }
    Ok(Segment { base, salt, file: Arc::from(file) })
}
