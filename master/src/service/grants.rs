//! Where chunks are, with the sealed grant that lets a mount use them.

use dfs_proto::replica_set::{Grant, Home};
use dfs_proto::wire::pb;
use dfs_proto::{BootSession, ChunkIndex, FsError, InodeId};

use super::Shared;
use crate::core::record::Chunk;

/// After a restart of the master, how long a chunk server may take to register again, in milliseconds.
const REGISTRATION_MS: u64 = 5_000;

/// Returns where the chunk at `index` is, with a grant for it; a hole if there is none.
///
/// The grant is bound to the run of the primary that registered last. The same facts give the same bytes, so that a
/// chunk server need not check the seal of a grant twice.
///
/// # Errors
///
/// [`FsError::TryAgain`] shortly after a restart, while the primary has not registered again.
pub(super) fn location(
    shared: &Shared,
    inode: InodeId,
    index: ChunkIndex,
    chunk_size_log2: u32,
    chunk: Option<&Chunk>,
) -> Result<pb::ChunkLocation, FsError> {
    let Some(chunk) = chunk else { return Ok(pb::ChunkLocation { index: index.0, ..Default::default() }) };
    let now = shared.clock.mono();
    let table = shared.nodes.read();
    let mut replicas = Vec::with_capacity(chunk.in_sync.len());
    let mut primary_boot = BootSession(0);
    let others = chunk.in_sync.iter().filter(|node| **node != chunk.primary);
    for node in std::iter::once(&chunk.primary).chain(others) {
        let location = table.location(*node, now);
        if *node == chunk.primary {
            primary_boot = location.as_ref().map_or(BootSession(0), |location| location.boot);
        }
        let alive = location.as_ref().is_some_and(|location| location.lease_valid);
        let address = location.map(|location| location.address).unwrap_or_default();
        replicas.push(pb::Replica { node: node.0, address, alive });
    }
    drop(table);
    if primary_boot == BootSession(0) && now.since(shared.started) < REGISTRATION_MS {
        return Err(FsError::TryAgain("the chunk's primary has not registered yet"));
    }
    let members = replicas.iter().cloned().map(Into::into).collect();
    let grant = shared.grant_key.seal(&Grant {
        chunk: chunk.id,
        home: Home { inode, index },
        version: chunk.version,
        primary: chunk.primary,
        primary_boot,
        members,
        syncing: Vec::new(),
        min_in_sync: 2.min(chunk.in_sync.len() as u32),
        may_create: !chunk.is_written,
        chunk_size_log2,
    });
    Ok(pb::ChunkLocation { index: index.0, chunk: chunk.id.0, version: chunk.version.0, replicas, grant })
}
