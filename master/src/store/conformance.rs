//! What every engine must do, as one suite of functions over a [`Harness`].

use bytes::Bytes;
use dfs_proto::Seq;

use super::{Batch, KEY_BYTES_MAX, MetaStore};

/// Makes stores of one engine: all of one harness hold the same data.
pub trait Harness {
    /// Returns a harness over an empty store.
    fn new() -> Self;
    /// Starts the engine; the one of an earlier start was dropped without a word.
    fn start(&mut self) -> Box<dyn MetaStore>;
}

/// Makes a `#[test]` of each function of the suite.
macro_rules! conformance_tests {
    ($harness:ty) => {
        crate::store::conformance::conformance_tests!(@each $harness:
            an_empty_store_has_nothing
            scans_are_in_the_order_of_bytes
            a_scan_has_both_bounds_and_a_limit
            puts_replace_and_deletes_hide
            deleted_keys_can_be_put_again
            empty_and_big_values_come_back
            keys_at_the_limit_work_and_above_it_are_refused
            a_batch_that_does_not_rise_is_refused_and_changes_nothing
            sequence_numbers_may_have_gaps
            sync_covers_what_was_committed_before
            everything_committed_is_there_after_a_restart
            many_batches_survive_many_restarts
            a_scan_sees_through_thousands_of_deletes
            a_snapshot_shows_one_moment
        );
    };
    (@each $harness:ty: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let mut harness = <$harness as crate::store::conformance::Harness>::new();
                crate::store::conformance::$name(&mut harness);
            }
        )*
    };
}
pub(crate) use conformance_tests;

/// Returns a batch of text.
pub fn batch(seq: u64, puts: &[(&str, &str)], deletes: &[&str]) -> Batch {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Batch {
        seq: Seq(seq),
        puts: puts.iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
        deletes: deletes.iter().map(|key| bytes(key)).collect(),
    }
}

