//! The metrics of a master, all in one place. Dashboards and alerts in `monitoring/` are built on these names.
//!
//! What is counted on the path of a request has its counters resolved beforehand: no lock, no formatting. Gauges are
//! set by the caretaker, a second late at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dfs_proto::{FsError, NodeId};
use dfs_telemetry::{LATENCY_BUCKETS_SECONDS, counters, gauge, gauges, registered};
use parking_lot::Mutex;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use crate::core::care::Counters;
use crate::core::node_table::NodeState;

/// The operations that are counted, as labels: the messages of `MetaRequest` in snake case. One that is not listed is
/// counted as `other`.
pub const OPS: [&str; 29] = [
    "allocate_chunks",
    "commit_write",
    "get_attr",
    "get_chunks",
    "get_inline",
    "get_xattr",
    "link",
    "list_xattr",
    "lookup",
    "make",
    "open",
    "other",
    "ping",
    "punch_chunks",
    "read_dir",
    "read_link",
    "release",
    "remove_xattr",
    "rename",
    "report_bad_replica",
    "rmdir",
    "session_close",
    "session_open",
    "session_reclaim",
    "set_attr",
    "set_xattr",
    "stat_fs",
    "sync",
    "unlink",
];

/// Buckets for how many requests share a batch.
const BATCH_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// All metrics of one master, in a registry of their own.
pub struct MasterMetrics {
    registry: Registry,
    ops: BTreeMap<&'static str, OpMetrics>,
    errors: IntCounterVec,
    commit_seconds: Histogram,
    sync_seconds: Histogram,
    batch_requests: Histogram,
    inodes: IntGauge,
    chunks: IntGauge,
    orphans: IntGauge,
    reclaim_pending: IntGauge,
    under_replicated_chunks: IntGauge,
    nodes: IntGaugeVec,
    node_up: IntGaugeVec,
    node_capacity_bytes: IntGaugeVec,
    node_free_bytes: IntGaugeVec,
    sessions: IntGauge,
    seq: IntGauge,
    durable_seq: IntGauge,
    uptime_seconds: Gauge,
    /// The address each node is listed under, so that a series goes when the address changes.
    listed: Mutex<BTreeMap<NodeId, String>>,
}

struct OpMetrics {
    requests: IntCounter,
    seconds: Histogram,
}

/// What the gauges of one node show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGauges {
    /// The node.
    pub id: NodeId,
    /// `host:port` of its data plane.
    pub address: String,
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Size of its working disks.
    pub capacity_bytes: u64,
    /// What is left there.
    pub free_bytes: u64,
}

/// What all gauges but `under_replicated_chunks` show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Totals over the records.
    pub counters: Counters,
    /// All chunk servers that ever registered.
    pub nodes: Vec<NodeGauges>,
    /// Open sessions.
    pub sessions: u64,
    /// Position of the last change.
    pub seq: u64,
    /// Position of the last durable change.
    pub durable_seq: u64,
    /// Since the start of this process's master.
    pub uptime: Duration,
}

