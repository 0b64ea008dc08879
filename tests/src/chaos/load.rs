//! The work that goes on while everything fails: threads that write, rename, remove and check files on all mounts.
//!
//! A file is one thread's at a time, so that what it must hold is known; it is written through one mount and, once
//! closed, read through another.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::hands::{Hands, Lost, Mounts};
use super::oracle;
use super::stamp::CELL;
use super::worker::{Answer, Call};
use crate::random::Random;

/// Files at one time.
const FILES: usize = 60;
const DIRECTORIES: u64 = 4;
/// Cells of the longest write: 512 KiB.
const WRITE_CELLS_MAX: u64 = 1024;
/// Operations of a file that are remembered.
const PAST_MAX: usize = 40;
/// An operation of a handle with O_SYNC: a write that is an fsync too.
const WRITE_AND_SYNC: &str = "write and sync";
/// Another mount may see an old name so long after it went, and a little more.
const NAMES_SETTLE: Duration = Duration::from_secs(4);

/// A file of the load.
#[derive(Debug)]
pub struct Entry {
    /// Its number, which its stamps have.
    pub id: u64,
    /// Names below the mount point that it may have; `None`: it may be gone. One: that is certain.
    pub names: Vec<Option<String>>,
    /// Since when.
    pub named: Instant,
    /// What it holds.
    pub oracle: oracle::File,
    /// Nobody knows what its last operation did: it is left alone until it is settled.
    pub is_frozen: bool,
    /// Losses of all power that its oracle knows of.
    cuts: u64,
    /// What was done to it last, to be told with what is wrong.
    pub past: VecDeque<String>,
    /// Cells that it may have at most.
    cells_max: u64,
    /// Where writes begin: near the end of the first chunk, for some.
    base: u64,
}

impl Entry {
    fn note(&mut self, at: Duration, mount: usize, text: &str) {
        if self.past.len() == PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(format!("{:.3} m{mount} {text}", at.as_secs_f64()));
    }

    /// Returns what was done to it last, a line each.
    pub fn told(&self) -> String {
        self.past.iter().map(|line| format!("\n      {line}")).collect()
    }

    /// Returns its name, if it certainly has one.
    pub fn name(&self) -> Option<&str> {
        match &self.names[..] {
            [Some(name)] => Some(name),
            _ => None,
        }
    }
}

/// All files, and what the threads share.
#[derive(Debug)]
pub struct Load {
    /// Hands, and the report.
    pub mounts: Arc<Mounts>,
    points: Vec<PathBuf>,
    files: Mutex<BTreeMap<u64, Arc<Mutex<Entry>>>>,
    next: AtomicU64,
    stop: AtomicBool,
    pause: AtomicBool,
    idle: AtomicUsize,
    /// Losses of all power.
    cuts: AtomicU64,
    /// All power was lost, and not all files have been looked at since.
    is_after_cut: AtomicBool,
    seed: u64,
    threads: usize,
}

