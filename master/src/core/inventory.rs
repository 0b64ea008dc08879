//! What servers say they hold, against what the records say they should.
//!
//! A server sends the list of its replicas a page at a time, from the lowest chunk id to the highest, and begins anew.
//!
//! ```text
//! held, and the record …                          what follows
//!   names the server in its set or as stale       nothing
//!   is older than the replica                     the replica is frozen: an alarm, never a deletion
//!   does not name the server                      it is noted as stale: filled again or discarded
//!   is not there (or of another chunk)            unknown: reclaimed, if it still is in a later list
//! not held, and the record names it as in sync    it is lost: the server leaves the set
//! ```
//!
//! # Invariants
//!
//! - Nothing is deleted on one look: an unknown replica was unknown in two lists, a stated time apart.
//! - A replica is taken for lost only by a whole list, and only if the record has not changed since before that list was
//!   begun.

use std::collections::BTreeMap;

use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::Home;
use dfs_proto::{BootSession, ChunkId, MonoMs, NodeId, Seq, Version};

use super::care::{ChunkFacts, SetChange};
use super::fleet::Fleet;

/// Most replicas of one server that are remembered; a longer list says nothing of what is lost.
const HELD_MAX: usize = 4_000_000;
/// Most unknown replicas that are remembered. Others are found again once these are gone.
const UNKNOWN_MAX: usize = 100_000;
/// Most frozen replicas that are remembered and shown.
const FROZEN_MAX: usize = 10_000;
/// Positions of the log that are remembered with their times.
const MARKS_MAX: usize = 64;

/// One replica that a server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where its record should be.
    pub home: Home,
    /// The version it is of.
    pub version: Version,
}

/// A part of the list of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whose.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// By rising chunk id.
    pub held: Vec<Held>,
    /// They are all those above this id, up to the last of them.
    pub after: ChunkId,
    /// There are none above the last of them.
    pub is_end: bool,
}

/// What is to be done about one held replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// It is to be noted in the record.
    Note(SetChange),
    /// Nobody may touch it until somebody has looked.
    Freeze,
    /// To be deleted: the master has no such chunk.
    Reclaim,
    /// The master has no such chunk, as of now.
    Unknown,
}

#[derive(Debug, Default)]
struct List {
    boot: BootSession,
    /// The record of a lost replica must not have changed since.
    begun: Seq,
    begun_at: MonoMs,
    after: ChunkId,
    held: Vec<(ChunkId, Version)>,
    is_whole: bool,
}

/// What servers hold.
#[derive(Debug)]
pub struct Inventory {
    /// How long a replica must have been unknown.
    grace_ms: u64,
    /// How old the position is that a list is taken to begin at: more than the time a page may be on its way.
    age_ms: u64,
    /// Lists that are being taken in.
    running: BTreeMap<NodeId, List>,
    /// The last whole list of each.
    whole: BTreeMap<NodeId, List>,
    unknown: BTreeMap<(NodeId, ChunkId), MonoMs>,
    frozen: BTreeMap<(NodeId, ChunkId), MonoMs>,
    marks: Vec<(MonoMs, Seq)>,
}

impl Inventory {
    /// Returns one without any list. Replicas are deleted `grace_ms` after they were first unknown.
    pub fn new(grace_ms: u64) -> Self {
        Self {
            grace_ms,
            age_ms: grace_ms.min(60_000),
            running: BTreeMap::new(),
            whole: BTreeMap::new(),
            unknown: BTreeMap::new(),
            frozen: BTreeMap::new(),
            marks: Vec::new(),
        }
    }

    /// Notes where the log stands now.
    pub fn mark(&mut self, now: MonoMs, seq: Seq) {
        let apart_ms = self.age_ms / 16;
        if self.marks.last().is_none_or(|(at, _)| now.since(*at) >= apart_ms) {
            if self.marks.len() == MARKS_MAX {
                self.marks.remove(0);
            }
            self.marks.push((now, seq));
        }
    }

