//! Threads for calls that find the gate shut, apart by what they wait for.
//!
//! Each pool has a bound of its own, so that however many writers wait for dead chunk servers to make room, names are
//! still looked up, and what healthy servers have is still read.

use std::sync::Arc;

use super::ops::WaitsFor;
use crate::fs::elastic_pool::ElasticPool;

/// Calls of one kind that wait at one time beyond those the workers carry out themselves.
const THREADS_MAX: usize = 128;

/// The pools.
#[derive(Clone, Debug)]
pub struct WaitPools {
    master: Arc<ElasticPool>,
    data: Arc<ElasticPool>,
    room: Arc<ElasticPool>,
}

impl Default for WaitPools {
    fn default() -> Self {
        let pool = || Arc::new(ElasticPool::new(THREADS_MAX));
        Self { master: pool(), data: pool(), room: pool() }
    }
}

impl WaitPools {
    /// Returns the pool of those that wait for this.
    pub fn of(&self, waits_for: WaitsFor) -> &Arc<ElasticPool> {
        match waits_for {
            WaitsFor::Master => &self.master,
            WaitsFor::Data => &self.data,
            WaitsFor::Room => &self.room,
        }
    }

    /// Waits until all jobs are done. Jobs that are queued later never run.
    pub fn close(&self) {
        for pool in [&self.room, &self.data, &self.master] {
            pool.close();
        }
    }
}
