//! A cluster of three chunk servers, and a client that talks to the primary of a chunk.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_chunkd::{ChunkServer, ChunkdConfig};
use dfs_proto::replica_set::{Grant, OrderKind, OrderReport};
use dfs_proto::unit::checksums;
use dfs_proto::wire::pb::{data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello, pb};
use dfs_proto::{BootSession, FsError, NodeId, SessionId};

pub use crate::master::CHUNK_SIZE_LOG2;
use crate::master::{CLUSTER, Master, Record, seal};

pub const UNIT: u32 = 4096;

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
        Chunk { cluster: self, chunk, client: 77, session: 1 }
    }

    /// As [`Self::chunk`], of a chunk to which something was committed: what is absent is not empty.
    pub fn committed(&self, chunk: u64) -> Chunk<'_> {
        let view = self.chunk(chunk);
        view.set(|record| record.may_create = false);
        view
    }

    /// Returns what the server with this index counts under this metric, all labels together.
    pub fn count(&self, at: usize, metric: &str) -> u64 {
        let is_it = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with([' ', '{']));
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
        self.metrics(at).lines().filter(is_it).map(value).sum()
    }

    /// Waits until order `id` is done.
    pub fn wait_outcome(&self, id: u64) -> Result<OrderReport, FsError> {
        wait_until("the outcome of an order", || self.master.state.lock().unwrap().outcomes.contains_key(&id));
        self.master.state.lock().unwrap().outcomes[&id].result.clone()
    }
}

/// How a client sees one chunk.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    pub cluster: &'a Cluster,
    pub chunk: u64,
    pub client: u64,
    pub session: u64,
}

