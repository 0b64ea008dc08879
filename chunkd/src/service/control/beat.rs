//! Pulses: they renew the lease, carry results to the master, and bring back what it wants done.

use std::sync::Arc;
use std::time::Instant;

use dfs_proto::replica_set::Order;
use dfs_proto::wire::pb;
use dfs_proto::{ChunkId, SessionId};
use tokio::task::JoinHandle;

use super::reports::report;
use super::{Complaint, Registration};
use crate::service::master_link::brief;
use crate::service::shared::Shared;

/// Deletions of one order; the master repeats the others.
const DELETIONS_MAX: usize = 1_000;

/// Pulses and reports until the master does not know us.
pub(super) async fn beat(shared: &Arc<Shared>, registration: Registration) {
    tokio::select! {
        () = pulse(shared, registration) => {}
        () = report(shared, registration) => {}
    }
}

async fn pulse(shared: &Arc<Shared>, registration: Registration) {
    let mut client = shared.master.client();
    let mut deletions = Deletions::default();
    let mut silence = Complaint::default();
    let mut ticks = tokio::time::interval(registration.pulse);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let results = shared.orders.results();
        let request = pb::PulseRequest {
            node: registration.node.0,
            boot_session: shared.boot().0,
            deleted: deletions.done.clone(),
            results: results.iter().map(Into::into).collect(),
            fence_seq: shared.fences.in_force(),
        };
        // Before it is sent: the lease must never outlast the master's idea of it.
        let sent = shared.now();
        match client.pulse(request).await.map(tonic::Response::into_inner) {
            Ok(reply) if reply.known => {
                shared.lease.lock().renew(sent, reply.lease_ms);
                shared.orders.acknowledged(&results);
                shared.fences.tell(reply.fenced.into_iter().map(SessionId), reply.fence_seq);
                take_orders(shared, reply.orders);
                deletions.done.clear();
                deletions.take(shared, reply.delete);
            }
            Ok(_) => return,
            Err(status) => {
                if silence.is_due(Instant::now()) {
                    tracing::warn!(reason = %brief(&status), "the master does not answer a pulse");
                }
            }
        }
        deletions.look().await;
        shared.metrics.lease_valid.set(i64::from(shared.has_lease()));
        shared.metrics.fenced_sessions.set(shared.fences.count() as i64);
    }
}

fn take_orders(shared: &Shared, orders: Vec<pb::Order>) {
    shared.orders.take(orders.into_iter().filter_map(|order| match Order::try_from(order) {
        Ok(order) => Some(order),
        Err(error) => {
            // A newer master's: it sees that nothing comes of it.
            tracing::debug!(%error, "an order is not understood");
            None
        }
    }));
}

/// Deletions of replicas that no chunk refers to.
#[derive(Default)]
struct Deletions {
    under_way: Option<JoinHandle<Vec<u64>>>,
    done: Vec<u64>,
}

impl Deletions {
    /// Begins with `orders`, unless earlier ones are under way: the master repeats them.
    fn take(&mut self, shared: &Arc<Shared>, mut orders: Vec<u64>) {
        if self.under_way.is_some() || orders.is_empty() {
            return;
        }
        orders.truncate(DELETIONS_MAX);
        let shared = Arc::clone(shared);
        self.under_way = Some(tokio::task::spawn_blocking(move || {
            orders.retain(|chunk| {
                let result = shared.replicas.delete(&shared.store, ChunkId(*chunk));
                if let Err(error) = &result {
                    tracing::warn!(chunk, %error, "cannot delete a replica");
                }
                result.is_ok()
            });
            orders
        }));
    }

    /// Takes over what has been deleted.
    async fn look(&mut self) {
        if let Some(done) = self.under_way.take_if(|task| task.is_finished()) {
            self.done = done.await.unwrap_or_default();
        }
    }
}
