//! A set of byte ranges.

use std::collections::BTreeMap;

/// Disjoint ranges of bytes; those that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `[start, end)`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        while let Some((&other_start, &other_end)) = self.ranges.range(..=to).next_back() {
            if other_end < from {
                break;
            }
            from = from.min(other_start);
            to = to.max(other_end);
            self.ranges.remove(&other_start);
        }
        self.ranges.insert(from, to);
    }

    /// Returns the parts of `[start, end)` that are not in the set, ascending.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        let first = self.ranges.range(..=start).next_back().map_or(start, |(&from, _)| from);
        for (&from, &to) in self.ranges.range(first..) {
            if from >= end {
                break;
            }
            if from > at {
                gaps.push((at, from));
            }
            at = at.max(to);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut set = RangeSet::default();
        set.add(10, 20);
        set.add(30, 40);
        set.add(5, 5);
        assert_eq!(set.gaps(0, 50), [(0, 10), (20, 30), (40, 50)]);
        set.add(20, 30);
        assert_eq!(set.ranges.len(), 1);
        assert_eq!(set.gaps(0, 50), [(0, 10), (40, 50)]);
        assert_eq!(set.gaps(15, 35), []);
        set.add(0, 100);
        assert_eq!(set.gaps(0, 100), []);
        assert_eq!(set.gaps(90, 101), [(100, 101)]);
    }
}