    /// Takes in a page. Returns whether it fits the list so far; what does not is dropped, and the list begins anew with
    /// the server's next one.
    pub fn take(&mut self, page: &Page, now: MonoMs) -> bool {
        if page.after == ChunkId(0) {
            let begun =
                self.marks.iter().rev().find(|(at, _)| now.since(*at) >= self.age_ms).map_or(Seq(0), |mark| mark.1);
            self.running.insert(page.node, List { boot: page.boot, begun, begun_at: now, ..List::default() });
        }
        let Some(list) = self.running.get_mut(&page.node) else { return false };
        let is_next = list.boot == page.boot && list.after == page.after;
        let rises = page.held.iter().try_fold(page.after, |last, held| (held.chunk > last).then_some(held.chunk));
        let Some(last) = rises.filter(|_| is_next) else {
            self.running.remove(&page.node);
            return false;
        };
        list.after = last;
        if list.held.len() + page.held.len() <= HELD_MAX {
            list.held.extend(page.held.iter().map(|held| (held.chunk, held.version)));
        } else {
            list.held.clear();
            list.begun = Seq(0);
        }
        if page.is_end
            && let Some(mut list) = self.running.remove(&page.node)
        {
            list.is_whole = true;
            list.held.shrink_to_fit();
            // What is not on the list any more is neither unknown nor frozen.
            let held = &list.held;
            let is_held = |chunk: &ChunkId| held.binary_search_by_key(chunk, |found| found.0).is_ok();
            self.unknown.retain(|(node, chunk), _| *node != page.node || is_held(chunk));
            self.frozen.retain(|(node, chunk), _| *node != page.node || is_held(chunk));
            self.whole.insert(page.node, list);
        }
        true
    }

    /// Judges one replica of `node` by the record that is at its home now. `may_delete`: the master is certain that its
    /// records are all there are, and not in the time after a restart in which mounts come back.
    pub fn judge(
        &mut self,
        node: NodeId,
        held: &Held,
        record: Option<&ChunkFacts>,
        may_delete: bool,
        now: MonoMs,
    ) -> Verdict {
        let key = (node, held.chunk);
        let Some(record) = record.filter(|record| record.chunk == held.chunk) else {
            self.frozen.remove(&key);
            if planted::is(Bug::DeleteUnknown) {
                return Verdict::Reclaim;
            }
            if !self.unknown.contains_key(&key) && self.unknown.len() >= UNKNOWN_MAX {
                return Verdict::Unknown;
            }
            let first_seen = *self.unknown.entry(key).or_insert(now);
            if may_delete && now.since(first_seen) >= self.grace_ms && first_seen < now {
                self.unknown.remove(&key);
                return Verdict::Reclaim;
            }
            return Verdict::Unknown;
        };
        self.unknown.remove(&key);
        if held.version > record.version {
            if self.frozen.len() < FROZEN_MAX {
                self.frozen.entry(key).or_insert(now);
            }
            return Verdict::Freeze;
        }
        self.frozen.remove(&key);
        if record.names(node) || record.stale.contains(&node) {
            return Verdict::Fine;
        }
        Verdict::Note(SetChange::NoteStale(node))
    }

    /// Returns a member of `chunk` that is in sync by the record and lost by its server's whole list, of its present run.
    pub fn lost_member(&self, chunk: &ChunkFacts, fleet: &Fleet) -> Option<NodeId> {
        if !chunk.is_written {
            return None;
        }
        chunk.in_sync.iter().copied().find(|node| {
            let boot = fleet.node(*node).map(|found| found.boot);
            self.whole.get(node).is_some_and(|list| {
                Some(list.boot) == boot && chunk.seq < list.begun && list.version_of(chunk.chunk).is_none()
            })
        })
    }

    /// Returns the version of `chunk` that `node` holds by its last whole list and when that list was begun; `None` in
    /// place of the version if it holds none, `None` at all if there is no list.
    #[allow(clippy::option_option, reason = "no list and no replica are different things")]
    pub fn held(&self, node: NodeId, chunk: ChunkId) -> Option<(Option<Version>, MonoMs)> {
        self.whole.get(&node).map(|list| (list.version_of(chunk), list.begun_at))
    }

