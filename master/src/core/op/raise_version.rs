//! A chunk's version is raised, so that what was asked of its replicas before is void.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, InodeId, Version};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Record};
use crate::core::view::{Stop, View};

/// Raises the version of a chunk; one that is gone changes nothing. It is durable before anybody is given a grant of it:
/// replicas that know a version which a power cut took from the record would refuse every grant for good.
///
/// # Errors
///
/// [`Stop`].
pub fn raise_version(view: &View<'_>, inode: InodeId, index: ChunkIndex) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::new(view);
    let key = Key::Chunk(inode, index);
    if let Some(Record::Chunk(chunk)) = view.find(&key)? {
        let version = Version(chunk.version.0 + 1);
        let raised = Chunk { version, seq: outcome.seq(), ..Chunk::clone(&chunk) };
        outcome.put(key, Record::Chunk(Arc::new(raised)));
        outcome.durable_first = outcome.seq();
    }
    Ok(outcome)
}
