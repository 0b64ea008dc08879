//! A file system in a sorted map: runs operations, applies what they decide, and checks what must always be true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{BootSession, ChunkIndex, FsError, InodeId, Kind, Name, NodeId, Seq, SessionId, UnixNanos};

use super::invariants;
use crate::core::care::{Counters, CutIntent};
use crate::core::ids::FreshIds;
use crate::core::key::{Key, Range};
use crate::core::node_table::Space;
use crate::core::op;
use crate::core::opens::Opens;
use crate::core::outcome::{Body, Listed, OpenChange, Outcome};
use crate::core::record::{IdMarks, Inode, Record};
use crate::core::request::{Call, Make, Request, SetAttr};
use crate::core::standing::Standing;
use crate::core::unsettled::Unsettled;
use crate::core::view::{Cluster, Known, Records, Scanned, Stop, View};

pub(super) const SESSION: SessionId = SessionId(1);

/// The records, with a set of those that an operation has asked for: as if all others had to be fetched first.
#[derive(Default)]
struct Map {
    records: BTreeMap<Bytes, (Key, Record)>,
    fetched: BTreeSet<Key>,
    scanned: BTreeSet<Range>,
}

impl Records for Map {
    fn find(&self, key: &Key) -> Option<Known> {
        self.fetched.contains(key).then(|| match self.records.get(&key.encode()) {
            Some((_, record)) => Known::Present(record.clone()),
            None => Known::Absent(Seq(0)),
        })
    }

    fn scanned(&self, range: &Range) -> Option<Scanned> {
        self.scanned.contains(range).then(|| Arc::new(self.range(range)))
    }
}

impl Map {
    fn range(&self, range: &Range) -> Vec<(Key, Record)> {
        let found = self.records.range(range.start.clone()..range.end.clone());
        found.take(range.limit).map(|(_, pair)| pair.clone()).collect()
    }
}

/// Three servers to place chunks on; how they stand is up to the test.
#[derive(Default)]
pub(super) struct Servers {
    pub(super) standings: BTreeMap<NodeId, Standing>,
}

impl Cluster for Servers {
    fn place(&self, seed: u64, replicas: usize) -> Result<Vec<NodeId>, FsError> {
        Ok((0..replicas as u64).map(|at| NodeId(((seed + at) % 3 + 1) as u32)).collect())
    }

    fn standing(&self, node: NodeId) -> Standing {
        let well =
            Standing { boot: BootSession(1), is_online: true, are_former_leases_over: true, ..Standing::default() };
        self.standings.get(&node).copied().unwrap_or(well)
    }

    fn space(&self) -> Space {
        Space { total_bytes: 3_000, free_bytes: 300 }
    }
}

pub(super) struct World {
    map: Map,
    pub(super) servers: Servers,
    pub(super) opens: Opens,
    pub(super) counters: Counters,
    pub(super) cut: Option<CutIntent>,
    pub(super) purgeable: BTreeSet<InodeId>,
    ids: FreshIds,
    seq: u64,
    /// Records that the last operation asked for.
    pub(super) read: usize,
    /// The time of the last operation; each takes one nanosecond.
    pub(super) now: i64,
}

impl World {
    pub(super) fn new() -> Self {
        let mut ids = FreshIds::after(IdMarks::default());
        ids.reserved(&IdMarks { inode: u64::MAX, chunk: u64::MAX, session: u64::MAX, seq: Seq(0) });
        let mut world = Self {
            map: Map::default(),
            servers: Servers::default(),
            opens: Opens::default(),
            counters: Counters::default(),
            cut: None,
            purgeable: BTreeSet::new(),
            ids,
            seq: 0,
            read: 0,
            now: 0,
        };
        world.run(op::make_root).expect("a root");
        // As old as what is made first.
        world.now = 0;
        world
    }

