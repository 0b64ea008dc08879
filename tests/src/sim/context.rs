//! What all processes of a simulated cluster share: time, the network, the trace, and what was seen.
//!
//! A process runs in *runs*, one after the other: what was planned for an earlier run does not happen. One that is
//! paused gets what was meant for it when it goes on. A host without power does not answer at all.

use std::collections::BTreeMap;

use dfs_proto::{MonoMs, UnixNanos};

use super::files::Files;
use super::history::History;
use super::message::{Answer, Ask, Question, RpcId};
use super::network::{Fate, Network, Place};
use super::scheduler::{HostClock, Scheduler, Time, ms};
use super::seen::Seen;
use super::trace::Trace;
use crate::random::Random;

/// Why a question got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused, or broke.
    Reset,
    /// Nothing came in time.
    TimedOut,
}

/// What is to happen.
#[derive(Debug)]
pub enum Event {
    /// A question arrives.
    Asked(Question),
    /// It arrives once more: at the run of the process that was there the first time, since a connection does not outlive
    /// either of its ends.
    AskedAgain(Question, u64),
    /// An answer arrives, or the news that there will be none.
    Answered(RpcId, Result<Answer, Failure>),
    /// The asker's patience ends.
    Patience(RpcId),
    /// Something that a process has planned for itself.
    Wake {
        /// Which process.
        place: Place,
        /// In which run.
        run: u64,
        /// What, in its own terms.
        what: Wake,
    },
    /// A step of the faults.
    Fault(usize),
    /// The end of a phase of the simulation.
    Phase,
}

/// What processes plan for themselves.
#[derive(Clone, Debug)]
pub enum Wake {
    /// A regular duty.
    Tick(u32),
    /// Something that is kept under this number.
    Job(u64),
}

/// One process and its host.
#[derive(Debug)]
pub struct Process {
    /// Counts its runs; an event for another run is void.
    pub run: u64,
    /// It runs, or is paused.
    pub is_up: bool,
    /// It was stopped and will go on.
    pub is_paused: bool,
    /// Its host has power.
    pub has_power: bool,
    /// The clocks of its host.
    pub clock: HostClock,
    /// How many times slower than usual it is.
    pub slowness: u64,
    /// What came while it was paused.
    waiting: Vec<Event>,
}

struct Open {
    from: Place,
    run: u64,
    to: Place,
}

/// What all processes share.
pub struct Context {
    /// Time and what is planned.
    pub scheduler: Scheduler<Event>,
    /// The links.
    pub network: Network,
    /// What happened.
    pub trace: Trace,
    /// What clients did and saw.
    pub history: History,
    /// The files there are.
    pub files: Files,
    /// What processes did that the checks want to know, since they last looked.
    pub seen: Vec<Seen>,
    /// For what processes draw.
    pub rng: Random,
    processes: BTreeMap<Place, Process>,
    open: BTreeMap<RpcId, Open>,
    held: Vec<(Place, Place, Event)>,
    next_rpc: u64,
}

impl Context {
    /// Returns a context without processes.
    pub fn new(network: Network, trace: Trace, rng: Random) -> Self {
        Self {
            scheduler: Scheduler::default(),
            network,
            trace,
            history: History::default(),
            files: Files::default(),
            seen: Vec::new(),
            rng,
            processes: BTreeMap::new(),
            open: BTreeMap::new(),
            held: Vec::new(),
            next_rpc: 1,
        }
    }

    /// Returns the true time.
    pub fn now(&self) -> Time {
        self.scheduler.now()
    }

    /// Adds a host with a process that is not running yet.
    pub fn add(&mut self, place: Place, clock: HostClock) {
        let process = Process {
            run: 0,
            is_up: false,
            is_paused: false,
            has_power: true,
            clock,
            slowness: 1,
            waiting: Vec::new(),
        };
        self.processes.insert(place, process);
    }

    /// Returns a process.
    pub fn process(&self, place: Place) -> &Process {
        &self.processes[&place]
    }

    /// Returns a process.
    pub fn process_mut(&mut self, place: Place) -> &mut Process {
        self.processes.get_mut(&place).expect("all places were added")
    }

    /// Returns what the clock of `place` that counts suspends says.
    pub fn mono(&self, place: Place) -> MonoMs {
        self.process(place).clock.mono(self.now())
    }

    /// Returns what wall time is at `place`.
    pub fn wall(&self, place: Place) -> UnixNanos {
        self.process(place).clock.wall(self.now())
    }

    /// Returns whether `place` can be talked to.
    pub fn is_up(&self, place: Place) -> bool {
        self.process(place).is_up
    }

    // ------------------------------------------------------------ processes

    /// Begins a new run.
    pub fn start(&mut self, place: Place) -> u64 {
        let process = self.process_mut(place);
        process.run += 1;
        process.is_up = true;
        process.is_paused = false;
        process.has_power = true;
        process.run
    }

    /// Ends the present run. Those who wait for an answer of it are told, unless its host lost power.
    pub fn stop(&mut self, place: Place, loses_power: bool) {
        let process = self.process_mut(place);
        process.is_up = false;
        process.is_paused = false;
        process.has_power = !loses_power;
        process.waiting.clear();
        let waiting: Vec<(RpcId, Place)> =
            self.open.iter().filter(|(_, open)| open.to == place).map(|(rpc, open)| (*rpc, open.from)).collect();
        for (rpc, from) in waiting {
            if !loses_power && !self.network.is_cut(place, from) {
                let delay = self.network.delay();
                self.scheduler.after(delay, Event::Answered(rpc, Err(Failure::Reset)));
            }
        }
        // Nobody waits any more for what this run has asked.
        self.open.retain(|_, open| open.from != place);
    }

