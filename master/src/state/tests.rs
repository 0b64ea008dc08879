//! The state of a master on a store that loses its power, with a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::env::Clock;
use dfs_proto::replica_set::Home;
use dfs_proto::{BootSession, ChunkIndex, FsError, InodeId, Kind, MonoMs, Name, NodeId, SessionId, UnixNanos, Version};
use parking_lot::RwLock;

use super::*;
use crate::core::care::NodeFacts;
use crate::core::node_table::{Disk, NodeTable};
use crate::core::outcome::Body;
use crate::core::request::{Call, Make, Request, SessionOpen};
use crate::store::memory::MemoryStore;

const LEASE_MS: u64 = 5_000;
/// After this a lease is certainly over.
const OVER_MS: u64 = LEASE_MS + 150;

#[derive(Default)]
struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn mono(&self) -> MonoMs {
        MonoMs(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(self.mono().0 as i64 * 1_000_000)
    }
}

struct Bench {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    state: MasterState,
    session: SessionId,
}

impl Bench {
    /// A master with three chunk servers, each in run 1, and a session.
    fn new() -> Self {
        let (store, clock) = (MemoryStore::new(), Arc::new(ManualClock::default()));
        let state = load(&store, &clock);
        let mut bench = Self { store, clock, state, session: SessionId(0) };
        (1..=3).for_each(|server| {
            bench.register(server, 1);
        });
        let open = Request::SessionOpen(SessionOpen { client_id: vec![7; 16].into(), ..SessionOpen::default() });
        let Body::Session { session, .. } = bench.ask(open) else { panic!("no session") };
        bench.session = session;
        bench
    }

