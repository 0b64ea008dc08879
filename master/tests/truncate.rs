//! Truncates that need a chunk server, against one that only writes down what it is asked.

#![allow(clippy::disallowed_methods, reason = "a shell: deadlines of a test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_master::{Deadlines, EngineKind, Master, MasterConfig};
use dfs_proto::grant::GrantKey;
use dfs_proto::limits::CHUNK_SIZE;
use dfs_proto::wire::pb::{self, data_reply, data_request, meta_reply, meta_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, Listener, PROTOCOL, accept_hello, connect, offer_hello};
use dfs_proto::{BootSession, ClusterId, FsError, Kind, NodeId, SessionId, unit};
use meta_request::Body;
use pb::chunk_servers_client::ChunkServersClient;
use prost::Message;

type Asked = Arc<Mutex<Vec<(pb::DataRequest, Bytes)>>>;

/// A chunk server that says yes to everything, but hangs up without a word on the first `mute` requests.
fn agreeing_server(cluster: ClusterId, asked: &Asked, mute: &Arc<AtomicUsize>) -> Listener {
    let (asked, mute) = (Arc::clone(asked), Arc::clone(mute));
    let own = Identity {
        cluster: Some(cluster),
        role: pb::Role::ChunkServer,
        node: NodeId(1),
        boot: BootSession(1),
        session: SessionId(0),
    };
    Listener::start("127.0.0.1:0", 16, "agreeing", move |mut connection| {
        accept_hello(&mut connection, &own, &[pb::Role::Master], Duration::from_secs(5)).expect("the master");
        while let Ok(frame) = connection.recv(None) {
            let request = pb::DataRequest::decode(frame.head).expect("a request");
            asked.lock().expect("alive").push((request, frame.payload));
            if mute.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                return;
            }
            let reply = pb::DataReply { body: Some(data_reply::Body::Synced(pb::Synced {})), ..Default::default() };
            connection.send(FrameKind::DataReply, frame.request_id, &reply, &[]).expect("sent");
        }
    })
    .expect("listens")
}

struct Cluster {
    mount: Connection,
    number: u64,
    asked: Asked,
    mute: Arc<AtomicUsize>,
    key: GrantKey,
    server: Listener,
    _master: Master,
    _directory: tempfile::TempDir,
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

impl Cluster {
    /// A master, and one server that is registered three times: as three.
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = MasterConfig {
            data: directory.path().to_owned(),
            listen: "127.0.0.1:0".into(),
            engine: EngineKind::Memory,
            ..MasterConfig::default()
        };
        // Long enough for an answer on loopback, and no longer: one test waits for both.
        let short = Duration::from_millis(500);
        let deadlines = Deadlines { cut: short, cut_wait: short, ..Deadlines::default() };
        let master = Master::start_with(config, deadlines).expect("starts");
        let (asked, mute) = (Asked::default(), Arc::default());
        let server = agreeing_server(master.cluster_id(), &asked, &mute);
        let key = register(&master, &server.address().to_string());
        let mut mount = connect(&master.addresses().hot.to_string(), Duration::from_secs(5)).expect("connects");
        let own = Identity {
            cluster: None,
            role: pb::Role::Mount,
            node: NodeId(0),
            boot: BootSession(2),
            session: SessionId(0),
        };
        offer_hello(&mut mount, &own, pb::Role::Master, deadline()).expect("welcome");
        let mut cluster = Self { mount, number: 0, asked, mute, key, server, _master: master, _directory: directory };
        let client_id = vec![1; 16].into();
        cluster.ask(Body::SessionOpen(pb::SessionOpen { client_id, ..Default::default() })).expect("opened");
        cluster
    }

