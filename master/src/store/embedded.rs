//! The engine of a single master: the LSM tree of `fjall`, in one keyspace.
//!
//! ```text
//! directory/
//!   LOCK        flock of the process that has the store open
//!   DURABLE     seq up to which the last sync covered everything; a lower bound, checked at the next start
//!   fjall/      N.jnl journals, keyspaces/…
//!   fjall.new/  a store that is being made: renamed when it is whole
//! ```
//!
//! A commit costs one `write` to the journal per 8 KiB (page cache: safe from kill -9) and an insert per key into a
//! skip list. A sync is one `fdatasync` of the newest journal through a descriptor of our own: fjall's own `persist`
//! holds the journal's lock meanwhile, and no commit would get through for as long as the disk takes.
//!
//! # Invariants
//!
//! - Batches in the journals form a chain (see [`super::journal`]); a start follows it before fjall does.
//! - After a failed commit or sync nothing is accepted any more, whatever a retry would say: the kernel reports a lost
//!   page once, and then calls the file clean.
//! - A journal older than the newest one was synced by fjall before the newest one was made, so one sync is enough.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::Seq;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable};
use parking_lot::Mutex;

use super::journal::{self, MARK_KEY, Mark};
use super::{Batch, MetaStore, Snapshot, StoreError, check_batch};

const KEYSPACE: &str = "records";
/// Blocks of tables that are kept in memory: a million inodes with their names are about 300 MiB.
const CACHE_BYTES: u64 = 256 << 20;
/// Larger ones mean fewer, larger tables, and up to a second more at a start after kill -9.
const MEMTABLE_BYTES: u64 = 64 << 20;
/// Journals whose batches are not all in tables yet; above it fjall writes tables early.
const JOURNAL_BYTES_MAX: u64 = 512 << 20;
/// Two would do, but fjall keeps the first of several for memtables, and that one then spins for as long as the others
/// are busy with compactions; with one there is nothing to keep, and one core is enough for what one master writes.
const WORKER_THREADS: usize = 1;

/// A store on disk, open for as long as this lives.
pub struct EmbeddedStore {
    records: Keyspace,
    database: Database,
    journals: PathBuf,
    last_seq: AtomicU64,
    durable_seq: AtomicU64,
    syncing: Mutex<Syncing>,
    /// Why nothing is accepted any more.
    failed: OnceLock<StoreError>,
    /// Held until everything above is closed: fields are dropped in this order.
    _lock: File,
}

struct Syncing {
    /// The newest journal, and its number.
    journal: Option<(u64, File)>,
    durable: File,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("journals", &self.journals)
            .field("last_seq", &self.last_seq)
            .field("durable_seq", &self.durable_seq)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in `directory`, or makes one there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if a process has it open; [`StoreError::Corrupt`] if something that was durable is
    /// damaged or missing; [`StoreError::Engine`] for everything else.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| io(directory, &error))?;
        let lock = lock(directory)?;
        let tables = directory.join("fjall");
        let is_new = !tables.try_exists().map_err(|error| io(&tables, &error))?;
        let promised = read_durable(directory)?;
        if is_new {
            if promised > Seq(0) {
                return Err(StoreError::Corrupt(format!(
                    "{} is gone, and {} says that it held everything up to {promised}",
                    tables.display(),
                    directory.join("DURABLE").display()
                )));
            }
            make(directory, &tables)?;
        }
        let checked = journal::check(&tables)?;
        if let Some((path, length)) = &checked.cut {
            tracing::warn!(journal = %path.display(), at = length, "cutting off a tail that was never durable");
        }
        journal::cut(&checked)?;

