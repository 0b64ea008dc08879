//! How fast orders of the master may copy and read: what mounts want comes first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::limits::UNIT_SIZE;
use parking_lot::Mutex;

use super::shared::Shared;
use crate::core::message::{DiskJob, PeerRequest};

/// What was not used is kept for this long.
const BURST: Duration = Duration::from_millis(100);

/// So many bytes a second, for all who share it.
#[derive(Debug, Default)]
pub(super) struct Budget {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes_per_second: u64,
    /// When what was taken so far has been paid for.
    paid_at: Option<Instant>,
}

impl Budget {
    /// Sets the rate; 0 is without bound.
    pub fn set(&self, bytes_per_second: u64) {
        self.state.lock().bytes_per_second = bytes_per_second;
    }

    /// Waits until `bytes` may be used.
    fn take(&self, bytes: u64) {
        let pause = self.state.lock().take(Instant::now(), bytes);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

impl State {
    /// Takes `bytes` and returns how long to wait before they are used.
    fn take(&mut self, now: Instant, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid_at.map_or(earliest, |at| at.max(earliest));
        let cost = Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)) as u64);
        self.paid_at = Some(from + cost);
        from.saturating_duration_since(now)
    }
}

/// The budgets of this server.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    /// Bytes that are copied to other servers for orders.
    pub repair: Budget,
    /// Bytes that are read for orders, here and by our word elsewhere.
    pub scrub: Budget,
}

/// Slows what is done for one order.
pub(super) struct Pace {
    shared: Arc<Shared>,
    is_scrub: bool,
}

impl Pace {
    /// Returns the pace of a scrub, or else of a copy.
    pub fn new(shared: &Arc<Shared>, is_scrub: bool) -> Self {
        Self { shared: Arc::clone(shared), is_scrub }
    }

    /// Returns whether it is that of a scrub.
    pub fn is_scrub(&self) -> bool {
        self.is_scrub
    }

    /// Waits until `request` may be sent.
    pub fn before_send(&self, request: &PeerRequest) {
        match request {
            PeerRequest::Push { states, .. } => {
                self.shared.budgets.repair.take(bytes(states.iter().filter(|state| !state.hole).count() as u32));
            }
            PeerRequest::Fetch { count, .. } => self.shared.budgets.repair.take(bytes(*count)),
            PeerRequest::Verify { count, .. } => self.shared.budgets.scrub.take(bytes(*count)),
            PeerRequest::Activate { .. } | PeerRequest::Prepare(_) | PeerRequest::Barrier { .. } => {}
        }
    }

    /// Waits until `job` may be done.
    pub fn before_job(&self, job: &DiskJob) {
        if let DiskJob::Read { count, .. } = job
            && self.is_scrub
        {
            self.shared.budgets.scrub.take(bytes(*count));
        }
    }
}

fn bytes(units: u32) -> u64 {
    u64::from(units) * u64::from(UNIT_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_time_and_a_pause_is_not_saved_up() {
        let mut state = State { bytes_per_second: 1_000_000, paid_at: None };
        let start = Instant::now();
        let ms = |ms| Duration::from_millis(ms);
        assert_eq!(state.take(start, 100_000), Duration::ZERO, "what a pause has left");
        assert_eq!(state.take(start, 100_000), Duration::ZERO);
        assert_eq!(state.take(start, 50_000), ms(100));
        assert_eq!(state.take(start + ms(100), 1), ms(50));
        let later = start + Duration::from_secs(3_600);
        assert_eq!(state.take(later, 100_000), Duration::ZERO);
        assert_eq!(state.take(later, 1), Duration::ZERO);
        assert!(state.take(later, 1_000) > Duration::ZERO);
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut state = State::default();
        assert_eq!(state.take(Instant::now(), u64::MAX), Duration::ZERO);
    }
}
