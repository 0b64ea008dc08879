//! Several disks, full disks, disks that fail or go away, and files that do not belong on them.

use std::fs;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use dfs_chunkd::ChunkServer;
use dfs_chunkd::core::unit::{UnitState, WriteStamp};
use dfs_chunkd::store::StoreError;
use dfs_chunkd::store::chunk_file::UnitRead;
use dfs_chunkd::store::header::Header;
use dfs_chunkd::store::replica_store::ReplicaStore;
use dfs_proto::{ChunkId, FsError, Version};

use crate::harness::{CHUNK_SIZE_LOG2, Cluster, UNIT, pattern, wait_until};
use crate::master::home;
use crate::mounts;

/// The first server has two, the others one each.
fn two_disks() -> Cluster {
    Cluster::start_with(|at, data, config| {
        if at == 0 {
            config.data = vec![data.join("a"), data.join("b")];
        }
    })
}

fn replicas_in(directory: &std::path::Path) -> Vec<u64> {
    let mut chunks = Vec::new();
    for fan in fs::read_dir(directory.join("replicas")).unwrap() {
        for entry in fs::read_dir(fan.unwrap().path()).unwrap() {
            chunks.push(u64::from_str_radix(entry.unwrap().file_name().to_str().unwrap(), 16).unwrap());
        }
    }
    chunks
}

#[test]
fn replicas_are_spread_over_the_disks_and_found_again() {
    let mut cluster = two_disks();
    for chunk in 1..=40 {
        cluster.chunk(chunk).write(0, &pattern(chunk as u8, 20_000), 1);
    }
    let [a, b] = ["a", "b"].map(|disk| replicas_in(&cluster.data(0).join(disk)).len());
    assert!(a + b == 40 && a > 5 && b > 5, "{a} and {b}");
    cluster.stop(0);
    cluster.restart(0);
    for chunk in 1..=40 {
        let view = cluster.committed(chunk);
        assert_eq!(view.read(0, 20_000), pattern(chunk as u8, 20_000));
    }
}

#[test]
fn a_disk_of_another_server_is_refused_by_name() {
    let mut cluster = two_disks();
    cluster.stop(0);
    cluster.stop(1);
    let b = cluster.data(0).join("b");
    fs::remove_dir_all(&b).unwrap();
    fs::rename(cluster.data(1), &b).unwrap();
    let mut config =
        dfs_chunkd::ChunkdConfig::new(vec![cluster.data(0).join("a"), b.clone()], cluster.master.hot_address.clone());
    config.listen = "127.0.0.1:0".into();
    let error = ChunkServer::start(config).err().unwrap().to_string();
    assert!(error.contains(b.to_str().unwrap()) && error.contains("belongs to server"), "{error}");
}

#[test]
fn a_disk_that_vanishes_is_fenced_and_the_other_one_serves_on() {
    let cluster = two_disks();
    for chunk in 1..=20 {
        cluster.chunk(chunk).write(0, &pattern(chunk as u8, 5_000), 1);
    }
    let a = cluster.data(0).join("a");
    let on_a = replicas_in(&a);
    fs::rename(&a, cluster.data(0).join("gone")).unwrap();
    // What an unmounted disk leaves.
    fs::create_dir(&a).unwrap();
    wait_until("the fence", || cluster.page(0, "/healthz").contains("has failed"));
    wait_until("a report at once", || cluster.master.state.lock().unwrap().failed.contains(&1));
    assert!(cluster.metrics(0).lines().any(|line| line.starts_with("dfs_chunkd_disk_failed") && line.ends_with(" 1")));
    for chunk in &on_a {
        let view = cluster.chunk(*chunk);
        wait_until("its leaving", || !view.record().in_sync.contains(&1));
    }
    for chunk in 1..=20 {
        let view = cluster.committed(chunk);
        assert_eq!(view.read(0, 5_000), pattern(chunk as u8, 5_000), "another member is the primary now");
        assert_eq!(view.record().in_sync.contains(&1), !on_a.contains(&chunk));
        view.write(0, &[9; 100], 2);
    }
    for chunk in 100..110 {
        cluster.chunk(chunk).write(0, &[7; 100], 1);
    }
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0, "nothing is written where the disk was");
}

