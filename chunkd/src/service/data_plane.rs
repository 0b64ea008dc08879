//! The data plane: one thread for each connection, one request at a time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Peer, WireError, accept_hello};
use parking_lot::Mutex;

use super::metrics::Operation;
use super::primary::admit;
use super::shared::Shared;
use super::{barrier, member, read, write};

/// Connections, all together, if there are descriptors enough.
pub(super) const CONNECTIONS_MAX: usize = 2048;
/// Read buffers that are kept, each of up to 1 MiB and a unit at both ends.
const SPARE_BUFFERS_MAX: usize = 64;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const ROLES: [pb::Role; 3] = [pb::Role::Mount, pb::Role::Master, pb::Role::ChunkServer];

/// Serves connections.
pub(super) struct DataPlane {
    shared: Arc<Shared>,
    mounts: AtomicUsize,
    mounts_max: usize,
    /// Shared by all connections, most of which are idle.
    spare_buffers: Mutex<Vec<Vec<u8>>>,
}

/// A read buffer, among the spare ones again when it is dropped. Kept from read to read: a fresh one of 1 MiB costs as
/// much in page faults as the read itself.
struct ReadBuffer<'a> {
    bytes: Vec<u8>,
    spare: &'a Mutex<Vec<Vec<u8>>>,
}

impl<'a> ReadBuffer<'a> {
    fn take(spare: &'a Mutex<Vec<Vec<u8>>>) -> Self {
        Self { bytes: spare.lock().pop().unwrap_or_default(), spare }
    }
}

impl Drop for ReadBuffer<'_> {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_BUFFERS_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
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

enum Payload<'a> {
    None,
    Bytes(Bytes),
    /// Part of a read buffer.
    Buffer(ReadBuffer<'a>, Range<usize>),
}

impl DataPlane {
    /// Of `connections_max` connections a quarter is kept for other chunk servers and the master, without whom no write
    /// ends.
    pub fn new(shared: Arc<Shared>, connections_max: usize) -> Self {
        let mounts_max = connections_max / 4 * 3;
        Self { shared, mounts: AtomicUsize::new(0), mounts_max, spare_buffers: Mutex::default() }
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
        let _counted = if peer.role == pb::Role::Mount {
            let Some(counted) = Counted::new(&self.mounts, self.mounts_max) else {
                tracing::warn!(peer = %connection.peer(), "too many connections of mounts: closed one");
                return;
            };
            Some(counted)
        } else {
            None
        };
        if let Err(error) = self.serve_requests(&mut connection, &peer) {
            tracing::debug!(peer = %connection.peer(), %error, "connection ended");
        }
    }

    fn serve_requests(&self, connection: &mut Connection, peer: &Peer) -> Result<(), WireError> {
        loop {
            let frame = connection.recv(None)?;
            let started = Instant::now();
            let request_id = frame.request_id;
            let (request, payload): (pb::DataRequest, _) = frame.decode(FrameKind::DataRequest)?;
            let Some(body) = &request.body else {
                return Err(WireError::Malformed("a request of an unknown kind".into()));
            };
            let operation = operation(body);
            let result = self.answer(peer, &request, body, &payload);
            self.shared.metrics.answered(operation, started.elapsed(), result.as_ref().err());
            let (reply, payload) = match result {
                Ok((body, payload)) => (pb::DataReply { failure: None, body: Some(body) }, payload),
                Err(error) => {
                    tracing::debug!(chunk = request.chunk, ?operation, %error, "refused");
                    (pb::DataReply { failure: Some((&error).into()), body: None }, Payload::None)
                }
            };
            let payload = match &payload {
                Payload::None => &[][..],
                Payload::Bytes(bytes) => bytes,
                Payload::Buffer(buffer, range) => &buffer.bytes[range.clone()],
            };
            connection.send(FrameKind::DataReply, request_id, &reply, payload)?;
        }
    }

    fn answer(
        &self,
        peer: &Peer,
        request: &pb::DataRequest,
        body: &data_request::Body,
        payload: &Bytes,
    ) -> Result<(data_reply::Body, Payload<'_>), FsError> {
        use data_reply::Body as Reply;
        use data_request::Body;
        let shared = &*self.shared;
        let is_peer = peer.role == pb::Role::ChunkServer;
        let is_for_peers = matches!(
            body,
            Body::Activate(_) | Body::Prepare(_) | Body::PeerBarrier(_) | Body::FetchUnits(_) | Body::PushUnits(_)
        );
        if is_peer != is_for_peers {
            return Err(FsError::NotPermitted);
        }
        let deadline = shared.deadline();
        let plain = |body| Ok((body, Payload::None));
        match body {
            Body::Write(ask) => {
                let (replica, grant) = admit(shared, request)?;
                let seq = write::write(shared, &replica, &grant, ask, payload, deadline)?;
                plain(Reply::Written(pb::Written { seq }))
            }
            Body::Zero(ask) => {
                let (replica, grant) = admit(shared, request)?;
                let seq = write::zero(shared, &replica, &grant, ask, deadline)?;
                plain(Reply::Written(pb::Written { seq }))
            }
            Body::Read(ask) => {
                let (replica, grant) = admit(shared, request)?;
                let mut buffer = ReadBuffer::take(&self.spare_buffers);
                let (data, range) = read::read(shared, &replica, &grant, ask, &mut buffer.bytes, deadline)?;
                Ok((Reply::ReadData(data), Payload::Buffer(buffer, range)))
            }
            Body::Barrier(_) => {
                let (replica, grant) = admit(shared, request)?;
                barrier::barrier(shared, &replica, &grant, deadline)?;
                plain(Reply::Synced(pb::Synced {}))
            }
            Body::Extents(ask) => {
                let (replica, grant) = admit(shared, request)?;
                plain(Reply::ExtentMap(read::extents(shared, &replica, &grant, ask, deadline)?))
            }
            Body::Activate(ask) => plain(Reply::UnitTable(member::activate(shared, peer, request, ask)?)),
            Body::Prepare(ask) => plain(Reply::Prepared(member::prepare(shared, peer, request, ask, payload)?)),
            Body::PeerBarrier(ask) => {
                member::peer_barrier(shared, peer, request, ask)?;
                plain(Reply::Synced(pb::Synced {}))
            }
            Body::FetchUnits(ask) => {
                let (units, payload) = member::fetch_units(shared, request, ask)?;
                Ok((Reply::Units(units), Payload::Bytes(payload)))
            }
            Body::PushUnits(ask) => {
                member::push_units(shared, peer, request, ask, payload)?;
                plain(Reply::Synced(pb::Synced {}))
            }
            Body::VerifyUnits(_) => Err(FsError::NotSupported),
        }
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
        Body::VerifyUnits(_) => Operation::FetchUnits,
    }
}
