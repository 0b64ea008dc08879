//! Another member becomes the primary when the present one is lost.

use dfs_proto::NodeId;
use dfs_proto::planted::{self, Bug};

use super::next_primary;
use crate::core::record::Chunk;
use crate::core::view::View;

/// Moves the primary, if no run of its server can hold a lease any more and a trusted member is there to take over. The
/// old one leaves the set: it cannot be asked to take the new version. Returns whose roles were given to others.
///
/// Nobody but members in sync comes into question, whatever that costs in waiting.
pub(super) fn take_over(view: &View<'_>, set: &mut Chunk) -> Option<NodeId> {
    let lost = set.primary;
    if !view.cluster.standing(lost).is_lease_over {
        return None;
    }
    let mut candidates = set.secondaries();
    if planted::is(Bug::ElectRemoved) {
        candidates = set.stale.clone();
    }
    candidates.retain(|node| {
        let standing = view.cluster.standing(*node);
        standing.is_online && !standing.taints(set)
    });
    let next = next_primary(view, set, &candidates)?;
    set.retire(lost);
    if !set.in_sync.contains(&next) {
        set.stale.retain(|node| *node != next);
        set.in_sync.push(next);
    }
    set.primary = next;
    Some(lost)
}
