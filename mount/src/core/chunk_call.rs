//! One call of a chunk's data (a read, a write, a barrier, …), from its beginning to an answer or an error that is final.
//!
//! The primary is asked. If it is not there, or says that it is none, the master is asked where the chunk is now; if that
//! brings nothing new, some time passes first.
//!
//! ```text
//!                 known            Answered(Ok)
//!   Begin ─────────────▶ Ask ───────────────────────▶ Done
//!     │ not known         ▲ │ trouble
//!     ▼        another    │ ▼
//!   LookUp ───────────────┴ LookUp ◀──┐
//!                             │ same  │ Passed
//!                             └▶ Wait ┘
//! ```
//!
//! | trouble | next |
//! |---|---|
//! | `Stale` | look up and ask at once, eight times in a row; then with pauses, since something else is wrong |
//! | nobody answers | look up at once, naming the primary as lost; a pause if it is still the same |
//! | `NoReplica`, `TimedOut` | look up at once; a pause if it is still the same |
//! | `TryAgain`, `UnknownSession` | a pause; look up every second time |
//! | `Corrupt` | look up, reporting the damage: another primary may have a good copy. Final if the replica set is the same |
//! | any other | final |
//!
//! `UnknownSession` passes like the rest: the mount learns from the master that its session was lost and opens another one.
//! A write of the old one is refused by then (`SessionLost`), a read goes on.
//!
//! What is asked is the caller's: every attempt of a write carries the same client and number, whoever is asked, so that
//! it is applied once.
//!
//! # Invariants
//!
//! - Under [`Policy::Soft`] no step ends later than the deadline: then the last trouble is final.
//! - Between two attempts that failed with the same location some time passes.

use std::sync::Arc;

use dfs_proto::{ChunkId, FsError, MonoMs, NodeId, Version};

use super::backoff::Backoff;
use super::location::Location;
use super::policy::Policy;

/// A primary answers within this even while it drops a silent member from the set.
const ATTEMPT_MS: u64 = 5_000;
/// One that is there and is slow, as behind a narrow link, gets twice the time at each further attempt, up to this: or
/// what it does for an attempt would be in vain each time.
const ATTEMPT_MS_MAX: u64 = 20_000;
/// If nothing came within this, it is worth to find out whether anybody is there.
const QUIET_MS: u64 = 1_000;
/// `Stale` answers in a row after which something else is wrong.
const STALE_AT_ONCE_MAX: u32 = 8;
/// A primary that the master takes for dead is asked all the same at every so manyth look-up: the master may be the one
/// who does not hear it.
const ASK_DEAD_EVERY: u32 = 4;

/// Why an attempt brought no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The primary said so.
    Refused(FsError),
    /// Nobody answered: the connection was refused or broke, or there was silence. The request may have been carried out.
    Unanswered(String),
}

impl Trouble {
    /// Returns the error as a caller of the file system is told.
    pub fn into_error(self) -> FsError {
        match self {
            Self::Refused(error) => error,
            Self::Unanswered(reason) => FsError::NoReplica(reason),
        }
    }
}

impl From<FsError> for Trouble {
    fn from(error: FsError) -> Self {
        Self::Refused(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Unanswered(reason) => write!(f, "no answer: {reason}"),
        }
    }
}

/// What a call is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// It begins. With the location of the chunk, if that is known.
    Begin(Option<Arc<Location>>),
    /// To [`Step::Ask`].
    Answered(Result<(), Trouble>),
    /// To [`Step::LookUp`]: `None` if there is no chunk.
    Found(Result<Option<Arc<Location>>, FsError>),
    /// The time of [`Step::Wait`] has come.
    Passed,
}

/// What a call wants done. Each but `Done` is answered by one input.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask the primary.
    Ask(Ask),
    /// Ask the master, or whoever else has asked it since.
    LookUp(LookUp),
    /// Let time pass.
    Wait {
        /// Until then.
        until: MonoMs,
    },
    /// It is over.
    Done(Result<Outcome, FsError>),
}

/// One attempt at the primary of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Where.
    pub location: Arc<Location>,
    /// If nothing came until then, find out whether the server is there at all; if it is not: `Unanswered`.
    pub check_at: MonoMs,
    /// If nothing came until then: `Unanswered`.
    pub until: MonoMs,
}

/// One look for the chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct LookUp {
    /// The location that did not do, if there was one: any other than this is an answer.
    pub instead_of: Option<Arc<Location>>,
    /// The primary that does not answer: the master moves it, if it may.
    pub lost: Option<NodeId>,
    /// To be reported before.
    pub damage: Option<Damage>,
    /// When to give up; `None`: never.
    pub until: Option<MonoMs>,
}

/// A replica that has no good copy of what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// At which version.
    pub version: Version,
    /// On which server.
    pub node: NodeId,
    /// What it said.
    pub detail: String,
}

