//! Whatever a mount sends, the master goes on and its records stay whole.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::env::{Clock, SystemClock};
use dfs_proto::wire::pb::{self, meta_request::Body};
use dfs_proto::{BootSession, ChunkId, FsError, Kind, NodeId, SessionId};
use parking_lot::RwLock;
use proptest::prelude::*;

use super::care_calls::CutStep;
use super::config::MasterConfig;
use super::decode::{self, Asked};
use super::executor::Executor;
use super::metrics::MasterMetrics;
use crate::core::care::{CutIntent, NodeFacts};
use crate::core::node_table::{Disk, NodeTable};
use crate::core::op::tests::invariants;
use crate::core::outcome::Body as Reply;
use crate::store::memory::MemoryStore;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// One of two mounts sends this.
    Ask(usize, Box<pb::MetaRequest>),
    /// The caretaker has its turn.
    Care,
}

/// Mostly a number that means something, now and then any other.
fn number(small: std::ops::Range<u64>) -> impl Strategy<Value = u64> {
    prop_oneof![
        40 => small,
        1 => Just(u64::MAX),
        1 => any::<u64>(),
        1 => Just(1 << 58),
        1 => Just((1 << 58) + 1),
    ]
}

fn number32(small: std::ops::Range<u32>) -> impl Strategy<Value = u32> {
    prop_oneof![30 => small, 1 => Just(u32::MAX), 1 => any::<u32>(), 1 => Just(0)]
}

/// Those of [`Bench::new`] and what is made after them.
fn inode() -> impl Strategy<Value = u64> {
    prop_oneof![10 => 1..10u64, 1 => number(0..20)]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..20_000u64, 3 => 0..(4u64 << 26), 1 => number(0..2)]
}

fn time() -> impl Strategy<Value = i64> {
    prop_oneof![1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => any::<i64>(), 2 => 0..5i64]
}

fn name() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        30 => prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(Bytes::from),
        1 => prop::sample::select(vec!["", ".", "..", "a/b", "a\0b"]).prop_map(Bytes::from),
        1 => (250..260usize).prop_map(|length| vec![b'n'; length].into()),
        1 => prop::collection::vec(any::<u8>(), 0..5).prop_map(Bytes::from),
    ]
}

fn bytes(length: usize) -> impl Strategy<Value = Bytes> {
    prop_oneof![
        5 => (0..50usize).prop_map(|length| vec![7; length].into()),
        1 => (length - 1..length + 2).prop_map(|length| vec![7; length].into()),
    ]
}

fn opens() -> impl Strategy<Value = Vec<pb::OpenCount>> {
    prop::collection::vec((inode(), number32(0..3)).prop_map(|(inode, count)| pb::OpenCount { inode, count }), 0..4)
}

