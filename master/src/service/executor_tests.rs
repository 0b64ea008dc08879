//! The executor above a memory engine that can lose its power, and above the embedded one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_proto::{InodeId, Kind, MonoMs, Name, SessionId, UnixNanos};

use super::*;
use crate::core::key::Key;
use crate::core::op::CUT_PENDING;
use crate::core::outcome::Body;
use crate::core::record::Record;
use crate::core::request::{CommitWrite, Make, Replay, Request, SessionOpen};
use crate::service::config::EngineKind;
use crate::store::memory::{Fault, MemoryStore};

#[path = "executor_model_tests.rs"]
mod model;

/// A clock that a test moves.
#[derive(Default)]
struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn mono(&self) -> MonoMs {
        MonoMs(self.0.load(Ordering::SeqCst) / 1_000_000)
    }

    fn wall(&self) -> UnixNanos {
        // Each look is a nanosecond later, so that no two changes have one time.
        UnixNanos(self.0.fetch_add(1, Ordering::SeqCst) as i64)
    }
}

struct Bench {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    executor: Arc<Executor>,
}

/// As good as never: only who waits makes the log durable.
const NEVER_MS: u64 = 1_000_000;

impl Bench {
    fn new() -> Self {
        let (store, clock) = (MemoryStore::new(), Arc::new(ManualClock::default()));
        let executor = start(Arc::new(store.clone()), &clock, NEVER_MS);
        Self { store, clock, executor }
    }

    /// Starts anew on what the store has, without a sync first: as after kill -9.
    fn restart(&mut self) {
        self.executor = start(Arc::new(self.store.clone()), &self.clock, NEVER_MS);
    }

    /// Cuts the power: `batches` of the unsynced ones have reached the disk.
    fn power_cut(&mut self, batches: usize) {
        self.store.crash_keeping(batches);
        self.restart();
    }

    fn session(&self, client: u8) -> SessionId {
        open_session(&self.executor, client)
    }

    fn advance(&self, ms: u64) {
        self.clock.0.fetch_add(ms * 1_000_000, Ordering::SeqCst);
    }

    /// Brings a session back after a restart, with what it holds open.
    fn come_back(&self, session: SessionId, opens: &[(InodeId, u64)]) {
        for is_last in [false, true] {
            let opens = opens.to_vec();
            ask(&self.executor, session, Request::SessionReclaim { opens, is_last }).result.expect("reclaimed");
        }
    }
}

fn start(store: Arc<dyn MetaStore>, clock: &Arc<ManualClock>, sync_interval_ms: u64) -> Arc<Executor> {
    let config = MasterConfig { sync_interval_ms, ..MasterConfig::default() };
    let nodes = Arc::new(RwLock::new(NodeTable::new(config.lease_ms, config.offline_ms)));
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Executor::start(store, nodes, clock, Arc::new(MasterMetrics::new()), &config).expect("starts")
}

fn open_session(executor: &Executor, client: u8) -> SessionId {
    let request = SessionOpen { client_id: vec![client; 16].into(), ..SessionOpen::default() };
    match ask(executor, SessionId(0), Request::SessionOpen(request)).result.expect("opened").body {
        Body::Session { session, .. } => session,
        other => panic!("unexpected {other:?}"),
    }
}

fn numbered(session: SessionId, number: u64, request: Request) -> Call {
    Call { session, number, acked_below: 0, uid: 1, gid: 2, replay: None, request }
}

fn ask(executor: &Executor, session: SessionId, request: Request) -> Answered {
    executor.call(numbered(session, 0, request))
}

fn name(text: &str) -> Name {
    Name::new(text.to_owned()).unwrap()
}

fn create(text: &str, open: bool) -> Request {
    Request::Make(Make {
        parent: InodeId::ROOT,
        name: name(text),
        kind: Kind::File,
        mode: 0o644,
        rdev: 0,
        target: Bytes::new(),
        open,
        exclusive: true,
    })
}

fn unlink(text: &str) -> Request {
    Request::Unlink { parent: InodeId::ROOT, name: name(text) }
}

fn lookup(text: &str) -> Request {
    Request::Lookup { parent: InodeId::ROOT, name: name(text) }
}

fn inode_of(answered: &Answered) -> InodeId {
    match &answered.result.as_ref().expect("a reply").body {
        Body::Entry { inode, .. } | Body::Opened { inode, .. } => inode.id,
        other => panic!("unexpected {other:?}"),
    }
}

