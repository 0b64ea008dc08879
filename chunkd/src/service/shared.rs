//! What all threads of a chunk server share.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dfs_proto::env::{Clock, SystemClock};
use dfs_proto::grant::GrantKey;
use dfs_proto::wire::{Identity, pb};
use dfs_proto::{BootSession, ClusterId, FsError, MonoMs, NodeId, SessionId};
use parking_lot::{Mutex, RwLock};

use super::metrics::Metrics;
use super::peers::Peers;
use super::replicas::Replicas;
use crate::core::admission::Member;
use crate::core::lease::NodeLease;
use crate::store::StoreError;
use crate::store::replica_store::ReplicaStore;

/// After a member said that it is full, writes to its chunks that need room are refused without asking it for this long.
/// What it refuses while others take it must be brought to it by the next activation all the same, and eats up its reserve;
/// so afterwards it is asked alone, until it takes a write.
const FULL_MS: u64 = 5_000;

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
    pub metrics: Metrics,
    pub boot: BootSession,
    pub op_timeout: Duration,
    pub membership: RwLock<Option<Membership>>,
    pub lease: Mutex<NodeLease>,
    full: Mutex<BTreeMap<NodeId, MonoMs>>,
    failure: OnceLock<String>,
}

impl Shared {
    pub fn new(store: ReplicaStore, open_files_max: usize, op_timeout: Duration, boot: BootSession) -> Self {
        Self {
            store,
            replicas: Replicas::new(open_files_max),
            peers: Peers::default(),
            metrics: Metrics::new(),
            boot,
            op_timeout,
            membership: RwLock::new(None),
            lease: Mutex::default(),
            full: Mutex::default(),
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

    /// Returns what the master told, or that it has not yet.
    pub fn membership(&self) -> Result<Membership, FsError> {
        self.membership.read().clone().ok_or(FsError::TryAgain("this server has not registered yet"))
    }

    /// Returns what this server says of itself to whoever connects and to peers.
    pub fn identity(&self) -> Identity {
        let membership = self.membership.read();
        Identity {
            cluster: membership.as_ref().map_or_else(|| self.store.cluster(), |known| Some(known.cluster)),
            role: pb::Role::ChunkServer,
            node: membership.as_ref().map_or(NodeId(0), |known| known.node),
            boot: self.boot,
            session: SessionId(0),
        }
    }

    pub fn now(&self) -> MonoMs {
        SystemClock.mono()
    }

    pub fn has_lease(&self) -> bool {
        self.lease.lock().is_valid(self.now())
    }

    /// Checks the node lease.
    pub fn check_lease(&self) -> Result<(), FsError> {
        if self.has_lease() { Ok(()) } else { Err(FsError::TryAgain("this server has no valid lease")) }
    }

    /// Returns when a request that begins now must have ended.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.op_timeout
    }

    /// Returns when to give a silent peer up: soon enough to try again before `deadline`.
    pub fn attempt_deadline(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.op_timeout / 3)
    }

    /// Notes that `node` refused a write for want of room.
    pub fn note_full(&self, node: NodeId) {
        self.full.lock().insert(node, self.now().plus(FULL_MS));
    }

    /// Notes that `node` took a write that needed room.
    pub fn note_room(&self, node: NodeId) {
        self.full.lock().remove(&node);
    }

    /// Returns those of `members` that were full when they were last asked for room, and not a moment ago: they are to be
    /// asked before anyone else. None as a rule.
    ///
    /// # Errors
    ///
    /// [`FsError::NoSpace`] if one of them was asked a moment ago.
    pub fn suspects(&self, members: &[Member]) -> Result<Vec<Member>, FsError> {
        let full = self.full.lock();
        if full.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        let mut suspects = Vec::new();
        for member in members {
            match full.get(&member.node) {
                Some(until) if *until > now => return Err(FsError::NoSpace),
                Some(_) => suspects.push(member.clone()),
                None => {}
            }
        }
        Ok(suspects)
    }
}

/// Returns what a caller is told of a failure of the store.
pub(super) fn store_failure(error: StoreError) -> FsError {
    match error {
        StoreError::NoSpace => FsError::NoSpace,
        StoreError::Deleted => FsError::Stale("the chunk was deleted"),
        StoreError::Open(_)
        | StoreError::Read(_)
        | StoreError::Write(_)
        | StoreError::Fenced(_)
        | StoreError::OtherFormat(_) => FsError::NoReplica(format!("this server's disk: {error}")),
        StoreError::BadFile(reason) => FsError::Corrupt(reason),
    }
}
