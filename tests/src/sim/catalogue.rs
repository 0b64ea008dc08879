//! Bugs on purpose: each is one rule taken away, and must be found by some seed.

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
}

/// Looks for each of `bugs` with the seeds from `from` on.
pub fn run(bugs: &[Bug], from: u64, threads: usize) -> Vec<Entry> {
    let (next, entries) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = (0..SEEDS_MAX).find_map(|at| {
                let violation = run_seed(from + at, Some(*bug)).violation?;
                Some((from + at, at + 1, violation))
            });
            let mut entries = entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            entries.push(Entry { bug: *bug, found });
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
