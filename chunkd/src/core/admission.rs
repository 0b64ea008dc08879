//! Who may be served: what a grant says, held against who asks and who we are.

use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::planted::{self, Bug};
pub use dfs_proto::replica_set::{Grant, Member};
use dfs_proto::{BootSession, ChunkId, FsError, NodeId, Version};

/// Smallest and largest size of a chunk that is served, as log2 of bytes. The largest bounds a unit table to one frame.
pub const CHUNK_SIZE_LOG2: std::ops::RangeInclusive<u32> = 12..=26;

/// Returns the units of a chunk of this size.
pub fn units(chunk_size_log2: u32) -> u32 {
    (1 << chunk_size_log2) / UNIT_SIZE
}

fn check(grant: &Grant, chunk: ChunkId, version: Version, me: NodeId) -> Result<(), FsError> {
    if grant.chunk != chunk || grant.version != version {
        return Err(FsError::Stale("the grant is for another chunk or version"));
    }
    if !grant.names(me) {
        return Err(FsError::Stale("the grant does not name this server"));
    }
    if !CHUNK_SIZE_LOG2.contains(&grant.chunk_size_log2) {
        return Err(FsError::Invalid("chunk size"));
    }
    Ok(())
}

/// Checks that `grant` makes us, in this run, the primary of `chunk` at `version`.
///
/// # Errors
///
/// [`FsError::Stale`]: the caller needs a new grant.
pub fn check_primary(
    grant: &Grant,
    chunk: ChunkId,
    version: Version,
    me: NodeId,
    boot: BootSession,
) -> Result<(), FsError> {
    check(grant, chunk, version, me)?;
    if grant.primary != me || !grant.members.iter().any(|member| member.node == me) {
        return Err(FsError::Stale("the grant names another primary"));
    }
    if grant.primary_boot != boot && !planted::is(Bug::NoSessionBinding) {
        return Err(FsError::Stale("the grant is for an earlier run of this server"));
    }
    Ok(())
}

/// Checks that `grant` makes the peer, in its present run, the primary of `chunk`, and us a member or to be filled.
///
/// # Errors
///
/// [`FsError::Stale`].
pub fn check_member(
    grant: &Grant,
    chunk: ChunkId,
    version: Version,
    me: NodeId,
    peer: (NodeId, BootSession),
) -> Result<(), FsError> {
    check(grant, chunk, version, me)?;
    let is_leader = grant.primary == peer.0 && (grant.primary_boot == peer.1 || planted::is(Bug::NoSessionBinding));
    if !is_leader || peer.0 == me {
        return Err(FsError::Stale("the grant names another primary"));
    }
    Ok(())
}

/// Returns the units `[first, end)` that the bytes touch.
///
/// # Errors
///
/// [`FsError::Invalid`] if the range is empty or reaches beyond the chunk.
pub fn unit_range(offset: u32, length: u32, chunk_size_log2: u32) -> Result<(u32, u32), FsError> {
    let end = u64::from(offset) + u64::from(length);
    if length == 0 || end > 1 << chunk_size_log2 {
        return Err(FsError::Invalid("range outside the chunk"));
    }
    Ok((offset / UNIT_SIZE, end.div_ceil(u64::from(UNIT_SIZE)) as u32))
}

#[cfg(test)]
mod tests {
    use dfs_proto::replica_set::Home;

    use super::*;

    fn grant() -> Grant {
        let members = [1, 2, 3].map(|node| Member { node: NodeId(node), address: "h:1".into() }).to_vec();
        Grant {
            chunk: ChunkId(9),
            version: Version(4),
            primary: NodeId(1),
            primary_boot: BootSession(77),
            members,
            syncing: Vec::new(),
            min_in_sync: 2,
            home: Home::default(),
            may_create: false,
            chunk_size_log2: 26,
            loss_version: Version(0),
        }
    }

    #[test]
    fn only_the_named_primary_in_the_named_run_may_serve() {
        let ask = |chunk, version, me, boot| {
            check_primary(&grant(), ChunkId(chunk), Version(version), NodeId(me), BootSession(boot)).is_ok()
        };
        assert!(ask(9, 4, 1, 77));
        assert!(!ask(8, 4, 1, 77));
        assert!(!ask(9, 3, 1, 77));
        assert!(!ask(9, 5, 1, 77));
        assert!(!ask(9, 4, 2, 77));
        assert!(!ask(9, 4, 1, 78));
    }

    #[test]
    fn only_the_named_primary_may_lead_a_member() {
        let ask = |me, peer, boot| {
            let peer = (NodeId(peer), BootSession(boot));
            check_member(&grant(), ChunkId(9), Version(4), NodeId(me), peer).is_ok()
        };
        assert!(ask(2, 1, 77));
        assert!(!ask(2, 3, 77));
        assert!(!ask(2, 1, 78));
        assert!(!ask(4, 1, 77), "not a member");
        assert!(!ask(1, 1, 77), "a primary does not follow itself");
    }

    #[test]
    fn ranges_end_with_the_chunk() {
        assert_eq!(unit_range(0, 1, 16), Ok((0, 1)));
        assert_eq!(unit_range(4095, 2, 16), Ok((0, 2)));
        assert_eq!(unit_range(65_535, 1, 16), Ok((15, 16)));
        assert!(unit_range(65_535, 2, 16).is_err());
        assert!(unit_range(u32::MAX, u32::MAX, 26).is_err());
        assert!(unit_range(0, 0, 16).is_err());
    }
}
