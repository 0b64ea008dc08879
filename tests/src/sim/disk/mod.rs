//! A disk that forgets, tears, errs and rots as real ones do.
//!
//! What is written is in the page cache of the host. A sync brings it to the medium; the kernel also does so whenever it
//! likes, sector by sector. A power cut leaves on the medium, of what was not synced, any sectors (512 bytes) and any
//! first part of the changes of names in a directory. After a sync that failed, the kernel takes what it could not write
//! for clean: later syncs succeed and prove nothing.
//!
//! ```text
//! write ─▶ page cache ──────── sync, or the kernel's whim ───────▶ medium
//!             │ kill -9: stays       power cut: back to it ◀──────────┘
//! ```

mod file;

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// Bytes that reach the medium as a whole.
pub const SECTOR_BYTES: usize = 512;
/// Bytes that are kept together here.
pub const PAGE_BYTES: usize = 4096;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;

type Page = Box<[u8; PAGE_BYTES]>;

/// How often a disk does what it should not, in millionths of operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sickness {
    /// A read fails.
    pub read_error_ppm: u64,
    /// A write fails, having done a part.
    pub write_error_ppm: u64,
    /// A sync fails.
    pub sync_error_ppm: u64,
    /// A write goes to another place of the same file.
    pub misdirected_ppm: u64,
    /// A write is acknowledged and does not happen.
    pub lost_write_ppm: u64,
    /// A write may be in part on the medium at once, whenever the kernel likes.
    pub writeback_ppm: u64,
}

/// What a disk did that it should not have, for the trace and for what the checks may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// Bytes of a file changed or went astray: the pages that are damaged.
    Damaged {
        /// Which file.
        path: String,
        /// Pages of it.
        pages: Vec<u64>,
    },
    /// An error was returned.
    Error {
        /// Of what.
        what: &'static str,
        /// Which file.
        path: String,
    },
}

