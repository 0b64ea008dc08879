//! A process that makes system calls on a mount for the chaos process, which keeps the oracle and opens nothing there
//! itself: neither a mount that hangs nor one that is killed takes the oracle with it.
//!
//! A line of JSON is a call, a line back its result. What is written and read is named by stamps, not sent.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Error, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::oracle::Run;
use super::stamp::{self, CELL, Content};

/// Bytes of one read(2): larger ranges are read in steps.
const STEP: u32 = 1 << 20;

/// A system call, or a few in a row.
#[allow(missing_docs, reason = "the fields say what they are")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Call {
    /// open(2) of a path, with flags beside those for reading and writing.
    Open { path: String, write: bool, flags: i32 },
    /// close(2).
    Close { handle: u32 },
    /// pwrite(2) of stamped cells; write(2) if the file was opened to append.
    Write { handle: u32, writer: u32, file: u64, first: u32, count: u32, number: u32, append: bool },
    /// pread(2) of cells up to the end of the file.
    Read { handle: u32, file: u64, first: u32, count: u32 },
    /// fsync(2).
    Sync { handle: u32 },
    /// ftruncate(2).
    Truncate { handle: u32, size: u64 },
    /// fstat(2).
    Size { handle: u32 },
    /// rename(2).
    Rename { from: String, to: String },
    /// unlink(2).
    Unlink { path: String },
    /// mkdir(2).
    MakeDirectory { path: String },
    /// readdir(3).
    List { path: String },
}

/// What came of it.
#[allow(missing_docs, reason = "the fields say what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The handle of what was opened.
    Handle(u32),
    /// Bytes.
    Size(u64),
    /// Cells: first, count, content as a number; and what foreign ones hold.
    Cells { runs: Vec<(u32, u32, i64)>, foreign: Vec<String> },
    /// Names.
    Names(Vec<String>),
    /// It failed.
    Errno(i32),
}

impl Answer {
    /// Returns cells that were read.
    pub fn runs(&self) -> Vec<Run> {
        let Self::Cells { runs, .. } = self else { return Vec::new() };
        let content = |number: i64| match number {
            0 => Content::Zeros,
            -1 => Content::Foreign,
            number => Content::Stamp(number as u32),
        };
        runs.iter().map(|(first, count, number)| (*first, *count, content(*number))).collect()
    }
}

