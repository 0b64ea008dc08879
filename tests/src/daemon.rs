//! One process of dfs: its command line, its log, its life and death.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{binary, program, wait};

/// A daemon that can be started, killed and started again, with the same command line.
#[derive(Debug)]
pub struct Daemon {
    /// Its name in messages.
    pub name: String,
    /// Words before the command line: a program that becomes the daemon, such as one that enters a network.
    prefix: Vec<OsString>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
    /// A process that becomes the daemon once it is told to: see [`Daemon::prepare`].
    next: Option<Child>,
}

impl Daemon {
    /// Returns a daemon that is not started yet. Its output goes to `DIRECTORY/NAME.log`.
    pub fn new(name: &str, directory: &Path, arguments: Vec<String>, environment: &[(String, String)]) -> Self {
        let log = directory.join(format!("{name}.log"));
        let environment = environment.to_vec();
        Self { name: name.to_owned(), prefix: Vec::new(), arguments, environment, log, child: None, next: None }
    }

    /// Has it started by `prefix`: words before its command line, the program first.
    #[must_use]
    pub fn within(mut self, prefix: Vec<OsString>) -> Self {
        self.prefix = prefix;
        self
    }

    /// Returns its process id, if it was started.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Makes the process of the next [`Daemon::start`], which waits until then.
    ///
    /// A new process closes what it inherited from its parent. If those are files on a mount whose server is down, that
    /// close waits for the server, and so would the test that is about to start it. So a test that holds such files
    /// prepares the restart before it kills.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn prepare(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut shell = command_of("sh".as_ref());
        shell
            .args(["-c", "echo && read go && exec \"$0\" \"$@\" </dev/null >&2"])
            .args(&self.prefix)
            .arg(binary::dfs()?)
            .args(&self.arguments);
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = shell.spawn().with_context(|| format!("preparing {}", self.name))?;
        // It speaks once everything that it inherited is closed.
        let mut line = [0];
        let spoke = child.stdout.take().context("it has a pipe")?.read_exact(&mut line);
        self.next = Some(child);
        spoke.with_context(|| format!("preparing {}", self.name))
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// If it was started and not stopped since, or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} is started already", self.name);
        if self.next.is_none() {
            self.prepare()?;
        }
        let mut child = self.next.take().context("prepared above")?;
        let told = child.stdin.take().context("it has a pipe")?.write_all(b"\n");
        self.child = Some(child);
        told.with_context(|| format!("starting {}", self.name))
    }

    /// Fails unless it runs.
    ///
    /// # Errors
    ///
    /// If it is not started; or, each time, how it ended by itself, and the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()? {
            Some(None) => Ok(()),
            // The child stays: a server that died is one that is missed, unlike one that was stopped.
            Some(Some(status)) => {
                bail!("{} has ended: {status}; its log ends with\n{}", self.name, self.log_tail(10))
            }
            None => bail!("{} is not running", self.name),
        }
    }

    /// Returns whether it was started and not stopped since. It may have ended by itself: see [`Daemon::alive`].
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it is not running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The id of a process that has ended may be another one's by now.
        self.alive()?;
        let child = self.child.as_ref().context("it is alive")?;
        kill(Pid::from_raw(child.id().cast_signed()), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it was not running.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.ended(Duration::from_secs(20)).map(|_| ())
    }

    /// Asks it to stop with SIGTERM and waits until it has.
    ///
    /// # Errors
    ///
    /// If it takes longer than `deadline` or does not end with success.
    pub fn stop(&mut self, deadline: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.ended(deadline).with_context(|| format!("{} got SIGTERM", self.name))?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// Waits until it ends.
    ///
    /// # Errors
    ///
    /// If it has not by `deadline`.
    pub fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let child = self.child.as_mut().with_context(|| format!("{name} is not running"))?;
        let status = wait::until(&format!("{name} ended"), deadline, || child.try_wait()?.context("it runs on"))?;
        self.child = None;
        Ok(status)
    }

    /// Returns its whole log, of all its lives.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Returns the last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        program::tail(&self.log(), lines)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in self.child.iter_mut().chain(&mut self.next) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns a command that runs the `dfs` under test, without settings of whoever runs the tests.
///
/// # Errors
///
/// If there is no such program.
pub fn command() -> Result<Command> {
    Ok(command_of(binary::dfs()?.as_os_str()))
}

fn command_of(program: &OsStr) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DFS_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ended_by_itself_is_missed_each_time_it_is_asked_for() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut daemon = Daemon::new("short", directory.path(), Vec::new(), &[]);
        daemon.child = Some(Command::new("true").spawn()?);
        wait::until("it ended", Duration::from_secs(20), || {
            ensure!(daemon.alive().is_err(), "it runs");
            Ok(())
        })?;
        for _ in 0..2 {
            let error = daemon.alive().unwrap_err().to_string();
            assert!(daemon.is_started() && error.contains("short has ended: exit status: 0"), "{error}");
            assert!(daemon.signal(Signal::SIGTERM).is_err() && daemon.start().is_err());
        }
        assert!(daemon.ended(Duration::ZERO)?.success() && !daemon.is_started());
        Ok(())
    }
}
