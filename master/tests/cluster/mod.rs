//! A running master, a mount, and chunk servers that only register, pulse and ask for changes of replica sets.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_master::{Deadlines, EngineKind, Master, MasterConfig};
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::{ChangeAnswer, ChangeKind, ChangeRequest, Grant};
use dfs_proto::wire::pb::{self, meta_reply, meta_request::Body};
use dfs_proto::wire::{Connection, FrameKind, Identity, PROTOCOL, connect, offer_hello};
use dfs_proto::{BootSession, FsError, Kind, NodeId, SessionId};
use pb::chunk_servers_client::ChunkServersClient;
use tonic::transport::Channel;

/// Node leases of these tests, in milliseconds.
pub const LEASE_MS: u64 = 1_000;
/// As the master adds to it.
pub const GUARD_MS: u64 = 110;

pub struct Cluster {
    master: Master,
    runtime: tokio::runtime::Runtime,
    nodes: ChunkServersClient<Channel>,
    mount: Connection,
    number: u64,
    pub key: GrantKey,
    config: MasterConfig,
}

/// What a mount is told of one chunk, opened.
pub struct Located {
    pub replicas: Vec<u32>,
    pub is_primary_alive: bool,
    pub grant: Grant,
}

pub fn config(directory: &Path, engine: EngineKind) -> MasterConfig {
    MasterConfig {
        data: directory.to_owned(),
        listen: "127.0.0.1:0".into(),
        engine,
        lease_ms: LEASE_MS,
        // The caretaker, which fills up sets again, comes by this often.
        pulse_ms: 1_000,
        ..MasterConfig::default()
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn dial(master: &Master) -> Connection {
    let mut mount = connect(&master.addresses().hot.to_string(), Duration::from_secs(5)).expect("connects");
    let own =
        Identity { cluster: None, role: pb::Role::Mount, node: NodeId(0), boot: BootSession(2), session: SessionId(0) };
    offer_hello(&mut mount, &own, pb::Role::Master, deadline()).expect("welcome");
    mount
}

impl Cluster {
    /// Starts a master and opens a session; `servers` chunk servers register, each in run 1.
    pub fn start(config: MasterConfig, servers: u8) -> Self {
        Self::start_after(config, servers, 0)
    }

    fn start_after(config: MasterConfig, servers: u8, number: u64) -> Self {
        let master = Master::start_with(config.clone(), Deadlines::default()).expect("starts");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("http://{}", master.addresses().control);
        let nodes = runtime.block_on(ChunkServersClient::connect(url)).expect("connects");
        let mount = dial(&master);
        let key = GrantKey::new([0; 32]);
        let mut cluster = Self { master, runtime, nodes, mount, number, key, config };
        for server in 1..=servers {
            let reply = cluster.register(server, 1, false);
            let key: [u8; 32] = reply.grant_key[..].try_into().expect("32 bytes");
            cluster.key = GrantKey::new(key);
            assert_eq!(reply.node, u32::from(server));
        }
        cluster.open_session();
        cluster
    }

    fn open_session(&mut self) {
        let open = pb::SessionOpen { client_id: vec![1; 16].into(), ..Default::default() };
        self.ask(Body::SessionOpen(open)).expect("opened");
    }

    /// Stops the master, and starts another on the same data. The mount's session goes on in it.
    pub fn restart(self) -> Self {
        let Self { master, config, key, number, .. } = self;
        master.stop();
        let mut cluster = Self::start_after(MasterConfig { reclaim_window_ms: 0, ..config }, 0, number);
        cluster.key = key;
        cluster
    }

    pub fn register(&mut self, server: u8, boot: u64, suspect: bool) -> pb::RegisterReply {
        let request = pb::RegisterRequest {
            server_id: vec![server; 16].into(),
            boot_session: boot,
            data_address: format!("127.0.0.1:{}", 7_100 + u16::from(server)),
            host: format!("host{server}"),
            protocol: PROTOCOL,
            suspect,
            disks: vec![pb::Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Default::default() }],
            ..Default::default()
        };
        self.runtime.block_on(self.nodes.register(request)).expect("registered").into_inner()
    }

    pub fn pulse(&mut self, node: u32, boot: u64) -> pb::PulseReply {
        let request = pb::PulseRequest { node, boot_session: boot, ..Default::default() };
        self.runtime.block_on(self.nodes.pulse(request)).expect("answered").into_inner()
    }

    pub fn pulse_with(&mut self, request: pb::PulseRequest) -> pb::PulseReply {
        self.runtime.block_on(self.nodes.pulse(request)).expect("answered").into_inner()
    }

    /// Asks as `node` in its run `boot` for a change of the set of `of`, and returns the answer with its grant opened.
    pub fn change(
        &mut self,
        node: u32,
        boot: u64,
        of: &Grant,
        kind: ChangeKind,
    ) -> (Result<(), FsError>, Option<Grant>) {
        let request = ChangeRequest {
            node: NodeId(node),
            boot: BootSession(boot),
            chunk: of.chunk,
            home: of.home,
            version: of.version,
            kind,
            reason: "a test".into(),
        };
        let message = pb::ChangeReplicasRequest::from(&request);
        let reply = self.runtime.block_on(self.nodes.change_replicas(message)).expect("answered").into_inner();
        let answer = ChangeAnswer::from(reply);
        (answer.result, answer.grant.map(|sealed: Bytes| self.key.open(&sealed).expect("sealed by this master")))
    }

    pub fn ask(&mut self, body: Body) -> Result<meta_reply::Body, FsError> {
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

    /// Returns where the control plane is.
    #[allow(dead_code, reason = "not every test has a client of its own")]
    pub fn control(&self) -> std::net::SocketAddr {
        self.master.addresses().control
    }

    /// Makes a file with one chunk, and returns the inode.
    pub fn file_with_a_chunk(&mut self) -> u64 {
        let make = pb::Make { parent: 1, name: "f".into(), kind: Kind::File as u32, ..Default::default() };
        let Ok(meta_reply::Body::Entry(entry)) = self.ask(Body::Make(make)) else { panic!("not made") };
        let inode = entry.attr.expect("attributes").inode;
        self.ask(Body::AllocateChunks(pb::AllocateChunks { inode, first: 0, count: 1 })).expect("a chunk");
        inode
    }

    /// Asks where the first chunk of a file is.
    pub fn locate(&mut self, inode: u64) -> Result<Located, FsError> {
        let asked = Body::GetChunks(pb::GetChunks { inode, first: 0, count: 1, lost: Vec::new() });
        let meta_reply::Body::Chunks(mut chunks) = self.ask(asked)? else { panic!("not chunks") };
        let location = chunks.locations.pop().expect("one location");
        let grant = self.key.open(&location.grant).expect("sealed by this master");
        assert_eq!(grant.version.0, location.version);
        assert_eq!(grant.primary.0, location.replicas[0].node, "the primary is the first");
        let nodes: BTreeSet<u32> = location.replicas.iter().map(|replica| replica.node).collect();
        let is_primary_alive = location.replicas[0].alive;
        Ok(Located { replicas: nodes.into_iter().collect(), is_primary_alive, grant })
    }

    /// Pulses all of `alive`, each in the run beside it, for `ms`; calls `look` after each round.
    pub fn live(&mut self, alive: &[(u32, u64)], ms: u64, mut look: impl FnMut(&mut Self)) {
        let until = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < until {
            for (node, boot) in alive {
                assert!(self.pulse(*node, *boot).known, "node {node}");
            }
            look(self);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
