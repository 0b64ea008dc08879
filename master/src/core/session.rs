//! The sessions of mounts: who is known, until when, and which replies may be asked for again.
//!
//! # Invariants
//!
//! - A kept reply is forgotten only when the mount said that it will not ask again (`acked_below`), or its session
//!   ended. There are at most [`REPLIES_MAX`] a session: above that its changes wait.
//! - In the reclaim window of a restarted master only the sessions it knew from before are served, and only what they
//!   held and had done before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{MonoMs, Seq, SessionId, UnixNanos};

use super::outcome::Body;
use super::record::{SavedBody, SavedReply, Session};

/// Most replies that are kept for one session.
pub const REPLIES_MAX: usize = 65_536;

/// What a call was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Position of the change in the log; 0 if nothing changed.
    pub seq: Seq,
    /// The time the operation used.
    pub time: UnixNanos,
    /// What it said.
    pub body: Body,
}

/// A reply that may be asked for again.
#[derive(Clone, Debug)]
pub struct KeptReply {
    /// The reply.
    pub reply: Reply,
    /// There is a record of it.
    pub is_stored: bool,
    /// It was given by an earlier run of the master, which forgot since what its call opened.
    pub is_from_before: bool,
}

impl Reply {
    /// Returns what is stored of it, if its call must not run twice (an allocation may: it finds its chunks).
    pub fn to_save(&self) -> Option<SavedReply> {
        let body = match &self.body {
            Body::Done => SavedBody::Done,
            Body::Entry { inode, is_created } => {
                SavedBody::Entry { inode: Arc::clone(inode), is_created: *is_created, is_opened: false }
            }
            Body::Opened { inode, is_created, .. } => {
                SavedBody::Entry { inode: Arc::clone(inode), is_created: *is_created, is_opened: true }
            }
            _ => return None,
        };
        Some(SavedReply { seq: self.seq, time: self.time, body })
    }
}

impl From<&SavedReply> for Reply {
    fn from(saved: &SavedReply) -> Self {
        let body = match &saved.body {
            SavedBody::Done => Body::Done,
            SavedBody::Entry { inode, is_created, is_opened: false } => {
                Body::Entry { inode: Arc::clone(inode), is_created: *is_created }
            }
            // Only a new file is opened with a change, and a new file is empty.
            SavedBody::Entry { inode, is_created, is_opened: true } => {
                Body::Opened { inode: Arc::clone(inode), content: Bytes::new(), is_created: *is_created }
            }
        };
        Self { seq: saved.seq, time: saved.time, body }
    }
}

/// One session.
#[derive(Clone, Debug)]
pub struct SessionState {
    /// What the mount said of itself.
    pub record: Arc<Session>,
    /// When it was last heard of.
    pub last_seen: MonoMs,
    /// It is from before a restart and has not yet said all it had.
    pub is_returning: bool,
    /// Replies by request number.
    pub replies: BTreeMap<u64, KeptReply>,
}

/// All sessions.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    known: BTreeMap<SessionId, SessionState>,
}

impl Sessions {
    /// Puts in a session that begins, or that is known from before a restart.
    pub fn insert(&mut self, id: SessionId, record: Arc<Session>, now: MonoMs, is_returning: bool) {
        self.known.insert(id, SessionState { record, last_seen: now, is_returning, replies: BTreeMap::new() });
    }

    /// Returns the session, to be changed.
    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut SessionState> {
        self.known.get_mut(&id)
    }

    /// Returns the session that the mount with this client id opened before.
    pub fn of_client(&self, client_id: &[u8]) -> Option<SessionId> {
        self.known.iter().find(|(_, session)| session.record.client_id == client_id).map(|(id, _)| *id)
    }

    /// Ends a session, and returns it.
    pub fn remove(&mut self, id: SessionId) -> Option<SessionState> {
        self.known.remove(&id)
    }

    /// Returns the sessions that were last heard of more than `lease_ms` ago.
    pub fn expired(&self, now: MonoMs, lease_ms: u64) -> Vec<SessionId> {
        let is_expired = |session: &SessionState| now.since(session.last_seen) > lease_ms;
        self.known.iter().filter(|(_, session)| is_expired(session)).map(|(id, _)| *id).collect()
    }

    /// Gives every session a whole lease from `now` on.
    pub fn renew_all(&mut self, now: MonoMs) {
        self.known.values_mut().for_each(|session| session.last_seen = now);
    }

    /// Returns all of them by id.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &SessionState)> {
        self.known.iter().map(|(id, session)| (*id, session))
    }
}

impl SessionState {
    /// Forgets replies to numbers below `acked_below`, and returns those that have a record.
    pub fn acknowledge(&mut self, acked_below: u64) -> Vec<u64> {
        let mut stored = Vec::new();
        while let Some(first) = self.replies.first_entry()
            && *first.key() < acked_below
        {
            let (number, kept) = first.remove_entry();
            if kept.is_stored {
                stored.push(number);
            }
        }
        stored
    }
}

/// The time after a restart in which sessions come back before new work is taken.
#[derive(Clone, Debug)]
pub struct ReclaimWindow {
    until: MonoMs,
    waiting: BTreeSet<SessionId>,
}

impl ReclaimWindow {
    /// Waits for `sessions` until `until`.
    pub fn new(until: MonoMs, sessions: BTreeSet<SessionId>) -> Self {
        Self { until, waiting: sessions }
    }

    /// Notes that a session said all it had, or ended.
    pub fn is_back(&mut self, session: SessionId) {
        self.waiting.remove(&session);
    }

    /// Returns whether new work is taken again.
    pub fn is_over(&self, now: MonoMs) -> bool {
        self.waiting.is_empty() || now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(seq: u64) -> Reply {
        Reply { seq: Seq(seq), time: UnixNanos(1), body: Body::Done }
    }

    #[test]
    fn replies_go_when_they_are_acknowledged() {
        let mut sessions = Sessions::default();
        sessions.insert(SessionId(1), Arc::default(), MonoMs(0), false);
        let session = sessions.get_mut(SessionId(1)).unwrap();
        for number in [3, 4, 5, 7] {
            let kept = KeptReply { reply: reply(number), is_stored: number != 4, is_from_before: false };
            session.replies.insert(number, kept);
        }
        assert_eq!(session.acknowledge(3), [0; 0]);
        assert_eq!(session.acknowledge(7), [3, 5]);
        assert_eq!(session.replies.keys().copied().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_lease_runs_out_after_its_span_of_silence() {
        let mut sessions = Sessions::default();
        sessions.insert(SessionId(1), Arc::default(), MonoMs(100), false);
        assert_eq!(sessions.expired(MonoMs(60_100), 60_000), []);
        assert_eq!(sessions.expired(MonoMs(60_101), 60_000), [SessionId(1)]);
        sessions.get_mut(SessionId(1)).unwrap().last_seen = MonoMs(60_000);
        assert_eq!(sessions.expired(MonoMs(60_101), 60_000), []);
    }

    #[test]
    fn the_window_ends_early_when_all_are_back() {
        let both = BTreeSet::from([SessionId(1), SessionId(2)]);
        let mut window = ReclaimWindow::new(MonoMs(3_000), both);
        window.is_back(SessionId(1));
        assert!(!window.is_over(MonoMs(2_999)));
        assert!(window.is_over(MonoMs(3_000)));
        window.is_back(SessionId(2));
        assert!(window.is_over(MonoMs(0)));
    }
}
