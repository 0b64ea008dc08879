//! What all threads of a chunk server share.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::env::{Clock, SystemClock};
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::{ChangeKind, ChangeRequest};
use dfs_proto::wire::{Identity, pb};
use dfs_proto::{BootSession, ChunkId, ClusterId, FsError, MonoMs, NodeId, SessionId};
use parking_lot::{Mutex, RwLock};

use super::budget::Budgets;
use super::fences::Fences;
use super::late::Late;
use super::master_link::MasterLink;
use super::metrics::Metrics;
use super::orders::Orders;
use super::peers::Peers;
use super::replicas::Replicas;
use crate::core::lease::NodeLease;
use crate::core::message::{CallId, Context, Event, MasterAnswer};
use crate::store::StoreError;
use crate::store::replica_store::{OpenReplica, ReplicaStore};

/// What the master told at registration.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub key: GrantKey,
}

/// The state of one chunk server.
pub(super) struct Shared {
    pub store: ReplicaStore,
    pub replicas: Replicas,
    pub peers: Peers,
    pub master: MasterLink,
    pub metrics: Metrics,
    pub fences: Fences,
    pub orders: Orders,
    pub late: Late,
    pub budgets: Budgets,
    pub op_timeout: Duration,
    pub lease: Mutex<NodeLease>,
    membership: RwLock<Option<Membership>>,
    node: AtomicU32,
    boot: AtomicU64,
    calls: AtomicU64,
    steps: AtomicU64,
    secret: RandomState,
    damaged: Mutex<BTreeSet<ChunkId>>,
    failure: OnceLock<String>,
}

impl Shared {
    pub fn new(
        store: ReplicaStore,
        master: MasterLink,
        open_files_max: usize,
        op_timeout: Duration,
        boot: BootSession,
    ) -> Self {
        Self {
            store,
            replicas: Replicas::new(open_files_max),
            peers: Peers::default(),
            master,
            metrics: Metrics::new(),
            fences: Fences::default(),
            orders: Orders::default(),
            late: Late::default(),
            budgets: Budgets::default(),
            op_timeout,
            lease: Mutex::default(),
            membership: RwLock::new(None),
            node: AtomicU32::new(0),
            boot: AtomicU64::new(boot.0),
            calls: AtomicU64::new(1),
            steps: AtomicU64::new(0),
            secret: RandomState::new(),
            damaged: Mutex::default(),
            failure: OnceLock::new(),
        }
    }

    /// Notes that this server cannot go on, and why. The first reason counts.
    pub fn fail(&self, reason: String) {
        let _ = self.failure.set(reason);
    }

    /// Returns why this server cannot go on, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Takes over what the master told.
    pub fn join(&self, membership: Membership) {
        self.node.store(membership.node.0, Ordering::Release);
        *self.membership.write() = Some(membership);
    }

    /// Returns what the master told, or that it has not yet.
    pub fn membership(&self) -> Result<Membership, FsError> {
        self.membership.read().clone().ok_or(FsError::TryAgain("this server has not registered yet"))
    }

    /// Returns the id of this server, 0 until it has registered.
    pub fn node(&self) -> NodeId {
        NodeId(self.node.load(Ordering::Acquire))
    }

    /// Returns the run that this server goes by.
    pub fn boot(&self) -> BootSession {
        BootSession(self.boot.load(Ordering::Acquire))
    }

    /// Goes by another run from now on: for the master the last one has ended, and what was granted to it is void. All
    /// replicas are opened anew, so that nothing of it is left.
    pub fn begin_run(&self, boot: BootSession) {
        tracing::warn!(from = %self.boot(), to = %boot, "this server's run has ended for the master: beginning another one");
        self.boot.store(boot.0, Ordering::Release);
        self.peers.forget_all();
        self.replicas.end_all();
    }

    /// Returns what this server says of itself to whoever connects and to peers.
    pub fn identity(&self) -> Identity {
        let cluster = self.membership.read().as_ref().map(|known| known.cluster);
        Identity {
            cluster: cluster.or_else(|| self.store.cluster()),
            role: pb::Role::ChunkServer,
            node: self.node(),
            boot: self.boot(),
            session: SessionId(0),
        }
    }

    pub fn now(&self) -> MonoMs {
        SystemClock.mono()
    }

