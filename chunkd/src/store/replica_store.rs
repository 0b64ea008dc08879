//! All replicas on the disks of this server.
//!
//! Which disk has a replica is known from a listing at the start. Files are opened when they are first needed; after a
//! stop that was not orderly, the first opening of each settles what the crash left ([`super::recover`]).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dfs_proto::{ChunkId, ClusterId};
use lru::LruCache;
use parking_lot::Mutex;

use super::StoreError;
use super::chunk_file::{ChunkFile, write_error};
use super::data_dir::{self, DataDir, DataDirError, DirIdentity};
use super::disk::Disk;
use super::header::Header;
use super::layout::UNIT_BYTES;
use super::raw_file::OsFile;

/// Deleted chunks whose ids are remembered, so that a request that was under way does not make them again.
const DELETED_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug)]
struct Place {
    disk: usize,
    must_settle: bool,
}

/// The replicas of this server.
#[derive(Debug)]
pub struct ReplicaStore {
    disks: Vec<Arc<Disk>>,
    identities: Mutex<Vec<DirIdentity>>,
    places: Mutex<BTreeMap<ChunkId, Place>>,
    deleted: Mutex<LruCache<ChunkId, ()>>,
    was_clean: bool,
    is_suspect: bool,
}

/// A replica whose file is open.
#[derive(Debug)]
pub struct OpenReplica {
    /// Its units.
    pub file: ChunkFile,
    /// What the header says at the moment of opening.
    pub header: Header,
    /// Where it is.
    pub disk: Arc<Disk>,
    directory: PathBuf,
    is_name_durable: AtomicBool,
}

impl OpenReplica {
    /// Brings the replica, its name included, to stable media.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] and [`StoreError::Fenced`]; the disk is fenced after the first.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.disk.check()?;
        self.disk.judge(self.file.sync())?;
        if !self.is_name_durable.load(Ordering::Acquire) {
            self.disk.judge(data_dir::sync_directory(&self.directory))?;
            self.is_name_durable.store(true, Ordering::Release);
        }
        // Another thread may have been given the error that would have been ours.
        self.disk.check()
    }
}

impl OpenReplica {
    /// Takes room for writing `count` units from `first` on. What holds data already may be overwritten on a full disk.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Fenced`], [`StoreError::Read`].
    pub fn take_room(&self, first: u32, count: u32) -> Result<(), StoreError> {
        match self.disk.take_room(u64::from(count) * UNIT_BYTES as u64) {
            Err(StoreError::NoSpace) if self.file.is_allocated(first, count)? => Ok(()),
            taken => taken,
        }
    }
}

impl ReplicaStore {
    /// Takes the data directories at `paths` into use.
    ///
    /// # Errors
    ///
    /// [`DataDirError`]: in use, of different clusters or servers, or unusable.
    pub fn open(paths: &[PathBuf], reserve_max: u64, boot_id: &str) -> Result<Self, DataDirError> {
        let mut dirs: Vec<DataDir> = Vec::new();
        for path in paths {
            let server = dirs.first().map(|dir| dir.identity.server);
            dirs.push(DataDir::open(path, server, boot_id)?);
        }
        for dir in &dirs {
            check_belongs_together(&dirs[0], dir)?;
        }
        let mut places = BTreeMap::new();
        let mut disks = Vec::new();
        let was_clean = dirs.iter().all(|dir| dir.was_clean);
        let is_suspect = dirs.iter().any(|dir| !dir.was_clean && dir.host_rebooted);
        let identities = dirs.iter().map(|dir| dir.identity).collect();
        for (at, dir) in dirs.into_iter().enumerate() {
            let chunks = dir.chunks()?;
            let place = Place { disk: at, must_settle: !dir.was_clean };
            let path = dir.path.clone();
            let disk = Disk::new(dir.identity.disk, dir.path, dir.lock, reserve_max)
                .map_err(|error| DataDirError::Io { path, what: "has no space figures", error })?;
            let mut count = 0;
            for chunk in chunks {
                if let Some(first) = places.insert(chunk, place) {
                    tracing::error!(%chunk, "two disks have a replica of one chunk: the first one counts");
                    places.insert(chunk, first);
                    continue;
                }
                count += 1;
            }
            disk.count_replicas(count);
            disks.push(Arc::new(disk));
        }
        let deleted = LruCache::new(NonZeroUsize::new(DELETED_MAX).expect("not zero"));
        Ok(Self {
            disks,
            identities: Mutex::new(identities),
            places: Mutex::new(places),
            deleted: Mutex::new(deleted),
            was_clean,
            is_suspect,
        })
    }

