//! The control plane of a master that only knows chunk servers, and the replica sets of chunks that tests name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dfs_proto::grant::GrantKey;
use dfs_proto::replica_set::{
    ChangeAnswer, ChangeKind, ChangeRequest, Grant, Home, Member, Order, OrderKind, OrderOutcome,
};
use dfs_proto::wire::pb;
use dfs_proto::wire::pb::chunk_servers_server::{ChunkServers, ChunkServersServer};
use dfs_proto::{BootSession, ChunkId, ChunkIndex, ClusterId, FsError, InodeId, NodeId, Version};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
pub const KEY: [u8; 32] = [9; 32];
pub const LEASE_MS: u64 = 2_000;
pub const CHUNK_SIZE_LOG2: u32 = 20;

#[derive(Clone, Debug)]
pub struct Node {
    pub server: Bytes,
    pub boot: u64,
    pub address: String,
    pub clean_stop: bool,
    pub suspect: bool,
    /// The fence that it reported.
    pub fence_seq: u64,
    /// Chunk, inode and version of the replicas that it reported in its last complete pass, and in the one under way.
    pub held: BTreeMap<u64, (u64, u64)>,
    pub reporting: BTreeMap<u64, (u64, u64)>,
    pub damaged: BTreeSet<u64>,
}

/// A chunk's replica set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub version: u64,
    pub primary: u32,
    pub in_sync: Vec<u32>,
    pub syncing: Vec<u32>,
    pub stale: Vec<u32>,
    pub may_create: bool,
}

impl Record {
    /// As after a Drop.
    pub fn remove(&mut self, node: u32) {
        self.in_sync.retain(|member| *member != node);
        self.syncing.retain(|member| *member != node);
        if !self.stale.contains(&node) {
            self.stale.push(node);
        }
        self.version += 1;
    }

    /// As after a node of the set was lost for good, and its lease has ended.
    pub fn take_over(&mut self, primary: u32) {
        let old = self.primary;
        assert!(self.in_sync.contains(&primary) && old != primary, "{self:?}");
        self.remove(old);
        self.primary = primary;
    }

    /// Adds a replica that is to be filled.
    pub fn add(&mut self, node: u32) {
        assert!(!self.in_sync.contains(&node), "{self:?}");
        self.stale.retain(|stale| *stale != node);
        if !self.syncing.contains(&node) {
            self.syncing.push(node);
            self.version += 1;
        }
    }
}

#[derive(Default, Debug)]
pub struct State {
    pub nodes: BTreeMap<u32, Node>,
    pub chunks: BTreeMap<u64, Record>,
    /// What was asked about replica sets: who, which chunk, and the answer.
    pub changes: Vec<(ChangeRequest, Result<(), FsError>)>,
    /// So many answers to changes are lost: what was asked is done all the same, or not at all.
    pub lost_answers: u32,
    pub lost_requests: u32,
    pub orders: BTreeMap<u32, Vec<Order>>,
    pub outcomes: BTreeMap<u64, OrderOutcome>,
    pub fenced: Vec<u64>,
    pub fence_seq: u64,
    pub repair_bytes_per_second: u64,
    pub delete: Vec<u64>,
    pub deleted: Vec<(u32, u64)>,
    /// Nodes that reported a failed disk.
    pub failed: BTreeSet<u32>,
    pub is_deaf: bool,
    /// Registrations are refused with this.
    pub refuses: Option<String>,
    pub registrations: u64,
    /// Runs that have ended, whether their servers know it or not.
    pub ended: BTreeSet<u64>,
}

impl State {
    /// Returns the record of `chunk`. A new one has all nodes in sync, the first being the primary.
    pub fn record(&mut self, chunk: u64) -> &mut Record {
        let nodes = &self.nodes;
        self.chunks.entry(chunk).or_insert_with(|| Record {
            version: 1,
            primary: 1,
            in_sync: nodes.keys().copied().collect(),
            syncing: Vec::new(),
            stale: Vec::new(),
            may_create: true,
        })
    }

