//! Replica sets that change: members that are lost, filled, handed over, and what the master's silence does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::replica_set::{Order, OrderKind, OrderReport};
use dfs_proto::{ChunkId, FsError, NodeId, Version};

use crate::harness::{Chunk, Cluster, UNIT, flip, pattern, wait_until};

/// Longest a write may wait for a member that is lost.
const STALL_MAX: Duration = Duration::from_secs(4);

/// A writer of one unit after the other, which knows what was acknowledged.
struct Writer {
    stop: AtomicBool,
    done: AtomicU64,
    slowest_ms: AtomicU64,
}

const UNITS: u32 = 200;

fn content(round: u64) -> Vec<u8> {
    round.to_le_bytes().repeat(UNIT as usize / 8)
}

impl Writer {
    fn new() -> Self {
        Self { stop: AtomicBool::new(false), done: AtomicU64::new(0), slowest_ms: AtomicU64::new(0) }
    }

    fn run(&self, chunk: &Chunk<'_>) {
        while !self.stop.load(Ordering::Relaxed) {
            let round = self.done.load(Ordering::Relaxed) + 1;
            let began = Instant::now();
            chunk.write((round % u64::from(UNITS)) as u32 * UNIT, &content(round), round);
            self.slowest_ms.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            self.done.store(round, Ordering::Relaxed);
        }
    }

    fn wait_for(&self, more: u64) {
        let from = self.done.load(Ordering::Relaxed);
        wait_until("more writes", || self.done.load(Ordering::Relaxed) >= from + more);
    }

    /// Checks that each unit holds the last of its writes.
    fn check(&self, chunk: &Chunk<'_>) {
        let done = self.done.load(Ordering::Relaxed);
        for round in done.saturating_sub(u64::from(UNITS) - 1).max(1)..=done {
            let unit = (round % u64::from(UNITS)) as u32;
            assert_eq!(chunk.read(unit * UNIT, UNIT), content(round), "unit {unit}");
        }
    }
}

#[test]
fn writes_go_on_within_four_seconds_when_a_secondary_is_lost() {
    let mut cluster = Cluster::start();
    let writer = Writer::new();
    cluster.chunk(1).write(0, &[1; 10], 1 << 40);
    let lost = cluster.servers[2].take().unwrap();
    std::thread::scope(|scope| {
        let view = cluster.chunk(1);
        let writer = &writer;
        scope.spawn(move || writer.run(&view));
        writer.wait_for(100);
        lost.stop();
        wait_until("the drop", || cluster.chunk(1).record().stale == [3]);
        writer.wait_for(100);
        writer.stop.store(true, Ordering::Relaxed);
    });
    let slowest = Duration::from_millis(writer.slowest_ms.load(Ordering::Relaxed));
    assert!(slowest < STALL_MAX, "{slowest:?}");
    writer.check(&cluster.chunk(1));
    assert_eq!(cluster.count(0, "dfs_chunkd_dropped_members_total"), 1);
    assert!(cluster.metrics(0).contains("dfs_chunkd_replica_set_changes_total{kind=\"drop\",result=\"ok\"} 1"));
}

#[test]
fn a_member_that_was_filled_under_writes_has_everything() {
    let mut cluster = Cluster::start();
    let writer = Writer::new();
    cluster.chunk(1).write(0, &pattern(3, 1 << 20), 1 << 40);
    cluster.committed(1).set(|record| {
        record.in_sync = vec![1, 2];
        record.version += 1;
    });
    // As after a loss of the disk.
    cluster.stop(2);
    std::fs::remove_file(cluster.replica_path(2, 1)).unwrap();
    cluster.restart(2);
    std::thread::scope(|scope| {
        let view = cluster.chunk(1);
        let writer = &writer;
        scope.spawn(move || writer.run(&view));
        writer.wait_for(50);
        view.set(|record| record.add(3));
        let report = view.order(OrderKind::Fill { node: NodeId(3) }).unwrap();
        assert!(report.copied_bytes >= 1 << 20, "{report:?}");
        assert_eq!(view.record().in_sync, [1, 2, 3]);
        writer.wait_for(50);
        writer.stop.store(true, Ordering::Relaxed);
    });
    cluster.chunk(1).assert_replicas_are_equal();
    cluster.stop(0);
    cluster.stop(1);
    cluster.chunk(1).set(|record| record.take_over(3));
    writer.check(&cluster.chunk(1));
    assert_eq!(
        cluster.chunk(1).read(UNITS * UNIT, UNIT),
        pattern(3, 1 << 20)[(UNITS * UNIT) as usize..][..UNIT as usize]
    );
}

