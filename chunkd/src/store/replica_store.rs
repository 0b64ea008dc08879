//! All replicas on the disks of this server.
//!
//! Which disk has a replica is known from a listing at the start, before which the journals are brought in order. Files
//! are opened when they are first needed. A replica that has something in the journal stays open below, whoever lets go
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, ClusterId, Version};
use lru::LruCache;
use parking_lot::Mutex;

use super::StoreError;
use super::chunk_file::{ChunkFile, read_header, write_error};
use super::data_dir::{self, DataDir, DataDirError, DirIdentity, aside_path, replica_path};
use super::disk::Disk;
use super::header::Header;
use super::journal::record::Record;
use super::journal::recovery::recover;
use super::layout::UNIT_BYTES;
use super::options::StoreOptions;
use super::volume::{OsVolume, Volume};
use crate::core::message::WriteKey;

/// Deleted chunks whose ids are remembered, so that a request that was under way does not make them again.
const DELETED_MAX: usize = 65_536;

#[derive(Clone, Debug)]
struct Place {
    disk: usize,
    /// The replica, if anybody has it open.
    open: Weak<ChunkFile>,
    /// What its header says, if that was read since it was last open.
    note: Option<(Home, Version, bool)>,
    /// Units that the journal found damaged, until it is first opened.
    damaged: Vec<u32>,
}

/// The replicas of this server.
#[derive(Debug)]
pub struct ReplicaStore {
    disks: Vec<Arc<Disk>>,
    identities: Mutex<Vec<DirIdentity>>,
    places: Mutex<BTreeMap<ChunkId, Place>>,
    /// Below which version the replica of a chunk may not be made again.
    deleted: Mutex<LruCache<ChunkId, Version>>,
    was_clean: bool,
    is_suspect: bool,
}

/// A replica whose file is open.
#[derive(Debug)]
pub struct OpenReplica {
    /// Its units.
    pub file: Arc<ChunkFile>,
    /// What the header says at the moment of opening.
    pub header: Header,
    /// Where it is.
    pub disk: Arc<Disk>,
    /// The requests that wrote it not long ago, also before a restart; the oldest first.
    pub keys: Vec<WriteKey>,
}

/// What an inventory says of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaNote {
    /// Whose replica it is.
    pub chunk: ChunkId,
    /// Where the master has the chunk's record.
    pub home: Home,
    /// The version it has.
    pub version: Version,
    /// It lacks what others have.
    pub incomplete: bool,
}

impl OpenReplica {
    fn new(file: Arc<ChunkFile>, disk: &Arc<Disk>) -> Result<Self, StoreError> {
        let keys = disk.journal()?.keys_of(file.chunk());
        Ok(Self { header: file.header(), file, disk: Arc::clone(disk), keys })
    }

