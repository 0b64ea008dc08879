//! Calls of the master to the primaries of chunks: connections that are kept, and the backoff of retries.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::wire::{Connection, FrameKind, Identity, connect, offer_hello, pb};
use dfs_proto::{BootSession, ClusterId, FsError, NodeId, SessionId};
use parking_lot::Mutex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections kept for one address.
const IDLE_MAX: usize = 4;

/// Why a call was not answered with what it asked for.
#[derive(Debug)]
pub(super) struct CallFailed {
    pub(super) error: FsError,
    /// It was sent and not answered: the server may carry it out later.
    pub(super) may_still_run: bool,
}

/// Connections to chunk servers.
pub struct DataPlane {
    identity: Identity,
    idle: Mutex<BTreeMap<String, Vec<Connection>>>,
}

impl DataPlane {
    /// Starts without any connection.
    pub fn new(cluster: ClusterId, boot: BootSession) -> Self {
        let identity =
            Identity { cluster: Some(cluster), role: pb::Role::Master, node: NodeId(0), boot, session: SessionId(0) };
        Self { identity, idle: Mutex::default() }
    }

    /// Makes one call to the chunk server at `address`, to be answered by `deadline`.
    ///
    /// # Errors
    ///
    /// [`CallFailed`]: what the server says; [`FsError::NoReplica`] if it cannot be reached.
    pub(super) fn call(
        &self,
        address: &str,
        request: &pb::DataRequest,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(pb::DataReply, Bytes), CallFailed> {
        let unreachable = |error: &dyn std::fmt::Display, may_still_run| CallFailed {
            error: FsError::NoReplica(format!("{address}: {error}")),
            may_still_run,
        };
        let pooled = self.idle.lock().get_mut(address).and_then(Vec::pop);
        let mut connection = match pooled {
            Some(connection) => connection,
            None => self.dial(address).map_err(|error| unreachable(&error, false))?,
        };
        let (reply, payload): (pb::DataReply, Bytes) = connection
            .call(FrameKind::DataRequest, FrameKind::DataReply, request, payload, Some(deadline))
            .map_err(|error| unreachable(&error, true))?;
        let mut idle = self.idle.lock();
        let pool = idle.entry(address.to_owned()).or_default();
        if pool.len() < IDLE_MAX {
            pool.push(connection);
        }
        drop(idle);
        match reply.failure {
            Some(failure) => Err(CallFailed { error: failure.into(), may_still_run: false }),
            None => Ok((reply, payload)),
        }
    }

    fn dial(&self, address: &str) -> Result<Connection, dfs_proto::wire::WireError> {
        let mut connection = connect(address, CONNECT_TIMEOUT)?;
        offer_hello(&mut connection, &self.identity, pb::Role::ChunkServer, Instant::now() + CONNECT_TIMEOUT)?;
        Ok(connection)
    }
}

/// Calls `attempt` until it succeeds, fails for good, or `deadline` has passed; waits between the tries, longer each
/// time.
///
/// # Errors
///
/// What the last try failed with.
pub(super) fn retry<T>(deadline: Instant, mut attempt: impl FnMut() -> Result<T, FsError>) -> Result<T, FsError> {
    let mut pause = Duration::from_millis(10);
    loop {
        match attempt() {
            Err(error) if error.is_transient() && Instant::now() + pause < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            result => return result,
        }
    }
}
