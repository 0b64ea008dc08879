//! Which files this mount holds open at the master, and which it does no longer and has not said so yet.
//!
//! # Invariants
//!
//! - The master never counts fewer opens than the mount has: a count that is too low would free a file that is still in
//!   use. One that is too high only keeps an unlinked file until the session ends.
//! - So a release is sent once at most, to the master process that counted the open. A restarted one is told what is
//!   open ([`Holds::reclaim`]), and nothing of what was released before.

use std::collections::BTreeMap;

use dfs_proto::wire::pb;

/// Counts of opens, by inode.
#[derive(Debug, Default)]
pub(super) struct Holds {
    opens: BTreeMap<u64, u32>,
    releases: BTreeMap<u64, u32>,
}

impl Holds {
    /// Notes that the master has counted an open.
    pub(super) fn opened(&mut self, inode: u64) {
        *self.opens.entry(inode).or_default() += 1;
    }

    /// Notes the end of an open. Returns whether it is the first one that the master is to be told of.
    pub(super) fn released(&mut self, inode: u64) -> bool {
        if let Some(count) = self.opens.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.opens.remove(&inode);
            }
        }
        let is_first = self.releases.is_empty();
        *self.releases.entry(inode).or_default() += 1;
        is_first
    }

    /// Returns whether the master is to be told of releases.
    pub(super) fn has_releases(&self) -> bool {
        !self.releases.is_empty()
    }

    /// Takes up to `count_max` inodes to be released.
    pub(super) fn take_releases(&mut self, count_max: usize) -> Vec<pb::OpenCount> {
        let mut batch = Vec::new();
        while batch.len() < count_max
            && let Some((inode, count)) = self.releases.pop_first()
        {
            batch.push(pb::OpenCount { inode, count });
        }
        batch
    }

    /// Takes back what was certainly not released.
    pub(super) fn put_back(&mut self, batch: Vec<pb::OpenCount>) {
        for open in batch {
            *self.releases.entry(open.inode).or_default() += open.count;
        }
    }

    /// Returns what a master that knows of no opens has to count. What was to be released is not among it, so that
    /// this one must not be told of that.
    pub(super) fn reclaim(&mut self) -> Vec<pb::OpenCount> {
        self.releases.clear();
        self.opens.iter().map(|(&inode, &count)| pb::OpenCount { inode, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(inode: u64, count: u32) -> pb::OpenCount {
        pb::OpenCount { inode, count }
    }

    #[test]
    fn a_restarted_master_is_not_told_of_releases_of_what_it_never_counted() {
        let mut holds = Holds::default();
        holds.opened(5);
        holds.opened(5);
        assert!(holds.released(5));
        assert_eq!(holds.reclaim(), [count(5, 1)]);
        assert!(!holds.has_releases());
        assert!(holds.released(5));
        assert_eq!(holds.take_releases(10), [count(5, 1)]);
    }

    #[test]
    fn what_was_not_sent_is_sent_with_the_next_batch() {
        let mut holds = Holds::default();
        for inode in [5, 6, 7] {
            holds.opened(inode);
            holds.released(inode);
        }
        let batch = holds.take_releases(2);
        assert_eq!(batch, [count(5, 1), count(6, 1)]);
        holds.put_back(batch);
        assert_eq!(holds.take_releases(10).len(), 3);
    }
}
