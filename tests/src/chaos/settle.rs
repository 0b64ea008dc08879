//! Looking at every file when nothing else goes on: what must be there is, and what may be one of several is taken as
//! found.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::hands::{Hands, Lost};
use super::load::{Entry, Load, judge};
use super::oracle::Run;
use super::stamp::CELL;
use super::worker::{Answer, Call};

/// What one look has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Files that are there.
    pub files: u64,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Files of which several contents were possible.
    pub settled: u64,
    /// Files that never were synced and have no replica any more, after a power cut of all.
    pub unreadable: u64,
}

/// Compares every file and every name with what they must be, through `mount`. Whoever changes them must be paused.
///
/// # Errors
///
/// If the mount is killed meanwhile.
pub fn look(load: &Load, hands: &mut Hands, mount: usize, all: bool, after_cut: bool) -> Result<Looked, Lost> {
    let life = hands.life(mount).ok_or(Lost)?;
    let mut looked = Looked::default();
    for file in load.files() {
        let mut entry = file.lock();
        load.catch_up(&mut entry);
        if !all && !entry.is_frozen && entry.oracle.is_certain() && entry.name().is_some() {
            continue;
        }
        let mut eye = Eye { load, hands: &mut *hands, mount, life, looked: &mut looked, after_cut };
        eye.look(&mut entry)?;
        if entry.names == [None] {
            load.forget(entry.id);
        }
    }
    if all {
        names(load, hands, mount, life)?;
    }
    Ok(looked)
}

/// Changes a cell of one file, the size of another, and a name, so that it can be seen whether that is found.
///
/// # Errors
///
/// If the mount is killed meanwhile.
pub fn tamper(load: &Load, hands: &mut Hands) -> Result<(), Lost> {
    let life = hands.life(0).ok_or(Lost)?;
    let mut changes = 0;
    for file in load.files() {
        let entry = file.lock();
        let (Some(name), Some(size)) = (entry.name(), entry.oracle.size()) else { continue };
        let path = load.path(0, name);
        if changes == 2 {
            hands.call(0, life, "tamper", &Call::Unlink { path })?;
            break;
        }
        let ranges = entry.oracle.ranges(0);
        let Some((first, _)) = ranges.iter().find(|(first, _)| u64::from(*first) * CELL < size) else { continue };
        let opened = hands.call(0, life, "tamper", &Call::Open { path, write: true, flags: 0 })?;
        let Answer::Handle(handle) = opened else { continue };
        let change = if changes == 0 {
            let (file, first, number) = (entry.id, *first, u32::MAX);
            Call::Write { handle, writer: 0, file, first, count: 1, number, append: false }
        } else {
            Call::Truncate { handle, size: size + CELL }
        };
        hands.call(0, life, "tamper", &change)?;
        hands.call(0, life, "tamper", &Call::Close { handle })?;
        changes += 1;
    }
    Ok(())
}

struct Eye<'a> {
    load: &'a Load,
    hands: &'a mut Hands,
    mount: usize,
    life: u64,
    looked: &'a mut Looked,
    after_cut: bool,
}

impl Eye<'_> {
    fn call(&mut self, kind: &'static str, call: &Call) -> Result<Answer, Lost> {
        self.hands.call(self.mount, self.life, kind, call)
    }

    fn violation(&self, entry: &Entry, text: &str) {
        let (id, names, told, mount) = (entry.id, &entry.names, entry.told(), self.mount);
        self.load.mounts.report.violation(format!("file {id} {names:?} on mount {mount}: {text}{told}"));
    }

    fn look(&mut self, entry: &mut Entry) -> Result<(), Lost> {
        let Some(handle) = self.find(entry)? else { return Ok(()) };
        let size = match self.call("stat", &Call::Size { handle })? {
            Answer::Size(size) => size,
            other => {
                self.violation(entry, &format!("fstat gives {other:?}"));
                return Ok(());
            }
        };
        if let Err(mismatch) = entry.oracle.check_size(size) {
            self.violation(entry, &mismatch.0);
        }
        self.looked.files += 1;
        let mut runs: Vec<Run> = Vec::new();
        let mut is_readable = true;
        for (first, count) in entry.oracle.ranges(64) {
            let count = u64::from(count).min((size / CELL).saturating_sub(u64::from(first))) as u32;
            if count == 0 {
                continue;
            }
            match self.call("read", &Call::Read { handle, file: entry.id, first, count })? {
                Answer::Errno(libc::EIO) if self.after_cut && !entry.oracle.is_certain() => is_readable = false,
                Answer::Errno(errno) => {
                    self.violation(entry, &format!("errno {errno} of a read of {count} from {first}"))
                }
                answer => {
                    if let Err(text) = judge(&entry.oracle, &answer, (first, count), false) {
                        self.violation(entry, &text);
                    }
                    self.looked.bytes += u64::from(count) * CELL;
                    runs.extend(answer.runs());
                }
            }
        }
        self.call("close", &Call::Close { handle })?;
        if !is_readable {
            self.looked.unreadable += 1;
            if let Some(name) = entry.name() {
                self.call("unlink", &Call::Unlink { path: self.load.path(self.mount, name) })?;
            }
            entry.names = vec![None];
        } else if entry.is_frozen || !entry.oracle.is_certain() {
            entry.oracle.settle(size, &runs);
            self.looked.settled += 1;
        }
        entry.is_frozen = false;
        Ok(())
    }

    /// Opens a file by the one of its possible names that it has.
    fn find(&mut self, entry: &mut Entry) -> Result<Option<u32>, Lost> {
        let mut found: Vec<(String, u32)> = Vec::new();
        for name in entry.names.iter().flatten() {
            let call = Call::Open { path: self.load.path(self.mount, name), write: false, flags: libc::O_DIRECT };
            match self.hands.call(self.mount, self.life, "open", &call)? {
                Answer::Handle(handle) => found.push((name.clone(), handle)),
                Answer::Errno(libc::ENOENT) => {}
                other => self.violation(entry, &format!("open of {name} gives {other:?}")),
            }
        }
        match &found[..] {
            [(name, handle)] => {
                (entry.names, entry.named) = (vec![Some(name.clone())], Instant::now());
                Ok(Some(*handle))
            }
            [] => {
                if !entry.names.contains(&None) {
                    self.violation(entry, "it has none of its names");
                }
                entry.names = vec![None];
                Ok(None)
            }
            more => {
                self.violation(entry, &format!("it has {} names", more.len()));
                Ok(Some(more[0].1))
            }
        }
    }
}

/// Compares the lists of all directories with all names.
fn names(load: &Load, hands: &mut Hands, mount: usize, life: u64) -> Result<(), Lost> {
    let files = load.files();
    let name = |file: &Arc<Mutex<Entry>>| file.lock().name().map(str::to_owned);
    let mut expected: Vec<String> = files.iter().filter_map(name).collect();
    let mut found = Vec::new();
    for directory in load.directories() {
        match hands.call(mount, life, "readdir", &Call::List { path: load.path(mount, &directory) })? {
            Answer::Names(names) => found.extend(names.into_iter().map(|name| format!("{directory}/{name}"))),
            other => load.mounts.report.violation(format!("readdir of {directory} gives {other:?}")),
        }
    }
    expected.sort_unstable();
    found.sort_unstable();
    for name in &expected {
        if found.binary_search(name).is_err() {
            load.mounts.report.violation(format!("{name} is not listed on mount {mount}"));
        }
    }
    for name in &found {
        if expected.binary_search(name).is_err() {
            load.mounts.report.violation(format!("{name} is listed on mount {mount} and should not be there"));
        }
    }
    Ok(())
}
