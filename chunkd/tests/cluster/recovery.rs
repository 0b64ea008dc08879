//! What is left after servers died, files vanished, and bits flipped.

use std::time::{Duration, Instant};

use dfs_proto::replica_set::OrderKind;
use dfs_proto::{FsError, NodeId};

use crate::harness::{Cluster, UNIT, flip, pattern, wait_until};

const DATA_OFFSET: u64 = 1 << 20;
/// Longest a write may wait for a member that is lost.
const STALL_MAX: Duration = Duration::from_secs(4);

#[test]
fn everything_acknowledged_survives_the_restart_of_one_and_of_all() {
    let mut cluster = Cluster::start();
    let mut model = vec![0; 64 * UNIT as usize];
    let mut number = 0;
    for round in 0..8u32 {
        let chunk = if round == 0 { cluster.chunk(1) } else { cluster.committed(1) };
        for step in 0..10u32 {
            number += 1;
            let offset = ((round * 37 + step * 11) % 60 * UNIT + step * 77) as usize;
            let data = pattern(number as u8, 3_000 + 700 * step as usize);
            chunk.write(offset as u32, &data, number);
            model[offset..offset + data.len()].copy_from_slice(&data);
        }
        number += 1;
        chunk.zero(round * 5 * UNIT + 9, 2 * UNIT, number);
        model[(round * 5 * UNIT) as usize + 9..][..2 * UNIT as usize].fill(0);
        chunk.barrier().unwrap();
        let who = match round % 4 {
            0 => vec![0],
            1 => vec![1],
            2 => vec![2],
            _ => vec![0, 1, 2],
        };
        for at in &who {
            if round % 2 == 0 { cluster.kill(*at) } else { cluster.stop(*at) }
        }
        for at in &who {
            cluster.restart(*at);
        }
        let chunk = cluster.committed(1);
        assert_eq!(chunk.read(0, 64 * UNIT), model, "round {round}");
        chunk.refill();
    }
    cluster.chunk(1).assert_replicas_are_equal();
}

#[test]
fn a_server_says_whether_its_last_stop_was_orderly() {
    let mut cluster = Cluster::start();
    cluster.stop(0);
    cluster.restart(0);
    assert!(cluster.master.state.lock().unwrap().nodes[&1].clean_stop);
    cluster.kill(0);
    cluster.restart(0);
    assert!(!cluster.master.state.lock().unwrap().nodes[&1].clean_stop);
}

#[test]
fn a_server_whose_replica_is_gone_leaves_the_set_and_is_filled_from_the_others() {
    let mut cluster = Cluster::start();
    let data = pattern(1, 20 * UNIT as usize);
    cluster.chunk(2).write(0, &data, 1);
    cluster.committed(2);
    for at in 0..3 {
        cluster.stop(at);
        std::fs::remove_file(cluster.replica_path(at, 2)).unwrap();
        cluster.restart(at);
        let chunk = cluster.chunk(2);
        chunk.write(at as u32 * UNIT, &data[..10], 2 + at as u64);
        let mut expected = data.clone();
        for unit in 0..=at {
            expected[unit * UNIT as usize..][..10].copy_from_slice(&data[..10]);
        }
        assert_eq!(chunk.read(0, data.len() as u32), expected);
        let record = chunk.record();
        assert_eq!(record.stale, [at as u32 + 1], "its word, or the primary's, that it has nothing: {record:?}");
        chunk.refill();
        chunk.assert_replicas_are_equal();
        assert_eq!(chunk.read(0, data.len() as u32), expected);
    }
}

#[test]
fn a_chunk_that_nobody_has_any_more_is_never_zeros() {
    let mut cluster = Cluster::start();
    cluster.chunk(3).write(0, &[1; 10], 1);
    for at in 0..3 {
        cluster.stop(at);
        std::fs::remove_file(cluster.replica_path(at, 3)).unwrap();
    }
    for at in 0..3 {
        cluster.restart(at);
    }
    cluster.committed(3);
    for _ in 0..2 {
        // Each primary leaves in favour of the next one, until the last one has to say so.
        wait_until("the verdict", || matches!(cluster.chunk(3).try_read(0, 10), Err(FsError::Corrupt(_))));
        assert!(matches!(cluster.chunk(3).try_write(0, &[1; 10], 2), Err(FsError::Corrupt(_))));
        let last = cluster.chunk(3).record().primary as usize - 1;
        cluster.stop(last);
        cluster.restart(last);
    }
}

