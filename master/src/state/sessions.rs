//! Sessions of mounts begin and end, and what lost ones may still do is fenced off.

use dfs_proto::{FsError, SessionId, UnixNanos};

use super::master::{Answer, MasterState};
use crate::core::key::Key;
use crate::core::op;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Record, Session};
use crate::core::request::{Call, SessionOpen};
use crate::core::session::{Reply, SessionState};
use crate::core::view::{Known, Records};

/// Without a look at the sessions for so long, the master itself was away.
const AWAY_MS: u64 = 10_000;

impl MasterState {
    pub(super) fn open_session(&mut self, call: &Call, request: &SessionOpen) -> Answer {
        if self.is_in_reclaim_window() {
            return Answer::failed(FsError::TryAgain("waiting for sessions to come back"));
        }
        let known = self.sessions.of_client(&request.client_id);
        let now = self.clock.wall();
        let (result, seen) = self.run(SessionId(0), None, |view| op::session_open(view, known, request));
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => return Answer { durable_first: seen, ..Answer::failed(error) },
        };
        let durable_first = outcome.durable_first.max(seen);
        let reply = self.apply(call, outcome, now);
        let Body::Session { session, .. } = &reply.body else { unreachable!("the operation answers with a session") };
        if let Some(known) = self.sessions.get_mut(*session) {
            known.last_seen = self.clock.mono();
            // A mount that still waits for the answer to its first request has nothing to bring back.
            self.is_back(*session);
        } else {
            if let Some(Known::Present(Record::Session(record))) = self.records.find(&Key::Session(*session)) {
                self.sessions.insert(*session, record, self.clock.mono(), false);
            }
            tracing::info!(session = %session, host = request.host, mount_point = request.mount_point, "session opened");
        }
        Answer { durable_first, ..Answer::of(reply) }
    }

    /// Ends a session that the mount gave back: its replies go, and what it alone held open is let go.
    pub(super) fn close_session(&mut self, session: SessionId) -> Answer {
        let Some(ended) = self.sessions.remove(session) else { return Answer::failed(FsError::UnknownSession) };
        // What is no orphan is left alone by the purge.
        self.purgeable.extend(self.opens.drop_session(session));
        self.is_back(session);
        let now = self.clock.wall();
        match self.drop_session_records(session, &ended, None) {
            Ok(()) => Answer::of(Reply { seq: self.last_seq(), time: now, body: Body::Done }),
            Err(error) => Answer::failed(error),
        }
    }

    /// Ends sessions whose lease ran out, and lets go what earlier ones held open once nobody takes their requests any
    /// more; returns how many ended. Does nothing during the reclaim window.
    ///
    /// To be called every second or so. If the last call was long ago the master itself was away (stopped, or its host
    /// suspended), and what its mounts said meanwhile lies unread in the sockets: then all leases begin anew.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn expire_sessions(&mut self) -> Result<usize, FsError> {
        if self.is_in_reclaim_window() {
            return Ok(0);
        }
        let now = self.clock.mono();
        let away_ms = self.sessions_checked.replace(now).map_or(0, |last| now.since(last));
        if away_ms > AWAY_MS {
            tracing::warn!(away_ms, "the master was not running; all sessions get a new lease");
            self.sessions.renew_all(now);
            return Ok(0);
        }
        let expired = self.sessions.expired(now, self.settings.session_ms);
        for session in &expired {
            tracing::warn!(session = %session, "the session's lease ran out");
            self.fence_session(*session)?;
        }
        self.finish_fences()?;
        Ok(expired.len())
    }

    /// Ends a lost session. Its mount may live on, cut off from here but not from the chunk servers, and write: they are
    /// told to refuse it. Until that is in force everywhere, what it held open stays.
    ///
    /// Bytes that it wrote past the end of a file may stay there (docs/decisions/0006).
    fn fence_session(&mut self, session: SessionId) -> Result<(), FsError> {
        let Some(ended) = self.sessions.remove(session) else { return Ok(()) };
        self.is_back(session);
        let record = Session { is_fenced: true, ..Session::clone(&ended.record) };
        self.drop_session_records(session, &ended, Some(record))?;
        // The chunk servers never forget, so neither may the record.
        self.sync().map_err(|error| self.stop_serving(&error))?;
        let (seq, now) = (self.last_seq(), self.clock.mono());
        self.control.nodes.write().fences_mut().add(session, seq, now);
        self.fencing.insert(session);
        Ok(())
    }

    /// Returns whether no chunk server takes requests of `session` any more, which has ended: what it held may be given to
    /// others.
    pub fn is_fence_complete(&self, session: SessionId) -> bool {
        self.control.nodes.read().is_fence_complete(session, self.clock.mono())
    }

    fn finish_fences(&mut self) -> Result<(), FsError> {
        let complete: Vec<SessionId> =
            self.fencing.iter().copied().filter(|session| self.is_fence_complete(*session)).collect();
        for session in complete {
            self.fencing.remove(&session);
            self.purgeable.extend(self.opens.drop_session(session));
            tracing::info!(%session, "no chunk server takes requests of the session any more");
        }
        let over = self.control.nodes.read().fences().expired(self.clock.mono());
        for session in over {
            self.internal(|view| {
                let mut outcome = Outcome::new(view);
                outcome.delete(Key::Session(session));
                Ok(outcome)
            })?;
            self.control.nodes.write().fences_mut().forget(session);
        }
        Ok(())
    }

    /// Deletes the replies of a session, and its record, or puts `left` in the place of that.
    fn drop_session_records(
        &mut self,
        session: SessionId,
        ended: &SessionState,
        left: Option<Session>,
    ) -> Result<(), FsError> {
        let stored: Vec<u64> =
            ended.replies.iter().filter(|(_, kept)| kept.is_stored).map(|(number, _)| *number).collect();
        self.internal(|view| {
            let mut outcome = Outcome::new(view);
            match &left {
                Some(record) => {
                    let seq = outcome.seq();
                    let record = Session { seq, ..record.clone() };
                    outcome.put(Key::Session(session), Record::Session(record.into()));
                }
                None => outcome.delete(Key::Session(session)),
            }
            for number in &stored {
                outcome.delete(Key::Reply(session, *number));
            }
            Ok(outcome)
        })?;
        Ok(())
    }
}

impl Answer {
    /// Returns the answer `reply`, for which nothing need be waited.
    pub(super) fn of(reply: Reply) -> Self {
        Self { result: Ok(reply), ..Self::failed(FsError::UnknownSession) }
    }

    /// The answer to work that hands its result over itself.
    pub fn nothing() -> Self {
        Self::of(Reply { seq: dfs_proto::Seq(0), time: UnixNanos(0), body: Body::Done })
    }
}