#[test]
fn a_full_member_leaves_the_sets_that_need_room_keeps_the_others_and_is_filled_when_there_is_room() {
    // 5 % are kept free: 1.2 MiB.
    let mut cluster = Cluster::alone_with(|_, _, config| config.reserve_bytes = 1 << 30);
    let _mounted = mounts::ext4(&cluster.root.path().join("image"), 24 << 20, &cluster.data(1));
    for at in 0..3 {
        cluster.restart(at);
    }
    let data = pattern(1, 1 << CHUNK_SIZE_LOG2);
    let full = (1..40).find(|chunk| {
        cluster.chunk(*chunk).write(0, &data, 1);
        cluster.chunk(*chunk).record().stale == [2]
    });
    let full = full.expect("24 MiB are full");
    assert!(full > 5, "{full}");
    for chunk in 1..=full {
        assert_eq!(cluster.chunk(chunk).read(0, 1 << CHUNK_SIZE_LOG2), data);
    }
    let overwritten = pattern(2, 5_000);
    cluster.chunk(1).write(100, &overwritten, 2);
    cluster.chunk(2).zero(10, 100, 2);
    cluster.chunk(3).barrier().unwrap();
    assert!((1..full).all(|chunk| cluster.chunk(chunk).record().in_sync == [1, 2, 3]), "overwrites need no room");

    // With too few others the write is refused.
    let refused = (full + 1..80).find(|chunk| {
        let pair = cluster.chunk(*chunk);
        pair.set(|record| record.in_sync = vec![1, 2]);
        pair.try_write(0, &data, 10) == Err(FsError::NoSpace)
    });
    let pair = cluster.chunk(refused.expect("24 MiB are full"));
    assert_eq!(pair.record().in_sync, [1, 2]);

    cluster.master.state.lock().unwrap().delete = (4..6).collect();
    wait_until("deletion", || cluster.master.state.lock().unwrap().deleted.len() >= 6);
    wait_until("room", || pair.try_write(0, &data, 50).is_ok());
    cluster.committed(full).refill();
    for chunk in (1..4).chain(6..full + 1) {
        let view = cluster.chunk(chunk);
        let mut expected = data.clone();
        match chunk {
            1 => expected[100..5_100].copy_from_slice(&overwritten),
            2 => expected[10..110].fill(0),
            _ => {}
        }
        assert_eq!(view.read(0, 1 << CHUNK_SIZE_LOG2), expected);
        view.assert_replicas_are_equal();
    }
}

