//! kill -9 of a chunk server that stays dead, under a writing and a reading fio.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::placed;
use crate::cluster::{Cluster, Server};
use crate::program;

const RUN: Duration = Duration::from_secs(25);
const KILL_AFTER: Duration = Duration::from_secs(8);
const FILES: usize = 12;

/// Longest latency that is allowed after the loss of a secondary, and of a primary.
const SECONDARY_MAX: Duration = Duration::from_secs(4);
const PRIMARY_MAX: Duration = Duration::from_secs(8);

/// Measures both.
///
/// # Errors
///
/// If an operation failed or took too long.
pub fn measure() -> Result<()> {
    let secondary = super::with(4, &[], |cluster| one(cluster, false));
    let primary = super::with(4, &[], |cluster| one(cluster, true));
    secondary.context("a secondary is killed").and(primary.context("the primary is killed"))
}

fn one(cluster: &mut Cluster, primary: bool) -> Result<()> {
    program::need("fio")?;
    let mount = cluster.mount()?;
    let directory = cluster.dir(mount);
    let mut files = Vec::new();
    for index in 0..FILES {
        let path = directory.join(format!("f{index}"));
        placed::write(&path, 0..16)?;
        files.push((placed::first_chunk(cluster, &path)?, path));
    }
    let (written, write_path) = files[0].clone();
    let (victim, read_path) = if primary {
        // The read file has the same primary, so that both feel it.
        let other = files[1..].iter().find(|(placed, _)| placed.primary == written.primary);
        (written.primary, other.context("no other file has that primary")?.1.clone())
    } else {
        let fits = |victim: &&usize| **victim != written.primary;
        let victim = *written.replicas.iter().find(fits).context("no secondary")?;
        let other = files[1..].iter().find(|(placed, _)| placed.primary != victim && placed.replicas.contains(&victim));
        (victim, other.context("no other file has a secondary there")?.1.clone())
    };
    let mut fio = Command::new("fio");
    fio.args(["--output-format=json+", "--ioengine=psync", "--direct=1", "--time_based", "--bs=64k", "--size=16m"]);
    fio.arg(format!("--runtime={}", RUN.as_secs()));
    fio.args(["--name=write", "--rw=randwrite", "--sync=1", &format!("--filename={}", write_path.display())]);
    fio.args(["--name=read", "--rw=randread", &format!("--filename={}", read_path.display())]);
    let running = std::thread::spawn(move || program::run(&mut fio, RUN + Duration::from_secs(60)));
    std::thread::sleep(KILL_AFTER);
    cluster.daemon(Server::Chunk(victim)).kill9()?;
    let ended = running.join().ok().context("the thread of fio panicked")??;
    let what = if primary { "the primary" } else { "a secondary" };
    println!("\nkill -9 of {what} after {KILL_AFTER:?}, which stays dead; 64 KiB, the writes O_SYNC, {RUN:?}");
    let json = ended.stdout.find('{').map(|at| &ended.stdout[at..]).context("fio said no JSON")?;
    let result: Value = serde_json::from_str(json).with_context(|| format!("fio said {}", ended.text()))?;
    let limit = if primary { PRIMARY_MAX } else { SECONDARY_MAX };
    let mut missed = Vec::new();
    for (index, direction) in ["write", "read"].into_iter().enumerate() {
        let job = &result["jobs"][index];
        let (count, errors) = (job[direction]["total_ios"].as_u64().unwrap_or(0), job["error"].as_i64().unwrap_or(-1));
        let longest = Duration::from_nanos(job[direction]["clat_ns"]["max"].as_f64().unwrap_or(0.0) as u64);
        println!("{direction}: {count} operations, longest {:.2} s, error {errors}", longest.as_secs_f64());
        histogram(&job[direction]["clat_ns"]["bins"]);
        if errors != 0 || count == 0 || longest > limit {
            missed.push(format!("{direction}: error {errors}, {count} operations, longest {longest:?}"));
        }
    }
    ensure!(ended.status.success(), "fio: {}: {}", ended.status, ended.stderr);
    ensure!(missed.is_empty(), "no error and at most {limit:?} are allowed: {}", missed.join("; "));
    program::ok(Path::new("/"), "sync", ["-f".as_ref(), directory.as_os_str()], Duration::from_secs(60)).map(drop)
}

/// Prints how many operations took how long, in powers of two.
fn histogram(bins: &Value) {
    let mut counts = std::collections::BTreeMap::new();
    for (nanos, count) in bins.as_object().into_iter().flatten() {
        let micros = nanos.parse::<u64>().unwrap_or(0) / 1000;
        *counts.entry(micros.max(1).ilog2()).or_insert(0u64) += count.as_u64().unwrap_or(0);
    }
    for (power, count) in counts {
        println!(
            "  {:>10.3} ms .. {:>10.3} ms  {count:>8}",
            (1u64 << power) as f64 / 1e3,
            (2u64 << power) as f64 / 1e3
        );
    }
}
