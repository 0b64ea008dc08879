//! Calls on any mount for one thread of the load: workers come and go with the mounts, and time and errors are judged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ledger::{self, Ledger};
use super::report::Report;
use super::worker::{Answer, Call, NoAnswer, Worker};

/// A call that takes longer hangs: the longest round with its healing is shorter.
const HUNG: Duration = Duration::from_secs(180);

#[derive(Debug, Default)]
struct Mount {
    /// Raised before a mount is killed.
    life: u64,
    is_up: bool,
    workers: Vec<(u32, u64)>,
}

/// What all threads of the load share about mounts.
#[derive(Debug)]
pub struct Mounts {
    mounts: Vec<Mutex<Mount>>,
    ledger: Arc<Ledger>,
    /// What was noted while it went on.
    pub report: Report,
    /// Calls that go on, by a number.
    outstanding: Mutex<BTreeMap<u64, (Instant, String)>>,
    next: AtomicU64,
}

/// The mount of a call was killed meanwhile: nobody knows what became of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl Mounts {
    /// Returns `count` mounts that are up.
    pub fn new(count: usize, ledger: Arc<Ledger>) -> Self {
        let mounts = (0..count).map(|_| Mutex::new(Mount { is_up: true, ..Mount::default() })).collect();
        let report = Report::default();
        Self { mounts, ledger, report, outstanding: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.mounts.len()
    }

    /// Says that a mount is about to be killed. From now on what fails there fails rightly.
    pub fn going_down(&self, mount: usize) {
        let mut state = self.mounts[mount].lock();
        state.life += 1;
        state.is_up = false;
    }

    /// Says that it was killed: ends the workers that had files open there.
    pub fn is_down(&self, mount: usize) {
        for (id, start) in std::mem::take(&mut self.mounts[mount].lock().workers) {
            ledger::kill_process(id, start);
        }
    }

    /// Says that it is there again.
    pub fn is_up(&self, mount: usize) {
        self.mounts[mount].lock().is_up = true;
    }

    /// Returns the calls that have gone on since before `time`.
    pub fn since_before(&self, time: Instant) -> Vec<String> {
        let outstanding = self.outstanding.lock();
        outstanding.values().filter(|(began, _)| *began < time).map(|(_, text)| text.clone()).collect()
    }
}

/// The hands of one thread.
#[derive(Debug)]
pub struct Hands {
    mounts: Arc<Mounts>,
    workers: BTreeMap<usize, (u64, Worker)>,
}

impl Hands {
    /// Returns hands that hold nothing.
    pub fn new(mounts: Arc<Mounts>) -> Self {
        Self { mounts, workers: BTreeMap::new() }
    }

    /// Returns the life of a mount, if it is up. Handles are good for one life.
    pub fn life(&self, mount: usize) -> Option<u64> {
        let state = self.mounts.mounts[mount].lock();
        state.is_up.then_some(state.life)
    }

    /// Makes a call on a mount that has not been killed since it had this `life`. Errors are answers.
    ///
    /// # Errors
    ///
    /// [`Lost`].
    pub fn call(&mut self, mount: usize, life: u64, kind: &'static str, call: &Call) -> Result<Answer, Lost> {
        if self.life(mount) != Some(life) {
            self.workers.remove(&mount);
            return Err(Lost);
        }
        if self.workers.get(&mount).is_none_or(|(of, _)| *of != life) {
            let worker = Worker::start(&self.mounts.ledger).map_err(|error| {
                self.mounts.report.violation(format!("no worker: {error:#}"));
                Lost
            })?;
            let mut state = self.mounts.mounts[mount].lock();
            if state.life != life {
                return Err(Lost);
            }
            state.workers.extend(ledger::start_of(worker.id()).map(|start| (worker.id(), start)));
            drop(state);
            self.workers.insert(mount, (life, worker));
        }
        let (_, worker) = self.workers.get_mut(&mount).expect("made above");
        let number = self.mounts.next.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        self.mounts.outstanding.lock().insert(number, (began, format!("{kind} on mount {mount}: {call:?}")));
        let answer = if worker.begin(call) { worker.finish(HUNG) } else { Err(NoAnswer::Gone) };
        self.mounts.outstanding.lock().remove(&number);
        let is_killed = self.life(mount) != Some(life);
        match answer {
            Ok(Answer::Errno(_)) | Err(_) if is_killed => {
                self.workers.remove(&mount);
                Err(Lost)
            }
            Ok(answer) => {
                self.mounts.report.operation(kind, began.elapsed());
                Ok(answer)
            }
            Err(NoAnswer::Late) => {
                self.mounts.report.violation(format!("hung for {HUNG:?}: {kind} on mount {mount}: {call:?}"));
                self.workers.remove(&mount);
                Err(Lost)
            }
            Err(NoAnswer::Gone) => {
                self.mounts.report.violation(format!("a worker of mount {mount} died in {call:?}"));
                self.workers.remove(&mount);
                Err(Lost)
            }
        }
    }
}
