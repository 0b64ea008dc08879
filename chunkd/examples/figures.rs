//! What this machine makes of one client and one chunk on three servers: `cargo run -p dfs-chunkd --example figures`.
//!
//! All servers are in this process and on one disk, so a figure is three times the work. An argument chooses one of the
//! lines, for strace.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "it owns its files, threads and sockets")]
#![allow(dead_code, reason = "the harness is that of the tests")]

#[path = "../tests/cluster/harness.rs"]
mod harness;
#[path = "../tests/cluster/master.rs"]
mod master;

use std::time::{Duration, Instant};

use dfs_proto::wire::Connection;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::harness::{Chunk, Cluster, pattern};

struct Run<'a> {
    chunk: Chunk<'a>,
    connection: Connection,
    number: u64,
    only: Option<String>,
}

impl Run<'_> {
    fn line(&mut self, name: &str, rounds: u32, mut step: impl FnMut(&mut Self, u32)) {
        if self.only.as_ref().is_some_and(|only| only != name) {
            return;
        }
        let (started, cpu) = (Instant::now(), cpu());
        for round in 0..rounds {
            step(self, round);
        }
        println!("{name}: {:?} each, {:?} of processors", started.elapsed() / rounds, (self::cpu() - cpu) / rounds);
    }

    fn write(&mut self, offset: u32, data: &[u8]) {
        self.number += 1;
        self.chunk.write_on(&mut self.connection, offset, data, self.number);
    }

    fn read(&mut self, offset: u32, length: u32) {
        self.chunk.read_on(&mut self.connection, offset, length);
    }

    fn barrier(&mut self) {
        self.chunk.barrier_on(&mut self.connection).unwrap();
    }
}

/// Returns the processor time of this process, client and servers together: what a busy machine leaves as it is.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = |time: TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    micros(usage.user_time()) + micros(usage.system_time())
}

fn main() {
    let cluster = Cluster::start();
    let chunk = cluster.chunk(1);
    let mut run = Run { chunk, connection: chunk.connect(), number: 0, only: std::env::args().nth(1) };
    let whole = pattern(1, 1 << 20);
    let unit = &whole[..4096];
    run.write(0, &whole);
    run.line("write-4k", 3_000, |run, round| run.write(round % 256 * 4096, unit));
    run.line("read-4k", 3_000, |run, round| run.read(round % 256 * 4096, 4096));
    run.line("write-1m", 200, |run, _| run.write(0, &whole));
    run.line("read-1m", 200, |run, _| run.read(0, 1 << 20));
    run.line("overwrite-4k-barrier", 300, |run, round| {
        run.write(round % 256 * 4096, unit);
        run.barrier();
    });
    run.line("barrier-alone", 300, |run, _| run.barrier());
    run.line("first-write-1m", 200, |run, round| {
        run.chunk = cluster.chunk(10_000 + u64::from(round));
        run.write(0, &whole);
    });
    run.chunk = cluster.chunk(2);
    run.line("append-4k-barrier", 250, |run, round| {
        run.write(round * 4096, unit);
        run.barrier();
    });
    run.line("first-write-of-a-chunk", 300, |run, round| {
        run.chunk = cluster.chunk(100 + u64::from(round));
        run.write(0, unit);
    });
    run.line("first-write-of-a-chunk-and-barrier", 100, |run, round| {
        run.chunk = cluster.chunk(1_000 + u64::from(round));
        run.write(0, unit);
        run.barrier();
    });
}
