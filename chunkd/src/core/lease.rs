//! The node lease: until when this server may act as a primary.
//!
//! It is counted from when the pulse was *sent*, on CLOCK_BOOTTIME. The master counts from when it answered, so it
//! believes in the lease for longer than we do, whatever the network does with either message.

use dfs_proto::MonoMs;

/// The lease of this server.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeLease {
    until: MonoMs,
}

impl NodeLease {
    /// Extends the lease: a pulse sent at `sent` was answered with `lease_ms`. Answers may come in any order.
    pub fn renew(&mut self, sent: MonoMs, lease_ms: u64) {
        self.until = self.until.max(sent.plus(lease_ms));
    }

    /// Ends the lease: the master does not know this server.
    pub fn revoke(&mut self) {
        self.until = MonoMs(0);
    }

    /// Returns when the lease ends.
    pub fn until(&self) -> MonoMs {
        self.until
    }

    /// Returns whether the lease runs at `now`.
    pub fn is_valid(&self, now: MonoMs) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_counts_from_when_the_pulse_was_sent() {
        let mut lease = NodeLease::default();
        assert!(!lease.is_valid(MonoMs(0)));
        lease.renew(MonoMs(1_000), 5_000);
        assert!(lease.is_valid(MonoMs(5_999)));
        assert!(!lease.is_valid(MonoMs(6_000)));
        // A late answer to an earlier pulse takes nothing away.
        lease.renew(MonoMs(500), 5_000);
        assert!(lease.is_valid(MonoMs(5_999)));
        lease.revoke();
        assert!(!lease.is_valid(MonoMs(1_001)));
    }
}
