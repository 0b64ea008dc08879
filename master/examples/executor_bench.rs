//! Measures the executor without a network: requests a second, and how long a restart takes. Then a whole master over
//! loopback, as mounts use it.
//!
//! `cargo run --release -p dfs-master --example executor_bench -- [INODES] [THREADS]`

#![allow(clippy::disallowed_methods, reason = "a program that measures")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_master::core::care::NodeFacts;
use dfs_master::core::node_table::{Disk, NodeTable};
use dfs_master::core::outcome::Body;
use dfs_master::core::request::{Call, CommitWrite, Make, Request, SessionOpen};
use dfs_master::service::executor::Executor;
use dfs_master::service::metrics::MasterMetrics;
use dfs_master::store::{self, MetaStore};
use dfs_master::{EngineKind, Master, MasterConfig};
use dfs_proto::env::{Clock, SystemClock};
use dfs_proto::{BootSession, ChunkIndex, InodeId, Kind, Name, NodeId, SessionId};
use parking_lot::RwLock;

const NAMES_A_DIRECTORY: u64 = 1_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (inodes, threads) = (number(100_000), number(4));
    println!("{inodes} inodes, {threads} threads");
    for engine in [EngineKind::Memory, EngineKind::Embedded] {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || store::open(engine, directory.path()).expect("opens");
        println!("{engine:?}");
        let executor = start(open());
        let session = open_session(&executor);
        let (first, took) = timed(|| fill(&executor, session, inodes));
        report("create", inodes, took);
        let (_, took) = timed(|| {
            for at in 0..inodes {
                let name = name(at);
                let parent = InodeId(first + at / NAMES_A_DIRECTORY);
                ask(&executor, session, 0, Request::Lookup { parent, name });
            }
        });
        report("lookup", inodes, took);
        let (_, took) = timed(|| lookups_at_once(&executor, session, first, inodes, threads));
        report(&format!("lookup by {threads} threads"), inodes * threads, took);
        let (_, took) = timed(|| write(&executor, session, inodes.min(20_000)));
        report("create and write 4 KiB inline", 2 * inodes.min(20_000), took);
        let files = inodes.min(2_000);
        let (empty, took) = timed(|| empty_files(&executor, session, files));
        report("create empty", files, took);
        let (_, took) = timed(|| allocate(&executor, session, empty, files));
        report("allocate a chunk, durable", files, took);
        let (_, took) = timed(|| creates_at_once(&executor, inodes, threads));
        report(&format!("create by {threads} threads"), inodes / threads * threads, took);
        executor.stop();
        drop(executor);
        if engine == EngineKind::Embedded {
            let (executor, took) = timed(|| start(open()));
            println!("  restart with {} inodes: {took:.3?}", executor.counters().inodes);
            let session = open_session(&executor);
            let (_, took) = timed(|| {
                for at in 0..inodes {
                    let parent = InodeId(first + at / NAMES_A_DIRECTORY);
                    ask(&executor, session, 0, Request::Lookup { parent, name: name(at) });
                }
            });
            report("lookup after the restart", inodes, took);
        }
    }
    for threads in [1, threads] {
        over_loopback(inodes.min(40_000), threads);
    }
}

/// Creates and lookups over `threads` connections to a whole master.
fn over_loopback(files: u64, threads: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let config =
        MasterConfig { data: directory.path().to_owned(), listen: "127.0.0.1:0".into(), ..MasterConfig::default() };
    let master = Master::start(config).expect("starts");
    let address = master.addresses().hot.to_string();
    for (what, is_create) in [("create", true), ("lookup", false)] {
        let (_, took) = timed(|| {
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let address = &address;
                    scope.spawn(move || ask_over_loopback(address, thread, files / threads, is_create));
                }
            });
        });
        report(&format!("{what} over {threads} connections"), files / threads * threads, took);
    }
    master.stop();
}