    fn ask(&mut self, body: Body) -> Result<meta_reply::Body, FsError> {
        self.number += 1;
        let request = pb::MetaRequest { number: self.number, body: Some(body), ..Default::default() };
        let (reply, _): (pb::MetaReply, _) = self
            .mount
            .call(FrameKind::MetaRequest, FrameKind::MetaReply, &request, &[], Some(deadline()))
            .expect("answered");
        match reply.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(reply.body.expect("a body")),
        }
    }

    fn attr(&mut self, body: Body) -> pb::Attr {
        match self.ask(body) {
            Ok(meta_reply::Body::Entry(entry)) => entry.attr.expect("attributes"),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn file(&mut self) -> pb::Attr {
        let kind = Kind::File as u32;
        self.attr(Body::Make(pb::Make { parent: 1, name: "f".into(), kind, ..Default::default() }))
    }

    fn locations(&mut self, inode: u64) -> Result<Vec<pb::ChunkLocation>, FsError> {
        match self.ask(Body::GetChunks(pb::GetChunks { inode, first: 0, count: 2, lost: Vec::new() }))? {
            meta_reply::Body::Chunks(chunks) => Ok(chunks.locations),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// A file of `chunks` whole chunks.
    fn chunked(&mut self, chunks: u32) -> u64 {
        let file = self.file();
        let (inode, all) = (file.inode, 0..chunks);
        for first in all.clone().step_by(256) {
            let count = (chunks - first).min(256);
            self.ask(Body::AllocateChunks(pb::AllocateChunks { inode, first, count })).expect("chunks");
        }
        self.attr(Body::CommitWrite(pb::CommitWrite {
            inode,
            end: u64::from(chunks) * CHUNK_SIZE,
            written: all.collect(),
            leave_inline: true,
            if_data_version: file.data_version,
            ..Default::default()
        }));
        inode
    }

    fn truncate(&mut self, inode: u64, size: u64) -> pb::Attr {
        self.attr(Body::SetAttr(pb::SetAttr { inode, size: Some(size), ..Default::default() }))
    }
}

fn register(master: &Master, address: &str) -> GrantKey {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url = format!("http://{}", master.addresses().control);
        let mut client = ChunkServersClient::connect(url).await.expect("connects");
        let mut key = [0; 32];
        for server in 1..=3u8 {
            let request = pb::RegisterRequest {
                server_id: vec![server; 16].into(),
                boot_session: u64::from(server),
                data_address: address.to_owned(),
                host: format!("host{server}"),
                protocol: PROTOCOL,
                disks: vec![pb::Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Default::default() }],
                ..Default::default()
            };
            let reply = client.register(request).await.expect("registers").into_inner();
            key.copy_from_slice(&reply.grant_key);
            let (node, boot_session) = (reply.node, u64::from(server));
            let pulse = pb::PulseRequest { node, boot_session, ..Default::default() };
            assert!(client.pulse(pulse).await.expect("pulses").into_inner().known);
        }
        GrantKey::new(key)
    })
}

#[test]
fn the_rest_of_the_last_chunk_is_zeroed_before_the_caller_is_told() {
    let mut cluster = Cluster::start();
    let file = cluster.file();
    let allocate = pb::AllocateChunks { inode: file.inode, first: 0, count: 2 };
    let Ok(meta_reply::Body::Chunks(chunks)) = cluster.ask(Body::AllocateChunks(allocate)) else { panic!("no chunks") };
    for location in &chunks.locations {
        let grant = cluster.key.open(&location.grant).expect("our seal");
        assert_eq!((grant.chunk.0, grant.version.0, grant.may_create), (location.chunk, 1, true));
        assert_eq!((grant.members.len(), location.replicas.len()), (3, 3));
        assert_eq!((grant.primary.0, grant.primary_boot.0), (location.replicas[0].node, u64::from(grant.primary.0)));
    }
    let commit = pb::CommitWrite {
        inode: file.inode,
        end: 2 * CHUNK_SIZE,
        written: vec![0, 1],
        leave_inline: true,
        if_data_version: file.data_version,
        ..Default::default()
    };
    cluster.attr(Body::CommitWrite(commit));
    assert!(cluster.asked.lock().expect("alive").is_empty());

    assert_eq!(cluster.truncate(file.inode, CHUNK_SIZE + 100).size, CHUNK_SIZE + 100);
    let (request, _) = cluster.asked.lock().expect("alive").pop().expect("the primary was asked");
    let Some(data_request::Body::Zero(zero)) = request.body else { panic!("unexpected {request:?}") };
    assert_eq!((request.chunk, zero.offset), (chunks.locations[1].chunk, 100));
    assert_eq!(u64::from(zero.offset + zero.length), CHUNK_SIZE);
    let grant = cluster.key.open(&request.grant).expect("our seal");
    assert_eq!((grant.chunk.0, grant.may_create), (request.chunk, false));
    let locations = cluster.locations(file.inode).expect("nothing is pending");
    assert_eq!(locations[1].chunk, request.chunk);

    assert_eq!(cluster.truncate(file.inode, CHUNK_SIZE).chunks, 1);
    assert!(cluster.asked.lock().expect("alive").is_empty(), "a whole chunk goes without a word");
    assert_eq!(cluster.locations(file.inode).expect("there")[1].chunk, 0);
}

