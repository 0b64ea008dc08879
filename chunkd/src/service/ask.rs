//! A request to one other chunk server, from its sending to its answer.
//!
//! ```text
//!            sent                      answered
//!   (new) ─────────▶ Sent ───────────────────────────▶ Answered, connection kept
//!     │               │ broken       the time is up
//!     │ refused       ▼            ┌──────────────────▶ NoReplica
//!     └───────────▶ Pausing ───────┘
//!          ▲           │ again, for up to a second
//!          └───────────┘
//! ```
//!
//! A server that is being restarted refuses connections for a moment; one whose connection breaks may be a new process by
//! now. Both are asked again, which does no harm: no request of one server to another does more the second time. One that
//! is silent is not.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::replica_set::Member;
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, pb};
use dfs_proto::{BootSession, FsError};

use super::peers::Peers;

/// How long a server that refuses connections or breaks them is asked again.
const AGAIN_FOR: Duration = Duration::from_secs(1);
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// What has begun to come in is waited for this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// What is passed on of a peer's own words.
const REASON_CHARS_MAX: usize = 500;

/// An answer as it came.
pub(super) type Answer = (pb::DataReply, Bytes);

#[derive(Debug)]
enum State {
    Sent(Connection, u64),
    Pausing(Instant),
    Failed(WireError),
    Over,
}

/// A request whose answer is yet to come.
#[derive(Debug)]
pub(super) struct Ask {
    member: Member,
    request: pb::DataRequest,
    payload: Bytes,
    state: State,
    until: Instant,
    again_until: Instant,
    pause: Duration,
    /// The run that the connections were made in.
    boot: BootSession,
}

impl Ask {
    /// Sends `request` to `member`. What goes wrong is told by [`Self::proceed`].
    pub fn send(
        peers: &Peers,
        own: &Identity,
        member: Member,
        request: pb::DataRequest,
        payload: Bytes,
        until: Instant,
    ) -> Self {
        let again_until = until.min(Instant::now() + AGAIN_FOR);
        let mut ask = Self {
            member,
            request,
            payload,
            state: State::Over,
            until,
            again_until,
            pause: PAUSE_FIRST,
            boot: own.boot,
        };
        ask.try_send(peers, own);
        ask
    }

    /// Returns what becomes readable when the answer has come; `None` during a pause.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Sent(connection, _) => Some(connection.as_fd()),
            State::Pausing(_) | State::Failed(_) | State::Over => None,
        }
    }

    /// Returns when [`Self::proceed`] has something to do even if the socket has not.
    pub fn wake_at(&self) -> Instant {
        match &self.state {
            State::Sent(..) => self.until,
            State::Pausing(until) => *until,
            State::Failed(_) | State::Over => Instant::now(),
        }
    }

    /// Does what there is to do at `now`: takes the answer in if it has come (`is_readable`), sends again after a pause,
    /// gives up when the time is up. Returns the end of it, or `None` if it goes on.
    pub fn proceed(
        &mut self,
        peers: &Peers,
        own: &Identity,
        now: Instant,
        is_readable: bool,
    ) -> Option<Result<Answer, FsError>> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Sent(mut connection, id) if is_readable => {
                match connection.reply::<pb::DataReply>(FrameKind::DataReply, id, Some(now + ANSWER_TIMEOUT)) {
                    Ok((mut reply, payload)) => {
                        if own.boot == self.boot {
                            peers.give_back(&self.member, connection);
                        }
                        return Some(match reply.failure.take() {
                            Some(failure) => Err(named(&self.member, failure.into())),
                            None => Ok((reply, payload)),
                        });
                    }
                    Err(error) => self.failed(peers, error),
                }
            }
            State::Sent(..) if now >= self.until => self.failed(peers, WireError::TimedOut),
            State::Pausing(until) if now >= until => self.try_send(peers, own),
            state => self.state = state,
        }
        let State::Failed(error) = &self.state else { return None };
        Some(Err(FsError::NoReplica(format!("node {} at {}: {error}", self.member.node, self.member.address))))
    }

    fn try_send(&mut self, peers: &Peers, own: &Identity) {
        let send = || -> Result<State, WireError> {
            let mut connection = peers.check_out(own, &self.member, self.until)?;
            let id = connection.request(FrameKind::DataRequest, &self.request, &self.payload)?;
            Ok(State::Sent(connection, id))
        };
        match send() {
            Ok(sent) => self.state = sent,
            Err(error) => self.failed(peers, error),
        }
    }

    /// Silence ends the attempt; what is broken or refused is tried again.
    fn failed(&mut self, peers: &Peers, error: WireError) {
        peers.lost(&self.member);
        let again = Instant::now() + self.pause;
        let may_change = matches!(error, WireError::Io(_) | WireError::Closed);
        self.state = if may_change && again < self.again_until { State::Pausing(again) } else { State::Failed(error) };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Says in an error of `member` that it was that member, so that a log line here is enough to find the culprit.
fn named(member: &Member, error: FsError) -> FsError {
    match error {
        FsError::NoReplica(reason) => {
            let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
            FsError::NoReplica(format!("node {}: {reason}", member.node))
        }
        other => other,
    }
}
