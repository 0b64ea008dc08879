//! The primary says that a member is silent, refuses, or is damaged.

use dfs_proto::replica_set::ChangeRequest;
use dfs_proto::{FsError, NodeId};

use super::compare;
use crate::core::record::Chunk;

/// Takes `node` out of the set. One reporter's word is enough to leave. The primary itself stays, so that the last member
/// in sync never goes this way.
///
/// # Errors
///
/// [`FsError::Invalid`] if it names itself; [`FsError::Stale`] if the set has changed since.
pub(super) fn drop_member(request: &ChangeRequest, node: NodeId, set: &mut Chunk) -> Result<(), FsError> {
    if node == set.primary {
        return Err(FsError::Invalid("a primary leaves, it does not drop itself"));
    }
    if compare(request, set, !set.has_member(node))? && set.has_member(node) {
        set.retire(node);
    }
    Ok(())
}
