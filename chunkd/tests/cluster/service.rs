//! What a mount sees while everything is well.

use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::FsError;
use dfs_proto::replica_set::Grant;
use dfs_proto::wire::pb::{self, data_request};

use crate::harness::{CHUNK_SIZE_LOG2, Cluster, UNIT, pattern, wait_for_ok, wait_until};

#[test]
fn what_is_written_is_read_and_lies_on_all_three_servers() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    assert_eq!(chunk.try_read(0, UNIT).unwrap(), None, "a new chunk is a hole");
    let data = pattern(1, 3 * UNIT as usize + 100);
    chunk.write(UNIT + 50, &data, 1);
    assert_eq!(chunk.read(UNIT + 50, data.len() as u32), data);
    let whole = chunk.read(0, 6 * UNIT);
    assert_eq!(whole[UNIT as usize + 50..][..data.len()], data);
    assert!(whole[..UNIT as usize + 50].iter().all(|byte| *byte == 0));
    let large = pattern(9, 1 << 20);
    chunk.write(0, &large, 2);
    assert_eq!(chunk.read(0, 1 << 20), large);
    chunk.barrier().unwrap();
    chunk.assert_replicas_are_equal();
    let metrics = cluster.metrics(0);
    for line in [
        "dfs_chunkd_requests_total{op=\"write\"} 2",
        "dfs_chunkd_activations_total 1",
        "dfs_chunkd_lease_valid 1",
        "dfs_chunkd_corrupt_units_total 0",
        "process_open_fds",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[test]
fn a_chunk_of_one_unit_takes_eight_kib_on_disk() {
    use std::os::unix::fs::MetadataExt;
    let cluster = Cluster::start();
    let chunk = cluster.chunk(7);
    chunk.write(0, &pattern(1, UNIT as usize), 1);
    chunk.barrier().unwrap();
    for at in 0..3 {
        let blocks = std::fs::metadata(cluster.replica_path(at, 7)).unwrap().blocks();
        assert!(blocks * 512 <= 8192, "{} bytes", blocks * 512);
    }
}

#[test]
fn zeroed_units_are_holes_again_and_edges_are_zeros() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(2);
    let mut model = pattern(3, 16 * UNIT as usize);
    chunk.write(0, &model, 1);
    assert_eq!(chunk.extents(), [(0, 16)]);
    chunk.zero(2 * UNIT + 100, 5 * UNIT, 2);
    model[2 * UNIT as usize + 100..][..5 * UNIT as usize].fill(0);
    assert_eq!(chunk.read(0, 16 * UNIT), model);
    assert_eq!(chunk.extents(), [(0, 3), (7, 9)]);
    chunk.zero(10 * UNIT + 1, 10, 3);
    model[10 * UNIT as usize + 1..][..10].fill(0);
    assert_eq!(chunk.read(0, 16 * UNIT), model);
    assert_eq!(chunk.try_read(3 * UNIT, 4 * UNIT).unwrap(), None);
    chunk.zero(0, 1 << CHUNK_SIZE_LOG2, 4);
    assert_eq!(chunk.extents(), []);
    assert_eq!(chunk.try_read(0, 16 * UNIT).unwrap(), None);
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_repeated_request_is_not_applied_over_a_newer_one() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(3);
    let (old, new) = (pattern(1, 4096), pattern(2, 4096));
    let seq = chunk.write(0, &old, 1);
    chunk.write(0, &new, 2);
    assert_eq!(chunk.write(0, &old, 1), seq, "answered as the first time");
    assert_eq!(chunk.read(0, 4096), new);
}

#[test]
fn many_writers_and_readers_leave_equal_replicas() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(4);
    // A client's numbers rise, as a mount's do.
    let next_number = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for writer in 0..6u32 {
            let next_number = &next_number;
            scope.spawn(move || {
                let mut connection = chunk.connect();
                for round in 0..60u32 {
                    // Overlapping on purpose, at odd offsets too.
                    let offset = (writer * 3 + round * 7) % 40 * UNIT + (round % 3) * 500;
                    let data = vec![writer as u8 + 1; (UNIT * (1 + round % 4)) as usize];
                    let request = chunk.write_request(offset, &data, next_number.fetch_add(1, Ordering::Relaxed));
                    chunk.ask_on(&mut connection, request, &data).unwrap();
                    let read = data_request::Body::Read(pb::Read { offset, length: 100 });
                    chunk.ask_on(&mut connection, read, &[]).unwrap();
                }
            });
        }
    });
    chunk.barrier().unwrap();
    chunk.assert_replicas_are_equal();
}

