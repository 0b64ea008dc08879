//! The control plane and the pages of a running master, as a chunk server, an administrator and Prometheus see them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::{EngineKind, Master, MasterConfig};
use dfs_proto::wire::{PROTOCOL, pb};
use pb::admin_client::AdminClient;
use pb::chunk_servers_client::ChunkServersClient;
use tonic::transport::Channel;

struct Cluster {
    master: Master,
    runtime: tokio::runtime::Runtime,
    nodes: ChunkServersClient<Channel>,
    admin: AdminClient<Channel>,
}

fn start(config: MasterConfig) -> Cluster {
    let master = Master::start(config).expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let url = format!("http://{}", master.addresses().control);
    let channel = runtime
        .block_on(Channel::from_shared(url).expect("a url").connect_timeout(Duration::from_secs(5)).connect())
        .expect("connects");
    let (nodes, admin) = (ChunkServersClient::new(channel.clone()), AdminClient::new(channel));
    Cluster { master, runtime, nodes, admin }
}

fn config(directory: &std::path::Path, engine: EngineKind) -> MasterConfig {
    MasterConfig {
        data: directory.to_owned(),
        listen: "127.0.0.1:0".into(),
        engine,
        pulse_ms: 20,
        lease_ms: 5_000,
        ..Default::default()
    }
}

fn registration(server: u8, boot: u64) -> pb::RegisterRequest {
    pb::RegisterRequest {
        server_id: vec![server; 16].into(),
        boot_session: boot,
        data_address: format!("127.0.0.1:{}", 7_100 + u16::from(server)),
        http_address: format!("127.0.0.1:{}", 7_200 + u16::from(server)),
        host: "here".into(),
        rack: "r1".into(),
        protocol: PROTOCOL,
        disks: vec![pb::Disk { capacity_bytes: 3_000, free_bytes: 1_500, ..Default::default() }],
        ..Default::default()
    }
}

impl Cluster {
    fn register(&mut self, request: pb::RegisterRequest) -> Result<pb::RegisterReply, tonic::Status> {
        self.runtime.block_on(self.nodes.register(request)).map(tonic::Response::into_inner)
    }

    fn pulse(&mut self, node: u32, boot_session: u64) -> pb::PulseReply {
        let request = pb::PulseRequest { node, boot_session, ..Default::default() };
        self.runtime.block_on(self.nodes.pulse(request)).expect("answers").into_inner()
    }

    fn status(&mut self) -> pb::StatusReply {
        self.runtime.block_on(self.admin.status(pb::StatusRequest {})).expect("answers").into_inner()
    }

    fn page(&self, path: &str) -> (u16, String) {
        get(self.master.addresses().http, path)
    }
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("a body");
    (status, body)
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_chunk_server_registers_pulses_and_reports() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(config(directory.path(), EngineKind::Memory));
    let reply = cluster.register(registration(1, 11)).unwrap();
    assert_eq!(reply.cluster_id[..], cluster.master.cluster_id().0);
    assert_eq!((reply.node, reply.grant_key.len()), (1, 32));
    assert_eq!((reply.lease_ms, reply.pulse_ms, reply.report_ms), (5_000, 20, 30_000));

    let pulse = cluster.pulse(1, 11);
    assert_eq!((pulse.known, pulse.lease_ms), (true, 5_000));
    assert!(!cluster.pulse(1, 12).known, "another boot session");
    assert!(!cluster.pulse(2, 11).known, "a node that never was");

    let report = pb::ReportRequest {
        node: 1,
        boot_session: 11,
        disks: vec![pb::Disk { capacity_bytes: 3_000, free_bytes: 900, replicas: 4, ..Default::default() }],
        ..Default::default()
    };
    assert!(cluster.runtime.block_on(cluster.nodes.report(report)).unwrap().into_inner().known);

    let status = cluster.status();
    assert_eq!((status.total_bytes, status.free_bytes), (1_000, 300), "of user data, three copies each");
    let [node] = &status.nodes[..] else { panic!("{:?}", status.nodes) };
    assert!(node.online && node.lease_valid);
    assert_eq!((node.host.as_str(), node.rack.as_str(), node.disks[0].replicas), ("here", "r1", 4));

    let other = pb::RegisterRequest { cluster_id: vec![9; 16].into(), ..registration(2, 1) };
    let refused = cluster.register(other).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    cluster.master.stop();
}

#[test]
fn a_server_keeps_its_node_id_for_as_long_as_the_cluster_lives() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(config(directory.path(), EngineKind::Embedded));
    for (server, node) in [(1, 1), (2, 2), (1, 1), (3, 3), (2, 2)] {
        assert_eq!(cluster.register(registration(server, 5)).unwrap().node, node);
    }
    let id = cluster.master.cluster_id();
    cluster.master.stop();

    let mut cluster = start(config(directory.path(), EngineKind::Embedded));
    assert_eq!(cluster.master.cluster_id(), id);
    let status = cluster.status();
    assert_eq!(status.nodes.len(), 3, "they are on record");
    assert!(status.nodes.iter().all(|node| !node.online && !node.lease_valid), "and silent");
    assert!(!cluster.pulse(1, 5).known, "so each has to register again");
    assert_eq!(cluster.register(registration(3, 6)).unwrap().node, 3);
    assert_eq!(cluster.register(registration(4, 6)).unwrap().node, 4);
    cluster.master.stop();
}

#[test]
fn the_pages_show_the_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(config(directory.path(), EngineKind::Memory));
    assert_eq!(cluster.page("/healthz"), (200, "ok\n".into()));
    cluster.register(registration(1, 11)).unwrap();
    wait_until("the gauges follow", || {
        let (status, page) = cluster.page("/metrics");
        assert_eq!(status, 200);
        page.contains("dfs_master_nodes{state=\"online\"} 1")
            && page.contains("dfs_master_node_up{address=\"127.0.0.1:7101\",node=\"1\"} 1")
            && page.contains("dfs_master_inodes 1")
    });
    let (status, body) = cluster.page("/sd");
    assert_eq!(status, 200);
    let http = cluster.master.addresses().http.to_string();
    let expected = [
        format!("{{\"targets\":[\"127.0.0.1:7201\"],\"labels\":{}}}", {
            "{\"host\":\"here\",\"node\":\"1\",\"rack\":\"r1\",\"role\":\"chunkd\"}"
        }),
        format!("{{\"targets\":[\"{http}\"],\"labels\":{{\"host\":\"127.0.0.1\",\"role\":\"master\"}}}}"),
    ];
    for group in expected {
        assert!(body.contains(&group), "{group} is not in {body}");
    }
    cluster.master.stop();
}

#[test]
fn info_tells_of_the_root_and_of_what_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(config(directory.path(), EngineKind::Memory));
    let mut info = |path: &'static str, inode| {
        let request = pb::InfoRequest { path: path.as_bytes().into(), inode, chunks_max: 0 };
        cluster.runtime.block_on(cluster.admin.info(request)).expect("answers").into_inner()
    };
    for (path, inode) in [("/", 0), ("", 1)] {
        let root = info(path, inode);
        assert!(root.found, "{}", root.error);
        let inode = root.inode.expect("the root");
        assert_eq!((inode.inode, inode.kind.as_str(), inode.chunks), (1, "directory", 0));
    }
    for (path, inode) in [("/nobody", 0), ("", 99), ("relative", 0)] {
        let missing = info(path, inode);
        assert!(!missing.found && !missing.error.is_empty());
    }
    cluster.master.stop();
}
