//! The metrics of a mount, all of them.

use dfs_telemetry::{LATENCY_BUCKETS_SECONDS, counter, counters, gauge, registered};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};

/// Counters, gauges and histograms of one mount.
#[derive(Debug)]
pub struct Metrics {
    /// All of them, and the process's.
    pub registry: Registry,
    /// FUSE requests by operation.
    pub requests: IntCounterVec,
    /// FUSE requests that failed, by operation and errno.
    pub request_errors: IntCounterVec,
    /// Time from a request to its answer.
    pub request_seconds: HistogramVec,
    /// Bytes that came from chunk servers.
    pub read_bytes: IntCounter,
    /// Bytes that went to chunk servers.
    pub written_bytes: IntCounter,
    /// Bytes written by programs that are not on replicas yet.
    pub dirty_bytes: IntGauge,
    /// Writes that failed after the program had been told they were taken.
    pub write_errors: IntCounter,
    /// Requests sent to the master.
    pub master_round_trips: IntCounter,
    /// Requests sent to chunk servers.
    pub data_round_trips: IntCounter,
    /// Attempts that failed and were made again, by reason.
    pub retries: IntCounterVec,
    /// Reads answered from data that was fetched ahead.
    pub read_ahead_hits: IntCounter,
    /// Calls that have waited for servers for more than 5 s.
    pub waiting_requests: IntGauge,
    /// Sessions that were lost.
    pub sessions_lost: IntCounter,
}

impl Metrics {
    /// Returns all metrics, at zero, in a registry of their own.
    ///
    /// # Panics
    ///
    /// Never: the names below are valid and distinct, which the test shows.
    pub fn new() -> Self {
        let registry = dfs_telemetry::registry();
        let r = &registry;
        Self {
            requests: counters(r, "dfs_mount_requests_total", "FUSE requests", &["op"]),
            request_errors: counters(
                r,
                "dfs_mount_request_errors_total",
                "FUSE requests that failed",
                &["op", "errno"],
            ),
            request_seconds: histogram(r, "dfs_mount_request_seconds", "Time from request to answer", &["op"]),
            read_bytes: counter(r, "dfs_mount_read_bytes_total", "Bytes read from chunk servers"),
            written_bytes: counter(r, "dfs_mount_written_bytes_total", "Bytes written to chunk servers"),
            dirty_bytes: gauge(r, "dfs_mount_dirty_bytes", "Bytes not yet on replicas"),
            write_errors: counter(r, "dfs_mount_write_errors_total", "Buffered writes that failed"),
            master_round_trips: counter(r, "dfs_mount_master_round_trips_total", "Requests to the master"),
            data_round_trips: counter(r, "dfs_mount_data_round_trips_total", "Requests to chunk servers"),
            retries: counters(r, "dfs_mount_retries_total", "Attempts made again", &["reason"]),
            read_ahead_hits: counter(r, "dfs_mount_read_ahead_hits_total", "Reads answered from read-ahead"),
            waiting_requests: gauge(
                r,
                "dfs_mount_waiting_requests",
                "Calls that have waited for servers for more than 5 s",
            ),
            sessions_lost: counter(r, "dfs_mount_sessions_lost_total", "Sessions lost to the master"),
            registry,
        }
    }

    /// Counts an attempt at a chunk server that failed.
    pub fn count_trouble(&self, trouble: &crate::core::Trouble) {
        match trouble {
            crate::core::Trouble::Refused(error) => self.count_retry(error),
            crate::core::Trouble::Unanswered(_) => self.retries.with_label_values(&["connection"]).inc(),
        }
    }

    /// Counts an attempt that is made again.
    pub fn count_retry(&self, error: &dfs_proto::FsError) {
        use dfs_proto::FsError;
        let reason = match error {
            FsError::Stale(_) => "stale",
            FsError::TryAgain(_) => "try_again",
            FsError::NoReplica(_) => "no_replica",
            FsError::TimedOut(_) => "timed_out",
            FsError::UnknownSession => "unknown_session",
            _ => "connection",
        };
        self.retries.with_label_values(&[reason]).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS_SECONDS.to_vec());
    registered(registry, HistogramVec::new(options, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_registered() {
        let metrics = Metrics::new();
        metrics.count_retry(&dfs_proto::FsError::Stale("moved"));
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
        assert!(text.contains("dfs_mount_retries_total{reason=\"stale\"} 1"), "{text}");
    }
}
