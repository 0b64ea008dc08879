//! What the data path asks of the cluster: a trait, so that tests can put an in-memory cluster behind it.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkIndex, FsError, InodeId, Seq, UnixNanos};

use crate::core::Location;
use crate::fs::Attr;
use crate::remote::{ChunkClient, Chunks, CommitWrite, InlineData, MasterClient, ReadData};

/// The cluster's calls. Those to the master retry by themselves, so that their errors are final (but `Stale`); those
/// to chunk servers are single attempts.
pub trait Backend: Send + Sync + 'static {
    /// As [`MasterClient::get_attr`].
    fn get_attr(&self, inode: InodeId) -> Result<Attr, FsError>;
    /// As [`MasterClient::get_inline`].
    fn get_inline(&self, inode: InodeId) -> Result<InlineData, FsError>;
    /// As [`MasterClient::get_chunks`].
    fn get_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Chunks, FsError>;
    /// As [`MasterClient::allocate_chunks`].
    fn allocate_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Chunks, FsError>;
    /// As [`MasterClient::commit_write`].
    fn commit_write(&self, commit: CommitWrite) -> Result<Attr, FsError>;
    /// As [`MasterClient::punch_chunks`].
    fn punch_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32, mtime: UnixNanos) -> Result<Attr, FsError>;
    /// As [`MasterClient::sync_to`].
    fn sync_to(&self, seq: Seq) -> Result<(), FsError>;

    /// As [`ChunkClient::new_number`].
    fn new_number(&self) -> u64;
    /// As [`ChunkClient::read`].
    fn read(&self, location: &Location, offset: u32, length: u32) -> Result<ReadData, FsError>;
    /// As [`ChunkClient::write`].
    fn write(&self, location: &Location, offset: u32, data: &Bytes, crcs: &[u32], number: u64) -> Result<(), FsError>;
    /// As [`ChunkClient::barrier`].
    fn barrier(&self, location: &Location) -> Result<(), FsError>;
    /// As [`ChunkClient::zero`].
    fn zero(&self, location: &Location, offset: u32, length: u32, number: u64) -> Result<(), FsError>;
    /// As [`ChunkClient::extents`].
    fn extents(&self, location: &Location, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, FsError>;
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
    fn get_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Chunks, FsError> {
        self.master.get_chunks(inode, first, count)
    }
    fn allocate_chunks(&self, inode: InodeId, first: ChunkIndex, count: u32) -> Result<Chunks, FsError> {
        self.master.allocate_chunks(inode, first, count)
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
    fn new_number(&self) -> u64 {
        self.chunks.new_number()
    }
    fn read(&self, location: &Location, offset: u32, length: u32) -> Result<ReadData, FsError> {
        self.chunks.read(location, offset, length)
    }
    fn write(&self, location: &Location, offset: u32, data: &Bytes, crcs: &[u32], number: u64) -> Result<(), FsError> {
        self.chunks.write(location, offset, data, crcs, number)
    }
    fn barrier(&self, location: &Location) -> Result<(), FsError> {
        self.chunks.barrier(location)
    }
    fn zero(&self, location: &Location, offset: u32, length: u32, number: u64) -> Result<(), FsError> {
        self.chunks.zero(location, offset, length, number)
    }
    fn extents(&self, location: &Location, offset: u32, length: u32) -> Result<Vec<(u32, u32)>, FsError> {
        self.chunks.extents(location, offset, length)
    }
}
