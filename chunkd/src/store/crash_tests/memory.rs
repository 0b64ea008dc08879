//! A disk in memory that notes everything that is done to it, and what a crash could leave of that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use super::random::Random;
use crate::store::raw_file::RawFile;
use crate::store::volume::{Name, NameKind, Space, Volume};

const PAGE: u64 = 4096;
/// What reaches a disk whole.
const SECTOR: u64 = 512;

type Page = [u8; PAGE as usize];

/// A file's content, in pages that images share.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pages: BTreeMap<u64, Arc<Page>>,
    length: u64,
}

impl Content {
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let within = (place % PAGE) as usize;
            let count = (data.len() - at).min(PAGE as usize - within);
            let page = self.pages.entry(place / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + count].copy_from_slice(&data[at..at + count]);
            at += count;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    fn punch(&mut self, offset: u64, length: u64) {
        let (first, end) = (offset.div_ceil(PAGE), (offset + length) / PAGE);
        let whole: Vec<u64> = self.pages.range(first..end.max(first)).map(|(page, _)| *page).collect();
        whole.iter().for_each(|page| drop(self.pages.remove(page)));
        assert!(offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE), "units are pages");
    }

    fn read(&self, buffer: &mut [u8], offset: u64) {
        let mut at = 0;
        while at < buffer.len() {
            let place = offset + at as u64;
            let within = (place % PAGE) as usize;
            let count = (buffer.len() - at).min(PAGE as usize - within);
            match self.pages.get(&(place / PAGE)) {
                Some(page) => buffer[at..at + count].copy_from_slice(&page[within..within + count]),
                None => buffer[at..at + count].fill(0),
            }
            at += count;
        }
    }

    pub fn flip(&mut self, offset: u64, bit: u32) {
        let page = self.pages.entry(offset / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
        Arc::make_mut(page)[(offset % PAGE) as usize] ^= 1 << bit;
    }

    /// The bytes that are not in holes.
    pub fn places(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().flat_map(|page| page * PAGE..(page + 1) * PAGE)
    }
}

/// What was done.
#[derive(Clone, Debug)]
pub enum Event {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
    Write(u64, u64, Vec<u8>),
    Punch(u64, u64, u64),
    Allocate(u64, u64),
    Sync(u64),
    SyncDirectory(String),
}

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// The names and files of a disk.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub names: BTreeMap<String, u64>,
    directories: Arc<BTreeSet<String>>,
    pub files: BTreeMap<u64, Content>,
    next: u64,
}

impl Image {
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Create(path, number) => {
                self.names.insert(path.clone(), *number);
                self.files.entry(*number).or_default();
                self.next = self.next.max(number + 1);
            }
            Event::Remove(path) => {
                self.names.remove(path);
            }
            Event::Rename(from, to) => {
                if let Some(number) = self.names.remove(from) {
                    self.names.insert(to.clone(), number);
                }
            }
            Event::Write(file, offset, data) => self.files.entry(*file).or_default().write(*offset, data),
            Event::Punch(file, offset, length) => self.files.entry(*file).or_default().punch(*offset, *length),
            Event::Allocate(file, end) => {
                let content = self.files.entry(*file).or_default();
                content.length = content.length.max(*end);
            }
            Event::Sync(_) | Event::SyncDirectory(_) => {}
        }
    }

    pub fn after(start: &Self, events: &[Event]) -> Self {
        let mut image = start.clone();
        events.iter().for_each(|event| image.apply(event));
        image
    }

    /// What the loss of power may leave: of each file everything up to its last sync, and any of the sectors that were
    /// written since; of each directory everything up to its last sync, and some of the first changes since.
    pub fn after_power_loss(start: &Self, events: &[Event], random: &mut Random) -> Self {
        let mut synced: BTreeMap<u64, usize> = BTreeMap::new();
        let mut synced_directories: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Sync(file) => drop(synced.insert(*file, at)),
                Event::SyncDirectory(path) => drop(synced_directories.insert(path, at)),
                _ => {}
            }
        }
        let kept_of_16 = [0, 1, 4, 8, 12, 15, 16][random.below(7) as usize];
        let mut open: BTreeSet<&str> = BTreeSet::new();
        let mut image = start.clone();
        for (at, event) in events.iter().enumerate() {
            let is_synced = |file: &u64| synced.get(file).is_some_and(|last| at < *last);
            let mut is_kept = || random.below(16) < kept_of_16;
            match event {
                Event::Create(path, _) | Event::Remove(path) | Event::Rename(path, _) => {
                    let directory = directory_of(path);
                    let is_durable = synced_directories.get(directory).is_some_and(|last| at < *last);
                    let is_cut = !is_durable && (open.contains(directory) || !is_kept());
                    if is_cut {
                        open.insert(directory);
                        if let Event::Create(_, number) = event {
                            image.next = image.next.max(number + 1);
                        }
                    } else {
                        image.apply(event);
                    }
                }
                Event::Write(file, offset, data) if !is_synced(file) => {
                    let mut from = 0;
                    while from < data.len() {
                        let place = offset + from as u64;
                        let count = ((SECTOR - place % SECTOR) as usize).min(data.len() - from);
                        if is_kept() {
                            image.files.entry(*file).or_default().write(place, &data[from..from + count]);
                        }
                        from += count;
                    }
                }
                Event::Punch(file, ..) | Event::Allocate(file, _) if !is_synced(file) => {
                    if is_kept() {
                        image.apply(event);
                    }
                }
                _ => image.apply(event),
            }
        }
        image
    }
}

