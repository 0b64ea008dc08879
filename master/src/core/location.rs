//! Where a chunk is, and the right to use it.

use std::sync::Arc;

use dfs_proto::replica_set::{Grant, Home, Member};
use dfs_proto::{BootSession, ChunkIndex, MonoMs, NodeId};

use super::node_table::NodeTable;
use super::record::{Chunk, Inode};

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its place in the file.
    pub index: ChunkIndex,
    /// The servers in sync, the primary first.
    pub replicas: Vec<Replica>,
    /// To be sealed.
    pub grant: Grant,
}

/// One server of a location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Which one.
    pub member: Member,
    /// It holds a lease, as the master counts, and for the primary: in a run that the grant is good for.
    pub is_alive: bool,
}

/// Returns where `chunk` of `file` is. The grant is for the run `boot` of its primary, which must be what it was when the
/// chunk was read. The same facts give the same grant, so that a chunk server need not check the seal of one twice.
pub fn locate(
    table: &NodeTable,
    now: MonoMs,
    file: &Inode,
    index: ChunkIndex,
    chunk: &Chunk,
    boot: BootSession,
) -> Location {
    let member = |node: &NodeId| {
        let known = table.node(*node);
        Member { node: *node, address: known.map_or_else(|| Arc::from(""), |known| Arc::clone(&known.data_address)) }
    };
    let others = chunk.in_sync.iter().filter(|node| **node != chunk.primary);
    let replicas: Vec<Replica> = std::iter::once(&chunk.primary)
        .chain(others)
        .map(|node| {
            let standing = table.standing(*node, now);
            let is_granted = *node != chunk.primary || (boot != BootSession(0) && boot == standing.boot);
            Replica { member: member(node), is_alive: standing.is_online && is_granted }
        })
        .collect();
    let grant = Grant {
        chunk: chunk.id,
        home: Home { inode: file.id, index },
        version: chunk.version,
        primary: chunk.primary,
        primary_boot: boot,
        members: replicas.iter().map(|replica| replica.member.clone()).collect(),
        syncing: chunk.syncing.iter().map(member).collect(),
        min_in_sync: file.replicas.clamp(1, 2),
        may_create: !chunk.is_written,
        chunk_size_log2: file.chunk_size_log2,
        loss_version: chunk.loss_version,
    };
    Location { index, replicas, grant }
}
