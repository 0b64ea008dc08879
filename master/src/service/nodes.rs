//! The gRPC service of chunk servers: registration, pulses, reports. Also serves the admin service beside it.
//!
//! A pulse touches nothing but the node table, so that leases go on however busy the executor is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::replica_set::{ChangeAnswer, ChangeKind, ChangeRequest, Home};
use dfs_proto::wire::{PROTOCOL, PROTOCOL_MIN, pb};
use dfs_proto::{BootSession, ChunkId, ChunkIndex, ClusterId, FsError, InodeId, NodeId, Seq, Version};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::Shared;
use super::admin::AdminService;
use crate::core::care::NodeFacts;
use crate::core::inventory::{Held, Page};
use crate::core::node_table::{DELETE_QUEUE_MAX, Disk};
use crate::state::{ChangeReply, Pulse, Registered, Registration, Report};
use pb::admin_server::AdminServer;
use pb::chunk_servers_server::{ChunkServers, ChunkServersServer};

/// Most bytes of a request on the control plane.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Most disks of one chunk server.
const DISKS_MAX: usize = 256;
/// Most bytes of any text a chunk server says of itself.
const TEXT_BYTES_MAX: usize = 1_024;
/// Most bytes of the address of a data plane: a name of 253, a colon, a port. A reply of the hot plane names it for each of
/// a few hundred chunks, twice, and must fit a frame.
const ADDRESS_BYTES_MAX: usize = 259;
/// Most results of orders in one pulse.
const RESULTS_MAX: usize = 1_000;
/// Most damaged replicas of one report that are logged.
const DAMAGED_LOGGED_MAX: usize = 20;
/// Most requests at once on one connection.
const STREAMS_MAX: u32 = 64;

/// Serves both services of the control plane at `address` on the current runtime, until it ends. Returns the address
/// that was bound.
///
/// # Errors
///
/// If the address cannot be bound.
pub async fn serve(shared: Arc<Shared>, address: &str) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let nodes = ChunkServersServer::new(NodeService { shared: Arc::clone(&shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let admin = AdminServer::new(AdminService::new(shared)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .max_concurrent_streams(STREAMS_MAX)
        // A host that vanished leaves no connection behind.
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(nodes)
        .add_service(admin);
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
            tracing::error!(%error, "the control plane ended");
        }
    });
    Ok(bound)
}

struct NodeService {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl ChunkServers for NodeService {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterReply>, Status> {
        let request = request.into_inner();
        let shared = &self.shared;
        check_registration(&request, shared.cluster)?;
        let facts = facts_of(&request)?;
        let registration = Registration {
            facts: facts.clone(),
            boot: BootSession(request.boot_session),
            is_suspect: request.suspect,
            disks: disks_of(request.disks)?,
        };
        let disks = registration.disks.len();
        let executor = Arc::clone(&shared.executor);
        let Registered { node, boot, .. } = blocking(move || executor.register(registration)).await?;
        tracing::info!(
            %node,
            address = %facts.data_address,
            host = %facts.host,
            rack = %facts.rack,
            disks,
            clean_stop = request.clean_stop,
            suspect = request.suspect,
            new_run = boot.0 != request.boot_session,
            "chunk server registered"
        );
        let config = &shared.config;
        Ok(Response::new(pb::RegisterReply {
            cluster_id: Bytes::copy_from_slice(&shared.cluster.0),
            node: node.0,
            grant_key: Bytes::copy_from_slice(shared.grant_key.as_bytes()),
            lease_ms: config.lease_ms,
            pulse_ms: config.pulse_ms,
            report_ms: config.report_ms,
            repair_bytes_per_second: config.repair_bytes_per_second,
            scrub_bytes_per_second: config.scrub_bytes_per_second,
            boot_session: boot.0,
        }))
    }

