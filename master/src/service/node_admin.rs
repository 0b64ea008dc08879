//! What an administrator changes: servers are emptied and forgotten, a primary is forced.

use std::sync::Arc;

use dfs_proto::replica_set::Home;
use dfs_proto::{FsError, NodeId, Version};
use tonic::Status;

use super::Shared;
use super::care_world::ServiceWorld;
use crate::core::care_loop::World;
use crate::core::fleet::{Fleet, FleetNode};
use crate::core::key::{Key, Range};
use crate::core::node_table::NodeState;
use crate::core::record::Record;

/// Records read at once.
const PAGE: usize = 1_024;

/// Has `node` emptied, or no longer. Returns how many replicas are left there.
///
/// # Errors
///
/// `NotFound`; `Unavailable` if the master cannot serve.
pub(super) fn drain(shared: &Arc<Shared>, node: NodeId, is_draining: bool) -> Result<u64, Status> {
    let before = is_known(shared, node)?;
    shared.executor.drain(node, is_draining).map_err(unavailable)?;
    if before != is_draining {
        tracing::warn!(%node, is_draining, "an administrator has a chunk server emptied, or no longer");
    }
    let counted = shared.care.shown.lock().count.replicas.get(&node).copied().unwrap_or(0);
    // The last count may be older than the last placement.
    if counted == 0 { members_on(shared, node) } else { Ok(counted) }
}

/// Forgets `node`, which no chunk may name as a member. It has to be offline or draining before: nothing is placed on it
/// while the records are looked through.
///
/// # Errors
///
/// `NotFound`; `FailedPrecondition` says what is to be done first; `Unavailable`.
pub(super) fn remove(shared: &Arc<Shared>, node: NodeId) -> Result<(), Status> {
    let was_draining = is_known(shared, node)?;
    let state = shared.nodes.read().state(node, shared.clock.mono());
    if !was_draining && state != NodeState::Offline {
        return Err(Status::failed_precondition(format!("node {node} is not offline: drain it first")));
    }
    shared.executor.drain(node, true).map_err(unavailable)?;
    let left = members_on(shared, node)?;
    if left > 0 {
        if !was_draining {
            shared.executor.drain(node, false).map_err(unavailable)?;
        }
        return Err(Status::failed_precondition(format!("{left} chunks have a replica on node {node}")));
    }
    let durable_first = shared.executor.with(move |state| state.remove_node(node)).map_err(unavailable)?;
    shared.executor.wait_first(durable_first).map_err(unavailable)?;
    tracing::warn!(%node, "an administrator had a chunk server forgotten");
    Ok(())
}

/// Makes the replica that `node` has the only one in sync. Refused while one that is in sync is there.
///
/// # Errors
///
/// `FailedPrecondition` with the reason; `NotFound`; `Unavailable`.
pub(super) fn force_primary(shared: &Arc<Shared>, home: Home, node: NodeId) -> Result<Version, Status> {
    let mut world = ServiceWorld { shared };
    let facts = world.chunks(&[home]).map_err(unavailable)?.pop().flatten();
    let facts = facts.ok_or_else(|| Status::not_found("there is no such chunk"))?;
    let mut fleet = Fleet::default();
    fleet.refresh(FleetNode::all(&shared.nodes.read(), shared.clock.mono()));
    let is_good = |member: &&NodeId| fleet.is_online(**member) && !fleet.is_tainted(&facts, **member);
    if let Some(member) = facts.in_sync.iter().find(is_good) {
        return Err(Status::failed_precondition(format!("node {member} is there with all that was acknowledged")));
    }
    if !fleet.is_online(node) {
        return Err(Status::failed_precondition(format!("node {node} is not online")));
    }
    let chunk = shared.executor.force_primary(home, node).map_err(|error| match error {
        FsError::Io(_) => unavailable(error),
        other => Status::failed_precondition(other.to_string()),
    })?;
    shared.metrics.forced_primary();
    let (inode, index, version) = (home.inode, home.index, chunk.version);
    let in_sync_before = format!("{:?}", facts.in_sync);
    tracing::error!(%node, chunk = %chunk.id, %inode, %index, %version, in_sync_before,
        "an administrator forced a primary: acknowledged writes may be lost");
    shared.executor.control().inbox.lock().changed(home);
    Ok(version)
}

/// Returns whether `node`, which must be on record, is draining.
fn is_known(shared: &Shared, node: NodeId) -> Result<bool, Status> {
    let table = shared.nodes.read();
    let known = table.node(node).ok_or_else(|| Status::not_found(format!("there is no node {node}")))?;
    Ok(known.is_draining)
}

/// Counts the chunks that have `node` in their set, as of one moment.
fn members_on(shared: &Shared, node: NodeId) -> Result<u64, Status> {
    let snapshot = shared.executor.with(|state| state.snapshot().map_err(|error| state.stop_serving(&error)));
    let snapshot = snapshot.map_err(unavailable)?;
    let (mut range, mut count) = (Range::chunks_after(None, PAGE), 0);
    loop {
        let page =
            snapshot.scan(&range.start, &range.end, range.limit).map_err(|error| unavailable(FsError::from(&error)))?;
        for (key, bytes) in &page {
            let key = Key::decode(key).ok_or_else(|| Status::data_loss("a record with an unknown key"))?;
            match Record::decode(&key, bytes) {
                Ok(Record::Chunk(chunk)) => count += u64::from(chunk.has_member(node)),
                Ok(_) => {}
                Err(error) => return Err(Status::data_loss(format!("{key:?}: {error}"))),
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => range.start = [last, &[0][..]].concat().into(),
            _ => return Ok(count),
        }
    }
}

fn unavailable(error: FsError) -> Status {
    Status::unavailable(error.to_string())
}
