//! How long somebody has been waiting for the cluster: a line in the log and a count of those who wait.

use std::fmt::Display;

use prometheus::IntGauge;

/// A call that has waited this long is worth a line in the log.
const LOG_AFTER_MS: u64 = 5_000;

/// One call that may have to wait. It is counted in `dfs_mount_waiting_requests` from its line in the log to its end.
#[derive(Debug)]
pub struct Patience {
    waiting: IntGauge,
    is_long: bool,
}

impl Patience {
    /// Returns the patience of a call that begins; `waiting` is the metric.
    pub fn new(waiting: &IntGauge) -> Self {
        Self { waiting: waiting.clone(), is_long: false }
    }

    /// Takes note that the call waits because of `trouble`; `what` it is for the log.
    pub fn wait(&mut self, what: &dyn Display, waited_ms: u64, trouble: &dyn Display) {
        if waited_ms >= LOG_AFTER_MS && !self.is_long {
            self.is_long = true;
            self.waiting.inc();
            tracing::warn!(%what, waited_ms, %trouble, "waits for the cluster");
        }
    }

    /// The call ended well.
    pub fn goes_on(self, what: &dyn Display, waited_ms: u64) {
        if self.is_long {
            tracing::info!(%what, waited_ms, "goes on");
        }
    }

    /// The call ended with `error`.
    pub fn gives_up(self, what: &dyn Display, waited_ms: u64, error: &dyn Display) {
        if self.is_long {
            tracing::error!(%what, waited_ms, %error, "gave up");
        }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if self.is_long {
            self.waiting.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_long_is_counted_until_the_end() {
        let gauge = IntGauge::new("waiting", "waiting").expect("a name");
        let (mut first, mut second) = (Patience::new(&gauge), Patience::new(&gauge));
        first.wait(&"read", 4_999, &"silence");
        assert_eq!(gauge.get(), 0);
        first.wait(&"read", 5_000, &"silence");
        first.wait(&"read", 9_000, &"silence");
        second.wait(&"write", 6_000, &"silence");
        assert_eq!(gauge.get(), 2);
        first.goes_on(&"read", 9_001);
        assert_eq!(gauge.get(), 1);
        second.gives_up(&"write", 60_000, &"silence");
        assert_eq!(gauge.get(), 0);
    }
}
