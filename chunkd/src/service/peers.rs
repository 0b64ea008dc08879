//! Asking other chunk servers: a pool of connections to each, used by one thread at a time.
//!
//! The thread that asks several peers sends to all of them first and then reads the answers one after the other, so a
//! round trip costs no thread but its own. Any error drops the connection, and the idle ones to that server with it:
//! they most likely lead to the same dead process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello, pb};
use dfs_proto::{FsError, NodeId};
use parking_lot::Mutex;

use crate::core::admission::Member;

/// Idle connections that are kept to one server.
const IDLE_MAX: usize = 32;
/// A server that does not accept a connection in this time is taken as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that takes nothing off its socket for this long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// What is passed on of a peer's own words.
const REASON_CHARS_MAX: usize = 500;

#[derive(Debug, Default)]
struct Pool {
    address: Arc<str>,
    idle: Vec<Connection>,
}

/// Connections to other chunk servers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pools: Mutex<BTreeMap<NodeId, Pool>>,
}

/// A request that was sent to one peer, and its answer yet to come.
#[derive(Debug)]
pub(super) struct Call {
    pub member: Member,
    sent: Result<(Connection, u64), FsError>,
}

impl Peers {
    /// Sends `request` to each of `members`. What goes wrong is told by [`Self::receive`].
    pub fn send(
        &self,
        own: &Identity,
        members: &[Member],
        request: &pb::DataRequest,
        payload: &[u8],
        deadline: Instant,
    ) -> Vec<Call> {
        let send_one = |member: &Member| -> Result<(Connection, u64), WireError> {
            let mut connection = self.check_out(own, member, deadline)?;
            let id = connection.request(FrameKind::DataRequest, request, payload)?;
            Ok((connection, id))
        };
        members
            .iter()
            .map(|member| Call {
                member: member.clone(),
                sent: send_one(member).map_err(|error| self.lost(member, &error)),
            })
            .collect()
    }

    /// Waits for the answer to `call`.
    ///
    /// # Errors
    ///
    /// What the peer answered; [`FsError::NoReplica`] if it could not be reached or did not answer.
    pub fn receive(&self, call: Call, deadline: Instant) -> Result<(pb::DataReply, Bytes), FsError> {
        let (mut connection, id) = call.sent?;
        let (mut reply, payload): (pb::DataReply, _) = connection
            .reply(FrameKind::DataReply, id, Some(deadline))
            .map_err(|error| self.lost(&call.member, &error))?;
        self.give_back(&call.member, connection);
        match reply.failure.take() {
            Some(failure) => Err(named(&call.member, failure.into())),
            None => Ok((reply, payload)),
        }
    }

    /// Asks one peer.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn call(
        &self,
        own: &Identity,
        member: &Member,
        request: &pb::DataRequest,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(pb::DataReply, Bytes), FsError> {
        let mut calls = self.send(own, std::slice::from_ref(member), request, payload, deadline);
        self.receive(calls.pop().expect("one member, one call"), deadline)
    }

    fn check_out(&self, own: &Identity, member: &Member, deadline: Instant) -> Result<Connection, WireError> {
        {
            let mut pools = self.pools.lock();
            if let Some(pool) = pools.get_mut(&member.node) {
                if pool.address != member.address {
                    pool.idle.clear();
                } else if let Some(connection) = pool.idle.pop() {
                    return Ok(connection);
                }
            }
        }
        if member.address.is_empty() {
            return Err(WireError::Malformed("its address is not known".into()));
        }
        let left = deadline.saturating_duration_since(Instant::now()).min(CONNECT_TIMEOUT);
        let mut connection = connect(&member.address, left)?;
        connection.socket()?.set_write_timeout(Some(SEND_TIMEOUT))?;
        let peer = offer_hello(&mut connection, own, pb::Role::ChunkServer, Instant::now() + left)?;
        if peer.node != member.node {
            // Its address was given to another server, or it has not registered since it started.
            return Err(WireError::Refused(format!("node {} answers there", peer.node)));
        }
        Ok(connection)
    }

    fn give_back(&self, member: &Member, connection: Connection) {
        let mut pools = self.pools.lock();
        let pool = pools.entry(member.node).or_default();
        if pool.address != member.address {
            *pool = Pool { address: Arc::clone(&member.address), idle: Vec::new() };
        }
        if pool.idle.len() < IDLE_MAX {
            pool.idle.push(connection);
        }
    }

    fn lost(&self, member: &Member, error: &WireError) -> FsError {
        let dropped = self.pools.lock().remove(&member.node);
        drop(dropped);
        FsError::NoReplica(format!("node {} at {}: {error}", member.node, member.address))
    }
}

/// Says in an error of `member` that it was that member, so that a log line here is enough to find the culprit.
fn named(member: &Member, error: FsError) -> FsError {
    match error {
        FsError::NoReplica(reason) => {
            let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
            FsError::NoReplica(format!("node {}: {reason}", member.node))
        }
        other => other,
    }
}
