//! The pauses between attempts: 10 ms, doubling to 500 ms. Short at first, since most troubles are over at once; never
//! so long that a cluster that is well again is kept waiting.

/// The pauses of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    next_ms: u64,
}

impl Backoff {
    const FIRST_MS: u64 = 10;
    const LAST_MS: u64 = 500;

    /// Returns the next pause in milliseconds, at most `left_ms` if there is an end.
    pub fn pause_ms(&mut self, left_ms: Option<u64>) -> u64 {
        let pause_ms = left_ms.map_or(self.next_ms, |left_ms| left_ms.min(self.next_ms));
        self.next_ms = (self.next_ms * 2).min(Self::LAST_MS);
        pause_ms
    }

    /// Begins again with the shortest pause: something went forward.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next_ms: Self::FIRST_MS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_second_and_never_go_past_the_end() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause_ms(None)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(backoff.pause_ms(Some(5)), 5);
        backoff.reset();
        assert_eq!(backoff.pause_ms(None), 10);
    }
}
