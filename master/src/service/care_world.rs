//! What the care for replicas is lent by a running master, and what becomes of what it tells.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use dfs_proto::replica_set::{Home, OrderKind};
use dfs_proto::{ChunkId, ChunkIndex, FsError, InodeId, NodeId, Seq};
use parking_lot::Mutex;

use super::Shared;
use super::metrics::MasterMetrics;
use crate::core::care::{ChunkFacts, SetChange};
use crate::core::care_loop::{Care, CareSettings, Event, World};
use crate::core::census::Count;
use crate::core::orders::{Duty, Orders};

/// The care for replicas of one master, and what pages show of it.
#[derive(Default)]
pub struct CareBoard {
    /// The care itself; `None` until the first tick. Held for the length of one: not for what must not wait.
    pub care: Mutex<Option<Care>>,
    /// What is shown.
    pub shown: Mutex<Shown>,
    /// A check of the whole file system is under way.
    pub is_checking: AtomicBool,
}

/// What pages show of the care for replicas, as of the last tick.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The counts.
    pub count: Count,
    /// How many whole counts there were; each was begun after the one before had ended.
    pub counted: u64,
}

impl CareSettings {
    /// Returns those that follow from the settings of a master.
    pub(super) fn of(shared: &Shared) -> Self {
        let config = &shared.config;
        Self {
            scrub_period_ms: config.scrub_period_ms,
            unknown_grace_ms: config.unknown_grace_ms,
            // Tests with short leases do not wait long for a count either.
            census_period_ms: (2 * config.lease_ms).min(10_000),
            ..Self::default()
        }
    }
}

/// The records through the executor, each step in its turn.
pub(super) struct ServiceWorld<'a> {
    pub(super) shared: &'a Arc<Shared>,
}

impl World for ServiceWorld<'_> {
    fn chunk_page(&mut self, after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Result<Vec<ChunkFacts>, FsError> {
        self.shared.executor.with(move |state| state.facts_page(after, limit))
    }

    fn chunks(&mut self, homes: &[Home]) -> Result<Vec<Option<ChunkFacts>>, FsError> {
        let homes = homes.to_vec();
        self.shared.executor.with(move |state| state.facts_of(&homes))
    }

    fn change(&mut self, chunk: &ChunkFacts, change: SetChange) -> Result<Option<ChunkFacts>, FsError> {
        // Nobody is granted the new version before it is durable; the plan itself need not wait for that.
        let chunk = chunk.clone();
        self.shared.executor.with(move |state| state.change_facts(&chunk, change))
    }

    fn make_usable(&mut self, home: Home) -> Result<Option<ChunkFacts>, FsError> {
        self.shared.executor.with(move |state| state.usable_facts(home))
    }

    fn grant(&mut self, chunk: &ChunkFacts) -> Result<Option<Bytes>, FsError> {
        match self.shared.executor.grant(chunk.home()) {
            Ok(granted) => Ok(granted.map(|granted| self.shared.grant_key.seal(&granted.grant))),
            Err(error @ FsError::Io(_)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn reclaim(&mut self, node: NodeId, chunk: ChunkId) -> Result<(), FsError> {
        self.shared.executor.with(move |state| state.reclaim_unknown(node, chunk))
    }

    fn may_delete(&mut self) -> bool {
        self.shared.executor.with(|state| Ok(state.may_delete())).unwrap_or(false)
    }

    fn seq(&mut self) -> Seq {
        self.shared.executor.seqs().0
    }

    fn durable(&mut self) -> Seq {
        self.shared.executor.seqs().1
    }

    fn orders<T>(&mut self, work: impl FnOnce(&mut Orders) -> T) -> T {
        work(&mut self.shared.executor.control().orders.lock())
    }
}

/// Logs and counts what was done.
pub(super) fn tell(event: &Event, metrics: &MasterMetrics) {
    match event {
        Event::Changed { home, chunk, change, error } => {
            metrics.set_changed(change.word(), error.as_ref());
            let (inode, index) = (home.inode, home.index);
            match error {
                None => tracing::info!(%chunk, %inode, %index, ?change, "the caretaker changed a replica set"),
                Some(error) => tracing::debug!(%chunk, %inode, %index, ?change, %error, "a change was not made"),
            }
        }
        Event::Finished { home, chunk, node, kind, result } => {
            metrics.ordered(Duty::of(*kind), result);
            let (inode, index) = (home.inode, home.index);
            match result {
                Ok(report) if report.bad_units > 0 => {
                    let (bad_units, repaired_units) = (report.bad_units, report.repaired_units);
                    tracing::warn!(%chunk, %inode, %index, primary = %node, bad_units, repaired_units, "a scrub found damage");
                }
                Ok(report) if matches!(kind, OrderKind::Fill { .. }) => {
                    tracing::info!(%chunk, %inode, %index, %node, ?kind, bytes = report.copied_bytes, "a replica was filled");
                }
                Ok(_) => tracing::debug!(%chunk, %inode, %index, %node, ?kind, "an order was carried out"),
                Err(error) => tracing::warn!(%chunk, %inode, %index, %node, ?kind, %error, "an order failed"),
            }
        }
        Event::Withdrawn { duty } => metrics.withdrawn(*duty),
        Event::Frozen { node, chunk } => {
            tracing::error!(%chunk, %node, "a replica is newer than its record; it is left alone");
        }
        Event::Reclaimed { node, chunk } => {
            tracing::warn!(%chunk, %node, "a replica of a chunk that is not on record is deleted after the usual delay");
        }
        Event::Lost { home, chunk, node } => {
            metrics.lost_replica();
            let (inode, index) = (home.inode, home.index);
            tracing::error!(%chunk, %inode, %index, %node, "a chunk server does not hold a replica that it had in sync");
        }
    }
}
