//! The state in memory of one replica that is open, and its changes of role.
//!
//! ```text
//!            ensure_active            reconciled
//!   Idle ─────────────────▶ Activating ─────────▶ Primary
//!    ▲  ▲                       │ failed             │ a member was lost
//!    │  └───────────────────────┴────────────────────┘
//!    └──▶ Secondary: from anywhere, when the primary of this or a newer version says Activate
//! ```
//!
//! # Invariants
//!
//! - What changes the file under a role checks the role and counts itself in `applying` in one critical section, and a
//!   change of role waits until `applying` is 0 before the unit table is read. So no write of an old role reaches the
//!   file after the table was compared.
//! - Reads go on when a member is lost, under the last activation (`reading`), except of units whose last write is not
//!   resolved: that write may yet be lost with this server, and must not have been seen. Before units are pulled into
//!   this replica, reads end.
//! - The version in the header only grows, and is on disk before anything is done or answered under it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dfs_proto::{FsError, Version};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::shared::store_failure;
use crate::core::admission::{Grant, Member};
use crate::core::dedupe::{DedupeWindow, RequestKey};
use crate::core::follow::Follow;
use crate::core::write_order::{Access, Ticket, WriteOrder};
use crate::store::StoreError;
use crate::store::header::Header;
use crate::store::replica_store::OpenReplica;

/// Unresolved writes that are kept apart; with more, reads end too.
const UNRESOLVED_MAX: usize = 256;

/// One open replica.
pub(super) struct Replica {
    pub open: OpenReplica,
    state: Mutex<State>,
    changed: Condvar,
}

/// What changes about it.
pub(super) struct State {
    pub header: Header,
    /// Deleted on order.
    pub is_gone: bool,
    /// The grant that was checked last, and what it says.
    pub verified: Option<(Bytes, Arc<Grant>)>,
    pub role: Role,
    /// The activation under which reads may be served.
    pub reading: Option<Active>,
    /// Units `[first, end)` of writes that were applied here and perhaps not by all.
    unresolved: Vec<(u32, u32)>,
    pub order: WriteOrder,
    pub window: DedupeWindow,
    /// The highest seq that all members have.
    pub committed: u64,
    /// Changes of the file that are under way.
    pub applying: u32,
    waiters: u32,
}

/// What this replica is at the moment.
#[derive(Clone, Debug)]
pub(super) enum Role {
    Idle,
    Activating(u64),
    Primary(Active),
    Secondary(Follow),
}

/// The right to serve as primary, from one activation to the next.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub version: Version,
    pub activation: u64,
    /// The members were equal up to this seq when it began.
    pub base: u64,
    pub others: Arc<[Member]>,
}

impl State {
    /// Returns whether `activation` is still in force here.
    pub fn is_active(&self, activation: u64) -> bool {
        matches!(&self.role, Role::Primary(active) if active.activation == activation)
    }

    /// Returns whether reads may be served under `activation`.
    pub fn may_read(&self, activation: u64) -> bool {
        self.reading.as_ref().is_some_and(|active| active.activation == activation)
    }

    /// Returns whether all members are known to agree on the units `[first, end)`.
    pub fn is_resolved(&self, first: u32, end: u32) -> bool {
        !self.unresolved.iter().any(|range| range.0 < end && first < range.1)
    }

    /// Notes that the members may differ in the units `[first, end)` from now on, and ends `activation`.
    pub fn leave_unresolved(&mut self, activation: u64, first: u32, end: u32) {
        if self.may_read(activation) {
            self.unresolved.push((first, end));
            if self.unresolved.len() > UNRESOLVED_MAX {
                self.reading = None;
            }
        }
        self.deactivate(activation);
    }

    /// Begins to serve as `active`: all members are equal.
    pub fn serve_as(&mut self, active: Active) {
        self.unresolved.clear();
        self.reading = Some(active.clone());
        self.role = Role::Primary(active);
    }

    /// Follows another server.
    pub fn follow(&mut self, follow: Follow) {
        self.reading = None;
        self.role = Role::Secondary(follow);
    }

    /// Ends `activation`, if it is in force: the next write compares the members again.
    pub fn deactivate(&mut self, activation: u64) {
        if self.is_active(activation) {
            self.role = Role::Idle;
        }
    }
}

impl Replica {
    pub fn new(open: OpenReplica) -> Self {
        let state = State {
            header: open.header,
            is_gone: false,
            verified: None,
            role: Role::Idle,
            reading: None,
            unresolved: Vec::new(),
            order: WriteOrder::default(),
            window: DedupeWindow::default(),
            committed: 0,
            applying: 0,
            waiters: 0,
        };
        Self { open, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until something changes.
    ///
    /// # Errors
    ///
    /// [`FsError::TimedOut`] past the deadline.
    pub fn wait(&self, state: &mut MutexGuard<'_, State>, deadline: Instant) -> Result<(), FsError> {
        if Instant::now() >= deadline {
            return Err(FsError::TimedOut("waiting for earlier requests to the same chunk"));
        }
        state.waiters += 1;
        self.changed.wait_until(state, deadline);
        state.waiters -= 1;
        Ok(())
    }

    /// Wakes whoever waits for a change.
    pub fn notify(&self, state: &State) {
        if state.waiters > 0 {
            self.changed.notify_all();
        }
    }

    /// Raises the version to `version`, on disk too.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] if it is higher already.
    pub fn raise_version(&self, state: &mut State, version: Version) -> Result<(), FsError> {
        if version < state.header.version {
            return Err(FsError::Stale("this replica has a newer version"));
        }
        if version > state.header.version {
            let header = Header { version, ..state.header };
            self.write_header(state, header)?;
            state.reading = None;
            // Rare, and it fences the old primary: worth a sync under the lock.
            self.open.sync().map_err(store_failure)?;
        }
        Ok(())
    }

    /// Notes that the replica has what the other members have; what it was given is on disk before it says so.
    pub fn mark_complete(&self, state: &mut State) -> Result<(), FsError> {
        if state.header.incomplete {
            self.open.sync().map_err(store_failure)?;
            let header = Header { incomplete: false, ..state.header };
            self.write_header(state, header)?;
        }
        Ok(())
    }

    fn write_header(&self, state: &mut State, header: Header) -> Result<(), FsError> {
        self.open.disk.judge(self.open.file.set_header(&header)).map_err(store_failure)?;
        state.header = header;
        Ok(())
    }

    /// Begins a change of the file. The caller has checked the role under the same lock.
    pub fn begin_change<'a>(&'a self, state: &mut State) -> Change<'a> {
        state.applying += 1;
        Change { replica: self, is_over: false }
    }

