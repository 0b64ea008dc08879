//! The last writes of a chunk by who asked for them, so that a repeated request is not applied twice.
//!
//! A mount that lost a connection asks again with the same (client, number). Were the write applied again, it would
//! come back over a newer one.
//!
//! ```text
//!            applied here            all members have it
//! InFlight ───────────────▶ Applied ─────────────────────▶ Committed
//!     │                          ▲ a later activation made all members equal: they have it
//!     ▼ not applied anywhere
//!  (forgotten)
//! ```
//!
//! What this replica has applied as a member in sync is everywhere after the next activation, whoever the primary is by
//! then: units are made equal to the newest one. A replica that left the set may hold writes that the others never saw;
//! it forgets everything before it is filled again.
//!
//! The window is bounded; a request that comes later than [`WINDOW_WRITES`] writes after its first copy is taken as new.

use std::collections::VecDeque;

use dfs_proto::planted::{self, Bug};

use super::super::message::WriteKey;
use super::super::unit::WriteStamp;

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

impl RequestKey {
    /// No request: what a replica has noted before it counts for nothing any more.
    pub const FORGET: Self = Self { client: u64::MAX, number: u64::MAX, part: u8::MAX };

    /// Returns the key of the request that is noted as `key`.
    pub fn of(WriteKey { client, number, part, .. }: &WriteKey) -> Self {
        Self { client: *client, number: *number, part: *part }
    }

    /// Returns what is stored with the write, if protection is wanted.
    pub fn stamped(self, stamp: WriteStamp) -> Option<WriteKey> {
        let Self { client, number, part } = self;
        (client != 0).then_some(WriteKey { client, number, part, stamp })
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is being worked on.
    InFlight,
    /// This replica has it, the others perhaps not.
    Applied {
        /// The activation in which it was sent out; 0: in an earlier run.
        activation: u64,
        /// The stamp it was given.
        stamp: WriteStamp,
    },
    /// All members have it.
    Committed {
        /// The stamp it was given.
        stamp: WriteStamp,
    },
}

/// The window of one chunk.
#[derive(Debug, Default)]
pub struct DedupeWindow {
    writes: VecDeque<(RequestKey, Fate)>,
}

impl DedupeWindow {
    /// Returns what became of `key`, or `None` if it is new. What was applied before `activation` is committed, because
    /// the activation made all members equal.
    pub fn look_up(&mut self, key: RequestKey, activation: u64) -> Option<Fate> {
        if key.client == 0 || planted::is(Bug::NoDuplicateCheck) {
            return None;
        }
        let (_, fate) = self.writes.iter_mut().rev().find(|(known, _)| *known == key)?;
        if let Fate::Applied { activation: sent, stamp } = *fate
            && sent != activation
        {
            *fate = Fate::Committed { stamp };
        }
        Some(*fate)
    }

    /// Notes what became of `key`.
    pub fn set(&mut self, key: RequestKey, fate: Fate) {
        if key.client == 0 {
            return;
        }
        if let Some((_, known)) = self.writes.iter_mut().rev().find(|(known, _)| *known == key) {
            *known = fate;
            return;
        }
        if self.writes.len() >= WINDOW_WRITES {
            // Writes in flight stay: their calls will come back to them.
            let old = self.writes.iter().position(|(_, fate)| *fate != Fate::InFlight).unwrap_or(0);
            self.writes.remove(old);
        }
        self.writes.push_back((key, fate));
    }

    /// Forgets `key`, if it is in flight: it was applied nowhere.
    pub fn forget(&mut self, key: RequestKey) {
        self.writes.retain(|(known, fate)| *known != key || *fate != Fate::InFlight);
    }

    /// Forgets everything but what is in flight: what was applied may be undone.
    pub fn clear(&mut self) {
        self.writes.retain(|(_, fate)| *fate == Fate::InFlight);
    }

    /// Returns the writes that this replica has applied.
    pub fn keys(&self) -> Vec<WriteKey> {
        self.writes
            .iter()
            .filter_map(|(key, fate)| match fate {
                Fate::InFlight => None,
                Fate::Applied { stamp, .. } | Fate::Committed { stamp } => key.stamped(*stamp),
            })
            .collect()
    }