#[test]
fn inline_content_moves_to_a_chunk_when_a_truncate_makes_the_file_too_large() {
    let mut cluster = Cluster::start();
    let file = cluster.file();
    let content = Bytes::from_static(b"not much, but not nothing");
    let commit = pb::CommitWrite {
        inode: file.inode,
        content: Some(content.clone()),
        if_data_version: file.data_version,
        ..Default::default()
    };
    cluster.attr(Body::CommitWrite(commit));
    let grown = cluster.truncate(file.inode, 1 << 30);
    assert_eq!((grown.size, grown.is_inline, grown.chunks), (1 << 30, false, 1));
    let (request, payload) = cluster.asked.lock().expect("alive").pop().expect("the primary was asked");
    let Some(data_request::Body::Write(write)) = request.body else { panic!("unexpected {request:?}") };
    assert_eq!((write.offset, payload), (0, content.clone()));
    assert_eq!(unit::verify(0, &content, &write.crcs), Ok(()));
    assert_eq!(cluster.locations(file.inode).expect("there")[0].chunk, request.chunk);
}

#[test]
fn without_the_primary_the_new_size_holds_and_the_old_bytes_are_not_shown() {
    let mut cluster = Cluster::start();
    let inode = cluster.chunked(1);
    cluster.server.stop();
    assert_eq!(cluster.truncate(inode, 7).size, 7);
    assert!(matches!(cluster.locations(inode), Err(FsError::TryAgain(_))));
}

#[test]
fn a_zero_that_was_not_answered_is_void_before_it_is_repeated() {
    let mut cluster = Cluster::start();
    let inode = cluster.chunked(1);
    cluster.mute.store(2, Ordering::SeqCst);
    cluster.truncate(inode, 7);
    let versions: Vec<(u64, u64)> = {
        let asked = cluster.asked.lock().expect("alive");
        let grant = |request: &pb::DataRequest| cluster.key.open(&request.grant).expect("our seal");
        asked.iter().map(|(request, _)| (request.version, grant(request).version.0)).collect()
    };
    assert_eq!(versions, [(1, 1), (2, 2), (3, 3)], "each copy has a version of its own");
    let locations = cluster.locations(inode).expect("nothing is pending");
    assert_eq!(locations[0].version, 3, "what mounts write from now on is above all of them");
}

#[test]
fn a_truncate_of_very_many_chunks_is_done_when_the_caller_is_told() {
    let mut cluster = Cluster::start();
    let inode = cluster.chunked(1_300);
    cluster.truncate(inode, CHUNK_SIZE);
    let attr = cluster.attr(Body::GetAttr(pb::GetAttr { inode }));
    assert_eq!((attr.size, attr.chunks), (CHUNK_SIZE, 1));
    assert!(cluster.asked.lock().expect("alive").is_empty(), "a chunk server has nothing to do with it");
}