#[test]
fn a_budget_bounds_how_fast_a_member_is_filled() {
    let mut cluster = Cluster::alone();
    cluster.master.state.lock().unwrap().repair_bytes_per_second = 1 << 20;
    for at in 0..3 {
        cluster.restart(at);
    }
    let chunk = cluster.chunk(1);
    chunk.write(0, &pattern(3, 1 << 20), 1);
    chunk.set(|record| record.remove(3));
    let deletion =
        Order { id: 0, chunk: ChunkId(1), kind: OrderKind::Discard { below: Version(2) }, grant: Bytes::new() };
    let id = cluster.master.state.lock().unwrap().order_to(3, deletion);
    cluster.wait_outcome(id).unwrap();
    // The first copy uses up what the pause has left, the second one waits.
    for round in 0..2 {
        let began = Instant::now();
        let chunk = cluster.committed(1);
        chunk.set(|record| record.add(3));
        assert_eq!(chunk.order(OrderKind::Fill { node: NodeId(3) }).unwrap().copied_bytes, 1 << 20);
        if round == 1 {
            assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
        }
        chunk.set(|record| record.remove(3));
        let below = Version(chunk.record().version);
        let order = Order { id: 0, chunk: ChunkId(1), kind: OrderKind::Discard { below }, grant: Bytes::new() };
        let id = cluster.master.state.lock().unwrap().order_to(3, order);
        cluster.wait_outcome(id).unwrap();
    }
}

#[test]
fn lost_answers_of_the_master_neither_lose_a_write_nor_split_the_set() {
    let mut cluster = Cluster::start();
    cluster.chunk(1).write(0, &pattern(1, 40_000), 1);
    cluster.committed(1);
    for (round, lose) in (0..).zip(["answer", "request", "answer"]) {
        cluster.stop(2);
        {
            let mut state = cluster.master.state.lock().unwrap();
            match lose {
                "answer" => state.lost_answers = 1,
                _ => state.lost_requests = 1,
            }
        }
        let number = 10 + round;
        cluster.chunk(1).write(0, &content(number), number);
        assert_eq!(cluster.chunk(1).read(0, UNIT), content(number));
        assert!(!cluster.chunk(1).record().in_sync.contains(&3));
        cluster.restart(2);
        // The answer to FinishSync is lost: no write may be acknowledged before it is known whether node 3 counts.
        let chunk = cluster.chunk(1);
        chunk.set(|record| record.add(3));
        {
            let mut state = cluster.master.state.lock().unwrap();
            match lose {
                "answer" => state.lost_answers = 1,
                _ => state.lost_requests = 1,
            }
        }
        let id = cluster.master.state.lock().unwrap().order(1, OrderKind::Fill { node: NodeId(3) });
        chunk.write(UNIT, &content(number), 100 + number);
        let _ = cluster.wait_outcome(id);
        chunk.write(2 * UNIT, &content(number), 200 + number);
        chunk.refill();
        chunk.assert_replicas_are_equal();
        assert_eq!(chunk.read(UNIT, UNIT), content(number));
        assert_eq!(chunk.read(2 * UNIT, UNIT), content(number));
    }
}

#[test]
fn a_scrub_finds_flipped_bits_on_every_member_and_repairs_them() {
    let cluster = Cluster::start();
    let data = pattern(1, 1 << 20);
    let chunk = cluster.chunk(1);
    chunk.write(0, &data, 1);
    chunk.barrier().unwrap();
    // Different units, and two of one member.
    for (at, unit) in [(0, 3), (1, 100), (1, 101), (2, 255)] {
        flip(&cluster.replica_path(at, 1), (1 << 20) + unit * u64::from(UNIT) + 7);
    }
    let report = cluster.committed(1).order(OrderKind::Scrub { deep: true }).unwrap();
    assert_eq!((report.checked_units, report.bad_units, report.repaired_units), (3 * 256, 4, 4), "{report:?}");
    chunk.assert_replicas_are_equal();
    assert_eq!(chunk.read(0, 1 << 20), data);
    let report = chunk.order(OrderKind::Scrub { deep: true }).unwrap();
    assert_eq!((report.checked_units, report.bad_units), (3 * 256, 0));
    for at in 0..3 {
        // At the primary, what was read again to repair others too.
        assert!(cluster.count(at, "dfs_chunkd_checked_units_total") >= 512, "node {}", at + 1);
        wait_until("the report of the damage", || {
            cluster.master.state.lock().unwrap().nodes[&(at as u32 + 1)].damaged.contains(&1)
        });
    }
}

