//! Keys of the records: an ordered byte string each, so that what is read together stands together.
//!
//! ```text
//! byte 0   then, integers big-endian                 record
//! 0x10     inode u64                                 the inode
//! 0x11     inode u64                                 content of an inline file, target of a symlink
//! 0x12     parent u64, name                          dentry: name -> inode
//! 0x13     parent u64, cookie u64                    the same dentry by its cookie, which `readdir` pages by
//! 0x14     inode u64, chunk index u32                chunk of a file
//! 0x15     inode u64, attribute name                 extended attribute
//! 0x20     session u64                               session of a mount
//! 0x21     session u64, request number u64           reply that may be asked for again
//! 0x22     node u32                                  chunk server
//! 0x23     inode u64                                 orphan: no name any more, still open or not yet purged
//! 0x24     inode u64                                 cut: what a truncate or punch still has to do
//! 0x25     due u64 (i64 + 2^63), chunk u64           replicas to delete, earliest first
//! 0x30                                               marks up to which ids may be in use
//! 0x31                                               counters
//! ```
//!
//! Integers are big-endian so that the order of bytes is the order of numbers.

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::{ChunkId, ChunkIndex, InodeId, Name, NodeId, SessionId, UnixNanos};

/// Names one record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The inode.
    Inode(InodeId),
    /// Content of an inline file, or target of a symlink.
    Inline(InodeId),
    /// A name in a directory.
    Dentry(InodeId, Name),
    /// The same by its cookie.
    Cookie(InodeId, u64),
    /// A chunk of a file.
    Chunk(InodeId, ChunkIndex),
    /// An extended attribute.
    Xattr(InodeId, Bytes),
    /// A mount's session.
    Session(SessionId),
    /// A reply that may be asked for again.
    Reply(SessionId, u64),
    /// A chunk server.
    Node(NodeId),
    /// An inode without a name that is still open or not yet purged.
    Orphan(InodeId),
    /// A truncate or punch that is not finished.
    Cut(InodeId),
    /// Replicas to delete.
    Reclaim(UnixNanos, ChunkId),
    /// Marks up to which ids may be in use.
    Ids,
    /// Totals.
    Counters,
}

const INODE: u8 = 0x10;
const INLINE: u8 = 0x11;
const DENTRY: u8 = 0x12;
const COOKIE: u8 = 0x13;
const CHUNK: u8 = 0x14;
const XATTR: u8 = 0x15;
const SESSION: u8 = 0x20;
const REPLY: u8 = 0x21;
const NODE: u8 = 0x22;
const ORPHAN: u8 = 0x23;
const CUT: u8 = 0x24;
const RECLAIM: u8 = 0x25;
const IDS: u8 = 0x30;
const COUNTERS: u8 = 0x31;

const SIGN: u64 = 1 << 63;

