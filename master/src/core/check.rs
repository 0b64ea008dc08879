//! Whether the records of one moment fit together (invariant C5): what a scan counts is what inodes and totals say.
//!
//! Records are fed in the order of their keys, so inodes come first; about a hundred bytes are kept of each. Nothing is
//! changed here. A finding can come with a [`Mend`] that is safe because it is a difference: it holds also if the record
//! has changed since that moment.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{InodeId, Kind, Name, NodeId};

use super::care::Counters;
use super::key::Key;
use super::outcome::Delta;
use super::record::{Inode, Record};

/// Most findings that are kept; the others are counted.
const FINDINGS_MAX: usize = 10_000;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What, naming the inode, name or chunk.
    pub what: String,
    /// How it can be mended without losing anything; `None`: somebody has to look.
    pub mend: Option<Mend>,
}

/// A correction of numbers that only repeat what records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// Of an inode, by differences.
    Inode {
        /// Which.
        inode: InodeId,
        /// Names that point at it.
        nlink: i64,
        /// Names in it.
        entries: i64,
        /// Chunk records.
        chunks: i64,
        /// Extended attributes.
        xattrs: i64,
        /// Bytes of their names.
        xattr_name_bytes: i64,
    },
    /// Of the totals.
    Totals(Delta),
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what their names say")]
pub struct Looked {
    pub inodes: u64,
    pub dentries: u64,
    pub chunks: u64,
    pub replicas: u64,
}

/// What is known of one inode.
#[derive(Debug)]
struct Seen {
    kind: Kind,
    is_inline: bool,
    is_cut_pending: bool,
    size: u64,
    parent: InodeId,
    nlink: u32,
    entries: u64,
    chunks: u64,
    xattrs: u32,
    xattr_name_bytes: u32,
    /// What was counted.
    names: u32,
    subdirectories: u32,
    entries_found: u64,
    chunks_found: u64,
    /// Those of them that hold something, by the word of who wrote it.
    written_found: u64,
    xattrs_found: u32,
    xattr_name_bytes_found: u32,
    /// Of a directory: equal for its names and for the same names by their cookies.
    by_name: u64,
    by_cookie: u64,
    is_orphan: bool,
    has_cut: bool,
}

/// A check under way.
#[derive(Debug, Default)]
pub struct Check {
    inodes: BTreeMap<InodeId, Seen>,
    /// Servers that are on record.
    nodes: BTreeSet<NodeId>,
    chunk_nodes: BTreeSet<NodeId>,
    counted: Counters,
    stored: Option<Counters>,
    looked: Looked,
    findings: Vec<Finding>,
    more_findings: u64,
}

impl Check {
    /// Starts a check that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how much was looked at so far.
    pub fn looked(&self) -> Looked {
        self.looked
    }

    /// Looks at a record; they come in the order of their keys.
    pub fn look(&mut self, key: &Key, record: &Record) {
        match (key, record) {
            (Key::Inode(id), Record::Inode(inode)) => self.look_at_inode(*id, inode),
            (Key::Inline(id), Record::Inline(inline)) => {
                let length = inline.content.len() as u64;
                let may_be = |seen: &Seen| seen.is_inline || seen.kind == Kind::Symlink;
                match self.inodes.get(id) {
                    Some(seen) if may_be(seen) && seen.size == length => {}
                    Some(seen) if may_be(seen) => {
                        let size = seen.size;
                        self.find(format!("inode {id} has size {size} and {length} bytes of inline content"));
                    }
                    Some(_) => self.find(format!("inode {id} has inline content, but is neither inline nor a symlink")),
                    None => self.find(format!("inline content of inode {id}, which is not there")),
                }
            }
            (Key::Dentry(parent, name), Record::Dentry(dentry)) => {
                self.looked.dentries += 1;
                let mark = mark(dentry.cookie, name, dentry.inode);
                self.look_at_name(*parent, name, dentry.inode, dentry.kind, mark);
            }
            (Key::Cookie(parent, cookie), Record::Cookie(entry)) => match self.inodes.get_mut(parent) {
                Some(seen) => seen.by_cookie ^= mark(*cookie, &entry.name, entry.inode),
                None => self.find(format!("a listed name in directory {parent}, which is not there")),
            },
            (Key::Chunk(id, index), Record::Chunk(chunk)) => {
                self.looked.chunks += 1;
                self.counted.chunks += 1;
                self.looked.replicas += (chunk.in_sync.len() + chunk.syncing.len()) as u64;
                self.chunk_nodes.extend(chunk.in_sync.iter().chain(&chunk.syncing));
                match self.inodes.get_mut(id) {
                    Some(seen) => {
                        seen.chunks_found += 1;
                        seen.written_found += u64::from(chunk.is_written);
                    }
                    None => self.find(format!("chunk {} at index {index} of inode {id}, which is not there", chunk.id)),
                }
            }
            (Key::Xattr(id, name), Record::Xattr(_)) => match self.inodes.get_mut(id) {
                Some(seen) => {
                    seen.xattrs_found += 1;
                    seen.xattr_name_bytes_found += name.len() as u32 + 1;
                }
                None => self.find(format!("an extended attribute of inode {id}, which is not there")),
            },
            (Key::Orphan(id), Record::Orphan(_)) => {
                self.counted.orphans += 1;
                match self.inodes.get_mut(id) {
                    Some(seen) => seen.is_orphan = true,
                    None => self.find(format!("inode {id} is to be purged, but is not there")),
                }
            }
            (Key::Cut(id), Record::Cut(_)) => match self.inodes.get_mut(id) {
                Some(seen) => seen.has_cut = true,
                None => self.find(format!("a truncate of inode {id}, which is not there")),
            },
            (Key::Node(id), Record::Node(node)) if !node.is_removed() => {
                self.nodes.insert(*id);
            }
            (Key::Reclaim(..), Record::Reclaim(reclaim)) => self.counted.reclaim_pending += reclaim.nodes.len() as u64,
            (Key::Counters, Record::Counters(stored)) => self.stored = Some(stored.counters),
            _ => {}
        }
    }

