//! Other programs, each with a deadline: one that hangs in a file system fails its test and not the whole run.

use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Returns everything it said.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs `command` to its end.
///
/// # Errors
///
/// If it cannot be started or has not ended by `deadline`; it is killed then.
pub fn run(command: &mut Command, deadline: Duration) -> Result<Ended> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let shown = format!("{command:?}");
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    let mut read = |status| -> Result<Ended> {
        let text = |file: &mut std::fs::File| -> Result<String> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Ended { status, stdout: text(&mut stdout)?, stderr: text(&mut stderr)? })
    };
    let ended = wait::until("the program ended", deadline, || child.try_wait()?.context("it still runs"));
    match ended {
        Ok(status) => read(status),
        Err(error) => {
            let _ = child.kill();
            // A process in an uninterruptible call cannot be waited for without hanging ourselves.
            let text = read(ExitStatus::default()).map(|ended| tail(&ended.text(), 20)).unwrap_or_default();
            Err(error).with_context(|| format!("{shown} said:\n{text}"))
        }
    }
}

/// Runs `name` with `arguments` in `directory`, and returns its standard output.
///
/// # Errors
///
/// If it does not end with success by `deadline`; the text has the end of what it said.
pub fn ok<S: AsRef<OsStr>>(
    directory: &Path,
    name: &str,
    arguments: impl IntoIterator<Item = S>,
    deadline: Duration,
) -> Result<String> {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(directory);
    command_ok(&mut command, deadline)
}

/// As [`ok`], for a command that is set up already.
///
/// # Errors
///
/// As [`ok`].
pub fn command_ok(command: &mut Command, deadline: Duration) -> Result<String> {
    let ended = run(command, deadline)?;
    ensure!(ended.status.success(), "{command:?}: {}:\n{}", ended.status, tail(&ended.text(), 30));
    Ok(ended.stdout)
}

/// Returns whether a program of that name is in `PATH`.
fn is_there(name: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Returns the last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Fails unless a program of that name is in `PATH`.
///
/// # Errors
///
/// Says how to get it.
pub fn need(name: &str) -> Result<()> {
    if !is_there(name) {
        bail!("{name} is not there: scripts/install-deps.sh installs what the tests need");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_and_what_it_said_is_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo here I hang; exec sleep 100"]);
        let error = format!("{:#}", run(&mut command, Duration::from_millis(300)).unwrap_err());
        assert!(error.contains("here I hang"), "{error}");
    }

    #[test]
    fn a_failure_has_the_programs_words() {
        let here = std::env::temp_dir();
        let error = ok(&here, "sh", ["-c", "echo no luck >&2; exit 3"], Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("no luck") && error.to_string().contains('3'), "{error}");
        assert_eq!(ok(&here, "echo", ["hi"], Duration::from_secs(10)).unwrap(), "hi\n");
    }
}