impl Key {
    /// Returns the bytes of the key.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(24);
        match self {
            Self::Inode(inode) => tagged(&mut bytes, INODE, inode.0),
            Self::Inline(inode) => tagged(&mut bytes, INLINE, inode.0),
            Self::Dentry(parent, name) => {
                tagged(&mut bytes, DENTRY, parent.0);
                bytes.put_slice(name.as_bytes());
            }
            Self::Cookie(parent, cookie) => {
                tagged(&mut bytes, COOKIE, parent.0);
                bytes.put_u64(*cookie);
            }
            Self::Chunk(inode, index) => {
                tagged(&mut bytes, CHUNK, inode.0);
                bytes.put_u32(index.0);
            }
            Self::Xattr(inode, name) => {
                tagged(&mut bytes, XATTR, inode.0);
                bytes.put_slice(name);
            }
            Self::Session(session) => tagged(&mut bytes, SESSION, session.0),
            Self::Reply(session, number) => {
                tagged(&mut bytes, REPLY, session.0);
                bytes.put_u64(*number);
            }
            Self::Node(node) => {
                bytes.put_u8(NODE);
                bytes.put_u32(node.0);
            }
            Self::Orphan(inode) => tagged(&mut bytes, ORPHAN, inode.0),
            Self::Cut(inode) => tagged(&mut bytes, CUT, inode.0),
            Self::Reclaim(due, chunk) => {
                tagged(&mut bytes, RECLAIM, due.0 as u64 ^ SIGN);
                bytes.put_u64(chunk.0);
            }
            Self::Ids => bytes.put_u8(IDS),
            Self::Counters => bytes.put_u8(COUNTERS),
        }
        bytes.freeze()
    }

    /// Returns the key with these bytes, or `None` if there is no such key.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        Some(match *tag {
            INODE => Self::Inode(InodeId(whole(rest)?)),
            INLINE => Self::Inline(InodeId(whole(rest)?)),
            DENTRY => {
                let (parent, name) = split(rest)?;
                Self::Dentry(InodeId(parent), Name::new(name.to_vec()).ok()?)
            }
            COOKIE => {
                let (parent, cookie) = split(rest)?;
                Self::Cookie(InodeId(parent), whole(cookie)?)
            }
            CHUNK => {
                let (inode, index) = split(rest)?;
                Self::Chunk(InodeId(inode), ChunkIndex(u32::from_be_bytes(index.try_into().ok()?)))
            }
            XATTR => {
                let (inode, name) = split(rest)?;
                Self::Xattr(InodeId(inode), Bytes::copy_from_slice(name))
            }
            SESSION => Self::Session(SessionId(whole(rest)?)),
            REPLY => {
                let (session, number) = split(rest)?;
                Self::Reply(SessionId(session), whole(number)?)
            }
            NODE => Self::Node(NodeId(u32::from_be_bytes(rest.try_into().ok()?))),
            ORPHAN => Self::Orphan(InodeId(whole(rest)?)),
            CUT => Self::Cut(InodeId(whole(rest)?)),
            RECLAIM => {
                let (due, chunk) = split(rest)?;
                Self::Reclaim(UnixNanos((due ^ SIGN) as i64), ChunkId(whole(chunk)?))
            }
            IDS if rest.is_empty() => Self::Ids,
            COUNTERS if rest.is_empty() => Self::Counters,
            _ => return None,
        })
    }
}

/// Keys from `start` (inclusive) to `end` (exclusive), the first `limit` of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// Smallest key bytes.
    pub start: Bytes,
    /// One past the largest.
    pub end: Bytes,
    /// Most records wanted.
    pub limit: usize,
}

impl Range {
    /// The entries of directory `parent` with cookies above `after`.
    pub fn cookies(parent: InodeId, after: u64, limit: usize) -> Self {
        Self { start: just_after(&Key::Cookie(parent, after)), end: next_of(COOKIE, parent.0), limit }
    }

    /// The chunks of `inode` from index `first` to `last`, both inclusive.
    pub fn chunks(inode: InodeId, first: ChunkIndex, last: ChunkIndex, limit: usize) -> Self {
        Self { start: Key::Chunk(inode, first).encode(), end: just_after(&Key::Chunk(inode, last)), limit }
    }

    /// The chunks of all files after (`inode`, `index`).
    pub fn chunks_after(after: Option<(InodeId, ChunkIndex)>, limit: usize) -> Self {
        let start = match after {
            None => Bytes::from_static(&[CHUNK]),
            Some((inode, index)) => just_after(&Key::Chunk(inode, index)),
        };
        Self { start, end: Bytes::from_static(&[CHUNK + 1]), limit }
    }

    /// All extended attributes of `inode`.
    pub fn xattrs(inode: InodeId) -> Self {
        Self { start: tag_and(XATTR, inode.0), end: next_of(XATTR, inode.0), limit: usize::MAX }
    }

    /// All sessions.
    pub fn sessions() -> Self {
        Self::all(SESSION)
    }

    /// All kept replies.
    pub fn replies() -> Self {
        Self::all(REPLY)
    }

    /// All chunk servers.
    pub fn nodes() -> Self {
        Self::all(NODE)
    }

    /// All orphans.
    pub fn orphans() -> Self {
        Self::all(ORPHAN)
    }

    /// All truncates and punches that are not finished.
    pub fn cuts() -> Self {
        Self::all(CUT)
    }

    /// Deletions that are due at `until`, after the key `after` if there is one.
    pub fn reclaims(after: Option<&Key>, until: UnixNanos, limit: usize) -> Self {
        let start = after.map_or_else(|| Bytes::from_static(&[RECLAIM]), just_after);
        Self { start, end: Key::Reclaim(UnixNanos(until.0.saturating_add(1)), ChunkId(0)).encode(), limit }
    }