/// Carries out calls from standard input until it ends.
///
/// # Errors
///
/// If the other side does not speak as it should.
pub fn run() -> Result<()> {
    let mut hands = Hands::default();
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let call: Call = serde_json::from_str(&line?)?;
        let answer = hands.carry_out(call).unwrap_or_else(|error| Answer::Errno(error.raw_os_error().unwrap_or(-1)));
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

#[derive(Default)]
struct Hands {
    files: BTreeMap<u32, File>,
    next: u32,
}

impl Hands {
    fn file(&self, handle: u32) -> std::io::Result<&File> {
        self.files.get(&handle).ok_or_else(|| Error::from_raw_os_error(libc::EBADF))
    }

    fn carry_out(&mut self, call: Call) -> std::io::Result<Answer> {
        match call {
            Call::Open { path, write, flags } => {
                let mut options = OpenOptions::new();
                options.read(true).write(write).create(flags & libc::O_CREAT != 0);
                options.create_new(flags & libc::O_EXCL != 0 && flags & libc::O_CREAT != 0);
                options.custom_flags(flags & !(libc::O_CREAT | libc::O_EXCL));
                let file = options.open(path)?;
                self.next += 1;
                self.files.insert(self.next, file);
                return Ok(Answer::Handle(self.next));
            }
            Call::Close { handle } => {
                let file = self.files.remove(&handle).ok_or_else(|| Error::from_raw_os_error(libc::EBADF))?;
                nix::unistd::close(OwnedFd::from(file).into_raw_fd())?;
            }
            Call::Write { handle, writer, file, first, count, number, append } => {
                let bytes = stamp::cells(writer, file, first, count, number);
                // An aligned copy, for O_DIRECT.
                let mut buffer = vec![0; bytes.len() + 4096];
                let at = buffer.as_ptr().align_offset(4096);
                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                let bytes = &buffer[at..at + bytes.len()];
                let mut file = self.file(handle)?;
                if append { file.write_all(bytes)? } else { file.write_all_at(bytes, u64::from(first) * CELL)? }
            }
            Call::Read { handle, file, first, count } => return self.read(handle, file, first, count),
            Call::Sync { handle } => self.file(handle)?.sync_all()?,
            Call::Truncate { handle, size } => self.file(handle)?.set_len(size)?,
            Call::Size { handle } => return Ok(Answer::Size(self.file(handle)?.metadata()?.len())),
            Call::Rename { from, to } => std::fs::rename(from, to)?,
            Call::Unlink { path } => std::fs::remove_file(path)?,
            Call::MakeDirectory { path } => std::fs::create_dir(path)?,
            Call::List { path } => {
                let name = |entry: std::io::Result<std::fs::DirEntry>| {
                    Ok(String::from_utf8_lossy(&entry?.file_name().into_vec()).into_owned())
                };
                return Ok(Answer::Names(std::fs::read_dir(path)?.map(name).collect::<std::io::Result<_>>()?));
            }
        }
        Ok(Answer::Done)
    }

    fn read(&self, handle: u32, file: u64, first: u32, count: u32) -> std::io::Result<Answer> {
        let (mut runs, mut foreign): (Vec<(u32, u32, i64)>, Vec<String>) = Default::default();
        let mut buffer = vec![0; STEP as usize + 4096];
        let at = buffer.as_ptr().align_offset(4096);
        let buffer = &mut buffer[at..at + STEP as usize];
        let (mut offset, end) = (u64::from(first) * CELL, u64::from(first + count) * CELL);
        while offset < end {
            let want = (end - offset).min(u64::from(STEP)) as usize;
            let mut have = 0;
            while have < want {
                match self.file(handle)?.read_at(&mut buffer[have..want], offset + have as u64)? {
                    0 => break,
                    got => have += got,
                }
            }
            for (nth, bytes) in buffer[..have].chunks(CELL as usize).enumerate() {
                let index = (offset / CELL) as u32 + nth as u32;
                let number = match stamp::read(file, index, bytes) {
                    Content::Zeros => 0,
                    Content::Stamp(number) => i64::from(number),
                    Content::Foreign => {
                        if foreign.len() < 4 {
                            foreign.push(format!("cell {index}: {}", stamp::explain(bytes)));
                        }
                        -1
                    }
                };
                match runs.last_mut() {
                    Some((from, count, last)) if *last == number && *from + *count == index => *count += 1,
                    _ => runs.push((index, 1, number)),
                }
            }
            if have < want {
                break;
            }
            offset += want as u64;
        }
        Ok(Answer::Cells { runs, foreign })
    }
}

/// A worker as the chaos process sees it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    calls: ChildStdin,
    answers: Receiver<String>,
}

/// Why there is no answer.
#[allow(missing_docs, reason = "the fields say what they are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The worker was killed.
    Gone,
    /// Time is over, and the call still runs.
    Late,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// If there can be none.
    pub fn start(ledger: &Arc<Ledger>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a worker")?;
        ledger.process(child.id())?;
        let out = child.stdout.take().ok_or_else(|| anyhow!("no pipe"))?;
        let calls = child.stdin.take().ok_or_else(|| anyhow!("no pipe"))?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, calls, answers })
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Begins a call.
    pub fn begin(&mut self, call: &Call) -> bool {
        let line = serde_json::to_string(call).expect("plain data");
        self.calls.write_all(format!("{line}\n").as_bytes()).is_ok()
    }

    /// Waits for the answer to the call that was begun last.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`].
    pub fn finish(&mut self, patience: Duration) -> std::result::Result<Answer, NoAnswer> {
        match self.answers.recv_timeout(patience) {
            Ok(line) => serde_json::from_str(&line).map_err(|_| NoAnswer::Gone),
            Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Gone),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // One that hangs in a dead mount goes when that is cleared: nobody waits for it here.
        let _ = self.child.try_wait();
    }
}