#[test]
fn a_member_whose_disk_others_filled_keeps_nobody_away() {
    let mut cluster = Cluster::alone();
    let mounted = mounts::ext4(&cluster.root.path().join("image"), 16 << 20, &cluster.data(2));
    for at in 0..3 {
        cluster.restart(at);
    }
    let chunk = cluster.chunk(1);
    chunk.write(0, &pattern(1, 10 * UNIT as usize), 1);
    let ballast = mounted.path.join("ballast");
    let filled = fs::File::create(&ballast).unwrap();
    let mut at = 0;
    while filled.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    filled.sync_all().unwrap();
    let chunk = cluster.committed(1);
    // The journal has some room of its own.
    for unit in 20..200 {
        chunk.write(unit * UNIT, &[2; 4096], u64::from(unit));
    }
    assert_eq!(chunk.read(0, 10 * UNIT), pattern(1, 10 * UNIT as usize));
    assert_eq!(chunk.read(199 * UNIT, UNIT), [2; 4096]);
    assert_eq!(chunk.record().in_sync, [1, 2]);
    drop(filled);
    fs::remove_file(&ballast).unwrap();
    chunk.refill();
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_write_that_the_disk_has_no_room_for_leaves_the_replica_as_it_was_and_the_disk_in_use() {
    let root = tempfile::tempdir().unwrap();
    let mounted = mounts::ext4(&root.path().join("image"), 32 << 20, &root.path().join("disk"));
    let store = ReplicaStore::open(std::slice::from_ref(&mounted.path), 0, "boot").unwrap();
    let header =
        Header { chunk: ChunkId(1), version: Version(1), home: home(1), chunk_size_log2: 26, incomplete: false };
    let open = store.create_replica(&header).unwrap();
    let content = Bytes::from(vec![7; 256 * UNIT as usize]);
    let state = |seq| UnitState::data(WriteStamp { version: Version(1), seq }, crc32c::crc32c(&content[..4096]));
    let mut seq = 0;
    let failed = loop {
        seq += 1;
        let first = (seq as u32 - 1) * 256;
        let put = open.disk.judge(open.file.put(first, &vec![state(seq); 256], &content, None));
        if let Err(error) = put {
            break (first, error);
        }
    };
    assert!(matches!(failed.1, StoreError::NoSpace), "{}", failed.1);
    assert!(!open.disk.has_failed());
    let mut buffer = content.to_vec();
    for first in (0..failed.0).step_by(256) {
        let units = open.file.read(first, 256, &mut buffer).unwrap();
        assert!(units.iter().all(|unit| matches!(unit, UnitRead::Good(state) if !state.hole)));
        assert_eq!(buffer, content);
    }
    let units = open.file.read(failed.0, 256, &mut buffer).unwrap();
    assert!(units.iter().all(|unit| *unit == UnitRead::Good(UnitState::NEVER)), "nothing of it counts");
    open.file.zero(0, 256, WriteStamp { version: Version(1), seq: seq + 1 }, None).unwrap();
    open.file.put(0, &[state(seq + 2)], &content.slice(..4096), None).unwrap();
    open.sync().unwrap();
}

#[test]
fn a_failed_sync_fences_the_disk_and_is_never_asked_again() {
    let mut cluster = Cluster::alone();
    // An ext4 that believes in more room than the medium below it has: what the kernel accepts it cannot write.
    let below = mounts::tmpfs(&cluster.root.path().join("below"), 6 << 20);
    let _mounted = mounts::ext4(&below.path.join("image"), 64 << 20, &cluster.data(1));
    for at in 0..3 {
        cluster.restart(at);
    }
    let data = pattern(1, 1 << CHUNK_SIZE_LOG2);
    cluster.chunk(1).write(0, &data, 1);
    cluster.chunk(1).barrier().unwrap();
    let failed = (2..12).map(|chunk| {
        let view = cluster.chunk(chunk);
        view.try_write(0, &data, 1).and_then(|_| view.barrier())
    });
    let _ = failed.filter(Result::is_err).count();
    wait_until("the fence", || cluster.page(1, "/healthz").contains("has failed"));
    let chunk = cluster.committed(1);
    chunk.barrier().unwrap();
    wait_until("its leaving", || !chunk.record().in_sync.contains(&2));
    chunk.write(0, &[1; 10], 2);
    let read = chunk.fetch_from(1, 1);
    assert!(matches!(&read, Err(FsError::NoReplica(_))), "the failed disk serves nothing: {read:?}");
    // What it may have lost it says itself, also in its next run.
    cluster.stop(1);
    cluster.start_server(1);
    wait_until("its word", || cluster.master.state.lock().unwrap().nodes[&2].suspect);
}

#[test]
fn damaged_headers_strays_and_planted_links_cost_nothing_but_a_copy() {
    let mut cluster = Cluster::start();
    let data = pattern(1, 5 * UNIT as usize);
    for chunk in 1..=6 {
        cluster.chunk(chunk).write(0, &data, 1);
        cluster.chunk(chunk).barrier().unwrap();
    }
    cluster.kill(1);
    let path = |chunk| cluster.replica_path(1, chunk);
    let secret = cluster.root.path().join("secret");
    fs::write(&secret, b"not ours to touch").unwrap();
    // A flipped bit in the header, a header of zeros, a short file, another chunk's file.
    let file = fs::OpenOptions::new().write(true).open(path(1)).unwrap();
    file.write_all_at(b"!", 20).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path(2)).unwrap();
    file.write_all_at(&[0; 512], 0).unwrap();
    fs::write(path(3), b"short").unwrap();
    fs::copy(path(5), path(4)).unwrap();
    // A link in the place of a replica, and a directory; and things in places that are still free.
    fs::remove_file(path(5)).unwrap();
    std::os::unix::fs::symlink(&secret, path(5)).unwrap();
    fs::remove_file(path(6)).unwrap();
    fs::create_dir(path(6)).unwrap();
    std::os::unix::fs::symlink(&secret, path(7)).unwrap();
    fs::write(cluster.data(1).join("replicas/00/stray"), b"stray").unwrap();
    fs::write(cluster.data(1).join("stray"), b"stray").unwrap();
    cluster.restart(1);
    for chunk in 1..=6 {
        let view = cluster.committed(chunk);
        view.write(0, &data[..10], 2);
        assert_eq!(view.read(0, 5 * UNIT), data);
        view.refill();
        view.assert_replicas_are_equal();
    }
    cluster.chunk(7).write(0, &data, 1);
    cluster.chunk(7).assert_replicas_are_equal();
    assert_eq!(fs::read(&secret).unwrap(), b"not ours to touch");
    assert!(cluster.page(1, "/healthz").contains("200"), "nothing of this is the disk's fault");
}
