//! The sync barrier at the primary: everything that was answered before it is on stable media of all members after it.

use std::time::Instant;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::wire::pb::{self, data_request};

use super::primary::ensure_active;
use super::replica::Replica;
use super::shared::{Shared, store_failure};
use crate::core::admission::Grant;

/// Syncs all members, side by side.
pub(super) fn barrier(shared: &Shared, replica: &Replica, grant: &Grant, deadline: Instant) -> Result<(), FsError> {
    loop {
        let active = ensure_active(shared, replica, grant, deadline)?;
        let seq = replica.lock().committed;
        let request = pb::DataRequest {
            chunk: grant.chunk.0,
            version: grant.version.0,
            grant: Bytes::new(),
            body: Some(data_request::Body::PeerBarrier(pb::PeerBarrier { seq, activation: active.activation, writes: Vec::new() })),
        };
        let calls = shared.peers.send(&shared.identity(), &active.others, &request, &[], deadline);
        let own = sync(shared, replica);
        let answers: Vec<_> = calls.into_iter().map(|call| shared.peers.receive(call, deadline)).collect();
        own?;
        let Some(error) = answers.into_iter().find_map(Result::err) else { return Ok(()) };
        let mut state = replica.lock();
        state.deactivate(active.activation);
        replica.notify(&state);
        drop(state);
        if Instant::now() >= deadline {
            return Err(error);
        }
        tracing::warn!(chunk = %grant.chunk, %error, "a member was lost during a sync");
    }
}

/// Syncs this server's replica.
pub(super) fn sync(shared: &Shared, replica: &Replica) -> Result<(), FsError> {
    let timer = shared.metrics.sync_seconds.start_timer();
    let result = replica.open.sync().map_err(store_failure);
    timer.observe_duration();
    result
}
