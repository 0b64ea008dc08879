//! A name in a directory, and the same name found by its cookie.

use bytes::Bytes;
use dfs_proto::{InodeId, Kind, Name, Seq};

use super::{RecordError, open, seal};

/// What a name in a directory points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// The inode.
    pub inode: InodeId,
    /// Its kind, which never changes.
    pub kind: Kind,
    /// Its place in listings, for as long as the name is in this directory.
    pub cookie: u64,
    /// Log position of the last change.
    pub seq: Seq,
}

/// The entry of a directory that has a cookie: what a listing shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieEntry {
    /// The name.
    pub name: Name,
    /// The inode.
    pub inode: InodeId,
    /// Its kind.
    pub kind: Kind,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Dentry {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredDentry { inode: self.inode.0, kind: self.kind as u32, cookie: self.cookie, seq: self.seq.0 })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredDentry = open("dentry", bytes)?;
        Ok(Self {
            inode: InodeId(stored.inode),
            kind: known_kind(stored.kind)?,
            cookie: stored.cookie,
            seq: Seq(stored.seq),
        })
    }
}

impl CookieEntry {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredCookie {
            name: self.name.clone().into_bytes(),
            inode: self.inode.0,
            kind: self.kind as u32,
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredCookie = open("cookie", bytes)?;
        let name = Name::new(stored.name).map_err(|_| RecordError { kind: "cookie", what: "impossible name" })?;
        Ok(Self { name, inode: InodeId(stored.inode), kind: known_kind(stored.kind)?, seq: Seq(stored.seq) })
    }
}

fn known_kind(number: u32) -> Result<Kind, RecordError> {
    Kind::from_u32(number).ok_or(RecordError { kind: "dentry", what: "unknown kind" })
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredDentry {
    #[prost(uint64, tag = "1")]
    inode: u64,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, tag = "3")]
    cookie: u64,
    #[prost(uint64, tag = "4")]
    seq: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCookie {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(uint64, tag = "2")]
    inode: u64,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(uint64, tag = "4")]
    seq: u64,
}
