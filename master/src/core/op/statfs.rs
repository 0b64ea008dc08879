//! statfs(2).

use dfs_proto::limits::REPLICAS;

use crate::core::outcome::{Body, Outcome};
use crate::core::view::View;

/// Tells how much user data fits, and how much more: the raw space over the replicas of the default layout.
pub(super) fn statfs(view: &View<'_>) -> Outcome {
    let space = view.cluster.space();
    let body = Body::StatFs {
        total_bytes: space.total_bytes / u64::from(REPLICAS),
        free_bytes: space.free_bytes / u64::from(REPLICAS),
        inodes: view.counters.inodes,
    };
    Outcome::read(view, body)
}
