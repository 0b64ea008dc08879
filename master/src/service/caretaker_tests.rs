//! The caretaker at work on a real executor, with a store in memory and a clock that the test sets.

use std::sync::atomic::AtomicU64;

use dfs_proto::env::Clock;
use dfs_proto::grant::GrantKey;
use dfs_proto::{BootSession, ChunkIndex, ClusterId, InodeId, Kind, Name, SessionId, UnixNanos};
use parking_lot::RwLock;
use prometheus::TextEncoder;

use super::super::config::{Deadlines, EngineKind, MasterConfig};
use super::super::data_plane::DataPlane;
use super::super::executor::Executor;
use super::super::metrics::MasterMetrics;
use super::*;
use crate::core::care::NodeFacts;
use crate::core::node_table::Disk;
use crate::core::outcome::Body;
use crate::core::request::{Call, Make, Request, SessionOpen};
use crate::state::Registration;
use crate::store::memory::MemoryStore;

/// Stands still until it is set on.
#[derive(Default)]
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn mono(&self) -> MonoMs {
        MonoMs(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(1_700_000_000_000_000_000 + self.0.load(Ordering::SeqCst) as i64 * 1_000_000)
    }
}

struct Bench {
    clock: Arc<SetClock>,
    shared: Arc<Shared>,
    caretaker: Caretaker,
    session: SessionId,
    number: u64,
}

const BOOT: BootSession = BootSession(7);
const RECLAIM_DELAY_MS: u64 = 10_000;

impl Bench {
    /// A master with three chunk servers and one session.
    fn new() -> Self {
        let clock = Arc::new(SetClock::default());
        clock.0.store(1_000, Ordering::SeqCst);
        let config = MasterConfig {
            engine: EngineKind::Memory,
            reclaim_delay_ms: RECLAIM_DELAY_MS,
            sync_interval_ms: 1,
            ..MasterConfig::default()
        };
        let metrics = Arc::new(MasterMetrics::new());
        let nodes = Arc::new(RwLock::new(NodeTable::new(config.lease_ms, config.offline_ms)));
        let executor = Executor::start(
            Arc::new(MemoryStore::new()),
            Arc::clone(&nodes),
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&metrics),
            &config,
        )
        .expect("starts");
        let shared = Arc::new(Shared {
            config,
            deadlines: Deadlines::default(),
            is_serving: AtomicBool::new(true),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            cluster: ClusterId([1; 16]),
            grant_key: GrantKey::new([2; 32]),
            boot: BootSession(3),
            data: DataPlane::new(ClusterId([1; 16]), BootSession(3)),
            care: Default::default(),
            started: MonoMs(0),
            executor,
            metrics,
            nodes,
        });
        let caretaker = Caretaker::new(Arc::clone(&shared));
        let mut bench = Self { clock, shared, caretaker, session: SessionId(0), number: 0 };
        for server in 1..=3 {
            let facts = NodeFacts {
                server_id: [server; 16],
                data_address: format!("127.0.0.1:{}", 7_100 + u16::from(server)),
                ..NodeFacts::default()
            };
            let disk = Disk { capacity_bytes: 1 << 40, free_bytes: 1 << 40, ..Disk::default() };
            let registration = Registration { facts, boot: BOOT, is_suspect: false, disks: vec![disk] };
            bench.shared.executor.register(registration).expect("registers");
        }
        let open = SessionOpen { client_id: vec![9; 16].into(), ..SessionOpen::default() };
        let Body::Session { session, .. } = bench.call(Request::SessionOpen(open)) else { panic!("no session") };
        bench.session = session;
        bench
    }

    fn call(&mut self, request: Request) -> Body {
        self.number += 1;
        let call = Call {
            session: self.session,
            number: self.number,
            acked_below: self.number,
            uid: 0,
            gid: 0,
            replay: None,
            request,
        };
        self.shared.executor.call(call).result.expect("answers").body
    }

    /// Makes a file of `chunks` chunks, open.
    fn make(&mut self, name: &str, chunks: u32) -> InodeId {
        let make = Make {
            parent: InodeId::ROOT,
            name: Name::new(name.as_bytes().to_vec()).expect("a name"),
            kind: Kind::File,
            mode: 0o644,
            rdev: 0,
            target: Default::default(),
            open: true,
            exclusive: true,
        };
        let Body::Opened { inode, .. } = self.call(Request::Make(make)) else { panic!("not opened") };
        for first in (0..chunks).step_by(100) {
            let count = (chunks - first).min(100);
            self.call(Request::AllocateChunks { inode: inode.id, first: ChunkIndex(first), count });
        }
        inode.id
    }

    fn unlink(&mut self, name: &str) {
        let name = Name::new(name.as_bytes().to_vec()).expect("a name");
        self.call(Request::Unlink { parent: InodeId::ROOT, name });
    }

    fn advance(&mut self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// A pulse of each of `nodes`, that reports `deleted`; returns what it is told to delete.
    fn pulse(&self, node: u32, deleted: &[ChunkId]) -> Vec<ChunkId> {
        let mut table = self.shared.nodes.write();
        table.pulse(NodeId(node), BOOT, deleted, Seq(0), self.clock.mono()).expect("known").delete
    }

    #[track_caller]
    fn check_page(&self, lines: &[&str]) {
        let page = TextEncoder::new().encode_to_string(&self.shared.metrics.registry().gather()).expect("a page");
        for line in lines {
            assert!(page.lines().any(|found| found == *line), "{line} is not in\n{page}");
        }
    }
}