    /// Returns how the set of `chunk` stands.
    pub fn grant(&mut self, chunk: u64) -> Grant {
        let record = self.record(chunk).clone();
        let member = |node: &u32| Member { node: NodeId(*node), address: self.nodes[node].address.as_str().into() };
        Grant {
            chunk: ChunkId(chunk),
            home: home(chunk),
            version: Version(record.version),
            primary: NodeId(record.primary),
            primary_boot: BootSession(self.nodes[&record.primary].boot),
            members: record.in_sync.iter().map(member).collect(),
            syncing: record.syncing.iter().map(member).collect(),
            min_in_sync: 2,
            may_create: record.may_create,
            chunk_size_log2: CHUNK_SIZE_LOG2,
            loss_version: Version(0),
        }
    }

    /// Gives an order about `chunk` to its primary, and returns its id.
    pub fn order(&mut self, chunk: u64, kind: OrderKind) -> u64 {
        let primary = self.record(chunk).primary;
        let grant = seal(&self.grant(chunk));
        self.order_to(primary, Order { id: 0, chunk: ChunkId(chunk), kind, grant })
    }

    pub fn order_to(&mut self, node: u32, order: Order) -> u64 {
        let id = self.orders.values().map(Vec::len).sum::<usize>() as u64 + 1;
        self.orders.entry(node).or_default().push(Order { id, ..order });
        id
    }

    /// The compare-and-set.
    fn change(&mut self, request: &ChangeRequest) -> Result<(), FsError> {
        let me = request.node.0;
        if self.nodes.get(&me).is_none_or(|node| node.boot != request.boot.0) {
            return Err(FsError::Stale("asked by a run that has ended"));
        }
        assert_eq!(request.home, home(request.chunk.0), "the chunk's home is passed on");
        let nodes = self.nodes.keys().copied().collect::<Vec<_>>();
        let Some(record) = self.chunks.get_mut(&request.chunk.0) else { return Err(FsError::NoEntry) };
        let is_current = record.version == request.version.0;
        let is_done = record.version == request.version.0 + 1
            && match &request.kind {
                ChangeKind::Drop { node } => !record.in_sync.contains(&node.0) && !record.syncing.contains(&node.0),
                ChangeKind::Leave => !record.in_sync.contains(&me) && !record.syncing.contains(&me),
                ChangeKind::FinishSync { node } => record.in_sync.contains(&node.0),
                ChangeKind::Refresh => false,
            };
        if is_done {
            return Ok(());
        }
        if matches!(request.kind, ChangeKind::Refresh) {
            return if record.primary == me { Ok(()) } else { Err(FsError::Stale("not the primary")) };
        }
        if !is_current {
            return Err(FsError::Stale("the set has changed"));
        }
        let is_primary = record.primary == me;
        match &request.kind {
            ChangeKind::Drop { node } if is_primary && node.0 != me => record.remove(node.0),
            ChangeKind::FinishSync { node } if is_primary && record.syncing.contains(&node.0) => {
                record.syncing.retain(|member| *member != node.0);
                record.in_sync.push(node.0);
                record.version += 1;
            }
            ChangeKind::Leave if record.syncing.contains(&me) => record.remove(me),
            ChangeKind::Leave if record.in_sync.contains(&me) => {
                let Some(heir) = record.in_sync.iter().copied().find(|node| *node != me && nodes.contains(node)) else {
                    return Err(FsError::Busy);
                };
                record.remove(me);
                if is_primary {
                    record.primary = heir;
                }
            }
            _ => return Err(FsError::Stale("not for the sender to ask")),
        }
        Ok(())
    }
}

/// Takes one of what is counted, if there is one.
fn take_one(count: &mut u32) -> bool {
    let is_any = *count > 0;
    *count -= u32::from(is_any);
    is_any
}

/// Every chunk of these tests is the third of the inode of its number.
pub fn home(chunk: u64) -> Home {
    Home { inode: InodeId(chunk), index: ChunkIndex(2) }
}

pub fn seal(grant: &Grant) -> Bytes {
    GrantKey::new(KEY).seal(grant)
}

#[derive(Clone)]
pub struct Master {
    pub state: Arc<Mutex<State>>,
    /// As a chunk server is told it: the hot address, one port below.
    pub hot_address: String,
    _runtime: Arc<Runtime>,
}

