//! The seams to the outside: clock and randomness. Cores get their values as arguments; shells hold these.

use crate::time::{MonoMs, UnixNanos};

/// The two clocks of a host.
pub trait Clock: Send + Sync {
    /// Returns CLOCK_BOOTTIME: for leases, deadlines and ages.
    fn mono(&self) -> MonoMs;
    /// Returns CLOCK_REALTIME: for the times that users see, never for safety.
    fn wall(&self) -> UnixNanos;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn mono(&self) -> MonoMs {
        let (seconds, nanos) = read_clock(libc::CLOCK_BOOTTIME);
        MonoMs(seconds as u64 * 1_000 + u64::from(nanos) / 1_000_000)
    }

    fn wall(&self) -> UnixNanos {
        let (seconds, nanos) = read_clock(libc::CLOCK_REALTIME);
        UnixNanos::from_parts(seconds, nanos)
    }
}

#[allow(unsafe_code)]
fn read_clock(clock: libc::clockid_t) -> (i64, u32) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "Linux has had these clocks since 2.6.39");
    (time.tv_sec, time.tv_nsec as u32)
}

/// Returns random bytes of the operating system: for ids, keys and boot sessions.
///
/// # Panics
///
/// If the operating system has none, without which no identity is safe.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Returns a random number that is not 0.
pub fn random_u64() -> u64 {
    loop {
        match u64::from_le_bytes(random_bytes()) {
            0 => {}
            number => return number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run() {
        let clock = SystemClock;
        let before = clock.mono();
        assert!(clock.mono() >= before);
        assert!(clock.wall() > UnixNanos(1_600_000_000_000_000_000));
    }
}
