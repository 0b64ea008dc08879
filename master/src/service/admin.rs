//! The admin service: what `dfs status` and `dfs info` show, and the commands that change or check something.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dfs_proto::limits::REPLICAS;
use dfs_proto::replica_set::Home;
use dfs_proto::wire::pb;
use dfs_proto::{ChunkIndex, InodeId, MonoMs, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::executor::Info;
use super::{Shared, fsck, node_admin};
use crate::core::care::{ChunkFacts, SessionFacts};
use crate::core::node_table::{Disk, Node, NodeState, NodeTable};
use crate::core::record::Inode;
use pb::admin_server::Admin;

/// Chunks that `Info` lists if the caller does not say how many.
const CHUNKS_DEFAULT: usize = 1_000;
/// Most chunks that it lists.
const CHUNKS_MAX: usize = 10_000;
/// Messages of a check that wait to be sent.
const PROGRESS_MAX: usize = 64;
/// Most bytes of a path.
const PATH_BYTES_MAX: usize = 4_096;

/// The admin service of one master.
pub struct AdminService {
    shared: Arc<Shared>,
}

impl AdminService {
    /// Returns the service over what all services share.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn status_now(&self) -> pb::StatusReply {
        let shared = &self.shared;
        let now = shared.clock.mono();
        let counters = shared.executor.counters();
        let (seq, durable_seq) = shared.executor.seqs();
        let sessions = shared.executor.sessions();
        let count = shared.care.shown.lock().count.clone();
        let table = shared.nodes.read();
        let space = table.space(now);
        pb::StatusReply {
            cluster_id: Bytes::copy_from_slice(&shared.cluster.0),
            software: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: now.since(shared.started),
            engine: shared.config.engine.name().into(),
            inodes: counters.inodes,
            chunks: counters.chunks,
            orphans: counters.orphans,
            reclaim_pending: counters.reclaim_pending,
            logical_bytes: u64::try_from(counters.logical_bytes).unwrap_or(u64::MAX),
            seq: seq.0,
            durable_seq: durable_seq.0,
            nodes: table
                .iter()
                .map(|(id, node)| pb::NodeStatus {
                    suspect: count.tainted.contains_key(&id),
                    ..node_status(&table, id, node, now, shared.started)
                })
                .collect(),
            sessions: sessions.into_iter().map(session_status).collect(),
            total_bytes: space.total_bytes / u64::from(REPLICAS),
            free_bytes: space.free_bytes / u64::from(REPLICAS),
            under_replicated_chunks: count.under_replicated,
            syncing_chunks: count.syncing,
            unavailable_chunks: count.unavailable,
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        let service = Self::new(Arc::clone(&self.shared));
        // The executor's answers can take as long as a batch.
        let status = tokio::task::spawn_blocking(move || service.status_now()).await;
        status.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        let pb::DrainRequest { node, stop } = request.into_inner();
        let shared = Arc::clone(&self.shared);
        let left = blocking(move || node_admin::drain(&shared, NodeId(node), !stop)).await?;
        Ok(Response::new(pb::DrainReply { replicas_left: left, draining: !stop }))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeReply>, Status> {
        let node = NodeId(request.into_inner().node);
        let shared = Arc::clone(&self.shared);
        blocking(move || node_admin::remove(&shared, node)).await?;
        Ok(Response::new(pb::RemoveNodeReply {}))
    }

    type FsckStream = ReceiverStream<Result<pb::FsckProgress, Status>>;

    async fn fsck(&self, request: Request<pb::FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        let pb::FsckRequest { deep, repair } = request.into_inner();
        if self.shared.care.is_checking.swap(true, Ordering::AcqRel) {
            return Err(Status::failed_precondition("a check is under way already"));
        }
        let (out, progress) = mpsc::channel(PROGRESS_MAX);
        let shared = Arc::clone(&self.shared);
        let checking = Checking(Arc::clone(&self.shared));
        let work = move || {
            let _checking = checking;
            fsck::run(&shared, deep, repair, out);
        };
        // It runs for minutes: a thread of its own, not one of those that calls share.
        let spawned = std::thread::Builder::new().name("master-fsck".into()).spawn(work);
        spawned.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ReceiverStream::new(progress)))
    }

    async fn force_primary(
        &self,
        request: Request<pb::ForcePrimaryRequest>,
    ) -> Result<Response<pb::ForcePrimaryReply>, Status> {
        let pb::ForcePrimaryRequest { inode, index, node } = request.into_inner();
        let home = Home { inode: InodeId(inode), index: ChunkIndex(index) };
        let shared = Arc::clone(&self.shared);
        let version = blocking(move || node_admin::force_primary(&shared, home, NodeId(node))).await?;
        Ok(Response::new(pb::ForcePrimaryReply { version: version.0 }))
    }

    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoReply>, Status> {
        let request = request.into_inner();
        if request.path.len() > PATH_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a path of more than {PATH_BYTES_MAX} bytes")));
        }
        if !request.path.is_empty() && !request.path.starts_with(b"/") {
            let error = "a path begins with /, the root of the file system".into();
            return Ok(Response::new(pb::InfoReply { error, ..Default::default() }));
        }
        let chunks_max = match request.chunks_max as usize {
            0 => CHUNKS_DEFAULT,
            asked => asked.min(CHUNKS_MAX),
        };
        let executor = Arc::clone(&self.shared.executor);
        let found =
            tokio::task::spawn_blocking(move || executor.info(&request.path, InodeId(request.inode), chunks_max)).await;
        let found = found.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(match found {
            Ok(info) => {
                let now = self.shared.clock.mono();
                info_reply(info, &self.shared.nodes.read(), now)
            }
            Err(error) => pb::InfoReply { error: error.to_string(), ..Default::default() },
        }))
    }
}

