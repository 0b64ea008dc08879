//! A cluster of three chunk servers, and a client that talks to the primary of a chunk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_chunkd::{ChunkServer, ChunkdConfig};
use dfs_proto::unit::checksums;
use dfs_proto::wire::pb::{data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello, pb};
use dfs_proto::{BootSession, FsError, NodeId, SessionId};

use crate::master::{CLUSTER, Master};

pub const UNIT: u32 = 4096;
pub const CHUNK_SIZE_LOG2: u32 = 20;

pub struct Cluster {
    pub master: Master,
    pub servers: Vec<Option<ChunkServer>>,
    pub root: tempfile::TempDir,
    configure: Configure,
}

/// Changes the settings of the server with this index, whose directory would be this.
pub type Configure = fn(usize, &Path, &mut ChunkdConfig);

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(|_, _, _| {})
    }

    /// A master and nobody else.
    pub fn alone() -> Self {
        Self::alone_with(|_, _, _| {})
    }

    pub fn alone_with(configure: Configure) -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { master: Master::start(), servers: (0..3).map(|_| None).collect(), root, configure }
    }

    pub fn start_with(configure: Configure) -> Self {
        let mut cluster = Self::alone_with(configure);
        for at in 0..3 {
            cluster.start_server(at);
            // One after the other, so that server `at` is node `at + 1`.
            cluster.wait_registered(at);
        }
        cluster
    }

    pub fn data(&self, at: usize) -> PathBuf {
        self.root.path().join(format!("node{}", at + 1))
    }

    pub fn start_server(&mut self, at: usize) {
        let mut config = ChunkdConfig::new(vec![self.data(at)], self.master.hot_address.clone());
        config.listen = "127.0.0.1:0".into();
        config.reserve_bytes = 0;
        config.op_timeout_ms = 3_000;
        (self.configure)(at, &self.data(at), &mut config);
        self.servers[at] = Some(ChunkServer::start(config).unwrap());
    }

    pub fn wait_registered(&self, at: usize) {
        let server = self.servers[at].as_ref().unwrap();
        let address = server.addresses().data.to_string();
        wait_until("registration", || {
            server.node() == NodeId(at as u32 + 1)
                && self.master.state.lock().unwrap().nodes[&(at as u32 + 1)].address == address
        });
        wait_until("a lease", || self.page(at, "/healthz").contains("200 OK"));
    }

    pub fn stop(&mut self, at: usize) {
        self.servers[at].take().unwrap().stop();
    }

    /// Stops a server and makes its directory look as after kill -9.
    pub fn kill(&mut self, at: usize) {
        self.stop(at);
        std::fs::remove_file(self.data(at).join("CLEAN")).unwrap();
    }

    pub fn restart(&mut self, at: usize) {
        self.start_server(at);
        self.wait_registered(at);
    }

    pub fn replica_path(&self, at: usize, chunk: u64) -> PathBuf {
        self.data(at).join(format!("replicas/{:02x}/{chunk:016x}", chunk >> 8 & 0xff))
    }

    pub fn metrics(&self, at: usize) -> String {
        self.page(at, "/metrics")
    }

    /// Returns what a server answers to an HTTP request, head and body.
    pub fn page(&self, at: usize, path: &str) -> String {
        http_get(&self.servers[at].as_ref().unwrap().addresses().http.to_string(), path)
    }

    pub fn chunk(&self, chunk: u64) -> Chunk<'_> {
        Chunk { cluster: self, chunk, version: 1, primary: 0, may_create: true, client: 77 }
    }
}

/// How a client sees one chunk.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    pub cluster: &'a Cluster,
    pub chunk: u64,
    pub version: u64,
    /// Index of the primary's server.
    pub primary: usize,
    pub may_create: bool,
    pub client: u64,
}

