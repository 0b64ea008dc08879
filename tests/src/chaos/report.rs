//! What a run has seen: operations with their longest stall, faults by kind, and everything that must not be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Violations that are kept; more say nothing new.
const VIOLATIONS_MAX: usize = 200;

#[derive(Debug, Default)]
struct Seen {
    operations: BTreeMap<&'static str, (u64, Duration)>,
    faults: BTreeMap<String, u64>,
    notes: BTreeMap<String, u64>,
    violations: Vec<String>,
    healing: Vec<Duration>,
}

/// The report, filled from all threads.
#[derive(Debug)]
pub struct Report {
    started: Instant,
    seen: Mutex<Seen>,
}

impl Default for Report {
    fn default() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }
}

impl Report {
    /// Returns the time since the start, as it stands before each line.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints a line of what goes on.
    pub fn say(&self, text: &str) {
        println!("{:8.2}  {text}", self.now().as_secs_f64());
    }

    /// Notes an operation that ended.
    pub fn operation(&self, kind: &'static str, took: Duration) {
        let mut seen = self.seen.lock();
        let (count, longest) = seen.operations.entry(kind).or_default();
        *count += 1;
        *longest = took.max(*longest);
    }

    /// Notes a fault.
    pub fn fault(&self, kind: String) {
        *self.seen.lock().faults.entry(kind).or_default() += 1;
    }

    /// Notes something that is worth a number.
    pub fn note(&self, what: &str) {
        self.note_many(what, 1);
    }

    /// Notes it several times.
    pub fn note_many(&self, what: &str, count: u64) {
        *self.seen.lock().notes.entry(what.to_owned()).or_default() += count;
    }

    /// Notes how long it took until everything was well again.
    pub fn healed(&self, took: Duration) {
        self.seen.lock().healing.push(took);
    }

    /// Notes what must not be.
    pub fn violation(&self, text: String) {
        self.say(&format!("VIOLATION {text}"));
        let mut seen = self.seen.lock();
        if seen.violations.len() < VIOLATIONS_MAX {
            seen.violations.push(format!("{:.2} {text}", self.started.elapsed().as_secs_f64()));
        }
    }

    /// Returns how many violations there were.
    pub fn violations(&self) -> usize {
        self.seen.lock().violations.len()
    }

    /// Returns how many faults there were, and of how many kinds.
    pub fn faults(&self) -> (u64, usize) {
        let seen = self.seen.lock();
        (seen.faults.values().sum(), seen.faults.len())
    }

    /// Returns everything as text.
    pub fn text(&self) -> String {
        let seen = self.seen.lock();
        let mut text = String::new();
        let _ = writeln!(text, "operation             count   longest");
        for (kind, (count, longest)) in &seen.operations {
            let _ = writeln!(text, "  {kind:16} {count:9}  {:7.2} s", longest.as_secs_f64());
        }
        let _ = writeln!(text, "faults: {} of {} kinds", seen.faults.values().sum::<u64>(), seen.faults.len());
        for (kind, count) in &seen.faults {
            let _ = writeln!(text, "  {count:5}  {kind}");
        }
        if let Some(longest) = seen.healing.iter().max() {
            let total: Duration = seen.healing.iter().sum();
            let mean = total.as_secs_f64() / seen.healing.len() as f64;
            let _ = writeln!(text, "well again after {mean:.1} s on average, {:.1} s at most", longest.as_secs_f64());
        }
        for (what, count) in &seen.notes {
            let _ = writeln!(text, "  {count:9}  {what}");
        }
        let _ = writeln!(text, "violations: {}", seen.violations.len());
        for violation in &seen.violations {
            let _ = writeln!(text, "  {violation}");
        }
        text
    }
}
