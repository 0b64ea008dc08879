//! The hot plane: mounts ask, a thread for each connection answers.
//!
//! Sketch of a call: one frame in, decode, the executor's turn (a lone caller runs it itself), one frame out. No
//! thread is woken on the way, and none but the caller waits for stable media.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::wire::{Connection, FrameKind, Identity, Listener, Peer, WireError, accept_hello, op_name, pb};
use dfs_proto::{BootSession, FsError, NodeId, Seq, SessionId};

use super::decode::{self, Asked};
use super::{Shared, cut, grants};
use crate::core::op::{CUT_PENDING, MUST_LEAVE_INLINE};
use crate::core::outcome::Body;
use crate::core::request::{Call, Request};
use crate::core::session::Reply;

/// Most connections: some for each of many mounts.
const CONNECTIONS_MAX: usize = 4_096;
/// How often a call looks whether the truncate that it waits for is finished.
const CUT_POLL: Duration = Duration::from_millis(2);
/// Tries to get a file out of its inline content against others who change it.
const LEAVE_INLINE_TRIES: usize = 8;

/// Listens on `address` for mounts.
///
/// # Errors
///
/// If the address cannot be bound.
pub(super) fn start(shared: Arc<Shared>, address: &str) -> std::io::Result<Listener> {
    Listener::start(address, CONNECTIONS_MAX, "master-hot", move |connection| {
        let peer = connection.peer();
        match serve(&shared, connection) {
            Ok(()) | Err(WireError::Closed) => {}
            Err(error) => tracing::debug!(%peer, %error, "connection ended"),
        }
    })
}

fn serve(shared: &Shared, mut connection: Connection) -> Result<(), WireError> {
    let own = Identity {
        cluster: Some(shared.cluster),
        role: pb::Role::Master,
        node: NodeId(0),
        boot: shared.boot,
        session: SessionId(0),
    };
    let allowed = [pb::Role::Mount, pb::Role::ChunkServer];
    let peer: Peer = accept_hello(&mut connection, &own, &allowed, shared.deadlines.hello)?;
    let mut client = Client { shared, session: peer.session, may_ask: peer.role == pb::Role::Mount };
    loop {
        let frame = connection.recv(Some(Instant::now() + shared.deadlines.idle))?;
        let started = Instant::now();
        let request_id = frame.request_id;
        let (request, _): (pb::MetaRequest, _) = frame.decode(FrameKind::MetaRequest)?;
        let op = request.body.as_ref().map_or("other", op_name);
        let (reply, error) = client.answer(request);
        shared.metrics.observe(op, started, error.as_ref());
        connection.send(FrameKind::MetaReply, request_id, &reply, &[])?;
    }
}

/// One connection of a mount.
struct Client<'a> {
    shared: &'a Shared,
    session: SessionId,
    may_ask: bool,
}

impl Client<'_> {
    fn answer(&mut self, request: pb::MetaRequest) -> (pb::MetaReply, Option<FsError>) {
        let (result, durable) = match self.ask(request) {
            Ok(answered) => answered,
            Err(error) => (Err(error), Seq(0)),
        };
        match result {
            Ok((reply, locations)) => {
                let (seq, time) = (reply.seq.0, reply.time.0);
                let mut body = decode::reply_body(reply.body, locations);
                if let pb::meta_reply::Body::SessionOpened(opened) = &mut body {
                    opened.lease_ms = self.shared.config.session_ms;
                    opened.cluster_id = bytes::Bytes::copy_from_slice(&self.shared.cluster.0);
                    self.session = SessionId(opened.session);
                }
                (pb::MetaReply { seq, durable_seq: durable.0, time, failure: None, body: Some(body) }, None)
            }
            Err(error) => {
                let failure = Some(pb::Failure::from(&error));
                (pb::MetaReply { durable_seq: durable.0, failure, ..Default::default() }, Some(error))
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "the parts of one answer, used once")]
    fn ask(
        &self,
        request: pb::MetaRequest,
    ) -> Result<(Result<(Reply, Vec<pb::ChunkLocation>), FsError>, Seq), FsError> {
        if !self.may_ask {
            return Err(FsError::Protocol("only mounts have requests".into()));
        }
        match decode::request(self.session, request)? {
            Asked::Call(call) => Ok(self.call(*call)),
            Asked::Sync(seq) => {
                let (allowed, _) = self.call(Call::unnumbered(self.session, Request::Sync));
                let result = allowed.and_then(|reply| {
                    self.shared.executor.wait_durable_for_mount(seq)?;
                    Ok(reply)
                });
                Ok((result, self.shared.executor.call(Call::unnumbered(self.session, Request::Ping)).durable))
            }
            Asked::BadReplica(report) => {
                tracing::warn!(
                    chunk = report.chunk,
                    version = report.version,
                    node = report.node,
                    session = %self.session,
                    detail = %report.detail.escape_debug(),
                    "a mount met a replica with wrong bytes"
                );
                Ok(self.call(Call::unnumbered(self.session, Request::Ping)))
            }
        }
    }

    fn call(&self, call: Call) -> (Result<(Reply, Vec<pb::ChunkLocation>), FsError>, Seq) {
        let deadline = Instant::now() + self.shared.deadlines.cut_wait;
        let mut tries = 0;
        loop {
            let answered = self.shared.executor.call(call.clone());
            match (&answered.result, &call.request) {
                (Err(error), _) if *error == CUT_PENDING && Instant::now() < deadline => {
                    std::thread::sleep(CUT_POLL);
                    continue;
                }
                (Err(error), Request::SetAttr(set)) if *error == MUST_LEAVE_INLINE && tries < LEAVE_INLINE_TRIES => {
                    tries += 1;
                    match cut::leave_inline(self.shared, self.session, set.inode) {
                        // Somebody changed the content meanwhile.
                        Ok(()) | Err(FsError::Stale(_)) => continue,
                        Err(error) => return (Err(error), answered.durable),
                    }
                }
                _ => {}
            }
            if let Some(intent) = &answered.cut
                && let Err(error) = cut::finish(self.shared, intent)
            {
                // The change holds, and nobody is shown the chunks before the caretaker has finished.
                tracing::warn!(inode = %intent.inode, %error, "a truncate or punch is left to the caretaker");
            }
            let result = answered.result.and_then(|reply| {
                let locations = self.locations(&reply.body, &answered.boots)?;
                Ok((reply, locations))
            });
            return (result, answered.durable);
        }
    }

    fn locations(&self, body: &Body, boots: &[BootSession]) -> Result<Vec<pb::ChunkLocation>, FsError> {
        let Body::Chunks { inode, chunks } = body else { return Ok(Vec::new()) };
        let placed = chunks.iter().zip(boots);
        placed
            .map(|((index, chunk), boot)| grants::location(self.shared, inode, *index, chunk.as_deref(), *boot))
            .collect()
    }
}
