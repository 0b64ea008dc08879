//! Many seeds, on several threads; and the one that shows something, told in full.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::planted::{self, Bug};

use super::checks::Violation;
use super::scheduler::Time;
use super::simulation::{Outcome, Simulation};
use super::trace::take_lines;

/// Runs one seed, perhaps with a bug on purpose. A panic of a core is a violation.
pub fn run_seed(seed: u64, bug: Option<Bug>) -> Outcome {
    run_one(seed, bug, false)
}

/// As [`run_seed`], and tells the whole story.
pub fn tell_seed(seed: u64, bug: Option<Bug>) -> (Outcome, Vec<String>) {
    let outcome = run_one(seed, bug, true);
    (outcome, take_lines())
}

fn run_one(seed: u64, bug: Option<Bug>, keeps_words: bool) -> Outcome {
    planted::plant(bug);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| Simulation::new(seed, keeps_words).run()));
    planted::plant(None);
    outcome.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".into());
        Outcome {
            seed,
            hash: 0,
            events: 0,
            strikes: BTreeMap::new(),
            operations: (0, 0),
            lasted: Time(0),
            violation: Some(Violation { rule: "panic".into(), what }),
        }
    })
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The first seed.
    pub from: u64,
    /// How many, beside those that were kept.
    pub seeds: u64,
    /// No seed begins later than this.
    pub time: Option<Duration>,
    /// How many threads.
    pub threads: usize,
}

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many were run.
    pub seeds: u64,
    /// Events in them.
    pub events: u64,
    /// Operations of clients that were answered, and that failed.
    pub operations: (u64, u64),
    /// Faults by kind.
    pub strikes: BTreeMap<&'static str, u64>,
    /// Simulated seconds.
    pub simulated_s: u64,
    /// What was found, by seed.
    pub found: BTreeMap<u64, Violation>,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.operations.0 += u64::from(outcome.operations.0);
        self.operations.1 += u64::from(outcome.operations.1);
        self.simulated_s += outcome.lasted.0 / 1_000_000;
        for (kind, count) in &outcome.strikes {
            *self.strikes.entry(kind).or_default() += u64::from(*count);
        }
        if let Some(violation) = &outcome.violation {
            self.found.insert(outcome.seed, violation.clone());
        }
    }
}

/// Runs `first` and then the seeds of the campaign, until `found_max` of them have shown something. `progress` is told of
/// each seed that does.
pub fn run(campaign: &Campaign, first: &[u64], found_max: usize, progress: impl Fn(&Outcome) + Sync) -> Summary {
    let began = Instant::now();
    let (next, summary) = (AtomicU64::new(0), Mutex::new(Summary::default()));
    let total = first.len() as u64 + campaign.seeds;
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let is_late = campaign.time.is_some_and(|time| began.elapsed() >= time);
            if at >= total || is_late {
                return;
            }
            let seed = first.get(at as usize).copied().unwrap_or_else(|| campaign.from + at - first.len() as u64);
            let outcome = run_seed(seed, None);
            if outcome.violation.is_some() {
                progress(&outcome);
            }
            let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            summary.add(&outcome);
            if summary.found.len() >= found_max {
                return next.store(total, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..campaign.threads.max(1) {
            scope.spawn(work);
        }
    });
    summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns where seeds are kept that once showed something.
pub fn kept_directory() -> PathBuf {
    crate::binary::project().join("tests/sim-seeds")
}

/// Returns the kept seeds: each file of `directory` is a story whose first word is the seed.
pub fn kept_seeds(directory: &Path) -> Vec<u64> {
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            if let Some(Ok(seed)) = line.split_whitespace().next().map(str::parse) {
                seeds.push(seed);
            }
        }
    }
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}
