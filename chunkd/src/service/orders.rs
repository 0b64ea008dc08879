//! Orders of the master: kept until they are done, their results until the master has them.
//!
//! ```text
//!   a pulse's answer        a thread is free         done        a pulse with the result was answered
//!  ──────────────────▶ Waiting ────────────▶ Running ─────▶ Done ─────────────────────────────────────▶ (forgotten)
//! ```
//!
//! The master repeats an order until it has the result; one that is known is not taken again. Ids are unique within one
//! run of the master: with a new registration all are forgotten, and results of what is still running are dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::replica_set::{Order, OrderKind, OrderOutcome, OrderReport};
use parking_lot::{Condvar, Mutex};

use super::admit::admit;
use super::budget::Pace;
use super::call::Call;
use super::shared::Shared;
use crate::core::message::{ReplicaOrder, Reply, Request};

/// Orders that are carried out at the same time.
const THREADS: usize = 4;
/// Orders that are known; the master repeats those that were left out.
const ORDERS_MAX: usize = 4_096;
/// Results in one pulse; the rest is told by the next ones.
const RESULTS_MAX: usize = 1_000;
/// How long one order may take: filling the largest chunk at the slowest rate that makes sense.
const ORDER_MS: u64 = 15 * 60 * 1_000;

/// The orders of this server.
#[derive(Default)]
pub(super) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stages: BTreeMap<u64, Stage>,
    waiting: VecDeque<Order>,
    /// Counts registrations.
    run: u64,
    is_stopping: bool,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Running,
    Done(Result<OrderReport, FsError>),
}

impl State {
    fn take(&mut self, order: Order) -> bool {
        if self.stages.contains_key(&order.id) || self.stages.len() >= ORDERS_MAX {
            return false;
        }
        self.stages.insert(order.id, Stage::Waiting);
        self.waiting.push_back(order);
        true
    }

    fn next(&mut self) -> Option<(u64, Order)> {
        let order = self.waiting.pop_front()?;
        self.stages.insert(order.id, Stage::Running);
        Some((self.run, order))
    }

    fn done(&mut self, run: u64, id: u64, result: Result<OrderReport, FsError>) {
        if run == self.run {
            self.stages.insert(id, Stage::Done(result));
        }
    }

    fn results(&self) -> Vec<OrderOutcome> {
        let outcome = |(id, stage): (&u64, &Stage)| match stage {
            Stage::Done(result) => Some(OrderOutcome { id: *id, result: result.clone() }),
            Stage::Waiting | Stage::Running => None,
        };
        self.stages.iter().filter_map(outcome).take(RESULTS_MAX).collect()
    }

    fn forget_all(&mut self) {
        self.run += 1;
        self.stages.clear();
        self.waiting.clear();
    }
}

impl Orders {
    /// Takes over those of `orders` that are not known.
    pub fn take(&self, orders: impl IntoIterator<Item = Order>) {
        let mut state = self.state.lock();
        let mut is_any = false;
        for order in orders {
            is_any |= state.take(order);
        }
        if is_any {
            self.changed.notify_all();
        }
    }

    /// Returns results that the master has not acknowledged.
    pub fn results(&self) -> Vec<OrderOutcome> {
        self.state.lock().results()
    }

    /// Notes that the master has these results.
    pub fn acknowledged(&self, results: &[OrderOutcome]) {
        let mut state = self.state.lock();
        for outcome in results {
            state.stages.remove(&outcome.id);
        }
    }

    /// Forgets all orders: they were those of a master that may be another one now.
    pub fn forget_all(&self) {
        self.state.lock().forget_all();
    }

    /// Has the threads end once they are done with what they are at.
    pub fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.changed.notify_all();
    }

    /// Returns whether orders are to end.
    pub fn is_stopping(&self) -> bool {
        self.state.lock().is_stopping
    }

    fn wait(&self) -> Option<(u64, Order)> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopping {
                return None;
            }
            if let Some(next) = state.next() {
                return Some(next);
            }
            self.changed.wait(&mut state);
        }
    }
}

