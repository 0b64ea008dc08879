//! The master's metrics (interface for the executor and the clients' threads; the owner of this file writes the body).

use std::time::{Duration, Instant};

use dfs_proto::FsError;

/// All metrics of one master.
#[derive(Default)]
pub struct MasterMetrics {}

#[allow(unused_variables)]
impl MasterMetrics {
    /// Makes them, in a registry of their own.
    pub fn new() -> Self {
        Self {}
    }

    /// Counts a request and how long it took.
    pub fn observe(&self, op: &'static str, started: Instant, error: Option<&FsError>) {}

    /// Counts a batch of the executor: its requests, and how long the engine's commit took.
    pub fn committed(&self, requests: usize, took: Duration) {}

    /// Counts a sync of the store.
    pub fn synced(&self, took: Duration) {}
}
