//! What the master is asked to change about the set, and what is made of its answers.
//!
//! A request whose answer was lost may have been done, or may yet be done by a copy that is still on its way. Each kind
//! is safe against that in its own way:
//!
//! - *Drop*: a member that is still waited for although the master has dropped it takes nothing away. It is asked again.
//! - *Leave*: nothing is served under that version once it was sent.
//! - *FinishSync*: nothing is committed under that version until the version has moved on. If the answer is lost, or is
//!   not plainly "done", the filled replica is dropped: either that succeeds, or the answer tells that it is in the set.

use dfs_proto::replica_set::{ChangeKind, ChangeRequest};
use dfs_proto::{FsError, MonoMs, Version};

use super::super::admission;
use super::super::message::{Context, Effect, Event, MasterAnswer, Reply, Sealed, Tag};
use super::call::{Call, Flow, News, Step};
use super::{ReplicaCore, Role};

/// The master is given this long for an answer before it is asked again.
const MASTER_MS: u64 = 1_500;
const PAUSE_MS: u64 = 200;

/// What an answer of the master says about this server's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// There is a newer grant.
    Newer,
    /// It is the primary under the version it asked about.
    Same,
    /// It is not the primary.
    NotPrimary,
    /// Nobody knows.
    Unclear,
}

/// Leaving the set, for good under this version.
#[derive(Debug)]
pub(super) struct Leave {
    reason: String,
    cause: Cause,
    /// The version that is left.
    version: Option<Version>,
    asked: Option<Tag>,
    at: MonoMs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// By order of the master; this replica is good.
    HandOver,
    /// Asked for by this server.
    Asked,
    /// A request came that this replica should serve, and cannot.
    Unfit,
}

impl Leave {
    fn new(reason: String, cause: Cause) -> Self {
        Self { reason, cause, version: None, asked: None, at: MonoMs(0) }
    }

    pub fn hand_over() -> Self {
        Self::new("by order of the master".into(), Cause::HandOver)
    }

    pub fn asked(reason: String) -> Self {
        Self::new(reason, Cause::Asked)
    }

    pub fn unfit(reason: String) -> Self {
        Self::new(reason, Cause::Unfit)
    }

    /// Returns what is told once this server has left.
    fn done(&self) -> Flow {
        match self.cause {
            Cause::HandOver => Flow::End(Ok(Reply::Order(Default::default()))),
            Cause::Asked => Flow::End(Ok(Reply::Done)),
            Cause::Unfit => Flow::End(Err(FsError::Stale("this replica has left the set"))),
        }
    }
}

impl ReplicaCore {
    /// Asks the master for a change of the set, which is at the version of our grant.
    pub(super) fn ask(&mut self, step: &mut Step<'_>, call: &mut Call, kind: ChangeKind, reason: String) -> Tag {
        let tag = call.tag();
        let (home, version) = match &self.grant {
            Some(grant) => (grant.grant.home, grant.grant.version),
            None => (self.home, self.version),
        };
        let Context { node, boot, .. } = *step.context;
        let request = ChangeRequest { node, boot, chunk: self.chunk, home, version, kind, reason };
        let until = call.attempt(step, MASTER_MS);
        step.out.push(Effect::AskMaster { call: call.id, tag, request, until });
        tag
    }

    /// Takes the grant in an answer of the master, if it is news.
    pub(super) fn hear(&mut self, context: &Context, answer: &MasterAnswer) {
        let Some(sealed) = &answer.grant else { return };
        let grant = &*sealed.grant;
        let is_ours = admission::check_primary(grant, self.chunk, grant.version, context.node, context.boot).is_ok();
        let is_newer = self.grant.as_ref().is_none_or(|known| known.grant.version < grant.version);
        if is_ours && is_newer && grant.version >= self.version {
            self.take_grant(sealed.clone());
        }
    }