impl Chunk<'_> {
    pub fn connect_as(&self, role: pb::Role, node: u32, boot: u64) -> Connection {
        self.try_connect_as(role, node, boot).unwrap()
    }

    fn try_connect_as(&self, role: pb::Role, node: u32, boot: u64) -> Result<Connection, WireError> {
        let address = self.cluster.master.state.lock().unwrap().nodes[&(self.primary as u32 + 1)].address.clone();
        let mut connection = connect(&address, Duration::from_secs(2))?;
        let (node, boot) = (NodeId(node), BootSession(boot));
        let own = Identity { cluster: Some(CLUSTER), role, node, boot, session: SessionId(1) };
        let deadline = Instant::now() + Duration::from_secs(2);
        offer_hello(&mut connection, &own, pb::Role::ChunkServer, deadline)?;
        Ok(connection)
    }

    pub fn grant(&self) -> pb::Grant {
        let state = self.cluster.master.state.lock().unwrap();
        let primary = self.primary as u32 + 1;
        pb::Grant {
            chunk: self.chunk,
            version: self.version,
            primary,
            primary_boot: state.nodes[&primary].boot,
            members: state
                .nodes
                .iter()
                .map(|(node, known)| pb::Replica { node: *node, address: known.address.clone(), alive: true })
                .collect(),
            may_create: self.may_create,
            chunk_size_log2: CHUNK_SIZE_LOG2,
            min_in_sync: 2,
            ..Default::default()
        }
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }

    pub fn try_connect(&self) -> Result<Connection, WireError> {
        self.try_connect_as(pb::Role::Mount, 0, 5)
    }

    pub fn ask_on(
        &self,
        connection: &mut Connection,
        body: data_request::Body,
        payload: &[u8],
    ) -> Result<(data_reply::Body, Bytes), FsError> {
        self.try_ask_on(connection, body, payload).unwrap()
    }

    /// Asks a server that may die meanwhile: the outer error says that there was no answer.
    pub fn try_ask_on(
        &self,
        connection: &mut Connection,
        body: data_request::Body,
        payload: &[u8],
    ) -> Result<Result<(data_reply::Body, Bytes), FsError>, WireError> {
        let grant = self.cluster.master.grant(&self.grant());
        let request = pb::DataRequest { chunk: self.chunk, version: self.version, grant, body: Some(body) };
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let (reply, payload): (pb::DataReply, _) =
            connection.call(FrameKind::DataRequest, FrameKind::DataReply, &request, payload, deadline)?;
        Ok(match reply.failure {
            Some(failure) => Err(failure.into()),
            None => Ok((reply.body.unwrap(), payload)),
        })
    }

    pub fn ask(&self, body: data_request::Body, payload: &[u8]) -> Result<(data_reply::Body, Bytes), FsError> {
        self.ask_on(&mut self.connect(), body, payload)
    }

    pub fn write_request(&self, offset: u32, data: &[u8], number: u64) -> data_request::Body {
        let crcs = checksums(offset, data);
        data_request::Body::Write(pb::Write { offset, crcs, client: self.client, number })
    }

    pub fn try_write(&self, offset: u32, data: &[u8], number: u64) -> Result<u64, FsError> {
        match self.ask(self.write_request(offset, data, number), data)?.0 {
            data_reply::Body::Written(written) => Ok(written.seq),
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&self, offset: u32, data: &[u8], number: u64) -> u64 {
        self.try_write(offset, data, number).unwrap()
    }

    pub fn write_on(&self, connection: &mut Connection, offset: u32, data: &[u8], number: u64) {
        self.ask_on(connection, self.write_request(offset, data, number), data).unwrap();
    }

    pub fn read_on(&self, connection: &mut Connection, offset: u32, length: u32) -> Bytes {
        self.ask_on(connection, data_request::Body::Read(pb::Read { offset, length }), &[]).unwrap().1
    }

    pub fn barrier_on(&self, connection: &mut Connection) -> Result<(), FsError> {
        self.ask_on(connection, data_request::Body::Barrier(pb::Barrier {}), &[]).map(|_| ())
    }

    pub fn zero(&self, offset: u32, length: u32, number: u64) {
        let zero = pb::Zero { offset, length, client: self.client, number };
        self.ask(data_request::Body::Zero(zero), &[]).unwrap();
    }

    /// Reads and checks; `None` for a hole.
    pub fn try_read(&self, offset: u32, length: u32) -> Result<Option<Bytes>, FsError> {
        let (body, payload) = self.ask(data_request::Body::Read(pb::Read { offset, length }), &[])?;
        let data_reply::Body::ReadData(data) = body else { panic!("{body:?}") };
        if data.all_zero {
            assert!(payload.is_empty());
            return Ok(None);
        }
        assert_eq!(payload.len(), length as usize);
        assert_eq!(data.crcs, checksums(offset, &payload));
        Ok(Some(payload))
    }

    pub fn read(&self, offset: u32, length: u32) -> Vec<u8> {
        self.try_read(offset, length).unwrap().map_or_else(|| vec![0; length as usize], |data| data.to_vec())
    }

    pub fn barrier(&self) -> Result<(), FsError> {
        self.barrier_on(&mut self.connect())
    }

    pub fn extents(&self) -> Vec<(u32, u32)> {
        let ask = pb::Extents { offset: 0, length: 1 << CHUNK_SIZE_LOG2 };
        match self.ask(data_request::Body::Extents(ask), &[]).unwrap().0 {
            data_reply::Body::ExtentMap(map) => {
                map.extents.iter().map(|extent| (extent.offset / UNIT, extent.length / UNIT)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Checks that all servers have the same unit table and that all data matches it.
    pub fn assert_replicas_are_equal(&self) {
        use dfs_chunkd::store::look::look;
        use dfs_chunkd::store::volume::OsVolume;
        use dfs_proto::ChunkId;
        let tables = [0, 1, 2].map(|at| {
            let seen = look(&OsVolume::peek(&self.cluster.data(at)), ChunkId(self.chunk)).unwrap().unwrap();
            assert!(!seen.header.incomplete, "node {}", at + 1);
            assert_eq!(seen.bad, [0; 0], "node {}", at + 1);
            seen.table
        });
        assert_eq!(tables[0], tables[1]);
        assert_eq!(tables[0], tables[2]);
    }
}

pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
}

/// How long a condition may take to come true, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait_for_ok(what, || condition().then_some(()).ok_or("not yet"));
}

/// Tries until there is no error, and tells the last one if that takes too long.
pub fn wait_for_ok<T, E: std::fmt::Debug>(what: &str, attempt: impl Fn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn http_get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