impl Load {
    /// Returns a load of so many threads, which do not run yet.
    pub fn new(mounts: Arc<Mounts>, points: Vec<PathBuf>, seed: u64, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            mounts,
            points,
            files: Mutex::default(),
            next: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
            cuts: AtomicU64::new(0),
            is_after_cut: AtomicBool::new(false),
            seed,
            threads,
        })
    }

    /// Makes the directories and starts the threads.
    ///
    /// # Errors
    ///
    /// The errno of what failed.
    pub fn start(self: &Arc<Self>) -> Result<Vec<JoinHandle<()>>, i32> {
        let mut hands = Hands::new(Arc::clone(&self.mounts));
        for directory in 0..DIRECTORIES {
            let call = Call::MakeDirectory { path: self.path(0, &format!("d{directory}")) };
            if let Ok(Answer::Errno(errno)) = hands.call(0, 0, "mkdir", &call) {
                return Err(errno);
            }
        }
        let thread = |number: usize| {
            let load = Arc::clone(self);
            std::thread::spawn(move || Hand::new(load, number).work())
        };
        Ok((0..self.threads).map(thread).collect())
    }

    /// Lets the threads end after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.resume();
    }

    /// Lets the threads wait, and waits until all do. Returns whether they did by then.
    pub fn pause(&self, patience: Duration) -> bool {
        self.pause.store(true, Ordering::SeqCst);
        let end = Instant::now() + patience;
        while self.idle.load(Ordering::SeqCst) < self.threads {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Lets the threads go on.
    pub fn resume(&self) {
        self.pause.store(false, Ordering::SeqCst);
    }

    /// Notes that all chunk servers lost their power. To be called before they are there again.
    pub fn power_lost(&self) {
        self.is_after_cut.store(true, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        // One that is locked waits for a call: its thread catches up when that is over.
        self.files().iter().filter_map(|file| file.try_lock()).for_each(|mut entry| self.catch_up(&mut entry));
    }

    /// Returns how often all chunk servers lost their power.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    /// Notes that all files have been looked at since.
    pub fn looked_after_cut(&self) {
        self.is_after_cut.store(false, Ordering::SeqCst);
    }

    /// Lets a file's oracle know of losses of power since.
    pub fn catch_up(&self, entry: &mut Entry) {
        let cuts = self.cuts.load(Ordering::SeqCst);
        while entry.cuts < cuts {
            entry.note(self.mounts.report.now(), 0, "ALL POWER LOST");
            entry.oracle.power_lost();
            entry.cuts += 1;
        }
    }

    /// Returns all files, in order.
    pub fn files(&self) -> Vec<Arc<Mutex<Entry>>> {
        self.files.lock().values().cloned().collect()
    }

    /// Forgets a file that is gone.
    pub fn forget(&self, id: u64) {
        self.files.lock().remove(&id);
    }

    /// Returns the path of a name on a mount.
    pub fn path(&self, mount: usize, name: &str) -> String {
        self.points[mount].join(name).to_string_lossy().into_owned()
    }

    /// Returns the directories' names.
    pub fn directories(&self) -> Vec<String> {
        (0..DIRECTORIES).map(|number| format!("d{number}")).collect()
    }
}

/// One thread.
struct Hand {
    load: Arc<Load>,
    hands: Hands,
    random: Random,
    number: u32,
}

/// How an operation on a file ended, if not well.
enum Trouble {
    Lost,
    /// An error that no program should see; it was noted.
    Failed,
}

impl From<Lost> for Trouble {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

impl Hand {
    fn new(load: Arc<Load>, number: usize) -> Self {
        let (hands, random) = (Hands::new(Arc::clone(&load.mounts)), Random::of(load.seed, 1000 + number as u64));
        Self { load, hands, random, number: number as u32 }
    }

    fn work(mut self) {
        while !self.load.stop.load(Ordering::SeqCst) {
            if self.load.pause.load(Ordering::SeqCst) {
                self.load.idle.fetch_add(1, Ordering::SeqCst);
                while self.load.pause.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                self.load.idle.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let mount = self.random.below(self.load.mounts.count() as u64) as usize;
            let Some(life) = self.hands.life(mount) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            self.step(mount, life);
        }
        self.load.idle.fetch_add(1, Ordering::SeqCst);
    }

    fn step(&mut self, mount: usize, life: u64) {
        if self.random.chance(4) {
            return self.list(mount, life);
        }
        let files = self.load.files();
        if files.len() < FILES && (files.is_empty() || self.random.chance(25)) {
            return self.create(mount, life);
        }
        let file = Arc::clone(self.random.pick(&files));
        let Some(mut entry) = file.try_lock() else { return };
        if entry.is_frozen || entry.name().is_none() {
            return;
        }
        let done = match self.random.below(20) {
            0 => self.rename(mount, life, &mut entry),
            1 => self.unlink(mount, life, &mut entry),
            2..=7 => self.verify(mount, life, &mut entry),
            _ => self.session(mount, life, &mut entry),
        };
        if done.is_err() {
            entry.oracle.mount_lost();
            entry.is_frozen = true;
        }
    }

    /// Makes a call about a file.
    fn on(
        &mut self,
        entry: &mut Entry,
        mount: usize,
        life: u64,
        kind: &'static str,
        call: Call,
    ) -> Result<Answer, Trouble> {
        let answer = self.hands.call(mount, life, kind, &call)?;
        self.load.catch_up(entry);
        let is_after_cut = self.load.is_after_cut.load(Ordering::SeqCst);
        let is_io_error = matches!(answer, Answer::Errno(libc::EIO));
        // What was never synced may be gone with all replicas: then an error is the right answer. An fsync of what the mount
        // wrote before says so however late it comes.
        let is_sync = matches!(call, Call::Sync { .. } | Call::Close { .. }) || kind == WRITE_AND_SYNC;
        let is_told = is_io_error && is_sync && entry.oracle.may_tell_of_loss((mount, life));
        if is_told || (is_io_error && is_after_cut && !entry.oracle.is_certain()) {
            self.load.mounts.report.note("EIO of what was lost with all power");
            return Err(Trouble::Failed);
        }
        self.judged(mount, kind, &call, answer)
    }

    /// Makes a call that must not fail.
    fn call(&mut self, mount: usize, life: u64, kind: &'static str, call: Call) -> Result<Answer, Trouble> {
        let answer = self.hands.call(mount, life, kind, &call)?;
        self.judged(mount, kind, &call, answer)
    }

    fn judged(&self, mount: usize, kind: &str, call: &Call, answer: Answer) -> Result<Answer, Trouble> {
        match answer {
            Answer::Errno(errno) => {
                let text = nix::errno::Errno::from_raw(errno);
                self.load.mounts.report.violation(format!("error {text} of {kind} on mount {mount}: {call:?}"));
                Err(Trouble::Failed)
            }
            answer => Ok(answer),
        }
    }

    fn note(&self, entry: &mut Entry, mount: usize, text: &str) {
        entry.note(self.load.mounts.report.now(), mount, text);
    }

    fn open(&mut self, mount: usize, life: u64, entry: &mut Entry, write: bool, flags: i32) -> Result<u32, Trouble> {
        self.note(entry, mount, &format!("open write={write} flags={flags:#x}"));
        let path = self.load.path(mount, entry.name().expect("asked before"));
        match self.on(entry, mount, life, "open", Call::Open { path, write, flags })? {
            Answer::Handle(handle) => Ok(handle),
            _ => Err(Trouble::Failed),
        }
    }

    fn create(&mut self, mount: usize, life: u64) {
        let id = self.load.next.fetch_add(1, Ordering::SeqCst);
        let name = format!("d{}/f{id}", self.random.below(DIRECTORIES));
        let (cells_max, base) = match self.random.below(10) {
            0..=2 => (32, 0),
            3..=6 => (1024, 0),
            7 | 8 => (4096, 0),
            // Across the border of two chunks.
            _ => (2048, (64 << 20) / CELL - 1000),
        };
        let mut entry = Entry {
            id,
            names: vec![None, Some(name.clone())],
            named: Instant::now(),
            oracle: oracle::File::default(),
            is_frozen: false,
            cuts: self.load.cuts.load(Ordering::SeqCst),
            past: VecDeque::new(),
            cells_max,
            base,
        };
        let call = Call::Open { path: self.load.path(mount, &name), write: true, flags: libc::O_CREAT | libc::O_EXCL };
        let done = (|| {
            let Answer::Handle(handle) = self.call(mount, life, "create", call)? else { return Err(Trouble::Failed) };
            entry.names = vec![Some(name)];
            self.with_handle(mount, life, &mut entry, handle, 0)
        })();
        if done.is_err() {
            entry.oracle.mount_lost();
            entry.is_frozen = true;
        }
        self.load.files.lock().insert(id, Arc::new(Mutex::new(entry)));
    }

    /// Opens, works, closes, and has another mount look.
    fn session(&mut self, mount: usize, life: u64, entry: &mut Entry) -> Result<(), Trouble> {
        let append = self.random.chance(15);
        let flags = match self.random.below(10) {
            _ if append => libc::O_APPEND,
            0 => libc::O_DIRECT,
            1 => libc::O_SYNC,
            _ => 0,
        };
        let handle = self.open(mount, life, entry, true, flags)?;
        self.with_handle(mount, life, entry, handle, flags)?;
        if self.random.chance(60) {
            let other = self.random.below(self.load.mounts.count() as u64) as usize;
            if let Some(life) = self.hands.life(other) {
                // If that mount dies, nothing happened to the file.
                let _ = self.verify(other, life, entry);
            }
        }
        Ok(())
    }

    fn with_handle(
        &mut self,
        mount: usize,
        life: u64,
        entry: &mut Entry,
        handle: u32,
        flags: i32,
    ) -> Result<(), Trouble> {
        for _ in 0..self.random.between(1, 6) {
            match self.random.below(10) {
                0..=4 => self.write(mount, life, entry, handle, flags)?,
                5 | 6 => {
                    let (first, count) = self.some_range(entry);
                    let call = Call::Read { handle, file: entry.id, first, count };
                    let answer = self.on(entry, mount, life, "read own", call)?;
                    self.judge(entry, &answer, (first, count), true, mount);
                }
                7 | 8 => {
                    self.note(entry, mount, "fsync");
                    self.on(entry, mount, life, "fsync", Call::Sync { handle })?;
                    entry.oracle.synced((mount, life));
                }
                _ => {
                    let Some(size) = entry.oracle.size() else { continue };
                    let size = self.random.below(size / CELL + 40) * CELL;
                    if size > (entry.base + entry.cells_max) * CELL {
                        continue;
                    }
                    self.note(entry, mount, &format!("truncate to cell {}", size / CELL));
                    entry.oracle.written_by((mount, life));
                    entry.oracle.truncate(size);
                    self.on(entry, mount, life, "truncate", Call::Truncate { handle, size })?;
                }
            }
        }
        self.note(entry, mount, "close");
        self.on(entry, mount, life, "close", Call::Close { handle })?;
        self.note(entry, mount, "closed");
        entry.oracle.closed();
        Ok(())
    }

    fn write(&mut self, mount: usize, life: u64, entry: &mut Entry, handle: u32, flags: i32) -> Result<(), Trouble> {
        let append = flags & libc::O_APPEND != 0;
        let largest = *self.random.pick(&[1, 8, 64, WRITE_CELLS_MAX]);
        let count = self.random.between(1, largest.min(entry.cells_max)) as u32;
        let end = entry.base + entry.cells_max;
        let first = if append {
            match entry.oracle.size() {
                Some(size) if size / CELL + u64::from(count) <= end => (size / CELL) as u32,
                _ => return Ok(()),
            }
        } else {
            let mut first = entry.base + self.random.below(entry.cells_max - u64::from(count) + 1);
            // Whole units, as often as not.
            if self.random.chance(50) {
                first = first / 8 * 8;
            }
            first as u32
        };
        let number = entry.oracle.number();
        self.note(entry, mount, &format!("write {number}: cells {first}+{count} append={append}"));
        entry.oracle.written_by((mount, life));
        entry.oracle.write(first, count, number);
        let call = Call::Write { handle, writer: self.number, file: entry.id, first, count, number, append };
        let kind = match flags {
            libc::O_APPEND => "append",
            libc::O_SYNC => WRITE_AND_SYNC,
            _ => "write",
        };
        self.on(entry, mount, life, kind, call).map(drop)
    }

    fn some_range(&mut self, entry: &Entry) -> (u32, u32) {
        let first = entry.base + self.random.below(entry.cells_max);
        let count = self.random.between(1, 256).min(entry.base + entry.cells_max - first);
        (first as u32, count as u32)
    }

    /// Opens and reads what the file must hold.
    fn verify(&mut self, mount: usize, life: u64, entry: &mut Entry) -> Result<(), Trouble> {
        let flags = if self.random.chance(30) { libc::O_DIRECT } else { 0 };
        let handle = self.open(mount, life, entry, false, flags)?;
        let answer = self.on(entry, mount, life, "stat", Call::Size { handle })?;
        if let Answer::Size(size) = answer
            && let Err(mismatch) = entry.oracle.check_size(size)
        {
            let told = entry.told();
            self.load.mounts.report.violation(format!("file {} on mount {mount}: {}{told}", entry.id, mismatch.0));
        }
        let mut ranges = vec![self.some_range(entry)];
        let written = entry.oracle.ranges(16);
        if !written.is_empty() {
            ranges.extend((0..2).map(|_| *self.random.pick(&written)));
        }
        for (first, count) in ranges {
            let answer = self.on(entry, mount, life, "read", Call::Read { handle, file: entry.id, first, count })?;
            self.judge(entry, &answer, (first, count), false, mount);
        }
        self.on(entry, mount, life, "close", Call::Close { handle }).map(drop)
    }

    fn judge(&self, entry: &Entry, answer: &Answer, range: (u32, u32), own: bool, mount: usize) {
        if let Err(text) = judge(&entry.oracle, answer, range, own) {
            let name = entry.name().unwrap_or("?");
            let told = entry.told();
            self.load.mounts.report.violation(format!("file {} ({name}) on mount {mount}: {text}{told}", entry.id));
        }
    }

    fn rename(&mut self, mount: usize, life: u64, entry: &mut Entry) -> Result<(), Trouble> {
        let old = entry.name().expect("asked before").to_owned();
        let new = format!("d{}/f{}-{}", self.random.below(DIRECTORIES), entry.id, self.random.below(1 << 32));
        entry.names = vec![Some(old.clone()), Some(new.clone())];
        let call = Call::Rename { from: self.load.path(mount, &old), to: self.load.path(mount, &new) };
        self.note(entry, mount, &format!("rename to {new}"));
        self.on(entry, mount, life, "rename", call)?;
        (entry.names, entry.named) = (vec![Some(new)], Instant::now());
        Ok(())
    }

    fn unlink(&mut self, mount: usize, life: u64, entry: &mut Entry) -> Result<(), Trouble> {
        let name = entry.name().expect("asked before").to_owned();
        entry.names = vec![Some(name.clone()), None];
        self.call(mount, life, "unlink", Call::Unlink { path: self.load.path(mount, &name) })?;
        (entry.names, entry.named) = (vec![None], Instant::now());
        self.load.forget(entry.id);
        Ok(())
    }

    /// Lists a directory: names that were there all along must be in it.
    fn list(&mut self, mount: usize, life: u64) {
        let directory = format!("d{}", self.random.below(DIRECTORIES));
        let settled = || -> BTreeMap<u64, String> {
            let files = self.load.files();
            let named = |file: &Arc<Mutex<Entry>>| {
                let entry: MutexGuard<'_, Entry> = file.try_lock()?;
                let name = entry.name().filter(|_| entry.named.elapsed() > NAMES_SETTLE)?;
                Some((entry.id, name.strip_prefix(&directory)?.strip_prefix('/')?.to_owned()))
            };
            files.iter().filter_map(named).collect()
        };
        let before = settled();
        let call = Call::List { path: self.load.path(mount, &directory) };
        let Ok(Answer::Names(names)) = self.call(mount, life, "readdir", call) else { return };
        let after: BTreeMap<u64, String> = {
            let files = self.load.files();
            let named = |file: &Arc<Mutex<Entry>>| {
                let entry = file.try_lock()?;
                Some((entry.id, entry.name()?.strip_prefix(&directory)?.strip_prefix('/')?.to_owned()))
            };
            files.iter().filter_map(named).collect()
        };
        for (id, name) in before {
            if after.get(&id) == Some(&name) && !names.contains(&name) {
                let report = &self.load.mounts.report;
                report.violation(format!("{directory} on mount {mount} does not list {name}, of file {id}"));
            }
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        if unique.len() != names.len() {
            self.load.mounts.report.violation(format!("{directory} on mount {mount} lists a name twice: {names:?}"));
        }
    }
}

/// Judges what was read.
///
/// # Errors
///
/// What is wrong with it.
pub fn judge(oracle: &oracle::File, answer: &Answer, range: (u32, u32), own: bool) -> Result<(), String> {
    let runs = answer.runs();
    let checked = if own { oracle.check_own(&runs) } else { oracle.check_fresh(&runs) };
    if let Err(mismatch) = checked {
        let Answer::Cells { foreign, .. } = answer else { return Err(mismatch.0) };
        return Err(format!("{}; {}", mismatch.0, foreign.join("; ")));
    }
    let found: u64 = runs.iter().map(|(_, count, _)| u64::from(*count)).sum();
    if let Some(size) = oracle.size() {
        let (first, count) = (u64::from(range.0), u64::from(range.1));
        let expected = (size / CELL).saturating_sub(first).min(count);
        if found != expected {
            return Err(format!("{found} cells from {first} instead of {expected}, of a size of {size}"));
        }
    }
    Ok(())
}