    /// Returns the disks.
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// Returns the id of this server.
    pub fn server(&self) -> [u8; 16] {
        self.identities.lock()[0].server
    }

    /// Returns the cluster the disks belong to, if one was joined.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.identities.lock()[0].cluster
    }

    /// Returns whether the last use ended in order.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Returns whether the host lost what was in its page cache: writes that were acknowledged but not synced may be gone.
    pub fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Notes on all disks that they belong to `cluster`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn join(&self, cluster: ClusterId) -> io::Result<()> {
        let mut identities = self.identities.lock();
        for (identity, disk) in identities.iter_mut().zip(&self.disks) {
            if identity.cluster != Some(cluster) {
                let joined = DirIdentity { cluster: Some(cluster), ..*identity };
                data_dir::write_identity(disk.path(), &joined)?;
                *identity = joined;
            }
        }
        Ok(())
    }

    /// Returns the number of replicas.
    pub fn replicas(&self) -> usize {
        self.places.lock().len()
    }

    /// Opens the replica of `chunk`; `None` if there is none. Only one thread at a time may open a given chunk.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadFile`] never: such a file is put aside, and the replica is gone. [`StoreError::Open`],
    /// [`StoreError::Fenced`], [`StoreError::NewerFormat`], [`StoreError::Read`], [`StoreError::Write`].
    pub fn open_replica(&self, chunk: ChunkId) -> Result<Option<OpenReplica>, StoreError> {
        let Some(place) = self.places.lock().get(&chunk).copied() else { return Ok(None) };
        let disk = &self.disks[place.disk];
        disk.check()?;
        let (directory, path) = data_dir::replica_path(disk.path(), chunk);
        let (file, header) = match open_file(&path, chunk) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                check_in_place(disk)?;
                tracing::error!(%chunk, path = %path.display(), "the replica's file has gone");
                self.forget(chunk);
                return Ok(None);
            }
            Err(StoreError::BadFile(reason)) => {
                self.put_aside(chunk, &path, &reason)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if place.must_settle {
            let settled = disk.judge(file.settle(0, file.units()))?;
            if settled.settled_back + settled.damaged > 0 {
                tracing::warn!(%chunk, ?settled, "settled a replica after a crash");
            }
            if let Some(place) = self.places.lock().get_mut(&chunk) {
                place.must_settle = false;
            }
        }
        let is_name_durable = AtomicBool::new(false);
        Ok(Some(OpenReplica { file, header, disk: Arc::clone(disk), directory, is_name_durable }))
    }

    /// Makes the replica that `header` describes, on the disk with the most room. Only one thread at a time may make a
    /// given chunk.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Fenced`] if no disk is left, [`StoreError::Open`], [`StoreError::Write`].
    pub fn create_replica(&self, header: &Header) -> Result<OpenReplica, StoreError> {
        let best = self.disks.iter().enumerate().filter(|(_, disk)| !disk.has_failed());
        let Some((at, disk)) = best.max_by_key(|(_, disk)| disk.space().1) else {
            return Err(StoreError::Fenced("all disks".into()));
        };
        let (directory, path) = data_dir::replica_path(disk.path(), header.chunk);
        let create = || open_options().create_new(true).open(&path);
        let opened = match create() {
            // The fan-out is made with the data directory, unless that was interrupted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_in_place(disk)?;
                fs::create_dir_all(&directory).map_err(open_error)?;
                disk.judge(data_dir::sync_directory(&disk.path().join("replicas")))?;
                create()
            }
            // Whatever has the name is no replica of ours, or it would have been found at the start.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                tracing::error!(path = %path.display(), "something has the name of a new replica: put aside as .bad");
                fs::rename(&path, path.with_extension("bad")).map_err(open_error)?;
                create()
            }
            opened => opened,
        };
        let made = opened.map_err(open_error).and_then(|file| ChunkFile::create(OsFile(file), header));
        let file = match disk.judge(made) {
            Ok(file) => file,
            Err(error) => {
                // A file without a header is no replica; if it stays, the next opening puts it aside.
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        };
        self.places.lock().insert(header.chunk, Place { disk: at, must_settle: false });
        disk.count_replicas(1);
        let is_name_durable = AtomicBool::new(false);
        Ok(OpenReplica { file, header: *header, disk: Arc::clone(disk), directory, is_name_durable })
    }

    /// Deletes the replica of `chunk`, if there is one, and remembers that it may not be made again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] if the file cannot be removed, [`StoreError::Fenced`] if its disk has gone.
    pub fn delete(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.deleted.lock().put(chunk, ());
        let Some(place) = self.places.lock().get(&chunk).copied() else { return Ok(()) };
        let disk = &self.disks[place.disk];
        let (_, path) = data_dir::replica_path(disk.path(), chunk);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_in_place(disk)?,
            Err(error) => return Err(StoreError::Write(error)),
        }
        self.forget(chunk);
        Ok(())
    }

    /// Returns whether the replica of `chunk` was deleted on order, not long ago.
    pub fn was_deleted(&self, chunk: ChunkId) -> bool {
        self.deleted.lock().contains(&chunk)
    }

    /// Notes that everything was synced and the disks are left in order.
    pub fn close_clean(&self) {
        for disk in self.disks.iter().filter(|disk| !disk.has_failed()) {
            if let Err(error) = data_dir::write_clean(disk.path()) {
                tracing::warn!(disk = %disk.path().display(), %error, "cannot note an orderly stop");
            }
        }
    }

    fn forget(&self, chunk: ChunkId) {
        if let Some(place) = self.places.lock().remove(&chunk) {
            self.disks[place.disk].count_replicas(-1);
        }
    }

    fn put_aside(&self, chunk: ChunkId, path: &Path, reason: &str) -> Result<(), StoreError> {
        let is_empty = fs::symlink_metadata(path).is_ok_and(|data| data.is_file() && data.len() == 0);
        if is_empty {
            // Killed between making the file and writing its header: nothing was ever in it.
            fs::remove_file(path).map_err(write_error)?;
        } else {
            tracing::error!(%chunk, path = %path.display(), reason, "a replica file is unusable: put aside as .bad");
            fs::rename(path, path.with_extension("bad")).map_err(write_error)?;
        }
        self.forget(chunk);
        Ok(())
    }
}