/// Asserts that a scan of `start..end` with `limit` gives `expected`, written as `key=value` pairs.
#[track_caller]
pub fn check(store: &dyn MetaStore, start: &str, end: &str, limit: usize, expected: &str) {
    let found = store.scan(start.as_bytes(), end.as_bytes(), limit).expect("scans");
    let text: Vec<String> = found
        .iter()
        .map(|(key, value)| format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
        .collect();
    assert_eq!(text.join(" "), expected);
    for (key, value) in &found {
        assert_eq!(store.get(key).expect("gets").as_ref(), Some(value), "get and scan agree");
    }
}

pub fn an_empty_store_has_nothing(harness: &mut impl Harness) {
    let store = harness.start();
    assert_eq!(store.last_seq(), Seq(0));
    assert_eq!(store.get(b"a").unwrap(), None);
    assert_eq!(store.sync().unwrap(), Seq(0));
    assert_eq!(store.scan(b"", &[0xff; 8], 10).unwrap(), vec![]);
}

pub fn scans_are_in_the_order_of_bytes(harness: &mut impl Harness) {
    let store = harness.start();
    let keys: [&[u8]; 7] = [&[1], &[1, 0], &[1, 0, 0], &[1, 1], &[0x7f], &[0x80], &[0xff, 0xff]];
    let mut puts: Vec<_> = keys.iter().map(|key| (Bytes::from_static(key), Bytes::from_static(b"v"))).collect();
    puts.reverse();
    store.commit(&Batch { seq: Seq(1), puts, deletes: vec![] }).unwrap();
    let found: Vec<_> = store.scan(&[1], &[0xff; 3], 100).unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(found, keys);
}

pub fn a_scan_has_both_bounds_and_a_limit(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1"), ("b", "2"), ("ba", "3"), ("c", "4")], &[])).unwrap();
    check(&*store, "a", "c", 10, "a=1 b=2 ba=3");
    check(&*store, "b", "b\0", 10, "b=2");
    check(&*store, "aa", "d", 2, "b=2 ba=3");
    check(&*store, "a", "d", 0, "");
    check(&*store, "b", "b", 10, "");
    check(&*store, "c", "a", 10, "");
    check(&*store, "d", "z", 10, "");
}

pub fn puts_replace_and_deletes_hide(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1"), ("b", "1"), ("c", "1")], &[])).unwrap();
    store.commit(&batch(2, &[("b", "2"), ("d", "2")], &["a", "never there"])).unwrap();
    check(&*store, "a", "z", 10, "b=2 c=1 d=2");
    assert_eq!(store.get(b"a").unwrap(), None);
}

pub fn deleted_keys_can_be_put_again(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
    store.commit(&batch(2, &[], &["a"])).unwrap();
    store.commit(&batch(3, &[("a", "3")], &[])).unwrap();
    check(&*store, "a", "z", 10, "a=3");
    drop(store);
    check(&*harness.start(), "a", "z", 10, "a=3");
}

pub fn empty_and_big_values_come_back(harness: &mut impl Harness) {
    let sizes = [0usize, 1, 4095, 4096, 16_384, 65_536, 65_537, 1 << 20];
    let value = |size: usize| -> Bytes { (0..size).map(|at| (at * 7 + size) as u8).collect() };
    let store = harness.start();
    for (at, size) in sizes.iter().enumerate() {
        let puts = vec![(Bytes::from(format!("size {size}")), value(*size))];
        store.commit(&Batch { seq: Seq(at as u64 + 1), puts, deletes: vec![] }).unwrap();
    }
    let verify = |store: &dyn MetaStore| {
        for size in sizes {
            assert_eq!(store.get(format!("size {size}").as_bytes()).unwrap(), Some(value(size)), "{size} bytes");
        }
    };
    verify(&*store);
    drop(store);
    verify(&*harness.start());
}

pub fn keys_at_the_limit_work_and_above_it_are_refused(harness: &mut impl Harness) {
    let store = harness.start();
    let put = |seq, key: Vec<u8>| Batch {
        seq: Seq(seq),
        puts: vec![(key.into(), Bytes::from_static(b"v"))],
        deletes: vec![],
    };
    store.commit(&put(1, vec![7; KEY_BYTES_MAX])).unwrap();
    assert!(store.get(&[7; KEY_BYTES_MAX]).unwrap().is_some());
    assert!(store.commit(&put(2, vec![7; KEY_BYTES_MAX + 1])).is_err());
    assert!(store.commit(&put(2, vec![])).is_err(), "no empty key");
    assert!(store.commit(&put(2, vec![0, 5])).is_err(), "keys from 0x00 on are the engine's own");
    assert_eq!(store.last_seq(), Seq(1));
    store.commit(&put(2, vec![8])).unwrap();
}

pub fn a_batch_that_does_not_rise_is_refused_and_changes_nothing(harness: &mut impl Harness) {
    let store = harness.start();
    assert!(store.commit(&batch(0, &[("a", "0")], &[])).is_err());
    store.commit(&batch(5, &[("a", "5")], &[])).unwrap();
    for seq in [1, 4, 5] {
        assert!(store.commit(&batch(seq, &[("a", "wrong")], &[])).is_err());
    }
    check(&*store, "a", "z", 10, "a=5");
    assert_eq!(store.last_seq(), Seq(5));
    drop(store);
    let store = harness.start();
    assert!(store.commit(&batch(5, &[("a", "wrong")], &[])).is_err());
    store.commit(&batch(6, &[("a", "6")], &[])).unwrap();
    check(&*store, "a", "z", 10, "a=6");
}

pub fn sequence_numbers_may_have_gaps(harness: &mut impl Harness) {
    let store = harness.start();
    for seq in [3, 4, 1_000, 1 << 40] {
        store.commit(&batch(seq, &[("a", "1")], &[])).unwrap();
        assert_eq!(store.last_seq(), Seq(seq));
    }
    drop(store);
    assert_eq!(harness.start().last_seq(), Seq(1 << 40));
}

pub fn sync_covers_what_was_committed_before(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
    store.commit(&batch(2, &[("a", "2")], &[])).unwrap();
    assert_eq!(store.sync().unwrap(), Seq(2));
    assert_eq!(store.sync().unwrap(), Seq(2));
    store.commit(&batch(7, &[], &["a"])).unwrap();
    assert_eq!(store.sync().unwrap(), Seq(7));
    drop(store);
    let store = harness.start();
    assert_eq!(store.sync().unwrap(), Seq(7));
    check(&*store, "a", "z", 10, "");
}

pub fn everything_committed_is_there_after_a_restart(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1"), ("b", "1")], &[])).unwrap();
    store.sync().unwrap();
    store.commit(&batch(2, &[("c", "2")], &["a"])).unwrap();
    drop(store);
    let store = harness.start();
    assert_eq!(store.last_seq(), Seq(2));
    check(&*store, "a", "z", 10, "b=1 c=2");
}

pub fn many_batches_survive_many_restarts(harness: &mut impl Harness) {
    let mut seq = 0;
    for start in 0..5 {
        let store = harness.start();
        assert_eq!(store.last_seq(), Seq(seq));
        for _ in 0..50 {
            seq += 1;
            let (fresh, shared) = (format!("key {seq:06}"), format!("{start}/{seq}"));
            store.commit(&batch(seq, &[(&fresh, "x"), ("shared", &shared)], &[])).unwrap();
        }
        if start % 2 == 0 {
            store.sync().unwrap();
        }
    }
    let store = harness.start();
    assert_eq!(store.scan(b"key", b"kez", 1_000).unwrap().len(), 250);
    check(&*store, "s", "t", 10, "shared=4/250");
}

pub fn a_scan_sees_through_thousands_of_deletes(harness: &mut impl Harness) {
    let store = harness.start();
    let keys: Vec<String> = (0..3_000).map(|number| format!("k{number:05}")).collect();
    let puts: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "v")).collect();
    store.commit(&batch(1, &puts, &[])).unwrap();
    let deletes: Vec<&str> = keys[..2_999].iter().map(String::as_str).collect();
    store.commit(&batch(2, &[], &deletes)).unwrap();
    check(&*store, "k", "l", 5, "k02999=v");
}

/// What is committed after a snapshot was taken is not in it.
pub fn a_snapshot_shows_one_moment(harness: &mut impl Harness) {
    let store = harness.start();
    store.commit(&batch(1, &[("a", "1"), ("b", "1")], &[])).unwrap();
    let snapshot = store.snapshot().unwrap();
    store.commit(&batch(2, &[("a", "2"), ("c", "2")], &["b"])).unwrap();
    let text = |pairs: Vec<(Bytes, Bytes)>| -> String {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        pairs.iter().map(|(key, value)| format!("{}={} ", text(key), text(value))).collect()
    };
    assert_eq!(text(snapshot.scan(b"a", b"z", 10).unwrap()), "a=1 b=1 ");
    assert_eq!(text(snapshot.scan(b"a", b"z", 1).unwrap()), "a=1 ");
    assert_eq!(text(snapshot.scan(b"", b"b", 10).unwrap()), "a=1 ");
    assert_eq!(text(store.scan(b"a", b"z", 10).unwrap()), "a=2 c=2 ");
}
