//! Runs requests against the records, in batches: whoever comes first runs what is waiting.
//!
//! ```text
//! caller ──▶ queue ──┬── nobody leads: I lead ──▶ run all that waits as one batch ──▶ commit ──▶ hand out answers
//!                    └── somebody leads: wait for my answer, or to be told to lead
//! ```
//!
//! A lone caller pays no wake-up: it takes the state, runs its request, writes the batch and returns. Under load the
//! callers that come while a batch runs make the next one. What has to be on stable media before the caller may know
//! is waited for by the caller itself, so the state is free meanwhile.
//!
//! # Invariants
//!
//! - At most one thread leads; it alone touches the state. The queue is left without a leader only when it is empty.
//! - An answer is given only after its batch is committed.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use dfs_proto::env::Clock;
use dfs_proto::{BootSession, FsError, Seq};
use parking_lot::{Mutex, RwLock};

pub use super::care_calls::Info;
use super::metrics::MasterMetrics;
use crate::core::care::{Counters, CutIntent};
use crate::core::node_table::NodeTable;
use crate::core::request::Call;
use crate::core::session::Reply;
use crate::service::config::MasterConfig;
use crate::state::{Answer, Control, Durability, MasterState, Observer, Settings};
use crate::store::{MetaStore, StoreError};

/// Most requests in one batch: bounds the time until the first of them is answered.
const BATCH_REQUESTS_MAX: usize = 256;
/// Batches a leader runs for others after its own answer is there.
const EXTRA_BATCHES_MAX: usize = 4;
/// How long a caller waits for the log to be synced before it gives up.
const SYNC_DEADLINE: Duration = Duration::from_secs(30);

type Internal = Box<dyn FnOnce(&mut MasterState) + Send>;

enum Work {
    Call(Box<Call>),
    Internal(Internal),
}

enum Progress {
    Waiting(Work),
    Running,
    Lead(Work),
    Done(Box<Answer>),
}

struct Slot {
    progress: Mutex<Progress>,
    thread: Thread,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Slot>>,
    is_led: bool,
}

/// What a call gets, once it may know.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The reply, or why there is none.
    pub result: Result<Reply, FsError>,
    /// Everything up to here is on stable media, as far as the session may be told.
    pub durable: Seq,
    /// What must be finished before the mount is told.
    pub cut: Option<CutIntent>,
    /// For each chunk of the reply, the run of its primary that it may be granted to; 0: none.
    pub boots: Vec<BootSession>,
}

/// Runs requests against the records, one at a time, in batches. Every method blocks (milliseconds at most): callers
/// on an async runtime use `spawn_blocking` or `block_in_place`.
pub struct Executor {
    queue: Mutex<Queue>,
    state: Mutex<MasterState>,
    /// Copied after each batch, to be read without waiting for the state.
    counters: Mutex<Counters>,
    durability: Arc<Durability>,
    control: Control,
    /// Where the log stood when this run began: positions up to here, or in the gap above it, are of earlier runs.
    begun_at: Seq,
    syncer: Mutex<Option<JoinHandle<()>>>,
}