#[test]
fn damaged_or_impossible_requests_are_refused() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(5);
    let data = pattern(1, 4096);
    let mut wrong = data.clone();
    wrong[100] ^= 1;
    let request = chunk.write_request(0, &data, 1);
    assert!(matches!(chunk.ask(request, &wrong), Err(FsError::Corrupt(_))));
    let end = 1 << CHUNK_SIZE_LOG2;
    assert!(matches!(chunk.try_write(end - 1, &[1, 2], 2), Err(FsError::Invalid(_))));
    assert!(matches!(chunk.try_read(0, 0), Err(FsError::Invalid(_))));
    let peer_only = data_request::Body::FetchUnits(pb::FetchUnits { first_unit: 0, units: 1 });
    assert_eq!(chunk.ask(peer_only, &[]).unwrap_err(), FsError::NotPermitted);
}

#[test]
fn a_grant_for_another_primary_or_run_is_stale_and_an_older_one_of_the_same_is_not() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(6);
    chunk.write(0, &[1; 10], 1);
    let old = chunk.grant();
    chunk.set(|record| record.version = 2);
    chunk.write(0, &[2; 10], 2);
    assert_eq!(chunk.read(0, 10), [2; 10]);
    let read_with = |grant: &Grant| {
        let read = data_request::Body::Read(pb::Read { offset: 0, length: 10 });
        chunk.try_ask_with(grant, read, &[]).unwrap().map(|(_, payload)| payload)
    };
    // Nobody else has become the primary since.
    assert_eq!(read_with(&old).unwrap(), [2; 10][..]);
    let mut other_run = chunk.grant();
    other_run.primary_boot.0 += 1;
    assert!(matches!(read_with(&other_run), Err(FsError::Stale(_))));
}

#[test]
fn another_primary_at_a_higher_version_takes_over_with_everything() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(16);
    let data = pattern(4, 10_000);
    chunk.write(100, &data, 1);
    let old = chunk.grant();
    chunk.set(|record| {
        record.take_over(2);
        record.may_create = false;
    });
    assert_eq!(chunk.read(100, 10_000), data);
    chunk.write(100, &pattern(5, 10_000), 2);
    let refused = chunk.try_ask_with(&old, chunk.write_request(100, &data, 3), &data).unwrap();
    assert!(refused.is_err(), "the old primary is fenced");
    assert_eq!(chunk.read(100, 10_000), pattern(5, 10_000));
    chunk.refill();
    chunk.assert_replicas_are_equal();
}

#[test]
fn without_a_lease_nothing_is_served() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(8);
    chunk.write(0, &[1; 10], 1);
    cluster.master.state.lock().unwrap().is_deaf = true;
    wait_until("end of the lease", || matches!(chunk.try_read(0, 10), Err(FsError::TryAgain(_))));
    assert!(matches!(chunk.try_write(0, &[2; 10], 2), Err(FsError::TryAgain(_))));
    cluster.master.state.lock().unwrap().is_deaf = false;
    wait_for_ok("a new lease", || chunk.try_read(0, 10));
    assert_eq!(chunk.read(0, 10), [1; 10]);
}

#[test]
fn a_master_that_forgot_its_servers_gets_them_back() {
    let cluster = Cluster::start();
    cluster.master.state.lock().unwrap().nodes.values_mut().for_each(|node| node.boot = 0);
    wait_until("registration again", || cluster.master.state.lock().unwrap().nodes.values().all(|node| node.boot != 0));
    let chunk = cluster.chunk(9);
    wait_for_ok("service", || chunk.try_write(0, &[1; 10], 1));
}

#[test]
fn deleted_replicas_are_gone_and_do_not_come_back() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(10);
    chunk.write(0, &[1; 10], 1);
    cluster.master.state.lock().unwrap().delete = vec![10, 999];
    wait_until("deletion", || cluster.master.state.lock().unwrap().deleted.len() >= 6);
    for at in 0..3 {
        assert!(!cluster.replica_path(at, 10).exists());
    }
    assert!(matches!(chunk.try_write(0, &[1; 10], 2), Err(FsError::Stale(_))));
    assert!(!cluster.replica_path(0, 10).exists());
}
