//! What an administrator sees of the care for replicas: checks, draining, removal. The chunk servers are plain data that
//! carries orders out at once.

#![allow(clippy::disallowed_methods, reason = "a shell: servers that live in real time")]

#[allow(dead_code, reason = "not every test asks for everything")]
mod cluster;

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use cluster::{Cluster, config};
use dfs_master::{EngineKind, MasterConfig};
use dfs_proto::replica_set::{ChangeKind, Grant, Order, OrderKind};
use dfs_proto::wire::pb::{self, meta_request::Body};
use pb::admin_client::AdminClient;
use pb::chunk_servers_client::ChunkServersClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

const ROUND_MS: u64 = 100;

/// A cluster whose servers do what they are told.
struct Bench {
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    admin: AdminClient<Channel>,
    servers: ChunkServersClient<Channel>,
    /// The servers that are alive.
    alive: Vec<u32>,
    /// How many units each scrub finds damaged, and mends.
    damage: (u64, u64),
    /// Results to be reported, by node.
    results: BTreeMap<u32, Vec<pb::OrderResult>>,
}

impl Bench {
    fn new(servers: u8) -> Self {
        let config = MasterConfig {
            engine: EngineKind::Memory,
            pulse_ms: ROUND_MS,
            report_ms: 200,
            offline_ms: 2_000,
            ..config(std::path::Path::new(""), EngineKind::Memory)
        };
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = Cluster::start(MasterConfig { data: directory.path().to_owned(), ..config }, servers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("http://{}", cluster.control());
        let admin = runtime.block_on(AdminClient::connect(url.clone())).expect("connects");
        let servers_client = runtime.block_on(ChunkServersClient::connect(url)).expect("connects");
        Self {
            cluster,
            runtime,
            admin,
            servers: servers_client,
            alive: (1..=u32::from(servers)).collect(),
            damage: (0, 0),
            results: BTreeMap::new(),
        }
    }

    /// Makes a written file of one chunk.
    fn file(&mut self) -> u64 {
        let inode = self.cluster.file_with_a_chunk();
        let written = pb::CommitWrite {
            inode,
            end: 5,
            written: vec![0],
            leave_inline: true,
            if_data_version: 1,
            ..Default::default()
        };
        self.cluster.ask(Body::CommitWrite(written)).expect("committed");
        inode
    }

    /// Pulses and reports of all that are alive; what they are told is done.
    fn round(&mut self) {
        for node in self.alive.clone() {
            let results = self.results.remove(&node).unwrap_or_default();
            let request = pb::PulseRequest { node, boot_session: 1, results, ..Default::default() };
            let reply = self.cluster.pulse_with(request);
            assert!(reply.known, "node {node}");
            for message in reply.orders {
                let id = message.id;
                self.carry_out(node, &Order::try_from(message).expect("an order"));
                let (bad_units, repaired_units) = self.damage;
                let result = pb::OrderResult { id, bad_units, repaired_units, checked_units: 9, ..Default::default() };
                self.results.entry(node).or_default().push(result);
            }
            let disks = vec![pb::Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Default::default() }];
            let report = pb::ReportRequest { node, boot_session: 1, disks, end: true, ..Default::default() };
            self.runtime.block_on(self.servers.report(report)).expect("answered");
        }
        std::thread::sleep(std::time::Duration::from_millis(ROUND_MS));
    }

    fn carry_out(&mut self, node: u32, order: &Order) {
        let grant = || -> Grant { self.cluster.key.open(&order.grant).expect("sealed by this master") };
        let change = match order.kind {
            OrderKind::Fill { node } => Some((grant(), ChangeKind::FinishSync { node })),
            OrderKind::HandOver => Some((grant(), ChangeKind::Leave)),
            OrderKind::Scrub { .. } | OrderKind::Discard { .. } => None,
        };
        if let Some((grant, kind)) = change {
            self.cluster.change(node, 1, &grant, kind).0.expect("changed");
        }
    }

    /// Runs a check while the servers live.
    fn fsck(&mut self, repair: bool) -> (Vec<pb::FsckFinding>, pb::FsckSummary) {
        let url = format!("http://{}", self.cluster.control());
        let check: JoinHandle<_> = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut admin = AdminClient::connect(url).await.expect("connects");
                let request = pb::FsckRequest { deep: false, repair };
                let mut progress = admin.fsck(request).await.expect("accepted").into_inner();
                let mut findings = Vec::new();
                while let Some(said) = progress.message().await.expect("goes on") {
                    findings.extend(said.findings);
                    if let Some(summary) = said.summary {
                        return (findings, summary);
                    }
                }
                panic!("it ended without a summary");
            })
        });
        while !check.is_finished() {
            self.round();
        }
        check.join().expect("checked")
    }

    fn drain(&mut self, node: u32) -> Result<pb::DrainReply, Status> {
        let request = pb::DrainRequest { node, stop: false };
        self.runtime.block_on(self.admin.drain(request)).map(tonic::Response::into_inner)
    }

    fn remove(&mut self, node: u32) -> Result<(), Code> {
        let request = pb::RemoveNodeRequest { node };
        self.runtime.block_on(self.admin.remove_node(request)).map(|_| ()).map_err(|status| status.code())
    }
}