    /// Waits until no change of the file is under way.
    pub fn drain(&self, state: &mut MutexGuard<'_, State>, deadline: Instant) -> Result<(), FsError> {
        while state.applying > 0 {
            self.wait(state, deadline)?;
        }
        Ok(())
    }

    /// Takes a ticket as primary under `active` and waits until it may go on.
    ///
    /// # Errors
    ///
    /// [`FsError::TryAgain`] if the activation ended: activate and come again. [`FsError::TimedOut`].
    pub fn enter<'a>(
        &'a self,
        state: &mut MutexGuard<'a, State>,
        active: &Active,
        units: (u32, u32),
        access: Access,
        deadline: Instant,
    ) -> Result<Ticket, FsError> {
        let ticket = state.order.enter(units.0, units.1, access)?;
        let outcome = loop {
            let is_open = match access {
                Access::Read => state.may_read(active.activation),
                Access::Write(_) => state.is_active(active.activation),
            };
            if !is_open {
                break Err(FsError::TryAgain("the activation ended"));
            }
            if state.order.may_start(ticket) {
                return Ok(ticket);
            }
            if let Err(error) = self.wait(state, deadline) {
                break Err(error);
            }
        };
        state.order.leave(ticket);
        self.notify(state);
        outcome
    }

    /// Repairs `unit` as primary under `active`.
    ///
    /// # Errors
    ///
    /// [`FsError::TryAgain`] if the activation has ended, or the members may differ in the unit; then nothing was changed.
    /// What the store says.
    pub fn repair(
        &self,
        active: &Active,
        unit: u32,
        change: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), FsError> {
        let under_way = {
            let mut state = self.lock();
            if !state.may_read(active.activation) || !state.is_resolved(unit, unit + 1) {
                return Err(FsError::TryAgain("the activation ended"));
            }
            self.begin_change(&mut state)
        };
        let result = self.open.disk.judge(self.open.disk.check().and_then(|()| change()));
        drop(under_way.end());
        result.map_err(store_failure)
    }
}

/// A change of the file that is under way. If its thread panics, nobody knows what was changed: the role ends, and the
/// next activation compares.
pub(super) struct Change<'a> {
    replica: &'a Replica,
    is_over: bool,
}

impl<'a> Change<'a> {
    /// Ends the change, and returns the state as it is then.
    pub fn end(mut self) -> MutexGuard<'a, State> {
        self.is_over = true;
        let mut state = self.replica.lock();
        state.applying -= 1;
        self.replica.notify(&state);
        state
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = self.replica.lock();
            state.applying -= 1;
            state.role = Role::Idle;
            state.reading = None;
            self.replica.notify(&state);
        }
    }
}

/// A ticket that is given back when it goes out of scope.
pub(super) struct Held<'a> {
    pub replica: &'a Replica,
    pub ticket: Ticket,
    /// The write that is forgotten with it, because it was applied nowhere.
    pub forget: Option<RequestKey>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.replica.lock();
        state.order.leave(self.ticket);
        if let Some(key) = self.forget {
            state.window.forget(key);
        }
        self.replica.notify(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dfs_proto::ChunkId;

    use super::*;
    use crate::store::replica_store::ReplicaStore;

    #[test]
    fn a_thread_that_panics_in_a_change_ends_the_role_and_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = ReplicaStore::open(&[directory.path().to_owned()], 0, "boot").expect("opens");
        let header = Header {
            chunk: ChunkId(1),
            version: Version(1),
            home: Default::default(),
            chunk_size_log2: 16,
            incomplete: false,
        };
        let replica = Replica::new(store.create_replica(&header).expect("made"));
        let active = Active { version: Version(1), activation: 5, base: 0, others: Arc::from([]) };
        replica.lock().serve_as(active.clone());
        let panicked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut state = replica.lock();
                let deadline = Instant::now() + Duration::from_secs(5);
                let ticket = replica.enter(&mut state, &active, (0, 1), Access::Write(1), deadline).expect("enters");
                let _held = Held { replica: &replica, ticket, forget: None };
                let _change = replica.begin_change(&mut state);
                drop(state);
                panic!("as a bug would");
            });
            thread.join().is_err()
        });
        assert!(panicked);
        let mut state = replica.lock();
        assert!(matches!(state.role, Role::Idle) && !state.may_read(5));
        replica.drain(&mut state, Instant::now() + Duration::from_secs(5)).expect("nothing is under way");
        state.serve_as(active.clone());
        let ticket = replica.enter(&mut state, &active, (0, 1), Access::Write(1), Instant::now());
        assert!(ticket.is_ok(), "its place in the queue is free");
    }
}