    fn register(&mut self, server: u8, boot: u64) -> Registered {
        let facts = NodeFacts { server_id: [server; 16], host: format!("host{server}"), ..NodeFacts::default() };
        let disk = Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Disk::default() };
        let registration = Registration { facts, boot: BootSession(boot), is_suspect: false, disks: vec![disk] };
        let registered = self.state.register(&registration).expect("registers");
        self.state.sync().expect("syncs");
        self.state.enter(registration, &registered).expect("enters");
        registered
    }

    fn pulse(&self, node: u32, boot: u64) -> Option<PulseReply> {
        let pulse = Pulse { node: NodeId(node), boot: BootSession(boot), ..Pulse::default() };
        self.state.pulse(pulse, self.clock.mono())
    }

    fn call(&mut self, request: Request) -> Answer {
        let answer = self.state.perform(&Call::unnumbered(self.session, request));
        self.state.commit().expect("commits");
        answer
    }

    fn ask(&mut self, request: Request) -> Body {
        self.call(request).result.expect("done").body
    }

    fn advance(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    fn power_cut(&mut self) {
        self.store.crash();
        self.state = load(&self.store, &self.clock);
    }

    fn file(&mut self, open: bool) -> InodeId {
        let make = Request::Make(Make {
            parent: InodeId::ROOT,
            name: Name::new("f".to_owned()).expect("a name"),
            kind: Kind::File,
            mode: 0o644,
            rdev: 0,
            target: Bytes::new(),
            open,
            exclusive: true,
        });
        match self.ask(make) {
            Body::Entry { inode, .. } | Body::Opened { inode, .. } => inode.id,
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn load(store: &MemoryStore, clock: &Arc<ManualClock>) -> MasterState {
    let settings = Settings { reclaim_delay_ms: 10_000, session_ms: 60_000, reclaim_window_ms: 0, seed: 1 };
    let nodes = Arc::new(RwLock::new(NodeTable::new(LEASE_MS, 90_000)));
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    MasterState::load(Arc::new(store.clone()), nodes, clock, Arc::new(()), settings).expect("loads")
}

#[test]
fn what_a_lost_session_held_open_stays_until_no_server_takes_its_requests() {
    let mut bench = Bench::new();
    let inode = bench.file(true);
    bench.ask(Request::Unlink { parent: InodeId::ROOT, name: Name::new("f".to_owned()).expect("a name") });
    let lost = bench.session;
    let keep_going = |bench: &mut Bench| {
        let ended = bench.state.expire_sessions().expect("looks");
        bench.state.purge_orphans(100).expect("purges");
        (ended, bench.state.counters.orphans)
    };
    for second in 0..=60 {
        assert_eq!(keep_going(&mut bench), (0, 1), "second {second}");
        bench.advance(1_000);
        (1..=3).for_each(|node| assert!(bench.pulse(node, 1).is_some()));
    }
    assert_eq!(keep_going(&mut bench), (1, 1), "its mount may still read and write");
    assert!(matches!(bench.call(Request::GetAttr { inode }).result, Err(FsError::UnknownSession)));
    let told = bench.pulse(1, 1).expect("known");
    assert_eq!(told.fenced, [lost]);
    assert_eq!(keep_going(&mut bench), (0, 1));
    for node in 1..=2 {
        let pulse = Pulse { node: NodeId(node), boot: BootSession(1), fence_seq: told.fence_seq, ..Pulse::default() };
        assert!(bench.state.pulse(pulse, bench.clock.mono()).is_some());
    }
    assert!(!bench.state.is_fence_complete(lost), "node 3 may not know");
    assert_eq!(keep_going(&mut bench), (0, 1));
    bench.advance(OVER_MS);
    assert!(bench.state.is_fence_complete(lost), "it holds no lease any more");
    assert_eq!(keep_going(&mut bench), (0, 0));

    bench.power_cut();
    bench.register(1, 1);
    assert_eq!(bench.pulse(1, 1).expect("known").fenced, [lost], "a restarted master still tells");
}

#[test]
fn a_takeover_that_a_power_cut_takes_back_was_granted_to_nobody() {
    let mut bench = Bench::new();
    let inode = bench.file(false);
    let chunks = Request::AllocateChunks { inode, first: ChunkIndex(0), count: 1 };
    let answer = bench.call(chunks);
    let located = bench.state.locations(&answer).pop().flatten().expect("a chunk");
    let (lost, first) = (located.grant.primary, located.grant.version);
    bench.state.sync().expect("syncs");
    bench.advance(OVER_MS);
    (1..=3).filter(|node| NodeId(*node) != lost).for_each(|node| assert!(bench.pulse(node, 1).is_some()));

    let answer = bench.call(Request::GetChunks { inode, first: ChunkIndex(0), count: 1 });
    let moved = bench.state.locations(&answer).pop().flatten().expect("a chunk");
    assert!(moved.grant.primary != lost && moved.replicas[0].is_alive);
    assert_eq!(moved.grant.version, Version(first.0 + 1));
    assert!(answer.durable_first > bench.state.durability().durable(), "the mount is not told yet");
    assert!(bench.pulse(lost.0, 1).is_none(), "its run has ended");

    bench.power_cut();
    let answer = bench.call(Request::GetChunks { inode, first: ChunkIndex(0), count: 1 });
    let again = bench.state.locations(&answer).pop().flatten().expect("a chunk");
    assert_eq!((again.grant.primary, again.grant.version), (lost, first), "a lease of the earlier master may run");
    assert!(!again.replicas[0].is_alive);
    assert_eq!(bench.register(lost.0 as u8, 1).boot, BootSession(1), "so its run goes on");
}

#[test]
fn a_mount_whose_session_was_opened_by_an_earlier_master_and_never_answered_has_nothing_to_bring_back() {
    let mut bench = Bench::new();
    bench.state.sync().expect("syncs");
    bench.power_cut();
    assert!(matches!(bench.call(Request::Sync).result, Err(FsError::TryAgain(_))), "it may have something to repeat");
    let open = Request::SessionOpen(SessionOpen { client_id: vec![7; 16].into(), ..SessionOpen::default() });
    let Body::Session { session, .. } = bench.ask(open) else { panic!("no session") };
    assert_eq!(session, bench.session);
    bench.ask(Request::Sync);
}

#[test]
fn a_suspect_is_one_from_the_moment_that_its_registration_is_in_the_log() {
    let mut bench = Bench::new();
    let inode = bench.file(false);
    bench.ask(Request::AllocateChunks { inode, first: ChunkIndex(0), count: 1 });
    let home = Home { inode, index: ChunkIndex(0) };
    let set = bench.state.make_usable(home).expect("read").expect("a chunk");
    let suspect = set.in_sync[0];
    let facts = NodeFacts { server_id: [suspect.0 as u8; 16], ..NodeFacts::default() };
    let registration = Registration { facts, boot: BootSession(2), is_suspect: true, disks: Vec::new() };
    bench.state.register(&registration).expect("registers");
    // Not durable, and not entered yet: whatever changes the set now comes later in the log.
    assert!(bench.state.control().nodes.read().standing(suspect, bench.clock.mono()).suspect_seq > set.set_seq);
}

#[test]
fn a_registration_that_was_overtaken_is_not_entered() {
    let mut bench = Bench::new();
    let old = Registration { facts: NodeFacts { server_id: [1; 16], ..NodeFacts::default() }, ..Default::default() };
    let old = Registration { boot: BootSession(8), ..old };
    let registered = bench.state.register(&old).expect("registers");
    assert_eq!(bench.register(1, 9).boot, BootSession(9));
    assert!(matches!(bench.state.enter(old, &registered), Err(FsError::Stale(_))));
    assert!(bench.pulse(1, 9).is_some() && bench.pulse(1, 8).is_none() && bench.pulse(1, 1).is_none());
}