#[track_caller]
fn check_findings(findings: &[pb::FsckFinding], expected: &[(&str, &str, bool)]) {
    assert_eq!(findings.len(), expected.len(), "{findings:#?}");
    for (finding, (rule, part, repaired)) in findings.iter().zip(expected) {
        assert!(finding.rule == *rule && finding.what.contains(part) && finding.repaired == *repaired, "{finding:?}");
    }
}

#[test]
fn a_whole_file_system_has_no_findings_and_each_chunk_is_compared() {
    let mut bench = Bench::new(3);
    bench.file();
    let (findings, summary) = bench.fsck(false);
    check_findings(&findings, &[]);
    assert_eq!((summary.inodes, summary.dentries, summary.chunks, summary.replicas), (2, 1, 1, 3));
    assert_eq!(summary.checked_units, 9);
}

#[test]
fn damage_that_a_scrub_finds_is_told_with_what_became_of_it() {
    let mut bench = Bench::new(3);
    bench.file();
    bench.damage = (4, 4);
    check_findings(&bench.fsck(false).0, &[("R5", "4 units were damaged", true)]);
    bench.damage = (4, 1);
    check_findings(&bench.fsck(false).0, &[("R5", "4 units were damaged", false)]);
}

#[test]
fn a_chunk_that_lacks_a_replica_is_found_and_filled_on_demand() {
    let mut bench = Bench::new(3);
    let inode = bench.file();
    let grant = bench.cluster.locate(inode).expect("located").grant;
    let lost = grant.members.iter().map(|member| member.node).find(|node| *node != grant.primary).expect("a secondary");
    bench.alive.retain(|node| *node != lost.0);
    let dropped = ChangeKind::Drop { node: lost };
    bench.cluster.change(grant.primary.0, 1, &grant, dropped).0.expect("dropped");
    check_findings(&bench.fsck(false).0, &[("R7", "2 replicas in sync are there, 3 are wanted", false)]);

    let fourth = bench.cluster.register(4, 1, false).node;
    bench.alive.push(fourth);
    // The caretaker may have been faster.
    let (findings, summary) = bench.fsck(true);
    assert!(findings.iter().all(|finding| finding.rule == "R7" && finding.repaired), "{findings:?}");
    assert_eq!(summary.repaired, summary.findings);
    let set = bench.cluster.locate(inode).expect("located").replicas;
    assert!(set.contains(&fourth) && set.len() == 3, "{set:?}");
    check_findings(&bench.fsck(false).0, &[]);
}

#[test]
fn a_server_is_emptied_and_then_forgotten() {
    let mut bench = Bench::new(4);
    let inode = bench.file();
    let primary = bench.cluster.locate(inode).expect("located").grant.primary.0;
    assert_eq!(bench.remove(primary), Err(Code::FailedPrecondition), "it is neither offline nor drained");
    assert_eq!(bench.remove(99), Err(Code::NotFound));
    assert_eq!(bench.drain(99).map_err(|status| status.code()), Err(Code::NotFound));

    let mut left = bench.drain(primary).expect("drains").replicas_left;
    assert_eq!(left, 1);
    assert_eq!(bench.remove(primary), Err(Code::FailedPrecondition), "a chunk names it");
    for _ in 0..200 {
        bench.round();
        left = bench.drain(primary).expect("drains").replicas_left;
        if left == 0 {
            break;
        }
    }
    assert_eq!(left, 0);
    let set = bench.cluster.locate(inode).expect("located");
    assert!(!set.replicas.contains(&primary) && set.replicas.len() == 3);
    assert_eq!(bench.remove(primary), Ok(()));
    assert_eq!(bench.remove(primary), Err(Code::NotFound));
    bench.alive.retain(|node| *node != primary);
    let again = bench.cluster.register(primary as u8, 2, false);
    assert_eq!(again.node, primary, "its id is kept for it");
    let other = bench.cluster.register(9, 1, false);
    assert_eq!(other.node, 5, "and given to nobody else");
}

#[test]
fn a_primary_is_forced_only_when_nobody_in_sync_is_there() {
    let mut bench = Bench::new(3);
    let inode = bench.file();
    let grant = bench.cluster.locate(inode).expect("located").grant;
    let primary = grant.primary;
    let others: Vec<u32> = bench.alive.iter().copied().filter(|node| *node != primary.0).collect();
    let mut grant = Some(grant);
    for node in &others {
        let dropped = ChangeKind::Drop { node: dfs_proto::NodeId(*node) };
        let (result, next) = bench.cluster.change(primary.0, 1, &grant.take().expect("granted"), dropped);
        result.expect("dropped");
        grant = next;
    }
    bench.alive = others.clone();
    let force = |bench: &mut Bench| {
        let request = pb::ForcePrimaryRequest { inode, index: 0, node: others[0] };
        bench.runtime.block_on(bench.admin.force_primary(request)).map(tonic::Response::into_inner)
    };
    let refused = force(&mut bench).expect_err("the primary is there");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let mut forced = None;
    for _ in 0..50 {
        bench.round();
        forced = force(&mut bench).ok();
        if forced.is_some() {
            break;
        }
    }
    assert!(forced.is_some(), "the lease of the only one in sync is over");
    let located = bench.cluster.locate(inode).expect("located");
    assert_eq!(located.grant.primary.0, others[0]);
}