    /// Returns `at` on the clock that sockets go by.
    pub fn instant(&self, at: MonoMs) -> Instant {
        Instant::now() + Duration::from_millis(at.since(self.now()))
    }

    /// Returns when a request that begins now must have ended.
    pub fn deadline(&self) -> MonoMs {
        self.now().plus(self.op_timeout.as_millis() as u64)
    }

    /// Returns the name of a new call.
    pub fn next_call(&self) -> CallId {
        CallId(self.calls.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns what the core of a replica is to know in a step.
    pub fn context(&self, open: &OpenReplica) -> Context {
        Context {
            now: self.now(),
            node: self.node(),
            boot: self.boot(),
            lease_until: self.lease.lock().until(),
            disk_room: open.disk.space().1,
            // A keyed hash of a counter: as good as a random number to whoever does not know the key, and no system call.
            random: self.secret.hash_one(self.steps.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub fn has_lease(&self) -> bool {
        self.lease.lock().is_valid(self.now())
    }

    /// Checks the node lease.
    pub fn check_lease(&self) -> Result<(), FsError> {
        if self.has_lease() { Ok(()) } else { Err(FsError::TryAgain("this server has no valid lease")) }
    }

    /// Asks the master for a change of a replica set.
    ///
    /// # Errors
    ///
    /// Nobody knows whether it was done.
    pub fn ask_master(&self, request: &ChangeRequest, until: MonoMs) -> Result<MasterAnswer, FsError> {
        let answer = self.master.change_replicas(request, Duration::from_millis(until.since(self.now())));
        let result = match &answer {
            Ok(answer) if answer.result.is_ok() => "ok",
            Ok(_) => "refused",
            Err(_) => "unknown",
        };
        let kind = match request.kind {
            ChangeKind::Drop { .. } => "drop",
            ChangeKind::Leave => "leave",
            ChangeKind::FinishSync { .. } => "finish_sync",
            ChangeKind::Refresh => "refresh",
        };
        self.metrics.replica_set_changes.with_label_values(&[kind, result]).inc();
        let (answer, membership) = (answer?, self.membership()?);
        Ok(MasterAnswer::opened(answer, |bytes| membership.key.open(bytes)))
    }

    /// Notes that the replica of `chunk` has damaged units, for the next report.
    pub fn note_damaged(&self, chunk: ChunkId) {
        self.damaged.lock().insert(chunk);
    }

    /// Returns the replicas that were found damaged since the last call.
    pub fn take_damaged(&self) -> BTreeSet<ChunkId> {
        std::mem::take(&mut self.damaged.lock())
    }

    /// Logs and counts what happened to a replica.
    pub fn note(&self, open: &OpenReplica, event: &Event) {
        let chunk = open.file.chunk();
        match event {
            Event::Activated { version, copied, doubts } => {
                self.metrics.activations.inc();
                if copied + doubts > 0 {
                    tracing::info!(%chunk, %version, copied, doubts, "made the replicas of a chunk equal");
                }
            }
            Event::Damaged { unit, count, node } => {
                self.metrics.corrupt_units.inc_by((*count).into());
                tracing::error!(%chunk, unit, count, %node, "units are damaged");
            }
            Event::Repaired { unit } => {
                self.metrics.repaired_units.inc();
                tracing::info!(%chunk, unit, "repaired a unit");
            }
            Event::Dropping { node, reason } => {
                self.metrics.dropped_members.inc();
                tracing::warn!(%chunk, %node, reason, "a member was lost: asking the master to drop it");
            }
            Event::Leaving { reason } => tracing::warn!(%chunk, reason, "leaving the replica set of a chunk"),
            Event::Lost => tracing::error!(%chunk, "no member has this chunk any more"),
        }
    }
}

/// Returns what a caller is told of a failure of the store.
pub(super) fn store_failure(error: StoreError) -> FsError {
    match error {
        StoreError::NoSpace => FsError::NoSpace,
        StoreError::Open(_)
        | StoreError::Read(_)
        | StoreError::Write(_)
        | StoreError::Fenced(_)
        | StoreError::OtherFormat(_) => FsError::NoReplica(format!("this server's disk: {error}")),
        StoreError::BadFile(reason) => FsError::Corrupt(reason),
        StoreError::Deleted => FsError::Stale("the replica was deleted"),
    }
}
