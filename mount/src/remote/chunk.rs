//! The calls of chunk servers: single attempts, to the primary of a chunk, on pooled connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::env::{Clock, SystemClock, random_u64};
use dfs_proto::wire::Identity;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::{BootSession, ClusterId, FsError, NodeId, SessionId, Version, unit};

use super::convert::missing;
use super::servers::{Servers, Times};
use crate::core::{Ask, Trouble};
use crate::metrics::Metrics;

/// What was read of a chunk; its checksums are verified.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// The bytes; empty if `all_zero`.
    pub bytes: Bytes,
    /// The whole range is a hole.
    pub all_zero: bool,
}

/// The name of a write: its attempts share it, so that it is applied once, and only on behalf of the session in which it
/// was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId {
    /// Of this mount.
    pub number: u64,
    /// Rises with each other session: what was written under a lost one must not get through under the next.
    pub generation: u64,
}

/// The chunk servers, as seen by one mount. Shared by all threads; a call blocks the thread that makes it. What follows
/// a [`Trouble`] is decided by [`crate::core::ChunkCall`].
#[derive(Debug)]
pub struct ChunkClient {
    servers: Servers,
    client: u64,
    next_number: AtomicU64,
    metrics: Arc<Metrics>,
}

impl ChunkClient {
    /// Returns a client without connections, of a mount in `cluster`.
    pub fn new(cluster: ClusterId, boot: BootSession, session: SessionId, metrics: Arc<Metrics>) -> Self {
        let identity = Identity { cluster: Some(cluster), role: pb::Role::Mount, node: NodeId(0), boot, session };
        Self { servers: Servers::new(identity), client: random_u64(), next_number: AtomicU64::new(1), metrics }
    }

    /// Returns the name of a new write.
    pub fn new_write(&self) -> WriteId {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        WriteId { number, generation: self.servers.generation() }
    }

    /// Speaks for another session from now on. What was written before must be given up by then.
    pub fn session_changed(&self, session: SessionId) {
        self.servers.session_changed(session);
    }

    /// Reads `[offset, offset + length)` of a chunk, at most 1 MiB, and checks it.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub fn read(&self, ask: &Ask, offset: u32, length: u32) -> Result<ReadData, Trouble> {
        let (body, payload) = self.call(ask, data_request::Body::Read(pb::Read { offset, length }), &[], None)?;
        let data_reply::Body::ReadData(reply) = body else { return Err(missing("data").into()) };
        if reply.all_zero {
            return Ok(ReadData { bytes: Bytes::new(), all_zero: true });
        }
        if payload.len() != length as usize {
            return Err(FsError::Protocol(format!("{length} bytes asked for, {} came", payload.len())).into());
        }
        unit::verify(offset, &payload, &reply.crcs).map_err(|piece| {
            // Damaged on the way: the server has checked what it sent.
            Trouble::Unanswered(format!("chunk {} at {offset}: piece {piece} arrived damaged", ask.location.chunk))
        })?;
        self.metrics.read_bytes.inc_by(payload.len() as u64);
        Ok(ReadData { bytes: payload, all_zero: false })
    }

    /// Writes `data` (at most 1 MiB) at `offset` of a chunk, to all its in-sync replicas. `crcs` are of the pieces
    /// between unit boundaries ([`unit::checksums`]), `id` from [`Self::new_write`]. Returns the version under which all
    /// have it, 0 if the server does not say.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub fn write(&self, ask: &Ask, offset: u32, data: &[u8], crcs: &[u32], id: WriteId) -> Result<Version, Trouble> {
        let write = pb::Write { offset, crcs: crcs.to_vec(), client: self.client, number: id.number };
        match self.call(ask, data_request::Body::Write(write), data, Some(id.generation))?.0 {
            data_reply::Body::Written(written) => {
                self.metrics.written_bytes.inc_by(data.len() as u64);
                Ok(Version(written.version))
            }
            _ => Err(missing("confirmation").into()),
        }
    }

    /// Makes what was written to a chunk durable on all its in-sync replicas: all that was acknowledged under `since` and
    /// later versions, 0 for what is there.
    ///
    /// # Errors
    ///
    /// [`Trouble`]. After one, nothing is known to be durable. [`FsError::UnsyncedLost`]: some of it is gone.
    pub fn barrier(&self, ask: &Ask, since: Version) -> Result<(), Trouble> {
        let barrier = pb::Barrier { since: since.0 };
        self.call(ask, data_request::Body::Barrier(barrier), &[], None).map(drop)
    }

    /// Makes a range of a chunk read as zeros; whole units of it become holes. Returns the version as a write does.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub fn zero(&self, ask: &Ask, offset: u32, length: u32, id: WriteId) -> Result<Version, Trouble> {
        let zero = pb::Zero { offset, length, client: self.client, number: id.number };
        match self.call(ask, data_request::Body::Zero(zero), &[], Some(id.generation))?.0 {
            data_reply::Body::Written(written) => Ok(Version(written.version)),
            _ => Err(missing("confirmation").into()),
        }
    }

    /// Returns the ranges (offset, length) of `[offset, offset + length)` that hold data, ascending, in whole units.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub fn extents(&self, ask: &Ask, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, Trouble> {
        let extents = pb::Extents { offset, length };
        match self.call(ask, data_request::Body::Extents(extents), &[], None)?.0 {
            data_reply::Body::ExtentMap(map) => {
                Ok(map.extents.into_iter().map(|extent| (extent.offset, extent.length)).collect())
            }
            _ => Err(missing("extents").into()),
        }
    }

    fn call(
        &self,
        ask: &Ask,
        body: data_request::Body,
        payload: &[u8],
        only_in: Option<u64>,
    ) -> Result<(data_reply::Body, Bytes), Trouble> {
        let location = &ask.location;
        let Some(primary) = location.primary().filter(|_| !location.is_hole()) else {
            return Err(Trouble::Refused(FsError::Stale("the location names no server")));
        };
        let request = pb::DataRequest {
            chunk: location.chunk.0,
            version: location.version.0,
            grant: location.grant.clone(),
            body: Some(body),
        };
        self.metrics.data_round_trips.inc();
        let (reply, bytes) = self.servers.ask(&primary.address, &request, payload, times(ask), only_in)?;
        if let Some(failure) = reply.failure {
            return Err(Trouble::Refused(failure.into()));
        }
        Ok((reply.body.ok_or_else(|| missing("body"))?, bytes))
    }
}

fn times(ask: &Ask) -> Times {
    let (now, mono) = (Instant::now(), SystemClock.mono());
    let at = |time: dfs_proto::MonoMs| now + Duration::from_millis(time.since(mono));
    Times { check_at: at(ask.check_at), until: at(ask.until) }
}
