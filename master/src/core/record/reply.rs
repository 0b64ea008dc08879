//! A reply that may be asked for again: written with the change it speaks of, so that a retry is never applied twice.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{InodeId, Seq, UnixNanos};

use super::{Inode, RecordError, open, seal};

/// The reply to one numbered request of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedReply {
    /// Log position of the change.
    pub seq: Seq,
    /// The time the operation used.
    pub time: UnixNanos,
    /// What it said.
    pub body: SavedBody,
}

/// What a change can reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedBody {
    /// Nothing but that it was done.
    Done,
    /// An inode as it was then.
    Entry {
        /// The inode.
        inode: Arc<Inode>,
        /// Whether the call made it.
        is_created: bool,
        /// Whether the call also opened it.
        is_opened: bool,
    },
}

impl SavedReply {
    pub(super) fn encode(&self) -> Bytes {
        let (inode, record, is_created, is_opened) = match &self.body {
            SavedBody::Done => (0, Bytes::new(), false, false),
            SavedBody::Entry { inode, is_created, is_opened } => (inode.id.0, inode.encode(), *is_created, *is_opened),
        };
        seal(&StoredReply { seq: self.seq.0, time: self.time.0, inode, record, is_created, is_opened })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredReply = open("reply", bytes)?;
        let body = if stored.inode == 0 {
            SavedBody::Done
        } else {
            SavedBody::Entry {
                inode: Arc::new(Inode::decode(InodeId(stored.inode), &stored.record)?),
                is_created: stored.is_created,
                is_opened: stored.is_opened,
            }
        };
        Ok(Self { seq: Seq(stored.seq), time: UnixNanos(stored.time), body })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredReply {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(sfixed64, tag = "2")]
    time: i64,
    #[prost(uint64, tag = "3")]
    inode: u64,
    #[prost(bytes = "bytes", tag = "4")]
    record: Bytes,
    #[prost(bool, tag = "5")]
    is_created: bool,
    #[prost(bool, tag = "6")]
    is_opened: bool,
}