    /// Brings everything that was done to the replica to stable media; see [`ChunkFile::sync`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] and [`StoreError::Fenced`]; the disk is fenced after the first. [`StoreError::NoSpace`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync()
    }

    /// Takes room for writing `count` units from `first` on. What holds data already may be overwritten on a full disk.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Fenced`], [`StoreError::Read`].
    pub fn take_room(&self, first: u32, count: u32) -> Result<(), StoreError> {
        match self.disk.take_room(u64::from(count) * UNIT_BYTES as u64) {
            Err(StoreError::NoSpace) if self.file.is_allocated(first, count) => Ok(()),
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
        let take = |path: &PathBuf| -> Result<Arc<dyn Volume>, DataDirError> {
            let taken = OsVolume::take(path).map_err(|error| DataDirError::Io {
                path: path.clone(),
                what: "cannot be made or locked",
                error,
            })?;
            Ok(Arc::new(taken.ok_or_else(|| DataDirError::InUse(path.clone()))?))
        };
        let volumes = paths.iter().map(take).collect::<Result<_, _>>()?;
        Self::open_on(volumes, boot_id, &StoreOptions { reserve_max, ..StoreOptions::default() })
    }

    /// Takes `volumes`, which are this process's alone, into use. A disk whose journal is corrupt or cannot be read is
    /// fenced, and its replicas with it; nothing on it is changed.
    ///
    /// # Errors
    ///
    /// [`DataDirError`]: of different clusters or servers, or unusable.
    pub fn open_on(volumes: Vec<Arc<dyn Volume>>, boot_id: &str, options: &StoreOptions) -> Result<Self, DataDirError> {
        let mut dirs: Vec<DataDir> = Vec::new();
        for volume in volumes {
            let server = dirs.first().map(|dir| dir.identity.server);
            dirs.push(DataDir::open(volume, server, boot_id, options.fresh_id)?);
        }
        for dir in &dirs {
            check_belongs_together(&dirs[0], dir)?;
        }
        let deleted = LruCache::new(NonZeroUsize::new(DELETED_MAX).expect("not zero"));
        let mut store = Self {
            disks: Vec::new(),
            identities: Mutex::new(dirs.iter().map(|dir| dir.identity).collect()),
            places: Mutex::default(),
            deleted: Mutex::new(deleted),
            was_clean: dirs.iter().all(|dir| dir.was_clean),
            is_suspect: dirs.iter().any(|dir| dir.is_marked),
        };
        for (at, dir) in dirs.iter().enumerate() {
            let others = dirs.iter().enumerate().filter(|(other, _)| *other != at);
            let disk = store.take_disk(dir, options)?;
            disk.set_others(others.map(|(_, dir)| Arc::clone(&dir.volume)).collect());
            store.is_suspect |= disk.has_failed();
        }
        for (dir, disk) in dirs.iter().zip(&store.disks).filter(|(_, disk)| !disk.has_failed()) {
            disk.check().map(|()| dir.take(boot_id)).unwrap_or(Ok(()))?;
        }
        Ok(store)
    }

    /// Brings the journal of a disk in order, and lists its replicas.
    fn take_disk(&mut self, dir: &DataDir, options: &StoreOptions) -> Result<&Arc<Disk>, DataDirError> {
        let label = dir.volume.label();
        let disk = Disk::new(dir.identity.disk, Arc::clone(&dir.volume), options.reserve_max)
            .map_err(|error| DataDirError::Io { path: PathBuf::from(&label), what: "has no space figures", error })?;
        let lost_power = dir.host_rebooted || dir.is_marked;
        let mut damaged = match recover(&dir.volume, &options.for_disk(disk.space().0), dir.is_new, lost_power) {
            Ok(recovered) => {
                if recovered.replicas > 0 || recovered.was_torn {
                    tracing::info!(
                        disk = %label,
                        replicas = recovered.replicas,
                        lost_units = recovered.lost_units,
                        damaged = recovered.damaged.len(),
                        torn = recovered.was_torn,
                        "carried the journal out"
                    );
                }
                disk.set_journal(recovered.journal);
                recovered.damaged
            }
            Err(error) => {
                disk.fence(&error.to_string());
                BTreeMap::new()
            }
        };
        let at = self.disks.len();
        let places = self.places.get_mut();
        let mut count = 0;
        for chunk in dir.chunks()? {
            if places.contains_key(&chunk) {
                tracing::error!(%chunk, "two disks have a replica of one chunk: the first one counts");
                continue;
            }
            let damaged = damaged.remove(&chunk).unwrap_or_default();
            places.insert(chunk, Place { disk: at, open: Weak::new(), note: None, damaged });
            count += 1;
        }
        disk.count_replicas(count);
        if !disk.has_failed() {
            sync_names(&disk, places.iter().filter(|(_, place)| place.disk == at).map(|(chunk, _)| *chunk));
        }
        self.disks.push(Arc::new(disk));
        Ok(&self.disks[at])
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

    /// Returns whether writes that were acknowledged but not synced may be gone: the host lost what was in its page cache,
    /// or a disk failed. True for every start until [`Self::clear_suspect`].
    pub fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Notes that the master knows that this start was suspect: the next one is not, unless something happens again.
    pub fn clear_suspect(&self) {
        if self.disks.iter().any(|disk| disk.has_failed()) {
            // What that disk had is still to be given up; should this process die before, the next one must say it again.
            return;
        }
        for disk in &self.disks {
            if let Err(error) = data_dir::clear_suspect(disk.volume()) {
                tracing::warn!(disk = %disk.path().display(), %error, "cannot clear SUSPECT");
            }
        }
    }

    /// Notes on all disks that they belong to `cluster`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn join(&self, cluster: ClusterId) -> io::Result<()> {
        let mut identities = self.identities.lock();
        for (identity, disk) in identities.iter_mut().zip(&self.disks).filter(|(_, disk)| !disk.has_failed()) {
            if identity.cluster != Some(cluster) {
                let joined = DirIdentity { cluster: Some(cluster), ..*identity };
                data_dir::write_identity(disk.volume(), &joined)?;
                *identity = joined;
            }
        }
        Ok(())
    }

    /// Returns the number of replicas.
    pub fn replicas(&self) -> usize {
        self.places.lock().len()
    }

    /// Opens the replica of `chunk`; `None` if there is none, or none whose header can be read. Only one thread at a time
    /// may open a given chunk.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadFile`] never: such a file is put aside, and the replica is gone. [`StoreError::Open`],
    /// [`StoreError::Fenced`], [`StoreError::OtherFormat`], [`StoreError::Write`]; [`StoreError::Read`] if the whole disk
    /// cannot be.
    pub fn open_replica(&self, chunk: ChunkId) -> Result<Option<OpenReplica>, StoreError> {
        let Some(place) = self.places.lock().get(&chunk).cloned() else { return Ok(None) };
        let disk = &self.disks[place.disk];
        disk.check()?;
        if let Some(file) = place.open.upgrade() {
            return OpenReplica::new(file, disk).map(Some);
        }
        let (directory, path) = replica_path(chunk);
        let opened = disk.volume().open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => StoreError::BadFile("no plain file".into()),
            _ => open_error(error),
        });
        let file = match opened.and_then(|file| ChunkFile::open(file, disk, directory, chunk)) {
            Ok(file) => file,
            Err(StoreError::Write(error)) if error.kind() == io::ErrorKind::NotFound => {
                check_in_place(disk)?;
                tracing::error!(%chunk, path, "the replica's file has gone");
                self.forget(chunk);
                return Ok(None);
            }
            Err(StoreError::BadFile(reason)) => {
                self.put_aside(chunk, disk, &path, &reason)?;
                return Ok(None);
            }
            Err(StoreError::Read(error)) => {
                // Nobody is served by it, and others may have what it has. It stays where it is, should it be the last
                // one and readable again one day.
                check_in_place(disk)?;
                tracing::error!(%chunk, path, %error, "a replica's header cannot be read: as good as none");
                if let Some(place) = self.places.lock().get_mut(&chunk) {
                    place.note = None;
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        for unit in place.damaged.iter().filter(|unit| **unit < file.units()) {
            file.note_damage(*unit);
        }
        let opened = OpenReplica::new(Arc::clone(&file), disk)?;
        if let Some(place) = self.places.lock().get_mut(&chunk) {
            (place.open, place.note, place.damaged) = (Arc::downgrade(&file), None, Vec::new());
        }
        Ok(Some(opened))
    }

    /// Makes the replica that `header` describes, on the disk with the most room. Only one thread at a time may make a
    /// given chunk. It is on stable media after the first [`OpenReplica::sync`].
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`], [`StoreError::Fenced`] if no disk is left, [`StoreError::Open`], [`StoreError::Write`].
    pub fn create_replica(&self, header: &Header) -> Result<OpenReplica, StoreError> {
        let best = self.disks.iter().enumerate().filter(|(_, disk)| !disk.has_failed());
        let Some((at, disk)) = best.max_by_key(|(_, disk)| disk.space().1) else {
            return Err(StoreError::Fenced("all disks".into()));
        };
        let volume = disk.volume();
        let (directory, path) = replica_path(header.chunk);
        if self.deleted.lock().contains(&header.chunk) {
            // The file and the records of the one before must not be taken for those of this one after a crash.
            self.finish_removals()?;
        }
        // One that could not be read may have had everything: a grant from before anything was written does not make it whole.
        let mut is_lost = volume.open(&aside_path(&path)).is_ok();
        let made = match volume.create(&path) {
            // The fan-out is made with the data directory, unless that was interrupted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_in_place(disk)?;
                volume.create_directory(&directory).map_err(open_error)?;
                disk.judge(volume.sync_directory("replicas").map_err(StoreError::Write))?;
                volume.create(&path)
            }
            // Whatever has the name is no replica of ours, or it could not be opened.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                tracing::error!(path, "something has the name of a new replica: put aside as .bad");
                volume.rename(&path, &aside_path(&path)).map_err(open_error)?;
                self.forget(header.chunk);
                is_lost = true;
                volume.create(&path)
            }
            made => made,
        };
        let made = made.map_err(|error| open_error(error).at(|| format!("making {path}"))).and_then(|file| {
            let header = Header { incomplete: header.incomplete || is_lost, ..*header };
            ChunkFile::create(file, disk, directory, &header)
        });
        let file = match disk.judge(made) {
            Ok(file) => file,
            Err(error) => {
                // A file without a header is no replica; if it stays, the next opening puts it aside.
                let _ = volume.remove(&path);
                return Err(error);
            }
        };
        let place = Place { disk: at, open: Arc::downgrade(&file), note: None, damaged: Vec::new() };
        self.places.lock().insert(header.chunk, place);
        disk.count_replicas(1);
        OpenReplica::new(file, disk)
    }

    /// Deletes the replica of `chunk`, if there is one, and remembers that it may not be made again. Who has it open finds
    /// it [`StoreError::Deleted`] when writing. Not while another thread opens or makes it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] if the file cannot be removed, [`StoreError::Fenced`] if its disk has gone just now.
    pub fn delete(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.deleted.lock().put(chunk, Version(u64::MAX));
        self.remove(chunk)
    }

    /// As [`Self::delete`], but it may be made again under version `below` and later ones. Who still has a grant from before
    /// that would take a new replica for one that was never written.
    ///
    /// # Errors
    ///
    /// As of [`Self::delete`].
    pub fn discard(&self, chunk: ChunkId, below: Version) -> Result<(), StoreError> {
        {
            let mut deleted = self.deleted.lock();
            let known = deleted.get(&chunk).copied().unwrap_or_default();
            deleted.put(chunk, known.max(below));
        }
        self.remove(chunk)
    }

    fn remove(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let Some(place) = self.places.lock().get(&chunk).cloned() else { return Ok(()) };
        let disk = &self.disks[place.disk];
        if disk.has_failed() {
            // Nothing on it is touched; what a later start finds there is deleted then.
            self.forget(chunk);
            return Ok(());
        }
        let journal = disk.journal()?;
        if let Some(file) = place.open.upgrade() {
            let _alone = journal.enter_alone();
            file.note_deleted();
        }
        let _entered = journal.enter();
        match disk.judge(journal.append(&Record::Delete(chunk), &[])) {
            // Deletions make room: they go on without. A replica that comes back after a crash is found by the master.
            Ok(_) | Err(StoreError::NoSpace) => {}
            Err(error) => return Err(error),
        }
        let (directory, path) = replica_path(chunk);
        match disk.volume().remove(&path) {
            Ok(()) => journal.note_removal(directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_in_place(disk)?,
            Err(error) => return Err(StoreError::Write(error)),
        }
        self.forget(chunk);
        Ok(())
    }

    /// Returns whether the replica of `chunk` was deleted on order, not long ago, so that it may not be made under `version`.
    pub fn was_deleted(&self, chunk: ChunkId, version: Version) -> bool {
        self.deleted.lock().get(&chunk).is_some_and(|below| version < *below)
    }

    /// Returns the version and home of up to `count` replicas behind `after`, by chunk, and the chunk to go on behind, if
    /// there may be more. Replicas on failed disks, and those whose headers cannot be read, are not held and not told.
    pub fn inventory(&self, after: Option<ChunkId>, count: usize) -> (Vec<ReplicaNote>, Option<ChunkId>) {
        let from = after.map_or(0, |after| after.0.saturating_add(1));
        let page: Vec<(ChunkId, Place)> = {
            let places = self.places.lock();
            places.range(ChunkId(from)..).take(count).map(|(chunk, place)| (*chunk, place.clone())).collect()
        };
        let next = if page.len() < count { None } else { page.last().map(|(chunk, _)| *chunk) };
        let is_held = |(_, place): &(ChunkId, Place)| !self.disks[place.disk].has_failed();
        let notes = page.into_iter().filter(is_held).filter_map(|(chunk, place)| self.note(chunk, &place).ok());
        (notes.collect(), next)
    }

    /// Returns the replicas on failed disks, as far as they can be told: they are to leave their replica sets.
    pub fn stranded(&self) -> Vec<(ChunkId, Option<ReplicaNote>)> {
        let places: Vec<(ChunkId, Place)> = {
            let places = self.places.lock();
            let on_failed = places.iter().filter(|(_, place)| self.disks[place.disk].has_failed());
            on_failed.map(|(chunk, place)| (*chunk, place.clone())).collect()
        };
        places.into_iter().map(|(chunk, place)| (chunk, self.note(chunk, &place).ok())).collect()
    }

    fn note(&self, chunk: ChunkId, place: &Place) -> Result<ReplicaNote, StoreError> {
        let (home, version, incomplete) = match (place.open.upgrade(), place.note) {
            (Some(file), _) => {
                let header = file.header();
                (header.home, header.version, header.incomplete)
            }
            (None, Some(note)) => note,
            (None, None) => {
                let volume = self.disks[place.disk].volume();
                let file = volume.open(&replica_path(chunk).1).map_err(open_error)?;
                let header = read_header(&*file, chunk)?;
                let note = (header.home, header.version, header.incomplete);
                // Unless it was opened meanwhile, and perhaps closed with another header.
                if let Some(now) = self.places.lock().get_mut(&chunk)
                    && now.open.ptr_eq(&place.open)
                {
                    now.note = Some(note);
                }
                note
            }
        };
        Ok(ReplicaNote { chunk, home, version, incomplete })
    }

    /// Brings everything to stable media and notes that the disks are left in order. Nobody uses the store any more.
    pub fn close_clean(&self) {
        for disk in self.disks.iter().filter(|disk| !disk.has_failed()) {
            // The journal keeps what a full disk has no room for.
            let closed = match disk.checkpoint() {
                Err(StoreError::NoSpace) => Ok(()),
                closed => closed,
            };
            let noted = closed
                .map_err(|error| error.to_string())
                .and_then(|()| data_dir::write_clean(disk.volume()).map_err(|error| error.to_string()));
            if let Err(error) = noted {
                tracing::warn!(disk = %disk.path().display(), error, "cannot leave the disk in order");
            }
        }
    }

    fn finish_removals(&self) -> Result<(), StoreError> {
        let working = self.disks.iter().filter(|disk| !disk.has_failed());
        working.into_iter().try_for_each(|disk| disk.judge(disk.journal()?.finish_removals()))
    }

    fn forget(&self, chunk: ChunkId) {
        if let Some(place) = self.places.lock().remove(&chunk) {
            self.disks[place.disk].count_replicas(-1);
        }
    }

    fn put_aside(&self, chunk: ChunkId, disk: &Disk, path: &str, reason: &str) -> Result<(), StoreError> {
        let volume = disk.volume();
        let is_empty = volume.open(path).and_then(|file| file.length()).is_ok_and(|length| length == 0);
        if is_empty {
            // Killed between making the file and writing its header: nothing was ever in it.
            volume.remove(path).map_err(write_error)?;
        } else {
            tracing::error!(%chunk, path, reason, "a replica file is unusable: put aside as .bad");
            volume.rename(path, &aside_path(path)).map_err(write_error)?;
        }
        self.forget(chunk);
        Ok(())
    }
}

/// Brings the names of `chunks` to stable media. A process that was killed may have made a file, and died before the
/// journal knew of it; whoever uses the file now takes its name for durable.
fn sync_names(disk: &Disk, chunks: impl Iterator<Item = ChunkId>) {
    let directories: BTreeSet<String> = chunks.map(|chunk| replica_path(chunk).0).collect();
    for directory in directories {
        if let Err(error) = disk.volume().sync_directory(&directory) {
            disk.fence(&format!("syncing the names in {directory}: {error}"));
            return;
        }
    }
}

impl Drop for ReplicaStore {
    fn drop(&mut self) {
        // Replicas and journals hold on to each other.
        for journal in self.disks.iter().filter_map(|disk| disk.journal().ok()) {
            journal.let_go();
        }
    }
}

/// Tells a missing file from a missing disk, which is fenced.
fn check_in_place(disk: &Disk) -> Result<(), StoreError> {
    if !disk.volume().is_in_place().map_err(StoreError::Read)? {
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

fn check_belongs_together(first: &DataDir, other: &DataDir) -> Result<(), DataDirError> {
    let (ours, theirs) = (first.identity, other.identity);
    let name = |cluster: Option<ClusterId>| cluster.map_or_else(|| "no cluster yet".to_owned(), |id| id.to_string());
    let reason = if ours.server != theirs.server {
        format!(
            "it belongs to server {}, {} belongs to server {}",
            ClusterId(theirs.server),
            first.volume.label(),
            ClusterId(ours.server)
        )
    } else if ours.cluster.is_some() && theirs.cluster.is_some() && ours.cluster != theirs.cluster {
        let (ours, theirs) = (name(ours.cluster), name(theirs.cluster));
        format!("it belongs to cluster {theirs}, {} to cluster {ours}", first.volume.label())
    } else {
        return Ok(());
    };
    Err(DataDirError::Mismatch { path: PathBuf::from(other.volume.label()), reason })
}
