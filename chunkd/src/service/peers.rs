//! Connections to other chunk servers: a pool to each, a connection used by one request at a time.
//!
//! An error drops the connection, and the idle ones to that server with it: they most likely lead to the same dead
//! process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::NodeId;
use dfs_proto::replica_set::Member;
use dfs_proto::wire::{Connection, Identity, WireError, connect, offer_hello, pb};
use parking_lot::Mutex;

/// Idle connections that are kept to one server.
const IDLE_MAX: usize = 32;
/// A peer that takes nothing off its socket for this long is given up.
const SEND_TIMEOUT: Duration = Duration::from_millis(1_500);

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

impl Peers {
    /// Returns a connection to `member` that nobody else uses, made until `until` if none is idle.
    ///
    /// # Errors
    ///
    /// Why it cannot be reached.
    pub fn check_out(&self, own: &Identity, member: &Member, until: Instant) -> Result<Connection, WireError> {
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
        let left = until.saturating_duration_since(Instant::now());
        let mut connection = connect(&member.address, left)?;
        connection.socket()?.set_write_timeout(Some(SEND_TIMEOUT))?;
        let peer = offer_hello(&mut connection, own, pb::Role::ChunkServer, until)?;
        if peer.node != member.node {
            // Its address was given to another server, or it has not registered since it started.
            return Err(WireError::Refused(format!("node {} answers there", peer.node)));
        }
        Ok(connection)
    }

    /// Keeps `connection`, on which no answer is due, for the next request.
    pub fn give_back(&self, member: &Member, connection: Connection) {
        let mut pools = self.pools.lock();
        let pool = pools.entry(member.node).or_default();
        if pool.address != member.address {
            *pool = Pool { address: Arc::clone(&member.address), idle: Vec::new() };
        }
        if pool.idle.len() < IDLE_MAX {
            pool.idle.push(connection);
        }
    }

    /// Drops all idle connections.
    pub fn forget_all(&self) {
        let dropped = std::mem::take(&mut *self.pools.lock());
        drop(dropped);
    }

    /// Drops the idle connections to `member`: one has just broken.
    pub fn lost(&self, member: &Member) {
        let dropped = self.pools.lock().remove(&member.node);
        drop(dropped);
    }
}
