//! Bugs on purpose: each is one rule taken away, and must be found by some seed that shows nothing without it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dfs_proto::planted::Bug;

use super::campaign::run_seed;
use super::checks::Violation;

/// Within so many seeds each bug is to be found.
pub const SEEDS_MAX: u64 = 200;

/// What came of one bug.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which one.
    pub bug: Bug,
    /// The seed that shows it, how many were run until then, and what rule was broken. `None`: it was missed.
    pub found: Option<(u64, u64, Violation)>,
    /// Seeds that broke a rule without it, too.
    pub unclean: Vec<u64>,
}

/// Looks for `bug` with the seeds from `from` on.
pub fn find(bug: Bug, from: u64) -> Entry {
    let mut entry = Entry { bug, found: None, unclean: Vec::new() };
    for at in 0..SEEDS_MAX {
        let seed = from + at;
        let Some(violation) = run_seed(seed, Some(bug)).violation else { continue };
        if run_seed(seed, None).violation.is_some() {
            entry.unclean.push(seed);
            continue;
        }
        entry.found = Some((seed, at + 1, violation));
        break;
    }
    entry
}

/// Looks for each of `bugs` with the seeds from `from` on.
pub fn run(bugs: &[Bug], from: u64, threads: usize) -> Vec<Entry> {
    let (next, entries) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let entry = find(*bug, from);
            entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(entry);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut entries = entries.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    entries.sort_by_key(|entry: &Entry| entry.bug);
    entries
}
