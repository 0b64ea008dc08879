//! What a secondary does with what the primary sends it.
//!
//! The activation's number says which attempt of which primary is being followed. Whatever was sent under an earlier
//! one and arrives late is refused: since then the members were compared, and it could change one of them alone. The
//! number lives in memory only, so a restarted secondary refuses everything until the primary has compared again.
//!
//! Writes are applied in the order of their seq, without gaps. They come over several connections, so one may overtake
//! another: it waits for its predecessor, for a bounded time.

use dfs_proto::{FsError, NodeId, Version};

use super::unit::SEQ_MAX;

/// Whom a secondary follows, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Who leads.
    pub primary: NodeId,
    /// The version that was activated.
    pub version: Version,
    /// The activation's number.
    pub activation: u64,
    /// Highest seq up to which all writes were applied; `None` before the first write of the activation.
    applied: Option<u64>,
    /// The write that is being applied at this moment.
    busy: Option<u64>,
}

/// What to do with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it, then call [`Follow::done`] or [`Follow::failed`].
    Apply,
    /// It was applied before: acknowledge it.
    Acknowledge,
    /// An earlier write is missing: ask again when that was applied, give up after a while.
    Wait,
    /// Answer with this.
    Refuse(FsError),
}

impl Follow {
    /// Returns the state of a secondary that has just answered an activation.
    pub fn new(primary: NodeId, version: Version, activation: u64) -> Self {
        Self { primary, version, activation, applied: None, busy: None }
    }

    /// Checks that a message of `primary` belongs to the activation that is followed.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] for an older version, [`FsError::TryAgain`] if the primary must activate (again).
    pub fn check(&self, primary: NodeId, version: Version, activation: u64) -> Result<(), FsError> {
        if version < self.version {
            return Err(FsError::Stale("this replica has a newer version"));
        }
        if version > self.version || activation != self.activation || primary != self.primary {
            return Err(FsError::TryAgain("activate this replica first"));
        }
        Ok(())
    }

    /// Judges write `seq` of an activation that started above `base`. [`Self::check`] has passed.
    pub fn judge(&mut self, seq: u64, base: u64) -> Verdict {
        if seq <= base || seq > SEQ_MAX {
            return Verdict::Refuse(FsError::Protocol(format!("write {seq} in an activation that began at {base}")));
        }
        let applied = *self.applied.get_or_insert(base);
        if seq <= applied {
            return Verdict::Acknowledge;
        }
        if seq != applied + 1 || self.busy.is_some() {
            return Verdict::Wait;
        }
        self.busy = Some(seq);
        Verdict::Apply
    }

    /// Notes that write `seq` was applied.
    pub fn done(&mut self, seq: u64) {
        if self.busy == Some(seq) {
            self.busy = None;
            self.applied = Some(seq);
        }
    }

    /// Notes that write `seq` could not be applied.
    pub fn failed(&mut self, seq: u64) {
        if self.busy == Some(seq) {
            self.busy = None;
        }
    }

    /// Returns whether all writes up to `seq` were applied. Those up to the activation's base are there from its start.
    pub fn has_applied(&self, seq: u64) -> bool {
        self.applied.is_none_or(|applied| applied >= seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following() -> Follow {
        Follow::new(NodeId(1), Version(4), 99)
    }

    #[test]
    fn only_the_activation_that_is_followed_is_heard() {
        let follow = following();
        assert_eq!(follow.check(NodeId(1), Version(4), 99), Ok(()));
        assert!(matches!(follow.check(NodeId(1), Version(3), 99), Err(FsError::Stale(_))));
        assert!(matches!(follow.check(NodeId(1), Version(5), 99), Err(FsError::TryAgain(_))));
        assert!(matches!(follow.check(NodeId(1), Version(4), 98), Err(FsError::TryAgain(_))));
        assert!(matches!(follow.check(NodeId(2), Version(4), 99), Err(FsError::TryAgain(_))));
    }

    #[test]
    fn writes_are_applied_in_order_and_once() {
        let mut follow = following();
        assert_eq!(follow.judge(12, 10), Verdict::Wait, "11 is missing");
        assert_eq!(follow.judge(11, 10), Verdict::Apply);
        assert_eq!(follow.judge(11, 10), Verdict::Wait, "it is being applied");
        assert_eq!(follow.judge(12, 10), Verdict::Wait, "11 is being applied");
        follow.done(11);
        assert_eq!(follow.judge(11, 10), Verdict::Acknowledge);
        assert_eq!(follow.judge(12, 10), Verdict::Apply);
        follow.failed(12);
        assert_eq!(follow.judge(13, 10), Verdict::Wait, "12 failed");
        assert_eq!(follow.judge(12, 10), Verdict::Apply);
        assert!(matches!(follow.judge(10, 10), Verdict::Refuse(FsError::Protocol(_))));
    }

    #[test]
    fn a_barrier_needs_every_write_before_it() {
        let mut follow = following();
        assert!(follow.has_applied(10), "the activation made all members equal");
        assert_eq!(follow.judge(11, 10), Verdict::Apply);
        assert!(!follow.has_applied(11));
        follow.done(11);
        assert!(follow.has_applied(11));
        assert!(!follow.has_applied(12));
    }
}
