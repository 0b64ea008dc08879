//! Registers that all mounts write and read at the same time: their histories are checked for linearizability.
//!
//! A *block* register is 4 KiB of a file that is opened with O_DIRECT; a write is pwrite and fsync. A *name* register is
//! a name that files are renamed to, whose content tells which one it is. A mount may know an old name for a second, so
//! that a read of a name counts as if it began earlier.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::hands::{Hands, Lost, Mounts};
use super::load::Load;
use super::oracle::Run;
use super::stamp::Content;
use super::worker::{Answer, Call};
use crate::linearizability::{Action, Operation, check};
use crate::random::Random;

const FILES: u64 = 2;
const BLOCKS: u32 = 6;
const NAMES: u64 = 4;
/// Files of registers have numbers that no others have.
const FIRST_FILE: u64 = 1 << 40;
const CELLS: u32 = 8;
/// How long names may be known after they went, and a little for the way.
const NAMES_KEPT: Duration = Duration::from_millis(1300);

/// Which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Register {
    Block { file: u64, block: u32 },
    Name(u64),
}

/// All registers with what was done to them.
#[derive(Debug)]
pub struct Registers {
    load: Arc<Load>,
    mounts: Arc<Mounts>,
    started: Instant,
    histories: Mutex<BTreeMap<Register, Vec<Operation>>>,
    number: AtomicU32,
    stop: AtomicBool,
}

impl Registers {
    /// Makes the files, and starts a thread for each mount.
    ///
    /// # Errors
    ///
    /// The errno of what failed.
    pub fn start(
        load: &Arc<Load>,
        mounts: &Arc<Mounts>,
        seed: u64,
    ) -> Result<(Arc<Self>, Vec<JoinHandle<()>>), String> {
        let registers = Arc::new(Self {
            load: Arc::clone(load),
            mounts: Arc::clone(mounts),
            started: Instant::now(),
            histories: Mutex::default(),
            number: AtomicU32::new(1),
            stop: AtomicBool::new(false),
        });
        let mut hands = Hands::new(Arc::clone(mounts));
        let mut must = |call: Call| match hands.call(0, 0, "register", &call) {
            Ok(Answer::Errno(errno)) => Err(format!("errno {errno} of {call:?}")),
            Ok(answer) => Ok(answer),
            Err(Lost) => Err(format!("lost: {call:?}")),
        };
        must(Call::MakeDirectory { path: load.path(0, "registers") })?;
        for file in 0..FILES {
            let path = load.path(0, &registers.file_name(file));
            let opened = must(Call::Open { path, write: true, flags: libc::O_CREAT })?;
            let Answer::Handle(handle) = opened else { return Err("no handle".into()) };
            // Large enough not to be kept by the master.
            must(Call::Truncate { handle, size: 1 << 20 })?;
            must(Call::Sync { handle })?;
            must(Call::Close { handle })?;
        }
        let thread = |mount: usize| {
            let registers = Arc::clone(&registers);
            std::thread::spawn(move || registers.work(mount, Random::of(seed, 2000 + mount as u64)))
        };
        let threads = (0..mounts.count()).map(thread).collect();
        Ok((registers, threads))
    }

    /// Lets the threads end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Notes that all chunk servers lost their power, in this time.
    pub fn power_lost(&self, from: Instant, to: Instant) {
        let (start, end) = (self.at(from), Some(self.at(to)));
        for (register, history) in self.histories.lock().iter_mut() {
            if matches!(register, Register::Block { .. }) {
                history.push(Operation { start, end, action: Action::Lose });
            }
        }
    }

    /// Invents a read that nothing explains, so that it can be seen whether it is found.
    pub fn tamper(&self) {
        let at = self.at(Instant::now());
        if let Some(history) = self.histories.lock().values_mut().next() {
            history.push(Operation { start: at, end: Some(at + 1), action: Action::Read(u64::MAX) });
        }
    }