fn namespace_bodies() -> impl Strategy<Value = Body> {
    prop_oneof![
        6 => (inode(), name(), number32(1..8), any::<u32>(), any::<u64>(), bytes(4_095), any::<bool>(), any::<bool>())
            .prop_map(|(parent, name, kind, mode, rdev, target, open, exclusive)| {
                Body::Make(pb::Make { parent, name, kind, mode, rdev, target, open, exclusive, umask_applied: true })
            }),
        3 => (inode(), name()).prop_map(|(parent, name)| Body::Unlink(pb::Unlink { parent, name })),
        2 => (inode(), name()).prop_map(|(parent, name)| Body::Rmdir(pb::Rmdir { parent, name })),
        5 => (inode(), name(), inode(), name(), number32(0..4)).prop_map(|(parent, name, new_parent, new_name, flags)| {
            Body::Rename(pb::Rename { parent, name, new_parent, new_name, flags })
        }),
        3 => (inode(), inode(), name()).prop_map(|(inode, parent, name)| Body::Link(pb::Link { inode, parent, name })),
        1 => (inode(), name()).prop_map(|(parent, name)| Body::Lookup(pb::Lookup { parent, name })),
        1 => (inode(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(inode, after, limit, plus)| {
            Body::ReadDir(pb::ReadDir { inode, after: after % 9, limit: limit % 3, plus })
        }),
        1 => (inode(), any::<u64>(), any::<u32>()).prop_map(|(inode, after, limit)| {
            Body::ReadDir(pb::ReadDir { inode, after, limit, plus: true })
        }),
    ]
}

fn file_bodies() -> impl Strategy<Value = Body> {
    let written = prop::collection::vec(number32(0..4), 0..4);
    let content = prop::option::of(bytes(16_384));
    prop_oneof![
        4 => (inode(), prop::option::of(size()), prop::option::of(any::<u32>()), prop::option::of(time()), any::<bool>())
            .prop_map(|(inode, size, mode, at, flag)| {
                let set = pb::SetAttr { inode, size, mode, uid: mode, gid: mode, atime: at, mtime: at, ..Default::default() };
                Body::SetAttr(pb::SetAttr { atime_now: flag, ctime: at, clear_suid_sgid: flag, ..set })
            }),
        5 => (inode(), number32(0..4), number32(1..4))
            .prop_map(|(inode, first, count)| Body::AllocateChunks(pb::AllocateChunks { inode, first, count })),
        5 => (inode(), size(), time(), written, content, any::<bool>(), number(0..5)).prop_map(
            |(inode, end, mtime, written, content, leave_inline, if_data_version)| {
                let commit = pb::CommitWrite { inode, end, mtime, written, content, leave_inline, ..Default::default() };
                Body::CommitWrite(pb::CommitWrite { if_data_version, clear_suid_sgid: leave_inline, ..commit })
            }
        ),
        3 => (inode(), number32(0..4), number32(1..4), time())
            .prop_map(|(inode, first, count, mtime)| Body::PunchChunks(pb::PunchChunks { inode, first, count, mtime })),
        2 => (inode(), number32(0..4), number32(1..4))
            .prop_map(|(inode, first, count)| Body::GetChunks(pb::GetChunks { inode, first, count, lost: vec![9] })),
        1 => inode().prop_map(|inode| Body::GetInline(pb::GetInline { inode })),
        2 => inode().prop_map(|inode| Body::Open(pb::Open { inode, write: true })),
        2 => opens().prop_map(|opens| Body::Release(pb::Release { opens })),
        2 => (inode(), name(), bytes(65_536), number32(0..4))
            .prop_map(|(inode, name, value, flags)| Body::SetXattr(pb::SetXattr { inode, name, value, flags })),
        1 => (inode(), name()).prop_map(|(inode, name)| Body::RemoveXattr(pb::RemoveXattr { inode, name })),
        1 => (inode(), name()).prop_map(|(inode, name)| Body::GetXattr(pb::GetXattr { inode, name })),
        1 => inode().prop_map(|inode| Body::ListXattr(pb::ListXattr { inode })),
        1 => inode().prop_map(|inode| Body::GetAttr(pb::GetAttr { inode })),
        1 => inode().prop_map(|inode| Body::ReadLink(pb::ReadLink { inode })),
    ]
}

fn session_bodies() -> impl Strategy<Value = Body> {
    prop_oneof![
        2 => (opens(), any::<bool>()).prop_map(|(opens, last)| Body::SessionReclaim(pb::SessionReclaim { opens, last })),
        1 => Just(Body::SessionClose(pb::SessionClose {})),
        1 => Just(Body::Ping(pb::Ping {})),
        1 => Just(Body::StatFs(pb::StatFs {})),
        1 => any::<u64>().prop_map(|seq| Body::Sync(pb::Sync { seq })),
        1 => ("[a-d/.]{0,8}", 15..18usize).prop_map(|(subdir, length)| {
            Body::SessionOpen(pb::SessionOpen { client_id: vec![9; length].into(), subdir, ..Default::default() })
        }),
    ]
}

fn requests() -> impl Strategy<Value = pb::MetaRequest> {
    let replay = (any::<u64>(), time(), inode(), prop::collection::vec(number(0..9), 0..3))
        .prop_map(|(seq, time, inode, chunks)| pb::Replay { seq, time, inode, chunks });
    let replay = prop_oneof![6 => Just(None), 1 => replay.prop_map(Some)];
    let body = prop_oneof![10 => namespace_bodies(), 12 => file_bodies(), 1 => session_bodies()];
    let acked = prop_oneof![20 => 0..2u64, 1 => any::<u64>()];
    (prop_oneof![2 => Just(0), 1 => number(0..200)], acked, any::<u32>(), replay, body).prop_map(
        |(number, acked_below, uid, replay, body)| pb::MetaRequest {
            number,
            acked_below,
            uid,
            gid: uid,
            replay,
            body: Some(body),
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..2usize, requests()).prop_map(|(mount, request)| Step::Ask(mount, Box::new(request))),
        1 => Just(Step::Care),
    ]
}

struct Bench {
    executor: Arc<Executor>,
    sessions: [SessionId; 2],
    cuts: Vec<CutIntent>,
}

impl Bench {
    fn new() -> Self {
        let config = MasterConfig { reclaim_delay_ms: 0, sync_interval_ms: 1, ..MasterConfig::default() };
        let mut table = NodeTable::new(u64::MAX / 2, u64::MAX / 2);
        for id in 1..=3 {
            let disk = Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Disk::default() };
            table.register(NodeId(id), NodeFacts::default(), BootSession(1), vec![disk], SystemClock.mono());
        }
        let (nodes, metrics) = (Arc::new(RwLock::new(table)), Arc::new(MasterMetrics::new()));
        let executor = Executor::start(Arc::new(MemoryStore::new()), nodes, Arc::new(SystemClock), metrics, &config)
            .expect("starts");
        let mut bench = Self { executor, sessions: [SessionId(0); 2], cuts: Vec::new() };
        (0..2).for_each(|mount| bench.open(mount));
        bench.make_some();
        bench
    }

    /// Makes directories 2 and 3, files 4 to 7; 4 and 6 with chunks, 5 with content.
    fn make_some(&mut self) {
        let make = |parent, name: &'static str, kind: Kind| {
            Body::Make(pb::Make { parent, name: name.into(), kind: kind as u32, open: true, ..Default::default() })
        };
        let directory = |name: &'static str| {
            let kind = Kind::Directory as u32;
            Body::Make(pb::Make { parent: 1, name: name.into(), kind, ..Default::default() })
        };
        let mut bodies = vec![directory("a"), directory("b")];
        bodies.extend([(1, "c"), (1, "d"), (2, "a"), (3, "b")].map(|(parent, name)| make(parent, name, Kind::File)));
        for inode in [4, 6] {
            bodies.push(Body::AllocateChunks(pb::AllocateChunks { inode, first: 0, count: 3 }));
            let commit = pb::CommitWrite { inode, end: 3 << 26, written: vec![0, 1, 2], ..Default::default() };
            bodies.push(Body::CommitWrite(pb::CommitWrite { leave_inline: true, if_data_version: 1, ..commit }));
        }
        let content = Some("content".into());
        bodies.push(Body::CommitWrite(pb::CommitWrite { inode: 5, content, if_data_version: 1, ..Default::default() }));
        for body in bodies {
            self.ask(0, pb::MetaRequest { body: Some(body), ..Default::default() });
        }
        let counters = self.executor.counters();
        assert_eq!((counters.inodes, counters.chunks), (7, 6));
        self.check();
    }

    fn open(&mut self, mount: usize) {
        let open = pb::SessionOpen { client_id: vec![mount as u8; 16].into(), ..Default::default() };
        let request = pb::MetaRequest { body: Some(Body::SessionOpen(open)), ..Default::default() };
        let Ok(Asked::Call(call)) = decode::request(SessionId(0), request) else { panic!("a good request") };
        match self.executor.call(*call).result.expect("opened").body {
            Reply::Session { session, .. } => self.sessions[mount] = session,
            other => panic!("unexpected {other:?}"),
        }
    }

    fn ask(&mut self, mount: usize, request: pb::MetaRequest) {
        let Ok(Asked::Call(call)) = decode::request(self.sessions[mount], request) else { return };
        let answered = self.executor.call(*call);
        self.cuts.extend(answered.cut);
        match answered.result {
            Ok(reply) => drop(decode::reply_body(reply.body, Vec::new())),
            Err(FsError::UnknownSession) => self.open(mount),
            Err(error) => assert!(!matches!(error, FsError::Io(_)), "{error}"),
        }
    }

    fn care(&mut self) {
        self.executor.purge_orphans(3).expect("purged");
        for entry in self.executor.reclaim_due(10).expect("listed") {
            let chunks: [ChunkId; 1] = [entry.chunk];
            entry.nodes.iter().for_each(|node| self.executor.reclaim_done(*node, &chunks).expect("noted"));
        }
        for cut in std::mem::take(&mut self.cuts) {
            while let CutStep::Dropped = self.executor.cut_step(&cut).expect("goes on") {}
            self.executor.cut_done(&cut).expect("done");
        }
    }

    fn check(&self) {
        assert_eq!(self.executor.failure(), None);
        let records = self.executor.all_records().expect("read");
        invariants::check(records.iter(), &self.executor.counters());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_request_stops_the_master_or_breaks_its_records(steps in prop::collection::vec(steps(), 1..80)) {
        let mut bench = Bench::new();
        for step in steps {
            match step {
                Step::Ask(mount, request) => bench.ask(mount, *request),
                Step::Care => bench.care(),
            }
            bench.check();
        }
    }

    /// Positions of the whole range of a field, not only those that mean something.
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        use prost::Message;
        if let Ok(request) = pb::MetaRequest::decode(&bytes[..]) {
            let mut bench = Bench::new();
            bench.ask(0, request);
            bench.check();
        }
    }
}