    /// Notes a newer grant that makes this server the primary.
    pub(super) fn take_grant(&mut self, grant: Sealed) {
        self.home = grant.grant.home;
        // Whoever was lost under the old set is judged anew under this one, unless it is still named.
        self.lost.retain(|node, _| grant.grant.members.iter().any(|member| member.node == *node));
        self.grant = Some(grant);
        self.is_turned = true;
        self.is_stirred = true;
    }

    /// Returns what the answer to a request about `version` says. [`Self::hear`] has taken its grant.
    pub(super) fn heard(&self, step: &Step<'_>, version: Version, result: &Result<MasterAnswer, FsError>) -> Heard {
        let Ok(answer) = result else { return Heard::Unclear };
        match &answer.grant {
            Some(sealed) => {
                let grant = &*sealed.grant;
                let Context { node, boot, .. } = *step.context;
                if admission::check_primary(grant, self.chunk, grant.version, node, boot).is_err() {
                    Heard::NotPrimary
                } else if grant.version > version {
                    Heard::Newer
                } else {
                    Heard::Same
                }
            }
            None => match &answer.result {
                Err(FsError::Stale(_) | FsError::NoEntry) => Heard::NotPrimary,
                Ok(()) | Err(_) => Heard::Unclear,
            },
        }
    }

    /// Goes on with leaving the set.
    pub(super) fn leave_set(&mut self, step: &mut Step<'_>, call: &mut Call, leave: &mut Leave, news: News) -> Flow {
        match news {
            News::Master(tag, result) if leave.asked == Some(tag) => {
                leave.asked = None;
                match result {
                    Ok(MasterAnswer { result: Ok(()) | Err(FsError::NoEntry), .. }) => return leave.done(),
                    // As the primary of that version we would be told so, if we still were.
                    Ok(MasterAnswer { result: Err(FsError::Stale(reason)), grant }) => {
                        let is_past = grant.is_some_and(|grant| Some(grant.grant.version) > leave.version);
                        if self.leading().is_some() && is_past && leave.cause != Cause::Unfit {
                            leave.version = None;
                            return self.leave_set(step, call, leave, News::Resume);
                        }
                        return match leave.cause {
                            Cause::Asked => Flow::End(Err(FsError::Stale(reason))),
                            Cause::HandOver | Cause::Unfit => leave.done(),
                        };
                    }
                    Ok(MasterAnswer { result: Err(error), .. }) => return Flow::End(Err(error)),
                    Err(_) => {
                        leave.at = step.now().plus(PAUSE_MS);
                        call.arm(step, leave.at);
                    }
                }
                Flow::Wait
            }
            News::Resume | News::Timer if leave.asked.is_none() && step.now() >= leave.at => {
                if leave.version.is_none()
                    && let Err(error) = self.give_up(step, leave)
                {
                    return Flow::End(Err(error));
                }
                leave.asked = Some(self.ask(step, call, ChangeKind::Leave, leave.reason.clone()));
                Flow::Wait
            }
            _ => {
                if leave.asked.is_none() {
                    call.arm(step, leave.at);
                }
                Flow::Wait
            }
        }
    }

    /// Ends this server's role under the present version, for good.
    fn give_up(&mut self, step: &mut Step<'_>, leave: &mut Leave) -> Result<(), FsError> {
        let version = self.grant.as_ref().map_or(self.version, |grant| grant.grant.version.max(self.version));
        let members = self.leading().map(|grant| grant.grant.members.len());
        if members == Some(1) {
            if leave.cause == Cause::HandOver {
                return Err(FsError::Busy);
            }
            step.note(Event::Lost);
            self.turn(Role::Idle);
            self.reading = None;
            return Err(FsError::Corrupt(format!("chunk {}: no replica is left ({})", self.chunk, leave.reason)));
        }
        leave.version = Some(version);
        step.note(Event::Leaving { reason: leave.reason.clone() });
        self.given_up = self.given_up.max(version);
        if !matches!(self.role, Role::Secondary(_)) {
            self.turn(Role::Idle);
        }
        self.reading = None;
        self.is_turned = true;
        Ok(())
    }
}