    async fn pulse(&self, request: Request<pb::PulseRequest>) -> Result<Response<pb::PulseReply>, Status> {
        let request = request.into_inner();
        if request.deleted.len() > DELETE_QUEUE_MAX {
            return Err(Status::invalid_argument(format!("more than {DELETE_QUEUE_MAX} deletions in one pulse")));
        }
        if request.results.len() > RESULTS_MAX {
            return Err(Status::invalid_argument(format!("more than {RESULTS_MAX} results in one pulse")));
        }
        let pulse = Pulse {
            node: NodeId(request.node),
            boot: BootSession(request.boot_session),
            deleted: request.deleted.into_iter().map(ChunkId).collect(),
            results: request.results.into_iter().map(Into::into).collect(),
            fence_seq: Seq(request.fence_seq),
        };
        let shared = &self.shared;
        let answer = shared.executor.control().pulse(pulse, shared.clock.mono());
        Ok(Response::new(match answer {
            Some(answer) => pb::PulseReply {
                known: true,
                lease_ms: shared.config.lease_ms,
                delete: answer.delete.into_iter().map(|chunk| chunk.0).collect(),
                orders: answer.orders.iter().map(Into::into).collect(),
                fenced: answer.fenced.into_iter().map(|session| session.0).collect(),
                fence_seq: answer.fence_seq.0,
            },
            None => pb::PulseReply::default(),
        }))
    }

    async fn change_replicas(
        &self,
        request: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasReply>, Status> {
        let change = ChangeRequest::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if change.reason.len() > TEXT_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a reason of more than {TEXT_BYTES_MAX} bytes")));
        }
        let (executor, asked) = (Arc::clone(&self.shared.executor), change.clone());
        let reply = blocking(move || executor.change_replicas(asked)).await?;
        log_change(&change, &reply);
        self.shared.metrics.set_changed(word(&change.kind), reply.result.as_ref().err());
        let grant = reply.grant.map(|grant| self.shared.grant_key.seal(&grant));
        Ok(Response::new(ChangeAnswer { result: reply.result, grant }.into()))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportReply>, Status> {
        let request = request.into_inner();
        let (node, boot) = (NodeId(request.node), BootSession(request.boot_session));
        let has_page = request.end || !request.held.is_empty();
        let page = has_page.then(|| Page {
            node,
            boot,
            held: request.held.iter().map(held).collect(),
            after: ChunkId(request.after),
            is_end: request.end,
        });
        for damaged in request.damaged.iter().take(DAMAGED_LOGGED_MAX).map(held) {
            tracing::warn!(%node, chunk = %damaged.chunk, version = %damaged.version, "a replica has damaged units");
        }
        let damaged = request.damaged.iter().map(|replica| held(replica).home).collect();
        let report = Report { node, boot, disks: disks_of(request.disks)?, page, damaged };
        let known = self.shared.executor.control().report(report, self.shared.clock.mono());
        Ok(Response::new(pb::ReportReply { known }))
    }
}

fn held(message: &pb::Held) -> Held {
    let home = Home { inode: InodeId(message.inode), index: ChunkIndex(message.index) };
    Held { chunk: ChunkId(message.chunk), home, version: Version(message.version) }
}

/// Returns the word for a change in metrics.
fn word(kind: &ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Drop { .. } => "drop",
        ChangeKind::Leave => "leave",
        ChangeKind::FinishSync { .. } => "finish_sync",
        ChangeKind::Refresh => "refresh",
    }
}

/// Changes of replica sets are rare, and tell what became of data.
fn log_change(asked: &ChangeRequest, reply: &ChangeReply) {
    let (node, chunk, version, reason) = (asked.node, asked.chunk, asked.version, asked.reason.escape_debug());
    match (&reply.result, &asked.kind) {
        (Ok(()), ChangeKind::Refresh) => {}
        (Ok(()), kind) => tracing::info!(%node, %chunk, %version, ?kind, %reason, "a replica set was changed"),
        (Err(error), kind) => tracing::info!(%node, %chunk, %version, ?kind, %reason, %error, "a change was refused"),
    }
}

/// Runs what waits for the executor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, FsError> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| Status::unavailable(error.to_string()))
}

/// Refuses a server that speaks another protocol or belongs to another cluster.
fn check_registration(request: &pb::RegisterRequest, ours: ClusterId) -> Result<(), Status> {
    if !(PROTOCOL_MIN..=PROTOCOL).contains(&request.protocol) {
        return Err(Status::failed_precondition(format!(
            "protocol versions {PROTOCOL_MIN}..={PROTOCOL} are spoken here, the chunk server speaks {}: upgrade the \
             older one",
            request.protocol
        )));
    }
    if request.boot_session == 0 {
        return Err(Status::invalid_argument("boot session 0"));
    }
    if request.cluster_id.is_empty() {
        return Ok(());
    }
    match ClusterId::from_slice(&request.cluster_id) {
        Some(theirs) if theirs == ours => Ok(()),
        Some(theirs) => Err(Status::failed_precondition(format!(
            "this is cluster {ours}, the chunk server's disks belong to cluster {theirs}"
        ))),
        None => Err(Status::invalid_argument("a cluster id has 16 bytes")),
    }
}

