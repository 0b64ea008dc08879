//! Simulated time, and what is to happen when.
//!
//! There is one true time, in microseconds, that nobody in the cluster can see. Each host has clocks of its own
//! ([`HostClock`]): one that counts suspends and runs a little fast or slow, and one of wall time that jumps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dfs_proto::{MonoMs, UnixNanos};

/// A moment of the true time, in microseconds since the simulation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// Returns the moment `us` microseconds later.
    pub fn plus(self, us: u64) -> Self {
        Self(self.0 + us)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Microseconds of so many milliseconds.
pub const fn ms(ms: u64) -> u64 {
    ms * 1_000
}

/// Microseconds of so many seconds.
pub const fn seconds(seconds: u64) -> u64 {
    seconds * 1_000_000
}

struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What is to happen, in order of time; what is due at the same moment in the order in which it was planned.
pub struct Scheduler<E> {
    now: Time,
    number: u64,
    queue: BinaryHeap<Reverse<Entry<E>>>,
}

impl<E> Default for Scheduler<E> {
    fn default() -> Self {
        Self { now: Time(0), number: 0, queue: BinaryHeap::new() }
    }
}

impl<E> Scheduler<E> {
    /// Returns the true time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Plans `event` for `at`, or for now if that has passed.
    pub fn at(&mut self, at: Time, event: E) {
        self.number += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), number: self.number, event }));
    }

    /// Plans `event` for `us` microseconds from now.
    pub fn after(&mut self, us: u64, event: E) {
        self.at(self.now.plus(us), event);
    }

    /// Goes on to the next event and returns it; `None` if nothing is planned.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

/// The clocks of one host.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    /// What the clock that counts suspends said when the simulation began.
    offset_ms: u64,
    /// How many millionths it runs fast (or slow).
    drift_ppm: i64,
    /// How far wall time is ahead of it.
    wall_ahead_ms: i64,
}

impl HostClock {
    /// Returns clocks that run `drift_ppm` millionths fast.
    pub fn new(offset_ms: u64, drift_ppm: i64) -> Self {
        Self { offset_ms, drift_ppm, wall_ahead_ms: 1_700_000_000_000 }
    }

    /// Returns what the clock that counts suspends says at `now`.
    pub fn mono(&self, now: Time) -> MonoMs {
        MonoMs(self.offset_ms + self.scaled(now.0) / 1_000)
    }

    /// Returns what wall time is at `now`, by this host.
    pub fn wall(&self, now: Time) -> UnixNanos {
        UnixNanos((self.mono(now).0 as i64 + self.wall_ahead_ms) * 1_000_000)
    }

    /// Moves wall time.
    pub fn jump(&mut self, ms: i64) {
        self.wall_ahead_ms += ms;
    }

    /// Returns the first moment at which [`Self::mono`] says `at` or more.
    pub fn when(&self, at: MonoMs) -> Time {
        let Some(local_us) = at.0.checked_sub(self.offset_ms).map(|ms| ms.saturating_mul(1_000)) else {
            return Time(0);
        };
        let mut guess = (i128::from(local_us) * 1_000_000 / i128::from(1_000_000 + self.drift_ppm)) as u64;
        while self.mono(Time(guess)) < at {
            guess += 1;
        }
        Time(guess)
    }

    fn scaled(&self, us: u64) -> u64 {
        (us as i64 + (i128::from(us) * i128::from(self.drift_ppm) / 1_000_000) as i64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_planning() {
        let mut scheduler = Scheduler::default();
        scheduler.after(20, "late");
        scheduler.after(10, "early");
        scheduler.after(10, "early too");
        let order: Vec<_> = std::iter::from_fn(|| scheduler.pop()).collect();
        assert_eq!(order, ["early", "early too", "late"]);
        assert_eq!(scheduler.now(), Time(20));
    }

    #[test]
    fn a_timer_rings_when_the_host_s_own_clock_says_so() {
        for drift in [-5_000, 0, 5_000] {
            let clock = HostClock::new(700, drift);
            for at in [700, 701, 5_000, 123_456] {
                let when = clock.when(MonoMs(at));
                assert!(clock.mono(when) >= MonoMs(at), "{drift} {at}");
                assert!(when.0 == 0 || clock.mono(Time(when.0 - 1)) < MonoMs(at), "{drift} {at}");
            }
        }
    }
}
