//! A directory that behaves as a disk: what was not synced can be lost, and what is asked can fail.
//!
//! The lower directory has `tree`, what programs see, and `removed`, files whose removal is not stable yet.
//!
//! # Invariants
//!
//! - A power cut happens between operations, never within one (`world`).
//! - Files are known by their inode number in the lower file system. One that has unsynced data stays open here, whether
//!   it has a name or not.
//!
//! Locks: `world`, then `state`, then the data of one node.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use parking_lot::{Mutex, RwLock};

use super::names::{Change, Names};
use super::rules::{Action, Op, Rule, Rules};
use super::unsynced::{SECTOR, Unsynced};
use crate::random::Random;

/// Content of unsynced overwrites that is kept in memory; beyond it the oldest count as written.
const MEMORY_MAX: u64 = 512 << 20;

/// A file or directory.
#[derive(Debug)]
struct Node {
    inode: u64,
    file: File,
    is_directory: bool,
    /// From the tree's root, as it was last seen.
    path: Mutex<String>,
    data: Mutex<Unsynced>,
}

impl Node {
    /// Returns the path of a name in it, or of itself.
    fn path(&self, name: &[u8]) -> PathBuf {
        let here = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        if name.is_empty() { here } else { here.join(std::ffi::OsStr::from_bytes(name)) }
    }

    fn shown(&self) -> String {
        self.path.lock().clone()
    }
}

#[derive(Debug, Default)]
struct State {
    /// By inode number, with how often the kernel was told of it.
    nodes: BTreeMap<u64, (Arc<Node>, u64)>,
    names: Names<Arc<Node>, u64>,
    rules: Rules,
    next_removed: u64,
}

/// What is going on on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that a power cut could take back.
    pub unsynced_bytes: u64,
    /// Changes of names that it could.
    pub unsynced_names: u64,
    /// Operations that rules struck.
    pub struck: u64,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    removed: PathBuf,
    root: u64,
    /// What is older counts as written by the kernel itself.
    settle_ms: u64,
    started: Instant,
    world: RwLock<()>,
    state: Mutex<State>,
}

