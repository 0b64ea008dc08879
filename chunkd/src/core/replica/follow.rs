//! What a secondary does with what the primary sends it.
//!
//! The activation's number says which attempt of which primary is being followed. Whatever was sent under an earlier
//! one and arrives late is refused: since then the members were compared, and it could change one of them alone. The
//! number lives in memory only, so a restarted secondary refuses everything until the primary has compared again.
//!
//! Writes come over several connections and may overtake each other. Those that overlap do not: the primary sends the
//! later one only after all members have the earlier. So a member in sync applies them as they come, each once: it
//! remembers their seqs. Nobody waits for a replica that is being filled, so there even overlapping ones come in any
//! order, and among units that are copied: it remembers which write each unit holds, and takes newer ones only.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::planted::{self, Bug};
use dfs_proto::{FsError, NodeId, Version};

use super::super::unit::SEQ_MAX;

/// Writes that may have overtaken an earlier one: far more than a primary has under way.
const AHEAD_MAX: usize = 1024;

/// Whom a secondary follows, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Who leads.
    pub primary: NodeId,
    /// The version that was activated.
    pub version: Version,
    /// The activation's number.
    pub activation: u64,
    /// The unit table was told: writes may come.
    pub is_ready: bool,
    /// This replica is being filled: it is not in sync.
    pub is_filled: bool,
    /// The primary has gone on from the table: it asks for it no more.
    pub is_used: bool,
    /// Highest seq up to which all writes were applied; `None` before the first write of the activation.
    applied: Option<u64>,
    /// Writes above it that were applied too.
    ahead: BTreeSet<u64>,
    /// Writes that are being applied at this moment.
    busy: BTreeSet<u64>,
    /// Of a replica that is being filled: the seq of the last write to each unit, of those that came as writes.
    written: BTreeMap<u32, u64>,
}

/// What to do with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it, then call [`Follow::done`] or [`Follow::failed`].
    Apply,
    /// It was applied before: acknowledge it.
    Acknowledge,
    /// A copy of it is being applied: ask again when that has ended.
    Wait,
    /// Answer with this.
    Refuse(FsError),
}

impl Follow {
    /// Returns the state of a secondary that takes an activation in; it has not answered yet.
    pub fn new(primary: NodeId, version: Version, activation: u64, is_filled: bool) -> Self {
        Self {
            primary,
            version,
            activation,
            is_ready: false,
            is_filled,
            is_used: false,
            applied: None,
            ahead: BTreeSet::new(),
            busy: BTreeSet::new(),
            written: BTreeMap::new(),
        }
    }

    /// Checks that a message of `primary` belongs to the activation that is followed.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] for an older version, [`FsError::TryAgain`] if the primary must activate (again).
    pub fn check(&self, primary: NodeId, version: Version, activation: u64) -> Result<(), FsError> {
        if planted::is(Bug::NoVersionCheck) {
            return Ok(());
        }
        if version < self.version {
            return Err(FsError::Stale("this replica has a newer version"));
        }
        let is_known = version == self.version && activation == self.activation && primary == self.primary;
        if !is_known || !self.is_ready {
            return Err(FsError::TryAgain("activate this replica first"));
        }
        Ok(())
    }

    /// Judges write `seq` of an activation that started above `base`. [`Self::check`] has passed.
    pub fn judge(&mut self, seq: u64, base: u64) -> Verdict {
        let is_foreign = planted::is(Bug::NoVersionCheck);
        if (seq <= base || seq > SEQ_MAX) && !is_foreign {
            return Verdict::Refuse(FsError::Protocol(format!("write {seq} in an activation that began at {base}")));
        }
        let applied = *self.applied.get_or_insert(base);
        if self.busy.contains(&seq) {
            return Verdict::Wait;
        }
        let is_known = !self.is_filled && (seq <= applied || self.ahead.contains(&seq));
        if is_known && !is_foreign && !planted::is(Bug::NoStampOrder) {
            return Verdict::Acknowledge;
        }
        if self.ahead.len() >= AHEAD_MAX {
            return Verdict::Refuse(FsError::Protocol(format!("write {seq}, but not even {} has come", applied + 1)));
        }
        self.busy.insert(seq);
        Verdict::Apply
    }

    /// Returns those of the units `[first, first + count)` that write or copy `seq` may replace, in runs
    /// `[first, end)`: all of them in a replica in sync.
    pub fn replaceable(&self, first: u32, count: u32, seq: u64) -> Vec<(u32, u32)> {
        let end = first + count;
        if planted::is(Bug::NoStampOrder) {
            return vec![(first, end)];
        }
        let mut runs = Vec::new();
        let mut from = first;
        for (unit, _) in self.written.range(first..end).filter(|(_, last)| **last >= seq) {
            if from < *unit {
                runs.push((from, *unit));
            }
            from = unit + 1;
        }
        if from < end {
            runs.push((from, end));
        }
        runs
    }

