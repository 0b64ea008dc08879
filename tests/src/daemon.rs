//! One process of dfs: its command line, its log, its life and death.

use std::fs::OpenOptions;
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
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Returns a daemon that is not started yet. Its output goes to `DIRECTORY/NAME.log`.
    pub fn new(name: &str, directory: &Path, arguments: Vec<String>, environment: &[(String, String)]) -> Self {
        let log = directory.join(format!("{name}.log"));
        Self { name: name.to_owned(), arguments, environment: environment.to_vec(), log, child: None }
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// If it runs already, or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = command()?;
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.name))?);
        Ok(())
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    ///
    /// How it ended, and the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()? {
            Some(None) => Ok(()),
            Some(Some(status)) => {
                self.child = None;
                bail!("{} has ended: {status}; its log ends with\n{}", self.name, self.log_tail(10))
            }
            None => bail!("{} is not running", self.name),
        }
    }

    /// Returns whether it was started and not stopped since.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Returns its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} is not running", self.name))?;
        kill(Pid::from_raw(child.id().cast_signed()), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it was not running.
    pub fn kill9(&mut self) -> Result<()> {
        self.alive()?;
        self.signal(Signal::SIGKILL)?;
        self.ended(Duration::from_secs(20)).map(|_| ())
    }

    /// Asks it to stop with SIGTERM and waits until it has.
    ///
    /// # Errors
    ///
    /// If it takes longer than `deadline` or does not end with success.
    pub fn stop(&mut self, deadline: Duration) -> Result<()> {
        self.alive()?;
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
        if let Some(child) = self.child.as_mut() {
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
    let mut command = Command::new(binary::dfs()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DFS_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    Ok(command)
}