    /// Judges all histories. Returns how many operations there were.
    pub fn check(&self) -> usize {
        let histories = self.histories.lock();
        for (register, history) in histories.iter() {
            if let Err(violation) = check(history) {
                let near = |operation: &&Operation| {
                    let around = violation.operation.start.saturating_sub(3_000_000);
                    operation.end.is_none_or(|end| end >= around)
                        && operation.start <= violation.operation.start + 3_000_000
                };
                let nearby: Vec<String> =
                    history.iter().filter(near).take(30).map(|operation| format!("{operation:?}")).collect();
                self.mounts.report.violation(format!(
                    "{register:?} is not linearizable: {violation}; microseconds since {:.2} s; near it:\n    {}",
                    self.mounts.report.now().as_secs_f64() - self.started.elapsed().as_secs_f64(),
                    nearby.join("\n    ")
                ));
            }
        }
        histories.values().map(Vec::len).sum()
    }

    fn at(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.started).as_micros() as u64
    }

    fn file_name(&self, file: u64) -> String {
        format!("registers/block{file}")
    }

    fn note(&self, register: Register, start: Instant, end: Option<Instant>, actions: &[Action]) {
        let mut histories = self.histories.lock();
        let history = histories.entry(register).or_default();
        let (mut start, end) = (self.at(start), end.map(|end| self.at(end)));
        for action in actions {
            history.push(Operation { start, end, action: *action });
            // The second one comes after the first has ended.
            start = end.unwrap_or(start);
        }
    }

    fn work(&self, mount: usize, mut random: Random) {
        let mut hands = Hands::new(Arc::clone(&self.mounts));
        let mut handles: BTreeMap<u64, u32> = BTreeMap::new();
        let mut life = None;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(random.below(30)));
            let now = hands.life(mount);
            if now != life {
                handles.clear();
                life = now;
            }
            let Some(life) = life else { continue };
            let done = if random.chance(20) {
                self.name(&mut hands, mount, life, &mut random)
            } else {
                self.block(&mut hands, mount, life, &mut random, &mut handles)
            };
            // What was lost is in the history, with no end.
            if done.is_err() {
                handles.clear();
            }
        }
    }

    fn must(&self, hands: &mut Hands, mount: usize, life: u64, kind: &'static str, call: Call) -> Result<Answer, Lost> {
        let answer = hands.call(mount, life, kind, &call)?;
        self.checked(mount, kind, &call, answer)
    }

    fn checked(&self, mount: usize, kind: &str, call: &Call, answer: Answer) -> Result<Answer, Lost> {
        match answer {
            Answer::Errno(errno) => {
                let text = nix::errno::Errno::from_raw(errno);
                self.mounts.report.violation(format!("error {text} of {kind} on mount {mount}: {call:?}"));
                Err(Lost)
            }
            answer => Ok(answer),
        }
    }

    fn block(
        &self,
        hands: &mut Hands,
        mount: usize,
        life: u64,
        random: &mut Random,
        handles: &mut BTreeMap<u64, u32>,
    ) -> Result<(), Lost> {
        let (file, block) = (random.below(FILES), random.below(u64::from(BLOCKS)) as u32);
        let register = Register::Block { file, block };
        let handle = match handles.get(&file) {
            Some(handle) => *handle,
            None => {
                let path = self.load.path(mount, &self.file_name(file));
                let call = Call::Open { path, write: true, flags: libc::O_DIRECT };
                let Answer::Handle(handle) = self.must(hands, mount, life, "open", call)? else { return Err(Lost) };
                handles.insert(file, handle);
                handle
            }
        };
        let (id, first, count) = (FIRST_FILE + file, block * CELLS, CELLS);
        let start = Instant::now();
        if random.chance(40) {
            let number = self.number.fetch_add(1, Ordering::SeqCst);
            let call =
                Call::Write { handle, writer: 900 + mount as u32, file: id, first, count, number, append: false };
            let write = [Action::Write(u64::from(number))];
            let cuts = self.load.cuts();
            let done = self
                .must(hands, mount, life, "register write", call)
                .and_then(|_| hands.call(mount, life, "register fsync", &Call::Sync { handle }))
                .and_then(|answer| match answer {
                    // All power went between the two: what was written may be lost, and this is how it is told.
                    Answer::Errno(libc::EIO) if self.load.cuts() > cuts => Err(Lost),
                    answer => self.checked(mount, "register fsync", &Call::Sync { handle }, answer),
                });
            match done {
                Ok(_) => self.note(register, start, Some(Instant::now()), &[write[0], Action::Barrier]),
                Err(_) => self.note(register, start, None, &write),
            }
            return done.map(drop);
        }
        let answer = self.must(hands, mount, life, "register read", Call::Read { handle, file: id, first, count })?;
        self.read(register, start, &answer, CELLS);
        Ok(())
    }

    fn read(&self, register: Register, start: Instant, answer: &Answer, cells: u32) {
        let runs: Vec<Run> = answer.runs();
        let value = match runs[..] {
            [(_, count, Content::Zeros)] if count == cells => Some(0),
            [(_, count, Content::Stamp(number))] if count == cells => Some(u64::from(number)),
            _ => None,
        };
        match value {
            Some(value) => self.note(register, start, Some(Instant::now()), &[Action::Read(value)]),
            None => self.mounts.report.violation(format!("{register:?}: a read is torn or garbage: {answer:?}")),
        }
    }

    /// Returns whether a write had ended before `time`.
    fn is_there(&self, register: Register, time: Instant) -> bool {
        let (histories, time) = (self.histories.lock(), self.at(time));
        let is_write = |operation: &Operation| {
            matches!(operation.action, Action::Write(_)) && operation.end.is_some_and(|end| end < time)
        };
        histories.get(&register).is_some_and(|history| history.iter().any(is_write))
    }

    fn name(&self, hands: &mut Hands, mount: usize, life: u64, random: &mut Random) -> Result<(), Lost> {
        let name = random.below(NAMES);
        let register = Register::Name(name);
        let path = self.load.path(mount, &format!("registers/name{name}"));
        let file = FIRST_FILE + FILES + name;
        if random.chance(40) {
            let number = self.number.fetch_add(1, Ordering::SeqCst);
            let new = self.load.path(mount, &format!("registers/new{number}"));
            let flags = libc::O_CREAT | libc::O_EXCL;
            let call = Call::Open { path: new.clone(), write: true, flags };
            let Answer::Handle(handle) = self.must(hands, mount, life, "create", call)? else { return Err(Lost) };
            let call =
                Call::Write { handle, writer: 900 + mount as u32, file, first: 0, count: 1, number, append: false };
            self.must(hands, mount, life, "write", call)?;
            self.must(hands, mount, life, "close", Call::Close { handle })?;
            let start = Instant::now();
            let done = self.must(hands, mount, life, "rename", Call::Rename { from: new, to: path });
            self.note(register, start, done.is_ok().then(Instant::now), &[Action::Write(u64::from(number))]);
            return done.map(drop);
        }
        let start = Instant::now();
        let known = start.checked_sub(NAMES_KEPT).unwrap_or(start).max(self.started);
        let opened = match hands.call(mount, life, "open", &Call::Open { path, write: false, flags: 0 })? {
            Answer::Handle(handle) => handle,
            // The kernel looks a name up again once; it may have been renamed over a second time by then.
            Answer::Errno(libc::ESTALE) => {
                self.mounts.report.note("names that were renamed over while they were opened, twice");
                return Ok(());
            }
            Answer::Errno(libc::ENOENT) => {
                // A name that is renamed over is never missing, once it was there.
                if self.is_there(register, known) {
                    let text = format!("{register:?} is missing on mount {mount}, though it was only renamed over");
                    self.mounts.report.violation(text);
                }
                return Ok(());
            }
            other => {
                self.mounts.report.violation(format!("{other:?} of an open on mount {mount} of {register:?}"));
                return Err(Lost);
            }
        };
        let call = Call::Read { handle: opened, file, first: 0, count: 1 };
        let answer = self.must(hands, mount, life, "read", call)?;
        self.read(register, known, &answer, 1);
        self.must(hands, mount, life, "close", Call::Close { handle: opened }).map(drop)
    }
}
