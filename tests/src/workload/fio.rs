//! fio: every block stamped and checked with crc32c, in order and at random, through the page cache and around it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Scale, Workload};
use crate::program;

const DEADLINE: Duration = Duration::from_secs(400);

/// Writes four files and reads them back.
pub struct Fio {
    megabytes: usize,
}

struct Job {
    name: &'static str,
    write: &'static str,
    block: usize,
    direct: bool,
    /// Random writes of small blocks get a smaller file.
    divide: usize,
}

const JOBS: &[Job] = &[
    Job { name: "sequential-buffered", write: "write", block: 256 << 10, direct: false, divide: 1 },
    Job { name: "sequential-direct", write: "write", block: 1 << 20, direct: true, divide: 1 },
    Job { name: "random-buffered", write: "randwrite", block: 4 << 10, direct: false, divide: 4 },
    Job { name: "random-direct", write: "randwrite", block: 4 << 10, direct: true, divide: 8 },
    // Blocks that begin and end inside 4 KiB units.
    Job { name: "random-odd", write: "randwrite", block: 6656, direct: false, divide: 8 },
];

impl Fio {
    /// Returns the work of 8, 96 or 1,024 MiB a file.
    pub fn new(scale: Scale) -> Self {
        Self { megabytes: scale.pick(8, 96, 1024) }
    }

    fn run(&self, directory: &Path, job: &Job, verify_only: bool) -> Result<()> {
        program::need("fio")?;
        // Whole blocks: fio lays out a file that lacks the rest of one anew.
        let size = (self.megabytes << 20) / job.divide / job.block * job.block;
        let mut arguments = vec![
            format!("--name={}", job.name),
            format!("--filename={}", job.name),
            format!("--rw={}", job.write),
            format!("--bs={}", job.block),
            format!("--size={size}"),
            format!("--direct={}", u8::from(job.direct)),
            "--ioengine=psync".into(),
            "--verify=crc32c".into(),
            "--verify_fatal=1".into(),
            "--verify_state_save=0".into(),
            "--randrepeat=1".into(),
            "--fallocate=none".into(),
        ];
        arguments.push(if verify_only { "--verify_only=1".into() } else { "--end_fsync=1".into() });
        program::ok(directory, "fio", arguments, DEADLINE).with_context(|| format!("fio {}", job.name)).map(|_| ())
    }
}

impl Workload for Fio {
    fn name(&self) -> &'static str {
        "fio"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        JOBS.iter().try_for_each(|job| self.run(directory, job, false))
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        JOBS.iter().try_for_each(|job| self.run(directory, job, true))
    }
}