#[test]
fn a_reply_of_the_most_names_fits_a_frame() {
    use prost::Message;
    let attr =
        || Some(pb::Attr { inode: u64::MAX, mtime: i64::MIN, size: u64::MAX, seq: u64::MAX, ..Default::default() });
    let dirent =
        || pb::Dirent { cookie: u64::MAX, name: vec![b'n'; 255].into(), inode: u64::MAX, kind: 7, attr: attr() };
    let entries = (0..dfs_proto::limits::LISTING_ENTRIES_MAX).map(|_| dirent()).collect();
    let listing = pb::Listing { entries, end: false, parent: u64::MAX };
    assert!(listing.encoded_len() < dfs_proto::limits::HEAD_BYTES_MAX as usize * 3 / 4);
    let replica = || pb::Replica { node: u32::MAX, address: "h".repeat(259), alive: true };
    // The grant names the members too, sealed: some 64 bytes more than its content.
    let grant = vec![0; 3 * replica().encoded_len() + 128];
    let location = || pb::ChunkLocation {
        index: u32::MAX,
        chunk: u64::MAX,
        version: u64::MAX,
        replicas: vec![replica(), replica(), replica()],
        grant: grant.clone().into(),
    };
    let locations = (0..dfs_proto::limits::LOCATIONS_MAX).map(|_| location()).collect();
    let chunks = pb::Chunks { locations, attr: attr() };
    assert!(chunks.encoded_len() < dfs_proto::limits::HEAD_BYTES_MAX as usize * 3 / 4);
}