impl Disk {
    /// Opens the disk that lies in `lower`, or makes it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn open(lower: &Path, settle_ms: u64) -> Result<Self> {
        let (tree, removed) = (lower.join("tree"), lower.join("removed"));
        if removed.exists() {
            std::fs::remove_dir_all(&removed)?;
        }
        std::fs::create_dir_all(&removed)?;
        std::fs::create_dir_all(&tree)?;
        let disk = Self {
            removed,
            root: std::fs::metadata(&tree)?.ino(),
            settle_ms,
            started: Instant::now(),
            world: RwLock::default(),
            state: Mutex::default(),
        };
        disk.known(&tree, String::new())?;
        Ok(disk)
    }

    /// Returns the inode number of the tree's root.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Finds a name. What is returned must be forgotten as often.
    ///
    /// # Errors
    ///
    /// The operating system's, as everywhere here.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Metadata> {
        let _world = self.world.read();
        self.found(&*self.node(parent)?, name)
    }

    /// Forgets a file `count` times.
    pub fn forget(&self, inode: u64, count: u64) {
        let mut state = self.state.lock();
        if let Some((node, lookups)) = state.nodes.get_mut(&inode) {
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 && inode != self.root && node.data.lock().is_empty() {
                state.nodes.remove(&inode);
            }
        }
    }

    /// Returns the attributes.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn attributes(&self, inode: u64) -> Result<Metadata> {
        self.node(inode)?.file.metadata()
    }

    /// Lists a directory: names, inode numbers, and whether they are directories.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn list(&self, inode: u64) -> Result<Vec<(Vec<u8>, u64, bool)>> {
        let _world = self.world.read();
        let list = std::fs::read_dir(self.node(inode)?.path(b""))?.map(|entry| {
            // Nothing but what the listing itself says: a name may go meanwhile.
            let entry = entry?;
            Ok((entry.file_name().into_vec(), entry.ino(), entry.file_type()?.is_dir()))
        });
        list.collect()
    }

    /// Reads.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`], or what a rule says.
    pub fn read(&self, inode: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        let node = self.node(inode)?;
        self.strike(Op::Read, &node)?;
        let _world = self.world.read();
        let (mut bytes, mut have) = (vec![0; size], 0);
        while have < size {
            match node.file.read_at(&mut bytes[have..], offset + have as u64)? {
                0 => break,
                count => have += count,
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn write(&self, inode: u64, mut offset: u64, bytes: &[u8]) -> Result<()> {
        let node = self.node(inode)?;
        let action = self.strike(Op::Write, &node)?;
        let _world = self.world.read();
        let mut data = node.data.lock();
        let mut bytes = std::borrow::Cow::Borrowed(bytes);
        match action {
            Some(Action::Misdirected(shift)) => offset += shift,
            Some(Action::Flip) if !bytes.is_empty() => {
                let middle = bytes.len() / 2;
                bytes.to_mut()[middle] ^= 1;
            }
            Some(Action::Torn) => {
                // All but the last sector; less than one sector is written as a whole.
                let end = (offset + bytes.len() as u64).div_ceil(SECTOR).saturating_sub(1) * SECTOR;
                if end > offset {
                    bytes.to_mut().truncate((end - offset) as usize);
                }
            }
            _ => {}
        }
        self.keep(&node, &mut data, offset, offset + bytes.len() as u64)?;
        let size = node.file.metadata()?.len();
        if offset + bytes.len() as u64 > size {
            data.resize(size, self.now_ms());
        }
        node.file.write_all_at(&bytes, offset)
    }

    /// Changes the size.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn truncate(&self, inode: u64, size: u64) -> Result<()> {
        let node = self.node(inode)?;
        self.strike(Op::Space, &node)?;
        let _world = self.world.read();
        let mut data = node.data.lock();
        let before = node.file.metadata()?.len();
        if size < before {
            self.keep(&node, &mut data, size, before)?;
        }
        if size != before {
            data.resize(before, self.now_ms());
        }
        node.file.set_len(size)
    }

    /// Makes or takes room, as fallocate(2) with this mode.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn allocate(&self, inode: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let node = self.node(inode)?;
        self.strike(Op::Space, &node)?;
        let _world = self.world.read();
        let mut data = node.data.lock();
        let flags = FallocateFlags::from_bits(mode).ok_or(ErrorKind::Unsupported)?;
        let before = node.file.metadata()?.len();
        if flags.intersects(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_ZERO_RANGE) {
            self.keep(&node, &mut data, offset, (offset + length).min(before.max(offset)))?;
        } else if flags.intersects(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE | FallocateFlags::FALLOC_FL_INSERT_RANGE) {
            return Err(ErrorKind::Unsupported.into());
        }
        fallocate(&node.file, flags, offset as i64, length as i64)?;
        if node.file.metadata()?.len() != before {
            data.resize(before, self.now_ms());
        }
        Ok(())
    }

    /// Finds data or a hole, as lseek(2).
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn seek(&self, inode: u64, offset: i64, whence: i32) -> Result<i64> {
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(ErrorKind::InvalidInput.into()),
        };
        Ok(lseek64(&self.node(inode)?.file, offset, whence)?)
    }

    /// Syncs a file: a power cut does not take it back. It does not make its name stable.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`]: after it fails once, what it should have covered may be lost, whatever later syncs say.
    pub fn sync(&self, inode: u64) -> Result<()> {
        let node = self.node(inode)?;
        let struck = self.strike(Op::Sync, &node);
        let _world = self.world.read();
        let mut data = node.data.lock();
        match struck {
            Ok(Some(Action::Lie)) => {}
            Ok(_) => data.synced(),
            Err(_) => data.sync_failed(),
        }
        struck.map(drop)
    }

    /// Syncs a directory's names.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn sync_names(&self, inode: u64) -> Result<()> {
        self.strike(Op::Names, &*self.node(inode)?)?;
        let _world = self.world.read();
        let mut state = self.state.lock();
        let freed = state.names.synced(inode);
        self.remove_kept(freed)
    }

    /// Makes a file or a directory. What is returned must be forgotten.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn make(&self, parent: u64, name: &[u8], mode: u32, is_directory: bool) -> Result<Metadata> {
        let parent = self.node(parent)?;
        self.strike_name(&parent, name)?;
        let _world = self.world.read();
        let path = parent.path(name);
        if is_directory {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), mode).create(path)?;
        } else {
            OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
        }
        self.note(&[&parent], |_| Ok(Change::Made { directory: Arc::clone(&parent), name: name.to_owned() }))?;
        self.found(&parent, name)
    }

    /// Removes a name, of a directory or of anything else.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn remove(&self, parent: u64, name: &[u8], is_directory: bool) -> Result<()> {
        let parent = self.node(parent)?;
        self.strike_name(&parent, name)?;
        let _world = self.world.read();
        let path = parent.path(name);
        let found = std::fs::symlink_metadata(&path)?;
        match (found.is_dir(), is_directory) {
            (true, false) => return Err(ErrorKind::IsADirectory.into()),
            (false, true) => return Err(ErrorKind::NotADirectory.into()),
            (true, true) if std::fs::read_dir(&path)?.next().is_some() => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        self.note(&[&parent], |kept| {
            std::fs::rename(&path, self.kept_path(kept))?;
            Ok(Change::Removed { directory: Arc::clone(&parent), name: name.to_owned(), kept })
        })
    }

    /// Moves a name, over another one if there is one.
    ///
    /// # Errors
    ///
    /// As [`Disk::read`].
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8])) -> Result<()> {
        let (from, to) = ((self.node(from.0)?, from.1), (self.node(to.0)?, to.1));
        self.strike_name(&from.0, from.1)?;
        self.strike_name(&to.0, to.1)?;
        let _world = self.world.read();
        let (old, new) = (from.0.path(from.1), to.0.path(to.1));
        self.note(&[&from.0, &to.0], |kept| {
            let replaced = match std::fs::hard_link(&new, self.kept_path(kept)) {
                Ok(()) => Some(kept),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            std::fs::rename(&old, &new)?;
            let place = |(node, name): (Arc<Node>, &[u8])| (node, name.to_owned());
            Ok(Change::Renamed { from: place(from.clone()), to: place(to.clone()), replaced })
        })?;
        self.found_quietly(&to.0, to.1);
        Ok(())
    }

    /// Changes permission bits and owner.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn set_owner_and_mode(&self, inode: u64, owner: (Option<u32>, Option<u32>), mode: Option<u32>) -> Result<()> {
        let node = self.node(inode)?;
        if let Some(mode) = mode {
            node.file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))?;
        }
        if owner != (None, None) {
            std::os::unix::fs::fchown(&node.file, owner.0, owner.1)?;
        }
        Ok(())
    }

    /// Returns the space of the file system below; none is free while a rule says so.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn space(&self) -> Result<(nix::sys::statvfs::Statvfs, bool)> {
        Ok((nix::sys::statvfs::statvfs(&self.removed)?, self.state.lock().rules.is_full()))
    }

    /// Adds a rule.
    pub fn add_rule(&self, rule: Rule) {
        self.state.lock().rules.add(rule);
    }

    /// Takes all rules away.
    pub fn clear_rules(&self) {
        self.state.lock().rules.clear();
    }

    /// Returns what is going on.
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            unsynced_bytes: state.nodes.values().map(|(node, _)| node.data.lock().bytes()).sum(),
            unsynced_names: state.names.len() as u64,
            struck: state.rules.struck(),
        }
    }

    /// Lets what is old enough count as written, as the kernel's own writeback does. To be called now and then.
    ///
    /// # Errors
    ///
    /// As [`Disk::lookup`].
    pub fn settle(&self) -> Result<()> {
        let _world = self.world.read();
        let mut state = self.state.lock();
        let before = self.now_ms().saturating_sub(self.settle_ms);
        let held: u64 = state.nodes.values().map(|(node, _)| node.data.lock().memory()).sum();
        let before = if held > MEMORY_MAX { self.now_ms() } else { before };
        state.nodes.retain(|inode, (node, lookups)| {
            let mut data = node.data.lock();
            data.settle(before);
            *lookups > 0 || *inode == self.root || !data.is_empty()
        });
        let freed = state.names.settle(before);
        self.remove_kept(freed)
    }

    /// Cuts the power: of what was not synced, some is gone, by `seed`. Whoever uses the disk should be dead. Returns how
    /// many bytes and names went back.
    ///
    /// # Errors
    ///
    /// The operating system's: the disk is in no defined state then.
    pub fn power_cut(&self, seed: u64) -> Result<(u64, u64)> {
        let _world = self.world.write();
        let mut state = self.state.lock();
        let mut random = Random::new(seed);
        let mut bytes = 0;
        for (node, _) in state.nodes.values() {
            let mut data = node.data.lock();
            if data.is_empty() {
                continue;
            }
            let cut = data.cut(node.file.metadata()?.len(), &mut random);
            node.file.set_len(cut.size)?;
            for restore in cut.restore {
                let (start, length) = (restore.range.start, restore.range.end - restore.range.start);
                bytes += length;
                match restore.bytes {
                    Some(bytes) => node.file.write_all_at(&bytes, start)?,
                    None => {
                        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                        fallocate(&node.file, flags, start as i64, length as i64)?;
                    }
                }
            }
        }
        let (lost, freed) = state.names.cut(&mut random);
        let names = lost.len() as u64;
        for change in lost {
            self.take_back(change)?;
        }
        self.remove_kept(freed)?;
        Ok((bytes, names))
    }

    /// Flips `count` random bits, by `seed`, in the data of files whose path matches `pattern`. Returns each as path,
    /// offset in bytes and bit.
    ///
    /// # Errors
    ///
    /// The operating system's; or if there is no such data.
    pub fn flip(&self, pattern: &str, count: u64, seed: u64) -> Result<Vec<(String, u64, u8)>> {
        let _world = self.world.write();
        let tree = self.node(self.root)?.path(b"");
        let (mut files, mut directories) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(tree.join(&directory))? {
                let entry = entry?;
                let path = directory.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    directories.push(path);
                } else if super::rules::matches(pattern, &path.to_string_lossy()) {
                    let file = OpenOptions::new().read(true).write(true).open(tree.join(&path))?;
                    let pieces = data_of(&file)?;
                    files.push((path.to_string_lossy().into_owned(), file, pieces));
                }
            }
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        let total: u64 = files.iter().flat_map(|(_, _, pieces)| pieces).map(|(start, end)| end - start).sum();
        if total == 0 {
            return Err(Error::other(format!("no file of {pattern} has data")));
        }
        let mut random = Random::new(seed);
        let mut flips = Vec::new();
        for _ in 0..count {
            let (mut nth, bit) = (random.below(total), random.below(8) as u8);
            'search: for (path, file, pieces) in &files {
                for (start, end) in pieces {
                    if nth < end - start {
                        let mut byte = [0];
                        file.read_exact_at(&mut byte, start + nth)?;
                        file.write_all_at(&[byte[0] ^ (1 << bit)], start + nth)?;
                        flips.push((path.clone(), start + nth, bit));
                        break 'search;
                    }
                    nth -= end - start;
                }
            }
        }
        Ok(flips)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn node(&self, inode: u64) -> Result<Arc<Node>> {
        let state = self.state.lock();
        state.nodes.get(&inode).map(|(node, _)| Arc::clone(node)).ok_or_else(|| Error::from_raw_os_error(libc::ESTALE))
    }

    fn found(&self, parent: &Node, name: &[u8]) -> Result<Metadata> {
        let shown = format!("{}/{}", parent.shown(), String::from_utf8_lossy(name));
        self.known(&parent.path(name), shown.trim_start_matches('/').to_owned())
    }

    /// Notes a file's new path, if it is known.
    fn found_quietly(&self, parent: &Node, name: &[u8]) {
        if let Ok(metadata) = self.found(parent, name) {
            self.forget(metadata.ino(), 1);
        }
    }

    fn known(&self, path: &Path, shown: String) -> Result<Metadata> {
        let metadata = std::fs::symlink_metadata(path)?;
        let mut options = OpenOptions::new();
        match (metadata.is_dir(), metadata.is_file()) {
            (true, _) => options.read(true),
            (_, true) => options.read(true).write(true),
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        let file = options.open(path)?;
        // Of what was opened: the name may have got another file in between.
        let metadata = file.metadata()?;
        let inode = metadata.ino();
        let is_directory = metadata.is_dir();
        let mut state = self.state.lock();
        let (node, lookups) = state.nodes.entry(inode).or_insert_with(|| {
            (Arc::new(Node { inode, file, is_directory, path: Mutex::default(), data: Mutex::default() }), 0)
        });
        *lookups += 1;
        *node.path.lock() = shown;
        Ok(metadata)
    }

    /// Keeps what `[from, to)` held before it is written.
    fn keep(&self, node: &Node, data: &mut Unsynced, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        for gap in data.touch(from..to) {
            let mut bytes = vec![0; (gap.end - gap.start) as usize];
            let mut have = 0;
            while have < bytes.len() {
                match node.file.read_at(&mut bytes[have..], gap.start + have as u64)? {
                    0 => break,
                    count => have += count,
                }
            }
            data.keep(gap, bytes, self.now_ms());
        }
        Ok(())
    }

    fn note(&self, directories: &[&Arc<Node>], make: impl FnOnce(u64) -> Result<Change<Arc<Node>, u64>>) -> Result<()> {
        let mut state = self.state.lock();
        let number = state.next_removed;
        state.next_removed += 1;
        let change = make(number)?;
        let mut inodes: Vec<u64> = directories.iter().map(|node| node.inode).collect();
        inodes.dedup();
        debug_assert!(directories.iter().all(|node| node.is_directory));
        state.names.note(inodes, change, self.now_ms());
        Ok(())
    }

    fn kept_path(&self, kept: u64) -> PathBuf {
        self.removed.join(kept.to_string())
    }

    fn remove_kept(&self, kept: Vec<u64>) -> Result<()> {
        for kept in kept {
            let path = self.kept_path(kept);
            if path.is_dir() { std::fs::remove_dir(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    fn take_back(&self, change: Change<Arc<Node>, u64>) -> Result<()> {
        match change {
            Change::Made { directory, name } => {
                let path = directory.path(&name);
                let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
                // It may have been removed below our feet: that is one of the faults.
                gone.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
            }
            Change::Removed { directory, name, kept } => std::fs::rename(self.kept_path(kept), directory.path(&name)),
            Change::Renamed { from, to, replaced } => {
                let to = to.0.path(&to.1);
                std::fs::rename(&to, from.0.path(&from.1))?;
                replaced.map_or(Ok(()), |kept| std::fs::rename(self.kept_path(kept), to))
            }
        }
    }

    fn strike_name(&self, parent: &Node, name: &[u8]) -> Result<()> {
        let path = format!("{}/{}", parent.shown(), String::from_utf8_lossy(name));
        self.struck(Op::Names, path.trim_start_matches('/')).map(drop)
    }

    fn strike(&self, op: Op, node: &Node) -> Result<Option<Action>> {
        self.struck(op, &node.shown())
    }

    fn struck(&self, op: Op, path: &str) -> Result<Option<Action>> {
        let action = self.state.lock().rules.strike(op, path);
        match action {
            Some(Action::Fail(errno)) => Err(Error::from_raw_os_error(errno)),
            Some(Action::Delay(time)) => {
                std::thread::sleep(time);
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

/// Returns the parts of a file that are no holes.
fn data_of(file: &File) -> Result<Vec<(u64, u64)>> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    loop {
        match lseek64(file, at, Whence::SeekData) {
            Ok(start) => {
                let end = lseek64(file, start, Whence::SeekHole)?;
                pieces.push((start as u64, end as u64));
                at = end;
            }
            Err(nix::errno::Errno::ENXIO) => return Ok(pieces),
            Err(error) => return Err(error.into()),
        }
    }
}