#[test]
fn a_primary_that_hands_over_is_left_and_serves_no_more() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    chunk.write(0, &[1; 10], 1);
    let chunk = cluster.committed(1);
    assert_eq!(chunk.order(OrderKind::HandOver), Ok(OrderReport::default()));
    let record = chunk.record();
    assert_eq!((record.primary, record.stale), (2, vec![1]));
    assert_eq!(chunk.read(0, 10), [1; 10]);
    chunk.write(0, &[2; 10], 2);
    let changes = cluster.master.state.lock().unwrap().changes.len();
    chunk.refill();
    assert_eq!(cluster.master.state.lock().unwrap().changes.len(), changes + 1, "nothing but the end of the fill");
    chunk.assert_replicas_are_equal();
}

#[test]
fn an_old_replica_is_discarded_on_order_a_newer_one_is_not_and_it_may_come_back() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    chunk.write(0, &[1; 10], 1);
    let chunk = cluster.committed(1);
    let discard = |below| {
        let kind = OrderKind::Discard { below: Version(below) };
        let order = Order { id: 0, chunk: ChunkId(1), kind, grant: Bytes::new() };
        let id = cluster.master.state.lock().unwrap().order_to(3, order);
        cluster.wait_outcome(id)
    };
    assert!(matches!(discard(1), Err(FsError::Stale(_))));
    assert!(cluster.replica_path(2, 1).exists());
    chunk.set(|record| record.remove(3));
    chunk.write(0, &[2; 10], 2);
    assert_eq!(discard(2), Ok(OrderReport::default()));
    assert!(!cluster.replica_path(2, 1).exists());
    assert_eq!(discard(2), Ok(OrderReport::default()), "there is none");
    chunk.refill();
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_fenced_session_is_refused_on_connections_that_are_open_and_others_are_not() {
    let cluster = Cluster::start();
    let mut chunk = cluster.chunk(1);
    chunk.session = 5;
    let mut connection = chunk.connect();
    chunk.write_on(&mut connection, 0, &[1; 10], 1);
    {
        let mut state = cluster.master.state.lock().unwrap();
        state.fenced = vec![5];
        state.fence_seq = 3;
    }
    wait_until("the fence everywhere", || {
        cluster.master.state.lock().unwrap().nodes.values().all(|node| node.fence_seq == 3)
    });
    let refused = chunk.ask_on(&mut connection, chunk.write_request(0, &[2; 10], 2), &[2; 10]);
    assert_eq!(refused.unwrap_err(), FsError::UnknownSession);
    assert_eq!(chunk.try_read(0, 10).unwrap_err(), FsError::UnknownSession, "on a new connection too");
    assert_eq!(cluster.chunk(1).read(0, 10), [1; 10]);
    wait_until("the metric", || cluster.count(0, "dfs_chunkd_fenced_sessions") == 1);
}

#[test]
fn servers_tell_the_master_all_replicas_they_have() {
    let mut cluster = Cluster::start();
    for chunk in 1..=5 {
        cluster.chunk(chunk).write(0, &[1; 10], 1);
    }
    // A pass comes with each registration.
    for at in 0..3 {
        cluster.stop(at);
        cluster.restart(at);
    }
    let expected = (1..=5).map(|chunk| (chunk, (chunk, 1))).collect();
    wait_until("the inventory", || {
        cluster.master.state.lock().unwrap().nodes.values().all(|node| node.held == expected)
    });
}

#[test]
fn a_server_whose_run_has_ended_for_the_master_goes_by_another_one() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    chunk.write(0, &[1; 10], 1);
    let void = chunk.grant();
    {
        let mut state = cluster.master.state.lock().unwrap();
        state.ended.insert(void.primary_boot.0);
        // It must register again.
        state.nodes.get_mut(&1).unwrap().boot = 0;
    }
    wait_until("the new run", || ![0, void.primary_boot.0].contains(&cluster.chunk(1).grant().primary_boot.0));
    assert_eq!(chunk.read(0, 10), [1; 10], "under the same version");
    chunk.write(0, &[2; 10], 2);
    chunk.assert_replicas_are_equal();
    let refused = chunk.try_ask_with(&void, chunk.write_request(0, &[3; 10], 3), &[3; 10]).unwrap();
    assert!(matches!(refused, Err(FsError::Stale(_))), "{refused:?}");
}
