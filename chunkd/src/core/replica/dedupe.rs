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
//! Each client has a window of its own, so that nobody else's writes push its own out. A request that comes back after
//! [`WINDOW_WRITES`] later ones of the same client may have been applied or not; nobody knows any more. It is
//! [`Fate::Forgotten`] and is refused: applied a second time it could undo what was written since. Of more than
//! [`CLIENTS_MAX`] clients, those that wrote last are remembered.

use std::collections::BTreeMap;

use dfs_proto::planted::{self, Bug};

use super::super::message::WriteKey;
use super::super::unit::WriteStamp;

/// Writes that are remembered per chunk and client. A mount begins no more than 128 after one that has not ended, and one
/// may have up to three parts here.
pub const WINDOW_WRITES: usize = 512;
/// Clients that are remembered per chunk.
pub const CLIENTS_MAX: usize = 32;

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
    /// It is older than what is remembered: it may have been applied.
    Forgotten,
}

/// The window of one chunk.
#[derive(Debug, Default)]
pub struct DedupeWindow {
    clients: BTreeMap<u64, Requests>,
    /// Counts what was noted, to tell which client was heard last.
    noted: u64,
}

/// The window of one client.
#[derive(Debug, Default)]
struct Requests {
    /// By number and part.
    writes: BTreeMap<(u64, u8), Fate>,
    /// The highest number that was dropped for lack of room, 0 if none was.
    forgotten: u64,
    /// When something was noted last.
    noted: u64,
}

impl Requests {
    fn is_forgotten(&self, number: u64) -> bool {
        // A replica that was filled has the whole window from another one, and not what that one has dropped.
        let lowest = self.writes.keys().next().filter(|_| self.writes.len() >= WINDOW_WRITES);
        number <= self.forgotten || lowest.is_some_and(|(lowest, _)| number < *lowest)
    }

    fn make_room(&mut self) {
        // Writes in flight stay: their calls will come back to them.
        while self.writes.len() >= WINDOW_WRITES
            && let Some((number, part)) =
                self.writes.iter().find(|(_, fate)| **fate != Fate::InFlight).map(|(at, _)| *at)
        {
            self.writes.remove(&(number, part));
            self.forgotten = self.forgotten.max(number);
        }
    }
}

