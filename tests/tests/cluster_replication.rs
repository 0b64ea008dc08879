//! Chunk servers die, come back, lose their disks and their bits: programs go on, and nothing is lost.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads and files")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{Cluster, Server};
use dfs_tests::figures::placed::{differing, first_chunk, piece, wait_replicated, write};
use dfs_tests::wait;

/// Until everything has its replicas again: a verdict of 3 s, and little to copy.
const REPLICATED: Duration = Duration::from_secs(60);
/// A server is dead for the master after 3 s, so that its replicas are remade; the rest is as it comes.
const SETTINGS: [(&str, &str); 2] = [("DFS_MASTER_OFFLINE_MS", "3000"), ("DFS_MASTER_REPORT_MS", "1000")];
const PIECES: u64 = 6;

fn with(chunk_servers: usize, body: impl FnOnce(&mut Cluster, &Path) -> Result<()>) {
    let mut cluster = match Cluster::start(chunk_servers, &SETTINGS) {
        Ok(cluster) => cluster,
        Err(error) => panic!("{error:?}"),
    };
    let outcome = cluster.mount_with("", "hard").and_then(|mount| {
        let directory = cluster.dir(mount);
        body(&mut cluster, &directory)?;
        cluster.stop().context("stopping the cluster")
    });
    if let Err(error) = outcome {
        cluster.print_logs();
        panic!("{error:?}");
    }
}

fn make(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("f");
    write(&path, 0..PIECES)?;
    Ok(path)
}

/// Overwrites a piece and syncs. Returns how long that took.
fn overwrite(path: &Path, index: u64, seed: u64) -> Result<Duration> {
    let began = Instant::now();
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&piece(seed), index << 20)?;
    file.sync_all().context("fsync")?;
    Ok(began.elapsed())
}

fn check(path: &Path, seeds: &[u64]) -> Result<()> {
    ensure!(differing(path, seeds)? == 0, "{} differs", path.display());
    Ok(())
}

#[test]
fn a_secondary_that_dies_is_left_behind_within_seconds_and_replaced() {
    with(4, |cluster, directory| {
        let path = make(directory)?;
        let placed = first_chunk(cluster, &path)?;
        let victim = *placed.replicas.iter().find(|index| **index != placed.primary).context("no secondary")?;
        cluster.daemon(Server::Chunk(victim)).kill9()?;
        let took = overwrite(&path, 1, 100)?;
        ensure!(took < Duration::from_secs(6), "a write waited for {took:?}");
        wait_replicated(cluster, 3, REPLICATED)?;
        let now = first_chunk(cluster, &path)?;
        ensure!(now.replicas.len() == 3 && !now.replicas.contains(&victim), "{now:?} after {placed:?}");
        check(&path, &[0, 100, 2, 3, 4, 5])
    });
}

#[test]
fn a_primary_that_dies_is_replaced_and_what_was_synced_is_read_from_the_next() {
    with(3, |cluster, directory| {
        let path = make(directory)?;
        let placed = first_chunk(cluster, &path)?;
        overwrite(&path, 0, 50)?;
        cluster.daemon(Server::Chunk(placed.primary)).kill9()?;
        let took = overwrite(&path, 2, 51)?;
        ensure!(took < Duration::from_secs(12), "a write waited for {took:?}");
        let fresh = cluster.mount()?;
        check(&cluster.dir(fresh).join("f"), &[50, 1, 51, 3, 4, 5])?;
        let now = first_chunk(cluster, &path)?;
        ensure!(now.primary != placed.primary, "server {} is still the primary", now.primary);
        Ok(())
    });
}

#[test]
fn a_server_that_was_away_misses_nothing_once_it_is_in_sync_again() {
    with(3, |cluster, directory| {
        let path = make(directory)?;
        let mut seeds: Vec<u64> = (0..PIECES).collect();
        for (away, piece) in seeds[..3].iter_mut().enumerate() {
            cluster.daemon(Server::Chunk(away)).kill9()?;
            let seed = 200 + away as u64;
            overwrite(&path, away as u64, seed)?;
            *piece = seed;
            cluster.daemon(Server::Chunk(away)).start()?;
            cluster.wait_ready()?;
            wait_replicated(cluster, 3, REPLICATED)?;
        }
        // Each server missed one piece: the last one alone has all of them.
        cluster.daemon(Server::Chunk(0)).kill9()?;
        cluster.daemon(Server::Chunk(1)).kill9()?;
        let fresh = cluster.mount()?;
        check(&cluster.dir(fresh).join("f"), &seeds)?;
        cluster.daemon(Server::Chunk(0)).start()?;
        cluster.daemon(Server::Chunk(1)).start()?;
        cluster.wait_ready()
    });
}

