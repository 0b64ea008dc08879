//! The primary says that a replica it filled has everything, and lets no write in until it is answered.

use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::ChangeRequest;
use dfs_proto::{FsError, NodeId};

use super::{CHANGED_SINCE, compare};
use crate::core::record::Chunk;

/// Takes `node` into the set.
///
/// # Errors
///
/// [`FsError::Stale`] if it was not being filled, or the set has changed since: nobody enters on an old word.
pub(super) fn finish_sync(request: &ChangeRequest, node: NodeId, set: &mut Chunk) -> Result<(), FsError> {
    if !compare(request, set, set.in_sync.contains(&node))? {
        return Ok(());
    }
    if !set.syncing.contains(&node) && !planted::is(Bug::NoCompareAndSet) {
        return Err(CHANGED_SINCE);
    }
    set.syncing.retain(|member| *member != node);
    set.in_sync.push(node);
    Ok(())
}
