//! git: many small files, renames over, links, locks by O_EXCL, packs read by mmap.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Scale, Workload, pattern};
use crate::program;

const DEADLINE: Duration = Duration::from_secs(240);

/// Makes a repository with history, clones it, packs the clone.
pub struct Repository {
    files: usize,
    commits: usize,
    head: String,
}

impl Repository {
    /// Returns the work of a few commits over 60, 400 or 2,000 files.
    pub fn new(scale: Scale) -> Self {
        Self { files: scale.pick(60, 400, 2_000), commits: scale.pick(3, 6, 20), head: String::new() }
    }
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    program::need("git")?;
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "-c", "gc.auto=0"]).args(arguments).current_dir(directory);
    for (name, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("HOME", "/nonexistent"),
        ("GIT_AUTHOR_NAME", "a"),
        ("GIT_AUTHOR_EMAIL", "a@example.org"),
        ("GIT_COMMITTER_NAME", "a"),
        ("GIT_COMMITTER_EMAIL", "a@example.org"),
        ("GIT_TERMINAL_PROMPT", "0"),
    ] {
        command.env(name, value);
    }
    program::command_ok(&mut command, DEADLINE)
}

impl Workload for Repository {
    fn name(&self) -> &'static str {
        "repository"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        git(directory, &["init", "-q", "-b", "main", "origin"])?;
        let origin = directory.join("origin");
        for commit in 0..self.commits {
            for index in (commit..self.files).step_by(1 + commit) {
                let place = origin.join(format!("d{}", index % 20));
                std::fs::create_dir_all(&place)?;
                std::fs::write(
                    place.join(format!("f{index}")),
                    pattern((commit * 100_000 + index) as u64, 50 + index * 13),
                )?;
            }
            git(&origin, &["add", "-A"])?;
            git(&origin, &["commit", "-q", "-m", &format!("commit {commit}")])?;
        }
        git(directory, &["clone", "-q", "--no-hardlinks", "origin", "clone"])?;
        git(directory, &["clone", "-q", "--local", "origin", "linked"])?;
        git(&directory.join("clone"), &["repack", "-a", "-d", "-q"])?;
        git(&directory.join("clone"), &["checkout", "-q", "HEAD~1"])?;
        git(&directory.join("clone"), &["checkout", "-q", "main"])?;
        self.head = git(&origin, &["rev-parse", "HEAD"])?;
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        for name in ["origin", "clone", "linked"] {
            let repository = directory.join(name);
            git(&repository, &["fsck", "--full", "--strict", "--no-progress"])?;
            ensure!(git(&repository, &["rev-parse", "HEAD"])? == self.head, "{name}: HEAD is another commit");
            let log = git(&repository, &["log", "--oneline"])?;
            ensure!(log.lines().count() == self.commits, "{name}: the log is\n{log}");
            // Compares the content of each file with the index, whatever their times are; writes nothing.
            let changed = git(&repository, &["--no-optional-locks", "status", "--porcelain"])?;
            ensure!(changed.is_empty(), "{name}: the work tree differs:\n{changed}");
        }
        Ok(())
    }
}