    fn look_at_inode(&mut self, id: InodeId, inode: &Inode) {
        self.looked.inodes += 1;
        self.counted.inodes += 1;
        self.counted.logical_bytes += u128::from(inode.logical_bytes());
        let seen = Seen {
            kind: inode.kind,
            is_inline: inode.is_inline,
            is_cut_pending: inode.is_cut_pending,
            size: inode.size,
            parent: inode.parent,
            nlink: inode.nlink,
            entries: inode.entries,
            chunks: inode.chunks,
            xattrs: inode.xattrs,
            xattr_name_bytes: inode.xattr_name_bytes,
            names: 0,
            subdirectories: 0,
            entries_found: 0,
            chunks_found: 0,
            written_found: 0,
            xattrs_found: 0,
            xattr_name_bytes_found: 0,
            by_name: 0,
            by_cookie: 0,
            is_orphan: false,
            has_cut: false,
        };
        self.inodes.insert(id, seen);
    }

    fn look_at_name(&mut self, parent: InodeId, name: &Name, inode: InodeId, kind: Kind, mark: u64) {
        let shown = || format!("name {} in directory {parent}", name.as_bytes().escape_ascii());
        let parent_kind = self.inodes.get(&parent).map(|seen| seen.kind);
        match parent_kind {
            Some(Kind::Directory) => {}
            Some(_) => self.find(format!("{}, which is not a directory", shown())),
            None => self.find(format!("{}, which is not there", shown())),
        }
        if let Some(directory) = self.inodes.get_mut(&parent) {
            directory.entries_found += 1;
            directory.by_name ^= mark;
            directory.subdirectories += u32::from(kind == Kind::Directory);
        }
        let Some(seen) = self.inodes.get_mut(&inode) else {
            self.find(format!("{} points at inode {inode}, which is not there", shown()));
            return;
        };
        seen.names += 1;
        let (found_kind, found_parent) = (seen.kind, seen.parent);
        if found_kind != kind {
            let (said, is) = (kind.word(), found_kind.word());
            self.find(format!("{} says that inode {inode} is a {said}, it is a {is}", shown()));
        }
        if found_kind == Kind::Directory && found_parent != parent {
            self.find(format!("{} points at directory {inode}, which says it is in {found_parent}", shown()));
        }
    }

    /// Ends the check: what does not fit, and how many findings more than are listed.
    pub fn end(mut self) -> (Vec<Finding>, u64) {
        let inodes = std::mem::take(&mut self.inodes);
        for (id, seen) in &inodes {
            self.conclude(*id, seen);
        }
        self.look_for_cycles(&inodes);
        let unknown: Vec<NodeId> = self.chunk_nodes.difference(&self.nodes).copied().collect();
        for node in unknown {
            self.find(format!("chunks have replicas on node {node}, which is not on record"));
        }
        self.compare_totals();
        (self.findings, self.more_findings)
    }

