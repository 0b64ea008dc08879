//! Figures that were promised, measured on a cluster of real processes on this machine: each prints its numbers and
//! fails if its goal is missed.
//!
//! ```text
//! stall     latencies of fio while a secondary, or the primary, dies and stays dead
//! rebuild   a dead server's replicas are made anew, while work goes on
//! delta     a server that was away copies what it missed, and not all
//! flips     bits that rot in chunk files are found, never returned, and mended
//! ```

mod delta;
mod flips;
pub mod placed;
mod rebuild;
mod stall;

use anyhow::{Result, bail};

use crate::cluster::Cluster;

/// Measures the figure `name`; `full` has the size that was promised where the default is smaller.
///
/// # Errors
///
/// Which goal was missed, or what kept it from being measured.
pub fn measure(name: &str, full: bool) -> Result<()> {
    match name {
        "kill-stall" => stall::measure(),
        "rebuild" => rebuild::measure(),
        "delta" => delta::measure(full),
        "flips" => flips::measure(),
        _ => bail!("there is no figure {name}: kill-stall, rebuild, delta, flips"),
    }
}

/// Runs `body` on a fresh cluster, and prints the end of its logs if that fails.
fn with(chunk_servers: usize, settings: &[(&str, &str)], body: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(chunk_servers, settings)?;
    let outcome = body(&mut cluster);
    if outcome.is_err() {
        cluster.print_logs();
    }
    outcome
}
