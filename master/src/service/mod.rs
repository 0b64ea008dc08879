//! The shell of the master: threads, sockets, clocks and the executor that owns the state.
//!
//! ```text
//! clients (hot plane)   nodes, admin (gRPC)   http   caretaker
//!        └──────────────────┴──────┬───────────┴────────┘
//!                              executor ──▶ core::op ──▶ store
//! ```

#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets, threads, files and the clock")]

pub mod admin;
mod care_calls;
pub mod care_world;
pub mod caretaker;
mod clients;
pub mod config;
pub mod cut;
mod data_dir;
pub mod data_plane;
mod decode;
pub mod executor;
mod fsck;
mod grants;
#[cfg(test)]
mod hostile_tests;
pub mod http;
pub mod master;
pub mod metrics;
mod node_admin;
pub mod nodes;
mod replica_calls;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dfs_proto::env::Clock;
use dfs_proto::grant::GrantKey;
use dfs_proto::{BootSession, ClusterId, MonoMs};
use parking_lot::RwLock;

use crate::core::node_table::NodeTable;
use config::{Deadlines, MasterConfig};
use executor::Executor;

/// What every service of one running master holds.
pub struct Shared {
    /// The settings it was started with.
    pub config: MasterConfig,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Seals grants; handed to each chunk server that registers.
    pub grant_key: GrantKey,
    /// All planes are up, and the master is not stopping.
    pub is_serving: AtomicBool,
    /// This run of the process.
    pub boot: BootSession,
    /// When it started.
    pub started: MonoMs,
    /// The owner of the records.
    pub executor: Arc<Executor>,
    /// What is counted and timed.
    pub metrics: Arc<metrics::MasterMetrics>,
    /// Chunk servers: addresses, leases, space. Never locked while waiting for the executor.
    pub nodes: Arc<RwLock<NodeTable>>,
    /// Calls to the primaries of chunks.
    pub data: data_plane::DataPlane,
    /// The care for replicas, and what pages show of it.
    pub care: care_world::CareBoard,
}
