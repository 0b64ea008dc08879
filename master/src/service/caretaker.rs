//! The caretaker: what has to be done though nobody asks for it. One loop, a bounded piece of each duty at a time.
//!
//! ```text
//! each tick (a pulse long):
//!   deletions that were reported as done  ──▶ records dropped
//!   replicas that are due                 ──▶ delete queues of the nodes (told with the next pulse)
//!   orphans that nobody has open          ──▶ purged, some chunks at a time
//!   truncates that a crash left undone    ──▶ finished, at the primary if a chunk is to be zeroed
//!   sessions whose lease ran out          ──▶ ended
//!   replicas                              ──▶ looked after: core::care_loop counts, repairs, drains, scrubs, discards
//!   gauges                                ──▶ set
//! ```
//!
//! [`plan_reclaim`] and the planners of `core` only plan; [`Caretaker::tick`] carries out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_proto::{ChunkId, FsError, MonoMs, NodeId, Seq};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::care_world::{ServiceWorld, Shown};
use super::metrics::{CareGauges, Gauges, NodeGauges};
use super::{Shared, care_world, cut};
use crate::core::care::ReclaimEntry;
use crate::core::care_loop::{Care, CareSettings};
use crate::core::fleet::FleetNode;
use crate::core::node_table::{NodeState, NodeTable};
use crate::core::orders::Duty;

/// Due entries looked at in one tick; the next tick goes on after them.
const RECLAIM_ENTRIES: usize = 2_000;
/// Deletions recorded in one step: some milliseconds of the executor's time.
const DONE_AT_ONCE: usize = 500;
/// Chunks of orphans handed to reclaim in one step, and steps in one tick.
const PURGE_CHUNKS: usize = 512;
const PURGE_STEPS: usize = 8;
/// Truncates finished in one tick.
const CUTS: usize = 16;
/// Runs the caretaker until `stop` says so.
pub async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(shared.config.pulse_ms.clamp(10, 1_000)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut caretaker = Caretaker::new(Arc::clone(&shared));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stopping| *stopping) => return,
        }
        // The executor's calls block.
        match tokio::task::spawn_blocking(move || {
            caretaker.tick();
            caretaker
        })
        .await
        {
            Ok(back) => caretaker = back,
            Err(error) => {
                // A bug in one duty; the others are still needed.
                tracing::error!(%error, "the caretaker broke and begins anew");
                caretaker = Caretaker::new(Arc::clone(&shared));
            }
        }
    }
}