    /// Stops a process that will go on.
    pub fn pause(&mut self, place: Place) {
        self.process_mut(place).is_paused = true;
    }

    /// Lets a paused process go on with what has come for it.
    pub fn resume(&mut self, place: Place) {
        let process = self.process_mut(place);
        process.is_paused = false;
        let waiting = std::mem::take(&mut process.waiting);
        for event in waiting {
            self.scheduler.after(0, event);
        }
    }

    /// Returns `event` if `place` can take it now; keeps it for later, or drops it.
    pub fn admit(&mut self, place: Place, run: Option<u64>, event: Event) -> Option<Event> {
        let process = self.process_mut(place);
        if !process.is_up || run.is_some_and(|run| run != process.run) {
            return None;
        }
        if process.is_paused {
            process.waiting.push(event);
            return None;
        }
        Some(event)
    }

    /// Plans something for a process, `us` from now; later if it is slow.
    pub fn wake_after(&mut self, place: Place, us: u64, what: Wake) {
        let (run, slowness) = (self.process(place).run, self.process(place).slowness);
        self.scheduler.after(us * slowness, Event::Wake { place, run, what });
    }

    /// Plans something for when the clock of a process says `at`.
    pub fn wake_at(&mut self, place: Place, at: MonoMs, what: Wake) {
        let (run, when) = (self.process(place).run, self.process(place).clock.when(at));
        self.scheduler.at(when, Event::Wake { place, run, what });
    }

    // ------------------------------------------------------------ questions and answers

    /// Asks; the answer, or that there is none, comes within `patience_us`.
    pub fn ask(&mut self, from: Place, to: Place, patience_us: u64, ask: Ask) -> RpcId {
        let rpc = RpcId(self.next_rpc);
        self.next_rpc += 1;
        let run = self.process(from).run;
        let now = self.now();
        self.trace
            .note(now, [1, rpc.0, from.number(), to.number()], || format!("{from} -> {to} ?{} {}", rpc.0, ask.words()));
        self.open.insert(rpc, Open { from, run, to });
        self.scheduler.after(patience_us, Event::Patience(rpc));
        let question = Question { rpc, from, from_run: run, to, ask };
        match self.network.fate(from, to, true) {
            Fate::Arrives(delay) => self.scheduler.after(delay, Event::Asked(question)),
            Fate::Twice(first, second) => {
                self.scheduler.after(first, Event::Asked(question.clone()));
                let run = self.process(to).run;
                self.scheduler.after(second, Event::AskedAgain(question, run));
            }
            Fate::Reset(delay) => {
                // It may have arrived all the same.
                if self.rng.in_a_million(300_000) {
                    self.scheduler.after(delay / 2, Event::Asked(question));
                }
                self.scheduler.after(delay, Event::Answered(rpc, Err(Failure::Reset)));
            }
            Fate::Lost => {}
            Fate::Held => self.held.push((from, to, Event::Asked(question))),
        }
        rpc
    }

    /// Answers a question.
    pub fn answer(&mut self, from: Place, to: Place, rpc: RpcId, answer: Answer) {
        let now = self.now();
        self.trace.note(now, [2, rpc.0, from.number(), to.number()], || {
            format!("{from} -> {to} !{} {}", rpc.0, answer.words())
        });
        match self.network.fate(from, to, false) {
            Fate::Arrives(delay) | Fate::Twice(delay, _) => {
                self.scheduler.after(delay, Event::Answered(rpc, Ok(answer)));
            }
            Fate::Reset(delay) => self.scheduler.after(delay, Event::Answered(rpc, Err(Failure::Reset))),
            Fate::Lost => {}
            Fate::Held => self.held.push((from, to, Event::Answered(rpc, Ok(answer)))),
        }
    }

    /// Tells an asker that nobody is there.
    pub fn refuse(&mut self, question: &Question) {
        if self.process(question.to).has_power && !self.network.is_cut(question.to, question.from) {
            let delay = self.network.delay();
            self.scheduler.after(delay, Event::Answered(question.rpc, Err(Failure::Reset)));
        }
    }

    /// Returns who asked `rpc`, if that run still waits for it; from now on nobody does.
    pub fn close(&mut self, rpc: RpcId) -> Option<Place> {
        let open = self.open.get(&rpc)?;
        let (from, is_same) = (open.from, self.process(open.from).run == open.run);
        self.open.remove(&rpc);
        is_same.then_some(from)
    }

    /// Returns who was asked `rpc`, if somebody waits for it.
    pub fn asked_place(&self, rpc: RpcId) -> Option<Place> {
        self.open.get(&rpc).map(|open| open.to)
    }

    /// Returns who waits for `rpc`.
    pub fn asker(&self, rpc: RpcId) -> Option<(Place, u64)> {
        self.open.get(&rpc).map(|open| (open.from, open.run))
    }

    /// Makes a link whole, and lets go what it held.
    pub fn mend(&mut self, from: Place, to: Place) {
        self.network.mend(from, to);
        let (released, held) =
            std::mem::take(&mut self.held).into_iter().partition(|held| (held.0, held.1) == (from, to));
        self.held = held;
        for (_, _, event) in released {
            let delay = self.rng.below(ms(5));
            self.scheduler.after(delay, event);
        }
    }
}
