//! When each chunk is checked and compared: once in a period, spread over it, without anything being written down.
//!
//! Each chunk has its moment in the period, by its id alone. A pass over the records finds the chunks whose moment came
//! since the pass before began; so each is found once in a period, as many in one hour as in another, and a restart of the
//! master neither forgets nor repeats more than one pass.

use std::collections::{BTreeSet, VecDeque};

use dfs_proto::replica_set::Home;
use dfs_proto::{ChunkId, MonoMs};

use super::care::ChunkFacts;
use super::fleet::Fleet;
use super::ring::mix;

/// Most chunks that wait for their scrub. What does not fit waits a period.
const WAITING_MAX: usize = 100_000;

/// Returns whether the moment of `chunk` is after `from` and not after `until`.
pub fn is_due(chunk: ChunkId, period_ms: u64, from: MonoMs, until: MonoMs) -> bool {
    // Ids are given out in a row; their moments must not be.
    let Some(moment) = mix(chunk.0).checked_rem(period_ms) else { return false };
    let passed = |time: MonoMs| (time.0 + period_ms - moment) / period_ms;
    passed(until) > passed(from)
}

/// Returns whether `chunk` can be scrubbed now: all its replicas are there to be compared, and nothing else is done to it.
pub fn is_fit(chunk: &ChunkFacts, fleet: &Fleet) -> bool {
    chunk.syncing.is_empty()
        && chunk.is_written
        && chunk.in_sync.iter().all(|node| fleet.is_online(*node) && !fleet.is_tainted(chunk, *node))
}

/// Chunks that wait for their scrub: those with known damage before those whose moment came.
#[derive(Debug, Default)]
pub struct Waiting {
    damaged: VecDeque<Home>,
    due: VecDeque<Home>,
    all: BTreeSet<Home>,
}

impl Waiting {
    /// Adds a chunk whose moment came.
    pub fn add_due(&mut self, home: Home) {
        if self.all.len() < WAITING_MAX && self.all.insert(home) {
            self.due.push_back(home);
        }
    }

    /// Adds a chunk of which damage was reported.
    pub fn add_damaged(&mut self, home: Home) {
        if self.all.insert(home) {
            self.damaged.push_back(home);
        } else if let Some(at) = self.due.iter().position(|waiting| *waiting == home) {
            self.due.remove(at);
            self.damaged.push_back(home);
        }
    }

    /// Takes the next one.
    pub fn take(&mut self) -> Option<Home> {
        let home = self.damaged.pop_front().or_else(|| self.due.pop_front())?;
        self.all.remove(&home);
        Some(home)
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether none waits.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{ChunkIndex, InodeId};

    use super::super::fleet::script::{chunk, fleet};
    use super::*;

    #[test]
    fn each_chunk_is_due_once_in_a_period_at_a_steady_rate() {
        const PERIOD: u64 = 100_000;
        // Passes of uneven length, from a moment in the middle.
        let mut passes = vec![MonoMs(1_234_567)];
        for length in [700, 1_300, 10, 4_990].into_iter().cycle() {
            let next = passes.last().unwrap().plus(length);
            passes.push(next);
            if next.since(passes[0]) >= 3 * PERIOD {
                break;
            }
        }
        let mut by_period = [0u32; 3];
        for id in 0..3_000 {
            let found: Vec<MonoMs> = passes
                .windows(2)
                .filter(|pair| is_due(ChunkId(id), PERIOD, pair[0], pair[1]))
                .map(|pair| pair[1])
                .collect();
            assert!((3..=4).contains(&found.len()), "chunk {id}: {found:?}");
            for pair in found.windows(2) {
                let gap = pair[1].since(pair[0]);
                assert!((PERIOD - 5_000..=PERIOD + 5_000).contains(&gap), "{gap}");
            }
            by_period[usize::min(2, (found[0].since(passes[0]) * 3 / PERIOD) as usize)] += 1;
        }
        assert!(by_period.iter().all(|count| (850..1_150).contains(count)), "{by_period:?}");
        assert!(!is_due(ChunkId(1), 0, MonoMs(0), MonoMs(1_000_000)), "a period of 0 turns it off");
    }

    #[test]
    fn a_chunk_is_scrubbed_when_all_its_replicas_are_there() {
        let fleet = fleet("1 a - 5%\n2 b - 5%\n3 c - 5%\n4 d - 5% expired");
        for (text, expected) in [("1: 1* 2 3", true), ("1: 1* 2", true), ("1: 1* 2 4", false), ("1: 1* 2 +3", false)] {
            assert_eq!(is_fit(&chunk(text), &fleet), expected, "{text}");
        }
    }

    #[test]
    fn known_damage_comes_first() {
        let home = |inode| Home { inode: InodeId(inode), index: ChunkIndex(0) };
        let mut waiting = Waiting::default();
        [1, 2, 3, 2].into_iter().for_each(|inode| waiting.add_due(home(inode)));
        waiting.add_damaged(home(9));
        waiting.add_damaged(home(3));
        waiting.add_damaged(home(9));
        assert_eq!(waiting.len(), 4);
        let order: Vec<u64> = std::iter::from_fn(|| waiting.take()).map(|home| home.inode.0).collect();
        assert_eq!(order, [9, 3, 1, 2]);
        assert!(waiting.is_empty());
    }
}
