//! The last writes of a chunk by who asked for them, so that a repeated request is not applied twice.
//!
//! A mount that lost a connection asks again with the same (client, number). Were the write applied again, it would
//! come back over a newer one.
//!
//! ```text
//!            applied here            all members have it
//! InFlight ───────────────▶ Applied ─────────────────────▶ Committed
//!     │                        │  ▲ an activation of the same version made all members equal: they have it
//!     ▼ not applied anywhere   ▼ the version rose meanwhile: it may be lost, or not
//!  (forgotten)              (forgotten)
//! ```
//!
//! The window is bounded; a request that comes later than [`WINDOW_WRITES`] writes after its first copy is taken as new.

use std::collections::VecDeque;

use dfs_proto::Version;

/// Writes that are remembered per chunk: four times those that can be in flight.
pub const WINDOW_WRITES: usize = 128;

/// Who asked: client, number, and the part of a request that needs several writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The mount, by a random number; 0 asks for no protection.
    pub client: u64,
    /// Its number of the request.
    pub number: u64,
    /// 0 unless the request is carried out as several writes.
    pub part: u8,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A thread is working on it.
    InFlight,
    /// This replica has it, the others perhaps not.
    Applied {
        /// The activation in which it was sent out.
        activation: u64,
        /// The version of that activation.
        version: Version,
        /// Its place in the order.
        seq: u64,
    },
    /// All replicas have it.
    Committed {
        /// Its place in the order.
        seq: u64,
    },
}

/// The window of one chunk.
#[derive(Debug, Default)]
pub struct DedupeWindow {
    writes: VecDeque<(RequestKey, Fate)>,
}

impl DedupeWindow {
    /// Returns what became of `key`, or `None` if it is new. In `activation` of `version`, writes applied under an
    /// earlier activation of that version are committed, because the activation made all members equal; those of an
    /// earlier version are forgotten.
    pub fn look_up(&mut self, key: RequestKey, activation: u64, version: Version) -> Option<Fate> {
        if key.client == 0 {
            return None;
        }
        let at = self.writes.iter().rposition(|(known, _)| *known == key)?;
        match self.writes[at].1 {
            Fate::Applied { activation: sent, version: then, seq } if sent != activation => {
                if then == version {
                    self.writes[at].1 = Fate::Committed { seq };
                    Some(Fate::Committed { seq })
                } else {
                    self.writes.remove(at);
                    None
                }
            }
            fate => Some(fate),
        }
    }

    /// Notes what became of `key`.
    pub fn set(&mut self, key: RequestKey, fate: Fate) {
        if key.client == 0 {
            return;
        }
        if let Some(at) = self.writes.iter().rposition(|(known, _)| *known == key) {
            self.writes[at].1 = fate;
            return;
        }
        if self.writes.len() >= WINDOW_WRITES {
            // Writes in flight stay: their threads will come back to them.
            let old = self.writes.iter().position(|(_, fate)| *fate != Fate::InFlight).unwrap_or(0);
            self.writes.remove(old);
        }
        self.writes.push_back((key, fate));
    }

    /// Forgets `key`: it was applied nowhere.
    pub fn forget(&mut self, key: RequestKey) {
        self.writes.retain(|(known, _)| *known != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> RequestKey {
        RequestKey { client: 5, number, part: 0 }
    }

    #[test]
    fn a_committed_write_is_answered_again_with_its_seq() {
        let mut window = DedupeWindow::default();
        assert_eq!(window.look_up(key(1), 10, Version(1)), None);
        window.set(key(1), Fate::InFlight);
        assert_eq!(window.look_up(key(1), 10, Version(1)), Some(Fate::InFlight));
        window.set(key(1), Fate::Committed { seq: 3 });
        assert_eq!(window.look_up(key(1), 11, Version(2)), Some(Fate::Committed { seq: 3 }));
    }

    #[test]
    fn an_applied_write_is_committed_by_the_next_activation_of_its_version_only() {
        let applied = Fate::Applied { activation: 10, version: Version(1), seq: 3 };
        let mut window = DedupeWindow::default();
        window.set(key(1), applied);
        window.set(key(2), applied);
        assert_eq!(window.look_up(key(1), 10, Version(1)), Some(applied));
        assert_eq!(window.look_up(key(1), 11, Version(1)), Some(Fate::Committed { seq: 3 }));
        assert_eq!(window.look_up(key(2), 11, Version(2)), None);
        assert_eq!(window.look_up(key(2), 12, Version(1)), None, "forgotten for good");
    }

    #[test]
    fn the_window_is_bounded_and_keeps_the_newest() {
        let mut window = DedupeWindow::default();
        for number in 0..WINDOW_WRITES as u64 + 1 {
            window.set(key(number), Fate::Committed { seq: number });
        }
        assert_eq!(window.look_up(key(0), 1, Version(1)), None);
        assert!(window.look_up(key(1), 1, Version(1)).is_some());
        assert_eq!(window.writes.len(), WINDOW_WRITES);
    }
}