fn replay_of(call: &Call, answered: &Answered) -> Call {
    let reply = answered.result.as_ref().expect("a reply");
    let inode = match &reply.body {
        Body::Entry { inode, .. } | Body::Opened { inode, .. } => inode.id,
        _ => InodeId(0),
    };
    Call { replay: Some(Replay { time: reply.time, inode }), ..call.clone() }
}

#[test]
fn a_retry_is_answered_and_not_applied_again() {
    let bench = Bench::new();
    let session = bench.session(1);
    let call = numbered(session, 5, create("a", false));
    let (first, second) = (bench.executor.call(call.clone()), bench.executor.call(call.clone()));
    assert_eq!(first.result, second.result);
    let other = bench.executor.call(Call { number: 6, ..call });
    assert_eq!(other.result, Err(FsError::Exists), "another number is another call");
}

#[test]
fn a_retry_after_kill_9_is_answered_from_the_store() {
    let mut bench = Bench::new();
    let session = bench.session(1);
    let call = numbered(session, 5, create("a", true));
    let first = bench.executor.call(call.clone());
    let gone = numbered(session, 6, unlink("a"));
    bench.executor.call(gone.clone()).result.expect("unlinked");
    bench.restart();
    let opens = [(inode_of(&first), 1)];
    bench.come_back(session, &opens);
    assert_eq!(bench.executor.call(call).result, first.result);
    assert!(bench.executor.call(gone).result.is_ok(), "a second unlink would find nothing");
    assert_eq!(ask(&bench.executor, session, lookup("a")).result, Err(FsError::NoEntry));
    assert_eq!(bench.executor.recount().unwrap(), bench.executor.counters());
}

#[test]
fn an_open_whose_reply_was_lost_with_the_master_is_counted_when_it_is_asked_for_again() {
    let mut bench = Bench::new();
    let session = bench.session(1);
    let call = numbered(session, 5, create("a", true));
    let inode = inode_of(&bench.executor.call(call.clone()));
    bench.restart();
    bench.come_back(session, &[]);
    for _ in 0..2 {
        bench.executor.call(call.clone()).result.expect("answered");
    }
    bench.executor.call(numbered(session, 6, unlink("a"))).result.expect("unlinked");
    assert!(ask(&bench.executor, session, Request::GetAttr { inode }).result.is_ok(), "it is open");
    ask(&bench.executor, session, Request::Release { opens: vec![(inode, 1)] }).result.expect("released");
    let after = ask(&bench.executor, session, Request::GetAttr { inode }).result;
    assert_eq!(after, Err(FsError::NoEntry), "once");
}

