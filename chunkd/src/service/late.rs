//! What is left to do for calls that were replied to: answers of servers that are being filled, above all.
//!
//! A few threads, made when they are needed. If all are busy, whoever has something to leave does it itself, so what is
//! left is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::call::Call;
use super::replica::Replica;
use super::shared::Shared;
use crate::core::message::{CallId, Effect};

/// Threads, all together.
const THREADS_MAX: usize = 16;
/// Calls that wait for a thread.
const QUEUE_MAX: usize = 64;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    queue: VecDeque<Call>,
    threads: usize,
    idle: usize,
}

/// Calls that were replied to, and the threads that end them.
#[derive(Default)]
pub(super) struct Late {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Late {
    /// Ends `call` in the background, or here if there is no thread left.
    pub fn take(&self, call: Call) {
        let mut state = self.inner.state.lock();
        if state.queue.len() >= QUEUE_MAX {
            drop(state);
            call.finish();
            return;
        }
        state.queue.push_back(call);
        if state.idle >= state.queue.len() || state.threads >= THREADS_MAX {
            drop(state);
            self.inner.arrived.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let inner = Arc::clone(&self.inner);
        let spawned = std::thread::Builder::new().name("dfs-chunkd-late".into()).spawn(move || inner.run());
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for what is left of a call");
            let left = {
                let mut state = self.inner.state.lock();
                state.threads -= 1;
                std::mem::take(&mut state.queue)
            };
            left.into_iter().for_each(Call::finish);
        }
    }

    /// Carries out effects of calls that have no thread any more.
    pub fn take_strays(
        &self,
        shared: &Arc<Shared>,
        replica: &Arc<Replica>,
        strays: BTreeMap<CallId, VecDeque<Effect>>,
    ) {
        for (id, mut effects) in strays {
            effects.retain(|effect| !matches!(effect, Effect::Reply { .. } | Effect::Expire { .. }));
            if !effects.is_empty()
                && let Some(call) = Call::stray(shared, replica, id, effects)
            {
                self.take(call);
            }
        }
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(call) = state.queue.pop_front() {
                drop(state);
                // A panic is the call's own: its replica is told by its drop.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.finish()));
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.arrived.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
