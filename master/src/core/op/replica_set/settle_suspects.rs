//! What becomes of members that may have lost acknowledged writes: their host lost its page cache, or a sync failed.

use dfs_proto::NodeId;

use crate::core::record::Chunk;
use crate::core::view::View;

/// Members that are trusted, or as suspect as the others, are waited for so long, in milliseconds.
pub const AWAY_MS: u64 = 600_000;

/// Settles whom to believe, if that can be told now:
///
/// - Somebody trusted is there: the suspects leave, and are filled again.
/// - All are suspect: once all are there they are believed together. What was synced is on each of them, and of each unit
///   the highest stamp wins when the primary makes them equal.
/// - Who is away for ten minutes is not waited for. Then only what was never synced can be missing.
///
/// Where suspects are believed, the loss is noted: an fsync that comes later, of what was written before, has to fail.
///
/// No run of a suspect server was granted this chunk since it came back, so a suspect primary is moved once the runs
/// before that have certainly ended.
pub(super) fn settle_suspects(view: &View<'_>, set: &mut Chunk) {
    let standing = |node: &NodeId| view.cluster.standing(*node);
    let (suspects, trusted): (Vec<NodeId>, Vec<NodeId>) =
        set.in_sync.iter().partition(|node| standing(node).taints(set));
    if suspects.is_empty() || (suspects.contains(&set.primary) && !standing(&set.primary).are_former_leases_over) {
        return;
    }
    let online = |nodes: &[NodeId]| nodes.iter().copied().filter(|node| standing(node).is_online).collect::<Vec<_>>();
    let trusted_here = online(&trusted);
    if let Some(first) = trusted_here.first() {
        if suspects.contains(&set.primary) {
            set.primary = *first;
        }
        suspects.iter().for_each(|node| set.retire(*node));
        return;
    }
    let here = online(&suspects);
    let away: Vec<NodeId> = set.in_sync.iter().copied().filter(|node| !here.contains(node)).collect();
    let is_moved = !here.contains(&set.primary);
    if here.is_empty()
        || !away.iter().all(|node| standing(node).silent_ms >= AWAY_MS)
        || (is_moved && !standing(&set.primary).is_lease_over)
    {
        return;
    }
    if is_moved {
        set.primary = here[0];
    }
    away.iter().for_each(|node| set.retire(*node));
    set.note_loss();
    // They are believed from here on: with this position none of them counts as suspect any more.
    set.set_seq = view.seq;
}
