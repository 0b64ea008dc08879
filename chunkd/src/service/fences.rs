//! Sessions of mounts that were lost: what they ask is refused, so that what they held can be given to others.
//!
//! A fence is in force once no request of such a session is under way any more: one that began just before the fence could
//! still change data after the session's locks have been given away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::{FsError, SessionId};
use parking_lot::{Mutex, RwLock};

/// The fenced sessions, and the connections of mounts.
#[derive(Debug, Default)]
pub(super) struct Fences {
    sessions: RwLock<BTreeSet<SessionId>>,
    is_any: AtomicBool,
    guests: Mutex<BTreeMap<u64, Arc<Guest>>>,
    next_guest: AtomicU64,
    /// The fence that was told last.
    told: AtomicU64,
    in_force: AtomicU64,
}

/// A connection of a mount.
#[derive(Debug)]
struct Guest {
    session: SessionId,
    is_busy: AtomicBool,
}

/// A connection of a mount, known until it is dropped.
pub(super) struct Visit<'a> {
    fences: &'a Fences,
    id: u64,
    guest: Arc<Guest>,
}

/// A request that is under way, until it is dropped.
pub(super) struct Busy<'a>(&'a Guest);

impl Fences {
    /// Makes a connection known.
    pub fn visit(&self, session: SessionId) -> Visit<'_> {
        let guest = Arc::new(Guest { session, is_busy: AtomicBool::new(false) });
        let id = self.next_guest.fetch_add(1, Ordering::Relaxed);
        self.guests.lock().insert(id, Arc::clone(&guest));
        Visit { fences: self, id, guest }
    }

    /// Takes over what the master says: all fenced sessions, and how many fences there were.
    pub fn tell(&self, sessions: impl IntoIterator<Item = SessionId>, fence: u64) {
        let sessions: BTreeSet<SessionId> = sessions.into_iter().collect();
        let is_any = !sessions.is_empty();
        *self.sessions.write() = sessions;
        // Before the guests are looked at: whoever was not seen busy sees the fence. See `Visit::begin`.
        self.is_any.store(is_any, Ordering::SeqCst);
        self.told.store(fence, Ordering::SeqCst);
    }

    /// Returns the fence up to which all are in force.
    pub fn in_force(&self) -> u64 {
        let told = self.told.load(Ordering::SeqCst);
        if self.in_force.load(Ordering::SeqCst) != told {
            let sessions = self.sessions.read();
            let guests = self.guests.lock();
            let is_under_way =
                |guest: &Arc<Guest>| guest.is_busy.load(Ordering::SeqCst) && sessions.contains(&guest.session);
            if !guests.values().any(is_under_way) {
                self.in_force.store(told, Ordering::SeqCst);
            }
        }
        self.in_force.load(Ordering::SeqCst)
    }

    /// Returns how many sessions are fenced.
    pub fn count(&self) -> usize {
        self.sessions.read().len()
    }
}

impl Visit<'_> {
    /// Begins a request.
    ///
    /// # Errors
    ///
    /// [`FsError::UnknownSession`] if the session is fenced.
    pub fn begin(&self) -> Result<Busy<'_>, FsError> {
        self.guest.is_busy.store(true, Ordering::SeqCst);
        let busy = Busy(&self.guest);
        if self.fences.is_any.load(Ordering::SeqCst) && self.fences.sessions.read().contains(&self.guest.session) {
            return Err(FsError::UnknownSession);
        }
        Ok(busy)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.fences.guests.lock().remove(&self.id);
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_in_force_when_the_last_request_of_its_sessions_has_ended() {
        let fences = Fences::default();
        let (lost, other) = (fences.visit(SessionId(1)), fences.visit(SessionId(2)));
        let under_way = lost.begin().expect("not fenced yet");
        let _beside = other.begin().expect("not fenced");
        fences.tell([SessionId(1)], 7);
        assert_eq!(fences.in_force(), 0);
        drop(under_way);
        assert_eq!(fences.in_force(), 7);
        assert_eq!(lost.begin().err(), Some(FsError::UnknownSession));
        fences.tell([], 7);
        assert!(lost.begin().is_ok(), "the master has forgotten it");
    }
}