    /// Every key there is.
    pub fn everything() -> Self {
        Self { start: Bytes::from_static(&[INODE]), end: Bytes::from_static(&[0xff]), limit: usize::MAX }
    }

    fn all(tag: u8) -> Self {
        Self { start: vec![tag].into(), end: vec![tag + 1].into(), limit: usize::MAX }
    }
}

fn tagged(bytes: &mut BytesMut, tag: u8, number: u64) {
    bytes.put_u8(tag);
    bytes.put_u64(number);
}

fn tag_and(tag: u8, number: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9);
    tagged(&mut bytes, tag, number);
    bytes.freeze()
}

/// Returns the smallest bytes above every key that starts with `tag` and `number`.
fn next_of(tag: u8, number: u64) -> Bytes {
    match number.checked_add(1) {
        Some(next) => tag_and(tag, next),
        None => vec![tag + 1].into(),
    }
}

/// Returns the smallest bytes above those of `key`.
fn just_after(key: &Key) -> Bytes {
    let mut bytes = BytesMut::from(&key.encode()[..]);
    bytes.put_u8(0);
    bytes.freeze()
}

fn split(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_at_checked(8)?;
    Some((whole(number)?, rest))
}

fn whole(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<(Key, &'static str)> {
        let name = Name::new(&b"a"[..]).unwrap();
        vec![
            (Key::Inode(InodeId(1)), "100000000000000001"),
            (Key::Inline(InodeId(2)), "110000000000000002"),
            (Key::Dentry(InodeId(1), name), "12000000000000000161"),
            (Key::Cookie(InodeId(1), 3), "1300000000000000010000000000000003"),
            (Key::Chunk(InodeId(1), ChunkIndex(2)), "14000000000000000100000002"),
            (Key::Xattr(InodeId(1), Bytes::from_static(b"user.a")), "150000000000000001757365722e61"),
            (Key::Session(SessionId(7)), "200000000000000007"),
            (Key::Reply(SessionId(7), 9), "2100000000000000070000000000000009"),
            (Key::Node(NodeId(3)), "2200000003"),
            (Key::Orphan(InodeId(4)), "230000000000000004"),
            (Key::Cut(InodeId(5)), "240000000000000005"),
            (Key::Reclaim(UnixNanos(-1), ChunkId(6)), "257fffffffffffffff0000000000000006"),
            (Key::Ids, "30"),
            (Key::Counters, "31"),
        ]
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        for (key, hex) in samples() {
            let bytes = key.encode();
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(text, hex, "{key:?}");
            assert_eq!(Key::decode(&bytes), Some(key));
        }
    }

    #[test]
    fn ranges_hold_what_they_name_and_nothing_else() {
        let inside = |range: &Range, key: Key| {
            let bytes = key.encode();
            range.start <= bytes && bytes < range.end
        };
        let cookies = Range::cookies(InodeId(5), 2, 10);
        assert!(!inside(&cookies, Key::Cookie(InodeId(5), 2)));
        assert!(inside(&cookies, Key::Cookie(InodeId(5), 3)));
        assert!(inside(&cookies, Key::Cookie(InodeId(5), u64::MAX)));
        assert!(!inside(&cookies, Key::Cookie(InodeId(6), 0)));
        assert!(!inside(&Range::cookies(InodeId(5), u64::MAX, 10), Key::Cookie(InodeId(5), u64::MAX)));
        let chunks = Range::chunks(InodeId(5), ChunkIndex(1), ChunkIndex(u32::MAX), 10);
        assert!(!inside(&chunks, Key::Chunk(InodeId(5), ChunkIndex(0))));
        assert!(inside(&chunks, Key::Chunk(InodeId(5), ChunkIndex(u32::MAX))));
        assert!(!inside(&chunks, Key::Chunk(InodeId(6), ChunkIndex(0))));
        let due = Range::reclaims(None, UnixNanos(10), 10);
        assert!(inside(&due, Key::Reclaim(UnixNanos(-5), ChunkId(1))));
        assert!(inside(&due, Key::Reclaim(UnixNanos(10), ChunkId(u64::MAX))));
        assert!(!inside(&due, Key::Reclaim(UnixNanos(11), ChunkId(0))));
        for (key, _) in samples() {
            assert!(inside(&Range::everything(), key));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_key_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(&key.encode()[..], &bytes[..]);
            }
        }
    }
}
