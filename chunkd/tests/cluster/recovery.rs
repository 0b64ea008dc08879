//! What is left after servers died, files vanished, and bits flipped.

use std::os::unix::fs::FileExt;

use dfs_proto::FsError;

use crate::harness::{Cluster, UNIT, pattern, wait_for_ok};

const DATA_OFFSET: u64 = 1 << 20;

#[test]
fn everything_acknowledged_survives_the_restart_of_one_and_of_all() {
    let mut cluster = Cluster::start();
    let mut model = vec![0; 64 * UNIT as usize];
    let mut number = 0;
    for round in 0..8u32 {
        let mut chunk = cluster.chunk(1);
        chunk.may_create = round == 0;
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
        let mut chunk = cluster.chunk(1);
        chunk.may_create = false;
        assert_eq!(chunk.read(0, 64 * UNIT), model, "round {round}");
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
fn a_lost_replica_is_filled_from_the_others_wherever_it_was() {
    let mut cluster = Cluster::start();
    let data = pattern(1, 20 * UNIT as usize);
    cluster.chunk(2).write(0, &data, 1);
    for at in 0..3 {
        cluster.stop(at);
        std::fs::remove_file(cluster.replica_path(at, 2)).unwrap();
        cluster.restart(at);
        let mut chunk = cluster.chunk(2);
        chunk.may_create = false;
        // A secondary's absence is found by the primary at its next write.
        chunk.write(at as u32 * UNIT, &data[..10], 2 + at as u64);
        let mut expected = data.clone();
        for unit in 0..=at {
            expected[unit * UNIT as usize..][..10].copy_from_slice(&data[..10]);
        }
        assert_eq!(chunk.read(0, data.len() as u32), expected);
        chunk.assert_replicas_are_equal();
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
    for _ in 0..2 {
        let mut chunk = cluster.chunk(3);
        chunk.may_create = false;
        assert!(matches!(chunk.try_read(0, 10), Err(FsError::Corrupt(_))));
        assert!(matches!(chunk.try_write(0, &[1; 10], 2), Err(FsError::Corrupt(_))));
        for at in 0..3 {
            cluster.stop(at);
            cluster.restart(at);
        }
    }
}

#[test]
fn a_flipped_bit_is_repaired_on_read_and_on_partial_write() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(4);
    let mut model = pattern(1, 8 * UNIT as usize);
    chunk.write(0, &model, 1);
    let flip = |at: usize, offset: u64| {
        let path = cluster.replica_path(at, 4);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0] ^= 0x10;
        file.write_all_at(&byte, offset).unwrap();
    };
    flip(0, DATA_OFFSET + 5 * u64::from(UNIT) + 17);
    flip(0, DATA_OFFSET + 2 * u64::from(UNIT) + 9);
    assert_eq!(chunk.read(0, 8 * UNIT), model);
    let metrics = cluster.metrics(0);
    assert!(metrics.contains("dfs_chunkd_corrupt_units_total 2"), "{metrics}");
    assert!(metrics.contains("dfs_chunkd_repaired_units_total 2"), "{metrics}");

    flip(0, DATA_OFFSET + 6 * u64::from(UNIT));
    chunk.write(6 * UNIT + 10, &[9; 10], 2);
    model[6 * UNIT as usize + 10..][..10].fill(9);
    assert_eq!(chunk.read(0, 8 * UNIT), model);
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_unit_that_is_damaged_everywhere_is_an_error_and_its_neighbours_are_not() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(5);
    // As many as go straight into the file.
    let model = pattern(1, 8 * UNIT as usize);
    chunk.write(0, &model, 1);
    for at in 0..3 {
        let file = std::fs::OpenOptions::new().write(true).open(cluster.replica_path(at, 5)).unwrap();
        file.write_all_at(b"rot", DATA_OFFSET + u64::from(UNIT)).unwrap();
    }
    assert!(matches!(chunk.try_read(0, 8 * UNIT), Err(FsError::Corrupt(_))));
    assert_eq!(chunk.read(0, UNIT), model[..UNIT as usize]);
    assert_eq!(chunk.read(2 * UNIT, 6 * UNIT), model[2 * UNIT as usize..]);
    chunk.write(UNIT, &model[..UNIT as usize], 2);
    assert_eq!(chunk.read(UNIT, UNIT), model[..UNIT as usize], "a whole write needs nothing of what was there");
}

#[test]
fn a_write_waits_for_a_secondary_that_restarts() {
    let mut cluster = Cluster::start();
    cluster.chunk(6).write(0, &[1; 10], 1);
    cluster.stop(1);
    let error = cluster.chunk(6).try_write(0, &[2; 10], 2).unwrap_err();
    assert!(matches!(&error, FsError::NoReplica(reason) if reason.contains("node 2")), "{error}");
    cluster.restart(1);
    let chunk = cluster.chunk(6);
    wait_for_ok("the write", || chunk.try_write(0, &[2; 10], 2));
    assert_eq!(chunk.read(0, 10), [2; 10]);
    chunk.assert_replicas_are_equal();
}

#[test]
fn reads_go_on_without_a_secondary() {
    let mut cluster = Cluster::start();
    cluster.chunk(7).write(0, &[1; 10], 1);
    cluster.chunk(7).write(UNIT, &[2; 10], 2);
    cluster.stop(2);
    let chunk = cluster.chunk(7);
    assert_eq!(chunk.read(0, 10), [1; 10]);
    assert!(matches!(chunk.try_write(0, &[3; 10], 3), Err(FsError::NoReplica(_))));
    assert_eq!(chunk.read(UNIT, 10), [2; 10], "units without an unresolved write");
    assert!(matches!(chunk.try_read(0, 10), Err(FsError::NoReplica(_))), "that write may be lost yet");
    cluster.restart(2);
    let chunk = cluster.chunk(7);
    wait_for_ok("the read", || chunk.try_read(0, 10));
    let seen = chunk.read(0, 10);
    assert_eq!(seen, [3; 10], "all members have it now");
    chunk.write(0, &[4; 10], 4);
    chunk.write(0, &[3; 10], 3);
    assert_eq!(chunk.read(0, 10), [4; 10], "its retry is not applied again");
    chunk.assert_replicas_are_equal();
}
