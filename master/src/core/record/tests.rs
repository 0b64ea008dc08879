//! Stored samples of every format version still decode, and arbitrary bytes are refused without a panic.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{BootSession, ChunkId, ChunkIndex, InodeId, Kind, Name, NodeId, Seq, SessionId, UnixNanos, Version};
use proptest::prelude::*;

use super::*;
use crate::core::care::{Counters, NodeFacts};

fn inode() -> Inode {
    Inode {
        uid: 1_000,
        gid: 100,
        nlink: 3,
        size: 4_097,
        rdev: 9,
        atime: UnixNanos(-1),
        mtime: UnixNanos(2),
        ctime: UnixNanos(3),
        btime: UnixNanos(4),
        data_version: 5,
        chunks: 6,
        is_inline: false,
        is_cut_pending: true,
        parent: InodeId(7),
        entries: 8,
        next_cookie: 9,
        xattrs: 10,
        xattr_name_bytes: 11,
        seq: Seq(300),
        ..Inode::new(InodeId(42), Kind::Directory, 0o4755, UnixNanos(0))
    }
}

/// One record of each kind, and how version 1 stored it.
fn samples() -> Vec<(Key, Record, &'static str)> {
    let name = || Name::new(&b"name"[..]).unwrap();
    let (file, session) = (InodeId(42), SessionId(7));
    vec![
        (Key::Inode(file), Record::Inode(Arc::new(inode())), INODE_V1),
        (
            Key::Inline(file),
            Record::Inline(Inline { content: Bytes::from_static(b"hello"), seq: Seq(5) }),
            "010a0568656c6c6f1005",
        ),
        (
            Key::Dentry(InodeId(1), name()),
            Record::Dentry(Dentry { inode: file, kind: Kind::File, cookie: 3, seq: Seq(5) }),
            "01082a100118032005",
        ),
        (
            Key::Cookie(InodeId(1), 3),
            Record::Cookie(CookieEntry { name: name(), inode: file, kind: Kind::File, seq: Seq(5) }),
            "010a046e616d65102a18012005",
        ),
        (
            Key::Chunk(file, ChunkIndex(2)),
            Record::Chunk(Arc::new(Chunk {
                id: ChunkId(9),
                version: Version(1),
                primary: NodeId(1),
                in_sync: vec![NodeId(1), NodeId(3)],
                syncing: vec![NodeId(2)],
                stale: vec![NodeId(4)],
                is_written: true,
                set_seq: Seq(3),
                version_seq: Seq(4),
                loss_version: Version(6),
                seq: Seq(5),
            })),
            "01080910011801220201032a010230013805420104\
             480350045806",
        ),
        (
            Key::Xattr(file, Bytes::from_static(b"user.a")),
            Record::Xattr(Xattr { value: Bytes::from_static(b"v"), seq: Seq(5) }),
            "010a01761005",
        ),
        (
            Key::Session(session),
            Record::Session(Arc::new(Session {
                client_id: Bytes::from_static(b"0123456789abcdef"),
                host: "h".into(),
                mount_point: "/m".into(),
                software: "0.1".into(),
                metrics_address: "h:1".into(),
                subdir: Bytes::from_static(b"a/b"),
                is_read_only: true,
                is_fenced: true,
                seq: Seq(5),
            })),
            "010a1030313233343536373839616263646566120168\
             1a022f6d2203302e312a03683a313203612f62380140054801",
        ),
        (
            Key::Reply(session, 1),
            Record::Reply(Arc::new(SavedReply { seq: Seq(5), time: UnixNanos(6), body: SavedBody::Done })),
            "010805110600000000000000",
        ),
        (
            Key::Node(NodeId(1)),
            Record::Node(Arc::new(Node {
                facts: NodeFacts {
                    server_id: *b"0123456789abcdef",
                    data_address: "h:2".into(),
                    http_address: "h:3".into(),
                    rack: "r".into(),
                    host: "h".into(),
                    software: "0.1".into(),
                },
                boot: BootSession(1),
                ended: vec![BootSession(2)],
                suspect_seq: Seq(4),
                is_draining: true,
                seq: Seq(5),
            })),
            "010a10303132333435363738396162636465661203683a321a03683a332201722a01683203302e313805\
             4101000000000000004a08020000000000000050045801",
        ),
        (Key::Orphan(file), Record::Orphan(Orphan { purge_from: ChunkIndex(0), seq: Seq(5) }), "010805"),
        (
            Key::Cut(file),
            Record::Cut(Cut {
                drops: None,
                zero: Some(ZeroPart { index: ChunkIndex(1), from: 2, to: 3 }),
                since: UnixNanos(4),
                seq: Seq(5),
            }),
            "010801100218032104000000000000002805",
        ),
        (
            Key::Reclaim(UnixNanos(1), ChunkId(2)),
            Record::Reclaim(Arc::new(Reclaim { nodes: vec![NodeId(1), NodeId(2)], seq: Seq(5) })),
            "010a0201021005",
        ),
        (
            Key::Ids,
            Record::Ids(IdMarks { inode: 1, chunk: 2, session: 3, seq: Seq(5) }),
            "0108011002180320\
         05",
        ),
        (
            Key::Counters,
            Record::Counters(StoredCounters {
                counters: Counters { inodes: 1, chunks: 2, logical_bytes: 3, orphans: 4, reclaim_pending: 6 },
                seq: Seq(5),
            }),
            "010801100218032004280630\
             05",
        ),
    ]
}