impl DedupeWindow {
    /// Returns what became of `key`, or `None` if it is new. What was applied before `activation` is committed, because
    /// the activation made all members equal.
    pub fn look_up(&mut self, key: RequestKey, activation: u64) -> Option<Fate> {
        if key.client == 0 || planted::is(Bug::NoDuplicateCheck) {
            return None;
        }
        let requests = self.clients.get_mut(&key.client)?;
        let Some(fate) = requests.writes.get_mut(&(key.number, key.part)) else {
            return requests.is_forgotten(key.number).then_some(Fate::Forgotten);
        };
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
        self.noted += 1;
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&key.client) {
            self.drop_a_client();
        }
        let requests = self.clients.entry(key.client).or_default();
        requests.noted = self.noted;
        if !requests.writes.contains_key(&(key.number, key.part)) {
            requests.make_room();
        }
        requests.writes.insert((key.number, key.part), fate);
    }

    /// Drops the client that has nothing in flight and was not heard of for the longest time.
    fn drop_a_client(&mut self) {
        let is_idle = |requests: &Requests| requests.writes.values().all(|fate| *fate != Fate::InFlight);
        let idle = self.clients.iter().filter(|(_, requests)| is_idle(requests));
        if let Some(client) = idle.min_by_key(|(_, requests)| requests.noted).map(|(client, _)| *client) {
            self.clients.remove(&client);
        }
    }

    /// Forgets `key`, if it is in flight: it was applied nowhere.
    pub fn forget(&mut self, key: RequestKey) {
        if let Some(requests) = self.clients.get_mut(&key.client)
            && requests.writes.get(&(key.number, key.part)) == Some(&Fate::InFlight)
        {
            requests.writes.remove(&(key.number, key.part));
        }
    }

    /// Forgets everything but what is in flight: what was applied may be undone.
    pub fn clear(&mut self) {
        for requests in self.clients.values_mut() {
            requests.writes.retain(|_, fate| *fate == Fate::InFlight);
        }
    }

    fn writes(&self) -> impl Iterator<Item = (RequestKey, Fate)> {
        self.clients.iter().flat_map(|(client, requests)| {
            let key = |(number, part): (u64, u8)| RequestKey { client: *client, number, part };
            requests.writes.iter().map(move |(at, fate)| (key(*at), *fate))
        })
    }

    /// Returns the writes that this replica has applied.
    pub fn keys(&self) -> Vec<WriteKey> {
        self.writes()
            .filter_map(|(key, fate)| match fate {
                Fate::InFlight | Fate::Forgotten => None,
                Fate::Applied { stamp, .. } | Fate::Committed { stamp } => key.stamped(stamp),
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
        let is_known = |key: &WriteKey| {
            let requests = self.clients.get(&key.client);
            // What was dropped is not taken in again: the newest stay longest.
            requests.is_some_and(|known| {
                known.writes.contains_key(&(key.number, key.part)) || known.is_forgotten(key.number)
            })
        };
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
        for number in 1..=WINDOW_WRITES as u64 + 1 {
            window.set(key(number), Fate::Committed { stamp: STAMP });
        }
        assert_eq!(window.look_up(key(1), 1), Some(Fate::Forgotten));
        assert_eq!(window.look_up(key(2), 1), Some(Fate::Committed { stamp: STAMP }));
        assert_eq!(window.look_up(key(WINDOW_WRITES as u64 + 2), 1), None);
        assert_eq!(window.writes().count(), WINDOW_WRITES);
    }

    #[test]
    fn a_window_that_is_not_full_takes_an_older_number_as_new() {
        let mut window = DedupeWindow::default();
        for number in 2..=WINDOW_WRITES as u64 {
            window.set(key(number), Fate::Committed { stamp: STAMP });
        }
        assert_eq!(window.look_up(key(1), 1), None);
        window.set(key(1), Fate::InFlight);
        assert_eq!(window.look_up(key(1), 1), Some(Fate::InFlight));
        window.set(key(WINDOW_WRITES as u64 + 1), Fate::InFlight);
        assert_eq!(window.look_up(key(1), 1), Some(Fate::InFlight));
        assert_eq!(window.look_up(key(2), 1), Some(Fate::Forgotten));
    }

    #[test]
    fn another_clients_writes_push_nothing_out() {
        let mut window = DedupeWindow::default();
        window.set(key(1), Fate::Committed { stamp: STAMP });
        for number in 1..=3 * WINDOW_WRITES as u64 {
            window.set(RequestKey { client: 6, ..key(number) }, Fate::Committed { stamp: STAMP });
        }
        assert_eq!(window.look_up(key(1), 1), Some(Fate::Committed { stamp: STAMP }));
    }

    #[test]
    fn a_replica_that_was_filled_knows_what_the_others_have_forgotten() {
        let mut window = DedupeWindow::default();
        let number = |at: u64| key(at).stamped(WriteStamp { seq: at, ..STAMP }).expect("a client");
        window.remember((2..=WINDOW_WRITES as u64 + 1).map(number).collect());
        assert_eq!(window.look_up(key(1), 1), Some(Fate::Forgotten));
        assert_eq!(window.unknown(&[number(1)]), []);
    }

    #[test]
    fn clients_are_bounded_and_those_with_writes_in_flight_stay() {
        let mut window = DedupeWindow::default();
        window.set(key(1), Fate::InFlight);
        for client in 10..10 + CLIENTS_MAX as u64 {
            window.set(RequestKey { client, ..key(1) }, Fate::Committed { stamp: STAMP });
        }
        assert_eq!(window.look_up(key(1), 1), Some(Fate::InFlight));
        assert_eq!(window.look_up(RequestKey { client: 10, ..key(1) }, 1), None);
        assert_eq!(window.clients.len(), CLIENTS_MAX);
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
