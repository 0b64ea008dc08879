//! Who has which inode open. In memory only: after a restart the mounts say it again.

use std::collections::BTreeMap;

use dfs_proto::{InodeId, SessionId};

/// Counts of opens, by session and inode.
///
/// # Invariants
///
/// - No count is 0: a pair is there exactly while it is open.
/// - The total of an inode is the sum over its sessions.
#[derive(Clone, Debug, Default)]
pub struct Opens {
    counts: BTreeMap<(SessionId, InodeId), u64>,
    totals: BTreeMap<InodeId, u64>,
}

impl Opens {
    /// Counts `count` more opens.
    pub fn add(&mut self, session: SessionId, inode: InodeId, count: u64) {
        if count > 0 {
            *self.counts.entry((session, inode)).or_default() += count;
            *self.totals.entry(inode).or_default() += count;
        }
    }

    /// Counts `count` fewer; what was never opened is not released either. Returns whether nobody has it open now.
    pub fn release(&mut self, session: SessionId, inode: InodeId, count: u64) -> bool {
        let Some(held) = self.counts.get_mut(&(session, inode)) else { return !self.is_open(inode) };
        let released = count.min(*held);
        *held -= released;
        if *held == 0 {
            self.counts.remove(&(session, inode));
        }
        let total = self.totals.get_mut(&inode).expect("the total of what a session holds");
        *total -= released;
        if *total == 0 {
            self.totals.remove(&inode);
        }
        !self.is_open(inode)
    }

    /// Returns whether nobody would have `inode` open once `session` gave back `count`.
    pub fn is_last(&self, session: SessionId, inode: InodeId, count: u64) -> bool {
        let held = self.held(session, inode);
        self.totals.get(&inode).copied().unwrap_or(0) == count.min(held)
    }

    /// Returns how many opens of `inode` the session holds.
    pub fn held(&self, session: SessionId, inode: InodeId) -> u64 {
        self.counts.get(&(session, inode)).copied().unwrap_or(0)
    }

    /// Returns whether anybody has `inode` open.
    pub fn is_open(&self, inode: InodeId) -> bool {
        self.totals.contains_key(&inode)
    }

    /// Gives back all that `session` holds. Returns the inodes that nobody has open now.
    pub fn drop_session(&mut self, session: SessionId) -> Vec<InodeId> {
        let held: Vec<(InodeId, u64)> = self
            .counts
            .range((session, InodeId(0))..=(session, InodeId(u64::MAX)))
            .map(|((_, inode), count)| (*inode, *count))
            .collect();
        held.into_iter()
            .filter(|(inode, count)| self.release(session, *inode, *count))
            .map(|(inode, _)| inode)
            .collect()
    }

    /// Returns the number of inodes the session has open.
    pub fn files(&self, session: SessionId) -> u64 {
        self.counts.range((session, InodeId(0))..=(session, InodeId(u64::MAX))).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(7);

    #[test]
    fn a_file_is_open_until_the_last_session_let_go() {
        let mut opens = Opens::default();
        opens.add(A, FILE, 2);
        opens.add(B, FILE, 1);
        assert!(!opens.is_last(A, FILE, 2));
        assert!(!opens.release(A, FILE, 1));
        assert!(!opens.release(A, FILE, 5), "B still has it");
        assert!(opens.is_last(B, FILE, 1));
        assert_eq!(opens.drop_session(B), [FILE]);
        assert!(!opens.is_open(FILE));
        assert_eq!((opens.counts.len(), opens.totals.len()), (0, 0));
    }

    #[test]
    fn releasing_what_was_not_opened_takes_nothing_from_others() {
        let mut opens = Opens::default();
        opens.add(A, FILE, 1);
        assert!(!opens.release(B, FILE, 1));
        assert!(opens.is_open(FILE));
        assert_eq!((opens.files(A), opens.files(B)), (1, 0));
    }
}
