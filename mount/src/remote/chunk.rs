//! The calls of chunk servers: single attempts, to the primary of a chunk, on pooled connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::env::random_u64;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello};
use dfs_proto::{BootSession, ClusterId, FsError, NodeId, SessionId, unit};
use parking_lot::Mutex;

use super::convert::missing;
use super::silence::{Pass, Silences};
use crate::core::{Location, Policy};
use crate::metrics::Metrics;

/// A server that does not take a connection within this is left: another primary may be there already.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server itself waits 10 s for its secondaries; past this it is not going to answer. Less if calls may take less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections kept open to one server while nobody uses them.
const IDLE_MAX: usize = 16;

/// What was read of a chunk; its checksums are verified.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// The bytes; empty if `all_zero`.
    pub bytes: Bytes,
    /// The whole range is a hole.
    pub all_zero: bool,
}

/// The chunk servers, as seen by one mount. Shared by all threads; a call blocks the thread that makes it.
///
/// Errors of every call: `Stale` (drop the location, ask the master), `TryAgain`, `NoReplica` (also: the server cannot
/// be reached or is silent; the master may name another one soon), `Corrupt`, `NoSpace`, `Io`.
#[derive(Debug)]
pub struct ChunkClient {
    identity: Identity,
    client: u64,
    next_number: AtomicU64,
    answer_timeout: Duration,
    idle: Mutex<BTreeMap<Arc<str>, Vec<Connection>>>,
    silences: Silences,
    metrics: Arc<Metrics>,
}

impl ChunkClient {
    /// Returns a client without connections, of a mount in `cluster` whose calls wait as `policy` says.
    pub fn new(
        cluster: ClusterId,
        boot: BootSession,
        session: SessionId,
        policy: Policy,
        metrics: Arc<Metrics>,
    ) -> Self {
        let answer_timeout =
            policy.left_ms(0).map_or(ANSWER_TIMEOUT, |ms| Duration::from_millis(ms).min(ANSWER_TIMEOUT));
        Self {
            answer_timeout,
            silences: Silences::default(),
            identity: Identity { cluster: Some(cluster), role: pb::Role::Mount, node: NodeId(0), boot, session },
            client: random_u64(),
            next_number: AtomicU64::new(1),
            idle: Mutex::new(BTreeMap::new()),
            metrics,
        }
    }

    /// Returns the number of a new write: the attempts of one write share it, so that it is applied once.
    pub fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads `[offset, offset + length)` of a chunk, at most 1 MiB, and checks it.
    ///
    /// # Errors
    ///
    /// As the type says.
    pub fn read(&self, location: &Location, offset: u32, length: u32) -> Result<ReadData, FsError> {
        let (body, payload) = self.call(location, data_request::Body::Read(pb::Read { offset, length }), &[])?;
        let data_reply::Body::ReadData(reply) = body else { return Err(missing("data")) };
        if reply.all_zero {
            return Ok(ReadData { bytes: Bytes::new(), all_zero: true });
        }
        if payload.len() != length as usize {
            return Err(FsError::Protocol(format!("{length} bytes asked for, {} came", payload.len())));
        }
        unit::verify(offset, &payload, &reply.crcs).map_err(|piece| {
            // Damaged on the way: the server has checked what it sent.
            FsError::NoReplica(format!("chunk {} at {offset}: piece {piece} arrived damaged", location.chunk))
        })?;
        self.metrics.read_bytes.inc_by(payload.len() as u64);
        Ok(ReadData { bytes: payload, all_zero: false })
    }

    /// Writes `data` (at most 1 MiB) at `offset` of a chunk, to all its in-sync replicas. `crcs` are of the pieces
    /// between unit boundaries ([`unit::checksums`]), `number` from [`Self::new_number`].
    ///
    /// # Errors
    ///
    /// As the type says.
    pub fn write(
        &self,
        location: &Location,
        offset: u32,
        data: &[u8],
        crcs: &[u32],
        number: u64,
    ) -> Result<(), FsError> {
        let write = pb::Write { offset, crcs: crcs.to_vec(), client: self.client, number };
        match self.call(location, data_request::Body::Write(write), data)?.0 {
            data_reply::Body::Written(_) => {
                self.metrics.written_bytes.inc_by(data.len() as u64);
                Ok(())
            }
            _ => Err(missing("confirmation")),
        }
    }

    /// Makes what was written to a chunk durable on all its in-sync replicas.
    ///
    /// # Errors
    ///
    /// As the type says. After one, nothing is known to be durable.
    pub fn barrier(&self, location: &Location) -> Result<(), FsError> {
        self.call(location, data_request::Body::Barrier(pb::Barrier {}), &[]).map(drop)
    }