    /// Returns how many replicas are unknown.
    pub fn unknown(&self) -> usize {
        self.unknown.len()
    }

    /// Returns the replicas that are frozen.
    pub fn frozen(&self) -> impl Iterator<Item = (NodeId, ChunkId)> + '_ {
        self.frozen.keys().copied()
    }

    /// Returns the replicas that have been unknown for longer than they should be.
    pub fn overdue(&self, now: MonoMs) -> impl Iterator<Item = (NodeId, ChunkId)> + '_ {
        // One list after the grace would have had them reclaimed.
        let is_overdue = move |first_seen: MonoMs| now.since(first_seen) > 3 * self.grace_ms;
        self.unknown.iter().filter(move |(_, first_seen)| is_overdue(**first_seen)).map(|(replica, _)| *replica)
    }

    /// Returns when the last whole list of `node` was begun, and how many replicas it has.
    pub fn listed(&self, node: NodeId) -> Option<(MonoMs, usize)> {
        self.whole.get(&node).map(|list| (list.begun_at, list.held.len()))
    }

    /// Forgets servers that are not on record any more.
    pub fn keep(&mut self, is_known: impl Fn(NodeId) -> bool) {
        self.running.retain(|node, _| is_known(*node));
        self.whole.retain(|node, _| is_known(*node));
        self.unknown.retain(|(node, _), _| is_known(*node));
        self.frozen.retain(|(node, _), _| is_known(*node));
    }
}