/// A check is under way for as long as this lives.
struct Checking(Arc<Shared>);

impl Drop for Checking {
    fn drop(&mut self) {
        self.0.care.is_checking.store(false, Ordering::Release);
    }
}

/// Runs what waits for the executor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

fn node_status(table: &NodeTable, id: NodeId, node: &Node, now: MonoMs, started: MonoMs) -> pb::NodeStatus {
    let state = table.state(id, now);
    pb::NodeStatus {
        node: id.0,
        host: node.facts.host.clone(),
        data_address: node.facts.data_address.clone(),
        http_address: node.facts.http_address.clone(),
        rack: node.facts.rack.clone(),
        lease_valid: state == NodeState::Online,
        online: state != NodeState::Offline,
        // One that was not heard of in this run: that is all that is known.
        last_seen_ms: now.since(node.last_seen.unwrap_or(started)),
        disks: node.disks.iter().map(disk_status).collect(),
        software: node.facts.software.clone(),
        replicas: node.recorded_replicas(),
        draining: node.is_draining,
        ..Default::default()
    }
}

fn disk_status(disk: &Disk) -> pb::Disk {
    pb::Disk {
        disk_id: Bytes::copy_from_slice(&disk.disk_id),
        path: disk.path.clone(),
        capacity_bytes: disk.capacity_bytes,
        free_bytes: disk.free_bytes,
        replicas: disk.replicas,
        failed: disk.failed,
    }
}

fn session_status(facts: SessionFacts) -> pb::SessionStatus {
    pb::SessionStatus {
        session: facts.session.0,
        host: facts.host,
        mount_point: facts.mount_point,
        software: facts.software,
        last_seen_ms: facts.last_seen_ms,
        open_files: facts.open_files,
        metrics_address: facts.metrics_address,
    }
}

fn info_reply(info: Info, table: &NodeTable, now: MonoMs) -> pb::InfoReply {
    pb::InfoReply {
        found: true,
        error: String::new(),
        inode: Some(info_inode(&info.inode)),
        chunks: info.chunks.iter().map(|chunk| info_chunk(chunk, table, now)).collect(),
        more_chunks: info.more_chunks,
    }
}

fn info_inode(inode: &Inode) -> pb::InfoInode {
    pb::InfoInode {
        inode: inode.id.0,
        kind: inode.kind.word().into(),
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        atime: inode.atime.0,
        mtime: inode.mtime.0,
        ctime: inode.ctime.0,
        btime: inode.btime.0,
        seq: inode.seq.0,
        data_version: inode.data_version,
        inline_bytes: if inode.is_inline { inode.size } else { 0 },
        is_inline: inode.is_inline,
        chunk_size: inode.chunk_size(),
        replicas: inode.replicas,
        chunks: inode.chunks,
    }
}

fn info_chunk(chunk: &ChunkFacts, table: &NodeTable, now: MonoMs) -> pb::InfoChunk {
    let replica = |node: &NodeId, state: &str| {
        let location = table.location(*node, now);
        pb::InfoReplica {
            node: node.0,
            online: location.as_ref().is_some_and(|location| location.online),
            address: location.map(|location| location.address).unwrap_or_default(),
            state: state.to_owned(),
        }
    };
    let in_sync = chunk.in_sync.iter().map(|node| replica(node, "in_sync"));
    let syncing = chunk.syncing.iter().map(|node| replica(node, "syncing"));
    let stale = chunk.stale.iter().map(|node| replica(node, "stale"));
    pb::InfoChunk {
        index: chunk.index.0,
        chunk: chunk.chunk.0,
        version: chunk.version.0,
        primary: chunk.primary.0,
        replicas: in_sync.chain(syncing).chain(stale).collect(),
    }
}