#[derive(Debug, Default)]
struct Inner {
    image: Image,
    log: Vec<Event>,
    is_logged: bool,
    /// The next so many syncs fail.
    failing_syncs: u32,
    is_full: bool,
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryVolume(Arc<Mutex<Inner>>);

impl MemoryVolume {
    /// A disk with `image` on it, which notes what is done if `is_logged`.
    pub fn new(image: Image, is_logged: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { image, is_logged, ..Inner::default() })))
    }

    pub fn log_length(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }

    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    pub fn image(&self) -> Image {
        self.0.lock().unwrap().image.clone()
    }

    pub fn change_image(&self, change: impl FnOnce(&mut Image)) {
        change(&mut self.0.lock().unwrap().image);
    }

    /// Lets `count` syncs of files fail.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().unwrap().failing_syncs = count;
    }

    /// Leaves no room from now on: what has a place already may be overwritten.
    pub fn set_full(&self, is_full: bool) {
        self.0.lock().unwrap().is_full = is_full;
    }
}

impl Inner {
    fn change(&mut self, event: Event) -> io::Result<()> {
        if self.is_full && self.needs_room(&event) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.image.apply(&event);
        if self.is_logged {
            self.log.push(event);
        }
        Ok(())
    }

    fn needs_room(&self, event: &Event) -> bool {
        match event {
            Event::Create(..) => true,
            Event::Allocate(file, end) => *end > self.image.files[file].length,
            Event::Write(file, offset, data) => {
                let content = &self.image.files[file];
                let end = offset + data.len() as u64;
                // Segments of the journal have their room from the start.
                let is_segment = self.image.names.iter().any(|(path, of)| of == file && path.starts_with("journal/"));
                let has_place = (offset / PAGE..end.div_ceil(PAGE)).all(|page| content.pages.contains_key(&page));
                !(has_place || is_segment && end <= content.length)
            }
            _ => false,
        }
    }

    fn must_exist(&self, path: &str) -> io::Result<u64> {
        self.image.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Volume for MemoryVolume {
    fn label(&self) -> String {
        "memory".into()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        let number = self.0.lock().unwrap().must_exist(path)?;
        Ok(Box::new(MemoryFile { disk: self.clone(), number }))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn RawFile>> {
        let mut inner = self.0.lock().unwrap();
        if inner.image.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = inner.image.next;
        inner.change(Event::Create(path.into(), number))?;
        Ok(Box::new(MemoryFile { disk: self.clone(), number }))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.must_exist(path)?;
        inner.change(Event::Remove(path.into()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.must_exist(from)?;
        inner.change(Event::Rename(from.into(), to.into()))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<Name>> {
        let inner = self.0.lock().unwrap();
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let below = |paths: &mut dyn Iterator<Item = &String>, kind| -> Vec<Name> {
            let names = paths.take_while(|path| path.starts_with(&prefix)).map(|path| &path[prefix.len()..]);
            names.filter(|name| !name.contains('/')).map(|name| Name { name: name.into(), kind }).collect()
        };
        let mut names = below(&mut inner.image.names.range(prefix.clone()..).map(|(path, _)| path), NameKind::File);
        // Empty ones need not be looked at.
        let mut full = BTreeSet::new();
        for path in
            inner.image.names.range(prefix.clone()..).map(|(path, _)| path).take_while(|p| p.starts_with(&prefix))
        {
            full.extend(path[prefix.len()..].split_once('/').map(|(name, _)| name));
        }
        names.extend(full.into_iter().map(|name| Name { name: name.into(), kind: NameKind::Directory }));
        Ok(names)
    }

    fn create_directory(&self, directory: &str) -> io::Result<()> {
        // Made once, before anything else, and never lost.
        Arc::make_mut(&mut self.0.lock().unwrap().image.directories).insert(directory.into());
        Ok(())
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.0.lock().unwrap().change(Event::SyncDirectory(directory.into()))
    }

    fn space(&self) -> io::Result<Space> {
        let free = if self.0.lock().unwrap().is_full { 0 } else { 1 << 40 };
        Ok(Space { capacity: 1 << 40, free })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryVolume,
    number: u64,
}

impl MemoryFile {
    fn change(&self, event: Event) -> io::Result<()> {
        self.disk.0.lock().unwrap().change(event)
    }
}

impl RawFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.0.lock().unwrap().image.files[&self.number].read(buffer, offset);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(Event::Write(self.number, offset, data.to_vec()))
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Event::Punch(self.number, offset, length))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        if inner.failing_syncs > 0 {
            inner.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inner.change(Event::Sync(self.number))
    }

    fn next_data(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let inner = self.disk.0.lock().unwrap();
        let page = inner.image.files[&self.number].pages.range(from / PAGE..).next().map(|(page, _)| *page);
        Ok(page.filter(|page| page * PAGE < end).map(|page| ((page * PAGE).max(from), ((page + 1) * PAGE).min(end))))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().image.files[&self.number].length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Event::Allocate(self.number, offset + length))
    }
}
