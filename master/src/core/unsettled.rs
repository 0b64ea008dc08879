//! Changes that are written but not yet on stable media, and whose they are.
//!
//! The author of a change sees it at once. Anybody else who would see it waits until it is durable, so that nothing
//! ever un-happens for an observer.

use std::collections::VecDeque;

use dfs_proto::{Seq, SessionId};

/// The authors of the changes that are not durable yet, in log order.
#[derive(Clone, Debug, Default)]
pub struct Unsettled {
    changes: VecDeque<(Seq, SessionId)>,
}

impl Unsettled {
    /// Notes a change; `seq` is above all before.
    pub fn add(&mut self, seq: Seq, author: SessionId) {
        debug_assert!(self.changes.back().is_none_or(|(last, _)| *last < seq));
        self.changes.push_back((seq, author));
    }

    /// Forgets what is durable now.
    pub fn settle(&mut self, durable: Seq) {
        while self.changes.front().is_some_and(|(seq, _)| *seq <= durable) {
            self.changes.pop_front();
        }
    }

    /// Returns whether the change at `seq` is not durable yet and somebody else's than `session`.
    pub fn is_foreign(&self, seq: Seq, session: SessionId) -> bool {
        match self.changes.front() {
            Some((first, _)) if seq >= *first => {
                self.changes.binary_search_by_key(&seq, |(seq, _)| *seq).is_ok_and(|at| self.changes[at].1 != session)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_did_lately_is_foreign() {
        let (me, other) = (SessionId(1), SessionId(2));
        let mut unsettled = Unsettled::default();
        for (seq, author) in [(10, other), (11, me), (14, other)] {
            unsettled.add(Seq(seq), author);
        }
        let foreign =
            |unsettled: &Unsettled| (9..16).filter(|seq| unsettled.is_foreign(Seq(*seq), me)).collect::<Vec<u64>>();
        assert_eq!(foreign(&unsettled), [10, 14]);
        unsettled.settle(Seq(11));
        assert_eq!(foreign(&unsettled), [14]);
        unsettled.settle(Seq(14));
        assert_eq!(foreign(&unsettled), [0; 0]);
    }
}