impl Executor {
    /// Reads what is in `store`, makes what a new file system needs, and starts the sync thread.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn start(
        store: Arc<dyn MetaStore>,
        nodes: Arc<RwLock<NodeTable>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<MasterMetrics>,
        config: &MasterConfig,
    ) -> Result<Arc<Self>, StoreError> {
        let settings = Settings {
            reclaim_delay_ms: config.reclaim_delay_ms,
            session_ms: config.session_ms,
            reclaim_window_ms: config.reclaim_window_ms,
            seed: dfs_proto::env::random_u64(),
        };
        let observer = Arc::clone(&metrics) as Arc<dyn Observer>;
        let state = MasterState::load(Arc::clone(&store), nodes, clock, observer, settings)?;
        let durability = Arc::clone(state.durability());
        let (syncing, interval) = (Arc::clone(&durability), Duration::from_millis(config.sync_interval_ms));
        let syncer = std::thread::Builder::new()
            .name("master-sync".into())
            .spawn(move || syncing.run(&store, interval, |took| metrics.synced(took)))
            .map_err(|error| StoreError::Engine(format!("no thread for syncing: {error}")))?;
        Ok(Arc::new(Self {
            begun_at: state.begun_at(),
            control: state.control().clone(),
            queue: Mutex::default(),
            counters: Mutex::new(state.counters),
            state: Mutex::new(state),
            durability,
            syncer: Mutex::new(Some(syncer)),
        }))
    }

    /// Runs `call`, and waits until its answer may be known.
    pub fn call(&self, call: Call) -> Answered {
        let answer = self.submit(Work::Call(Box::new(call)));
        let waited = self.wait_first(answer.durable_first);
        let durable = self.durability.durable();
        Answered {
            result: waited.and(answer.result),
            durable: answer.durable_max.map_or(durable, |max| durable.min(max)),
            cut: answer.cut,
            boots: answer.boots,
        }
    }

    /// Waits until everything up to `seq` is on stable media; 0: everything there is now.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`], [`FsError::TimedOut`].
    pub fn wait_durable(&self, seq: Seq) -> Result<(), FsError> {
        let seq = if seq == Seq(0) { self.durability.committed() } else { seq };
        self.durability.wait(seq, Instant::now() + SYNC_DEADLINE)
    }

    /// Waits for what must be on stable media before the caller is told: everything up to `seq`; 0: nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_durable`].
    pub(super) fn wait_first(&self, seq: Seq) -> Result<(), FsError> {
        if seq == Seq(0) { Ok(()) } else { self.wait_durable(seq) }
    }

    /// As [`Self::wait_durable`], for a position that a mount names. One of an earlier run says nothing of what was
    /// replayed since: then everything is waited for.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_durable`].
    pub fn wait_durable_for_mount(&self, seq: Seq) -> Result<(), FsError> {
        self.wait_durable(if seq <= self.begun_at { Seq(0) } else { seq })
    }

    /// Returns the tables that pulses and reports touch.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Returns the totals, as of the last batch.
    pub fn counters(&self) -> Counters {
        *self.counters.lock()
    }

    /// Returns the position of the last change, and of the last one that is on stable media.
    pub fn seqs(&self) -> (Seq, Seq) {
        (self.durability.committed(), self.durability.durable())
    }

    /// Returns why the executor stopped for good, if it did (then the daemon is not healthy).
    pub fn failure(&self) -> Option<String> {
        self.durability.failure()
    }

    /// Makes everything durable and ends the sync thread. Later calls that need it wait in vain and fail.
    pub fn stop(&self) {
        self.durability.stop();
        if let Some(syncer) = self.syncer.lock().take() {
            // It ends after one more sync; a panic there was logged by its own hook.
            let _ = syncer.join();
        }
    }

    /// Runs `work` on the state in its turn, and returns what it gives once its changes are committed.
    ///
    /// # Errors
    ///
    /// What `work` fails with; [`FsError::Io`] after a failure of the store.
    pub(super) fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut MasterState) -> Result<T, FsError> + Send + 'static,
    ) -> Result<T, FsError> {
        let result = Arc::new(Mutex::new(None));
        let given = Arc::clone(&result);
        let answer = self.submit(Work::Internal(Box::new(move |state| *given.lock() = Some(work(state)))));
        answer.result?;
        let result = result.lock().take();
        result.unwrap_or_else(|| Err(FsError::Io("the work was not done".into())))
    }

    fn submit(&self, work: Work) -> Answer {
        let slot = Arc::new(Slot { progress: Mutex::new(Progress::Waiting(work)), thread: std::thread::current() });
        let leads = {
            let mut queue = self.queue.lock();
            queue.waiting.push_back(Arc::clone(&slot));
            !std::mem::replace(&mut queue.is_led, true)
        };
        if !leads && !slot.wait() {
            return slot.take();
        }
        self.lead(&slot);
        slot.take()
    }

    /// Runs batches until `own` is answered and either nobody waits or somebody else is told to go on.
    fn lead(&self, own: &Slot) {
        let mut extra = 0;
        loop {
            let batch: Vec<Arc<Slot>> = {
                let mut queue = self.queue.lock();
                let is_done = own.is_done();
                if queue.waiting.is_empty() {
                    debug_assert!(is_done, "the leader's own request was in a batch");
                    queue.is_led = false;
                    return;
                }
                if is_done && extra >= EXTRA_BATCHES_MAX {
                    queue.waiting.front().expect("somebody waits").tell_to_lead();
                    return;
                }
                extra += usize::from(is_done);
                let count = queue.waiting.len().min(BATCH_REQUESTS_MAX);
                queue.waiting.drain(..count).collect()
            };
            self.run(&batch);
        }
    }

    fn run(&self, batch: &[Arc<Slot>]) {
        let works: Vec<Work> = batch.iter().map(|slot| slot.start()).collect();
        let ran = match self.durability.failure() {
            Some(reason) => Err(reason),
            None => std::panic::catch_unwind(AssertUnwindSafe(|| self.run_works(works))).unwrap_or_else(|_| {
                let reason = "a request broke the state".to_owned();
                self.durability.fail(&reason);
                Err(reason)
            }),
        };
        match ran {
            Ok(answers) => batch.iter().zip(answers).for_each(|(slot, answer)| slot.finish(answer)),
            Err(reason) => {
                for slot in batch {
                    slot.finish(Answer::failed(FsError::Io(reason.clone())));
                }
            }
        }
    }

    fn run_works(&self, works: Vec<Work>) -> Result<Vec<Answer>, String> {
        let mut state = self.state.lock();
        let mut answers = Vec::with_capacity(works.len());
        for work in works {
            answers.push(match work {
                Work::Call(call) => state.perform(&call),
                Work::Internal(work) => {
                    work(&mut state);
                    Answer::nothing()
                }
            });
        }
        let counters = state.counters;
        let committed = state.commit();
        drop(state);
        // A store that failed in the middle of the batch is noted there already.
        if let Err(error) = committed {
            self.durability.fail(&error);
        }
        match self.durability.failure() {
            Some(reason) => Err(reason),
            None => {
                *self.counters.lock() = counters;
                Ok(answers)
            }
        }
    }
}