#[test]
fn with_one_replica_left_reads_go_on_and_writes_wait_for_a_second_one() {
    with(3, |cluster, directory| {
        let path = make(directory)?;
        let placed = first_chunk(cluster, &path)?;
        for victim in placed.replicas.iter().filter(|index| **index != placed.primary) {
            cluster.daemon(Server::Chunk(*victim)).kill9()?;
        }
        // Another process writes: one that is started by us would wait for what we have open there to be closed.
        let source = cluster.root().join("piece");
        std::fs::write(&source, piece(300))?;
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", source.display())).arg(format!("of={}", path.display()));
        let mut writing = dd.args(["bs=1M", "seek=3", "conv=notrunc,fsync"]).stderr(Stdio::null()).spawn()?;
        let fresh = cluster.mount()?;
        let bytes = std::fs::read(cluster.dir(fresh).join("f"))?;
        ensure!(bytes[..1 << 20] == piece(0), "the first piece differs");
        ensure!(writing.try_wait()?.is_none(), "a write of one replica was synced");
        for victim in placed.replicas.iter().filter(|index| **index != placed.primary) {
            cluster.daemon(Server::Chunk(*victim)).start()?;
        }
        cluster.wait_ready()?;
        let ended =
            wait::until("the write is synced", Duration::from_secs(60), || writing.try_wait()?.context("it waits"))?;
        ensure!(ended.success(), "dd: {ended}");
        wait_replicated(cluster, 3, REPLICATED)?;
        check(&path, &[0, 1, 2, 300, 4, 5])
    });
}

#[test]
fn a_server_with_a_new_empty_disk_is_filled() {
    with(3, |cluster, directory| {
        let path = make(directory)?;
        cluster.daemon(Server::Chunk(1)).kill9()?;
        let data = cluster.root().join("chunkd1");
        std::fs::remove_dir_all(&data)?;
        std::fs::create_dir(&data)?;
        cluster.daemon(Server::Chunk(1)).start()?;
        overwrite(&path, 5, 400)?;
        wait_replicated(cluster, 3, REPLICATED)?;
        cluster.daemon(Server::Chunk(0)).kill9()?;
        cluster.daemon(Server::Chunk(2)).kill9()?;
        let fresh = cluster.mount()?;
        check(&cluster.dir(fresh).join("f"), &[0, 1, 2, 3, 4, 400])?;
        cluster.daemon(Server::Chunk(0)).start()?;
        cluster.daemon(Server::Chunk(2)).start()?;
        cluster.wait_ready()
    });
}

#[test]
fn a_flipped_bit_is_not_returned_and_is_mended() {
    with(3, |cluster, directory| {
        let path = make(directory)?;
        let primary = first_chunk(cluster, &path)?.primary;
        cluster.daemon(Server::Chunk(primary)).stop(Duration::from_secs(30))?;
        cluster.daemon(Server::Chunk(primary)).start()?;
        cluster.wait_ready()?;
        wait_replicated(cluster, 3, REPLICATED)?;
        // Wherever the primary is now, and on no other server: piece 2 of its file.
        let primary = first_chunk(cluster, &path)?.primary;
        let (mut found, wanted) = (None, piece(2));
        let mut directories = vec![cluster.root().join(format!("chunkd{primary}"))];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    directories.push(path);
                } else if let Ok(bytes) = std::fs::read(&path)
                    && let Some(at) = bytes.chunks(4096).position(|unit| unit == &wanted[..4096])
                {
                    found = Some((path, at as u64 * 4096));
                }
            }
        }
        let (file, offset) = found.context("the piece is in no file of the primary")?;
        let file = OpenOptions::new().read(true).write(true).open(file)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset + 77)?;
        file.write_all_at(&[byte[0] ^ 4], offset + 77)?;
        let fresh = cluster.mount()?;
        check(&cluster.dir(fresh).join("f"), &(0..PIECES).collect::<Vec<_>>())?;
        let on_disk = || -> Result<()> {
            let mut now = [0];
            file.read_exact_at(&mut now, offset + 77)?;
            ensure!(now == byte, "it is still {now:?}");
            Ok(())
        };
        wait::until("the bit is mended on disk", Duration::from_secs(20), on_disk)
    });
}