/// Starts the threads that carry orders out, until [`Orders::stop`].
///
/// # Errors
///
/// The operating system's.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    for _ in 0..THREADS {
        let shared = Arc::clone(shared);
        std::thread::Builder::new().name("dfs-chunkd-order".into()).spawn(move || {
            while let Some((run, order)) = shared.orders.wait() {
                let word = word(order.kind);
                let carried_out = std::panic::AssertUnwindSafe(|| carry_out(&shared, &order));
                let result = std::panic::catch_unwind(carried_out)
                    .unwrap_or_else(|_| Err(FsError::Io("a bug: the order's thread panicked".into())));
                let counted = if result.is_ok() { "ok" } else { "failed" };
                shared.metrics.orders.with_label_values(&[word, counted]).inc();
                if let Err(error) = &result {
                    tracing::warn!(order = order.id, chunk = %order.chunk, kind = word, %error, "an order was not carried out");
                }
                shared.orders.state.lock().done(run, order.id, result);
            }
        })?;
    }
    Ok(())
}

fn word(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::Fill { .. } => "fill",
        OrderKind::Scrub { .. } => "scrub",
        OrderKind::HandOver => "hand_over",
        OrderKind::Discard { .. } => "discard",
    }
}

fn carry_out(shared: &Arc<Shared>, order: &Order) -> Result<OrderReport, FsError> {
    let (replica_order, is_scrub) = match order.kind {
        OrderKind::Fill { node } => (ReplicaOrder::Fill { node }, false),
        OrderKind::Scrub { deep } => (ReplicaOrder::Scrub { deep }, true),
        OrderKind::HandOver => (ReplicaOrder::HandOver, false),
        OrderKind::Discard { below } => {
            let is_gone = shared.replicas.discard(&shared.store, order.chunk, below)?;
            return if is_gone {
                Ok(OrderReport::default())
            } else {
                Err(FsError::Stale("the replica is not that old"))
            };
        }
    };
    shared.check_lease()?;
    let membership = shared.membership()?;
    let grant = membership.key.open(&order.grant).ok_or(FsError::Stale("the grant's seal is not ours"))?;
    let (replica, grant) = admit(shared, order.chunk, grant.version, &order.grant)?;
    let request = Request::Order { grant, order: replica_order };
    let deadline = shared.now().plus(ORDER_MS);
    match Call::run(shared, &replica, request, deadline, Some(Pace::new(shared, is_scrub)))? {
        Reply::Order(report) => Ok(report),
        other => Err(FsError::Protocol(format!("an order was replied to with {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{ChunkId, Version};

    use super::*;

    fn order(id: u64) -> Order {
        Order { id, chunk: ChunkId(id), kind: OrderKind::Discard { below: Version(1) }, grant: Default::default() }
    }

    #[test]
    fn an_order_is_carried_out_once_and_its_result_told_until_it_was_heard() {
        let mut state = State::default();
        assert!(state.take(order(1)));
        assert!(!state.take(order(1)), "repeated while it waits");
        let (run, taken) = state.next().expect("one waits");
        assert!(!state.take(order(1)), "repeated while it runs");
        assert!(state.results().is_empty());
        state.done(run, taken.id, Ok(OrderReport::default()));
        assert!(!state.take(order(1)), "repeated while its result is not heard");
        assert_eq!(state.results().len(), 1);
        assert_eq!(state.results().len(), 1, "told again");
        assert!(state.next().is_none());
    }

    #[test]
    fn a_new_run_of_the_master_knows_nothing_of_the_orders_of_the_last() {
        let mut state = State::default();
        state.take(order(1));
        state.take(order(2));
        let (run, taken) = state.next().expect("one waits");
        state.forget_all();
        assert!(state.next().is_none(), "what waited is not wanted any more");
        assert!(state.take(order(1)), "the same id is another order");
        state.done(run, taken.id, Err(FsError::Busy));
        assert!(state.results().is_empty(), "the result of the last run's order is nobody's");
    }
}