impl Observer for MasterMetrics {
    fn committed(&self, requests: usize, took: Duration) {
        MasterMetrics::committed(self, requests, took);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Slot {
    /// Waits for the answer or the word to lead, and returns whether it is the latter.
    fn wait(&self) -> bool {
        loop {
            match *self.progress.lock() {
                Progress::Done(_) => return false,
                Progress::Lead(_) => return true,
                Progress::Waiting(_) | Progress::Running => {}
            }
            std::thread::park();
        }
    }

    fn is_done(&self) -> bool {
        matches!(*self.progress.lock(), Progress::Done(_))
    }

    fn tell_to_lead(&self) {
        let mut progress = self.progress.lock();
        if let Progress::Waiting(work) = std::mem::replace(&mut *progress, Progress::Running) {
            *progress = Progress::Lead(work);
        }
        drop(progress);
        self.thread.unpark();
    }

    fn start(&self) -> Work {
        match std::mem::replace(&mut *self.progress.lock(), Progress::Running) {
            Progress::Waiting(work) | Progress::Lead(work) => work,
            Progress::Running | Progress::Done(_) => unreachable!("a slot is in the queue once"),
        }
    }

    fn finish(&self, answer: Answer) {
        *self.progress.lock() = Progress::Done(Box::new(answer));
        if self.thread.id() != std::thread::current().id() {
            self.thread.unpark();
        }
    }

    fn take(&self) -> Answer {
        match std::mem::replace(&mut *self.progress.lock(), Progress::Running) {
            Progress::Done(answer) => *answer,
            _ => unreachable!("the slot was waited for"),
        }
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