impl Default for MasterMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl MasterMetrics {
    /// Makes them, in a registry of their own, with those of the process.
    pub fn new() -> Self {
        let registry = dfs_telemetry::registry();
        let requests = counters(&registry, "dfs_master_requests_total", "Requests of mounts, answered", &["op"]);
        let errors = counters(
            &registry,
            "dfs_master_request_errors_total",
            "Requests of mounts that failed, answers such as no_entry included",
            &["op", "error"],
        );
        let seconds = registered(
            &registry,
            HistogramVec::new(
                HistogramOpts::new("dfs_master_request_seconds", "From a request's arrival to its answer")
                    .buckets(LATENCY_BUCKETS_SECONDS.to_vec()),
                &["op"],
            ),
        );
        let ops = OPS.map(|op| {
            let metrics =
                OpMetrics { requests: requests.with_label_values(&[op]), seconds: seconds.with_label_values(&[op]) };
            (op, metrics)
        });
        let this = Self {
            ops: ops.into(),
            errors,
            commit_seconds: histogram(
                &registry,
                "dfs_master_commit_seconds",
                "Commits of batches to the store",
                &LATENCY_BUCKETS_SECONDS,
            ),
            sync_seconds: histogram(
                &registry,
                "dfs_master_sync_seconds",
                "Syncs of the store to stable media",
                &LATENCY_BUCKETS_SECONDS,
            ),
            batch_requests: histogram(
                &registry,
                "dfs_master_batch_requests",
                "Requests that share a batch",
                &BATCH_BUCKETS,
            ),
            inodes: gauge(&registry, "dfs_master_inodes", "Inodes, orphans included"),
            chunks: gauge(&registry, "dfs_master_chunks", "Chunks of all files"),
            orphans: gauge(&registry, "dfs_master_orphans", "Inodes without a name that are open or not yet purged"),
            reclaim_pending: gauge(&registry, "dfs_master_reclaim_pending", "Replicas that wait for their deletion"),
            under_replicated_chunks: gauge(
                &registry,
                "dfs_master_under_replicated_chunks",
                "Chunks with fewer in-sync replicas on online chunk servers than their file wants",
            ),
            nodes: gauges(&registry, "dfs_master_nodes", "Chunk servers on record, by state", &["state"]),
            node_up: gauges(
                &registry,
                "dfs_master_node_up",
                "Whether a chunk server holds its lease",
                &["node", "address"],
            ),
            node_capacity_bytes: gauges(
                &registry,
                "dfs_master_node_capacity_bytes",
                "Size of a chunk server's working disks",
                &["node"],
            ),
            node_free_bytes: gauges(
                &registry,
                "dfs_master_node_free_bytes",
                "Bytes left for replicas on a chunk server's working disks",
                &["node"],
            ),
            sessions: gauge(&registry, "dfs_master_sessions", "Open sessions of mounts"),
            seq: gauge(&registry, "dfs_master_seq", "Log position of the last change"),
            durable_seq: gauge(&registry, "dfs_master_durable_seq", "Log position up to which all is durable"),
            uptime_seconds: registered(
                &registry,
                Gauge::new("dfs_master_uptime_seconds", "Since the start of the master"),
            ),
            listed: Mutex::default(),
            registry,
        };
        for state in NodeState::ALL {
            this.nodes.with_label_values(&[state.word()]).set(0);
        }
        this
    }

    /// Returns the registry, for the page.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Counts a request and how long it took. `op` is one of [`OPS`].
    pub fn observe(&self, op: &'static str, started: Instant, error: Option<&FsError>) {
        let metrics = self.ops.get(op).unwrap_or_else(|| &self.ops["other"]);
        metrics.requests.inc();
        metrics.seconds.observe(started.elapsed().as_secs_f64());
        if let Some(error) = error {
            self.errors.with_label_values(&[op, error.word()]).inc();
        }
    }

