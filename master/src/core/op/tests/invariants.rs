//! What must always be true of the records, whatever was asked of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs_proto::{ChunkId, ChunkIndex, InodeId, Kind, Name};

use crate::core::care::Counters;
use crate::core::key::Key;
use crate::core::record::{Chunk, Cut, Dentry, Inode, Record, Xattr};

/// The records, by kind.
#[derive(Default)]
struct Sorted<'a> {
    inodes: BTreeMap<InodeId, &'a Inode>,
    inline: BTreeMap<InodeId, &'a Bytes>,
    dentries: BTreeMap<(InodeId, &'a Name), &'a Dentry>,
    cookies: BTreeMap<(InodeId, u64), (&'a Name, InodeId)>,
    chunks: BTreeMap<(InodeId, ChunkIndex), &'a Chunk>,
    xattrs: BTreeMap<(InodeId, &'a Bytes), &'a Xattr>,
    orphans: BTreeSet<InodeId>,
    cuts: BTreeMap<InodeId, &'a Cut>,
    reclaims: BTreeMap<ChunkId, usize>,
}

/// Asserts that every count is exact, every name has its inode and every inode its names, directories form a tree below
/// the root, and no chunk id is used twice.
pub(crate) fn check<'a>(records: impl Iterator<Item = &'a (Key, Record)>, counters: &Counters) {
    let sorted = Sorted::new(records);
    sorted.check_counters(counters);
    sorted.inodes.values().for_each(|inode| sorted.check_inode(inode));
    sorted.check_nothing_is_left_over();
    sorted.check_tree();
    sorted.check_chunk_ids();
}

impl<'a> Sorted<'a> {
    fn new(records: impl Iterator<Item = &'a (Key, Record)>) -> Self {
        let mut sorted = Self::default();
        for (key, record) in records {
            match (key, record) {
                (Key::Inode(id), Record::Inode(inode)) => {
                    assert_eq!(*id, inode.id);
                    sorted.inodes.insert(*id, inode);
                }
                (Key::Inline(id), Record::Inline(inline)) => {
                    sorted.inline.insert(*id, &inline.content);
                }
                (Key::Dentry(parent, name), Record::Dentry(dentry)) => {
                    sorted.dentries.insert((*parent, name), dentry);
                }
                (Key::Cookie(parent, cookie), Record::Cookie(entry)) => {
                    sorted.cookies.insert((*parent, *cookie), (&entry.name, entry.inode));
                }
                (Key::Chunk(id, index), Record::Chunk(chunk)) => {
                    sorted.chunks.insert((*id, *index), chunk);
                }
                (Key::Xattr(id, name), Record::Xattr(xattr)) => {
                    sorted.xattrs.insert((*id, name), xattr);
                }
                (Key::Orphan(id), Record::Orphan(_)) => {
                    sorted.orphans.insert(*id);
                }
                (Key::Cut(id), Record::Cut(cut)) => {
                    sorted.cuts.insert(*id, cut);
                }
                (Key::Reclaim(_, chunk), Record::Reclaim(reclaim)) => {
                    let before = sorted.reclaims.insert(*chunk, reclaim.nodes.len());
                    assert_eq!(before, None, "chunk {chunk} is reclaimed twice");
                }
                (Key::Session(_), Record::Session(_))
                | (Key::Reply(..), Record::Reply(_))
                | (Key::Node(_), Record::Node(_))
                | (Key::Ids, Record::Ids(_))
                | (Key::Counters, Record::Counters(_)) => {}
                other => panic!("a key with the record of another: {other:?}"),
            }
        }
        sorted
    }

    fn check_counters(&self, counters: &Counters) {
        let counted = Counters {
            inodes: self.inodes.len() as u64,
            chunks: self.chunks.len() as u64,
            logical_bytes: self.inodes.values().map(|inode| u128::from(inode.logical_bytes())).sum(),
            orphans: self.orphans.len() as u64,
            reclaim_pending: self.reclaims.values().sum::<usize>() as u64,
        };
        assert_eq!(counted, *counters, "the counters are a recount");
    }

    fn check_inode(&self, inode: &Inode) {
        let id = inode.id;
        let names = self.dentries.values().filter(|dentry| dentry.inode == id).count();
        let is_orphan = self.orphans.contains(&id);
        if inode.is_directory() {
            let inside = || self.dentries.iter().filter(|((parent, _), _)| *parent == id);
            let subdirectories = inside().filter(|(_, dentry)| dentry.kind == Kind::Directory).count();
            let is_linked = id == InodeId::ROOT || names == 1;
            assert_eq!(inode.nlink as usize, if is_linked { 2 + subdirectories } else { 0 }, "nlink of directory {id}");
            assert_eq!(is_orphan, !is_linked, "orphan {id}");
            assert_eq!(inode.entries, inside().count() as u64, "entries of {id}");
        } else {
            assert_eq!(inode.nlink as usize, names, "nlink of {id}");
            assert_eq!(is_orphan, names == 0, "orphan {id}");
        }
        assert_eq!(inode.chunks, self.chunks.keys().filter(|(of, _)| *of == id).count() as u64, "chunks of {id}");
        let xattrs: Vec<&Bytes> = self.xattrs.keys().filter(|(of, _)| *of == id).map(|(_, name)| *name).collect();
        let name_bytes: usize = xattrs.iter().map(|name| name.len() + 1).sum();
        let found = (xattrs.len(), name_bytes);
        assert_eq!((inode.xattrs as usize, inode.xattr_name_bytes as usize), found, "attributes of {id}");
        let has_inline = inode.is_inline || inode.kind == Kind::Symlink;
        let length = if has_inline { inode.size as usize } else { 0 };
        assert_eq!(self.inline.get(&id).map_or(0, |content| content.len()), length, "inline content of {id}");
        assert_eq!(inode.is_cut_pending, self.cuts.contains_key(&id), "cut of {id}");
    }

    fn check_nothing_is_left_over(&self) {
        let mut cookies = self.cookies.clone();
        for ((parent, name), dentry) in &self.dentries {
            let inode = self.inodes.get(&dentry.inode).unwrap_or_else(|| panic!("{name} has no inode"));
            assert_eq!(inode.kind, dentry.kind, "kind of {name}");
            assert_eq!(cookies.remove(&(*parent, dentry.cookie)), Some((*name, dentry.inode)), "cookie of {name}");
            let directory = self.inodes.get(parent).unwrap_or_else(|| panic!("{name} is in a directory that is gone"));
            assert!(directory.is_directory() && dentry.cookie < directory.next_cookie, "{name} in {parent}");
        }
        assert!(cookies.is_empty(), "listed but not there: {cookies:?}");
        let parts = self.chunks.keys().map(|(id, _)| id).chain(self.xattrs.keys().map(|(id, _)| id));
        for id in parts.chain(self.inline.keys()).chain(&self.orphans).chain(self.cuts.keys()) {
            assert!(self.inodes.contains_key(id), "a part of inode {id}, which is gone");
        }
    }

    /// From every directory that has a name, the way up ends at the root.
    fn check_tree(&self) {
        for ((parent, name), dentry) in self.dentries.iter().filter(|(_, dentry)| dentry.kind == Kind::Directory) {
            assert_eq!(self.inodes[&dentry.inode].parent, *parent, "parent of {name}");
            let mut at = dentry.inode;
            for _ in 0..=self.inodes.len() {
                at = if at == InodeId::ROOT { at } else { self.inodes[&at].parent };
            }
            assert_eq!(at, InodeId::ROOT, "{name} hangs on a cycle");
        }
    }

    fn check_chunk_ids(&self) {
        let mut ids: BTreeSet<ChunkId> = self.reclaims.keys().copied().collect();
        for ((inode, index), chunk) in &self.chunks {
            assert!(ids.insert(chunk.id), "chunk {} of {inode} at {index} is used twice", chunk.id);
            assert!(chunk.in_sync.contains(&chunk.primary));
        }
    }
}
