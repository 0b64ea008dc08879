//! A chunk's version is raised, so that what was asked of its replicas before is void.

use std::sync::Arc;

use dfs_proto::{ChunkIndex, InodeId, Version};

use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Record};
use crate::core::view::{Stop, View};

/// Raises the version of a chunk, and returns the chunk as it then is; one that is gone changes nothing. It is durable
/// before anybody is given a grant of it: replicas that know a version which a power cut took from the record would
/// refuse every grant for good.
///
/// # Errors
///
/// [`Stop`].
pub fn raise_version(
    view: &View<'_>,
    inode: InodeId,
    index: ChunkIndex,
) -> Result<(Outcome, Option<Arc<Chunk>>), Stop> {
    let mut outcome = Outcome::new(view);
    let key = Key::Chunk(inode, index);
    let Some(Record::Chunk(chunk)) = view.find(&key)? else { return Ok((outcome, None)) };
    let version = Version(chunk.version.0 + 1);
    let raised = Arc::new(Chunk { version, version_seq: outcome.seq(), seq: outcome.seq(), ..Chunk::clone(&chunk) });
    outcome.put(key, Record::Chunk(Arc::clone(&raised)));
    outcome.durable_first = outcome.seq();
    Ok((outcome, Some(raised)))
}
