//! When a failed attempt is made again: a plan over elapsed time and errors, and a loop that follows it.
//!
//! | error | next attempt |
//! |---|---|
//! | `Stale` | at once, eight times in a row; then with backoff, since something else is wrong |
//! | `TryAgain`, `NoReplica`, `TimedOut` | after 10 ms, doubling to 500 ms |
//! | any other | never |
//!
//! Under [`Policy::Soft`] the last attempt begins before the deadline; then the last error is final.

use std::time::{Duration, Instant};

use dfs_proto::FsError;

use crate::core::Policy;

const FIRST_DELAY_MS: u64 = 10;
const LAST_DELAY_MS: u64 = 500;
const AT_ONCE_MAX: u32 = 8;
/// A call that has waited this long is worth a line in the log.
const LOG_AFTER_MS: u64 = 5_000;

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Make the next attempt at once, after a fresh look-up of the target.
    Now,
    /// Make it after so many milliseconds.
    After(u64),
    /// The error is final.
    GiveUp,
}

/// The attempts of one call.
#[derive(Clone, Copy, Debug)]
pub struct RetryPlan {
    policy: Policy,
    at_once: u32,
    delay_ms: u64,
}

impl RetryPlan {
    /// Returns the plan of a call that begins now.
    pub fn new(policy: Policy) -> Self {
        Self { policy, at_once: 0, delay_ms: FIRST_DELAY_MS }
    }

    /// Returns what to do about `error`, `elapsed_ms` after the call began.
    pub fn next(&mut self, elapsed_ms: u64, error: &FsError) -> Retry {
        if !error.is_transient() || self.policy.left_ms(elapsed_ms) == Some(0) {
            return Retry::GiveUp;
        }
        if matches!(error, FsError::Stale(_)) && self.at_once < AT_ONCE_MAX {
            self.at_once += 1;
            return Retry::Now;
        }
        let delay_ms = self.policy.left_ms(elapsed_ms).map_or(self.delay_ms, |left_ms| left_ms.min(self.delay_ms));
        self.delay_ms = (self.delay_ms * 2).min(LAST_DELAY_MS);
        Retry::After(delay_ms)
    }
}

/// Makes attempts until one succeeds or the plan gives up. `attempt` gets the deadline of the whole call;
/// `on_retry` is told each error that is tried again, before the wait: the place to drop a cached location and to count.
///
/// # Errors
///
/// The last attempt's error.
pub fn run<T>(
    policy: Policy,
    what: &str,
    mut attempt: impl FnMut(Option<Instant>) -> Result<T, FsError>,
    mut on_retry: impl FnMut(&FsError),
) -> Result<T, FsError> {
    let begun = Instant::now();
    let deadline = policy.left_ms(0).map(|ms| begun + Duration::from_millis(ms));
    let mut plan = RetryPlan::new(policy);
    let mut is_logged = false;
    loop {
        let error = match attempt(deadline) {
            Ok(value) => {
                if is_logged {
                    tracing::info!(what, waited_ms = begun.elapsed().as_millis() as u64, "goes on");
                }
                return Ok(value);
            }
            Err(error) => error,
        };
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        let retry = plan.next(elapsed_ms, &error);
        if retry == Retry::GiveUp {
            if is_logged {
                tracing::error!(what, waited_ms = elapsed_ms, %error, "gave up");
            }
            return Err(error);
        }
        if elapsed_ms >= LOG_AFTER_MS && !is_logged {
            is_logged = true;
            tracing::warn!(what, waited_ms = elapsed_ms, %error, "waits for the cluster");
        }
        on_retry(&error);
        if let Retry::After(ms) = retry {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> FsError {
        FsError::NoReplica("node 1 is down".into())
    }

    #[test]
    fn a_caller_s_error_is_final() {
        let mut plan = RetryPlan::new(Policy::Hard);
        assert_eq!(plan.next(0, &FsError::NoEntry), Retry::GiveUp);
        assert_eq!(plan.next(0, &FsError::Io("disk".into())), Retry::GiveUp);
    }

    #[test]
    fn delays_double_up_to_half_a_second() {
        let mut plan = RetryPlan::new(Policy::Hard);
        let delays: Vec<_> = (0..8).map(|_| plan.next(1 << 40, &down())).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 500, 500].map(Retry::After));
    }

    #[test]
    fn the_soft_deadline_is_the_last_moment_an_attempt_begins() {
        let mut plan = RetryPlan::new(Policy::Soft { ms: 100 });
        assert_eq!(plan.next(95, &down()), Retry::After(5));
        assert_eq!(plan.next(99, &down()), Retry::After(1));
        assert_eq!(plan.next(100, &down()), Retry::GiveUp);
    }

    #[test]
    fn stale_is_tried_at_once_but_not_for_ever() {
        let mut plan = RetryPlan::new(Policy::Hard);
        for _ in 0..AT_ONCE_MAX {
            assert_eq!(plan.next(0, &FsError::Stale("moved")), Retry::Now);
        }
        assert_eq!(plan.next(0, &FsError::Stale("moved")), Retry::After(10));
    }
}
