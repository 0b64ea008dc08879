//! Several disks, full disks, disks that fail or go away, and files that do not belong on them.

use std::fs;
use std::os::unix::fs::FileExt;

use dfs_chunkd::ChunkServer;
use dfs_chunkd::core::unit::{UnitState, WriteStamp};
use dfs_chunkd::store::StoreError;
use dfs_chunkd::store::header::Header;
use dfs_chunkd::store::replica_store::ReplicaStore;
use dfs_proto::{ChunkId, FsError, Version};

use crate::harness::{CHUNK_SIZE_LOG2, Cluster, UNIT, pattern, wait_for_ok, wait_until};
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
        let mut view = cluster.chunk(chunk);
        view.may_create = false;
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
    for chunk in 1..=20 {
        let view = cluster.chunk(chunk);
        let read = view.try_read(0, 5_000);
        if on_a.contains(&chunk) {
            assert!(matches!(&read, Err(FsError::NoReplica(_))), "{read:?}");
        } else {
            assert_eq!(read.unwrap().unwrap(), pattern(chunk as u8, 5_000));
        }
    }
    for chunk in 100..110 {
        cluster.chunk(chunk).write(0, &[7; 100], 1);
    }
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0, "nothing is written where the disk was");
}

#[test]
fn a_full_member_refuses_writes_reads_go_on_and_deletions_make_room() {
    // 5 % are kept free: 1.2 MiB, enough for the write that the others have taken when one says that it is full.
    let mut cluster = Cluster::alone_with(|_, _, config| config.reserve_bytes = 1 << 30);
    let _mounted = mounts::ext4(&cluster.root.path().join("image"), 24 << 20, &cluster.data(1));
    for at in 0..3 {
        cluster.restart(at);
    }
    let data = pattern(1, 1 << CHUNK_SIZE_LOG2);
    let mut full = None;
    for chunk in 1..40 {
        match cluster.chunk(chunk).try_write(0, &data, 1) {
            Ok(_) => {}
            Err(FsError::NoSpace) => {
                full = Some(chunk);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let full = full.expect("24 MiB are full");
    assert!(full > 10, "{full}");
    let overwritten = pattern(2, 5_000);
    for chunk in 1..full {
        assert_eq!(cluster.chunk(chunk).read(0, 1 << CHUNK_SIZE_LOG2), data);
    }
    cluster.chunk(1).write(100, &overwritten, 2);
    cluster.chunk(2).zero(10, 100, 2);
    cluster.chunk(3).barrier().unwrap();
    // Again and again, longer than it is taken for full without being asked: it costs no room.
    let free = || nix::sys::statvfs::statvfs(&cluster.data(1)).unwrap().blocks_free();
    let before = free();
    let asked = std::time::Instant::now();
    while asked.elapsed() < std::time::Duration::from_millis(11_000) {
        assert!(matches!(cluster.chunk(full + 1).try_write(0, &data, 3), Err(FsError::NoSpace)));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(before - free() < 16, "{before} blocks were free, now {}", free());

    let delete: Vec<u64> = (4..8).collect();
    cluster.master.state.lock().unwrap().delete = delete;
    wait_until("deletion", || cluster.master.state.lock().unwrap().deleted.len() >= 12);
    wait_until("room", || match cluster.chunk(full + 1).try_write(0, &data, 3) {
        Ok(_) => true,
        Err(FsError::NoSpace) => false,
        Err(error) => panic!("{error}"),
    });
    cluster.chunk(full).write(0, &data, 1);
    for chunk in (1..4).chain(8..full + 2) {
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
fn a_member_whose_disk_others_filled_does_not_keep_readers_away() {
    let mut cluster = Cluster::alone();
    let mounted = mounts::ext4(&cluster.root.path().join("image"), 24 << 20, &cluster.data(2));
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
    wait_until("the refusal", || matches!(chunk.try_write(20 * UNIT, &[2; 4096], 2), Err(FsError::NoSpace)));
    assert_eq!(chunk.read(0, 10 * UNIT), pattern(1, 10 * UNIT as usize));
    assert!(matches!(chunk.try_write(30 * UNIT, &[2; 4096], 4), Err(FsError::NoSpace)));
    assert_eq!(chunk.read(0, 10 * UNIT), pattern(1, 10 * UNIT as usize));
    drop(filled);
    fs::remove_file(&ballast).unwrap();
    wait_for_ok("room", || chunk.try_write(20 * UNIT, &[2; 4096], 2));
    assert_eq!(chunk.read(20 * UNIT, UNIT), [2; 4096]);
    chunk.assert_replicas_are_equal();
}

#[test]
fn a_write_that_the_disk_has_no_room_for_leaves_the_replica_as_it_was_and_the_disk_in_use() {
    let root = tempfile::tempdir().unwrap();
    let mounted = mounts::ext4(&root.path().join("image"), 24 << 20, &root.path().join("disk"));
    let store = ReplicaStore::open(std::slice::from_ref(&mounted.path), 0, "boot").unwrap();
    let header = Header {
        chunk: ChunkId(1),
        version: Version(1),
        home: Default::default(),
        chunk_size_log2: 26,
        incomplete: false,
    };
    let open = store.create_replica(&header).unwrap();
    let content = bytes::Bytes::from(vec![7; 256 * UNIT as usize]);
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
        open.file.read(first, 256, &mut buffer).unwrap();
        assert_eq!(buffer, content);
    }
    open.file.put(0, &[state(seq + 1)], &content.slice(..4096), None).unwrap();
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
    let error = failed.filter_map(Result::err).next().expect("the medium is full");
    assert!(matches!(&error, FsError::NoReplica(reason) if reason.contains("node 2")), "{error}");
    assert!(cluster.page(1, "/healthz").contains("has failed"));
    assert!(cluster.chunk(1).barrier().is_err());
    assert!(cluster.chunk(1).try_write(0, &[1; 10], 2).is_err());
    let mut moved = cluster.chunk(1);
    (moved.version, moved.primary, moved.may_create) = (2, 1, false);
    let read = moved.try_read(0, 10);
    assert!(matches!(&read, Err(FsError::NoReplica(_))), "the failed disk serves no reads: {read:?}");
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
        let mut view = cluster.chunk(chunk);
        view.may_create = false;
        view.write(0, &data[..10], 2);
        assert_eq!(view.read(0, 5 * UNIT), data);
        view.assert_replicas_are_equal();
    }
    cluster.chunk(7).write(0, &data, 1);
    cluster.chunk(7).assert_replicas_are_equal();
    assert_eq!(fs::read(&secret).unwrap(), b"not ours to touch");
    assert!(cluster.page(1, "/healthz").contains("200"), "nothing of this is the disk's fault");
}