impl List {
    fn version_of(&self, chunk: ChunkId) -> Option<Version> {
        let at = self.held.binary_search_by_key(&chunk, |found| found.0).ok()?;
        Some(self.held[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::script::{chunk, fleet};
    use super::*;

    const ONE: NodeId = NodeId(1);
    const BOOT: BootSession = BootSession(7);
    const GRACE: u64 = 60_000;

    fn held(chunk: u64, version: u64) -> Held {
        Held { chunk: ChunkId(chunk), home: Home::default(), version: Version(version) }
    }

    fn page(after: u64, chunks: &[u64], is_end: bool) -> Page {
        let held = chunks.iter().map(|chunk| held(*chunk, 5)).collect();
        Page { node: ONE, boot: BOOT, held, after: ChunkId(after), is_end }
    }

    /// Each line: the time, the replica's version, the record (or `none`), and the verdict; `restarted`: deletions may not
    /// be decided yet.
    #[track_caller]
    fn check(script: &str) {
        let mut inventory = Inventory::new(GRACE);
        for line in script.lines().filter(|line| !line.trim().is_empty()) {
            let (left, expected) = line.split_once("->").expect("has an arrow");
            let (words, record) = left.split_once('|').expect("has a bar");
            let words: Vec<&str> = words.split_whitespace().collect();
            let now = MonoMs(words[0].parse().unwrap());
            let record = (record.trim() != "none").then(|| chunk(record));
            let may_delete = !words.contains(&"restarted");
            let verdict = inventory.judge(ONE, &held(9, words[1].parse().unwrap()), record.as_ref(), may_delete, now);
            let said = match verdict {
                Verdict::Fine => "fine",
                Verdict::Note(SetChange::NoteStale(ONE)) => "stale",
                Verdict::Note(_) => "?",
                Verdict::Freeze => "frozen",
                Verdict::Reclaim => "reclaimed",
                Verdict::Unknown => "unknown",
            };
            assert_eq!(said, expected.trim(), "{line}");
        }
    }

    #[test]
    fn a_held_replica_is_judged_by_its_record() {
        check(
            "
            0 5 | 9: 1* 2 3     -> fine
            0 4 | 9: 2* 3 1     -> fine
            0 0 | 9: 2* 3 +1    -> fine
            0 4 | 9: 2* 3 -1    -> fine
            0 4 | 9: 2* 3       -> stale
            0 6 | 9: 1* 2 3     -> frozen
            0 6 | 9: 2* 3       -> frozen
            0 5 | 8: 1* 2 3     -> unknown
            ",
        );
    }

    #[test]
    fn an_unknown_replica_goes_only_after_the_grace_and_when_the_master_is_certain() {
        check(
            "
            1000  5 | none            -> unknown
            1000  5 | none            -> unknown
            60999 5 | none            -> unknown
            61000 5 restarted | none  -> unknown
            61000 5 | none            -> reclaimed
            61001 5 | none            -> unknown
            70000 5 | 9: 1* 2         -> fine
            130000 5 | none           -> unknown
            ",
        );
    }

    #[test]
    fn a_list_is_whole_when_its_pages_follow_one_another() {
        let mut inventory = Inventory::new(GRACE);
        assert!(!inventory.take(&page(3, &[4], true), MonoMs(0)), "it did not begin at the beginning");
        assert!(inventory.take(&page(0, &[1, 3], false), MonoMs(5)));
        assert_eq!(inventory.held(ONE, ChunkId(3)), None, "not whole yet");
        assert!(inventory.take(&page(3, &[4], true), MonoMs(6)));
        assert_eq!(inventory.held(ONE, ChunkId(3)), Some((Some(Version(5)), MonoMs(5))));
        assert_eq!(inventory.held(ONE, ChunkId(2)), Some((None, MonoMs(5))));
        assert!(inventory.take(&page(0, &[1], false), MonoMs(7)));
        assert!(!inventory.take(&page(2, &[4], true), MonoMs(7)), "a page is missing");
        assert!(!inventory.take(&page(0, &[1, 1], true), MonoMs(7)), "not rising");
        let other_run = Page { boot: BootSession(8), ..page(1, &[2], true) };
        assert!(inventory.take(&page(0, &[1], false), MonoMs(7)));
        assert!(!inventory.take(&other_run, MonoMs(7)));
        assert_eq!(inventory.listed(ONE), Some((MonoMs(5), 3)), "the last whole one stays");
    }

    #[test]
    fn a_member_is_lost_by_a_whole_list_begun_after_the_last_change_of_the_record() {
        let fleet = fleet("1 a - 5%\n2 b - 5%");
        let mut inventory = Inventory::new(GRACE);
        for (at, seq) in [(0, 99), (4_000, 100), (8_000, 101), (12_000, 150)] {
            inventory.mark(MonoMs(at), Seq(seq));
        }
        let mut check = |now: u64, expected: Option<NodeId>| {
            assert!(inventory.take(&page(0, &[8, 10], true), MonoMs(now)));
            assert_eq!(inventory.lost_member(&chunk("9: 1* 2"), &fleet), expected, "{now}");
            assert_eq!(inventory.lost_member(&chunk("10: 1* 2"), &fleet), None);
            let empty = ChunkFacts { is_written: false, ..chunk("9: 1* 2") };
            assert_eq!(inventory.lost_member(&empty, &fleet), None);
        };
        check(63_999, None);
        check(64_000, None);
        check(67_999, None);
        check(68_000, Some(ONE));
        let other = super::super::fleet::script::fleet("2 b - 5%");
        assert_eq!(inventory.lost_member(&chunk("9: 1* 2"), &other), None, "the list is of another run");
    }

    #[test]
    fn what_is_gone_from_the_list_is_neither_unknown_nor_frozen() {
        let mut inventory = Inventory::new(GRACE);
        inventory.judge(ONE, &held(9, 5), None, true, MonoMs(0));
        inventory.judge(ONE, &held(8, 9), Some(&chunk("8: 1* 2")), true, MonoMs(0));
        assert_eq!((inventory.unknown(), inventory.frozen().count()), (1, 1));
        assert!(inventory.take(&page(0, &[1, 9], true), MonoMs(1)));
        assert_eq!((inventory.unknown(), inventory.frozen().count()), (1, 0));
        inventory.keep(|_| false);
        assert_eq!((inventory.unknown(), inventory.listed(ONE)), (0, None));
    }
}
