//! The threads of the data path: pushers, readers ahead, and the timer that bounds the age of buffered writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_proto::InodeId;
use parking_lot::{Condvar, Mutex};

use super::state::{FileState, Shared};
use super::table::HandleId;

/// How often the ages of buffered writes are looked at.
const TICK: Duration = Duration::from_millis(100);
/// And while pieces wait for another attempt.
const TICK_RETRY: Duration = Duration::from_millis(10);

/// The queue of files that pushers work on, and the list of files that have something buffered.
#[derive(Default)]
pub(super) struct PushPool {
    queue: Mutex<PushQueue>,
    work: Condvar,
    timer: Condvar,
    has_parked: AtomicBool,
}

#[derive(Default)]
struct PushQueue {
    files: VecDeque<Arc<FileState>>,
    queued: BTreeSet<InodeId>,
    listed: BTreeMap<InodeId, Arc<FileState>>,
    is_stopping: bool,
}

impl PushPool {
    /// Makes a pusher look at `file`.
    pub(super) fn kick(&self, file: &Arc<FileState>) {
        let mut queue = self.queue.lock();
        if queue.queued.insert(file.inode) {
            queue.files.push_back(Arc::clone(file));
            drop(queue);
            self.work.notify_one();
        }
    }

    /// Has the timer look after `file`, until it is clean.
    pub(super) fn list(&self, file: &Arc<FileState>) {
        self.queue.lock().listed.insert(file.inode, Arc::clone(file));
    }

    /// Undoes [`Self::list`]. Called under the lock of the file's state, so that no write comes in between.
    pub(super) fn unlist(&self, inode: InodeId) {
        self.queue.lock().listed.remove(&inode);
    }

    /// Returns the files that have something buffered.
    pub(super) fn listed(&self) -> Vec<Arc<FileState>> {
        self.queue.lock().listed.values().cloned().collect()
    }

    /// A piece waits for its next attempt: the timer ticks faster.
    pub(super) fn parked(&self) {
        if !self.has_parked.swap(true, Ordering::Relaxed) {
            self.timer.notify_one();
        }
    }

    /// Makes everything that is buffered go now: somebody waits for room.
    pub(super) fn press(&self) {
        for file in self.listed() {
            if file.age_all() {
                self.kick(&file);
            }
        }
    }

    fn next(&self) -> Option<Arc<FileState>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_stopping {
                return None;
            }
            if let Some(file) = queue.files.pop_front() {
                queue.queued.remove(&file.inode);
                return Some(file);
            }
            self.work.wait(&mut queue);
        }
    }

    fn tick(&self) {
        let mut any_parked = false;
        for file in self.listed() {
            match file.tick() {
                Tick::Wait => {}
                Tick::Work { is_parked } => {
                    any_parked |= is_parked;
                    self.kick(&file);
                }
            }
        }
        self.has_parked.store(any_parked, Ordering::Relaxed);
    }

    fn wait_for_tick(&self) -> bool {
        let mut queue = self.queue.lock();
        if !queue.is_stopping {
            let tick = if self.has_parked.load(Ordering::Relaxed) { TICK_RETRY } else { TICK };
            self.timer.wait_for(&mut queue, tick);
        }
        !queue.is_stopping
    }
}

/// What the timer finds at a file.
pub(super) enum Tick {
    /// Nothing is due.
    Wait,
    /// Something is due.
    Work {
        /// Pieces wait for another attempt.
        is_parked: bool,
    },
}

/// The queue of handles whose read-ahead has something to fetch.
#[derive(Default)]
pub(super) struct ReadPool {
    queue: Mutex<ReadQueue>,
    work: Condvar,
}

#[derive(Default)]
struct ReadQueue {
    entries: VecDeque<(Arc<FileState>, HandleId)>,
    is_stopping: bool,
}

impl ReadPool {
    /// Has `count` pieces of a handle's read-ahead fetched.
    pub(super) fn kick(&self, file: &Arc<FileState>, handle: HandleId, count: usize) {
        let mut queue = self.queue.lock();
        for _ in 0..count {
            queue.entries.push_back((Arc::clone(file), handle));
        }
        drop(queue);
        for _ in 0..count {
            self.work.notify_one();
        }
    }

    fn next(&self) -> Option<(Arc<FileState>, HandleId)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_stopping {
                return None;
            }
            if let Some(entry) = queue.entries.pop_front() {
                return Some(entry);
            }
            self.work.wait(&mut queue);
        }
    }
}

/// The running threads; they end when this is dropped.
pub(super) struct Threads {
    shared: Arc<Shared>,
    joins: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let mut threads = Self { shared: Arc::clone(shared), joins: Vec::new() };
        for _ in 0..shared.settings.push_threads.max(1) {
            threads.spawn("dfs-push", |shared| {
                while let Some(file) = shared.pushers.next() {
                    file.work();
                }
            });
        }
        for _ in 0..shared.settings.read_threads.max(1) {
            threads.spawn("dfs-read-ahead", |shared| {
                while let Some((file, handle)) = shared.readers.next() {
                    file.fetch_ahead(handle);
                }
            });
        }
        threads.spawn("dfs-push-timer", |shared| {
            while shared.pushers.wait_for_tick() {
                shared.pushers.tick();
            }
        });
        threads
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(Arc<Shared>) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(shared));
        self.joins.push(thread.expect("a mount that cannot have threads cannot work"));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut queue = self.shared.pushers.queue.lock();
        queue.is_stopping = true;
        queue.files.clear();
        queue.listed.clear();
        drop(queue);
        self.shared.pushers.work.notify_all();
        self.shared.pushers.timer.notify_all();
        let mut queue = self.shared.readers.queue.lock();
        queue.is_stopping = true;
        queue.entries.clear();
        drop(queue);
        self.shared.readers.work.notify_all();
        for join in self.joins.drain(..) {
            // A thread that panicked has said so.
            let _ = join.join();
        }
    }
}
