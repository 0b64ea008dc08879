//! How long a call waits for a cluster that does not answer.

use dfs_proto::MonoMs;

/// What a mount does when the cluster does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Wait without end.
    Hard,
    /// Fail with EIO once this many milliseconds have passed.
    Soft {
        /// The time a call may take, in milliseconds.
        ms: u64,
    },
}

impl Policy {
    /// Two minutes: longer than a fail-over, shorter than a user's patience.
    pub const DEFAULT: Self = Self::Soft { ms: 120_000 };

    /// Returns the milliseconds left of a call that has taken `elapsed_ms`, or `None` without end.
    pub fn left_ms(self, elapsed_ms: u64) -> Option<u64> {
        match self {
            Self::Hard => None,
            Self::Soft { ms } => Some(ms.saturating_sub(elapsed_ms)),
        }
    }

    /// Returns when a call that begins at `begun` has to have ended, or `None` without end.
    pub fn deadline(self, begun: MonoMs) -> Option<MonoMs> {
        self.left_ms(0).map(|ms| begun.plus(ms))
    }

    /// Returns the policy of a call that has to end at `deadline`, as of `now`.
    pub fn until(deadline: Option<MonoMs>, now: MonoMs) -> Self {
        deadline.map_or(Self::Hard, |deadline| Self::Soft { ms: deadline.since(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_call_has_what_is_left_of_its_time() {
        let policy = Policy::Soft { ms: 100 };
        let deadline = policy.deadline(MonoMs(1_000));
        assert_eq!(deadline, Some(MonoMs(1_100)));
        assert_eq!(Policy::until(deadline, MonoMs(1_040)), Policy::Soft { ms: 60 });
        assert_eq!(Policy::until(deadline, MonoMs(1_200)), Policy::Soft { ms: 0 });
        assert_eq!(Policy::until(Policy::Hard.deadline(MonoMs(1_000)), MonoMs(5_000)), Policy::Hard);
    }
}
