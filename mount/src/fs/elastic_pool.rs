//! Threads for what may wait long: as many as there is waiting, up to a bound, and none when nothing waits.
//!
//! The queue itself has no bound of its own: each job in it stands for a call of a program that waits for its answer, or
//! for one page of an open directory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A thread without work ends after this long.
const IDLE_MAX: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Dropping it lets the jobs that were queued run to their end.
#[derive(Debug)]
pub struct ElasticPool {
    shared: Arc<Shared>,
    threads_max: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads, {} idle, {} queued", self.threads, self.idle, self.queue.len())
    }
}

impl ElasticPool {
    /// Returns a pool of at most `threads_max` threads; none is started yet.
    pub fn new(threads_max: usize) -> Self {
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), ended: Condvar::new() };
        Self { shared: Arc::new(shared), threads_max }
    }

    /// Runs `job` on a thread of the pool, now or when one is free.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() || state.threads >= self.threads_max {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(&self.shared);
        if let Err(error) = std::thread::Builder::new().name("dfs-wait".into()).spawn(move || work(&shared)) {
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            // One of the other threads gets to it. Without any, it is done here: late is better than never.
            if state.threads == 0
                && let Some(job) = state.queue.pop_back()
            {
                drop(state);
                tracing::warn!(%error, "no thread can be made");
                job();
            }
        }
    }

    /// Waits until all jobs are done and all threads have ended. Jobs that are queued later never run.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.is_closed = true;
        self.shared.work.notify_all();
        while state.threads > 0 {
            self.shared.ended.wait(&mut state);
        }
    }
}

impl Drop for ElasticPool {
    fn drop(&mut self) {
        self.shared.state.lock().is_closed = true;
        self.shared.work.notify_all();
    }
}

fn work(shared: &Arc<Shared>) {
    let _end = Ended(shared);
    // Taken after `_end`, so that it is let go of before.
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            job();
            state = shared.state.lock();
            continue;
        }
        if state.is_closed {
            return;
        }
        state.idle += 1;
        let waited = shared.work.wait_for(&mut state, IDLE_MAX);
        state.idle -= 1;
        if waited.timed_out() && state.queue.is_empty() {
            return;
        }
    }
}

/// Takes a thread off the count when it ends, by a panic too.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().threads -= 1;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_that_wait_do_not_keep_others_waiting() {
        let pool = ElasticPool::new(8);
        let all = Arc::new(Barrier::new(8));
        for _ in 0..8 {
            let all = Arc::clone(&all);
            pool.spawn(move || {
                all.wait();
            });
        }
        pool.close();
    }

    #[test]
    fn every_job_runs_though_the_threads_are_few() {
        let (pool, done) = (ElasticPool::new(2), Arc::new(AtomicUsize::new(0)));
        for _ in 0..1_000 {
            let done = Arc::clone(&done);
            pool.spawn(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.close();
        assert_eq!(done.load(Ordering::Relaxed), 1_000);
    }
}