#[test]
fn what_a_power_cut_took_is_replayed_with_the_same_ids_and_times() {
    let mut bench = Bench::new();
    let session = bench.session(1);
    let call = numbered(session, 5, create("a", false));
    let first = bench.executor.call(call.clone());
    assert!(first.result.as_ref().unwrap().seq > first.durable, "not durable yet");
    bench.power_cut(0);
    let back = ask(&bench.executor, session, Request::SessionReclaim { opens: vec![], is_last: false });
    assert!(back.durable < first.result.as_ref().unwrap().seq, "the mount must not think that it is durable");
    let replay = replay_of(&call, &first);
    for _ in 0..2 {
        let replayed = bench.executor.call(replay.clone());
        let (old, new) = (first.result.clone().unwrap(), replayed.result.unwrap());
        assert_eq!((new.time, new.seq > old.seq), (old.time, true));
        match (new.body, old.body) {
            (Body::Entry { inode: new, .. }, Body::Entry { inode: old, .. }) => {
                assert_eq!((new.id, new.ctime, new.uid), (old.id, old.ctime, old.uid));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    ask(&bench.executor, session, Request::SessionReclaim { opens: vec![], is_last: true }).result.unwrap();
    assert_eq!(inode_of(&ask(&bench.executor, session, lookup("a"))), inode_of(&first));
}

#[test]
fn no_id_is_used_twice_whatever_a_power_cut_takes() {
    let mut bench = Bench::new();
    let mut used = std::collections::BTreeSet::new();
    for round in 0..4u8 {
        let session = bench.session(round);
        for number in 1..=3 {
            let made = bench.executor.call(numbered(session, number, create(&format!("{round}.{number}"), false)));
            assert!(used.insert(inode_of(&made)), "inode {} twice", inode_of(&made));
        }
        bench.store.crash();
        bench.restart();
        // Nobody comes back.
        bench.advance(3_000);
    }
}

#[test]
fn more_ids_than_one_range_are_reserved_on_the_way() {
    let bench = Bench::new();
    let session = bench.session(1);
    let mut last = InodeId(0);
    for number in 1..=3 * crate::core::ids::RANGE {
        let call = Call { acked_below: number, ..numbered(session, number, create(&number.to_string(), false)) };
        let inode = inode_of(&bench.executor.call(call));
        assert!(inode > last);
        last = inode;
    }
    assert_eq!(bench.executor.recount().unwrap(), bench.executor.counters());
    let kept = bench.executor.all_records().unwrap();
    let replies = kept.iter().filter(|(key, _)| matches!(key, Key::Reply(..))).count();
    assert_eq!(replies, 1, "acknowledged replies are forgotten");
}

#[test]
fn the_author_sees_a_change_at_once_and_others_once_it_is_durable() {
    let bench = Bench::new();
    let (author, other) = (bench.session(1), bench.session(2));
    let made = bench.executor.call(numbered(author, 1, create("a", false)));
    let seq = made.result.as_ref().unwrap().seq;
    ask(&bench.executor, author, lookup("a")).result.expect("seen");
    assert!(bench.executor.seqs().1 < seq, "nobody waited");
    ask(&bench.executor, other, lookup("unrelated")).result.expect_err("not there");
    assert!(bench.executor.seqs().1 < seq, "it does not show the change");
    ask(&bench.executor, other, lookup("a")).result.expect("seen");
    assert!(bench.executor.seqs().1 >= seq);
}

#[test]
fn others_wait_for_a_removal_and_a_refusal_too() {
    let bench = Bench::new();
    let (author, other) = (bench.session(1), bench.session(2));
    let made = bench.executor.call(numbered(author, 1, create("a", false))).result.unwrap();
    assert_eq!(bench.executor.call(numbered(other, 1, create("a", false))).result, Err(FsError::Exists));
    assert!(bench.executor.seqs().1 >= made.seq, "that it exists was shown");
    let gone = bench.executor.call(numbered(author, 2, unlink("a"))).result.unwrap();
    assert!(bench.executor.seqs().1 < gone.seq);
    assert_eq!(ask(&bench.executor, other, lookup("a")).result, Err(FsError::NoEntry));
    assert!(bench.executor.seqs().1 >= gone.seq, "that it is gone was shown");
    let list = Request::ReadDir { inode: InodeId::ROOT, after: 0, limit: 10, plus: false };
    let made = bench.executor.call(numbered(author, 3, create("b", false))).result.unwrap();
    ask(&bench.executor, other, list).result.expect("listed");
    assert!(bench.executor.seqs().1 >= made.seq);
}

#[test]
fn two_sessions_that_make_files_in_one_directory_do_not_wait_for_each_other() {
    let bench = Bench::new();
    let (one, two) = (bench.session(1), bench.session(2));
    let before = bench.executor.seqs().1;
    for number in 1..10 {
        bench.executor.call(numbered(one, number, create(&format!("one{number}"), false))).result.unwrap();
        bench.executor.call(numbered(two, number, create(&format!("two{number}"), false))).result.unwrap();
    }
    assert_eq!(bench.executor.seqs().1, before);
}

#[test]
fn a_sync_waits_and_the_interval_makes_durable_what_nobody_waits_for() {
    let bench = Bench::new();
    let session = bench.session(1);
    let made = bench.executor.call(numbered(session, 1, create("a", false))).result.unwrap();
    assert!(bench.store.unsynced() > 0);
    bench.executor.wait_durable(made.seq).unwrap();
    assert_eq!(bench.store.unsynced(), 0);

    let clock = Arc::new(ManualClock::default());
    let executor = start(Arc::new(MemoryStore::new()), &clock, 5);
    let session = open_session(&executor, 1);
    let made = executor.call(numbered(session, 1, create("a", false))).result.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while executor.seqs().1 < made.seq {
        assert!(Instant::now() < deadline, "the interval passes without a sync");
        std::thread::yield_now();
    }
}

#[test]
fn callers_at_once_share_batches_and_each_gets_its_own_answer() {
    let bench = Bench::new();
    let sessions: Vec<SessionId> = (0..4).map(|client| bench.session(client)).collect();
    std::thread::scope(|scope| {
        for session in &sessions {
            let executor = &bench.executor;
            scope.spawn(move || {
                for number in 1..=300 {
                    let text = format!("{session}.{number}");
                    let made = executor.call(numbered(*session, number, create(&text, false)));
                    let found = ask(executor, *session, lookup(&text));
                    assert_eq!(inode_of(&made), inode_of(&found));
                }
            });
        }
    });
    assert_eq!(bench.executor.counters().inodes, 1 + 4 * 300);
    assert_eq!(bench.executor.recount().unwrap(), bench.executor.counters());
}

#[test]
fn a_restarted_master_waits_for_its_sessions_but_not_for_ever() {
    let mut bench = Bench::new();
    let (one, two) = (bench.session(1), bench.session(2));
    let refused =
        |bench: &Bench, session| matches!(ask(&bench.executor, session, lookup("a")).result, Err(FsError::TryAgain(_)));
    bench.restart();
    assert!(refused(&bench, one));
    bench.come_back(one, &[]);
    assert!(refused(&bench, one), "the other one is not back");
    bench.come_back(two, &[]);
    assert!(!refused(&bench, one));

    bench.restart();
    bench.come_back(one, &[]);
    bench.advance(2_999);
    assert!(refused(&bench, one));
    bench.advance(2);
    assert!(!refused(&bench, one));
}

#[test]
fn an_orphan_stays_for_who_comes_back_with_it_and_goes_otherwise() {
    let mut bench = Bench::new();
    let session = bench.session(1);
    let mut made = Vec::new();
    for (number, text) in [(1, "kept"), (3, "lost")] {
        made.push(inode_of(&bench.executor.call(numbered(session, number, create(text, true)))));
        bench.executor.call(numbered(session, number + 1, unlink(text))).result.expect("unlinked");
    }
    assert_eq!(bench.executor.counters().orphans, 2);
    bench.restart();
    assert_eq!(bench.executor.purge_orphans(100).unwrap().inodes, 0, "not before the sessions are back");
    bench.come_back(session, &[(made[0], 1)]);
    assert_eq!(bench.executor.purge_orphans(100).unwrap().inodes, 1);
    let get = |inode| ask(&bench.executor, session, Request::GetAttr { inode }).result;
    assert!(get(made[0]).is_ok());
    assert_eq!(get(made[1]), Err(FsError::NoEntry));
    ask(&bench.executor, session, Request::Release { opens: vec![(made[0], 1)] }).result.expect("released");
    assert_eq!(get(made[0]), Err(FsError::NoEntry));
    assert_eq!(bench.executor.recount().unwrap(), bench.executor.counters());
}

#[test]
fn a_silent_session_ends_with_its_lease_and_lets_go_of_what_it_held() {
    let bench = Bench::new();
    let (silent, other) = (bench.session(1), bench.session(2));
    let inode = inode_of(&bench.executor.call(numbered(silent, 1, create("a", true))));
    bench.executor.call(numbered(silent, 2, unlink("a"))).result.expect("unlinked");
    for _ in 0..60 {
        bench.advance(1_000);
        assert_eq!(bench.executor.expire_sessions().unwrap(), 0);
    }
    ask(&bench.executor, other, Request::Ping).result.expect("renewed");
    bench.advance(1);
    assert_eq!(bench.executor.expire_sessions().unwrap(), 1);
    // As a mount does that was stopped and goes on as if nothing had happened.
    let late = CommitWrite { inode, content: Some("late".into()), if_data_version: 1, ..CommitWrite::default() };
    for request in [Request::Ping, Request::CommitWrite(late), Request::Release { opens: vec![(inode, 1)] }] {
        assert_eq!(ask(&bench.executor, silent, request).result, Err(FsError::UnknownSession));
    }
    assert_eq!(bench.executor.purge_orphans(10).unwrap().inodes, 1);
    assert_eq!(ask(&bench.executor, other, Request::GetAttr { inode }).result, Err(FsError::NoEntry));
    let left = bench.executor.all_records().unwrap();
    assert!(!left.iter().any(|(key, _)| matches!(key, Key::Reply(..) | Key::Orphan(_))), "{left:?}");
}

#[test]
fn a_master_that_was_stopped_itself_does_not_hold_the_silence_against_its_mounts() {
    let bench = Bench::new();
    let session = bench.session(1);
    bench.executor.expire_sessions().unwrap();
    bench.advance(3_600_000);
    assert_eq!(bench.executor.expire_sessions().unwrap(), 0);
    ask(&bench.executor, session, Request::Ping).result.expect("known still");
}

#[test]
fn a_numbered_release_that_is_repeated_gives_back_one_open() {
    let bench = Bench::new();
    let session = bench.session(1);
    let inode = inode_of(&bench.executor.call(numbered(session, 1, create("a", true))));
    bench.executor.call(numbered(session, 2, Request::Open { inode })).result.expect("opened");
    bench.executor.call(numbered(session, 3, unlink("a"))).result.expect("unlinked");
    let release = numbered(session, 4, Request::Release { opens: vec![(inode, 1)] });
    for _ in 0..3 {
        bench.executor.call(release.clone()).result.expect("released");
    }
    assert!(ask(&bench.executor, session, Request::GetAttr { inode }).result.is_ok(), "the other open is there");
    bench.executor.call(Call { number: 5, ..release }).result.expect("released");
    assert_eq!(ask(&bench.executor, session, Request::GetAttr { inode }).result, Err(FsError::NoEntry));
}

#[test]
fn after_a_failed_commit_or_sync_nothing_is_served() {
    for fault in [Fault::CommitLost, Fault::CommitKept, Fault::Sync] {
        let bench = Bench::new();
        let session = bench.session(1);
        bench.store.fail_next(fault);
        let made = bench.executor.call(numbered(session, 1, create("a", false))).result;
        let synced = bench.executor.wait_durable(Seq(0));
        assert!(matches!(made.map(|_| ()).and(synced), Err(FsError::Io(_))), "{fault:?}");
        assert!(bench.executor.failure().is_some());
        assert!(matches!(ask(&bench.executor, session, lookup("a")).result, Err(FsError::Io(_))));
    }
}

#[test]
fn an_operation_that_panics_fails_alone_and_changes_nothing() {
    let bench = Bench::new();
    let session = bench.session(1);
    let before = bench.executor.all_records().unwrap();
    let broken = bench.executor.with(|owner| owner.internal(|_| panic!("a bug, as this test wants it")).map(|_| ()));
    assert!(matches!(broken, Err(FsError::Io(_))));
    assert_eq!((bench.executor.failure(), bench.executor.all_records().unwrap()), (None, before));
    bench.executor.call(numbered(session, 1, create("a", false))).result.expect("it goes on");
}

#[test]
fn a_panic_that_may_have_broken_the_state_stops_the_service_and_hangs_nobody() {
    let bench = Bench::new();
    let session = bench.session(1);
    let broken = bench.executor.with::<()>(|_| panic!("a bug, as this test wants it"));
    assert!(matches!(broken, Err(FsError::Io(_))));
    assert!(matches!(ask(&bench.executor, session, lookup("a")).result, Err(FsError::Io(_))));
}

#[test]
fn a_cut_is_listed_for_the_caretaker_when_nobody_works_at_it() {
    let bench = Bench::new();
    let session = bench.session(1);
    let inode = inode_of(&bench.executor.call(numbered(session, 1, create("a", false))));
    // Without chunk servers there is no chunk to cut: put one there.
    bench
        .executor
        .with(move |owner| {
            owner.internal(|view| {
                let mut outcome = crate::core::outcome::Outcome::new(view);
                let chunk = crate::core::record::Chunk {
                    id: dfs_proto::ChunkId(1),
                    version: dfs_proto::Version(1),
                    primary: dfs_proto::NodeId(1),
                    in_sync: vec![dfs_proto::NodeId(1)],
                    syncing: Vec::new(),
                    stale: Vec::new(),
                    is_written: true,
                    set_seq: outcome.seq(),
                    version_seq: outcome.seq(),
                    loss_version: dfs_proto::Version(0),
                    seq: outcome.seq(),
                };
                outcome.put(Key::Chunk(inode, dfs_proto::ChunkIndex(0)), Record::Chunk(Arc::new(chunk)));
                outcome.edit(view, inode, |inode| {
                    (inode.chunks, inode.is_inline, inode.size) = (1, false, 100);
                })?;
                outcome.totals.chunks += 1;
                Ok(outcome)
            })
        })
        .map(|_| ())
        .expect("put");
    let cut = Request::SetAttr(crate::core::request::SetAttr { inode, size: Some(10), ..Default::default() });
    let intent = bench.executor.call(numbered(session, 2, cut)).cut.expect("an intent");
    let get = || {
        let first = dfs_proto::ChunkIndex(0);
        ask(&bench.executor, session, Request::GetChunks { inode, first, count: 1 }).result
    };
    assert_eq!(get(), Err(CUT_PENDING));
    assert_eq!(bench.executor.pending_cuts(10).unwrap(), [], "somebody is at it");
    bench.advance(60_000);
    assert_eq!(bench.executor.pending_cuts(10).unwrap(), std::slice::from_ref(&intent));
    bench.executor.cut_done(&intent).unwrap();
    assert!(get().is_ok());
    assert_eq!(bench.executor.pending_cuts(10).unwrap(), []);
}

#[test]
fn a_position_of_an_earlier_run_stands_for_all_that_was_replayed_since() {
    let mut bench = Bench::new();
    let session = bench.session(1);
    let call = numbered(session, 1, create("a", false));
    let first = bench.executor.call(call.clone());
    bench.power_cut(0);
    let reclaim = |is_last| Request::SessionReclaim { opens: Vec::new(), is_last };
    ask(&bench.executor, session, reclaim(false)).result.unwrap();
    let replayed = bench.executor.call(replay_of(&call, &first)).result.unwrap();
    assert!(matches!(ask(&bench.executor, session, Request::Sync).result, Err(FsError::TryAgain(_))));
    ask(&bench.executor, session, reclaim(true)).result.unwrap();
    ask(&bench.executor, session, Request::Sync).result.expect("now it may");
    assert!(bench.executor.seqs().1 < replayed.seq);
    bench.executor.wait_durable_for_mount(first.result.unwrap().seq).unwrap();
    assert!(bench.executor.seqs().1 >= replayed.seq);
}

#[test]
fn a_read_only_session_changes_nothing() {
    let bench = Bench::new();
    let open = SessionOpen { client_id: vec![1; 16].into(), is_read_only: true, ..SessionOpen::default() };
    let Body::Session { session, .. } =
        ask(&bench.executor, SessionId(0), Request::SessionOpen(open)).result.unwrap().body
    else {
        panic!("no session")
    };
    assert_eq!(bench.executor.call(numbered(session, 1, create("a", true))).result, Err(FsError::ReadOnly));
    assert_eq!(ask(&bench.executor, session, lookup("a")).result, Err(FsError::NoEntry));
    assert!(ask(&bench.executor, session, Request::GetAttr { inode: InodeId::ROOT }).result.is_ok());
}

#[test]
fn info_finds_by_path_and_by_inode() {
    let bench = Bench::new();
    let session = bench.session(1);
    let inode = inode_of(&bench.executor.call(numbered(session, 1, create("a", false))));
    assert_eq!(bench.executor.info(b"/a", InodeId(0), 10).unwrap().inode.id, inode);
    assert_eq!(bench.executor.info(b"//a/", InodeId(0), 10).unwrap().inode.id, inode);
    assert_eq!(bench.executor.info(b"", inode, 10).unwrap().inode.id, inode);
    assert_eq!(bench.executor.info(b"/", InodeId(0), 10).unwrap().inode.id, InodeId::ROOT);
    assert!(matches!(bench.executor.info(b"/a/b", InodeId(0), 10), Err(FsError::NotDirectory)));
    assert!(matches!(bench.executor.info(b"/none", InodeId(0), 10), Err(FsError::NoEntry)));
}

#[test]
fn the_embedded_engine_has_everything_after_a_drop_without_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let open = || crate::store::open(EngineKind::Embedded, &directory.path().join("meta")).unwrap();
    let executor = start(open(), &clock, NEVER_MS);
    let session = open_session(&executor, 1);
    for number in 1..=500 {
        executor.call(numbered(session, number, create(&number.to_string(), false))).result.unwrap();
    }
    for number in 501..=600 {
        executor.call(numbered(session, number, unlink(&(number - 500).to_string()))).result.unwrap();
    }
    let (counters, records) = (executor.counters(), executor.all_records().unwrap());
    drop(executor);
    let executor = start(open(), &clock, NEVER_MS);
    assert_eq!(executor.counters(), counters);
    assert_eq!(executor.recount().unwrap(), counters);
    let is_kept = |(key, _): &&(Key, Record)| !matches!(key, Key::Ids);
    let found = executor.all_records().unwrap();
    assert_eq!(found.iter().filter(is_kept).collect::<Vec<_>>(), records.iter().filter(is_kept).collect::<Vec<_>>());
}