/// The state of the loop.
struct Caretaker {
    shared: Arc<Shared>,
    states: BTreeMap<NodeId, NodeState>,
    /// What went wrong last, so that a lasting trouble is logged once.
    trouble: BTreeMap<&'static str, FsError>,
    /// The thread that finishes truncates, while there are any.
    finishing: Option<JoinHandle<Result<(), FsError>>>,
    /// Tells it that the master stops.
    stopping: Arc<AtomicBool>,
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl Caretaker {
    fn new(shared: Arc<Shared>) -> Self {
        // After a break it begins anew: what it knew can be read off the records again.
        *shared.care.care.lock() = None;
        Self { shared, states: BTreeMap::new(), trouble: BTreeMap::new(), finishing: None, stopping: Arc::default() }
    }

    /// Does a bounded piece of each duty. A duty that fails does not keep the others from their turn.
    fn tick(&mut self) {
        let now = self.shared.clock.mono();
        self.watch_nodes(now);
        let result = self.record_deletions();
        self.note("recording deletions", result);
        let result = self.order_deletions(now);
        self.note("ordering deletions", result);
        let result = self.purge_orphans();
        self.note("purging orphans", result);
        let result = self.finish_cuts();
        self.note("finishing truncates", result);
        let result = self.shared.executor.expire_sessions().map(|ended| {
            if ended > 0 {
                tracing::info!(sessions = ended, "sessions ended, their lease ran out");
            }
        });
        self.note("ending sessions", result);
        let result = self.care_for_replicas(now);
        self.note("caring for replicas", result);
        self.set_gauges(now);
    }

    fn note(&mut self, duty: &'static str, result: Result<(), FsError>) {
        match result {
            Ok(()) => {
                if self.trouble.remove(duty).is_some() {
                    tracing::info!(duty, "works again");
                }
            }
            Err(error) => {
                if self.trouble.get(duty) != Some(&error) {
                    tracing::warn!(duty, %error, "failed, will be tried again");
                }
                self.trouble.insert(duty, error);
            }
        }
    }

    /// Logs who came and who went.
    fn watch_nodes(&mut self, now: MonoMs) {
        let states: BTreeMap<NodeId, NodeState> = {
            let table = self.shared.nodes.read();
            table.iter().map(|(id, _)| (id, table.state(id, now))).collect()
        };
        for (node, state) in &states {
            match (self.states.get(node), state) {
                (Some(before), after) if before == after => {}
                (None, NodeState::Offline) | (_, NodeState::Online) => {
                    tracing::info!(%node, state = state.word(), "chunk server");
                }
                _ => tracing::warn!(%node, state = state.word(), "chunk server"),
            }
        }
        self.states = states;
    }

    fn record_deletions(&self) -> Result<(), FsError> {
        let done = self.shared.nodes.write().take_deleted();
        // What fails here is ordered again, and answered again: deleting is idempotent.
        for (node, chunks) in done {
            for some in chunks.chunks(DONE_AT_ONCE) {
                self.shared.executor.reclaim_done(node, some)?;
            }
        }
        Ok(())
    }

    fn order_deletions(&self, now: MonoMs) -> Result<(), FsError> {
        let due = self.shared.executor.reclaim_due(RECLAIM_ENTRIES)?;
        let plan = plan_reclaim(&due, &self.shared.nodes.read(), now);
        if plan.is_empty() {
            return Ok(());
        }
        // An unlink that a power cut takes back must find its data: nobody deletes before it is on stable media.
        self.shared.executor.wait_durable(Seq(0))?;
        let mut table = self.shared.nodes.write();
        for (node, chunks) in plan {
            table.order_deletions(node, chunks);
        }
        Ok(())
    }

    fn purge_orphans(&self) -> Result<(), FsError> {
        for _ in 0..PURGE_STEPS {
            let progress = self.shared.executor.purge_orphans(PURGE_CHUNKS)?;
            if !progress.more {
                break;
            }
        }
        Ok(())
    }

    /// Finishes truncates on a thread of its own: each can wait seconds for its primary, and the other duties go on.
    fn finish_cuts(&mut self) -> Result<(), FsError> {
        if let Some(running) = self.finishing.take() {
            if !running.is_finished() {
                self.finishing = Some(running);
                return Ok(());
            }
            running.join().unwrap_or_else(|_| Err(FsError::Io("the thread that finishes truncates broke".into())))?;
        }
        let cuts = self.shared.executor.pending_cuts(CUTS)?;
        if cuts.is_empty() {
            return Ok(());
        }
        let (shared, stopping) = (Arc::clone(&self.shared), Arc::clone(&self.stopping));
        let work = move || {
            let mut result = Ok(());
            for cut in cuts {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                match cut::take_over(&shared, &cut) {
                    Ok(()) => tracing::info!(inode = %cut.inode, "finished a truncate or punch"),
                    // The next ones may be at other chunk servers.
                    Err(error) => result = Err(error),
                }
            }
            result
        };
        let spawned = std::thread::Builder::new().name("master-cuts".into()).spawn(work);
        self.finishing = Some(spawned.map_err(|error| FsError::Io(error.to_string()))?);
        Ok(())
    }

    /// Looks after the replicas: counts, repairs, drains, evens out, scrubs and discards.
    fn care_for_replicas(&self, now: MonoMs) -> Result<(), FsError> {
        let shared = &self.shared;
        let control = shared.executor.control();
        let nodes = FleetNode::all(&shared.nodes.read(), now);
        let inbox = std::mem::take(&mut *control.inbox.lock());
        let mut board = shared.care.care.lock();
        let care = board.get_or_insert_with(|| Care::new(CareSettings::of(shared)));
        let result = care.tick(now, nodes, inbox, &mut ServiceWorld { shared });
        for event in care.take_events() {
            care_world::tell(&event, &shared.metrics);
        }
        let count = care.counts();
        let gauges = CareGauges {
            count: count.clone(),
            repair_queue: care.repair_queue(),
            orders: {
                let orders = control.orders.lock();
                Duty::ALL.map(|duty| (duty, orders.count_of(duty))).into()
            },
            frozen: care.inventory().frozen().count(),
            unknown: care.inventory().unknown(),
            ..CareGauges::default()
        };
        let counted = care.census().finished_count();
        drop(board);
        let is_new = {
            let mut shown = shared.care.shown.lock();
            let is_new = shown.counted != counted;
            *shown = Shown { count: count.clone(), counted };
            is_new
        };
        let mut table = shared.nodes.write();
        if is_new {
            table.set_recorded_replicas(&count.replicas);
        }
        let draining = table.iter().filter(|(_, node)| node.is_draining).count();
        let fenced = table.fences().sessions().len();
        drop(table);
        shared.metrics.set_care(&CareGauges { draining, fenced, ..gauges });
        result
    }

    fn set_gauges(&self, now: MonoMs) {
        let shared = &self.shared;
        let (seq, durable_seq) = shared.executor.seqs();
        let nodes = {
            let table = shared.nodes.read();
            let gauges = table.iter().map(|(id, node)| NodeGauges {
                id,
                address: node.facts.data_address.clone(),
                state: table.state(id, now),
                capacity_bytes: node.capacity_bytes(),
                free_bytes: node.free_bytes(),
            });
            gauges.collect()
        };
        shared.metrics.set(&Gauges {
            counters: shared.executor.counters(),
            nodes,
            sessions: shared.executor.session_count() as u64,
            seq: seq.0,
            durable_seq: durable_seq.0,
            uptime: Duration::from_millis(now.since(shared.started)),
        });
    }
}

/// Returns what to tell which node to delete: everything that is due, as far as the node is there to hear it.
fn plan_reclaim(due: &[ReclaimEntry], table: &NodeTable, now: MonoMs) -> BTreeMap<NodeId, Vec<ChunkId>> {
    let mut plan: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for entry in due {
        for node in entry.nodes.iter().filter(|node| table.state(**node, now) != NodeState::Offline) {
            plan.entry(*node).or_default().push(entry.chunk);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use dfs_proto::{BootSession, UnixNanos};

    use super::*;
    use crate::core::care::NodeFacts;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn deletions_are_planned_for_nodes_that_are_there() {
        let mut table = NodeTable::new(5_000, 90_000);
        table.restore([(NodeId(3), NodeFacts::default())]);
        for (id, at) in [(1, 100_000), (2, 90_000)] {
            table.register(NodeId(id), NodeFacts::default(), BootSession(1), vec![], MonoMs(at));
        }
        let entry = |chunk, ids: &[u32]| ReclaimEntry { chunk: ChunkId(chunk), due: UnixNanos(0), nodes: nodes(ids) };
        let due = [entry(7, &[1, 2, 3]), entry(8, &[3, 9]), entry(9, &[2])];
        let plan = plan_reclaim(&due, &table, MonoMs(100_000));
        let expected = [
            (NodeId(1), vec![ChunkId(7)]),
            // Its lease has run out, but it was heard of lately: it may delete.
            (NodeId(2), vec![ChunkId(7), ChunkId(9)]),
        ];
        assert_eq!(plan, expected.into());
    }
}

#[cfg(test)]
#[path = "caretaker_tests.rs"]
mod with_an_executor;
