//! Where chunks are, what a cluster lacks, and files of known content.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Server};
use crate::random::Random;
use crate::{daemon, http, program, wait};

/// The piece in which files are written: each is told by its seed.
pub const PIECE: usize = 1 << 20;

/// Servers of one chunk, as indices of the cluster's chunk servers.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its primary.
    pub primary: usize,
    /// Those that have a replica that is in sync.
    pub replicas: Vec<usize>,
}

/// Returns where the first chunk of a file is.
///
/// # Errors
///
/// If the master does not say.
pub fn first_chunk(cluster: &Cluster, path: &Path) -> Result<Placed> {
    let mut command = daemon::command()?;
    command.args(["info", "--json", "--master", &cluster.address()]).arg(path);
    let text = program::command_ok(&mut command, Duration::from_secs(15))?;
    let info: Value = serde_json::from_str(&text)?;
    let chunk = &info["chunks"][0];
    let status = cluster.status()?;
    let index_of = |node: &Value| -> Result<usize> {
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let found = nodes.iter().find(|one| one["node"] == *node).with_context(|| format!("no node {node}"))?;
        let address = found["data_address"].as_str().context("no address")?;
        let port: u16 = address.rsplit_once(':').context("no port")?.1.parse()?;
        // HTTP is at the next port.
        let ours = |index: &usize| cluster.http_port(Server::Chunk(*index)) == port + 1;
        (0..cluster.servers().len()).find(ours).with_context(|| format!("nobody listens at {address}"))
    };
    let replicas = chunk["replicas"].as_array().with_context(|| format!("no replicas in {info}"))?;
    Ok(Placed {
        primary: index_of(&chunk["primary"])?,
        replicas: replicas
            .iter()
            .filter(|replica| replica["state"] == "in_sync")
            .map(|replica| index_of(&replica["node"]))
            .collect::<Result<_>>()?,
    })
}

/// Returns a metric of a server, summed over its labels; 0 if it has none of it.
///
/// # Errors
///
/// If it does not answer.
pub fn metric(cluster: &Cluster, server: Server, name: &str) -> Result<f64> {
    let (_, page) = http::get(cluster.http_port(server), "/metrics")?;
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| line.rsplit_once(' ')?.1.parse::<f64>().ok()).flatten()
    };
    Ok(page.lines().filter_map(value).sum())
}

/// Waits until every chunk has all its replicas, on `online` chunk servers. Returns how long that took.
///
/// # Errors
///
/// What is lacking by then.
pub fn wait_replicated(cluster: &Cluster, online: usize, patience: Duration) -> Result<Duration> {
    let began = Instant::now();
    wait::until_every("everything is replicated", patience, Duration::from_millis(200), || {
        let status = cluster.status()?;
        let found = status["nodes"].as_array().context("no nodes")?.iter().filter(|node| node["state"] == "online");
        let found = found.count();
        ensure!(found >= online, "{found} of {online} chunk servers are online");
        // The counts of a status are some seconds old: a check of all records is of now.
        let mut fsck = daemon::command()?;
        program::command_ok(fsck.args(["fsck", "--master", &cluster.address()]), Duration::from_secs(30)).map(drop)
    })?;
    Ok(began.elapsed())
}

/// Returns the piece of a seed.
pub fn piece(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..PIECE / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Writes pieces of these seeds to a new file, and syncs it.
///
/// # Errors
///
/// The operating system's.
pub fn write(path: &Path, seeds: impl Iterator<Item = u64>) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("making {}", path.display()))?;
    for (index, seed) in seeds.enumerate() {
        file.write_all_at(&piece(seed), (index * PIECE) as u64)?;
    }
    Ok(file.sync_all()?)
}

/// Checks that a file has pieces of these seeds. Returns how many differ.
///
/// # Errors
///
/// The operating system's.
pub fn differing(path: &Path, seeds: &[u64]) -> Result<usize> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let (mut bytes, mut different) = (vec![0; PIECE], 0);
    for (index, seed) in seeds.iter().enumerate() {
        file.read_exact_at(&mut bytes, (index * PIECE) as u64)
            .with_context(|| format!("reading piece {index} of {}", path.display()))?;
        different += usize::from(bytes != piece(*seed));
    }
    Ok(different)
}
