//! Who may ask a primary: the seal of a grant is checked once, and then known by its bytes.

use std::sync::Arc;

use dfs_proto::{ChunkId, FsError, Version};

use super::replica::Replica;
use super::shared::Shared;
use super::translate;
use crate::core::admission;
use crate::core::message::Sealed;

/// Checks that a request about `chunk` at `version` with this sealed grant may be served here, and returns the replica it is
/// for, made if need be.
///
/// # Errors
///
/// [`FsError::Stale`]: the caller needs a new grant. What opening the replica says.
pub(super) fn admit(
    shared: &Shared,
    chunk: ChunkId,
    version: Version,
    bytes: &[u8],
) -> Result<(Arc<Replica>, Sealed), FsError> {
    if let Some(replica) = shared.replicas.find_open(chunk)
        && let Some(grant) = replica.verified(bytes, version)
    {
        return Ok((replica, grant));
    }
    let membership = shared.membership()?;
    let grant = membership.key.open(bytes).ok_or(FsError::Stale("the grant's seal is not ours"))?;
    admission::check_primary(&grant, chunk, version, membership.node, shared.boot())?;
    let replica = shared.replicas.find_or_create(&shared.store, &grant)?;
    let sealed = translate::sealed(grant, bytes);
    replica.note_verified(&sealed);
    Ok((replica, sealed))
}
