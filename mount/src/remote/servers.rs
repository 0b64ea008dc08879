//! Connections to chunk servers, and which of them are there.
//!
//! A thread that waits for an answer does not trust silence: after a while it says hello to the server on another
//! connection. A server that does not answer that is left at once, though a write may take seconds on one that does.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::wire::pb;
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello};
use dfs_proto::{FsError, SessionId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::silence::{Pass, Silences};
use crate::core::Trouble;

/// A server that does not take a connection and say hello within this is not there. One lost packet is sent again after
/// a second.
const HELLO_TIMEOUT: Duration = Duration::from_millis(1_500);
/// While an answer is waited for, the server is looked after so often.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// A server that takes nothing of what is sent to it for so long is stopped, or cut off.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections kept open to one server while nobody uses them.
const IDLE_MAX: usize = 16;

/// When an attempt is doubted and when it is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// If nothing came until then, somebody looks whether the server is there.
    pub(super) check_at: Instant,
    /// If nothing came until then, nothing will.
    pub(super) until: Instant,
}

/// The servers, as one session of a mount knows them.
#[derive(Debug)]
pub(super) struct Servers {
    state: Mutex<State>,
    silences: Silences,
}

#[derive(Debug)]
struct State {
    identity: Identity,
    /// Rises with each other session.
    generation: u64,
    known: BTreeMap<Arc<str>, Server>,
}

#[derive(Debug, Default)]
struct Server {
    idle: Vec<Connection>,
    /// When it answered last.
    heard: Option<Instant>,
}

impl Servers {
    pub(super) fn new(identity: Identity) -> Self {
        let state = State { identity, generation: 0, known: BTreeMap::new() };
        Self { state: Mutex::new(state), silences: Silences::default() }
    }

    /// Returns a number that rises with each other session.
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Speaks for another session from now on. The servers may refuse the old one.
    pub(super) fn session_changed(&self, session: SessionId) {
        let mut state = self.state.lock();
        state.identity.session = session;
        state.generation += 1;
        state.known.clear();
    }

    /// Sends a request to a server and returns its answer. `only_in`: not under another session than of this generation.
    pub(super) fn ask(
        &self,
        address: &Arc<str>,
        request: &pb::DataRequest,
        payload: &[u8],
        times: Times,
        only_in: Option<u64>,
    ) -> Result<(pb::DataReply, Bytes), Trouble> {
        let unanswered = |error: WireError| Trouble::Unanswered(format!("chunk server at {address}: {error}"));
        let Some(pass) = self.silences.enter(address) else { return Err(unanswered(WireError::TimedOut)) };
        if pass.is_probe() {
            self.check(address, &pass).map_err(unanswered)?;
        }
        let (kept, generation) = self.take(address, only_in)?;
        let mut is_reused = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.dial_within(address, times.until, &pass).map_err(unanswered)?,
        };
        loop {
            match self.exchange(&mut connection, address, request, payload, times, &pass) {
                Ok(answer) => {
                    self.give_back(address, connection, generation);
                    return Ok(answer);
                }
                // An idle connection dies unseen when its server restarts. Requests may be repeated: numbers see to it.
                Err(WireError::Closed | WireError::Io(_)) if is_reused => {
                    self.state.lock().known.remove(address);
                    connection = self.dial_within(address, times.until, &pass).map_err(unanswered)?;
                    is_reused = false;
                }
                Err(error) => return Err(unanswered(error)),
            }
        }
    }

    fn exchange(
        &self,
        connection: &mut Connection,
        address: &Arc<str>,
        request: &pb::DataRequest,
        payload: &[u8],
        times: Times,
        pass: &Pass<'_>,
    ) -> Result<(pb::DataReply, Bytes), WireError> {
        let mut asked = Instant::now();
        let id = match connection.request(FrameKind::DataRequest, request, payload) {
            Ok(id) => id,
            Err(WireError::TimedOut) => {
                self.check(address, pass)?;
                return Err(WireError::TimedOut);
            }
            Err(error) => return Err(error),
        };
        let mut look_at = times.check_at;
        while !is_readable(connection, look_at.min(times.until))? {
            let now = Instant::now();
            if now >= times.until {
                return Err(WireError::TimedOut);
            }
            // What little time is left is no time to find out.
            if now + HELLO_TIMEOUT < times.until && !self.was_heard_since(address, asked) {
                self.check(address, pass)?;
            }
            asked = now;
            look_at = now + CHECK_EVERY;
        }
        connection.reply(FrameKind::DataReply, id, Some(times.until))
    }

    /// Finds out whether a server is there at all.
    fn check(&self, address: &Arc<str>, pass: &Pass<'_>) -> Result<(), WireError> {
        let (identity, generation) = self.identity();
        match dial(&identity, address, HELLO_TIMEOUT) {
            Ok(connection) => {
                pass.heard();
                self.give_back(address, connection, generation);
                Ok(())
            }
            Err(error) => {
                match error {
                    WireError::TimedOut => pass.silent(),
                    // Its host says that nobody is there: that takes no time.
                    _ => pass.heard(),
                }
                Err(error)
            }
        }
    }

    fn dial_within(&self, address: &Arc<str>, until: Instant, pass: &Pass<'_>) -> Result<Connection, WireError> {
        let left = until.saturating_duration_since(Instant::now());
        let (identity, _) = self.identity();
        dial(&identity, address, left.min(HELLO_TIMEOUT)).inspect_err(|error| {
            if matches!(error, WireError::TimedOut) && left >= HELLO_TIMEOUT {
                pass.silent();
            }
        })
    }

    fn identity(&self) -> (Identity, u64) {
        let state = self.state.lock();
        (state.identity, state.generation)
    }

    /// Returns an idle connection, if there is one, and the generation.
    fn take(&self, address: &Arc<str>, only_in: Option<u64>) -> Result<(Option<Connection>, u64), Trouble> {
        let mut state = self.state.lock();
        let generation = state.generation;
        if only_in.is_some_and(|only_in| only_in != generation) {
            return Err(Trouble::Refused(FsError::SessionLost));
        }
        Ok((state.known.get_mut(address).and_then(|server| server.idle.pop()), generation))
    }

    fn give_back(&self, address: &Arc<str>, connection: Connection, generation: u64) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        let server = state.known.entry(Arc::clone(address)).or_default();
        server.heard = Some(Instant::now());
        if server.idle.len() < IDLE_MAX {
            server.idle.push(connection);
        }
    }

    fn was_heard_since(&self, address: &Arc<str>, since: Instant) -> bool {
        let state = self.state.lock();
        state.known.get(address).and_then(|server| server.heard).is_some_and(|heard| heard > since)
    }
}

fn dial(identity: &Identity, address: &str, timeout: Duration) -> Result<Connection, WireError> {
    let deadline = Instant::now() + timeout;
    let mut connection = connect(address, timeout)?;
    // An option of the socket, not of the handle to it.
    connection.socket()?.set_write_timeout(Some(SEND_TIMEOUT))?;
    offer_hello(&mut connection, identity, pb::Role::ChunkServer, deadline)?;
    Ok(connection)
}

/// Waits until something has come on a connection, or its end. `false`: nothing until then.
fn is_readable(connection: &Connection, until: Instant) -> Result<bool, WireError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent in a loop.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() >= until => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(std::io::Error::from(errno).into()),
        }
    }
}

#[cfg(test)]
#[path = "servers_tests.rs"]
mod tests;
