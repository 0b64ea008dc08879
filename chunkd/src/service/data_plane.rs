//! The data plane: one thread for each connection, one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Peer, WireError, accept_hello};
use dfs_proto::{ChunkId, FsError, Version};

use super::admit::admit;
use super::call::Call;
use super::fences::Visit;
use super::metrics::Operation;
use super::shared::Shared;
use super::translate;
use crate::core::admission;
use crate::core::message::{ClientRequest, PeerAnswer, PeerRequest, Reply, Request};

/// Connections, all together, if there are descriptors enough.
pub(super) const CONNECTIONS_MAX: usize = 2048;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const ROLES: [pb::Role; 3] = [pb::Role::Mount, pb::Role::Master, pb::Role::ChunkServer];

/// Serves connections.
pub(super) struct DataPlane {
    shared: Arc<Shared>,
    mounts: AtomicUsize,
    mounts_max: usize,
}

/// One connection of a mount, until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let counted = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DataPlane {
    /// Of `connections_max` connections a quarter is kept for other chunk servers and the master, without whom no write
    /// ends.
    pub fn new(shared: Arc<Shared>, connections_max: usize) -> Self {
        Self { shared, mounts: AtomicUsize::new(0), mounts_max: connections_max / 4 * 3 }
    }

    /// Serves one connection until it ends.
    pub fn serve(&self, mut connection: Connection) {
        let peer = match accept_hello(&mut connection, &self.shared.identity(), &ROLES, HELLO_TIMEOUT) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::debug!(peer = %connection.peer(), %error, "no hello");
                return;
            }
        };
        let mut visit = None;
        let _counted = if peer.role == pb::Role::Mount {
            let Some(counted) = Counted::new(&self.mounts, self.mounts_max) else {
                tracing::warn!(peer = %connection.peer(), "too many connections of mounts: closed one");
                return;
            };
            visit = Some(self.shared.fences.visit(peer.session));
            Some(counted)
        } else {
            None
        };
        if let Err(error) = self.serve_requests(&mut connection, &peer, visit.as_ref()) {
            tracing::debug!(peer = %connection.peer(), %error, "connection ended");
        }
    }

    fn serve_requests(
        &self,
        connection: &mut Connection,
        peer: &Peer,
        visit: Option<&Visit<'_>>,
    ) -> Result<(), WireError> {
        loop {
            let frame = connection.recv(None)?;
            let started = Instant::now();
            let request_id = frame.request_id;
            let (request, payload): (pb::DataRequest, _) = frame.decode(FrameKind::DataRequest)?;
            let Some(body) = &request.body else {
                return Err(WireError::Malformed("a request of an unknown kind".into()));
            };
            let operation = operation(body);
            let result =
                visit.map(Visit::begin).transpose().and_then(|_busy| self.answer(peer, &request, body, payload));
            self.shared.metrics.answered(operation, started.elapsed(), result.as_ref().err());
            let (reply, payload) = match result {
                Ok((body, payload)) => (pb::DataReply { failure: None, body: Some(body) }, payload),
                Err(error) => {
                    tracing::debug!(chunk = request.chunk, ?operation, %error, "refused");
                    (pb::DataReply { failure: Some((&error).into()), body: None }, Bytes::new())
                }
            };
            connection.send(FrameKind::DataReply, request_id, &reply, &payload)?;
        }
    }

    fn answer(
        &self,
        peer: &Peer,
        request: &pb::DataRequest,
        body: &data_request::Body,
        payload: Bytes,
    ) -> Result<(data_reply::Body, Bytes), FsError> {
        let is_peer = peer.role == pb::Role::ChunkServer;
        if is_peer != is_for_peers(body) {
            return Err(FsError::NotPermitted);
        }
        let reply = if is_peer {
            self.answer_peer(peer, request, body, payload)?
        } else {
            self.answer_client(request, body, &payload)?
        };
        Ok(translate::reply_message(reply, request.version))
    }

    fn answer_client(
        &self,
        request: &pb::DataRequest,
        body: &data_request::Body,
        payload: &Bytes,
    ) -> Result<Reply, FsError> {
        let shared = &self.shared;
        shared.check_lease()?;
        let (replica, grant) = admit(shared, ChunkId(request.chunk), Version(request.version), &request.grant)?;
        let ask = translate::client_request(body, payload, &grant.grant)?.ok_or(FsError::NotPermitted)?;
        let counted = match &ask {
            ClientRequest::Read { length, .. } => Some((&shared.metrics.read_bytes, u64::from(*length))),
            ClientRequest::Write { data, .. } => Some((&shared.metrics.written_bytes, data.len() as u64)),
            ClientRequest::Zero { .. } | ClientRequest::Barrier { .. } | ClientRequest::Extents { .. } => None,
        };
        let ask = Request::Client { grant, request: ask };
        let reply = Call::run(shared, &replica, ask, shared.deadline(), None)?;
        if let Some((counter, bytes)) = counted {
            counter.inc_by(bytes);
        }
        Ok(reply)
    }

    fn answer_peer(
        &self,
        peer: &Peer,
        request: &pb::DataRequest,
        body: &data_request::Body,
        payload: Bytes,
    ) -> Result<Reply, FsError> {
        let shared = &self.shared;
        let (chunk, version) = (ChunkId(request.chunk), Version(request.version));
        let (replica, ask) = if let data_request::Body::Activate(activate) = body {
            let membership = shared.membership()?;
            let grant = membership.key.open(&request.grant).ok_or(FsError::Stale("the grant's seal is not ours"))?;
            admission::check_member(&grant, chunk, version, membership.node, (peer.node, peer.boot))?;
            let replica = shared.replicas.find_or_create(&shared.store, &grant)?;
            let grant = translate::sealed(grant, &request.grant);
            (replica, PeerRequest::Activate { grant, activation: activate.activation })
        } else {
            let found = shared.replicas.find(&shared.store, chunk)?;
            let replica = found.ok_or(FsError::TryAgain("no such replica here: activate first"))?;
            let ask = translate::peer_request(body, &payload, replica.open.file.units())?;
            (replica, ask.ok_or(FsError::NotPermitted)?)
        };
        let ask = Request::Peer { node: peer.node, boot: peer.boot, version, request: ask, payload };
        let reply = Call::run(shared, &replica, ask, shared.deadline(), None)?;
        if let Reply::Peer(PeerAnswer::Verified { checked, .. }) = &reply {
            shared.metrics.checked_units.inc_by((*checked).into());
        }
        Ok(reply)
    }
}

fn is_for_peers(body: &data_request::Body) -> bool {
    use data_request::Body;
    match body {
        Body::Write(_) | Body::Zero(_) | Body::Read(_) | Body::Barrier(_) | Body::Extents(_) => false,
        Body::Activate(_)
        | Body::Prepare(_)
        | Body::PeerBarrier(_)
        | Body::FetchUnits(_)
        | Body::PushUnits(_)
        | Body::VerifyUnits(_) => true,
    }
}

fn operation(body: &data_request::Body) -> Operation {
    use data_request::Body;
    match body {
        Body::Write(_) => Operation::Write,
        Body::Zero(_) => Operation::Zero,
        Body::Read(_) => Operation::Read,
        Body::Barrier(_) => Operation::Barrier,
        Body::Extents(_) => Operation::Extents,
        Body::Activate(_) => Operation::Activate,
        Body::Prepare(_) => Operation::Prepare,
        Body::PeerBarrier(_) => Operation::PeerBarrier,
        Body::FetchUnits(_) => Operation::FetchUnits,
        Body::PushUnits(_) => Operation::PushUnits,
        Body::VerifyUnits(_) => Operation::VerifyUnits,
    }
}
