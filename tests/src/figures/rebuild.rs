//! A server dies for good: its replicas are made anew elsewhere, while a program goes on writing and reading.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::placed::{self, PIECE};
use crate::cluster::{Cluster, Server};
use crate::random::Random;
use crate::wait;

/// With three replicas on four servers, each server has 1 GiB of these.
const CHUNKS: u64 = 22;
const CHUNK_PIECES: u64 = 64;
const OFFLINE_MS: u64 = 5_000;
const START_MAX: Duration = Duration::from_secs(15);
const DONE_MAX: Duration = Duration::from_secs(60);
const BEFORE: Duration = Duration::from_secs(10);

/// Measures it.
///
/// # Errors
///
/// If it starts late, ends late, or leaves the program less than half of its rate.
pub fn measure() -> Result<()> {
    let offline = OFFLINE_MS.to_string();
    super::with(4, &[("DFS_MASTER_OFFLINE_MS", &offline), ("DFS_MASTER_REPORT_MS", "2000")], run)
}

fn run(cluster: &mut Cluster) -> Result<()> {
    let mount = cluster.mount()?;
    let directory = cluster.dir(mount);
    for chunk in 0..CHUNKS {
        placed::write(&directory.join(format!("c{chunk}")), chunk * CHUNK_PIECES..(chunk + 1) * CHUNK_PIECES)?;
    }
    let foreground = directory.join("foreground");
    placed::write(&foreground, 0..CHUNK_PIECES)?;
    let victim = 0;
    let held = placed::metric(cluster, Server::Chunk(victim), "dfs_chunkd_replicas")?;

    let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let working = {
        let (bytes, stop) = (Arc::clone(&bytes), Arc::clone(&stop));
        std::thread::spawn(move || work(foreground, &bytes, &stop))
    };
    let rate = |from: u64, since: Instant| (bytes.load(Ordering::SeqCst) - from) as f64 / since.elapsed().as_secs_f64();
    let (from, since) = (bytes.load(Ordering::SeqCst), Instant::now());
    std::thread::sleep(BEFORE);
    let before = rate(from, since);

    cluster.daemon(Server::Chunk(victim)).kill9()?;
    wait::until_every("the verdict", Duration::from_secs(60), Duration::from_millis(100), || {
        let status = cluster.status()?;
        let offline = status["nodes"].as_array().context("no nodes")?.iter().any(|node| node["state"] == "offline");
        ensure!(offline, "no server is offline");
        Ok(())
    })?;
    let (verdict, from) = (Instant::now(), bytes.load(Ordering::SeqCst));
    let copied = |cluster: &Cluster| -> Result<f64> {
        (1..4).map(|server| placed::metric(cluster, Server::Chunk(server), "dfs_chunkd_copied_bytes_total")).sum()
    };
    let at_verdict = copied(cluster)?;
    wait::until_every("it starts", Duration::from_secs(60), Duration::from_millis(100), || {
        ensure!(copied(cluster)? > at_verdict, "nothing is copied");
        Ok(())
    })?;
    let start = verdict.elapsed();
    placed::wait_replicated(cluster, 3, Duration::from_secs(300))?;
    let done = verdict.elapsed();
    let during = rate(from, verdict);
    stop.store(true, Ordering::SeqCst);
    working.join().ok().context("the program panicked")??;
    let total = copied(cluster)? - at_verdict;
    println!("\na server with {held} replicas is dead; verdict after {OFFLINE_MS} ms");
    println!(
        "copying starts {:.1} s after the verdict, all is replicated after {:.1} s",
        start.as_secs_f64(),
        done.as_secs_f64()
    );
    println!("{:.0} MiB copied, {:.0} MiB/s", total / 1048576.0, total / 1048576.0 / (done - start).as_secs_f64());
    println!(
        "the program writes and reads {:.1} MiB/s before, {:.1} MiB/s meanwhile: {:.0} %",
        before / 1048576.0,
        during / 1048576.0,
        100.0 * during / before
    );
    for chunk in 0..CHUNKS {
        let seeds: Vec<u64> = (chunk * CHUNK_PIECES..(chunk + 1) * CHUNK_PIECES).collect();
        ensure!(placed::differing(&directory.join(format!("c{chunk}")), &seeds)? == 0, "file c{chunk} differs");
    }
    ensure!(start <= START_MAX, "it must start within {START_MAX:?}");
    ensure!(done <= DONE_MAX, "it must be done within {DONE_MAX:?}");
    ensure!(during >= before / 2.0, "the program must keep half of its rate");
    Ok(())
}

/// Overwrites and reads random pieces, and syncs now and then.
fn work(path: PathBuf, bytes: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let (mut random, mut buffer) = (Random::new(5), vec![0u8; PIECE + 4096]);
    let at = buffer.as_ptr().align_offset(4096);
    let buffer = &mut buffer[at..at + PIECE];
    for number in 0u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let offset = random.below(CHUNK_PIECES) * PIECE as u64;
        if number % 2 == 0 {
            file.write_all_at(buffer, offset)?;
            if number % 8 == 0 {
                file.sync_data()?;
            }
        } else {
            file.read_exact_at(buffer, offset)?;
        }
        bytes.fetch_add(PIECE as u64, Ordering::SeqCst);
    }
    Ok(())
}