    /// Runs `operation` and applies what it decides. If it fails nothing changes.
    pub(super) fn run(
        &mut self,
        operation: impl Fn(&View<'_>, UnixNanos) -> Result<Outcome, Stop>,
    ) -> Result<Body, FsError> {
        self.now += 1;
        self.read = 0;
        self.map.fetched.clear();
        self.map.scanned.clear();
        let unsettled = Unsettled::default();
        loop {
            let seq = Seq(self.seq + 1);
            let view = View::new(
                &self.map,
                SESSION,
                seq,
                &self.opens,
                &self.servers,
                &unsettled,
                self.ids,
                10,
                self.counters,
                None,
            );
            match operation(&view, UnixNanos(self.now)) {
                Ok(outcome) => {
                    self.ids = view.ids();
                    return Ok(self.apply(outcome));
                }
                Err(Stop::Read(keys)) => {
                    self.read += keys.len();
                    self.map.fetched.extend(keys);
                }
                Err(Stop::Scan(range)) => {
                    self.read += self.map.range(&range).len();
                    self.map.scanned.insert(range);
                }
                Err(Stop::Ids) => unreachable!("there are ids without end"),
                Err(Stop::Fail(error)) => return Err(error),
            }
        }
    }

    fn apply(&mut self, outcome: Outcome) -> Body {
        for change in &outcome.opens {
            match *change {
                OpenChange::Open { inode, count } => self.opens.add(SESSION, inode, count),
                OpenChange::Release { inode, count } => {
                    self.opens.release(SESSION, inode, count);
                }
            }
        }
        if outcome.is_change() {
            self.seq += 1;
        }
        self.cut = outcome.cut.clone().or(self.cut.take());
        self.purgeable.extend(outcome.purgeable.iter().copied());
        outcome.totals.apply(&mut self.counters);
        let body = outcome.reply.clone();
        for (key, record) in outcome.into_writes() {
            match record {
                Some(record) => {
                    // What is stored is what is read back.
                    assert_eq!(Record::decode(&key, &record.encode()).as_ref(), Ok(&record));
                    self.map.records.insert(key.encode(), (key, record));
                }
                None => {
                    self.map.records.remove(&key.encode());
                }
            }
        }
        body
    }

    pub(super) fn ask(&mut self, request: Request) -> Result<Body, FsError> {
        let call = Call { session: SESSION, number: 0, acked_below: 0, uid: 10, gid: 20, replay: None, request };
        self.run(|view, now| op::run(view, now, &call))
    }

    /// Returns the inode at `path`.
    pub(super) fn find(&mut self, path: &str) -> Result<Arc<Inode>, FsError> {
        let mut inode = self.inode(InodeId::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            self.now -= 1;
            match self.ask(Request::Lookup { parent: inode.id, name: name_of(name) })? {
                Body::Entry { inode: found, .. } => inode = found,
                other => panic!("unexpected {other:?}"),
            }
        }
        Ok(inode)
    }

    pub(super) fn inode(&mut self, inode: InodeId) -> Result<Arc<Inode>, FsError> {
        self.now -= 1;
        match self.ask(Request::GetAttr { inode })? {
            Body::Entry { inode, .. } => Ok(inode),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Splits `path` into the directory, which must exist, and the last name.
    pub(super) fn place(&mut self, path: &str) -> Result<(InodeId, Name), FsError> {
        let (directory, name) = path.rsplit_once('/').expect("an absolute path");
        Ok((self.find(directory)?.id, name_of(name)))
    }

    pub(super) fn make(&mut self, path: &str, kind: Kind, open: bool, exclusive: bool) -> Result<Arc<Inode>, FsError> {
        let (parent, name) = self.place(path)?;
        let target = if kind == Kind::Symlink { Bytes::from_static(b"target") } else { Bytes::new() };
        let mode = 0o750;
        let request = Make { parent, name, kind, mode, rdev: 7, target, open, exclusive };
        match self.ask(Request::Make(request))? {
            Body::Entry { inode, .. } | Body::Opened { inode, .. } => Ok(inode),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(super) fn set(&mut self, path: &str, change: impl FnOnce(&mut SetAttr)) -> Result<Arc<Inode>, FsError> {
        let mut request = SetAttr { inode: self.find(path)?.id, ..SetAttr::default() };
        change(&mut request);
        match self.ask(Request::SetAttr(request))? {
            Body::Entry { inode, .. } => Ok(inode),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(super) fn content(&mut self, path: &str) -> Result<Bytes, FsError> {
        let inode = self.find(path)?.id;
        self.now -= 1;
        match self.ask(Request::GetInline { inode })? {
            Body::Inline { content, .. } => Ok(content),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Lists a directory in pages of two.
    pub(super) fn list(&mut self, inode: InodeId) -> Result<Vec<Listed>, FsError> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.cookie);
            self.now -= 1;
            match self.ask(Request::ReadDir { inode, after, limit: 2, plus: true })? {
                Body::Listing { entries, is_end, .. } => {
                    all.extend(entries);
                    if is_end {
                        return Ok(all);
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub(super) fn release(&mut self, inode: InodeId) {
        self.ask(Request::Release { opens: vec![(inode, 1)] }).expect("released");
    }

    /// Returns the position of the last change.
    pub(super) fn seq(&self) -> Seq {
        Seq(self.seq)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &(Key, Record)> {
        self.map.records.values()
    }

    pub(super) fn chunk_indexes(&self, inode: InodeId) -> Vec<u32> {
        self.map
            .range(&Range::chunks(inode, ChunkIndex(0), ChunkIndex(u32::MAX), usize::MAX))
            .iter()
            .map(|(key, _)| match key {
                Key::Chunk(_, index) => index.0,
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }

    /// Checks what must always be true of the records.
    pub(super) fn check_invariants(&self) {
        invariants::check(self.records(), &self.counters);
    }
}

pub(super) fn name_of(name: &str) -> Name {
    Name::new(name.to_owned()).expect("a name")
}
