//! The store's view of a simulated disk.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use dfs_chunkd::store::raw_file::RawFile;
use dfs_chunkd::store::volume::{Name, NameKind, Space, Volume};

use super::disk::Disk;

/// A disk that the simulator and the store share. There is one thread, so nobody ever waits for it.
#[derive(Clone)]
pub struct SharedDisk(Arc<Mutex<Disk>>);

impl fmt::Debug for SharedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedDisk(..)")
    }
}

impl SharedDisk {
    /// Returns a handle of `disk`.
    pub fn new(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Returns the disk.
    pub fn lock(&self) -> MutexGuard<'_, Disk> {
        // A panic is a finding, and the end of the run.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn file(&self, id: u64) -> Box<dyn RawFile> {
        Box::new(OpenFile { disk: self.clone(), id })
    }
}

#[derive(Debug)]
struct OpenFile {
    disk: SharedDisk,
    id: u64,
}

impl RawFile for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.lock().read(self.id, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.lock().write(self.id, data, offset)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.lock().punch(self.id, offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.lock().sync(self.id)
    }

    fn next_data(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        self.disk.lock().next_data(self.id, from, end)
    }

    fn length(&self) -> io::Result<u64> {
        self.disk.lock().length(self.id)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.lock().allocate(self.id, offset, length)
    }
}

impl Volume for SharedDisk {
    fn label(&self) -> String {
        "simulated".into()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        let id = self.lock().open(path)?;
        Ok(self.file(id))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        let id = self.lock().create(path)?;
        Ok(self.file(id))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.lock().remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lock().rename(from, to)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<Name>> {
        let names = self.lock().list(directory)?;
        let kind = |is_directory| if is_directory { NameKind::Directory } else { NameKind::File };
        Ok(names.into_iter().map(|(name, is_directory)| Name { name, kind: kind(is_directory) }).collect())
    }

    fn create_directory(&self, directory: &str) -> io::Result<()> {
        self.lock().create_directory(directory);
        Ok(())
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.lock().sync_directory(directory)
    }

    fn space(&self) -> io::Result<Space> {
        let disk = self.lock();
        Ok(Space { capacity: disk.capacity, free: disk.capacity.saturating_sub(disk.used()) })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }
}