/// Tells a missing file from a missing disk, which is fenced.
fn check_in_place(disk: &Disk) -> Result<(), StoreError> {
    if !disk.is_in_place().map_err(StoreError::Read)? {
        disk.fence("its directory has gone, or is another one now");
    }
    disk.check()
}

/// Sorts the errors of opening and making files: only what the medium itself says condemns it.
fn open_error(error: io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR | libc::EACCES | libc::EPERM) => {
            StoreError::Open(error)
        }
        _ => write_error(error),
    }
}

/// Opens the replica of `chunk` at `path`; `None` if nothing is there.
fn open_file(path: &Path, chunk: ChunkId) -> Result<Option<(ChunkFile, Header)>, StoreError> {
    let no_plain_file = || StoreError::BadFile("no plain file".into());
    let file = match open_options().open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A symbolic link, which is not followed, a directory, a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO)) => {
            return Err(no_plain_file());
        }
        Err(error) => return Err(open_error(error)),
    };
    if !file.metadata().map_err(StoreError::Read)?.is_file() {
        return Err(no_plain_file());
    }
    ChunkFile::open(OsFile(file), chunk).map(Some)
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    options
}

fn check_belongs_together(first: &DataDir, other: &DataDir) -> Result<(), DataDirError> {
    let (ours, theirs) = (first.identity, other.identity);
    let name = |cluster: Option<ClusterId>| cluster.map_or_else(|| "no cluster yet".to_owned(), |id| id.to_string());
    let reason = if ours.server != theirs.server {
        format!(
            "it belongs to server {}, {} belongs to server {}",
            ClusterId(theirs.server),
            first.path.display(),
            ClusterId(ours.server)
        )
    } else if ours.cluster.is_some() && theirs.cluster.is_some() && ours.cluster != theirs.cluster {
        let (ours, theirs) = (name(ours.cluster), name(theirs.cluster));
        format!("it belongs to cluster {theirs}, {} to cluster {ours}", first.path.display())
    } else {
        return Ok(());
    };
    Err(DataDirError::Mismatch { path: other.path.clone(), reason })
}