    /// Notes writes that this replica applied in an earlier run, the oldest first.
    pub fn recover(&mut self, keys: &[WriteKey]) {
        for key in keys {
            match RequestKey::of(key) {
                RequestKey::FORGET => self.clear(),
                known => self.set(known, Fate::Applied { activation: 0, stamp: key.stamp }),
            }
        }
    }

    /// Returns those of `keys` that are not known.
    pub fn unknown(&self, keys: &[WriteKey]) -> Vec<WriteKey> {
        let is_known = |key: &WriteKey| self.writes.iter().any(|(known, _)| *known == RequestKey::of(key));
        keys.iter().filter(|key| !is_known(key)).copied().collect()
    }

    /// Notes writes that all members have now. The newest stay longest.
    pub fn remember(&mut self, mut keys: Vec<WriteKey>) {
        keys.sort_by_key(|key| key.stamp);
        for key in self.unknown(&keys) {
            self.set(RequestKey::of(&key), Fate::Committed { stamp: key.stamp });
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Version;

    use super::*;

    const STAMP: WriteStamp = WriteStamp { version: Version(1), seq: 3 };

    fn key(number: u64) -> RequestKey {
        RequestKey { client: 5, number, part: 0 }
    }

    #[test]
    fn a_committed_write_is_answered_again_with_its_stamp() {
        let mut window = DedupeWindow::default();
        assert_eq!(window.look_up(key(1), 10), None);
        window.set(key(1), Fate::InFlight);
        assert_eq!(window.look_up(key(1), 10), Some(Fate::InFlight));
        window.set(key(1), Fate::Committed { stamp: STAMP });
        assert_eq!(window.look_up(key(1), 11), Some(Fate::Committed { stamp: STAMP }));
    }

    #[test]
    fn an_applied_write_is_committed_by_the_next_activation() {
        let applied = Fate::Applied { activation: 10, stamp: STAMP };
        let mut window = DedupeWindow::default();
        window.set(key(1), applied);
        assert_eq!(window.look_up(key(1), 10), Some(applied));
        assert_eq!(window.look_up(key(1), 11), Some(Fate::Committed { stamp: STAMP }));
        assert_eq!(window.look_up(key(1), 10), Some(Fate::Committed { stamp: STAMP }));
    }

    #[test]
    fn a_replica_that_is_filled_remembers_only_what_the_others_have() {
        let mut window = DedupeWindow::default();
        window.set(key(1), Fate::Applied { activation: 10, stamp: STAMP });
        window.set(key(2), Fate::InFlight);
        window.clear();
        assert_eq!(window.look_up(key(1), 11), None);
        assert_eq!(window.look_up(key(2), 11), Some(Fate::InFlight));
        let theirs = key(3).stamped(STAMP).expect("a client");
        window.remember(vec![theirs]);
        assert_eq!(window.keys(), [theirs]);
    }

    #[test]
    fn what_was_noted_before_a_filling_is_not_recovered() {
        let keys = [key(1), RequestKey::FORGET, key(2)].map(|key| key.stamped(STAMP).expect("a client"));
        let mut window = DedupeWindow::default();
        window.recover(&keys);
        assert_eq!(window.look_up(key(1), 10), None);
        assert_eq!(window.look_up(key(2), 10), Some(Fate::Committed { stamp: STAMP }));
        assert_eq!(window.unknown(&keys[..1]), keys[..1]);
        assert_eq!(window.unknown(&keys[2..]), []);
    }

    #[test]
    fn the_window_is_bounded_and_keeps_the_newest() {
        let mut window = DedupeWindow::default();
        for number in 0..WINDOW_WRITES as u64 + 1 {
            window.set(key(number), Fate::Committed { stamp: STAMP });
        }
        assert_eq!(window.look_up(key(0), 1), None);
        assert!(window.look_up(key(1), 1).is_some());
        assert_eq!(window.writes.len(), WINDOW_WRITES);
    }

    #[test]
    fn only_writes_in_flight_are_forgotten_one_by_one() {
        let mut window = DedupeWindow::default();
        window.set(key(1), Fate::InFlight);
        window.set(key(2), Fate::Committed { stamp: STAMP });
        window.forget(key(1));
        window.forget(key(2));
        assert_eq!(window.look_up(key(1), 1), None);
        assert!(window.look_up(key(2), 1).is_some());
    }
}