impl Chunk<'_> {
    /// Returns how its replica set stands.
    pub fn record(&self) -> Record {
        self.cluster.master.state.lock().unwrap().record(self.chunk).clone()
    }

    /// Changes its replica set, as the master.
    pub fn set(&self, change: impl FnOnce(&mut Record)) {
        change(self.cluster.master.state.lock().unwrap().record(self.chunk));
    }

    pub fn grant(&self) -> Grant {
        self.cluster.master.state.lock().unwrap().grant(self.chunk)
    }

    /// Gives its primary an order and waits for the outcome.
    pub fn order(&self, kind: OrderKind) -> Result<OrderReport, FsError> {
        let id = self.cluster.master.state.lock().unwrap().order(self.chunk, kind);
        self.cluster.wait_outcome(id)
    }

    /// Has all nodes that left the set filled, until all are in sync again; returns what was copied.
    pub fn refill(&self) -> u64 {
        let copied = Cell::new(0);
        wait_until("all replicas in sync", || {
            let nodes = self.cluster.master.state.lock().unwrap().nodes.keys().copied().collect::<Vec<_>>();
            let record = self.record();
            let Some(away) = nodes.into_iter().find(|node| !record.in_sync.contains(node)) else { return true };
            self.set(|record| record.add(away));
            match self.order(OrderKind::Fill { node: NodeId(away) }) {
                Ok(report) => copied.set(copied.get() + report.copied_bytes),
                Err(error) => eprintln!("node {away} was not filled: {error}"),
            }
            false
        });
        copied.get()
    }

    /// Connects to the server with this index.
    pub fn connect_to(&self, at: usize, role: pb::Role, node: u32, boot: u64) -> Result<Connection, WireError> {
        let address = self.cluster.master.state.lock().unwrap().nodes[&(at as u32 + 1)].address.clone();
        let mut connection = connect(&address, Duration::from_secs(2))?;
        let (node, boot) = (NodeId(node), BootSession(boot));
        let own = Identity { cluster: Some(CLUSTER), role, node, boot, session: SessionId(self.session) };
        let deadline = Instant::now() + Duration::from_secs(2);
        offer_hello(&mut connection, &own, pb::Role::ChunkServer, deadline)?;
        Ok(connection)
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }

    pub fn try_connect(&self) -> Result<Connection, WireError> {
        self.connect_to(self.record().primary as usize - 1, pb::Role::Mount, 0, 5)
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
        ask_with(connection, &self.grant(), body, payload)
    }

    /// Asks by a grant that may be an old one.
    pub fn try_ask_with(
        &self,
        grant: &Grant,
        body: data_request::Body,
        payload: &[u8],
    ) -> Result<Result<(data_reply::Body, Bytes), FsError>, WireError> {
        let mut connection = self.connect_to(grant.primary.0 as usize - 1, pb::Role::Mount, 0, 5)?;
        ask_with(&mut connection, grant, body, payload)
    }

    pub fn ask(&self, body: data_request::Body, payload: &[u8]) -> Result<(data_reply::Body, Bytes), FsError> {
        let lost = |error: WireError| FsError::NoReplica(error.to_string());
        let mut connection = self.try_connect().map_err(lost)?;
        self.try_ask_on(&mut connection, body, payload).map_err(lost)?
    }

    /// Asks as a mount does: again, with a new grant, for as long as that may help.
    fn insist<T>(&self, what: &str, ask: impl Fn() -> Result<T, FsError>) -> T {
        wait_for_ok(what, || match ask() {
            Ok(done) => Ok(Ok(done)),
            Err(error @ (FsError::Stale(_) | FsError::TryAgain(_) | FsError::NoReplica(_))) => Err(error),
            Err(error) => Ok(Err(error)),
        })
        .unwrap_or_else(|error| panic!("{what} of chunk {}: {error}", self.chunk))
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
        self.insist("a write", || self.try_write(offset, data, number))
    }

    pub fn write_on(&self, connection: &mut Connection, offset: u32, data: &[u8], number: u64) {
        self.ask_on(connection, self.write_request(offset, data, number), data).unwrap();
    }

    pub fn read_on(&self, connection: &mut Connection, offset: u32, length: u32) -> Bytes {
        self.ask_on(connection, data_request::Body::Read(pb::Read { offset, length }), &[]).unwrap().1
    }

    #[allow(dead_code, reason = "the figures in examples/ use it")]
    pub fn barrier_on(&self, connection: &mut Connection) -> Result<(), FsError> {
        self.ask_on(connection, data_request::Body::Barrier(pb::Barrier { since: 0 }), &[]).map(|_| ())
    }

    pub fn zero(&self, offset: u32, length: u32, number: u64) {
        let zero = pb::Zero { offset, length, client: self.client, number };
        self.insist("zeroing", || self.ask(data_request::Body::Zero(zero), &[]));
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
        let data = self.insist("a read", || self.try_read(offset, length));
        data.map_or_else(|| vec![0; length as usize], |data| data.to_vec())
    }

    pub fn barrier(&self) -> Result<(), FsError> {
        self.ask(data_request::Body::Barrier(pb::Barrier { since: 0 }), &[]).map(|_| ())
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

    /// Checks that all servers are in sync, and that all units of all replicas are equal and good.
    pub fn assert_replicas_are_equal(&self) {
        // Afterwards all members go by the version of the record.
        self.read(0, 1);
        let record = self.record();
        assert_eq!((record.in_sync.len(), record.syncing.len()), (3, 0), "{record:?}");
        let fetch = |at| self.fetch_from(at, record.version).unwrap_or_else(|error| panic!("node {}: {error}", at + 1));
        let contents = [0, 1, 2].map(fetch);
        assert!(contents[0] == contents[1] && contents[0] == contents[2], "replicas of chunk {} differ", self.chunk);
    }

    /// Reads all units from the server with this index, as another chunk server does.
    pub fn fetch_from(&self, at: usize, version: u64) -> Result<(pb::Units, Bytes), FsError> {
        let asks_as = if at == 0 { 2 } else { 1 };
        let boot = self.cluster.master.state.lock().unwrap().nodes[&asks_as].boot;
        let mut connection = self.connect_to(at, pb::Role::ChunkServer, asks_as, boot).unwrap();
        let body =
            data_request::Body::FetchUnits(pb::FetchUnits { first_unit: 0, units: (1 << CHUNK_SIZE_LOG2) / UNIT });
        let request = pb::DataRequest { chunk: self.chunk, version, grant: Bytes::new(), body: Some(body) };
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let (reply, payload): (pb::DataReply, _) =
            connection.call(FrameKind::DataRequest, FrameKind::DataReply, &request, &[], deadline).unwrap();
        match (reply.failure, reply.body) {
            (Some(failure), _) => Err(failure.into()),
            (None, Some(data_reply::Body::Units(units))) => Ok((units, payload)),
            (None, other) => panic!("{other:?}"),
        }
    }
}

fn ask_with(
    connection: &mut Connection,
    grant: &Grant,
    body: data_request::Body,
    payload: &[u8],
) -> Result<Result<(data_reply::Body, Bytes), FsError>, WireError> {
    let request =
        pb::DataRequest { chunk: grant.chunk.0, version: grant.version.0, grant: seal(grant), body: Some(body) };
    let deadline = Some(Instant::now() + Duration::from_secs(20));
    let (reply, payload): (pb::DataReply, _) =
        connection.call(FrameKind::DataRequest, FrameKind::DataReply, &request, payload, deadline)?;
    Ok(match reply.failure {
        Some(failure) => Err(failure.into()),
        None => Ok((reply.body.unwrap(), payload)),
    })
}

pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
}

/// Flips a bit of a file.
pub fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).unwrap();
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
