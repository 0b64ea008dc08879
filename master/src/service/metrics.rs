//! The metrics of a master, all in one place. Dashboards and alerts in `monitoring/` are built on these names.
//!
//! What is counted on the path of a request has its counters resolved beforehand: no lock, no formatting. Gauges are
//! set by the caretaker, a second late at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dfs_proto::replica_set::OrderReport;
use dfs_proto::{FsError, NodeId};
use dfs_telemetry::{LATENCY_BUCKETS_SECONDS, counters, gauge, gauges, registered};
use parking_lot::Mutex;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use crate::core::care::Counters;
use crate::core::census::Count;
use crate::core::node_table::NodeState;
use crate::core::orders::Duty;

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
    unavailable_chunks: IntGauge,
    blocked_chunks: IntGauge,
    syncing_chunks: IntGauge,
    repair_queue: IntGauge,
    orders_in_flight: IntGaugeVec,
    frozen_replicas: IntGauge,
    unknown_replicas: IntGauge,
    fenced_sessions: IntGauge,
    nodes_draining: IntGauge,
    node_suspect_chunks: IntGaugeVec,
    replica_set_changes: IntCounterVec,
    order_results: IntCounterVec,
    repairs: IntCounter,
    copied_bytes: IntCounter,
    scrubbed_chunks: IntCounter,
    bad_units: IntCounter,
    repaired_units: IntCounter,
    lost_replicas: IntCounter,
    forced_primaries: IntCounter,
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

/// What the gauges of the care for replicas show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CareGauges {
    /// The last count of the chunk records.
    pub count: Count,
    /// Chunks that wait for repair.
    pub repair_queue: usize,
    /// Orders under way.
    pub orders: Vec<(Duty, usize)>,
    /// Replicas newer than their records.
    pub frozen: usize,
    /// Replicas of chunks that are not on record.
    pub unknown: usize,
    /// Sessions that are fenced.
    pub fenced: usize,
    /// Chunk servers that are to be emptied.
    pub draining: usize,
}

