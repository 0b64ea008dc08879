//! What a run has made outside of itself, on disk, so that somebody else can clear it away if the run is killed.
//!
//! A line each: `netns NAME`, `mount PATH`, `process PID START`. A process is known by its id and the time of its start:
//! an id alone may be another one's by the time of clearing.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use crate::cluster::is_mounted;
use crate::wait;

/// Where runs lie, each with a lock on a file while it lives.
pub const RUNS: &str = "/tmp/dfs-chaos";

/// The ledger of one run.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
    _lock: File,
}

impl Ledger {
    /// Begins the ledger of the run in `directory`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn begin(directory: &Path) -> Result<Self> {
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        let path = directory.join("ledger");
        let file = Mutex::new(OpenOptions::new().create(true).append(true).open(&path)?);
        Ok(Self { path, file, _lock: lock })
    }

    /// Notes a network namespace, before it is made.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn netns(&self, name: &str) -> Result<()> {
        self.note(&format!("netns {name}"))
    }

    /// Notes a mount point, before something is mounted.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn mount(&self, point: &Path) -> Result<()> {
        self.note(&format!("mount {}", point.display()))
    }

    /// Notes a process.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn process(&self, id: u32) -> Result<()> {
        match start_of(id) {
            Some(start) => self.note(&format!("process {id} {start}")),
            None => Ok(()),
        }
    }

    fn note(&self, line: &str) -> Result<()> {
        Ok(self.file.lock().write_all(format!("{line}\n").as_bytes())?)
    }

    /// Clears away everything that was noted and is still there.
    pub fn clear(&self) {
        clear(&self.path);
    }
}

/// Clears away what runs left that do not live any more, and their directories unless they are to be kept.
pub fn sweep() {
    for entry in std::fs::read_dir(RUNS).into_iter().flatten().flatten() {
        let directory = entry.path();
        let Ok(lock) = File::open(directory.join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            clear(&directory.join("ledger"));
        }
    }
}

/// Kills a process, if it is still the one that started then.
pub fn kill_process(id: u32, start: u64) {
    if start_of(id) == Some(start) {
        let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGCONT);
        let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
    }
}

/// Returns when a process started, in the kernel's ticks, if it is there.
pub fn start_of(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may have spaces and brackets; what follows its last one is regular: field 22 is the start.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn clear(ledger: &Path) {
    let Ok(text) = std::fs::read_to_string(ledger) else { return };
    let lines: BTreeSet<&str> = text.lines().collect();
    let mut killed = Vec::new();
    for line in &lines {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["process", id, start] = words[..]
            && let (Ok(id), Ok(start)) = (id.parse::<u32>(), start.parse::<u64>())
        {
            kill_process(id, start);
            killed.push((id, start));
        }
    }
    // The last mounted first: a data directory lies below what a mount may have covered.
    for line in text.lines().rev() {
        if let Some(point) = line.strip_prefix("mount ") {
            while is_mounted(Path::new(point)) && umount2(point, MntFlags::MNT_DETACH).is_ok() {}
        }
    }
    let _ = wait::until("all processes ended", Duration::from_secs(20), || {
        let left = killed.iter().filter(|(id, start)| start_of(*id) == Some(*start) && !is_zombie(*id)).count();
        anyhow::ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .inspect_err(|error| eprintln!("chaos: {error:#}"));
    for line in &lines {
        if let Some(name) = line.strip_prefix("netns ")
            && Path::new("/run/netns").join(name).exists()
        {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn is_zombie(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|text| text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// Makes the directory of a new run.
///
/// # Errors
///
/// The operating system's.
pub fn new_run(name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(RUNS)?;
    let prefix = format!("{name}-");
    let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in(RUNS).context("making the run's directory")?;
    Ok(directory.keep())
}