fn facts_of(request: &pb::RegisterRequest) -> Result<NodeFacts, Status> {
    let server_id =
        request.server_id[..].try_into().map_err(|_| Status::invalid_argument("a server id has 16 bytes"))?;
    let texts = [&request.data_address, &request.http_address, &request.rack, &request.host, &request.software];
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(Status::invalid_argument(format!("a text of more than {TEXT_BYTES_MAX} bytes")));
    }
    if !is_host_and_port(&request.data_address) {
        return Err(Status::invalid_argument(format!("data address {:?} is not host:port", request.data_address)));
    }
    Ok(NodeFacts {
        server_id,
        data_address: request.data_address.clone(),
        http_address: request.http_address.clone(),
        rack: request.rack.clone(),
        host: request.host.clone(),
        software: request.software.clone(),
    })
}

fn is_host_and_port(address: &str) -> bool {
    address.len() <= ADDRESS_BYTES_MAX
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn disks_of(disks: Vec<pb::Disk>) -> Result<Vec<Disk>, Status> {
    if disks.len() > DISKS_MAX {
        return Err(Status::invalid_argument(format!("more than {DISKS_MAX} disks")));
    }
    Ok(disks
        .into_iter()
        .map(|disk| Disk {
            disk_id: disk.disk_id.to_vec(),
            path: disk.path,
            capacity_bytes: disk.capacity_bytes,
            // A free count above the capacity would only mislead placement.
            free_bytes: disk.free_bytes.min(disk.capacity_bytes),
            replicas: disk.replicas,
            failed: disk.failed,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId([1; 16]);

    fn good() -> pb::RegisterRequest {
        pb::RegisterRequest {
            cluster_id: Bytes::copy_from_slice(&OURS.0),
            server_id: vec![7; 16].into(),
            boot_session: 5,
            data_address: "127.0.0.1:7100".into(),
            protocol: PROTOCOL,
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(request: pb::RegisterRequest, refused: Option<&str>) {
        let result = check_registration(&request, OURS).and_then(|()| facts_of(&request));
        match refused {
            None => assert!(result.is_ok(), "{result:?}"),
            Some(part) => {
                let status = result.unwrap_err();
                assert!(status.message().contains(part), "{status}");
            }
        }
    }

    #[test]
    fn a_registration_is_refused_with_the_reason() {
        check(good(), None);
        check(pb::RegisterRequest { cluster_id: Bytes::new(), ..good() }, None);
        check(pb::RegisterRequest { cluster_id: vec![2; 16].into(), ..good() }, Some("cluster 0202"));
        check(pb::RegisterRequest { cluster_id: vec![2; 3].into(), ..good() }, Some("16 bytes"));
        check(pb::RegisterRequest { server_id: vec![2; 3].into(), ..good() }, Some("16 bytes"));
        check(pb::RegisterRequest { boot_session: 0, ..good() }, Some("boot session"));
        check(pb::RegisterRequest { protocol: PROTOCOL + 1, ..good() }, Some("protocol"));
        check(pb::RegisterRequest { protocol: PROTOCOL_MIN - 1, ..good() }, Some("protocol"));
        check(pb::RegisterRequest { host: "x".repeat(TEXT_BYTES_MAX + 1), ..good() }, Some("1024"));
        let longest = format!("{}:65535", "h".repeat(ADDRESS_BYTES_MAX - 6));
        check(pb::RegisterRequest { data_address: longest.clone(), ..good() }, None);
        let too_long = format!("h{longest}");
        for address in ["", "127.0.0.1", ":7100", "127.0.0.1:0", "127.0.0.1:70000", &too_long] {
            check(pb::RegisterRequest { data_address: address.into(), ..good() }, Some("host:port"));
        }
    }

    #[test]
    fn a_free_count_above_the_capacity_is_not_believed() {
        let disk = pb::Disk { capacity_bytes: 5, free_bytes: 9, ..Default::default() };
        assert_eq!(disks_of(vec![disk.clone()]).unwrap()[0].free_bytes, 5);
        assert!(disks_of(vec![disk; DISKS_MAX + 1]).is_err());
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod with_a_master;
