//! How a set is read and put back.

use std::sync::Arc;

use dfs_proto::replica_set::Home;
use dfs_proto::{NodeId, Version};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Record};
use crate::core::view::{Stop, View};

/// A chunk where its home says.
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) chunk: Arc<Chunk>,
}

/// Returns the chunk at `home`, if there is one.
///
/// # Errors
///
/// [`Stop::Read`].
pub(super) fn find(view: &View<'_>, home: Home) -> Result<Option<Found>, Stop> {
    let key = Key::Chunk(home.inode, home.index);
    Ok(match view.find(&key)? {
        Some(Record::Chunk(chunk)) => Some(Found { key, chunk }),
        _ => None,
    })
}

/// Puts `set` in the place of what was found, under the next version; the same set changes nothing. Returns the chunk as
/// it then is.
pub(super) fn put(view: &View<'_>, outcome: &mut Outcome, found: &Found, set: Chunk) -> Arc<Chunk> {
    if set == *found.chunk {
        return Arc::clone(&found.chunk);
    }
    assert!(set.in_sync.contains(&set.primary), "the primary is in sync");
    let seq = outcome.seq();
    let has_suspects = set.in_sync.iter().any(|node| view.cluster.standing(*node).taints(&set));
    let set_seq = if has_suspects { set.set_seq } else { seq };
    let version = Version(found.chunk.version.0 + 1);
    put_as(outcome, found, Chunk { version, version_seq: seq, set_seq, ..set })
}

/// Puts `chunk` in the place of what was found, under the version it has.
pub(super) fn put_as(outcome: &mut Outcome, found: &Found, chunk: Chunk) -> Arc<Chunk> {
    let chunk = Arc::new(Chunk { seq: outcome.seq(), ..chunk });
    outcome.put(found.key.clone(), Record::Chunk(Arc::clone(&chunk)));
    chunk
}

impl Chunk {
    /// Notes that the members of the next version may lack what was acknowledged before it.
    pub(super) fn note_loss(&mut self) {
        self.loss_version = Version(self.version.0 + 1);
    }

    /// Takes `node` out of the set. It may keep an older replica.
    pub(super) fn retire(&mut self, node: NodeId) {
        self.in_sync.retain(|member| *member != node);
        self.syncing.retain(|member| *member != node);
        if !self.stale.contains(&node) {
            self.stale.push(node);
        }
    }

    /// Returns the members in sync other than the primary.
    pub(super) fn secondaries(&self) -> Vec<NodeId> {
        self.in_sync.iter().copied().filter(|node| *node != self.primary).collect()
    }
}