        let database = open_database(&tables)?;
        if !database.keyspace_exists(KEYSPACE) {
            return Err(StoreError::Corrupt(format!("{}: the records are gone", tables.display())));
        }
        let records = database.keyspace(KEYSPACE, options).map_err(|error| engine(&error))?;
        let (last_seq, claimed) = match records.get(MARK_KEY).map_err(|error| engine(&error))? {
            Some(bytes) => Mark::decode(&bytes).map(|mark| (mark.seq, mark.durable))?,
            None => (Seq(0), Seq(0)),
        };
        if let Some(mark) = checked.last
            && mark.seq != last_seq
        {
            return Err(StoreError::Corrupt(format!(
                "the journals end with batch {}, the engine found {last_seq}",
                mark.seq
            )));
        }
        if last_seq < promised {
            return Err(StoreError::Corrupt(format!(
                "everything up to {promised} was durable, but only {last_seq} is there; to go on without the rest, \
                 remove {}",
                directory.join("DURABLE").display()
            )));
        }
        let durable = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("DURABLE"))
            .map_err(|error| io(directory, &error))?;
        Ok(Self {
            records,
            database,
            journals: tables,
            last_seq: AtomicU64::new(last_seq.0),
            durable_seq: AtomicU64::new(promised.max(claimed).0),
            syncing: Mutex::new(Syncing { journal: None, durable }),
            failed: OnceLock::new(),
            _lock: lock,
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        self.failed.get().cloned().map_or(Ok(()), Err)
    }

    /// Notes the first failure; everything is refused from then on.
    fn fail(&self, error: StoreError) -> StoreError {
        tracing::error!(%error, "the metadata store failed and accepts nothing more");
        self.failed.get_or_init(|| error).clone()
    }

    fn apply(&self, batch: &Batch) -> Result<(), fjall::Error> {
        let mark =
            Mark { seq: batch.seq, previous: self.last_seq(), durable: Seq(self.durable_seq.load(Ordering::Acquire)) };
        // Its default is to hand the journal's buffer to the kernel before it returns.
        let mut writes = self.database.batch();
        writes.insert(&self.records, MARK_KEY, mark.encode());
        for (key, value) in &batch.puts {
            writes.insert(&self.records, &key[..], &value[..]);
        }
        for key in &batch.deletes {
            writes.remove(&self.records, &key[..]);
        }
        writes.commit()
    }

    /// fjall says no more than that it was poisoned when one of its own threads met a full or failing disk.
    fn why_not_committed(&self, error: &fjall::Error) -> StoreError {
        match (error, nix::sys::statvfs::statvfs(&self.journals)) {
            (fjall::Error::Poisoned, Ok(space)) => {
                let free = space.blocks_available().saturating_mul(space.fragment_size());
                StoreError::Engine(format!(
                    "{error}: a write in the background failed, {free} bytes are free on the disk"
                ))
            }
            _ => engine(error),
        }
    }

    fn sync_newest(&self, syncing: &mut Syncing) -> std::io::Result<()> {
        let newest = journal::list(&self.journals)?.pop();
        let Some((number, path)) = newest else {
            return Err(std::io::Error::new(ErrorKind::NotFound, "there is no journal"));
        };
        if syncing.journal.as_ref().is_none_or(|(open, _)| *open != number) {
            // Kept open: a descriptor learns of failed write-backs only from when it was opened.
            syncing.journal = Some((number, OpenOptions::new().write(true).open(path)?));
        }
        let (_, file) = syncing.journal.as_ref().expect("opened just now");
        file.sync_data()
    }
}

