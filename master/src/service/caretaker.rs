//! The caretaker: what has to be done though nobody asks for it. One loop, a bounded piece of each duty at a time.
//!
//! ```text
//! each tick (a pulse long):
//!   deletions that were reported as done  ──▶ records dropped
//!   replicas that are due                 ──▶ delete queues of the nodes (told with the next pulse)
//!   orphans that nobody has open          ──▶ purged, some chunks at a time
//!   truncates that a crash left undone    ──▶ finished, at the primary if a chunk is to be zeroed
//!   sessions whose lease ran out          ──▶ ended
//!   chunk records, some thousand of them  ──▶ counted: too few online replicas, replicas by node
//!   gauges                                ──▶ set
//! ```
//!
//! [`plan_reclaim`] and [`Census`] only plan and count; [`Caretaker::tick`] carries out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, MonoMs, NodeId, Seq};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::metrics::{Gauges, NodeGauges};
use super::{Shared, cut};
use crate::core::care::{ChunkFacts, ReclaimEntry};
use crate::core::node_table::{NodeState, NodeTable};

/// Due entries looked at in one tick; the next tick goes on after them.
const RECLAIM_ENTRIES: usize = 2_000;
/// Deletions recorded in one step: some milliseconds of the executor's time.
const DONE_AT_ONCE: usize = 500;
/// Chunks of orphans handed to reclaim in one step, and steps in one tick.
const PURGE_CHUNKS: usize = 512;
const PURGE_STEPS: usize = 8;
/// Truncates finished in one tick.
const CUTS: usize = 16;
/// Chunk records read from the executor at once: about a millisecond of its time.
const CENSUS_PAGE: usize = 512;
/// Pages read in one tick.
const CENSUS_PAGES: usize = 8;
/// A new count of the chunk records begins this long after the one before began, or when a node comes or goes.
const CENSUS_PERIOD_MS: u64 = 10_000;

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
    census: Census,
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
        Self {
            shared,
            census: Census::default(),
            states: BTreeMap::new(),
            trouble: BTreeMap::new(),
            finishing: None,
            stopping: Arc::default(),
        }
    }

    /// Does a bounded piece of each duty. A duty that fails does not keep the others from their turn.
    fn tick(&mut self) {
        let now = self.shared.clock.mono();
        let nodes_changed = self.watch_nodes(now);
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
        let result = self.count_chunks(now, nodes_changed);
        self.note("counting chunks", result);
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

    /// Logs who came and who went. Returns whether anybody did.
    fn watch_nodes(&mut self, now: MonoMs) -> bool {
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
        let changed = states != self.states;
        self.states = states;
        changed
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

    fn count_chunks(&mut self, now: MonoMs, nodes_changed: bool) -> Result<(), FsError> {
        self.census.begin_if_due(now, nodes_changed);
        for _ in 0..CENSUS_PAGES {
            let Some(after) = self.census.next_page() else { break };
            let page = self.shared.executor.chunk_page(after, CENSUS_PAGE)?;
            let states = &self.states;
            let is_online = |node: NodeId| states.get(&node) == Some(&NodeState::Online);
            if self.census.add(&page, page.len() < CENSUS_PAGE, is_online) {
                self.shared.nodes.write().set_recorded_replicas(self.census.replicas());
            }
        }
        self.shared.metrics.set_under_replicated(self.census.under_replicated());
        Ok(())
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

/// A count of all chunk records, a page at a time.
#[derive(Debug, Default)]
struct Census {
    running: Option<Count>,
    begun: Option<MonoMs>,
    finished: Count,
}

#[derive(Debug, Default)]
struct Count {
    after: Option<(InodeId, ChunkIndex)>,
    under_replicated: u64,
    replicas: BTreeMap<NodeId, u64>,
}

impl Census {
    /// Begins a new count if it is time, or at once (dropping the running one) if the nodes have changed.
    fn begin_if_due(&mut self, now: MonoMs, nodes_changed: bool) {
        let is_due = self.begun.is_none_or(|begun| now.since(begun) >= CENSUS_PERIOD_MS);
        if nodes_changed || (self.running.is_none() && is_due) {
            self.running = Some(Count::default());
            self.begun = Some(now);
        }
    }

    /// Returns after which record the next page begins, or `None` if nothing is to be counted.
    #[allow(clippy::option_option, reason = "a page after no record is the first one")]
    fn next_page(&self) -> Option<Option<(InodeId, ChunkIndex)>> {
        self.running.as_ref().map(|count| count.after)
    }

    /// Counts a page. Returns whether that finished the count.
    fn add(&mut self, page: &[ChunkFacts], is_last: bool, is_online: impl Fn(NodeId) -> bool) -> bool {
        let Some(count) = &mut self.running else { return false };
        for chunk in page {
            let online = chunk.in_sync.iter().filter(|node| is_online(**node)).count();
            if online < chunk.wanted as usize {
                count.under_replicated += 1;
            }
            for node in chunk.in_sync.iter().chain(&chunk.syncing) {
                *count.replicas.entry(*node).or_default() += 1;
            }
            count.after = Some((chunk.inode, chunk.index));
        }
        if is_last {
            self.finished = self.running.take().unwrap_or_default();
        }
        is_last
    }

    /// Returns the chunks with too few in-sync replicas online: of the last whole count, or of the running one if that
    /// has found more already.
    fn under_replicated(&self) -> u64 {
        let running = self.running.as_ref().map_or(0, |count| count.under_replicated);
        self.finished.under_replicated.max(running)
    }

    /// Returns the replicas by node, of the last whole count.
    fn replicas(&self) -> &BTreeMap<NodeId, u64> {
        &self.finished.replicas
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{BootSession, UnixNanos, Version};

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

    fn chunk(inode: u64, index: u32, in_sync: &[u32], syncing: &[u32]) -> ChunkFacts {
        ChunkFacts {
            inode: InodeId(inode),
            index: ChunkIndex(index),
            chunk: ChunkId(inode * 10 + u64::from(index)),
            version: Version(1),
            primary: NodeId(in_sync[0]),
            in_sync: nodes(in_sync),
            syncing: nodes(syncing),
            stale: vec![],
            is_written: true,
            set_seq: Seq(1),
            seq: Seq(1),
            wanted: 3,
            chunk_size_log2: 26,
        }
    }

    #[test]
    fn a_census_counts_page_by_page() {
        let mut census = Census::default();
        let is_online = |node: NodeId| node != NodeId(3);
        assert_eq!(census.next_page(), None);
        census.begin_if_due(MonoMs(0), false);
        assert_eq!(census.next_page(), Some(None));
        let page = [chunk(1, 0, &[1, 2, 4], &[]), chunk(1, 1, &[1, 2, 3], &[])];
        assert!(!census.add(&page, false, is_online));
        assert_eq!(census.next_page(), Some(Some((InodeId(1), ChunkIndex(1)))));
        assert_eq!(census.under_replicated(), 1, "what was found is shown before the end");
        let page = [chunk(2, 0, &[1, 2], &[4])];
        assert!(census.add(&page, true, is_online));
        assert_eq!((census.under_replicated(), census.next_page()), (2, None));
        let expected = [(1, 3), (2, 3), (3, 1), (4, 2)].map(|(node, count)| (NodeId(node), count));
        assert_eq!(census.replicas(), &expected.into());
    }

    #[test]
    fn a_census_begins_again_after_its_period_or_when_nodes_change() {
        let mut census = Census::default();
        census.begin_if_due(MonoMs(1_000), false);
        assert!(census.add(&[chunk(1, 0, &[1], &[])], true, |_| true));
        census.begin_if_due(MonoMs(10_999), false);
        assert_eq!(census.next_page(), None);
        census.begin_if_due(MonoMs(11_000), false);
        assert_eq!(census.next_page(), Some(None));
        assert_eq!(census.under_replicated(), 1, "the last whole count is shown until there is a new one");
        assert!(census.add(&[], true, |_| true));
        assert_eq!(census.under_replicated(), 0);
        census.begin_if_due(MonoMs(11_001), true);
        assert_eq!(census.next_page(), Some(None));
    }
}

#[cfg(test)]
#[path = "caretaker_tests.rs"]
mod with_an_executor;