const INODE_V1: &str = "010802\
    10ed13\
    18e807\
    2064\
    2803\
    308120\
    3809\
    41ffffffffffffffff\
    490200000000000000\
    510300000000000000\
    590400000000000000\
    6005\
    6806\
    7801\
    800107\
    880108\
    900109\
    98010a\
    a0010b\
    a8011a\
    b00103\
    b801ac02";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

#[test]
fn records_of_version_1_are_stored_so_and_still_decode() {
    for (key, record, stored) in samples() {
        assert_eq!(hex(&record.encode()), stored, "{key:?}");
        assert_eq!(Record::decode(&key, &unhex(stored)), Ok(record), "{key:?}");
    }
}

#[test]
fn records_from_before_a_field_was_there_decode_without_it() {
    let check = |stored: &str, change: fn(&mut Record)| {
        let (key, mut record, _) = samples().into_iter().find(|(_, _, now)| now.starts_with(stored)).unwrap();
        change(&mut record);
        assert_eq!(Record::decode(&key, &unhex(stored)), Ok(record), "{key:?}");
    };
    check("01080910011801220201032a010230013805", |record| {
        let Record::Chunk(chunk) = record else { unreachable!() };
        let chunk = Arc::make_mut(chunk);
        (chunk.stale, chunk.set_seq, chunk.version_seq) = (vec![], Seq(0), Seq(0));
        chunk.loss_version = Version(0);
    });
    check("01080910011801220201032a01023001380542010448035004", |record| {
        let Record::Chunk(chunk) = record else { unreachable!() };
        Arc::make_mut(chunk).loss_version = Version(0);
    });
    check("010a10303132333435363738396162636465661203683a321a03683a332201722a01683203302e313805", |record| {
        let Record::Node(node) = record else { unreachable!() };
        *node = Arc::new(Node { facts: node.facts.clone(), seq: node.seq, ..Node::default() });
    });
    let session = "010a10303132333435363738396162636465661201681a022f6d2203302e312a03683a313203612f6238014005";
    check(session, |record| {
        let Record::Session(session) = record else { unreachable!() };
        Arc::make_mut(session).is_fenced = false;
    });
}

#[test]
fn a_reply_with_an_inode_survives_its_bytes() {
    let body = SavedBody::Entry { inode: Arc::new(inode()), is_created: true, is_opened: true };
    let reply = SavedReply { seq: Seq(1), time: UnixNanos(-2), body };
    assert_eq!(SavedReply::decode(&reply.encode()), Ok(reply));
}

#[test]
fn a_newer_format_and_a_record_that_cannot_be_are_refused_by_kind() {
    for (key, record, _) in samples() {
        let mut newer = record.encode().to_vec();
        newer[0] = 2;
        let error = Record::decode(&key, &newer.into()).unwrap_err().to_string();
        assert!(error.contains("newer version"), "{key:?}: {error}");
        assert!(Record::decode(&key, &Bytes::new()).is_err());
    }
    let lost_primary = Chunk {
        id: ChunkId(1),
        version: Version(1),
        primary: NodeId(1),
        in_sync: vec![NodeId(2)],
        syncing: vec![],
        stale: vec![],
        is_written: true,
        set_seq: Seq(1),
        version_seq: Seq(1),
        loss_version: Version(0),
        seq: Seq(1),
    };
    assert!(Chunk::decode(&lost_primary.encode()).is_err());
    assert!(Inode::decode(InodeId(1), &unhex("0108ff01a8011a")).is_err(), "no such kind");
    assert!(Inode::decode(InodeId(1), &unhex("010801a8013f")).is_err(), "no such chunk size");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_record_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for (key, ..) in samples() {
            let mut versioned = vec![FORMAT];
            versioned.extend_from_slice(&bytes);
            for bytes in [Bytes::from(bytes.clone()), Bytes::from(versioned)] {
                if let Ok(record) = Record::decode(&key, &bytes) {
                    prop_assert_eq!(Record::decode(&key, &record.encode()), Ok(record));
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for (key, record, _) in samples() {
            let mut bytes = record.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Record::decode(&key, &bytes.into());
        }
    }
}