    /// Makes a range of a chunk read as zeros; whole units of it become holes.
    ///
    /// # Errors
    ///
    /// As the type says.
    pub fn zero(&self, location: &Location, offset: u32, length: u32, number: u64) -> Result<(), FsError> {
        let zero = pb::Zero { offset, length, client: self.client, number };
        self.call(location, data_request::Body::Zero(zero), &[]).map(drop)
    }

    /// Returns the ranges (offset, length) of `[offset, offset + length)` that hold data, ascending, in whole units.
    ///
    /// # Errors
    ///
    /// As the type says.
    pub fn extents(&self, location: &Location, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, FsError> {
        let extents = pb::Extents { offset, length };
        match self.call(location, data_request::Body::Extents(extents), &[])?.0 {
            data_reply::Body::ExtentMap(map) => {
                Ok(map.extents.into_iter().map(|extent| (extent.offset, extent.length)).collect())
            }
            _ => Err(missing("extents")),
        }
    }

    fn call(
        &self,
        location: &Location,
        body: data_request::Body,
        payload: &[u8],
    ) -> Result<(data_reply::Body, Bytes), FsError> {
        let Some(primary) = location.primary().filter(|_| !location.is_hole()) else {
            return Err(FsError::Stale("the location names no server"));
        };
        let request = pb::DataRequest {
            chunk: location.chunk.0,
            version: location.version.0,
            grant: location.grant.clone(),
            body: Some(body),
        };
        let unreachable = |error: WireError| {
            FsError::NoReplica(format!("chunk server {} at {}: {error}", primary.node, primary.address))
        };
        let Some(pass) = self.silences.enter(&primary.address) else {
            return Err(unreachable(WireError::TimedOut));
        };
        if pass.is_probe() {
            self.check(&primary.address, &pass).map_err(unreachable)?;
        }
        self.metrics.data_round_trips.inc();
        let outcome = self.exchange(&primary.address, &request, payload);
        if matches!(outcome, Err(WireError::TimedOut)) {
            // It may only be waiting for a server of this very chunk: others are not to suffer from that.
            let _ = self.check(&primary.address, &pass);
        }
        let (reply, bytes) = outcome.map_err(unreachable)?;
        if let Some(failure) = reply.failure {
            return Err(failure.into());
        }
        Ok((reply.body.ok_or_else(|| missing("body"))?, bytes))
    }

    /// Finds out whether a server that was silent is there at all.
    fn check(&self, address: &Arc<str>, pass: &Pass<'_>) -> Result<(), WireError> {
        match self.dial(address) {
            Ok(connection) => {
                pass.heard();
                self.give_back(address, connection);
                Ok(())
            }
            Err(error) => {
                match error {
                    WireError::TimedOut => pass.silent(),
                    // Its host says that nobody is there: that takes no time.
                    _ => pass.heard(),
                }
                Err(error)
            }
        }
    }

    fn exchange(
        &self,
        address: &Arc<str>,
        request: &pb::DataRequest,
        payload: &[u8],
    ) -> Result<(pb::DataReply, Bytes), WireError> {
        let (mut connection, mut is_reused) = match self.take_idle(address) {
            Some(connection) => (connection, true),
            None => (self.dial(address)?, false),
        };
        loop {
            let deadline = Some(Instant::now() + self.answer_timeout);
            match connection.call(FrameKind::DataRequest, FrameKind::DataReply, request, payload, deadline) {
                Ok(answer) => {
                    self.give_back(address, connection);
                    return Ok(answer);
                }
                // An idle connection dies unseen when its server restarts. Requests may be repeated: numbers see to it.
                Err(WireError::Closed | WireError::Io(_)) if is_reused => {
                    self.idle.lock().remove(address);
                    connection = self.dial(address)?;
                    is_reused = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn take_idle(&self, address: &Arc<str>) -> Option<Connection> {
        self.idle.lock().get_mut(address)?.pop()
    }

    fn give_back(&self, address: &Arc<str>, connection: Connection) {
        let mut idle = self.idle.lock();
        let connections = idle.entry(Arc::clone(address)).or_default();
        if connections.len() < IDLE_MAX {
            connections.push(connection);
        }
    }

    fn dial(&self, address: &str) -> Result<Connection, WireError> {
        let mut connection = connect(address, CONNECT_TIMEOUT)?;
        offer_hello(&mut connection, &self.identity, pb::Role::ChunkServer, Instant::now() + CONNECT_TIMEOUT)?;
        Ok(connection)
    }
}
