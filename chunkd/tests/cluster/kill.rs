//! Chunk servers as processes of their own, killed in the middle of overwrites.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_chunkd::{ChunkServer, ChunkdConfig};
use dfs_proto::NodeId;
use dfs_proto::replica_set::OrderKind;
use dfs_proto::wire::pb::data_reply;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Chunk, Cluster, UNIT, wait_for_ok, wait_until};

const DATA: &str = "DFS_TEST_CHUNKD_DATA";
const MASTER: &str = "DFS_TEST_CHUNKD_MASTER";
const OP_TIMEOUT: &str = "DFS_TEST_CHUNKD_OP_TIMEOUT";

/// Nothing by itself: other tests run this binary again with the variables set, as a chunk server to be killed.
#[test]
fn a_process_that_other_tests_kill() {
    let (Ok(data), Ok(master)) = (std::env::var(DATA), std::env::var(MASTER)) else { return };
    let mut config = ChunkdConfig::new(vec![data.into()], master);
    config.listen = "127.0.0.1:0".into();
    config.reserve_bytes = 0;
    config.op_timeout_ms = std::env::var(OP_TIMEOUT).unwrap().parse().unwrap();
    let _server = ChunkServer::start(config).unwrap();
    // Ends with the test that started it.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Processes {
    cluster: Cluster,
    children: Vec<Option<Child>>,
    op_timeout_ms: u64,
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Processes {
    fn start(op_timeout_ms: u64) -> Self {
        let mut processes = Self { cluster: Cluster::alone(), children: vec![None, None, None], op_timeout_ms };
        for at in 0..3 {
            processes.spawn(at);
        }
        processes
    }

    fn spawn(&mut self, at: usize) {
        let boot =
            |cluster: &Cluster| cluster.master.state.lock().unwrap().nodes.get(&(at as u32 + 1)).map(|node| node.boot);
        let before = boot(&self.cluster);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::a_process_that_other_tests_kill"])
            .env(DATA, self.cluster.data(at))
            .env(MASTER, &self.cluster.master.hot_address)
            .env(OP_TIMEOUT, self.op_timeout_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children[at] = Some(child);
        wait_until("registration", || boot(&self.cluster).is_some_and(|boot| Some(boot) != before));
    }

    fn kill(&mut self, at: usize) {
        let mut child = self.children[at].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// What one writer did to its units: the newest round that was tried, and the newest that was acknowledged.
#[derive(Default)]
struct Unit {
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

const WRITERS: u32 = 4;
const UNITS_EACH: u32 = 60;

fn content(unit: u32, round: u64) -> Vec<u8> {
    let stamp = [round.to_le_bytes(), u64::from(unit).to_le_bytes()].concat();
    stamp.iter().copied().cycle().take(UNIT as usize).collect()
}

/// How often all writers together have tried, and how often they were told that it is done.
#[derive(Default)]
struct Progress {
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

/// Overwrites runs of its own units until told to stop, without a pause and without a retry of what failed.
fn overwrite(chunk: &Chunk<'_>, writer: u32, units: &[Unit], progress: &Progress, stop: &AtomicBool) {
    let mut connection = None;
    let mut step = 0;
    while !stop.load(Ordering::Relaxed) {
        if connection.is_none() {
            connection = chunk.try_connect().ok();
        }
        let Some(open) = &mut connection else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        step += 1;
        let round = progress.tried.fetch_add(1, Ordering::Relaxed) + 1;
        let first = writer * UNITS_EACH + step * 13 % UNITS_EACH;
        let count = (1 + step * 7 % 50).min((writer + 1) * UNITS_EACH - first);
        let own = &units[first as usize..(first + count) as usize];
        for unit in own {
            unit.tried.store(round, Ordering::Relaxed);
        }
        let data: Vec<u8> = (first..first + count).flat_map(|unit| content(unit, round)).collect();
        match chunk.try_ask_on(open, chunk.write_request(first * UNIT, &data, round), &data) {
            Ok(Ok((body, _))) => {
                assert!(matches!(body, data_reply::Body::Written(_)));
                own.iter().for_each(|unit| unit.acknowledged.store(round, Ordering::Relaxed));
                progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(_)) => {}
            // Nobody knows.
            Err(_) => connection = None,
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_and_no_unit_unreadable_when_processes_are_killed_in_the_middle_of_overwrites() {
    let mut processes = Processes::start(600);
    let units: Vec<Unit> = (0..WRITERS * UNITS_EACH).map(|_| Unit::default()).collect();
    let progress = Progress::default();
    // The primary, a secondary, both secondaries, everyone; several times each, at various moments.
    let victims: [&[usize]; 6] = [&[0], &[0, 1, 2], &[1], &[0, 1, 2], &[1, 2], &[0, 1, 2]];
    for (turn, victims) in victims.iter().cycle().take(30).enumerate() {
        let before = progress.acknowledged.load(Ordering::Relaxed);
        let stop = AtomicBool::new(false);
        let children = &mut processes.children;
        let cluster = &processes.cluster;
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (units, progress, stop) = (&units, &progress, &stop);
                let mut chunk = if turn == 0 { cluster.chunk(1) } else { cluster.committed(1) };
                chunk.client = u64::from(writer) + 100;
                scope.spawn(move || overwrite(&chunk, writer, units, progress, stop));
            }
            // Counted by answers: while there is no lease yet, tries fail by the hundred, and the chunk must exist
            // before `may_create` is taken back below.
            let enough = before + 150 + turn as u64 * 17;
            wait_until("overwrites", || progress.acknowledged.load(Ordering::Relaxed) > enough);
            for at in *victims {
                children[*at].as_mut().unwrap().kill().unwrap();
            }
            for at in *victims {
                children[*at].take().unwrap().wait().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        for at in *victims {
            processes.spawn(*at);
        }
        let chunk = processes.cluster.committed(1);
        wait_for_ok("service", || chunk.try_read(0, UNIT));
        for (unit, known) in (0..).zip(&units) {
            let data = chunk.read(unit * UNIT, UNIT);
            let found = u64::from_le_bytes(data[..8].try_into().unwrap());
            let (tried, acknowledged) = (&known.tried, &known.acknowledged);
            let range = acknowledged.load(Ordering::Relaxed)..=tried.load(Ordering::Relaxed);
            assert!(range.contains(&found), "turn {turn}, unit {unit}: round {found}, not one of {range:?}");
            let expected = if found == 0 { vec![0; UNIT as usize] } else { content(unit, found) };
            assert_eq!(data, expected, "turn {turn}, unit {unit} is torn");
            // What was read is what there is from now on.
            acknowledged.store(found, Ordering::Relaxed);
        }
        chunk.refill();
        chunk.assert_replicas_are_equal();
    }
    for at in 0..3 {
        processes.kill(at);
    }
}

#[test]
fn a_secondary_that_stands_still_is_left_within_four_seconds_and_disturbs_nobody_when_it_goes_on() {
    let processes = Processes::start(10_000);
    let chunk = processes.cluster.chunk(1);
    chunk.write(0, &[1; UNIT as usize], 1);
    let still = Pid::from_raw(processes.children[2].as_ref().unwrap().id() as i32);
    kill(still, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let mut chunk = chunk;
            chunk.client = 200 + u64::from(writer);
            // Large ones too: they do not fit into the socket of who takes nothing off it.
            let length = if writer == 3 { 1 << 20 } else { UNIT as usize };
            scope.spawn(move || chunk.write(u32::from(writer % 3) * UNIT, &vec![writer; length], 1));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(chunk.record().in_sync, [1, 2]);
    kill(still, Signal::SIGCONT).unwrap();
    chunk.write(0, &[7; UNIT as usize], 2);
    let chunk = processes.cluster.committed(1);
    wait_until("the lease of who stood still", || {
        chunk.set(|record| record.add(3));
        chunk.order(OrderKind::Fill { node: NodeId(3) }).is_ok()
    });
    chunk.assert_replicas_are_equal();
    assert_eq!(chunk.read(0, UNIT), [7; UNIT as usize]);
}
