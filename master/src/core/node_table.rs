//! The chunk servers as the master sees them now (interface for the executor; the owner of this file writes the body).
//!
//! The executor and the clients' threads call exactly these three besides what the node service calls:
//! `place`, `location`, `space`. And at a start, `Master::start` calls `restore(known_nodes)` once.

use dfs_proto::{BootSession, FsError, MonoMs, NodeId};

use super::care::NodeFacts;

/// The chunk servers as the master sees them now.
#[derive(Debug, Default)]
pub struct NodeTable {}

/// Where a chunk server is, and whether it may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLocation {
    /// `host:port` of its data plane.
    pub address: String,
    /// The run of its process that registered last; grants name it.
    pub boot: BootSession,
    /// Its node lease runs.
    pub lease_valid: bool,
    /// A sign of life within the offline verdict.
    pub online: bool,
}

/// Bytes over all online servers, raw (not divided by replicas).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Capacity.
    pub total_bytes: u64,
    /// Free for replicas.
    pub free_bytes: u64,
}

#[allow(unused_variables)]
impl NodeTable {
    /// Puts in the servers known from earlier runs; they are offline until they register.
    pub fn restore(&mut self, known: Vec<(NodeId, NodeFacts)>) {}

    /// Chooses distinct servers for a new chunk, the primary first: `replicas` of them, or fewer (but at least 2, or 1
    /// if `replicas` is 1) if not more are fit.
    ///
    /// # Errors
    ///
    /// [`FsError::NoSpace`] if servers are alive but full, [`FsError::NoReplica`] if too few are alive.
    pub fn place(&self, seed: u64, replicas: usize, now: MonoMs) -> Result<Vec<NodeId>, FsError> {
        Err(FsError::NoReplica("no chunk server is known".into()))
    }

    /// Returns where `node` is.
    pub fn location(&self, node: NodeId, now: MonoMs) -> Option<NodeLocation> {
        None
    }

    /// Returns the space of all online servers.
    pub fn space(&self, now: MonoMs) -> Space {
        Space::default()
    }
}