#[derive(Debug, Default)]
struct File {
    path: String,
    length: u64,
    stable_length: u64,
    /// Room taken from the begin up to here, whatever is in it.
    reserved: u64,
    pages: BTreeMap<u64, Page>,
    /// Pages that differ from the medium: what is there (`None`: a hole), and which sectors differ.
    stable: BTreeMap<u64, (Option<Page>, SectorMarks)>,
    /// Pages that cannot be read until they are written.
    latent: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SectorMarks {
    dirty: u8,
    /// Taken for clean after a failed sync.
    ghost: u8,
}

#[derive(Clone, Debug)]
enum NameChange {
    Made(String, u64),
    Removed(String),
    Renamed(String, String),
}

/// The state of one disk.
#[derive(Debug)]
pub struct Disk {
    /// What it does at the moment that it should not.
    pub sickness: Sickness,
    /// All its bytes.
    pub capacity: u64,
    /// Bytes that somebody else uses.
    pub taken: u64,
    files: BTreeMap<u64, File>,
    names: BTreeMap<String, u64>,
    stable_names: BTreeMap<String, u64>,
    directories: BTreeSet<String>,
    changes: BTreeMap<String, Vec<NameChange>>,
    next_file: u64,
    mischief: Vec<Mischief>,
    /// Writes and syncs so far.
    operations: u64,
    /// After so many more of them the host stops in the middle of whatever it is doing.
    fuse: Option<u64>,
    is_burnt: bool,
    /// Syncs of files that have failed in this run of the process.
    failed_syncs: u64,
    rng: Random,
}

/// An error of the operating system.
fn error(code: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(code)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Disk {
    /// Returns an empty disk.
    pub fn new(capacity: u64, rng: Random) -> Self {
        Self {
            sickness: Sickness::default(),
            capacity,
            taken: 0,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            stable_names: BTreeMap::new(),
            directories: BTreeSet::from([String::new()]),
            changes: BTreeMap::new(),
            next_file: 1,
            mischief: Vec::new(),
            operations: 0,
            fuse: None,
            is_burnt: false,
            failed_syncs: 0,
            rng,
        }
    }

    /// Returns what it did since the last call.
    pub fn take_mischief(&mut self) -> Vec<Mischief> {
        std::mem::take(&mut self.mischief)
    }

    /// Returns how many writes and syncs it saw.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> u64 {
        let own: u64 = self.files.values().map(File::room).sum();
        own + self.taken
    }

    /// Lets the host stop after `operations` more writes and syncs: the next one does not happen.
    pub fn set_fuse(&mut self, operations: u64) {
        self.fuse = Some(operations);
    }

    /// Lets the host go on after all.
    pub fn remove_fuse(&mut self) {
        self.fuse = None;
    }

    /// Returns whether the host has stopped.
    pub fn is_burnt(&self) -> bool {
        self.is_burnt
    }

    /// The process has ended: what it had open without a name is gone.
    pub fn end_of_process(&mut self) {
        self.fuse = None;
        self.is_burnt = false;
        self.failed_syncs = 0;
        self.mischief.clear();
        self.drop_nameless();
    }

    /// Returns how many syncs of files have failed in this run of the process.
    pub fn failed_syncs(&self) -> u64 {
        self.failed_syncs
    }

    /// Counts an operation that changes something.
    fn operate(&mut self) -> std::io::Result<()> {
        self.operations += 1;
        match &mut self.fuse {
            _ if self.is_burnt => Err(error(libc::EIO)),
            Some(0) => {
                self.is_burnt = true;
                Err(error(libc::EIO))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    // ------------------------------------------------------------ what the host does

    /// Cuts the power: what was not synced is on the medium in part.
    pub fn power_cut(&mut self) {
        let keep_ppm = *self.rng.pick(&[0, 100_000, 500_000, 900_000, 1_000_000]);
        for file in self.files.values_mut() {
            let grows = self.rng.in_a_million(keep_ppm);
            file.power_cut(&mut self.rng, keep_ppm, grows);
        }
        for changes in std::mem::take(&mut self.changes).into_values() {
            let kept = self.rng.below(changes.len() as u64 + 1) as usize;
            for change in &changes[..kept] {
                apply(&mut self.stable_names, change);
            }
        }
        self.names = self.stable_names.clone();
        self.drop_nameless();
    }

    /// Takes it out, and puts an empty one in its place.
    pub fn wipe(&mut self) {
        self.files.clear();
        self.names.clear();
        self.stable_names.clear();
        self.changes.clear();
        self.directories = BTreeSet::from([String::new()]);
        self.sickness = Sickness::default();
    }

    /// Ends what processes had open without a name.
    pub fn drop_nameless(&mut self) {
        // A name that came and went may be back after a power cut.
        let made = self.changes.values().flatten().filter_map(|change| match change {
            NameChange::Made(_, id) => Some(id),
            _ => None,
        });
        let named: BTreeSet<u64> = self.names.values().chain(self.stable_names.values()).chain(made).copied().collect();
        self.files.retain(|id, _| named.contains(id));
    }

    /// Returns the pages that hold something, by file.
    pub fn content(&self) -> Vec<(String, u64)> {
        let pages = self.names.iter().filter_map(|(path, id)| Some((path, self.files.get(id)?)));
        pages.flat_map(|(path, file)| file.pages.keys().map(|page| (path.clone(), *page))).collect()
    }

    /// Flips a bit of a page, on the medium too.
    pub fn rot(&mut self, path: &str, page: u64) {
        let (at, bit) = (self.rng.below(PAGE_BYTES as u64) as usize, self.rng.below(8));
        let Some(file) = self.names.get(path).and_then(|id| self.files.get_mut(id)) else { return };
        if let Some(content) = file.pages.get_mut(&page) {
            content[at] ^= 1 << bit;
            let sector = at / SECTOR_BYTES;
            if let Some((Some(stable), marks)) = file.stable.get_mut(&page)
                && (marks.dirty | marks.ghost) & (1 << sector) == 0
            {
                stable[at] ^= 1 << bit;
            }
            self.mischief.push(Mischief::Damaged { path: path.to_owned(), pages: vec![page] });
        }
    }

    /// Makes a page unreadable until it is written.
    pub fn make_latent(&mut self, path: &str, page: u64) {
        if let Some(file) = self.names.get(path).and_then(|id| self.files.get_mut(id)) {
            file.latent.insert(page);
            self.mischief.push(Mischief::Damaged { path: path.to_owned(), pages: vec![page] });
        }
    }

    // ------------------------------------------------------------ files

    pub(super) fn read(&mut self, id: u64, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let fails = self.rng.in_a_million(self.sickness.read_error_ppm);
        let file = self.files.get(&id).ok_or_else(|| error(libc::EBADF))?;
        let pages = offset / PAGE_BYTES as u64..=(offset + buffer.len().max(1) as u64 - 1) / PAGE_BYTES as u64;
        if fails || file.latent.range(pages).next().is_some() {
            self.mischief.push(Mischief::Error { what: "read", path: file.path.clone() });
            return Err(error(libc::EIO));
        }
        file.read(buffer, offset);
        Ok(())
    }

    pub(super) fn write(&mut self, id: u64, data: &[u8], offset: u64) -> std::io::Result<()> {
        self.operate()?;
        let sickness = self.sickness;
        let (used, capacity) = (self.used(), self.capacity);
        let file = self.files.get_mut(&id).ok_or_else(|| error(libc::EBADF))?;
        if used + file.grows_by(offset, data.len()) > capacity {
            return Err(error(libc::ENOSPC));
        }
        if self.rng.in_a_million(sickness.write_error_ppm) {
            let done = self.rng.below(data.len() as u64 + 1) as usize;
            file.write(&data[..done], offset);
            self.mischief.push(Mischief::Error { what: "write", path: file.path.clone() });
            return Err(error(libc::EIO));
        }
        if self.rng.in_a_million(sickness.lost_write_ppm) && data.len() >= SECTOR_BYTES {
            let pages = (offset / PAGE_BYTES as u64..=(offset + data.len() as u64 - 1) / PAGE_BYTES as u64).collect();
            self.mischief.push(Mischief::Damaged { path: file.path.clone(), pages });
            file.length = file.length.max(offset + data.len() as u64);
            return Ok(());
        }
        if self.rng.in_a_million(sickness.misdirected_ppm)
            && data.len() >= SECTOR_BYTES
            && file.length > PAGE_BYTES as u64
        {
            let astray =
                self.rng.below(file.length / PAGE_BYTES as u64) * PAGE_BYTES as u64 + offset % PAGE_BYTES as u64;
            let length = data.len().min((file.length.saturating_sub(astray)) as usize);
            file.write(&data[..length], astray);
            let span = |from: u64, length: usize| {
                from / PAGE_BYTES as u64..=(from + length.max(1) as u64 - 1) / PAGE_BYTES as u64
            };
            let pages = span(offset, data.len()).chain(span(astray, length)).collect();
            self.mischief.push(Mischief::Damaged { path: file.path.clone(), pages });
            return Ok(());
        }
        file.write(data, offset);
        if self.rng.in_a_million(sickness.writeback_ppm) {
            file.write_back(&mut self.rng);
        }
        Ok(())
    }

    pub(super) fn punch(&mut self, id: u64, offset: u64, length: u64) -> std::io::Result<()> {
        self.operate()?;
        let fails = self.rng.in_a_million(self.sickness.write_error_ppm);
        let file = self.files.get_mut(&id).ok_or_else(|| error(libc::EBADF))?;
        if fails {
            self.mischief.push(Mischief::Error { what: "punch", path: file.path.clone() });
            return Err(error(libc::EIO));
        }
        file.punch(offset, length);
        Ok(())
    }

    pub(super) fn sync(&mut self, id: u64) -> std::io::Result<()> {
        self.operate()?;
        let fails = self.rng.in_a_million(self.sickness.sync_error_ppm);
        let file = self.files.get_mut(&id).ok_or_else(|| error(libc::EBADF))?;
        if fails {
            // What is put beside another file is thrown away if it fails.
            self.failed_syncs += u64::from(!file.path.ends_with(".new"));
            self.mischief.push(Mischief::Error { what: "sync", path: file.path.clone() });
            file.fail_sync(&mut self.rng);
            return Err(error(libc::EIO));
        }
        file.sync();
        Ok(())
    }

    pub(super) fn next_data(&self, id: u64, from: u64, end: u64) -> std::io::Result<Option<(u64, u64)>> {
        let file = self.files.get(&id).ok_or_else(|| error(libc::EBADF))?;
        Ok(file.next_data(from, end))
    }

    pub(super) fn length(&self, id: u64) -> std::io::Result<u64> {
        self.files.get(&id).map(|file| file.length).ok_or_else(|| error(libc::EBADF))
    }

    pub(super) fn allocate(&mut self, id: u64, offset: u64, length: u64) -> std::io::Result<()> {
        let (used, capacity) = (self.used(), self.capacity);
        let file = self.files.get_mut(&id).ok_or_else(|| error(libc::EBADF))?;
        let end = offset + length;
        if used + end.saturating_sub(file.room()) > capacity {
            return Err(error(libc::ENOSPC));
        }
        file.reserved = file.reserved.max(end);
        file.length = file.length.max(end);
        Ok(())
    }

    // ------------------------------------------------------------ names

    pub(super) fn open(&self, path: &str) -> std::io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| error(libc::ENOENT))
    }

    pub(super) fn create(&mut self, path: &str) -> std::io::Result<u64> {
        self.operate()?;
        if self.names.contains_key(path) {
            return Err(error(libc::EEXIST));
        }
        if !self.directories.contains(parent(path)) {
            return Err(error(libc::ENOENT));
        }
        if self.used() + PAGE_BYTES as u64 > self.capacity {
            return Err(error(libc::ENOSPC));
        }
        let id = self.next_file;
        self.next_file += 1;
        self.files.insert(id, File { path: path.to_owned(), ..File::default() });
        self.change(path, NameChange::Made(path.to_owned(), id));
        Ok(id)
    }

    pub(super) fn remove(&mut self, path: &str) -> std::io::Result<()> {
        self.open(path)?;
        self.operate()?;
        self.change(path, NameChange::Removed(path.to_owned()));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> std::io::Result<()> {
        let id = self.open(from)?;
        self.operate()?;
        if let Some(file) = self.files.get_mut(&id) {
            to.clone_into(&mut file.path);
        }
        self.change(from, NameChange::Renamed(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn change(&mut self, path: &str, change: NameChange) {
        apply(&mut self.names, &change);
        self.changes.entry(parent(path).to_owned()).or_default().push(change);
    }

    /// Returns the names in a directory and whether each is a directory.
    pub(super) fn list(&self, directory: &str) -> std::io::Result<Vec<(String, bool)>> {
        if !self.directories.contains(directory) {
            return Err(error(libc::ENOENT));
        }
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let below = |path: &str| {
            let rest = path.strip_prefix(&prefix)?;
            (!rest.is_empty() && !rest.contains('/')).then(|| rest.to_owned())
        };
        let is_near = |path: &&String| path.starts_with(&prefix);
        let files = self.names.range(prefix.clone()..).map(|(path, _)| path).take_while(is_near);
        let files = files.filter_map(|path| Some((below(path)?, false)));
        let directories = self.directories.range(prefix.clone()..).take_while(is_near);
        let directories = directories.filter_map(|path| Some((below(path)?, true)));
        Ok(files.chain(directories).collect())
    }

    pub(super) fn create_directory(&mut self, directory: &str) {
        // Directories are made once, at the first use of a disk: they are taken for durable at once.
        let mut path = directory;
        while self.directories.insert(path.to_owned()) {
            path = parent(path);
        }
    }

    pub(super) fn sync_directory(&mut self, directory: &str) -> std::io::Result<()> {
        self.operate()?;
        if self.rng.in_a_million(self.sickness.sync_error_ppm) {
            self.mischief.push(Mischief::Error { what: "sync of a directory", path: directory.to_owned() });
            return Err(error(libc::EIO));
        }
        for change in self.changes.remove(directory).unwrap_or_default() {
            apply(&mut self.stable_names, &change);
        }
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Made(path, id) => {
            names.insert(path.clone(), *id);
        }
        NameChange::Removed(path) => {
            names.remove(path);
        }
        NameChange::Renamed(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (Disk, u64) {
        let mut disk = Disk::new(1 << 20, Random::new(5));
        let file = disk.create("a").expect("made");
        disk.sync_directory("").expect("synced");
        (disk, file)
    }

    fn read(disk: &mut Disk, file: u64, offset: u64) -> u8 {
        let mut byte = [0];
        disk.read(file, &mut byte, offset).expect("readable");
        byte[0]
    }

    #[test]
    fn what_was_synced_survives_a_power_cut_and_the_rest_by_sectors() {
        let (mut survived, mut gone) = (0, 0);
        for seed in 0..64 {
            let (mut disk, file) = disk();
            disk.rng = Random::new(seed);
            disk.write(file, &[1; 8192], 0).expect("written");
            disk.sync(file).expect("synced");
            disk.write(file, &[2; 4096], 2048).expect("written");
            disk.power_cut();
            assert_eq!((read(&mut disk, file, 0), read(&mut disk, file, 7000)), (1, 1));
            for sector in 4..12 {
                let bytes = [0, 511].map(|at| read(&mut disk, file, sector * 512 + at));
                assert_eq!(bytes[0], bytes[1], "sectors are whole");
                *(if bytes[0] == 2 { &mut survived } else { &mut gone }) += 1;
            }
        }
        assert!(survived > 50 && gone > 50, "{survived} {gone}");
    }

    #[test]
    fn a_sync_after_a_failed_one_proves_nothing() {
        let mut lost = 0;
        for seed in 0..64 {
            let (mut disk, file) = disk();
            disk.rng = Random::new(seed);
            disk.write(file, &[1; 4096], 0).expect("written");
            disk.sickness.sync_error_ppm = 1_000_000;
            disk.sync(file).expect_err("it is sick");
            disk.sickness.sync_error_ppm = 0;
            disk.sync(file).expect("as Linux says");
            disk.power_cut();
            let is_lost =
                (0..8).any(|sector| disk.length(file).expect("there") == 0 || read(&mut disk, file, sector * 512) == 0);
            lost += u32::from(is_lost);
        }
        assert!(lost > 32, "{lost}");
    }

    #[test]
    fn a_name_that_was_not_synced_may_vanish_and_one_that_was_does_not() {
        let mut vanished = 0;
        for seed in 0..32 {
            let (mut disk, _) = disk();
            disk.rng = Random::new(seed);
            disk.create("b").expect("made");
            disk.power_cut();
            disk.open("a").expect("its directory was synced");
            vanished += u32::from(disk.open("b").is_err());
        }
        assert!(vanished > 5 && vanished < 27, "{vanished}");
    }

    #[test]
    fn a_full_disk_takes_overwrites_only() {
        let (mut disk, file) = disk();
        disk.write(file, &[1; 4096], 0).expect("written");
        disk.taken = disk.capacity - disk.used();
        let full = disk.write(file, &[1; 4096], 4096).expect_err("no room");
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        disk.write(file, &[2; 4096], 0).expect("it has its room");
    }

    #[test]
    fn holes_are_told_from_data() {
        let (mut disk, file) = disk();
        disk.write(file, &[1; 100], 9000).expect("written");
        assert_eq!(disk.next_data(file, 0, 20_000).expect("there"), Some((8192, 12_288)));
        disk.punch(file, 8192, 4096).expect("punched");
        assert_eq!(disk.next_data(file, 0, 20_000).expect("there"), None);
        assert_eq!(read(&mut disk, file, 9000), 0);
    }
}
