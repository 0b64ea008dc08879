//! A count of all chunk records, a page at a time.
//!
//! What is shown is the last whole count; of what is wrong, the running one if that has found more already.

use std::collections::BTreeMap;

use dfs_proto::{ChunkIndex, InodeId, MonoMs, NodeId};

use super::care::ChunkFacts;
use super::fleet::{Fleet, Redundancy};

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Chunks with fewer replicas that can be read now than their file wants.
    pub under_replicated: u64,
    /// Chunks to which writes wait: fewer than the minimum can be read now.
    pub below_minimum: u64,
    /// Chunks of which no replica can be read now.
    pub unavailable: u64,
    /// Chunks with a replica that is being filled.
    pub syncing: u64,
    /// Chunks with a member that may lack acknowledged writes.
    pub suspect: u64,
    /// Replicas by node, those that are being filled too.
    pub replicas: BTreeMap<NodeId, u64>,
    /// Chunks that name a node at all, by node: as a member, or as one that may hold an old replica.
    pub named: BTreeMap<NodeId, u64>,
    /// Chunks with a member on a node that may lack acknowledged writes there, by node.
    pub tainted: BTreeMap<NodeId, u64>,
}

/// A count of all chunk records, a page at a time.
#[derive(Debug)]
pub struct Census {
    period_ms: u64,
    running: Option<Running>,
    /// When the running or last pass began, and the one before it.
    begun: Option<MonoMs>,
    before: Option<MonoMs>,
    /// When the last whole pass began.
    finished_begun: Option<MonoMs>,
    finished_count: u64,
    finished: Count,
}

#[derive(Debug, Default)]
struct Running {
    after: Option<(InodeId, ChunkIndex)>,
    count: Count,
}

impl Census {
    /// Returns one that has counted nothing and begins every `period_ms`.
    pub fn new(period_ms: u64) -> Self {
        Self {
            period_ms,
            running: None,
            begun: None,
            before: None,
            finished_begun: None,
            finished_count: 0,
            finished: Count::default(),
        }
    }

    /// Begins a pass if it is time, or at once (dropping the running one) if the nodes have changed.
    pub fn begin_if_due(&mut self, now: MonoMs, nodes_changed: bool) {
        let is_due = self.begun.is_none_or(|begun| now.since(begun) >= self.period_ms);
        if self.running.is_none() && (is_due || nodes_changed) {
            self.before = self.begun;
            self.begun = Some(now);
            self.running = Some(Running::default());
        } else if nodes_changed {
            // The span between two passes goes on: what was due in the dropped one is due in this one.
            self.running = Some(Running::default());
        }
    }

    /// Returns after which record the next page begins, or `None` if nothing is to be counted.
    #[allow(clippy::option_option, reason = "a page after no record is the first one")]
    pub fn next_page(&self) -> Option<Option<(InodeId, ChunkIndex)>> {
        self.running.as_ref().map(|running| running.after)
    }

    /// Returns when the pass before this one began, and when this one did.
    pub fn span(&self) -> Option<(MonoMs, MonoMs)> {
        Some((self.before?, self.begun?))
    }

    /// Counts a chunk.
    pub fn add(&mut self, chunk: &ChunkFacts, redundancy: &Redundancy, fleet: &Fleet) {
        let Some(Running { after, count }) = &mut self.running else { return };
        *after = Some((chunk.inode, chunk.index));
        count.under_replicated += u64::from(redundancy.online < chunk.wanted);
        count.below_minimum += u64::from(redundancy.online < chunk.min_in_sync());
        count.unavailable += u64::from(redundancy.online == 0);
        count.syncing += u64::from(!chunk.syncing.is_empty());
        let tainted = chunk.in_sync.iter().filter(|node| fleet.is_tainted(chunk, **node));
        let before = count.tainted.values().sum::<u64>();
        tainted.for_each(|node| *count.tainted.entry(*node).or_default() += 1);
        count.suspect += u64::from(count.tainted.values().sum::<u64>() > before);
        for node in chunk.in_sync.iter().chain(&chunk.syncing) {
            *count.replicas.entry(*node).or_default() += 1;
            *count.named.entry(*node).or_default() += 1;
        }
        for node in &chunk.stale {
            *count.named.entry(*node).or_default() += 1;
        }
    }

