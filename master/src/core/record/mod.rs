//! The records: one kind a file, each encoded as a format version and a protobuf message.
//!
//! ```text
//! offset (bytes)  size (bytes)  field
//! 0               1             format version of the kind, now 1 for all
//! 1               rest          protobuf message, private to the kind's file; fields are only added
//! ```
//!
//! A version that is not known is refused, not guessed. Every record carries the `seq` of its last change.

mod chunk;
mod counters;
mod cut;
mod dentry;
mod ids;
mod inline;
mod inode;
mod node;
mod orphan;
mod reclaim;
mod reply;
mod session;
mod xattr;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::Seq;
use prost::Message;

pub use chunk::Chunk;
pub use counters::StoredCounters;
pub use cut::{Cut, ZeroPart};
pub use dentry::{CookieEntry, Dentry};
pub use ids::IdMarks;
pub use inline::Inline;
pub use inode::Inode;
pub use node::Node;
pub use orphan::Orphan;
pub use reclaim::Reclaim;
pub use reply::{SavedBody, SavedReply};
pub use session::Session;
pub use xattr::Xattr;

use super::key::Key;

/// The format version that is written.
const FORMAT: u8 = 1;

/// Stored bytes that are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} record: {what}")]
pub struct RecordError {
    kind: &'static str,
    what: &'static str,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the type it holds")]
pub enum Record {
    Inode(Arc<Inode>),
    Inline(Inline),
    Dentry(Dentry),
    Cookie(CookieEntry),
    Chunk(Arc<Chunk>),
    Xattr(Xattr),
    Session(Arc<Session>),
    Reply(Arc<SavedReply>),
    Node(Arc<Node>),
    Orphan(Orphan),
    Cut(Cut),
    Reclaim(Arc<Reclaim>),
    Ids(IdMarks),
    Counters(StoredCounters),
}

impl Record {
    /// Returns the bytes that are stored.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Inode(record) => record.encode(),
            Self::Inline(record) => record.encode(),
            Self::Dentry(record) => record.encode(),
            Self::Cookie(record) => record.encode(),
            Self::Chunk(record) => record.encode(),
            Self::Xattr(record) => record.encode(),
            Self::Session(record) => record.encode(),
            Self::Reply(record) => record.encode(),
            Self::Node(record) => record.encode(),
            Self::Orphan(record) => record.encode(),
            Self::Cut(record) => record.encode(),
            Self::Reclaim(record) => record.encode(),
            Self::Ids(record) => record.encode(),
            Self::Counters(record) => record.encode(),
        }
    }

    /// Returns the record of `key` in `bytes`.
    ///
    /// # Errors
    ///
    /// [`RecordError`] if the bytes are not such a record, or of a newer format.
    pub fn decode(key: &Key, bytes: &Bytes) -> Result<Self, RecordError> {
        Ok(match key {
            Key::Inode(id) => Self::Inode(Arc::new(Inode::decode(*id, bytes)?)),
            Key::Inline(_) => Self::Inline(Inline::decode(bytes)?),
            Key::Dentry(..) => Self::Dentry(Dentry::decode(bytes)?),
            Key::Cookie(..) => Self::Cookie(CookieEntry::decode(bytes)?),
            Key::Chunk(..) => Self::Chunk(Arc::new(Chunk::decode(bytes)?)),
            Key::Xattr(..) => Self::Xattr(Xattr::decode(bytes)?),
            Key::Session(_) => Self::Session(Arc::new(Session::decode(bytes)?)),
            Key::Reply(..) => Self::Reply(Arc::new(SavedReply::decode(bytes)?)),
            Key::Node(_) => Self::Node(Arc::new(Node::decode(bytes)?)),
            Key::Orphan(_) => Self::Orphan(Orphan::decode(bytes)?),
            Key::Cut(_) => Self::Cut(Cut::decode(bytes)?),
            Key::Reclaim(..) => Self::Reclaim(Arc::new(Reclaim::decode(bytes)?)),
            Key::Ids => Self::Ids(IdMarks::decode(bytes)?),
            Key::Counters => Self::Counters(StoredCounters::decode(bytes)?),
        })
    }

    /// Returns the log position of the record's last change.
    pub fn seq(&self) -> Seq {
        match self {
            Self::Inode(record) => record.seq,
            Self::Inline(record) => record.seq,
            Self::Dentry(record) => record.seq,
            Self::Cookie(record) => record.seq,
            Self::Chunk(record) => record.seq,
            Self::Xattr(record) => record.seq,
            Self::Session(record) => record.seq,
            Self::Reply(record) => record.seq,
            Self::Node(record) => record.seq,
            Self::Orphan(record) => record.seq,
            Self::Cut(record) => record.seq,
            Self::Reclaim(record) => record.seq,
            Self::Ids(record) => record.seq,
            Self::Counters(record) => record.seq,
        }
    }
}

/// Returns `message` behind the format version.
fn seal(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + message.encoded_len());
    bytes.put_u8(FORMAT);
    message.encode(&mut bytes).expect("a growing buffer has room");
    bytes.freeze()
}

/// Returns the message in `bytes`, sharing them.
fn open<M: Message + Default>(kind: &'static str, bytes: &Bytes) -> Result<M, RecordError> {
    match bytes.first() {
        Some(&FORMAT) => {
            M::decode(bytes.slice(1..)).map_err(|_| RecordError { kind, what: "the message cannot be read" })
        }
        Some(_) => Err(RecordError { kind, what: "written by a newer version of dfs" }),
        None => Err(RecordError { kind, what: "empty" }),
    }
}

#[cfg(test)]
mod tests;