    fn conclude(&mut self, id: InodeId, seen: &Seen) {
        if id == InodeId::ROOT && seen.names > 0 {
            self.find("the root has a name".into());
        }
        let names = match (id, seen.kind, seen.names) {
            (InodeId::ROOT, ..) => 2 + seen.subdirectories,
            // One that was removed counts nothing; nothing can be in it.
            (_, Kind::Directory, 0) => 0,
            (_, Kind::Directory, 1) => 2 + seen.subdirectories,
            (_, Kind::Directory, names) => {
                self.find(format!("directory {id} has {names} names"));
                seen.nlink
            }
            (_, _, names) => names,
        };
        let has_name = id == InodeId::ROOT || seen.names > 0;
        if !has_name && !seen.is_orphan {
            self.find(format!("inode {id} ({}) has no name and is not to be purged", seen.kind.word()));
        }
        if has_name && seen.is_orphan {
            self.find(format!("inode {id} is to be purged, but has a name"));
        }
        let difference = |counted: u64, recorded: u64| counted as i64 - recorded as i64;
        let mend = Mend::Inode {
            inode: id,
            // Without a name an inode is a matter of the findings above.
            nlink: if has_name { difference(names.into(), seen.nlink.into()) } else { 0 },
            entries: difference(seen.entries_found, seen.entries),
            chunks: difference(seen.chunks_found, seen.chunks),
            xattrs: difference(seen.xattrs_found.into(), seen.xattrs.into()),
            xattr_name_bytes: difference(seen.xattr_name_bytes_found.into(), seen.xattr_name_bytes.into()),
        };
        if let Mend::Inode { nlink, entries, chunks, xattrs, xattr_name_bytes, .. } = mend
            && [nlink, entries, chunks, xattrs, xattr_name_bytes].iter().any(|difference| *difference != 0)
        {
            let counts = [
                ("links", nlink, u64::from(seen.nlink)),
                ("names in it", entries, seen.entries),
                ("chunks", chunks, seen.chunks),
                ("extended attributes", xattrs, seen.xattrs.into()),
                ("bytes of their names", xattr_name_bytes, seen.xattr_name_bytes.into()),
            ];
            let wrong = counts.iter().filter(|(_, difference, _)| *difference != 0);
            let text: Vec<String> = wrong
                .map(|(what, difference, recorded)| {
                    format!("{recorded} {what}, {} were counted", *recorded as i64 + difference)
                })
                .collect();
            let what = format!("inode {id} says it has {}", text.join("; "));
            self.push(Finding { what, mend: Some(mend) });
        }
        if seen.by_name != seen.by_cookie {
            self.find(format!("directory {id} lists other names than it has"));
        }
        if seen.is_cut_pending != seen.has_cut {
            let text =
                if seen.has_cut { "no truncate is pending, but one is" } else { "a truncate is pending, but none is" };
            self.find(format!("inode {id} says that {text}"));
        }
        // A file gets chunks before it leaves its inline content, and keeps them if its writer dies in between.
        if seen.is_inline && seen.written_found > 0 {
            self.find(format!("inode {id} is inline and has {} chunks that were written", seen.written_found));
        }
    }

    /// Every directory with a name leads to the root.
    fn look_for_cycles(&mut self, inodes: &BTreeMap<InodeId, Seen>) {
        let mut good: BTreeSet<InodeId> = BTreeSet::from([InodeId::ROOT]);
        for (id, _) in inodes.iter().filter(|(_, seen)| seen.kind == Kind::Directory && seen.names > 0) {
            let mut path = BTreeSet::new();
            let mut at = *id;
            while !good.contains(&at) {
                if !path.insert(at) {
                    self.find(format!("directory {at} is below itself"));
                    break;
                }
                match inodes.get(&at) {
                    // A removed directory hangs on nothing, and a lost one was found above.
                    Some(seen) if seen.kind == Kind::Directory && seen.names > 0 => at = seen.parent,
                    _ => break,
                }
            }
            good.extend(path);
        }
    }

    fn compare_totals(&mut self) {
        let (counted, stored) = (self.counted, self.stored.unwrap_or_default());
        if counted == stored {
            return;
        }
        let difference = |counted: u64, stored: u64| counted as i64 - stored as i64;
        let delta = Delta {
            inodes: difference(counted.inodes, stored.inodes),
            chunks: difference(counted.chunks, stored.chunks),
            logical_bytes: (counted.logical_bytes as i128 - stored.logical_bytes as i128) as i64,
            orphans: difference(counted.orphans, stored.orphans),
            reclaim_pending: difference(counted.reclaim_pending, stored.reclaim_pending),
        };
        let what = format!("the totals say {stored:?}, {counted:?} were counted");
        self.push(Finding { what, mend: Some(Mend::Totals(delta)) });
    }

    fn find(&mut self, what: String) {
        self.push(Finding { what, mend: None });
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}

/// Returns a number for a name and its place; the same for the dentry and for the cookie entry.
fn mark(cookie: u64, name: &Name, inode: InodeId) -> u64 {
    // FNV-1a: names that differ in one byte differ in the mark.
    let bytes = cookie.to_le_bytes().into_iter().chain(inode.0.to_le_bytes());
    let bytes = bytes.chain(name.as_bytes().iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