#[test]
fn a_flipped_bit_in_data_or_table_is_repaired_on_read_and_on_partial_write() {
    let mut cluster = Cluster::start();
    let mut model = pattern(1, 8 * UNIT as usize);
    cluster.chunk(4).write(0, &model, 1);
    cluster.committed(4);
    // The table is in memory while the server runs.
    cluster.stop(0);
    flip(&cluster.replica_path(0, 4), DATA_OFFSET + 5 * u64::from(UNIT) + 17);
    flip(&cluster.replica_path(0, 4), 512 + 2 * 32 + 9);
    cluster.restart(0);
    let chunk = cluster.chunk(4);
    assert_eq!(chunk.read(0, 8 * UNIT), model);
    let metrics = cluster.metrics(0);
    assert!(metrics.contains("dfs_chunkd_corrupt_units_total 1"), "{metrics}");
    assert!(
        metrics.contains("dfs_chunkd_repaired_units_total 1"),
        "the other one was missing from the table: {metrics}"
    );

    chunk.barrier().unwrap();
    flip(&cluster.replica_path(0, 4), DATA_OFFSET + 6 * u64::from(UNIT));
    chunk.write(6 * UNIT + 10, &[9; 10], 2);
    model[6 * UNIT as usize + 10..][..10].fill(9);
    assert_eq!(chunk.read(0, 8 * UNIT), model);
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_unit_that_is_damaged_everywhere_is_an_error_and_its_neighbours_are_not() {
    let mut cluster = Cluster::start();
    let model = pattern(1, 4 * UNIT as usize);
    cluster.chunk(5).write(0, &model, 1);
    cluster.committed(5);
    // What is in the journal is not in the file yet.
    (0..3).for_each(|at| cluster.stop(at));
    for at in 0..3 {
        flip(&cluster.replica_path(at, 5), DATA_OFFSET + u64::from(UNIT));
        cluster.restart(at);
    }
    let chunk = cluster.chunk(5);
    let read = chunk.try_read(0, 4 * UNIT);
    assert!(matches!(read, Err(FsError::Corrupt(_))), "{:?}", read.map(|_| ()));
    assert_eq!(chunk.read(0, UNIT), model[..UNIT as usize]);
    assert_eq!(chunk.read(2 * UNIT, 2 * UNIT), model[2 * UNIT as usize..]);
    chunk.write(UNIT, &model[..UNIT as usize], 2);
    assert_eq!(chunk.read(UNIT, UNIT), model[..UNIT as usize], "a whole write needs nothing of what was there");
}

#[test]
fn writes_go_on_without_a_secondary_and_it_comes_back_with_what_it_missed() {
    let mut cluster = Cluster::start();
    let whole = pattern(1, 1 << 20);
    cluster.chunk(6).write(0, &whole, 1);
    cluster.committed(6);
    cluster.stop(1);
    let began = Instant::now();
    cluster.chunk(6).write(0, &[2; 10], 2);
    assert!(began.elapsed() < STALL_MAX, "{:?}", began.elapsed());
    assert_eq!(cluster.chunk(6).record().stale, [2]);
    for unit in 10..14 {
        cluster.chunk(6).write(unit * UNIT, &[3; UNIT as usize], 10 + u64::from(unit));
    }
    cluster.chunk(6).barrier().unwrap();
    cluster.restart(1);
    let chunk = cluster.chunk(6);
    let copied = chunk.refill();
    assert_eq!(copied, 5 * u64::from(UNIT), "only what differs");
    chunk.assert_replicas_are_equal();
    let mut expected = whole;
    expected[..10].fill(2);
    expected[10 * UNIT as usize..14 * UNIT as usize].fill(3);
    // Whoever is left has it all.
    cluster.stop(0);
    cluster.stop(2);
    cluster.chunk(6).set(|record| record.take_over(2));
    assert_eq!(cluster.chunk(6).read(0, 1 << 20), expected);
}

#[test]
fn with_one_replica_left_reads_go_on_and_writes_wait_for_another() {
    let mut cluster = Cluster::start();
    cluster.chunk(7).write(0, &[1; 10], 1);
    cluster.committed(7);
    cluster.stop(1);
    cluster.stop(2);
    wait_until("the drops", || {
        let _ = cluster.chunk(7).try_write(0, &[3; 10], 3);
        cluster.chunk(7).record().in_sync == [1]
    });
    let chunk = cluster.chunk(7);
    assert!(matches!(chunk.try_write(0, &[3; 10], 3), Err(FsError::TryAgain(_))));
    assert!(matches!(chunk.barrier(), Err(FsError::TryAgain(_))));
    assert!([[1; 10], [3; 10]].map(Vec::from).contains(&chunk.read(0, 10)), "the old one or the new one");
    cluster.restart(2);
    let chunk = cluster.chunk(7);
    chunk.set(|record| record.add(3));
    chunk.order(OrderKind::Fill { node: NodeId(3) }).unwrap();
    chunk.write(0, &[3; 10], 3);
    chunk.write(0, &[4; 10], 4);
    chunk.write(0, &[3; 10], 3);
    assert_eq!(chunk.read(0, 10), [4; 10], "a repeat is not applied again");
    cluster.restart(1);
    cluster.chunk(7).refill();
    cluster.chunk(7).assert_replicas_are_equal();
}
