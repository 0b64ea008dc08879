//! A call of the master, made again until it is answered or its time is over.
//!
//! What is transient (see [`FsError::is_transient`]) is tried again with the pauses of [`Backoff`]; anything else is
//! final. Under [`Policy::Soft`] the last attempt begins before the deadline; then the last error is final. Calls of chunk
//! servers have rules of their own: [`crate::core::ChunkCall`].

use std::time::{Duration, Instant};

use dfs_proto::FsError;

use super::patience::Patience;
use crate::core::{Backoff, Policy};
use crate::metrics::Metrics;

/// Makes attempts at `what` until one succeeds or the policy gives up. `attempt` gets the deadline of the whole call.
///
/// # Errors
///
/// The last attempt's error.
pub(super) fn run<T>(
    policy: Policy,
    what: &str,
    metrics: &Metrics,
    mut attempt: impl FnMut(Option<Instant>) -> Result<T, FsError>,
) -> Result<T, FsError> {
    let begun = Instant::now();
    let deadline = policy.left_ms(0).map(|ms| begun + Duration::from_millis(ms));
    let (mut backoff, mut patience) = (Backoff::default(), Patience::new(&metrics.waiting_requests));
    loop {
        let outcome = attempt(deadline);
        let waited_ms = begun.elapsed().as_millis() as u64;
        let error = match outcome {
            Ok(value) => {
                patience.goes_on(&what, waited_ms);
                return Ok(value);
            }
            Err(error) => error,
        };
        let left_ms = policy.left_ms(waited_ms);
        if !error.is_transient() || left_ms == Some(0) {
            patience.gives_up(&what, waited_ms, &error);
            return Err(error);
        }
        patience.wait(&what, waited_ms, &error);
        metrics.count_retry(&error);
        std::thread::sleep(Duration::from_millis(backoff.pause_ms(left_ms)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(policy: Policy, error: &FsError, until: u32) -> (u32, Result<(), FsError>) {
        let mut count = 0;
        let outcome = run(policy, "a test", &Metrics::new(), |_| {
            count += 1;
            if count == until { Ok(()) } else { Err(error.clone()) }
        });
        (count, outcome)
    }

    #[test]
    fn a_caller_s_error_is_final() {
        assert_eq!(attempts(Policy::Hard, &FsError::NoEntry, 2), (1, Err(FsError::NoEntry)));
    }

    #[test]
    fn what_passes_is_tried_again() {
        assert_eq!(attempts(Policy::Hard, &FsError::TryAgain("not now"), 4), (4, Ok(())));
    }

    #[test]
    fn the_soft_deadline_ends_it() {
        let begun = Instant::now();
        let (count, outcome) = attempts(Policy::Soft { ms: 100 }, &FsError::TryAgain("not now"), u32::MAX);
        assert_eq!(outcome, Err(FsError::TryAgain("not now")));
        assert!(count > 3 && begun.elapsed() >= Duration::from_millis(100), "{count}");
    }
}
