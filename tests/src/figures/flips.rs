//! Bits rot in chunk files: all of it is found, none of it is returned to a reader, all of it is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::placed;
use crate::cluster::{Cluster, Server};
use crate::random::Random;
use crate::{daemon, program, wait};

const FLIPS: usize = 1200;
const FILES: u64 = 4;
const FILE_PIECES: u64 = 48;
const UNIT: u64 = 4096;
/// Data lies behind the header and the table of units: `chunkd/src/store/layout.rs`.
const DATA_OFFSET: u64 = 1 << 20;
const FSCK: Duration = Duration::from_secs(300);

/// Measures it.
///
/// # Errors
///
/// If a flip was missed, returned or not mended.
pub fn measure() -> Result<()> {
    super::with(3, &[], run)
}

fn run(cluster: &mut Cluster) -> Result<()> {
    let mount = cluster.mount()?;
    let directory = cluster.dir(mount);
    for file in 0..FILES {
        placed::write(&directory.join(format!("f{file}")), file * FILE_PIECES..(file + 1) * FILE_PIECES)?;
    }
    // Everything is in chunk files once the servers have started anew.
    let servers = cluster.servers();
    for server in &servers[1..] {
        cluster.daemon(*server).stop(Duration::from_secs(60))?;
        cluster.daemon(*server).start()?;
        cluster.wait_ready()?;
        placed::wait_replicated(cluster, 3, Duration::from_secs(120))?;
    }

    let files = chunk_files(cluster, 3)?;
    let mut random = Random::new(7);
    let mut struck: BTreeSet<(String, u64)> = BTreeSet::new();
    let mut flipped: BTreeMap<PathBuf, Vec<(u64, u8)>> = BTreeMap::new();
    while struck.len() < FLIPS {
        let path = random.pick(&files);
        let length = std::fs::metadata(path)?.len();
        if length <= DATA_OFFSET {
            continue;
        }
        let unit = random.below((length - DATA_OFFSET).div_ceil(UNIT));
        let chunk = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        // One replica of a unit only: nothing survives the loss of all three, and chance shall not decide.
        if !struck.insert((chunk, unit)) {
            continue;
        }
        let offset = DATA_OFFSET + unit * UNIT + random.below(UNIT);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut byte = [0];
        if file.read_at(&mut byte, offset)? == 0 {
            continue;
        }
        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], offset)?;
        flipped.entry(path.clone()).or_default().push((offset, byte[0]));
    }
    let before: f64 = counter(cluster, "dfs_chunkd_corrupt_units_total")?;

    // Readers first: what primaries hold damaged is found on the way.
    let fresh = cluster.mount()?;
    let mut bad = 0;
    for file in 0..FILES {
        let seeds: Vec<u64> = (file * FILE_PIECES..(file + 1) * FILE_PIECES).collect();
        bad += placed::differing(&cluster.dir(fresh).join(format!("f{file}")), &seeds)?;
    }
    let by_reads = counter(cluster, "dfs_chunkd_corrupt_units_total")? - before;
    let first = fsck(cluster, &["--deep", "--repair"])?;
    let found = counter(cluster, "dfs_chunkd_corrupt_units_total")? - before;
    let second =
        wait::until_every("a check that finds nothing", Duration::from_secs(120), Duration::from_secs(1), || {
            let ended = fsck(cluster, &["--deep"])?;
            ensure!(ended.status.success(), "{}", ended.text());
            Ok(ended)
        })?;
    // What was mended lies in a journal first, and reaches the chunk file from there.
    let unmended = || -> Result<usize> {
        let mut count = 0;
        for (path, bytes) in &flipped {
            let file = File::open(path)?;
            for (offset, expected) in bytes {
                let mut byte = [0];
                file.read_exact_at(&mut byte, *offset)?;
                count += usize::from(byte != [*expected]);
            }
        }
        Ok(count)
    };
    let on_disk = wait::until_every("chunk files are mended", Duration::from_secs(60), Duration::from_secs(1), || {
        let count = unmended()?;
        ensure!(count == 0, "{count} of {} bytes are not as they were", struck.len());
        Ok(())
    });
    let mended = struck.len() - unmended()?;
    println!("\n{} flips in {} chunk files of {} MiB of data", struck.len(), flipped.len(), FILES * FILE_PIECES);
    println!("found {by_reads} by reads, {found} in all; mended {mended}; {bad} pieces were returned damaged");
    println!("fsck --deep --repair:\n{}\nfsck --deep:\n{}", first.text(), second.text());

    // Each of the three replicas by itself: what was mended is right.
    for file in 0..FILES {
        let seeds: Vec<u64> = (file * FILE_PIECES..(file + 1) * FILE_PIECES).collect();
        bad += placed::differing(&directory.join(format!("f{file}")), &seeds)?;
    }
    ensure!(bad == 0, "{bad} pieces were returned damaged");
    ensure!(found >= struck.len() as f64, "{found} of {} flips were found", struck.len());
    on_disk?;
    Ok(())
}

fn fsck(cluster: &Cluster, words: &[&str]) -> Result<program::Ended> {
    let mut command = daemon::command()?;
    command.arg("fsck").args(words).args(["--master", &cluster.address()]);
    program::run(&mut command, FSCK)
}

fn counter(cluster: &Cluster, name: &str) -> Result<f64> {
    (0..3).map(|index| placed::metric(cluster, Server::Chunk(index), name)).sum()
}

fn chunk_files(cluster: &Cluster, servers: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> =
        (0..servers).map(|index| cluster.root().join(format!("chunkd{index}"))).collect();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if is_chunk_file(&path) {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Chunk files have the chunk's id as their name, below `replicas/`.
fn is_chunk_file(path: &Path) -> bool {
    path.to_string_lossy().contains("replicas/")
}
