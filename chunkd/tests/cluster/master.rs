//! The control plane of a master that only knows chunk servers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dfs_proto::ClusterId;
use dfs_proto::grant::GrantKey;
use dfs_proto::wire::pb;
use dfs_proto::wire::pb::chunk_servers_server::{ChunkServers, ChunkServersServer};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
pub const KEY: [u8; 32] = [9; 32];
pub const LEASE_MS: u64 = 2_000;

#[derive(Clone, Debug)]
pub struct Node {
    pub server: Bytes,
    pub boot: u64,
    pub address: String,
    pub clean_stop: bool,
}

#[derive(Default, Debug)]
pub struct State {
    pub nodes: BTreeMap<u32, Node>,
    pub delete: Vec<u64>,
    pub deleted: Vec<(u32, u64)>,
    /// Nodes that reported a failed disk.
    pub failed: BTreeSet<u32>,
    pub is_deaf: bool,
    /// Registrations are refused with this.
    pub refuses: Option<String>,
    pub registrations: u64,
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

    pub fn grant(&self, grant: &pb::Grant) -> Bytes {
        GrantKey::new(KEY).seal(&grant.clone().into())
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
        let node = Node {
            server: request.server_id,
            boot: request.boot_session,
            address: request.data_address,
            clean_stop: request.clean_stop,
        };
        state.nodes.insert(id, node);
        Ok(Response::new(pb::RegisterReply {
            cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
            node: id,
            grant_key: Bytes::copy_from_slice(&KEY),
            lease_ms: LEASE_MS,
            pulse_ms: 50,
            report_ms: 30_000,
            ..Default::default()
        }))
    }

    async fn pulse(&self, request: Request<pb::PulseRequest>) -> Result<Response<pb::PulseReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if state.is_deaf {
            return Err(Status::unavailable("deaf"));
        }
        let known = state.nodes.get(&request.node).is_some_and(|node| node.boot == request.boot_session);
        state.deleted.extend(request.deleted.iter().map(|chunk| (request.node, *chunk)));
        let done = |chunk: &u64| state.deleted.contains(&(request.node, *chunk));
        let delete = state.delete.iter().copied().filter(|chunk| !done(chunk)).collect();
        Ok(Response::new(pb::PulseReply { known, lease_ms: LEASE_MS, delete, ..Default::default() }))
    }

    async fn change_replicas(
        &self,
        _request: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasReply>, Status> {
        Err(Status::unimplemented("this master of a test changes nothing"))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if request.disks.iter().any(|disk| disk.failed) {
            state.failed.insert(request.node);
        }
        drop(state);
        Ok(Response::new(pb::ReportReply { known: true }))
    }
}