fn ask_over_loopback(address: &str, thread: u64, files: u64, is_create: bool) {
    use dfs_proto::wire::pb::{self, meta_request::Body};
    use dfs_proto::wire::{FrameKind, Identity, connect, offer_hello};
    let mut connection = connect(address, Duration::from_secs(5)).expect("connects");
    let own =
        Identity { cluster: None, role: pb::Role::Mount, node: NodeId(0), boot: BootSession(1), session: SessionId(0) };
    offer_hello(&mut connection, &own, pb::Role::Master, Instant::now() + Duration::from_secs(5)).expect("welcome");
    let client_id = dfs_proto::env::random_bytes::<16>().to_vec().into();
    let mut bodies = vec![Body::SessionOpen(pb::SessionOpen { client_id, ..Default::default() })];
    bodies.extend((0..files).map(|at| {
        let name = format!("{thread}-{at}").into();
        match is_create {
            true => Body::Make(pb::Make { parent: 1, name, kind: Kind::File as u32, ..Default::default() }),
            false => Body::Lookup(pb::Lookup { parent: 1, name }),
        }
    }));
    for (number, body) in (1..).zip(bodies) {
        let acked_below = u64::saturating_sub(number, 200);
        let number = if is_create { number } else { 0 };
        let request = pb::MetaRequest { number, acked_below, body: Some(body), ..Default::default() };
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let (reply, _): (pb::MetaReply, _) =
            connection.call(FrameKind::MetaRequest, FrameKind::MetaReply, &request, &[], deadline).expect("answered");
        assert!(reply.failure.is_none(), "{reply:?}");
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

fn report(what: &str, count: u64, took: Duration) {
    let each = took / u32::try_from(count).unwrap_or(u32::MAX);
    println!("  {what}: {:.0}/s, {each:.2?} each", count as f64 / took.as_secs_f64());
}

fn start(store: Arc<dyn MetaStore>) -> Arc<Executor> {
    let config = MasterConfig { reclaim_window_ms: 0, ..MasterConfig::default() };
    let mut table = NodeTable::new(u64::MAX / 2, config.offline_ms);
    for id in 1..=3 {
        let disk = Disk { capacity_bytes: 1 << 50, free_bytes: 1 << 50, ..Disk::default() };
        table.register(NodeId(id), NodeFacts::default(), BootSession(1), vec![disk], SystemClock.mono());
    }
    let nodes = Arc::new(RwLock::new(table));
    Executor::start(store, nodes, Arc::new(SystemClock), Arc::new(MasterMetrics::new()), &config).expect("starts")
}

fn open_session(executor: &Executor) -> SessionId {
    let client_id = dfs_proto::env::random_bytes::<16>().to_vec().into();
    let open = Request::SessionOpen(SessionOpen { client_id, ..SessionOpen::default() });
    match ask(executor, SessionId(0), 0, open) {
        Body::Session { session, .. } => session,
        other => panic!("unexpected {other:?}"),
    }
}

fn ask(executor: &Executor, session: SessionId, number: u64, request: Request) -> Body {
    // A mount acknowledges what is durable: some hundred numbers behind.
    let acked_below = number.saturating_sub(200);
    let call = Call { session, number, acked_below, uid: 1, gid: 1, replay: None, request };
    executor.call(call).result.expect("done").body
}

fn name(at: u64) -> Name {
    Name::new(format!("file-{at:08}").into_bytes()).expect("a name")
}

fn make(parent: InodeId, name: Name, kind: Kind) -> Request {
    let target = bytes::Bytes::new();
    Request::Make(Make { parent, name, kind, mode: 0o755, rdev: 0, target, open: false, exclusive: true })
}

fn made(body: &Body) -> u64 {
    match body {
        Body::Entry { inode, .. } => inode.id.0,
        other => panic!("unexpected {other:?}"),
    }
}

/// Makes the directories, then the files; returns the inode of the first directory.
fn fill(executor: &Executor, session: SessionId, inodes: u64) -> u64 {
    let mut first = 0;
    for at in 0..inodes.div_ceil(NAMES_A_DIRECTORY) {
        let directory = ask(executor, session, at + 1, make(InodeId::ROOT, name(at), Kind::Directory));
        if at == 0 {
            first = made(&directory);
        }
    }
    for at in 0..inodes {
        let parent = InodeId(first + at / NAMES_A_DIRECTORY);
        ask(executor, session, inodes + at, make(parent, name(at), Kind::File));
    }
    first
}

fn lookups_at_once(executor: &Executor, session: SessionId, first: u64, inodes: u64, threads: u64) {
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for at in 0..inodes {
                    let parent = InodeId(first + at / NAMES_A_DIRECTORY);
                    ask(executor, session, 0, Request::Lookup { parent, name: name(at) });
                }
            });
        }
    });
}

fn creates_at_once(executor: &Executor, inodes: u64, threads: u64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let session = open_session(executor);
                let directory = Name::new(format!("thread-{thread}").into_bytes()).expect("a name");
                let parent = InodeId(made(&ask(executor, session, 1, make(InodeId::ROOT, directory, Kind::Directory))));
                for at in 0..inodes / threads {
                    ask(executor, session, at + 2, make(parent, name(at), Kind::File));
                }
            });
        }
    });
}

/// Makes files, and returns the inode of the first.
fn empty_files(executor: &Executor, session: SessionId, files: u64) -> u64 {
    let numbers = 1 << 50;
    let directory = Name::new(&b"empty"[..]).expect("a name");
    let parent = InodeId(made(&ask(executor, session, numbers, make(InodeId::ROOT, directory, Kind::Directory))));
    for at in 0..files {
        ask(executor, session, numbers + at + 1, make(parent, name(at), Kind::File));
    }
    parent.0 + 1
}

fn allocate(executor: &Executor, session: SessionId, first: u64, files: u64) {
    for at in 0..files {
        let inode = InodeId(first + at);
        ask(executor, session, (1 << 51) + at, Request::AllocateChunks { inode, first: ChunkIndex(0), count: 1 });
    }
}

fn write(executor: &Executor, session: SessionId, files: u64) {
    let directory = Name::new(&b"written"[..]).expect("a name");
    let numbers = 1 << 40;
    let parent = InodeId(made(&ask(executor, session, numbers, make(InodeId::ROOT, directory, Kind::Directory))));
    let content = bytes::Bytes::from(vec![7; 4096]);
    for at in 0..files {
        let body = ask(executor, session, numbers + 2 * at + 1, make(parent, name(at), Kind::File));
        let commit = CommitWrite {
            inode: InodeId(made(&body)),
            content: Some(content.clone()),
            if_data_version: 1,
            ..CommitWrite::default()
        };
        ask(executor, session, numbers + 2 * at + 2, Request::CommitWrite(commit));
    }
}