/// How a call ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last answer is the result.
    Answered,
    /// There is no chunk: a hole.
    NoChunk,
}

/// What is done with a location that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The primary is asked.
    Ask,
    /// It is asked if it is another one than before; else time passes first.
    AskOther,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Asking(Ask),
    Looking(LookUp, Then),
    /// Then asks there.
    WaitingToAsk(Arc<Location>),
    WaitingToLook(LookUp),
    Over,
}

/// One call.
#[derive(Clone, Debug)]
pub struct ChunkCall {
    policy: Policy,
    begun: MonoMs,
    phase: Phase,
    backoff: Backoff,
    attempt_ms: u64,
    /// `Stale` answers in a row.
    stale: u32,
    /// `TryAgain` answers in a row.
    again: u32,
    /// Look-ups in a row that named a primary which the master takes for dead.
    dead: u32,
    /// The version of the replica set that has no good copy.
    damaged: Option<Version>,
    trouble: Option<Trouble>,
}

impl ChunkCall {
    /// Returns a call that begins now. Its first input is [`Input::Begin`].
    pub fn new(policy: Policy, now: MonoMs) -> Self {
        Self {
            policy,
            begun: now,
            phase: Phase::Over,
            backoff: Backoff::default(),
            attempt_ms: ATTEMPT_MS,
            stale: 0,
            again: 0,
            dead: 0,
            damaged: None,
            trouble: None,
        }
    }

    /// Returns for how long it has been under way, in milliseconds.
    pub fn elapsed_ms(&self, now: MonoMs) -> u64 {
        now.since(self.begun)
    }

    /// Returns what went wrong last, if anything did.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Takes an input and returns what is to be done now. An input that nothing waits for is a bug of the caller.
    ///
    /// # Panics
    ///
    /// In debug builds, on such an input.
    pub fn step(&mut self, now: MonoMs, input: Input) -> Step {
        match (std::mem::replace(&mut self.phase, Phase::Over), input) {
            (Phase::Over, Input::Begin(Some(location))) => self.ask(now, location),
            (Phase::Over, Input::Begin(None)) => self.look_up(now, None, Then::Ask),
            (Phase::Asking(_), Input::Answered(Ok(()))) => Step::Done(Ok(Outcome::Answered)),
            (Phase::Asking(ask), Input::Answered(Err(trouble))) => {
                if now >= ask.until {
                    self.attempt_ms = (self.attempt_ms * 2).min(ATTEMPT_MS_MAX);
                }
                self.failed(now, ask.location, trouble)
            }
            (Phase::Looking(..), Input::Found(Ok(None))) => Step::Done(Ok(Outcome::NoChunk)),
            (Phase::Looking(look, then), Input::Found(Ok(Some(location)))) => self.found(now, look, then, location),
            (Phase::Looking(look, _), Input::Found(Err(error))) => self.not_found(now, look, error),
            (Phase::WaitingToAsk(location), Input::Passed) => self.ask(now, location),
            (Phase::WaitingToLook(look), Input::Passed) => self.look_up_again(now, look),
            (phase, input) => {
                debug_assert!(false, "{input:?} in {phase:?}");
                self.give_up(FsError::Io("a data call lost its way".into()))
            }
        }
    }

    fn failed(&mut self, now: MonoMs, location: Arc<Location>, trouble: Trouble) -> Step {
        self.trouble = Some(trouble.clone());
        let is_stale = matches!(trouble, Trouble::Refused(FsError::Stale(_)));
        let is_again = matches!(trouble, Trouble::Refused(FsError::TryAgain(_) | FsError::UnknownSession));
        self.stale = if is_stale { self.stale + 1 } else { 0 };
        self.again = if is_again { self.again + 1 } else { 0 };
        match trouble {
            Trouble::Unanswered(_) => self.look_up(now, Some(location), Then::AskOther),
            Trouble::Refused(FsError::Stale(_)) if self.stale <= STALE_AT_ONCE_MAX => {
                self.look_up(now, Some(location), Then::Ask)
            }
            Trouble::Refused(FsError::Stale(_)) => self.wait_to_look(now, location),
            Trouble::Refused(FsError::TryAgain(_) | FsError::UnknownSession) => {
                if self.again.is_multiple_of(2) {
                    self.wait_to_look(now, location)
                } else {
                    self.wait_to_ask(now, location)
                }
            }
            Trouble::Refused(FsError::NoReplica(_) | FsError::TimedOut(_)) => {
                self.look_up(now, Some(location), Then::AskOther)
            }
            Trouble::Refused(error @ FsError::Corrupt(_)) => {
                if self.damaged.replace(location.version) == Some(location.version) {
                    return self.give_up(error);
                }
                self.look_up(now, Some(location), Then::AskOther)
            }
            Trouble::Refused(error) => self.give_up(error),
        }
    }

