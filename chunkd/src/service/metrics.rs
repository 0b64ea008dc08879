//! The metrics of a chunk server. Dashboards and alerts use these names.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_telemetry::{LATENCY_BUCKETS_SECONDS, counter, counters, gauge, gauges, registered};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

/// What is asked of a chunk server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Write,
    Read,
    Barrier,
    Zero,
    Extents,
    Activate,
    Prepare,
    PeerBarrier,
    FetchUnits,
    PushUnits,
}

impl Operation {
    const ALL: [(Self, &str); 10] = [
        (Self::Write, "write"),
        (Self::Read, "read"),
        (Self::Barrier, "barrier"),
        (Self::Zero, "zero"),
        (Self::Extents, "extents"),
        (Self::Activate, "activate"),
        (Self::Prepare, "prepare"),
        (Self::PeerBarrier, "peer_barrier"),
        (Self::FetchUnits, "fetch_units"),
        (Self::PushUnits, "push_units"),
    ];

    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The metrics of one server.
pub(super) struct Metrics {
    pub registry: Registry,
    /// By [`Operation`], so that a request does not look labels up.
    requests: Vec<(IntCounter, Histogram)>,
    errors: IntCounterVec,
    pub read_bytes: IntCounter,
    pub written_bytes: IntCounter,
    pub replicas: IntGauge,
    pub disk_capacity: IntGaugeVec,
    pub disk_free: IntGaugeVec,
    pub disk_failed: IntGaugeVec,
    pub corrupt_units: IntCounter,
    pub repaired_units: IntCounter,
    pub sync_seconds: Histogram,
    pub lease_valid: IntGauge,
    pub activations: IntCounter,
}

impl Metrics {
    pub fn new() -> Self {
        let registry = dfs_telemetry::registry();
        let r = &registry;
        let by_disk = |name: &str, help: &str| gauges(r, name, help, &["disk"]);
        let buckets = || LATENCY_BUCKETS_SECONDS.to_vec();
        let requests = counters(r, "dfs_chunkd_requests_total", "Requests answered", &["op"]);
        let seconds = HistogramOpts::new("dfs_chunkd_request_seconds", "Time from request to answer");
        let seconds = registered(r, HistogramVec::new(seconds.buckets(buckets()), &["op"]));
        let sync_seconds = HistogramOpts::new("dfs_chunkd_sync_seconds", "Time of one fdatasync of a replica");
        Self {
            requests: Operation::ALL
                .iter()
                .map(|(_, word)| (requests.with_label_values(&[*word]), seconds.with_label_values(&[*word])))
                .collect(),
            errors: counters(r, "dfs_chunkd_request_errors_total", "Requests answered with an error", &["op", "error"]),
            read_bytes: counter(r, "dfs_chunkd_read_bytes_total", "Bytes served to mounts"),
            written_bytes: counter(r, "dfs_chunkd_written_bytes_total", "Bytes taken from mounts"),
            replicas: gauge(r, "dfs_chunkd_replicas", "Replicas on the disks"),
            disk_capacity: by_disk("dfs_chunkd_disk_capacity_bytes", "Size of the disk"),
            disk_free: by_disk("dfs_chunkd_disk_free_bytes", "Bytes left for replicas"),
            disk_failed: by_disk("dfs_chunkd_disk_failed", "1 if the disk failed and is not used"),
            corrupt_units: counter(r, "dfs_chunkd_corrupt_units_total", "Units found damaged"),
            repaired_units: counter(r, "dfs_chunkd_repaired_units_total", "Units repaired from another replica"),
            sync_seconds: registered(r, Histogram::with_opts(sync_seconds.buckets(buckets()))),
            lease_valid: gauge(r, "dfs_chunkd_lease_valid", "1 while the node lease runs"),
            activations: counter(r, "dfs_chunkd_activations_total", "Times a replica became the active primary"),
            registry,
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, operation: Operation, took: Duration, error: Option<&FsError>) {
        let (count, seconds) = &self.requests[operation as usize];
        count.inc();
        seconds.observe(took.as_secs_f64());
        if let Some(error) = error {
            self.errors.with_label_values(&[operation.word(), error.word()]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_they_are_listed() {
        for (at, (operation, _)) in Operation::ALL.iter().enumerate() {
            assert_eq!(*operation as usize, at);
        }
    }
}
