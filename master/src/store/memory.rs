//! The engine for tests and simulation: a sorted map, and what a disk would still hold after a power cut.
//!
//! Clones share one store, so a test keeps one, gives another to the code under test, and reads on after that code is
//! gone: as after kill -9, everything committed is there. [`MemoryStore::crash`] is a power cut.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::Seq;
use parking_lot::Mutex;

use super::{Batch, MetaStore, Snapshot, StoreError};

type Map = BTreeMap<Bytes, Bytes>;

/// An engine in memory. See the module for what its clones share.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Contents>>,
}

#[derive(Debug, Default)]
struct Contents {
    live: Map,
    last_seq: Seq,
    /// What was synced, and the batches since then, oldest first.
    durable: Map,
    durable_seq: Seq,
    unsynced: Vec<Batch>,
    fail_next: Option<Fault>,
    /// Set by the first failure: the engine refuses everything from then on.
    failed: Option<StoreError>,
}

/// A failure that a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next commit fails; the batch is lost.
    CommitLost,
    /// The next commit fails, but its batch is found after the next start.
    CommitKept,
    /// The next sync fails; nothing more is durable than before.
    Sync,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts the power: only what was synced is left, and a failed engine works again.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Cuts the power when the first `batches` of the unsynced ones happened to have reached the disk. All of them, if
    /// there are not so many.
    pub fn crash_keeping(&self, batches: usize) {
        let mut contents = self.shared.lock();
        let kept: Vec<Batch> = contents.unsynced.drain(..).take(batches).collect();
        for batch in kept {
            apply(&mut contents.durable, &batch);
            contents.durable_seq = batch.seq;
        }
        contents.unsynced.clear();
        contents.live = contents.durable.clone();
        contents.last_seq = contents.durable_seq;
        contents.fail_next = None;
        contents.failed = None;
    }

    /// Returns how many committed batches are not synced.
    pub fn unsynced(&self) -> usize {
        self.shared.lock().unsynced.len()
    }

    /// Makes the next call of that kind fail; the engine then refuses everything until [`MemoryStore::crash`].
    pub fn fail_next(&self, fault: Fault) {
        self.shared.lock().fail_next = Some(fault);
    }
}

impl Contents {
    fn check(&self) -> Result<(), StoreError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, what: &str) -> StoreError {
        let error = StoreError::Engine(what.to_owned());
        self.fail_next = None;
        self.failed = Some(error.clone());
        error
    }

    fn take(&mut self, batch: &Batch) {
        apply(&mut self.live, batch);
        self.last_seq = batch.seq;
        self.unsynced.push(batch.clone());
    }
}

fn apply(map: &mut Map, batch: &Batch) {
    for key in &batch.deletes {
        map.remove(key);
    }
    for (key, value) in &batch.puts {
        map.insert(key.clone(), value.clone());
    }
}

impl MetaStore for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let contents = self.shared.lock();
        contents.check()?;
        Ok(contents.live.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let contents = self.shared.lock();
        contents.check()?;
        Ok(scan(&contents.live, start, end, limit))
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut contents = self.shared.lock();
        contents.check()?;
        super::check_batch(batch, contents.last_seq)?;
        match contents.fail_next {
            Some(Fault::CommitLost) => Err(contents.fail("the test lost this commit")),
            Some(Fault::CommitKept) => {
                contents.take(batch);
                Err(contents.fail("the test failed this commit"))
            }
            Some(Fault::Sync) | None => {
                contents.take(batch);
                Ok(())
            }
        }
    }

    fn sync(&self) -> Result<Seq, StoreError> {
        let mut contents = self.shared.lock();
        contents.check()?;
        if contents.fail_next == Some(Fault::Sync) {
            return Err(contents.fail("the test failed this sync"));
        }
        for batch in std::mem::take(&mut contents.unsynced) {
            apply(&mut contents.durable, &batch);
            contents.durable_seq = batch.seq;
        }
        Ok(contents.durable_seq)
    }

    fn last_seq(&self) -> Seq {
        self.shared.lock().last_seq
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        let contents = self.shared.lock();
        contents.check()?;
        Ok(Box::new(MemorySnapshot(contents.live.clone())))
    }
}

struct MemorySnapshot(Map);

impl Snapshot for MemorySnapshot {
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Ok(scan(&self.0, start, end, limit))
    }
}

fn scan(map: &Map, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
    if start >= end {
        return Vec::new();
    }
    let range = map.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
    range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{Harness, batch, conformance_tests};

    struct Memory(MemoryStore);

    impl Harness for Memory {
        fn new() -> Self {
            Self(MemoryStore::new())
        }

        fn start(&mut self) -> Box<dyn MetaStore> {
            Box::new(self.0.clone())
        }
    }

    conformance_tests!(Memory);

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_prefix_of_the_rest() {
        for kept in 0..=4 {
            let store = MemoryStore::new();
            store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
            assert_eq!(store.sync().unwrap(), Seq(1));
            store.commit(&batch(2, &[("a", "2"), ("b", "2")], &[])).unwrap();
            store.commit(&batch(3, &[], &["a"])).unwrap();
            store.commit(&batch(4, &[("c", "4")], &["b"])).unwrap();
            assert_eq!(store.unsynced(), 3);
            store.crash_keeping(kept);
            let found = store.scan(b"", b"z", 10).unwrap();
            let text: Vec<String> = found
                .iter()
                .map(|(key, value)| format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
                .collect();
            let expected = ["a=1", "a=2 b=2", "b=2", "c=4", "c=4"][kept];
            assert_eq!(text.join(" "), expected, "kept {kept}");
            assert_eq!(store.last_seq(), Seq(1 + kept.min(3) as u64));
        }
    }

    #[test]
    fn after_a_failure_it_refuses_everything_until_the_crash() {
        for (fault, left) in [(Fault::CommitLost, 1), (Fault::CommitKept, 2), (Fault::Sync, 1)] {
            let store = MemoryStore::new();
            store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
            store.fail_next(fault);
            if fault == Fault::Sync {
                assert!(store.sync().is_err());
            } else {
                assert!(store.commit(&batch(2, &[("a", "2")], &[])).is_err());
            }
            assert!(store.get(b"a").is_err());
            assert!(store.scan(b"a", b"z", 1).is_err());
            assert!(store.commit(&batch(3, &[], &[])).is_err());
            assert!(store.sync().is_err());
            store.crash_keeping(10);
            assert_eq!(store.last_seq(), Seq(left), "{fault:?}");
            assert!(store.get(b"a").unwrap().is_some());
        }
    }
}
