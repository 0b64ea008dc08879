//! Where chunks are, with the sealed grant that lets a mount use them.
//!
//! A grant of a version is given out only once the version is durable. A power cut that took it from the record while chunk
//! servers know it would let the same version be given to another set.

use dfs_proto::wire::pb;
use dfs_proto::{BootSession, ChunkIndex, FsError};

use super::Shared;
use crate::core::location::{Location, locate};
use crate::core::record::{Chunk, Inode};

/// After a restart of the master, how long a chunk server may take to register again, in milliseconds.
const REGISTRATION_MS: u64 = 5_000;

/// Returns where the chunk at `index` of `file` is, with a grant of it to the run `boot` of its primary; a hole if there is
/// none.
///
/// # Errors
///
/// [`FsError::TryAgain`] shortly after a restart, while the primary has not registered again.
pub(super) fn location(
    shared: &Shared,
    file: &Inode,
    index: ChunkIndex,
    chunk: Option<&Chunk>,
    boot: BootSession,
) -> Result<pb::ChunkLocation, FsError> {
    let Some(chunk) = chunk else { return Ok(pb::ChunkLocation { index: index.0, ..Default::default() }) };
    let now = shared.clock.mono();
    if boot == BootSession(0) && now.since(shared.started) < REGISTRATION_MS {
        return Err(FsError::TryAgain("the chunk's primary has not registered yet"));
    }
    let located = locate(&shared.nodes.read(), now, file, index, chunk, boot);
    Ok(sealed(shared, &located))
}

fn sealed(shared: &Shared, location: &Location) -> pb::ChunkLocation {
    let replicas = location.replicas.iter();
    pb::ChunkLocation {
        index: location.index.0,
        chunk: location.grant.chunk.0,
        version: location.grant.version.0,
        replicas: replicas
            .map(|replica| pb::Replica { alive: replica.is_alive, ..pb::Replica::from(&replica.member) })
            .collect(),
        grant: shared.grant_key.seal(&location.grant),
    }
}
