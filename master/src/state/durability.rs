//! How far the log is on stable media, and the thread that moves it on.
//!
//! A batch is safe from kill -9 when it is committed; this thread makes batches safe from power loss in groups: at once
//! if somebody waits, else within the sync interval. While one sync runs, the next group gathers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::{FsError, Seq};
use parking_lot::{Condvar, Mutex};

use crate::store::{MetaStore, StoreError};

/// How far the log is on stable media.
pub struct Durability {
    state: Mutex<State>,
    /// Wakes the sync thread.
    work: Condvar,
    /// Wakes whoever waits for a position to be durable.
    advanced: Condvar,
    /// Written with `state` locked, so that nobody who waits misses a change; read without the lock, too.
    committed: AtomicU64,
    durable: AtomicU64,
}

struct State {
    waiting: usize,
    is_idle: bool,
    is_stopping: bool,
    failure: Option<String>,
}

impl Durability {
    /// Starts where the store stands, all of it durable.
    pub fn new(seq: Seq) -> Self {
        Self {
            state: Mutex::new(State { waiting: 0, is_idle: false, is_stopping: false, failure: None }),
            work: Condvar::new(),
            advanced: Condvar::new(),
            committed: AtomicU64::new(seq.0),
            durable: AtomicU64::new(seq.0),
        }
    }

    /// Returns the last committed position.
    pub fn committed(&self) -> Seq {
        Seq(self.committed.load(Ordering::Acquire))
    }

    /// Returns the last durable position.
    pub fn durable(&self) -> Seq {
        Seq(self.durable.load(Ordering::Acquire))
    }

    /// Returns why nothing is served any more, if so.
    pub fn failure(&self) -> Option<String> {
        self.state.lock().failure.clone()
    }

    /// Ends all service: what is in the store is not known any more.
    pub fn fail(&self, error: &dyn std::fmt::Display) {
        let mut state = self.state.lock();
        if state.failure.is_none() {
            tracing::error!(%error, "the master stops serving: the state of its store is unknown");
            state.failure = Some(error.to_string());
        }
        drop(state);
        self.advanced.notify_all();
        self.work.notify_all();
    }

    /// Notes a committed batch.
    pub fn committed_up_to(&self, seq: Seq) {
        let mut state = self.state.lock();
        self.committed.store(seq.0, Ordering::Release);
        if state.is_idle {
            state.is_idle = false;
            self.work.notify_one();
        }
    }

    /// Notes that everything up to `seq` is durable.
    pub fn durable_up_to(&self, seq: Seq) {
        let state = self.state.lock();
        if seq > self.durable() {
            self.durable.store(seq.0, Ordering::Release);
            drop(state);
            self.advanced.notify_all();
        }
    }

    /// Waits until everything up to `seq` is durable. What is not committed yet is not waited for.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`] if it never will be; [`FsError::TimedOut`] past the deadline.
    pub fn wait(&self, seq: Seq, deadline: Instant) -> Result<(), FsError> {
        if self.durable() >= seq {
            return Ok(());
        }
        let mut state = self.state.lock();
        let seq = seq.min(self.committed());
        state.waiting += 1;
        self.work.notify_one();
        while self.durable() < seq && state.failure.is_none() && !state.is_stopping {
            if self.advanced.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.waiting -= 1;
        match &state.failure {
            _ if self.durable() >= seq => Ok(()),
            Some(reason) => Err(FsError::Io(reason.clone())),
            None if state.is_stopping => Err(FsError::TryAgain("the master is stopping")),
            None => Err(FsError::TimedOut("the master's log was not synced in time")),
        }
    }

    /// Ends the sync thread after one more sync.
    pub fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.work.notify_all();
    }

    /// Syncs `store` whenever that is needed, until [`Self::stop`]; `synced` is told how long each sync took.
    pub fn run(&self, store: &Arc<dyn MetaStore>, interval: Duration, synced: impl Fn(Duration)) {
        loop {
            let is_last = self.wait_for_work(interval);
            if self.failure().is_some() {
                return;
            }
            let started = Instant::now();
            match store.sync() {
                Ok(seq) => {
                    synced(started.elapsed());
                    self.durable_up_to(seq);
                }
                Err(error) => return self.fail(&error),
            }
            if is_last {
                self.advanced.notify_all();
                return;
            }
        }
    }

    /// Waits until there is something to sync and the time for it has come. Returns whether it is the last time.
    fn wait_for_work(&self, interval: Duration) -> bool {
        let mut state = self.state.lock();
        while self.committed() == self.durable() && !state.is_stopping && state.failure.is_none() {
            state.is_idle = true;
            self.work.wait(&mut state);
        }
        state.is_idle = false;
        let until = Instant::now() + interval;
        while state.waiting == 0 && !state.is_stopping && state.failure.is_none() {
            if self.work.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.is_stopping
    }
}

impl From<&StoreError> for FsError {
    fn from(error: &StoreError) -> Self {
        Self::Io(error.to_string())
    }
}
