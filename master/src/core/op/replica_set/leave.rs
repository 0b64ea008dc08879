//! A server says that it cannot keep its replica.

use dfs_proto::FsError;
use dfs_proto::replica_set::ChangeRequest;

use super::{compare, next_primary};
use crate::core::record::Chunk;
use crate::core::view::View;

/// Takes the sender out of the set. If it was the primary another member in sync is the next one: it stopped to serve
/// under this version before it asked, so nothing is waited for.
///
/// Only a primary's word is held against the version: it might have been granted a later one since. Anybody else is let
/// go whatever it knows; the failed disk of a secondary never learns of later versions.
///
/// # Errors
///
/// [`FsError::NoReplica`] if nobody else is in sync; [`FsError::Stale`] if the sender is a primary and the set has changed
/// since.
pub(super) fn leave(view: &View<'_>, request: &ChangeRequest, set: &mut Chunk) -> Result<(), FsError> {
    let sender = request.node;
    if !set.has_member(sender) {
        return Ok(());
    }
    if set.primary != sender {
        set.retire(sender);
        return Ok(());
    }
    if !view.cluster.standing(sender).taints(set) {
        compare(request, set, false)?;
    }
    let Some(next) = next_primary(view, set, &set.secondaries()) else {
        return Err(FsError::NoReplica(format!("node {sender} has the last replica in sync of chunk {}", set.id)));
    };
    set.retire(sender);
    set.primary = next;
    Ok(())
}
