//! The writes of one file that were begun and have no end yet: so that none is left far behind by the others.
//!
//! A chunk server remembers a client's last writes of a chunk, to answer one that is repeated as it did the first time. A
//! write that nobody answers must still be among them when its answer comes at last, however many others of the same
//! chunk go through meanwhile. So there are never more of them than a server remembers.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// Writes that may be begun after one that has not ended: a server remembers four times as many, since one may count for
/// up to three there.
const AHEAD_MAX: u64 = 128;

/// The writes of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<Writes>>);

#[derive(Debug, Default)]
struct Writes {
    begun: u64,
    open: BTreeSet<u64>,
}

/// One write, until it is dropped.
#[derive(Debug)]
pub(super) struct Write {
    all: UnderWay,
    place: u64,
}

impl UnderWay {
    /// Returns whether another write may begin.
    pub fn has_room(&self) -> bool {
        let writes = self.0.lock();
        writes.open.first().is_none_or(|oldest| writes.begun - oldest < AHEAD_MAX)
    }

    /// Begins a write.
    pub fn begin(&self) -> Write {
        let mut writes = self.0.lock();
        writes.begun += 1;
        let place = writes.begun;
        writes.open.insert(place);
        Write { all: self.clone(), place }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.all.0.lock().open.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_no_end_holds_the_others_up_at_last() {
        let all = UnderWay::default();
        let first = all.begin();
        for _ in 0..AHEAD_MAX {
            assert!(all.has_room());
            drop(all.begin());
        }
        assert!(!all.has_room());
        drop(first);
        assert!(all.has_room());
    }
}
