//! Loopback ports of one cluster: a block of neighbours that no other cluster of these tests takes.
//!
//! A block is held by a lock on a file, so that tests in other processes skip it even while a server of ours is down
//! between kill and restart. Blocks lie below the range from which the kernel takes ephemeral ports.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

/// Ports in a block.
const BLOCK: u16 = 250;
const FIRST: u16 = 10_000;
const END: u16 = 32_500;

/// A block of ports, ours until it is dropped.
#[derive(Debug)]
pub struct Ports {
    base: u16,
    _lock: File,
}

impl Ports {
    /// Takes a block in which every port is free.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn take() -> Result<Self> {
        // Outside of TMPDIR, which each run may have of its own.
        let directory = std::path::Path::new("/tmp/dfs-test-ports");
        std::fs::create_dir_all(directory).context("making the directory of port locks")?;
        let blocks = (END - FIRST) / BLOCK;
        // Start elsewhere each time: a port left in TIME_WAIT is used again as late as possible.
        let start = std::process::id() as u16 % blocks;
        for step in 0..blocks {
            let base = FIRST + (start + step) % blocks * BLOCK;
            let lock = File::create(directory.join(base.to_string()))?;
            if lock.try_lock().is_ok() && (base..base + BLOCK).all(is_free) {
                return Ok(Self { base, _lock: lock });
            }
        }
        bail!("no {BLOCK} free loopback ports in a row from {FIRST} to {END}")
    }

    /// Returns the port at `offset` of the block.
    ///
    /// # Panics
    ///
    /// If the block is not that large.
    pub fn at(&self, offset: u16) -> u16 {
        assert!(offset < BLOCK, "offset {offset} of a block of {BLOCK} ports");
        self.base + offset
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_never_share_a_block() {
        let (first, second) = (Ports::take().unwrap(), Ports::take().unwrap());
        assert!(first.at(0).abs_diff(second.at(0)) >= BLOCK);
    }

    #[test]
    fn a_block_with_a_busy_port_is_skipped() {
        let block = Ports::take().unwrap();
        let (base, busy) = (block.at(0), TcpListener::bind((Ipv4Addr::LOCALHOST, block.at(7))).unwrap());
        drop(block);
        assert_ne!(Ports::take().unwrap().at(0), base);
        drop(busy);
    }
}