impl Master {
    pub fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let service = ChunkServersServer::new(Control(Arc::clone(&state)));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { state, hot_address: format!("127.0.0.1:{}", port - 1), _runtime: Arc::new(runtime) }
    }
}

struct Control(Arc<Mutex<State>>);

#[tonic::async_trait]
impl ChunkServers for Control {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if state.is_deaf {
            return Err(Status::unavailable("deaf"));
        }
        state.registrations += 1;
        if let Some(reason) = &state.refuses {
            return Err(Status::failed_precondition(reason));
        }
        let known = state.nodes.iter().find(|(_, node)| node.server == request.server_id).map(|(id, _)| *id);
        let id = known.unwrap_or(state.nodes.len() as u32 + 1);
        let boot =
            if state.ended.contains(&request.boot_session) { request.boot_session ^ 1 } else { request.boot_session };
        let node = Node {
            server: request.server_id,
            boot,
            address: request.data_address,
            clean_stop: request.clean_stop,
            suspect: request.suspect,
            fence_seq: 0,
            held: BTreeMap::new(),
            reporting: BTreeMap::new(),
            damaged: BTreeSet::new(),
        };
        state.nodes.insert(id, node);
        Ok(Response::new(pb::RegisterReply {
            cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
            node: id,
            grant_key: Bytes::copy_from_slice(&KEY),
            lease_ms: LEASE_MS,
            pulse_ms: 50,
            report_ms: 30_000,
            repair_bytes_per_second: state.repair_bytes_per_second,
            boot_session: boot,
            ..Default::default()
        }))
    }

    async fn pulse(&self, request: Request<pb::PulseRequest>) -> Result<Response<pb::PulseReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if state.is_deaf {
            return Err(Status::unavailable("deaf"));
        }
        let known = match state.nodes.get_mut(&request.node) {
            Some(node) if node.boot == request.boot_session => {
                node.fence_seq = request.fence_seq;
                true
            }
            _ => false,
        };
        state.deleted.extend(request.deleted.iter().map(|chunk| (request.node, *chunk)));
        for outcome in request.results.into_iter().map(OrderOutcome::from) {
            let known = state.outcomes.insert(outcome.id, outcome.clone());
            assert!(known.is_none_or(|known| known == outcome), "an order was carried out twice: {outcome:?}");
        }
        let done = |chunk: &u64| state.deleted.contains(&(request.node, *chunk));
        let delete = state.delete.iter().copied().filter(|chunk| !done(chunk)).collect();
        let orders = state.orders.get(&request.node).into_iter().flatten();
        Ok(Response::new(pb::PulseReply {
            known,
            lease_ms: LEASE_MS,
            delete,
            orders: orders.filter(|order| !state.outcomes.contains_key(&order.id)).map(Into::into).collect(),
            fenced: state.fenced.clone(),
            fence_seq: state.fence_seq,
        }))
    }

    async fn change_replicas(
        &self,
        request: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasReply>, Status> {
        let request = ChangeRequest::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut state = self.0.lock().unwrap();
        if state.is_deaf || take_one(&mut state.lost_requests) {
            return Err(Status::unavailable("the request is lost"));
        }
        let result = state.change(&request);
        state.changes.push((request.clone(), result.clone()));
        if take_one(&mut state.lost_answers) {
            return Err(Status::unavailable("the answer is lost"));
        }
        let is_primary = state.chunks.get(&request.chunk.0).is_some_and(|record| record.primary == request.node.0);
        let grant = is_primary.then(|| seal(&state.grant(request.chunk.0)));
        Ok(Response::new(ChangeAnswer { result, grant }.into()))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if request.disks.iter().any(|disk| disk.failed) {
            state.failed.insert(request.node);
        }
        if let Some(node) = state.nodes.get_mut(&request.node) {
            assert!(request.held.len() <= 1_000);
            assert!(request.held.is_sorted_by_key(|held| held.chunk));
            node.reporting.extend(request.held.iter().map(|held| (held.chunk, (held.inode, held.version))));
            node.damaged.extend(request.damaged.iter().map(|held| held.chunk));
            if request.end {
                node.held = std::mem::take(&mut node.reporting);
            }
        }
        drop(state);
        Ok(Response::new(pb::ReportReply { known: true }))
    }
}
