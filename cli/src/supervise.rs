//! Child processes that are kept running: their output forwarded line by line, restarted when they die.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exit::Exit;

/// The pauses before a process is started again: short, for others wait for it; longer while it keeps dying young.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(2);
    /// A process that lived this long died of something new.
    const SETTLED: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// Returns the pause after a process that lived for so long.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Self::SETTLED {
            self.next = Self::FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(Self::LAST);
        pause
    }
}

/// What happened to a process.
pub struct Ended {
    /// Which one, by its place in the list of processes.
    pub index: usize,
    /// How it ended.
    pub status: ExitStatus,
}

/// One supervised process.
pub struct Process {
    /// Its name in the log and the table.
    pub name: String,
    arguments: Vec<String>,
    index: usize,
    pid: Option<Pid>,
    started: Instant,
    pauses: Pauses,
    environment: Vec<(String, String)>,
    /// When it is to be started again.
    pub restart_at: Option<Instant>,
}

impl Process {
    /// Returns a process that runs this very program with `arguments`, and with `environment` on top of its own; not yet
    /// started.
    pub fn new(index: usize, name: &str, arguments: Vec<String>, environment: &[(String, String)]) -> Self {
        Self {
            name: name.to_owned(),
            arguments,
            index,
            pid: None,
            started: Instant::now(),
            pauses: Pauses::new(),
            environment: environment.to_vec(),
            restart_at: None,
        }
    }

    /// Returns the id of the running process.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Starts it. Its end is sent to `ended`.
    ///
    /// # Errors
    ///
    /// If no process or thread can be made.
    pub fn start(&mut self, ended: &Sender<Ended>) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .arg("--with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        self.pid = Some(Pid::from_raw(child.id().cast_signed()));
        self.started = Instant::now();
        self.restart_at = None;
        forward(&self.name, child.stdout.take())?;
        forward(&self.name, child.stderr.take())?;
        let (index, ended) = (self.index, ended.clone());
        std::thread::Builder::new().name(format!("wait-{}", self.name)).spawn(move || wait(child, index, &ended))?;
        Ok(())
    }

    /// Takes note that it ended. Returns whether it is to be started again (then `restart_at` is set): not if it
    /// ended because the state of things or its arguments forbid it to run.
    pub fn note_end(&mut self, status: ExitStatus) -> bool {
        self.pid = None;
        if matches!(status.code(), Some(code) if code == Exit::Usage as i32 || code == Exit::Refused as i32) {
            return false;
        }
        let now = Instant::now();
        self.restart_at = Some(now + self.pauses.after(now.duration_since(self.started)));
        true
    }

    /// Sends it a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // It may have ended just now, which is as good.
            let _ = kill(pid, signal);
        }
    }
}

fn wait(mut child: Child, index: usize, ended: &Sender<Ended>) {
    if let Ok(status) = child.wait() {
        // Nobody listens any more once the supervisor itself ends.
        let _ = ended.send(Ended { index, status });
    }
}

/// Copies each line of `output` to standard error, the process's name before it.
fn forward(name: &str, output: Option<impl Read + Send + 'static>) -> anyhow::Result<()> {
    let Some(output) = output else { return Ok(()) };
    let name = name.to_owned();
    std::thread::Builder::new().name(format!("log-{name}")).spawn(move || {
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            eprintln!("[{name}] {}", String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_dying_young_is_started_again_ever_later_but_within_two_seconds() {
        let mut pauses = Pauses::new();
        let young = Duration::from_millis(9_999);
        let after: Vec<u128> = (0..7).map(|_| pauses.after(young).as_millis()).collect();
        assert_eq!(after, [100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert_eq!(pauses.after(Duration::from_secs(10)).as_millis(), 100, "it had settled");
        assert_eq!(pauses.after(young).as_millis(), 200);
    }
}