/// What the gauges of all else show.
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
            unavailable_chunks: gauge(
                &registry,
                "dfs_master_unavailable_chunks",
                "Chunks without any in-sync replica on an online chunk server: nobody can read them",
            ),
            blocked_chunks: gauge(
                &registry,
                "dfs_master_blocked_chunks",
                "Chunks with too few in-sync replicas online for writes to be acknowledged",
            ),
            syncing_chunks: gauge(&registry, "dfs_master_syncing_chunks", "Chunks with a replica that is being filled"),
            repair_queue: gauge(
                &registry,
                "dfs_master_repair_queue",
                "Chunks that wait for a replica, or for one to leave",
            ),
            orders_in_flight: gauges(
                &registry,
                "dfs_master_orders_in_flight",
                "Orders that chunk servers were given and have not reported on",
                &["kind"],
            ),
            frozen_replicas: gauge(
                &registry,
                "dfs_master_frozen_replicas",
                "Replicas that are newer than the record of their chunk: nothing is done to them",
            ),
            unknown_replicas: gauge(
                &registry,
                "dfs_master_unknown_replicas",
                "Replicas of chunks that are not on record, not yet handed to reclaim",
            ),
            fenced_sessions: gauge(
                &registry,
                "dfs_master_fenced_sessions",
                "Lost sessions of mounts whose requests chunk servers refuse",
            ),
            nodes_draining: gauge(&registry, "dfs_master_nodes_draining", "Chunk servers that are to be emptied"),
            node_suspect_chunks: gauges(
                &registry,
                "dfs_master_node_suspect_chunks",
                "Chunks that have an in-sync replica on a chunk server that may have lost acknowledged writes",
                &["node"],
            ),
            replica_set_changes: counters(
                &registry,
                "dfs_master_replica_set_changes_total",
                "Changes of replica sets, asked for by chunk servers or planned by the master",
                &["kind", "result"],
            ),
            order_results: counters(
                &registry,
                "dfs_master_order_results_total",
                "Orders that came to an end",
                &["kind", "result"],
            ),
            repairs: counter(&registry, "dfs_master_repairs_total", "Replicas that were filled and taken in sync"),
            copied_bytes: counter(
                &registry,
                "dfs_master_copied_bytes_total",
                "Bytes that chunk servers copied to each other by order",
            ),
            scrubbed_chunks: counter(
                &registry,
                "dfs_master_scrubbed_chunks_total",
                "Chunks whose replicas were checked and compared",
            ),
            bad_units: counter(
                &registry,
                "dfs_master_scrub_bad_units_total",
                "Units of replicas that were found damaged or different by order",
            ),
            repaired_units: counter(
                &registry,
                "dfs_master_scrub_repaired_units_total",
                "Units of replicas that were found damaged or different by order, and were mended",
            ),
            lost_replicas: counter(
                &registry,
                "dfs_master_lost_replicas_total",
                "In-sync replicas that their chunk server does not hold",
            ),
            forced_primaries: counter(
                &registry,
                "dfs_master_forced_primaries_total",
                "Replicas that an administrator made primary although acknowledged writes may be missing there",
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
        for duty in Duty::ALL {
            this.orders_in_flight.with_label_values(&[duty.word()]).set(0);
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

    /// Sets the gauges of the care for replicas.
    pub fn set_care(&self, values: &CareGauges) {
        self.under_replicated_chunks.set(signed(values.count.under_replicated));
        self.unavailable_chunks.set(signed(values.count.unavailable));
        self.blocked_chunks.set(signed(values.count.below_minimum));
        self.syncing_chunks.set(signed(values.count.syncing));
        self.repair_queue.set(signed(values.repair_queue as u64));
        self.frozen_replicas.set(signed(values.frozen as u64));
        self.unknown_replicas.set(signed(values.unknown as u64));
        self.fenced_sessions.set(signed(values.fenced as u64));
        self.nodes_draining.set(signed(values.draining as u64));
        for (duty, count) in &values.orders {
            self.orders_in_flight.with_label_values(&[duty.word()]).set(signed(*count as u64));
        }
        self.node_suspect_chunks.reset();
        for (node, chunks) in &values.count.tainted {
            self.node_suspect_chunks.with_label_values(&[&node.to_string()]).set(signed(*chunks));
        }
    }

    /// Counts a change of a replica set: `kind` is its word.
    pub fn set_changed(&self, kind: &str, error: Option<&FsError>) {
        self.replica_set_changes.with_label_values(&[kind, error.map_or("ok", FsError::word)]).inc();
    }

    /// Counts an order that came to an end.
    pub fn ordered(&self, duty: Duty, result: &Result<OrderReport, FsError>) {
        let word = result.as_ref().map_or_else(FsError::word, |_| "ok");
        self.order_results.with_label_values(&[duty.word(), word]).inc();
        let Ok(report) = result else { return };
        self.copied_bytes.inc_by(report.copied_bytes);
        self.bad_units.inc_by(report.bad_units);
        self.repaired_units.inc_by(report.repaired_units);
        match duty {
            Duty::Fill => self.repairs.inc(),
            Duty::Scrub => self.scrubbed_chunks.inc(),
            Duty::HandOver | Duty::Discard => {}
        }
    }

    /// Counts an order that was taken back.
    pub fn withdrawn(&self, duty: Duty) {
        self.order_results.with_label_values(&[duty.word(), "withdrawn"]).inc();
    }

    /// Counts a replica in sync that its server does not hold.
    pub fn lost_replica(&self) {
        self.lost_replicas.inc();
    }

    /// Counts a primary that was forced.
    pub fn forced_primary(&self) {
        self.forced_primaries.inc();
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
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
        let count = Count {
            under_replicated: 4,
            unavailable: 1,
            below_minimum: 2,
            tainted: [(NodeId(2), 7)].into(),
            ..Count::default()
        };
        metrics.set_care(&CareGauges {
            count: count.clone(),
            frozen: 3,
            orders: vec![(Duty::Fill, 5)],
            ..CareGauges::default()
        });
        check(
            &metrics,
            &[
                "dfs_master_inodes 5",
                "dfs_master_chunks 6",
                "dfs_master_orphans 1",
                "dfs_master_reclaim_pending 2",
                "dfs_master_under_replicated_chunks 4",
                "dfs_master_unavailable_chunks 1",
                "dfs_master_blocked_chunks 2",
                "dfs_master_frozen_replicas 3",
                "dfs_master_orders_in_flight{kind=\"fill\"} 5",
                "dfs_master_node_suspect_chunks{node=\"2\"} 7",
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
        metrics.set_care(&CareGauges { count: Count { tainted: BTreeMap::new(), ..count }, ..CareGauges::default() });
        assert!(!page(&metrics).contains("dfs_master_node_suspect_chunks{"), "nothing is suspect any more");
    }

    #[test]
    fn changes_and_orders_are_counted_by_kind_and_result() {
        let metrics = MasterMetrics::new();
        metrics.set_changed("add", None);
        metrics.set_changed("drop", Some(&FsError::Stale("")));
        let report = OrderReport { copied_bytes: 10, checked_units: 9, bad_units: 3, repaired_units: 2 };
        metrics.ordered(Duty::Fill, &Ok(OrderReport { copied_bytes: 5, ..OrderReport::default() }));
        metrics.ordered(Duty::Scrub, &Ok(report));
        metrics.ordered(Duty::Fill, &Err(FsError::NoSpace));
        metrics.withdrawn(Duty::HandOver);
        metrics.lost_replica();
        check(
            &metrics,
            &[
                "dfs_master_replica_set_changes_total{kind=\"add\",result=\"ok\"} 1",
                "dfs_master_replica_set_changes_total{kind=\"drop\",result=\"stale\"} 1",
                "dfs_master_repairs_total 1",
                "dfs_master_copied_bytes_total 15",
                "dfs_master_scrubbed_chunks_total 1",
                "dfs_master_scrub_bad_units_total 3",
                "dfs_master_scrub_repaired_units_total 2",
                "dfs_master_order_results_total{kind=\"fill\",result=\"no_space\"} 1",
                "dfs_master_order_results_total{kind=\"hand_over\",result=\"withdrawn\"} 1",
                "dfs_master_lost_replicas_total 1",
                "dfs_master_forced_primaries_total 0",
            ],
        );
    }

    #[test]
    fn the_operations_are_sorted_and_distinct() {
        assert!(OPS.is_sorted_by(|a, b| a < b));
    }
}