    /// Counts a batch of the executor: its requests, and how long the engine's commit took.
    pub fn committed(&self, requests: usize, took: Duration) {
        self.batch_requests.observe(requests as f64);
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// Counts a sync of the store.
    pub fn synced(&self, took: Duration) {
        self.sync_seconds.observe(took.as_secs_f64());
    }

    /// Sets the gauges.
    pub fn set(&self, values: &Gauges) {
        let Counters { inodes, chunks, orphans, reclaim_pending, logical_bytes: _ } = values.counters;
        self.inodes.set(signed(inodes));
        self.chunks.set(signed(chunks));
        self.orphans.set(signed(orphans));
        self.reclaim_pending.set(signed(reclaim_pending));
        self.sessions.set(signed(values.sessions));
        self.seq.set(signed(values.seq));
        self.durable_seq.set(signed(values.durable_seq));
        self.uptime_seconds.set(values.uptime.as_secs_f64());

        let mut listed = self.listed.lock();
        for node in &values.nodes {
            let id = node.id.to_string();
            if let Some(before) = listed.insert(node.id, node.address.clone())
                && before != node.address
            {
                // One that was never set is what we want.
                let _ = self.node_up.remove_label_values(&[&id, &before]);
            }
            let up = i64::from(node.state == NodeState::Online);
            self.node_up.with_label_values(&[&id, &node.address]).set(up);
            self.node_capacity_bytes.with_label_values(&[&id]).set(signed(node.capacity_bytes));
            self.node_free_bytes.with_label_values(&[&id]).set(signed(node.free_bytes));
        }
        for state in NodeState::ALL {
            let count = values.nodes.iter().filter(|node| node.state == state).count();
            self.nodes.with_label_values(&[state.word()]).set(signed(count as u64));
        }
    }

    /// Sets how many chunks have too few in-sync replicas online.
    pub fn set_under_replicated(&self, chunks: u64) {
        self.under_replicated_chunks.set(signed(chunks));
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn page(metrics: &MasterMetrics) -> String {
        TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap()
    }

    #[track_caller]
    fn check(metrics: &MasterMetrics, lines: &[&str]) {
        let page = page(metrics);
        for line in lines {
            assert!(page.lines().any(|found| found == *line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn requests_are_counted_by_operation_and_error() {
        let metrics = MasterMetrics::new();
        metrics.observe("make", Instant::now(), None);
        metrics.observe("make", Instant::now(), Some(&FsError::Exists));
        metrics.observe("invented later", Instant::now(), None);
        metrics.committed(3, Duration::from_millis(2));
        metrics.synced(Duration::from_millis(2));
        check(
            &metrics,
            &[
                "dfs_master_requests_total{op=\"make\"} 2",
                "dfs_master_request_errors_total{error=\"exists\",op=\"make\"} 1",
                "dfs_master_request_seconds_count{op=\"make\"} 2",
                "dfs_master_requests_total{op=\"other\"} 1",
                "dfs_master_requests_total{op=\"rename\"} 0",
                "dfs_master_batch_requests_sum 3",
                "dfs_master_commit_seconds_bucket{le=\"0.002\"} 1",
                "dfs_master_sync_seconds_count 1",
            ],
        );
    }

    #[test]
    fn gauges_follow_the_nodes_and_their_addresses() {
        let metrics = MasterMetrics::new();
        let node = |id, address: &str, state| NodeGauges {
            id: NodeId(id),
            address: address.into(),
            state,
            capacity_bytes: 100,
            free_bytes: 40,
        };
        let mut gauges = Gauges {
            counters: Counters { inodes: 5, chunks: 6, orphans: 1, reclaim_pending: 2, logical_bytes: 9 },
            nodes: vec![node(1, "a:1", NodeState::Online), node(2, "b:1", NodeState::Offline)],
            sessions: 3,
            seq: 12,
            durable_seq: 10,
            uptime: Duration::from_secs(7),
        };
        metrics.set(&gauges);
        metrics.set_under_replicated(4);
        check(
            &metrics,
            &[
                "dfs_master_inodes 5",
                "dfs_master_chunks 6",
                "dfs_master_orphans 1",
                "dfs_master_reclaim_pending 2",
                "dfs_master_under_replicated_chunks 4",
                "dfs_master_nodes{state=\"online\"} 1",
                "dfs_master_nodes{state=\"lease_expired\"} 0",
                "dfs_master_nodes{state=\"offline\"} 1",
                "dfs_master_node_up{address=\"a:1\",node=\"1\"} 1",
                "dfs_master_node_up{address=\"b:1\",node=\"2\"} 0",
                "dfs_master_node_capacity_bytes{node=\"1\"} 100",
                "dfs_master_node_free_bytes{node=\"2\"} 40",
                "dfs_master_sessions 3",
                "dfs_master_seq 12",
                "dfs_master_durable_seq 10",
                "dfs_master_uptime_seconds 7",
            ],
        );
        gauges.nodes[0].address = "c:1".into();
        metrics.set(&gauges);
        check(&metrics, &["dfs_master_node_up{address=\"c:1\",node=\"1\"} 1"]);
        assert!(!page(&metrics).contains("address=\"a:1\""));
        assert!(page(&metrics).contains("process_resident_memory_bytes"));
    }

    #[test]
    fn the_operations_are_sorted_and_distinct() {
        assert!(OPS.is_sorted_by(|a, b| a < b));
    }
}
