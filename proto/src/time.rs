//! Points in time. Wall-clock time is for what users see; safety only ever uses monotonic time.

/// Nanoseconds since 1970-01-01 UTC; negative before. Covers the years 1677 to 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixNanos(pub i64);

impl UnixNanos {
    /// Returns the whole seconds (rounded down) and the nanoseconds in `0..1_000_000_000` above them.
    pub fn split(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }

    /// Returns the time of `seconds` and `nanos`, at the nearest end of the range if it is outside.
    pub fn from_parts(seconds: i64, nanos: u32) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)))
    }
}

/// Milliseconds of CLOCK_BOOTTIME: never set back, counts suspend, unrelated between hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonoMs(pub u64);

impl MonoMs {
    /// Returns this time and `ms` more.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the milliseconds since `earlier`, 0 if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_split_downwards() {
        assert_eq!(UnixNanos(-1).split(), (-1, 999_999_999));
        assert_eq!(UnixNanos::from_parts(-1, 999_999_999), UnixNanos(-1));
        assert_eq!(UnixNanos::from_parts(i64::MAX, 0), UnixNanos(i64::MAX));
    }
}
