//! Waiting for a stated condition, never for a stated time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const PAUSE: Duration = Duration::from_millis(20);

/// Tries until `attempt` succeeds, and returns its value.
///
/// # Errors
///
/// The last failure, once `deadline` is over; `what` says what was waited for.
pub fn until<T>(what: &str, deadline: Duration, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    until_every(what, deadline, PAUSE, attempt)
}

/// As [`until`], with a `pause` between two attempts.
///
/// # Errors
///
/// As [`until`].
pub fn until_every<T>(
    what: &str,
    deadline: Duration,
    pause: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("waited {deadline:?} in vain until {what}"));
            }
            Err(_) => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_told() {
        let error = until::<()>("it is green", Duration::from_millis(30), || anyhow::bail!("it is red")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("until it is green") && text.contains("it is red"), "{text}");
    }

    #[test]
    fn it_ends_as_soon_as_the_condition_holds() {
        let mut tries = 0;
        let value = until("the third try", Duration::from_secs(5), || {
            tries += 1;
            anyhow::ensure!(tries == 3, "not yet");
            Ok(tries)
        });
        assert_eq!(value.unwrap(), 3);
    }
}