#[test]
fn replicas_of_an_unlinked_file_go_when_it_is_closed_and_the_delay_is_over() {
    let mut bench = Bench::new();
    let file = bench.make("file", 2);
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_inodes 2", "dfs_master_chunks 2", "dfs_master_sessions 1"]);

    bench.unlink("file");
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_orphans 1", "dfs_master_chunks 2", "dfs_master_reclaim_pending 0"]);

    bench.call(Request::Release { opens: vec![(file, 1)] });
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_orphans 0", "dfs_master_chunks 0", "dfs_master_reclaim_pending 6"]);
    assert_eq!(bench.pulse(1, &[]), [], "the delay is not over");

    bench.advance(RECLAIM_DELAY_MS + 1);
    (1..=3).for_each(|node| assert_eq!(bench.pulse(node, &[]), []));
    bench.caretaker.tick();
    let told = bench.pulse(1, &[]);
    assert_eq!(told.len(), 2);
    for node in 1..=2 {
        assert_eq!(bench.pulse(node, &[]), told, "told until it is done");
        assert_eq!(bench.pulse(node, &told), []);
    }
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_reclaim_pending 2"]);
    assert_eq!(bench.pulse(1, &[]), [], "it is not told again");
    assert_eq!(bench.pulse(3, &told), []);
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_reclaim_pending 0"]);
    assert_eq!(bench.shared.executor.recount().unwrap(), bench.shared.executor.counters());
}

#[test]
fn a_large_orphan_is_purged_over_several_ticks() {
    let mut bench = Bench::new();
    let chunks = (PURGE_CHUNKS * PURGE_STEPS + 100) as u32;
    let file = bench.make("large", chunks);
    bench.unlink("large");
    bench.call(Request::Release { opens: vec![(file, 1)] });
    bench.caretaker.tick();
    let left = bench.shared.executor.counters().chunks;
    assert!(left > 0 && left < u64::from(chunks), "{left} chunks left");
    bench.caretaker.tick();
    let counters = bench.shared.executor.counters();
    assert_eq!((counters.chunks, counters.orphans, counters.inodes), (0, 0, 1));
    assert_eq!(counters.reclaim_pending, u64::from(chunks) * 3);
}

#[test]
fn chunks_of_a_node_that_went_are_counted_as_under_replicated() {
    let mut bench = Bench::new();
    bench.make("file", 3);
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_under_replicated_chunks 0", "dfs_master_nodes{state=\"online\"} 3"]);
    assert_eq!(bench.shared.nodes.read().node(NodeId(2)).unwrap().recorded_replicas(), 3);

    bench.advance(5_000);
    (1..=2).for_each(|node| assert_eq!(bench.pulse(node, &[]), []));
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_under_replicated_chunks 3", "dfs_master_nodes{state=\"lease_expired\"} 1"]);

    bench.pulse(3, &[]);
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_under_replicated_chunks 0"]);
}

#[test]
fn a_session_that_fell_silent_is_ended_and_what_it_held_open_goes() {
    let mut bench = Bench::new();
    bench.make("file", 1);
    bench.unlink("file");
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_sessions 1", "dfs_master_orphans 1"]);
    for _ in 0..61 {
        bench.advance(1_000);
        bench.caretaker.tick();
    }
    bench.caretaker.tick();
    bench.check_page(&["dfs_master_sessions 0", "dfs_master_orphans 0", "dfs_master_inodes 1"]);
}
