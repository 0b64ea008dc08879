//! What the data path asks of the cluster: a trait, so that tests can put an in-memory cluster behind it.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkIndex, FsError, InodeId, NodeId, Seq, UnixNanos, Version};

use crate::core::{Ask, Damage, Policy, Trouble};
use crate::fs::Attr;
use crate::remote::{ChunkClient, Chunks, CommitWrite, InlineData, MasterClient, ReadData, WriteId};

/// The cluster's calls. Those to the master retry by themselves, so that their errors are final (but `Stale`); those
/// to chunk servers are single attempts, of a [`crate::core::ChunkCall`].
pub trait Backend: Send + Sync + 'static {
    /// As [`MasterClient::get_attr`].
    fn get_attr(&self, inode: InodeId) -> Result<Attr, FsError>;
    /// As [`MasterClient::get_inline`].
    fn get_inline(&self, inode: InodeId) -> Result<InlineData, FsError>;
    /// As [`MasterClient::get_chunks`].
    fn get_chunks(
        &self,
        within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        lost: Option<NodeId>,
    ) -> Result<Chunks, FsError>;
    /// As [`MasterClient::allocate_chunks`].
    fn allocate_chunks(&self, within: Policy, inode: InodeId, first: ChunkIndex, count: u32)
    -> Result<Chunks, FsError>;
    /// As [`MasterClient::commit_write`].
    fn commit_write(&self, commit: CommitWrite) -> Result<Attr, FsError>;
    /// As [`MasterClient::punch_chunks`].
    fn punch_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32, mtime: UnixNanos) -> Result<Attr, FsError>;
    /// As [`MasterClient::sync_to`].
    fn sync_to(&self, seq: Seq) -> Result<(), FsError>;
    /// As [`MasterClient::report_damage`].
    fn report_damage(&self, within: Policy, damage: &Damage) -> Result<(), FsError>;

    /// As [`ChunkClient::new_write`].
    fn new_write(&self) -> WriteId;
    /// As [`ChunkClient::read`].
    fn read(&self, ask: &Ask, offset: u32, length: u32) -> Result<ReadData, Trouble>;
    /// As [`ChunkClient::write`].
    fn write(&self, ask: &Ask, offset: u32, data: &Bytes, crcs: &[u32], id: WriteId) -> Result<Version, Trouble>;
    /// As [`ChunkClient::barrier`].
    fn barrier(&self, ask: &Ask, since: Version) -> Result<(), Trouble>;
    /// As [`ChunkClient::zero`].
    fn zero(&self, ask: &Ask, offset: u32, length: u32, id: WriteId) -> Result<Version, Trouble>;
    /// As [`ChunkClient::extents`].
    fn extents(&self, ask: &Ask, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, Trouble>;
}

/// The real cluster.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The master.
    pub master: MasterClient,
    /// The chunk servers.
    pub chunks: Arc<ChunkClient>,
}

impl Backend for Remote {
    fn get_attr(&self, inode: InodeId) -> Result<Attr, FsError> {
        self.master.get_attr(inode)
    }
    fn get_inline(&self, inode: InodeId) -> Result<InlineData, FsError> {
        self.master.get_inline(inode)
    }
    fn get_chunks(
        &self,
        within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
        lost: Option<NodeId>,
    ) -> Result<Chunks, FsError> {
        self.master.get_chunks(within, inode, first, count, lost)
    }
    fn allocate_chunks(
        &self,
        within: Policy,
        inode: InodeId,
        first: ChunkIndex,
        count: u32,
    ) -> Result<Chunks, FsError> {
        self.master.allocate_chunks(within, inode, first, count)
    }
    fn commit_write(&self, commit: CommitWrite) -> Result<Attr, FsError> {
        self.master.commit_write(commit)
    }
    fn punch_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32, mtime: UnixNanos) -> Result<Attr, FsError> {
        self.master.punch_chunks(inode, first, count, mtime)
    }
    fn sync_to(&self, seq: Seq) -> Result<(), FsError> {
        self.master.sync_to(seq)
    }
    fn report_damage(&self, within: Policy, damage: &Damage) -> Result<(), FsError> {
        self.master.report_damage(within, damage)
    }
    fn new_write(&self) -> WriteId {
        self.chunks.new_write()
    }
    fn read(&self, ask: &Ask, offset: u32, length: u32) -> Result<ReadData, Trouble> {
        self.chunks.read(ask, offset, length)
    }
    fn write(&self, ask: &Ask, offset: u32, data: &Bytes, crcs: &[u32], id: WriteId) -> Result<Version, Trouble> {
        self.chunks.write(ask, offset, data, crcs, id)
    }
    fn barrier(&self, ask: &Ask, since: Version) -> Result<(), Trouble> {
        self.chunks.barrier(ask, since)
    }
    fn zero(&self, ask: &Ask, offset: u32, length: u32, id: WriteId) -> Result<Version, Trouble> {
        self.chunks.zero(ask, offset, length, id)
    }
    fn extents(&self, ask: &Ask, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, Trouble> {
        self.chunks.extents(ask, offset, length)
    }
}