impl MetaStore for EmbeddedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.check()?;
        if key.is_empty() || key[0] == 0 {
            return Ok(None);
        }
        let found = self.records.get(key).map_err(|error| self.fail(engine(&error)))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.check()?;
        // The first key that a record can have is the byte 1.
        let start = start.max(&[1]);
        let mut found = Vec::new();
        if start >= end {
            return Ok(found);
        }
        for pair in self.records.range(start..end).take(limit) {
            let (key, value) = pair.into_inner().map_err(|error| self.fail(engine(&error)))?;
            found.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
        }
        Ok(found)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.check()?;
        check_batch(batch, self.last_seq())?;
        self.apply(batch).map_err(|error| self.fail(self.why_not_committed(&error)))?;
        self.last_seq.store(batch.seq.0, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> Result<Seq, StoreError> {
        self.check()?;
        let mut syncing = self.syncing.lock();
        let covered = self.last_seq();
        if covered.0 == self.durable_seq.load(Ordering::Acquire) {
            return Ok(covered);
        }
        self.sync_newest(&mut syncing)
            .map_err(|error| self.fail(StoreError::Engine(format!("sync of {}: {error}", self.journals.display()))))?;
        self.durable_seq.store(covered.0, Ordering::Release);
        // Not synced: it is a lower bound, and after kill -9 the page cache still has it.
        syncing
            .durable
            .write_all_at(&encode_durable(covered), 0)
            .map_err(|error| self.fail(StoreError::Engine(format!("writing DURABLE: {error}"))))?;
        Ok(covered)
    }

    fn last_seq(&self) -> Seq {
        Seq(self.last_seq.load(Ordering::Acquire))
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.check()?;
        Ok(Box::new(EmbeddedSnapshot { moment: self.database.snapshot(), records: self.records.clone() }))
    }
}

/// The pairs of one moment; fjall keeps what it needs for as long as this lives.
struct EmbeddedSnapshot {
    moment: fjall::Snapshot,
    records: Keyspace,
}

impl Snapshot for EmbeddedSnapshot {
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let start = start.max(&[1]);
        if start >= end {
            return Ok(Vec::new());
        }
        let found = self.moment.range(&self.records, start..end).take(limit);
        let pair = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|error| engine(&error))?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        };
        found.map(pair).collect()
    }
}

fn open_database(tables: &Path) -> Result<Database, StoreError> {
    Database::builder(tables)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES_MAX)
        .worker_threads(WORKER_THREADS)
        .open()
        .map_err(|error| match error {
            fjall::Error::Locked => StoreError::Locked(format!("another process uses {}", tables.display())),
            fjall::Error::JournalRecovery(_)
            | fjall::Error::InvalidTrailer
            | fjall::Error::InvalidTag(_)
            | fjall::Error::InvalidVersion(_)
            | fjall::Error::Decompress(_)
            | fjall::Error::Unrecoverable => StoreError::Corrupt(format!("{}: {error}", tables.display())),
            other => engine(&other),
        })
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

/// Makes an empty store beside its place, and moves it there whole: fjall cannot open a half-made one.
fn make(directory: &Path, tables: &Path) -> Result<(), StoreError> {
    let unfinished = directory.join("fjall.new");
    match std::fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(&unfinished, &error)),
        _ => {}
    }
    let database = open_database(&unfinished)?;
    drop(database.keyspace(KEYSPACE, options).map_err(|error| engine(&error))?);
    database.persist(fjall::PersistMode::SyncAll).map_err(|error| engine(&error))?;
    drop(database);
    let moved = std::fs::rename(&unfinished, tables).and_then(|()| File::open(directory)?.sync_all());
    moved.map_err(|error| io(tables, &error))
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("LOCK");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|error| io(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(StoreError::Locked(format!("another process uses {}", directory.display())))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(io(&path, &error)),
    }
}

/// `seq` and the crc32c of its eight bytes, little endian.
fn encode_durable(seq: Seq) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&seq.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Returns the seq in DURABLE, 0 if there is none. A torn one promises nothing, which is safe: it is a lower bound.
fn read_durable(directory: &Path) -> Result<Seq, StoreError> {
    let path = directory.join("DURABLE");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Seq(0)),
        Err(error) => return Err(io(&path, &error)),
    };
    let Some(number) = bytes.get(..8).and_then(|number| number.try_into().ok()) else { return Ok(Seq(0)) };
    let seq = Seq(u64::from_le_bytes(number));
    if encode_durable(seq)[..] != bytes[..] {
        tracing::warn!(path = %path.display(), "damaged, so it is ignored");
        return Ok(Seq(0));
    }
    Ok(seq)
}

fn engine(error: &fjall::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Engine(format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[path = "embedded_tests.rs"]
mod tests;
