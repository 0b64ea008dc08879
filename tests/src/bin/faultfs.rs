//! `faultfs LOWER POINT SOCKET [SETTLE_MS]`: mounts the directory LOWER at POINT so that it fails on demand, and takes
//! commands on SOCKET. See `dfs_tests::faultfs`.
//!
//! It ends when it is unmounted, and is unmounted when whoever started it ends.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dfs_tests::faultfs::{control, disk::Disk, serve};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};

/// After this long the kernel is taken to have written by itself: ext4 commits after 5 s, data is written after 30 s.
const SETTLE_MS: u64 = 10_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lower, point, socket, rest @ ..] = &arguments[..] else {
        bail!("faultfs LOWER POINT SOCKET [SETTLE_MS]");
    };
    let settle_ms = rest.first().map_or(Ok(SETTLE_MS), |text| text.parse()).context("SETTLE_MS")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    let mut ends = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT].iter().for_each(|signal| ends.add(*signal));
    // Before any thread starts, so that all of them leave these signals to the one that waits for them.
    ends.thread_block()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());

    let disk = Arc::new(Disk::open(Path::new(lower), settle_ms)?);
    control::serve(Arc::clone(&disk), Path::new(socket))?;
    let settling = Arc::clone(&disk);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if let Err(error) = settling.settle() {
                eprintln!("faultfs: settling: {error}");
            }
        }
    });
    let mounted = point.clone();
    std::thread::spawn(move || {
        let _ = ends.wait();
        let _ = umount2(Path::new(&mounted), MntFlags::MNT_DETACH);
        std::process::exit(0);
    });
    serve(disk, Path::new(point)).with_context(|| format!("serving {point}"))
}
