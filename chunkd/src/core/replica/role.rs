//! What this replica is at the moment, and how that changes.

use std::sync::Arc;

use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::Member;
use dfs_proto::{BootSession, FsError, Version};

use super::super::message::Event;
use super::ReplicaCore;
use super::call::Step;
use super::follow::Follow;

/// Unresolved writes that are kept apart; with more, reads end too.
const UNRESOLVED_MAX: usize = 256;

/// What this replica is at the moment.
#[derive(Clone, Debug)]
pub(super) enum Role {
    Idle,
    /// See `activation`.
    Activating,
    Primary(Arc<Active>),
    Secondary(Follow),
}

/// The right to serve as primary, from one activation to the next.
#[derive(Debug)]
pub(super) struct Active {
    pub version: Version,
    pub activation: u64,
    /// The members were equal up to this seq when it began.
    pub base: u64,
    pub others: Vec<Member>,
    pub syncing: Vec<Member>,
    pub min_in_sync: u32,
    /// Units that were copied to make the members equal.
    pub copied: u64,
    /// Units that were of equal age and differed.
    pub doubts: u64,
}

impl Active {
    /// Returns whether there are members enough to acknowledge writes.
    pub fn may_acknowledge(&self) -> Result<(), FsError> {
        if self.others.len() as u32 + 1 < self.min_in_sync {
            return Err(FsError::TryAgain("fewer replicas in sync than writes need: waiting for the master"));
        }
        Ok(())
    }
}

impl ReplicaCore {
    /// Takes a role, and ends the activation that may be under way.
    pub(super) fn turn(&mut self, role: Role) {
        if !matches!(role, Role::Activating) {
            self.activation = None;
        }
        self.role = role;
        self.is_turned = true;
    }

    /// Returns a number for an activation that nobody can guess, another one each time.
    pub(super) fn new_number(&mut self, step: &Step<'_>) -> u64 {
        self.numbers += 1;
        step.context.random.wrapping_add(self.numbers)
    }

    /// Returns whether `activation` is still in force here.
    pub(super) fn is_active(&self, activation: u64) -> bool {
        matches!(&self.role, Role::Primary(active) if active.activation == activation)
    }

    /// Returns whether reads may be served under `activation`.
    pub(super) fn may_read(&self, activation: u64) -> bool {
        self.reading.as_ref().is_some_and(|active| active.activation == activation)
    }

    /// Returns whether all members are known to agree on the units `[first, end)`.
    pub(super) fn is_resolved(&self, first: u32, end: u32) -> bool {
        !self.unresolved.iter().any(|range| range.0 < end && first < range.1)
    }

    /// Notes that the members may differ in the units `[first, end)` from now on, and ends `activation`.
    pub(super) fn leave_unresolved(&mut self, activation: u64, first: u32, end: u32) {
        if self.may_read(activation) {
            self.unresolved.push((first, end));
            if self.unresolved.len() > UNRESOLVED_MAX {
                self.reading = None;
                self.is_turned = true;
            }
        }
        self.deactivate(activation);
    }

    /// Begins to serve as `active`: all members are equal.
    pub(super) fn serve_as(&mut self, step: &mut Step<'_>, active: Active) {
        let (version, copied, doubts) = (active.version, active.copied, active.doubts);
        let active = Arc::new(active);
        self.unresolved.clear();
        self.lost.clear();
        self.reading = Some(Arc::clone(&active));
        self.turn(Role::Primary(active));
        step.note(Event::Activated { version, copied, doubts });
    }

    /// Notes this server's present run. With another one, whatever it was granted is void: others may be primaries now, and a
    /// new lease says nothing about what was asked under the old one.
    pub(super) fn note_run(&mut self, run: BootSession) {
        if self.run == run || planted::is(Bug::NoSessionBinding) {
            return;
        }
        self.run = run;
        self.grant = None;
        self.reading = None;
        self.is_turned = true;
        self.is_stirred = true;
        if !matches!(self.role, Role::Secondary(_)) {
            self.turn(Role::Idle);
        }
    }

    /// Ends `activation`, if it is in force: the next write compares the members again.
    pub(super) fn deactivate(&mut self, activation: u64) {
        if self.is_active(activation) {
            self.turn(Role::Idle);
        }
    }
}