    fn found(&mut self, now: MonoMs, look: LookUp, then: Then, location: Arc<Location>) -> Step {
        let Some(primary) = location.primary() else {
            return self.not_found(
                now,
                look,
                FsError::NoReplica(format!("chunk {}: no server has it", location.chunk)),
            );
        };
        let is_other = look.instead_of.as_ref().is_none_or(|old| {
            old.version != location.version || old.primary().is_none_or(|before| before.node != primary.node)
        });
        if is_other {
            self.backoff.reset();
        }
        self.dead = if primary.is_alive { 0 } else { self.dead + 1 };
        if !self.dead.is_multiple_of(ASK_DEAD_EVERY) {
            let lost = Some(primary.node);
            return self.wait(now, Phase::WaitingToLook(LookUp { lost, ..self.new_look_up(Some(location)) }));
        }
        match then {
            Then::Ask => self.ask(now, location),
            Then::AskOther if is_other => self.ask(now, location),
            Then::AskOther => self.wait_to_look(now, location),
        }
    }

    fn not_found(&mut self, now: MonoMs, look: LookUp, error: FsError) -> Step {
        if !error.is_transient() {
            return self.give_up(error);
        }
        self.trouble = Some(Trouble::Refused(error));
        self.wait(now, Phase::WaitingToLook(look))
    }

    fn ask(&mut self, now: MonoMs, location: Arc<Location>) -> Step {
        let Some(within_ms) = self.left_of(now, self.attempt_ms) else { return self.time_is_up() };
        let ask = Ask { location, check_at: now.plus(QUIET_MS.min(within_ms)), until: now.plus(within_ms) };
        self.phase = Phase::Asking(ask.clone());
        Step::Ask(ask)
    }

    fn look_up(&mut self, now: MonoMs, instead_of: Option<Arc<Location>>, then: Then) -> Step {
        if self.is_time_up(now) {
            return self.time_is_up();
        }
        let look = self.new_look_up(instead_of);
        self.phase = Phase::Looking(look.clone(), then);
        Step::LookUp(look)
    }

    fn look_up_again(&mut self, now: MonoMs, look: LookUp) -> Step {
        if self.is_time_up(now) {
            return self.time_is_up();
        }
        // It was reported the first time.
        let look = LookUp { damage: None, ..look };
        self.phase = Phase::Looking(look.clone(), Then::Ask);
        Step::LookUp(look)
    }

    fn new_look_up(&self, instead_of: Option<Arc<Location>>) -> LookUp {
        let primary = instead_of.as_ref().and_then(|location| Some((location.primary()?.node, location)));
        let lost = primary.filter(|_| matches!(self.trouble, Some(Trouble::Unanswered(_)))).map(|(node, _)| node);
        let damage = match (&self.trouble, primary) {
            (Some(Trouble::Refused(FsError::Corrupt(detail))), Some((node, location))) => {
                Some(Damage { chunk: location.chunk, version: location.version, node, detail: detail.clone() })
            }
            _ => None,
        };
        LookUp { instead_of, lost, damage, until: self.policy.deadline(self.begun) }
    }

    fn wait_to_ask(&mut self, now: MonoMs, location: Arc<Location>) -> Step {
        self.wait(now, Phase::WaitingToAsk(location))
    }

    fn wait_to_look(&mut self, now: MonoMs, instead_of: Arc<Location>) -> Step {
        let look = self.new_look_up(Some(instead_of));
        self.wait(now, Phase::WaitingToLook(look))
    }

    fn wait(&mut self, now: MonoMs, next: Phase) -> Step {
        let left_ms = self.policy.left_ms(self.elapsed_ms(now));
        if left_ms == Some(0) {
            return self.time_is_up();
        }
        self.phase = next;
        Step::Wait { until: now.plus(self.backoff.pause_ms(left_ms)) }
    }

    fn is_time_up(&self, now: MonoMs) -> bool {
        self.policy.left_ms(self.elapsed_ms(now)) == Some(0)
    }

    /// Returns `ms`, or what is left of the call's time if that is less; `None` if nothing is.
    fn left_of(&self, now: MonoMs, ms: u64) -> Option<u64> {
        let within_ms = self.policy.left_ms(self.elapsed_ms(now)).map_or(ms, |left_ms| left_ms.min(ms));
        (within_ms > 0).then_some(within_ms)
    }

    fn time_is_up(&mut self) -> Step {
        let error = match self.trouble.clone().map(Trouble::into_error) {
            // Words between a mount and its servers, which no program has to know.
            None | Some(FsError::TryAgain(_) | FsError::Stale(_)) => FsError::TimedOut("the chunk servers"),
            Some(error) => error,
        };
        self.give_up(error)
    }

    fn give_up(&mut self, error: FsError) -> Step {
        self.phase = Phase::Over;
        Step::Done(Err(error))
    }
}

#[cfg(test)]
#[path = "chunk_call_tests.rs"]
mod tests;
