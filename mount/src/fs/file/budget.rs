//! The bound on buffered writes of all files of a mount.

use std::time::{Duration, Instant};

use dfs_proto::FsError;
use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;

use crate::core::Policy;

/// Whatever the setting, so many bytes are granted: one write of each of a few files must fit.
const BYTES_MIN: u64 = 4 << 20;

/// Bytes that may be dirty. A writer reserves before it takes any lock, and pushes never reserve, so that waiting
/// writers cannot hold up the pushes they wait for.
#[derive(Debug)]
pub(super) struct Budget {
    used: Mutex<u64>,
    freed: Condvar,
    bytes_max: u64,
    gauge: IntGauge,
}

impl Budget {
    pub(super) fn new(bytes_max: u64, gauge: IntGauge) -> Self {
        Self { used: Mutex::new(0), freed: Condvar::new(), bytes_max: bytes_max.max(BYTES_MIN), gauge }
    }

    /// Takes `bytes`, waiting for them if need be; `press` is called before each wait, to make somebody push.
    ///
    /// # Errors
    ///
    /// `TimedOut` once the policy's deadline has passed.
    pub(super) fn reserve(&self, bytes: u64, policy: Policy, press: impl Fn()) -> Result<(), FsError> {
        let mut used = self.used.lock();
        if *used + bytes > self.bytes_max {
            let begun = Instant::now();
            while *used + bytes > self.bytes_max {
                if policy.left_ms(begun.elapsed().as_millis() as u64) == Some(0) {
                    return Err(FsError::TimedOut("too much is dirty, and nothing could be pushed"));
                }
                drop(used);
                press();
                used = self.used.lock();
                if *used + bytes > self.bytes_max {
                    self.freed.wait_for(&mut used, Duration::from_millis(100));
                }
            }
        }
        *used += bytes;
        self.gauge.set(*used as i64);
        Ok(())
    }

    /// Takes `bytes` over the bound if need be: for the little that must not wait.
    pub(super) fn force(&self, bytes: u64) {
        let mut used = self.used.lock();
        *used += bytes;
        self.gauge.set(*used as i64);
    }

    /// Gives `bytes` back.
    pub(super) fn release(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.used.lock();
            *used = used.checked_sub(bytes).expect("no more is given back than was taken");
            self.gauge.set(*used as i64);
            drop(used);
            self.freed.notify_all();
        }
    }

    /// Returns whether more than half is used: what is dirty should go now rather than by age.
    pub(super) fn is_tight(&self) -> bool {
        *self.used.lock() > self.bytes_max / 2
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        *self.used.lock()
    }
}