    /// Ends the pass: there are no more records.
    pub fn end(&mut self) {
        if let Some(running) = self.running.take() {
            self.finished = running.count;
            self.finished_begun = self.begun;
            self.finished_count += 1;
        }
    }

    /// Returns the counts to be shown.
    pub fn count(&self) -> Count {
        let mut shown = self.finished.clone();
        if let Some(Running { count, .. }) = &self.running {
            shown.under_replicated = shown.under_replicated.max(count.under_replicated);
            shown.below_minimum = shown.below_minimum.max(count.below_minimum);
            shown.unavailable = shown.unavailable.max(count.unavailable);
            shown.syncing = shown.syncing.max(count.syncing);
            shown.suspect = shown.suspect.max(count.suspect);
        }
        shown
    }

    /// Returns how many whole counts there were.
    pub fn finished_count(&self) -> u64 {
        self.finished_count
    }

    /// Returns the last whole count, and when it was begun.
    pub fn finished(&self) -> (&Count, Option<MonoMs>) {
        (&self.finished, self.finished_begun)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::script::{chunk, fleet};
    use super::*;

    fn add(census: &mut Census, fleet: &Fleet, texts: &[&str]) {
        for text in texts {
            let chunk = chunk(text);
            census.add(&chunk, &Redundancy::of(&chunk, fleet), fleet);
        }
    }

    #[test]
    fn it_counts_page_by_page_and_shows_trouble_before_the_end() {
        let fleet = fleet("1 a - 5%\n2 b - 5%\n3 c - 5% expired\n4 d - 5%\n5 e - 5% suspect=200");
        let mut census = Census::new(10_000);
        assert_eq!(census.next_page(), None);
        census.begin_if_due(MonoMs(0), false);
        assert_eq!(census.next_page(), Some(None));
        add(&mut census, &fleet, &["1: 1* 2 4", "2: 1* 2 3", "3: 3* -4", "4: 1* +4 wanted=2"]);
        assert_eq!(census.next_page(), Some(Some((InodeId(4), ChunkIndex(0)))));
        let count = census.count();
        assert_eq!((count.under_replicated, count.below_minimum, count.unavailable, count.syncing), (3, 2, 1, 1));
        assert_eq!(count.replicas, BTreeMap::new(), "by node only whole counts are shown");
        add(&mut census, &fleet, &["5: 1* 2 5", "6: 1* wanted=1"]);
        census.end();
        let count = census.count();
        assert_eq!((count.under_replicated, count.suspect, count.tainted[&NodeId(5)]), (4, 1, 1));
        let replicas = [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1)].map(|(node, count)| (NodeId(node), count));
        assert_eq!(count.replicas, replicas.into());
        assert_eq!(count.named[&NodeId(4)], 3);
    }

    #[test]
    fn it_begins_again_after_its_period_or_when_nodes_change() {
        let fleet = fleet("1 a - 5%");
        let mut census = Census::new(10_000);
        census.begin_if_due(MonoMs(1_000), false);
        add(&mut census, &fleet, &["1: 1*"]);
        census.end();
        census.begin_if_due(MonoMs(10_999), false);
        assert_eq!((census.next_page(), census.span()), (None, None));
        census.begin_if_due(MonoMs(11_000), false);
        assert_eq!(census.span(), Some((MonoMs(1_000), MonoMs(11_000))));
        assert_eq!(census.count().under_replicated, 1, "the last whole count is shown until there is a new one");
        add(&mut census, &fleet, &["1: 1*"]);
        census.begin_if_due(MonoMs(11_001), true);
        assert_eq!((census.next_page(), census.span()), (Some(None), Some((MonoMs(1_000), MonoMs(11_000)))));
        census.end();
        assert_eq!((census.count().under_replicated, census.finished().1), (0, Some(MonoMs(11_000))));
    }
}
