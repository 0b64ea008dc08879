//! An administrator makes a replica the primary although acknowledged writes may be missing on it.

use std::sync::Arc;

use dfs_proto::replica_set::Home;
use dfs_proto::{FsError, NodeId};

use super::{CHANGED_SINCE, change_set, usable};
use crate::core::outcome::Outcome;
use crate::core::record::Chunk;
use crate::core::view::{Stop, View};

/// Makes `node` the only member in sync. All others are old from then on.
///
/// # Errors
///
/// [`FsError::Invalid`] if it holds no replica; [`FsError::TryAgain`] while the present primary may still serve;
/// [`FsError::Stale`] if there is no such chunk; [`Stop`].
pub fn force_primary(view: &View<'_>, home: Home, node: NodeId) -> Result<(Outcome, Arc<Chunk>), Stop> {
    let mut outcome = Outcome::new(view);
    let found = change_set::find(view, home)?.ok_or(CHANGED_SINCE)?;
    let mut set = Chunk::clone(&found.chunk);
    if !set.holders().any(|holder| holder == node) {
        return Err(FsError::Invalid("this server holds no replica of the chunk").into());
    }
    let present = view.cluster.standing(set.primary);
    let has_stopped = present.is_lease_over || (present.taints(&set) && present.are_former_leases_over);
    if set.primary != node && !has_stopped {
        return Err(FsError::TryAgain("the present primary may still serve").into());
    }
    let has_all = set.in_sync.contains(&node) && !view.cluster.standing(node).taints(&set);
    let others: Vec<NodeId> = set.holders().filter(|holder| *holder != node).collect();
    others.into_iter().for_each(|holder| set.retire(holder));
    (set.syncing, set.in_sync, set.primary) = (Vec::new(), vec![node], node);
    set.stale.retain(|holder| *holder != node);
    // From here on it is believed, whatever it lost.
    if !has_all {
        set.note_loss();
    }
    set.set_seq = outcome.seq();
    let chunk = usable::change_primary(view, &mut outcome, &found, set)?;
    Ok((outcome, chunk))
}
