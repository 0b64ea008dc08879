//! Small file systems, whole and damaged.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{ChunkId, ChunkIndex, Seq, UnixNanos, Version};

use super::*;
use crate::core::record::{Chunk, CookieEntry, Dentry, Inline, Orphan, StoredCounters, Xattr};

/// The records of a small file system: `/dir/file` (a chunk, an attribute, also known as `/link`), `/small` (inline), and
/// an orphan.
fn whole() -> BTreeMap<Bytes, (Key, Record)> {
    let mut records = BTreeMap::new();
    let mut put = |key: Key, record: Record| {
        records.insert(key.encode(), (key, record));
    };
    let inode = |id: u64, kind: Kind, nlink: u32| Inode { nlink, ..Inode::new(InodeId(id), kind, 0o644, UnixNanos(0)) };
    let root = Inode { entries: 3, ..inode(1, Kind::Directory, 3) };
    let directory = Inode { entries: 1, parent: InodeId::ROOT, ..inode(2, Kind::Directory, 2) };
    let file =
        Inode { size: 10, is_inline: false, chunks: 1, xattrs: 1, xattr_name_bytes: 7, ..inode(3, Kind::File, 2) };
    let small = Inode { size: 5, ..inode(4, Kind::File, 1) };
    for inode in [root, directory, file, small, inode(5, Kind::File, 0)] {
        put(Key::Inode(inode.id), Record::Inode(Arc::new(inode)));
    }
    put(Key::Inline(InodeId(4)), Record::Inline(Inline { content: Bytes::from_static(b"hello"), seq: Seq(1) }));
    let names = [(1, "dir", 2, Kind::Directory), (2, "file", 3, Kind::File), (1, "link", 3, Kind::File)];
    for (cookie, (parent, name, id, kind)) in names.into_iter().chain([(1, "small", 4, Kind::File)]).enumerate() {
        let (parent, name, inode) = (InodeId(parent), Name::new(name.as_bytes().to_vec()).unwrap(), InodeId(id));
        let (cookie, seq) = (cookie as u64, Seq(1));
        put(Key::Dentry(parent, name.clone()), Record::Dentry(Dentry { inode, kind, cookie, seq }));
        put(Key::Cookie(parent, cookie), Record::Cookie(CookieEntry { name, inode, kind, seq }));
    }
    put(
        Key::Xattr(InodeId(3), Bytes::from_static(b"user.a")),
        Record::Xattr(Xattr { value: Bytes::new(), seq: Seq(1) }),
    );
    let chunk = Chunk {
        id: ChunkId(9),
        version: Version(1),
        version_seq: Seq(1),
        loss_version: Version(0),
        primary: NodeId(1),
        in_sync: vec![NodeId(1)],
        syncing: vec![],
        stale: vec![],
        is_written: true,
        set_seq: Seq(1),
        seq: Seq(1),
    };
    put(Key::Chunk(InodeId(3), ChunkIndex(0)), Record::Chunk(Arc::new(chunk)));
    let facts = crate::core::care::NodeFacts { data_address: "h:1".into(), ..Default::default() };
    let node = crate::core::record::Node { facts, seq: Seq(1), ..Default::default() };
    put(Key::Node(NodeId(1)), Record::Node(Arc::new(node)));
    put(Key::Orphan(InodeId(5)), Record::Orphan(Orphan { purge_from: ChunkIndex(0), seq: Seq(1) }));
    let counters = Counters { inodes: 5, chunks: 1, logical_bytes: 15, orphans: 1, reclaim_pending: 0 };
    put(Key::Counters, Record::Counters(StoredCounters { counters, seq: Seq(1) }));
    records
}

fn check(records: &BTreeMap<Bytes, (Key, Record)>) -> Vec<Finding> {
    let mut check = Check::new();
    for (key, record) in records.values() {
        check.look(key, record);
    }
    check.end().0
}

/// Asserts that the file system, damaged by `damage`, has exactly the findings whose texts contain these parts.
#[track_caller]
fn damaged(damage: impl FnOnce(&mut BTreeMap<Bytes, (Key, Record)>), expected: &[&str]) -> Vec<Finding> {
    let mut records = whole();
    damage(&mut records);
    let findings = check(&records);
    let texts: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
    assert_eq!(texts.len(), expected.len(), "{texts:#?}");
    for (text, part) in texts.iter().zip(expected) {
        assert!(text.contains(part), "{text:?} has no {part:?}");
    }
    findings
}

