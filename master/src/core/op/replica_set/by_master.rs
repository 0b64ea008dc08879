//! Changes that the caretaker plans.

use std::sync::Arc;

use dfs_proto::replica_set::Home;
use dfs_proto::{FsError, Version};

use super::{CHANGED_SINCE, change_set};
use crate::core::care::SetChange;
use crate::core::outcome::Outcome;
use crate::core::record::Chunk;
use crate::core::view::{Stop, View};

/// Carries out `change`, if the chunk is still at `version`, and returns the chunk as it then is. What is so already
/// changes nothing. Notes of stale replicas are no change of the set: the version stays.
///
/// # Errors
///
/// [`FsError::Stale`] if the chunk is gone or its set has changed; [`FsError::Invalid`] for a change that may never be;
/// [`Stop`].
pub fn change_by_master(
    view: &View<'_>,
    home: Home,
    version: Version,
    change: SetChange,
) -> Result<(Outcome, Arc<Chunk>), Stop> {
    let mut outcome = Outcome::new(view);
    let found = change_set::find(view, home)?.ok_or(CHANGED_SINCE)?;
    if found.chunk.version != version {
        return Err(CHANGED_SINCE.into());
    }
    let mut set = Chunk::clone(&found.chunk);
    let chunk = match change {
        SetChange::Add(node) => {
            if !set.has_member(node) {
                set.stale.retain(|holder| *holder != node);
                set.syncing.push(node);
            }
            change_set::put(view, &mut outcome, &found, set)
        }
        SetChange::Remove(node) => {
            if node == set.primary {
                return Err(FsError::Invalid("a primary is replaced, not removed").into());
            }
            if set.has_member(node) {
                set.retire(node);
            }
            change_set::put(view, &mut outcome, &found, set)
        }
        SetChange::NoteStale(node) if set.has_member(node) || set.stale.contains(&node) => found.chunk,
        SetChange::NoteStale(node) => {
            set.stale.push(node);
            change_set::put_as(&mut outcome, &found, set)
        }
        SetChange::ForgetStale(node) if !set.stale.contains(&node) => found.chunk,
        SetChange::ForgetStale(node) => {
            set.stale.retain(|holder| *holder != node);
            change_set::put_as(&mut outcome, &found, set)
        }
    };
    outcome.durable_first = chunk.version_seq;
    Ok((outcome, chunk))
}
