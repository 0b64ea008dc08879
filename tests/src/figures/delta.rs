//! A server is away while part of a large file is overwritten: back again, it copies what it missed.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::placed::{self, PIECE};
use crate::cluster::{Cluster, Server};
use crate::random::Random;

const OVERWRITTEN: u64 = 100;
const COPIED_MAX: f64 = 150.0;

/// Measures it on a file of 1 GiB, or of 10 if `full`.
///
/// # Errors
///
/// If more than 150 MiB are copied, or the file is not as it must be.
pub fn measure(full: bool) -> Result<()> {
    super::with(3, &[], |cluster| run(cluster, if full { 10 << 10 } else { 1 << 10 }))
}

fn run(cluster: &mut Cluster, pieces: u64) -> Result<()> {
    let mount = cluster.mount()?;
    let path = cluster.dir(mount).join("large");
    let mut seeds: Vec<u64> = (0..pieces).collect();
    placed::write(&path, seeds.iter().copied())?;
    placed::wait_replicated(cluster, 3, Duration::from_secs(60))?;
    let away = Server::Chunk(2);
    cluster.daemon(away).kill9()?;

    let mut random = Random::new(11);
    let mut order: Vec<u64> = (0..pieces).collect();
    random.shuffle(&mut order);
    let file = OpenOptions::new().write(true).open(&path)?;
    for index in &order[..OVERWRITTEN as usize] {
        seeds[*index as usize] = pieces + index;
        file.write_all_at(&placed::piece(pieces + index), index * PIECE as u64)?;
    }
    file.sync_all()?;
    drop(file);

    // Who sends or fetches counts, not the other side.
    let counted = |cluster: &Cluster| -> Result<f64> {
        (0..2).map(|index| placed::metric(cluster, Server::Chunk(index), "dfs_chunkd_copied_bytes_total")).sum()
    };
    let before = counted(cluster)?;
    cluster.daemon(away).start()?;
    cluster.wait_ready()?;
    let took = placed::wait_replicated(cluster, 3, Duration::from_secs(600))?;
    let itself = placed::metric(cluster, away, "dfs_chunkd_copied_bytes_total")?;
    let copied = (counted(cluster)? - before + itself) / 1048576.0;
    println!("\n{OVERWRITTEN} MiB of {pieces} MiB were overwritten while a server was away");
    println!("it copied {copied:.1} MiB, and was in sync {:.1} s after it was back", took.as_secs_f64());
    // The others go: what it copied is read.
    ensure!(placed::differing(&path, &seeds)? == 0, "the file differs");
    let other = placed::first_chunk(cluster, &path)?.replicas.into_iter().find(|index| *index != 2).unwrap_or(0);
    cluster.daemon(Server::Chunk(other)).kill9()?;
    ensure!(placed::differing(&path, &seeds)? == 0, "the file differs without server {other}");
    ensure!(copied > 0.0, "the counter says nothing");
    ensure!(copied <= COPIED_MAX, "at most {COPIED_MAX} MiB are allowed");
    Ok(())
}