fn edit(records: &mut BTreeMap<Bytes, (Key, Record)>, id: u64, change: impl FnOnce(&mut Inode)) {
    let Some((_, Record::Inode(inode))) = records.get_mut(&Key::Inode(InodeId(id)).encode()) else { panic!("no {id}") };
    change(Arc::make_mut(inode));
}

fn remove(records: &mut BTreeMap<Bytes, (Key, Record)>, key: Key) {
    records.remove(&key.encode()).expect("was there");
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

#[test]
fn a_whole_file_system_has_no_findings() {
    damaged(|_| {}, &[]);
    let mut check = Check::new();
    whole().values().for_each(|(key, record)| check.look(key, record));
    assert_eq!(check.looked(), Looked { inodes: 5, dentries: 4, chunks: 1, replicas: 1 });
}

#[test]
fn wrong_numbers_are_found_with_how_they_are_mended() {
    let findings = damaged(
        |records| {
            edit(records, 3, |inode| (inode.nlink, inode.chunks) = (5, 0));
            edit(records, 2, |inode| inode.nlink = 3);
        },
        &[
            "inode 2 says it has 3 links, 2 were counted",
            "inode 3 says it has 5 links, 2 were counted; 0 chunks, 1 were",
        ],
    );
    let mend = Mend::Inode { inode: InodeId(3), nlink: -3, entries: 0, chunks: 1, xattrs: 0, xattr_name_bytes: 0 };
    assert_eq!(findings[1].mend, Some(mend));
    let findings = damaged(
        |records| {
            let counters = Counters { inodes: 7, chunks: 1, logical_bytes: 15, orphans: 0, reclaim_pending: 0 };
            let key = Key::Counters;
            records.insert(key.encode(), (key, Record::Counters(StoredCounters { counters, seq: Seq(1) })));
        },
        &["the totals say"],
    );
    assert_eq!(findings[0].mend, Some(Mend::Totals(Delta { inodes: -2, orphans: 1, ..Delta::default() })));
}

#[test]
fn a_name_without_its_inode_and_an_inode_without_its_name_are_found() {
    damaged(
        |records| remove(records, Key::Inode(InodeId(4))),
        &["inline content of inode 4", "name small in directory 1 points at inode 4", "the totals"],
    );
    damaged(
        |records| {
            remove(records, Key::Dentry(InodeId(1), name("small")));
            remove(records, Key::Cookie(InodeId(1), 3));
        },
        &["inode 1 says it has 3 names in it, 2", "inode 4 (file) has no name and is not to be purged"],
    );
    damaged(
        |records| remove(records, Key::Orphan(InodeId(5))),
        &["inode 5 (file) has no name and is not to be purged", "the totals"],
    );
}

#[test]
fn a_listing_that_differs_from_the_names_is_found() {
    damaged(|records| remove(records, Key::Cookie(InodeId(1), 3)), &["directory 1 lists other names than it has"]);
}

#[test]
fn a_directory_below_itself_is_found() {
    damaged(
        |records| {
            // /dir is moved into itself.
            let entry = records.remove(&Key::Dentry(InodeId(1), name("dir")).encode()).unwrap();
            remove(records, Key::Cookie(InodeId(1), 0));
            let key = Key::Dentry(InodeId(2), name("dir"));
            records.insert(key.encode(), (key, entry.1));
            let cookie = CookieEntry { name: name("dir"), inode: InodeId(2), kind: Kind::Directory, seq: Seq(1) };
            let key = Key::Cookie(InodeId(2), 0);
            records.insert(key.encode(), (key, Record::Cookie(cookie)));
            edit(records, 1, |root| (root.entries, root.nlink) = (2, 2));
            edit(records, 2, |inode| (inode.entries, inode.nlink, inode.parent) = (2, 3, InodeId(2)));
        },
        &["directory 2 is below itself"],
    );
}

#[test]
fn parts_of_inodes_that_are_gone_and_servers_that_are_unknown_are_found() {
    damaged(
        |records| remove(records, Key::Node(NodeId(1))),
        &["chunks have replicas on node 1, which is not on record"],
    );
    damaged(
        |records| edit(records, 3, |inode| inode.is_cut_pending = true),
        &["inode 3 says that a truncate is pending, but none is"],
    );
    damaged(
        |records| edit(records, 4, |inode| inode.size = 6),
        &["inode 4 has size 6 and 5 bytes of inline content", "the totals"],
    );
}
