//! The metrics of a chunk server. Dashboards and alerts use these names.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_telemetry::{LATENCY_BUCKETS_SECONDS, counter, counters, gauge, gauges, registered};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::store::disk::Disk;

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
    VerifyUnits,
}

impl Operation {
    const ALL: [(Self, &str); 11] = [
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
        (Self::VerifyUnits, "verify_units"),
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
    disk_capacity: IntGaugeVec,
    disk_free: IntGaugeVec,
    disk_failed: IntGaugeVec,
    journal_used: IntGaugeVec,
    journal_pending: IntGaugeVec,
    journal_appended: IntCounterVec,
    journal_syncs: IntCounterVec,
    journal_checkpoints: IntCounterVec,
    pub corrupt_units: IntCounter,
    pub repaired_units: IntCounter,
    pub sync_seconds: Histogram,
    pub lease_valid: IntGauge,
    pub activations: IntCounter,
    pub orders: IntCounterVec,
    pub copied_bytes: IntCounter,
    pub checked_units: IntCounter,
    pub dropped_members: IntCounter,
    pub replica_set_changes: IntCounterVec,
    pub fenced_sessions: IntGauge,
}

impl Metrics {
    pub fn new() -> Self {
        let registry = dfs_telemetry::registry();
        let r = &registry;
        let by_disk = |name: &str, help: &str| gauges(r, name, help, &["disk"]);
        let count_by_disk = |name: &str, help: &str| counters(r, name, help, &["disk"]);
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
            journal_used: by_disk("dfs_chunkd_journal_used_bytes", "Bytes of journal records that are kept"),
            journal_pending: by_disk("dfs_chunkd_journal_pending_bytes", "Bytes in memory and not in chunk files yet"),
            journal_appended: count_by_disk("dfs_chunkd_journal_appended_bytes_total", "Bytes added to the journal"),
            journal_syncs: count_by_disk("dfs_chunkd_journal_syncs_total", "Syncs of the journal"),
            journal_checkpoints: count_by_disk("dfs_chunkd_journal_checkpoints_total", "Checkpoints of the journal"),
            corrupt_units: counter(r, "dfs_chunkd_corrupt_units_total", "Units found damaged"),
            repaired_units: counter(r, "dfs_chunkd_repaired_units_total", "Units repaired from another replica"),
            sync_seconds: registered(r, Histogram::with_opts(sync_seconds.buckets(buckets()))),
            lease_valid: gauge(r, "dfs_chunkd_lease_valid", "1 while the node lease runs"),
            activations: counter(r, "dfs_chunkd_activations_total", "Times a replica became the active primary"),
            orders: counters(r, "dfs_chunkd_orders_total", "Orders of the master that ended", &["kind", "result"]),
            copied_bytes: counter(r, "dfs_chunkd_copied_bytes_total", "Bytes copied to and from other replicas"),
            checked_units: counter(r, "dfs_chunkd_checked_units_total", "Units read and checked by order"),
            dropped_members: counter(r, "dfs_chunkd_dropped_members_total", "Members that this server had dropped"),
            replica_set_changes: counters(
                r,
                "dfs_chunkd_replica_set_changes_total",
                "Changes of replica sets asked of the master",
                &["kind", "result"],
            ),
            fenced_sessions: gauge(r, "dfs_chunkd_fenced_sessions", "Sessions of mounts that are refused"),
            registry,
        }
    }

    /// Shows how a disk is.
    pub fn show(&self, disk: &Disk) {
        let path = disk.path().display().to_string();
        let label = &[path.as_str()];
        let (capacity, free) = disk.space();
        self.disk_capacity.with_label_values(label).set(capacity as i64);
        self.disk_free.with_label_values(label).set(free as i64);
        self.disk_failed.with_label_values(label).set(i64::from(disk.has_failed()));
        let figures = disk.journal_figures();
        self.journal_used.with_label_values(label).set(figures.used_bytes as i64);
        self.journal_pending.with_label_values(label).set(figures.pending_bytes as i64);
        let raise = |counters: &IntCounterVec, to: u64| {
            let counter = counters.with_label_values(label);
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        raise(&self.journal_appended, figures.appended_bytes);
        raise(&self.journal_syncs, figures.syncs);
        raise(&self.journal_checkpoints, figures.checkpoints);
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