    /// Notes that write `seq` is on its way into these units of a replica that is being filled.
    pub fn wrote(&mut self, runs: &[(u32, u32)], seq: u64) {
        if self.is_filled {
            self.written.extend(runs.iter().flat_map(|(first, end)| (*first..*end).map(|unit| (unit, seq))));
        }
    }

    /// Notes that write `seq` was applied.
    pub fn done(&mut self, seq: u64) {
        if !self.busy.remove(&seq) || self.is_filled {
            return;
        }
        let applied = self.applied.get_or_insert(seq);
        if seq > *applied {
            self.ahead.insert(seq);
        }
        while self.ahead.remove(&(*applied + 1)) {
            *applied += 1;
        }
    }

    /// Notes that write `seq` could not be applied.
    pub fn failed(&mut self, seq: u64) {
        self.busy.remove(&seq);
    }

    /// Returns whether a write of the activation has come: the primary compares no more.
    pub fn has_begun(&self) -> bool {
        self.applied.is_some()
    }

    /// Returns whether all writes up to `seq` were applied. Those up to the activation's base are there from its start.
    pub fn has_applied(&self, seq: u64) -> bool {
        self.is_filled || self.applied.is_none_or(|applied| applied >= seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following(is_filled: bool) -> Follow {
        Follow { is_ready: true, ..Follow::new(NodeId(1), Version(4), 99, is_filled) }
    }

    #[test]
    fn only_the_activation_that_is_followed_is_heard() {
        let mut follow = following(false);
        assert_eq!(follow.check(NodeId(1), Version(4), 99), Ok(()));
        assert!(matches!(follow.check(NodeId(1), Version(3), 99), Err(FsError::Stale(_))));
        assert!(matches!(follow.check(NodeId(1), Version(5), 99), Err(FsError::TryAgain(_))));
        assert!(matches!(follow.check(NodeId(1), Version(4), 98), Err(FsError::TryAgain(_))));
        assert!(matches!(follow.check(NodeId(2), Version(4), 99), Err(FsError::TryAgain(_))));
        follow.is_ready = false;
        assert!(matches!(follow.check(NodeId(1), Version(4), 99), Err(FsError::TryAgain(_))), "no table was told yet");
    }

    #[test]
    fn writes_are_applied_as_they_come_and_once() {
        let mut follow = following(false);
        assert_eq!(follow.judge(12, 10), Verdict::Apply, "11 was overtaken");
        assert_eq!(follow.judge(12, 10), Verdict::Wait, "it is being applied");
        follow.done(12);
        assert_eq!(follow.judge(12, 10), Verdict::Acknowledge);
        assert!(!follow.has_applied(12), "11 is missing");
        assert_eq!(follow.judge(11, 10), Verdict::Apply);
        follow.failed(11);
        assert_eq!(follow.judge(11, 10), Verdict::Apply, "it failed");
        follow.done(11);
        assert!(follow.has_applied(12));
        assert_eq!(follow.judge(11, 10), Verdict::Acknowledge);
        assert!(matches!(follow.judge(10, 10), Verdict::Refuse(FsError::Protocol(_))));
    }

    #[test]
    fn a_barrier_needs_every_write_before_it() {
        let mut follow = following(false);
        assert!(follow.has_applied(10), "the activation made all members equal");
        assert_eq!(follow.judge(11, 10), Verdict::Apply);
        assert!(!follow.has_applied(11));
        follow.done(11);
        assert!(follow.has_applied(11));
        assert!(!follow.has_applied(12));
    }

    #[test]
    fn a_replica_that_is_filled_takes_newer_units_only() {
        let mut follow = following(true);
        assert_eq!(follow.judge(13, 10), Verdict::Apply);
        assert_eq!(follow.replaceable(0, 4, 13), [(0, 4)]);
        follow.wrote(&[(1, 3)], 13);
        follow.done(13);
        assert_eq!(follow.judge(12, 10), Verdict::Apply, "an earlier write of other units");
        assert_eq!(follow.replaceable(0, 4, 12), [(0, 1), (3, 4)]);
        assert_eq!(follow.replaceable(1, 2, 12), []);
        assert_eq!(follow.replaceable(0, 4, 14), [(0, 4)]);
    }
}
