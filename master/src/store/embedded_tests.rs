use tempfile::TempDir;

use super::*;
use crate::store::conformance::{Harness, batch, check, conformance_tests};

struct Embedded(TempDir);

impl Harness for Embedded {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn start(&mut self) -> Box<dyn MetaStore> {
        Box::new(EmbeddedStore::open(self.0.path()).expect("opens"))
    }
}

conformance_tests!(Embedded);

#[test]
fn new_existing_locked_and_damaged_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
    let locked = EmbeddedStore::open(directory.path()).unwrap_err();
    assert!(matches!(&locked, StoreError::Locked(text) if text.contains(&*directory.path().to_string_lossy())));
    drop(store);

    let store = EmbeddedStore::open(directory.path()).unwrap();
    store.sync().unwrap();
    drop(store);

    std::fs::write(directory.path().join("fjall/version"), b"nonsense").unwrap();
    let damaged = EmbeddedStore::open(directory.path()).unwrap_err();
    assert!(matches!(damaged, StoreError::Corrupt(_)), "{damaged}");

    std::fs::remove_dir_all(directory.path().join("fjall")).unwrap();
    let gone = EmbeddedStore::open(directory.path()).unwrap_err();
    assert!(matches!(gone, StoreError::Corrupt(_)), "{gone}");
}

#[test]
fn a_store_that_was_not_finished_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join("fjall.new");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("0.jnl"), b"").unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
    check(&store, "a", "z", 10, "a=1");
}

#[test]
fn after_a_failed_sync_it_refuses_everything() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    store.commit(&batch(1, &[("a", "1")], &[])).unwrap();
    store.sync().unwrap();
    store.commit(&batch(2, &[("a", "2")], &[])).unwrap();
    // A pipe cannot be synced: the nearest to a failing disk that every machine has.
    let (_reader, writer) = std::io::pipe().unwrap();
    let number = journal::list(&store.journals).unwrap().pop().unwrap().0;
    store.syncing.lock().journal = Some((number, File::from(std::os::fd::OwnedFd::from(writer))));
    assert!(store.sync().is_err());
    assert!(store.sync().is_err(), "a retry does not make it good");
    assert!(store.commit(&batch(3, &[], &[])).is_err());
    assert!(store.get(b"a").is_err());
    assert!(store.scan(b"a", b"z", 1).is_err());
    drop(store);
    let store = EmbeddedStore::open(directory.path()).unwrap();
    check(&store, "a", "z", 10, "a=2");
}

#[test]
fn batches_survive_memtables_that_become_tables() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    for seq in 1..=30u64 {
        let text = format!("{seq}");
        store.commit(&batch(seq, &[("shared", &text), (&format!("key {seq:03}"), &text)], &[])).unwrap();
        if seq % 10 == 0 {
            store.records.rotate_memtable_and_wait().unwrap();
        }
        if seq == 25 {
            store.sync().unwrap();
        }
    }
    drop(store);
    let store = EmbeddedStore::open(directory.path()).unwrap();
    assert_eq!(store.last_seq(), Seq(30));
    assert_eq!(store.scan(b"key", b"kez", 100).unwrap().len(), 30);
    check(&store, "s", "t", 10, "shared=30");
    store.commit(&batch(31, &[("shared", "31")], &[])).unwrap();
    check(&store, "s", "t", 10, "shared=31");
}

/// A store with a known history, and its directory as kill -9 would leave it.
struct Image {
    directory: TempDir,
    journal: PathBuf,
    /// Bytes of the journal in use after each batch, the first one with nothing.
    ends: Vec<usize>,
    synced: u64,
    bytes: Vec<u8>,
}

const BATCHES: u64 = 12;

fn history(seq: u64) -> Batch {
    let text = format!("{seq}");
    // One above the 8 KiB of fjall's buffer, so that a batch is more than one write.
    let big = "x".repeat(if seq == 7 { 9_000 } else { seq as usize * 3 });
    let gone = format!("key {:03}", seq.saturating_sub(3));
    batch(seq, &[("shared", &text), (&format!("key {seq:03}"), &text), ("big", &big)], &[&gone])
}

/// Returns what the store holds after `seq` batches.
fn expected(seq: u64) -> Vec<(Bytes, Bytes)> {
    let model = crate::store::memory::MemoryStore::new();
    (1..=seq).for_each(|seq| model.commit(&history(seq)).unwrap());
    model.scan(&[1], &[0xff], 1_000).unwrap()
}

fn image(synced: u64) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    let journal = journal::list(&store.journals).unwrap().pop().unwrap().1;
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let mut ends = vec![0];
    for seq in 1..=BATCHES {
        store.commit(&history(seq)).unwrap();
        ends.push(used(&std::fs::read(&journal).unwrap()));
        if seq == synced {
            store.sync().unwrap();
        }
    }
    // The page cache's view, while the store is open: what kill -9 leaves.
    let copy = tempfile::tempdir().unwrap();
    copy_tree(directory.path(), copy.path());
    drop(store);
    let journal = copy.path().join("fjall").join(journal.file_name().unwrap());
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.truncate(used(&bytes));
    // A copy of 64 MiB of zeros for each case would take long; shorter files are what a cut leaves anyway.
    std::fs::write(&journal, &bytes).unwrap();
    Image { directory: copy, journal, ends, synced, bytes }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl Image {
    /// Opens a copy of the image with `journal` as its journal's content, and asserts that what is found is a prefix of
    /// the history, and that it goes on from there. Returns its length, or the error.
    fn found(&self, journal: &[u8]) -> Result<u64, StoreError> {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(self.directory.path(), copy.path());
        let path = copy.path().join("fjall").join(self.journal.file_name().unwrap());
        std::fs::write(&path, journal).unwrap();
        let store = EmbeddedStore::open(copy.path())?;
        let found = store.last_seq().0;
        assert!(found <= BATCHES);
        assert_eq!(store.scan(&[1], &[0xff], 1_000)?, expected(found), "exactly the first {found} batches");
        store.commit(&history(found + 1))?;
        drop(store);
        let store = EmbeddedStore::open(copy.path())?;
        assert_eq!(store.last_seq(), Seq(found + 1), "and it goes on from there");
        assert_eq!(store.scan(&[1], &[0xff], 1_000)?, expected(found + 1));
        Ok(found)
    }

    /// Returns how many batches end at or before `byte`.
    fn whole_before(&self, byte: usize) -> u64 {
        self.ends.iter().rposition(|end| *end <= byte).unwrap_or(0) as u64
    }
}

/// A few hundred places, all of the first and last bytes of batches among them.
fn places(image: &Image) -> Vec<usize> {
    let near_ends = image.ends.iter().flat_map(|end| end.saturating_sub(3)..end + 16);
    let step = image.bytes.len() / 60;
    let mut places: Vec<usize> = near_ends.chain((0..image.bytes.len()).step_by(step)).collect();
    places.retain(|at| *at < image.bytes.len());
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn a_journal_cut_anywhere_gives_the_batches_before_the_cut() {
    let image = image(0);
    for at in places(&image) {
        // Each takes a while, and neighbours see the same cases.
        let padding = if at % 2 == 0 { 0 } else { 5_000 };
        let mut journal = image.bytes[..at].to_vec();
        journal.resize(at + padding, 0);
        assert_eq!(image.found(&journal).unwrap(), image.whole_before(at), "cut at {at}, then {padding} zeros");
    }
}

#[test]
fn a_cut_into_what_was_synced_is_corruption() {
    let image = image(6);
    for at in places(&image) {
        let found = image.found(&image.bytes[..at]);
        match image.whole_before(at) {
            whole if whole >= image.synced => assert_eq!(found.unwrap(), whole, "cut at {at}"),
            _ => assert!(matches!(found, Err(StoreError::Corrupt(_))), "cut at {at}: {found:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_never_gives_wrong_values_nor_loses_what_was_synced() {
    let image = image(6);
    for at in places(&image) {
        let bit = at % 8;
        let mut journal = image.bytes.clone();
        journal[at] ^= 1 << bit;
        let found = image.found(&journal);
        let start = *image.ends.iter().rev().find(|end| **end <= at).unwrap();
        // The one field that fjall's checksum leaves out and nothing else tells: a number that still lies between its
        // neighbours' changes nothing, any other is noticed. `found` has compared the values.
        let is_number = (start + 5..start + 13).contains(&at);
        match found {
            Ok(found) if at >= image.ends[image.synced as usize] => {
                assert!((image.synced..=BATCHES).contains(&found), "bit {bit} of byte {at}: {found}");
            }
            Ok(found) => assert!(is_number && found == BATCHES, "bit {bit} of byte {at} was synced: {found}"),
            Err(StoreError::Corrupt(_)) => {}
            Err(other) => panic!("bit {bit} of byte {at}: {other}"),
        }
    }
}

#[test]
fn a_tail_that_reached_the_disk_out_of_order_is_cut() {
    let image = image(6);
    // Batches 9 and on are there, 8 is not: possible after a power cut, since nothing after 6 was synced.
    for hole in [image.ends[7]..image.ends[8], image.ends[7] + 20..image.ends[7] + 30, image.ends[8] - 4..image.ends[8]]
    {
        let mut journal = image.bytes.clone();
        journal[hole].fill(0);
        assert_eq!(image.found(&journal).unwrap(), 7);
    }
    // The same in front of what was synced.
    let mut journal = image.bytes.clone();
    journal[image.ends[3]..image.ends[4]].fill(0);
    assert!(matches!(image.found(&journal), Err(StoreError::Corrupt(_))));
}

#[test]
fn without_the_durable_file_the_batches_themselves_tell() {
    let image = image(6);
    std::fs::remove_file(image.directory.path().join("DURABLE")).unwrap();
    let mut journal = image.bytes.clone();
    journal[image.ends[3] + 30] ^= 1;
    assert!(matches!(image.found(&journal), Err(StoreError::Corrupt(_))), "batch 7 says that 6 was durable");
    assert_eq!(image.found(&image.bytes[..image.ends[3]]).unwrap(), 3, "nothing is left that could tell");
    std::fs::write(image.directory.path().join("DURABLE"), b"torn").unwrap();
    assert_eq!(image.found(&image.bytes).unwrap(), BATCHES);
}

/// SplitMix64: the same history at each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn it_agrees_with_a_sorted_map_through_flushes_compactions_and_restarts() {
    let mut random = Random(2_026);
    let directory = tempfile::tempdir().unwrap();
    let model = crate::store::memory::MemoryStore::new();
    let mut store = EmbeddedStore::open(directory.path()).unwrap();
    for seq in 1..=600 {
        let mut touched = std::collections::BTreeMap::new();
        for _ in 0..random.below(8) {
            let key = Bytes::from(format!("key {:03}", random.below(200)));
            let value = vec![seq as u8; random.below(if seq % 50 == 0 { 70_000 } else { 300 }) as usize];
            touched.insert(key, (random.below(3) > 0).then_some(Bytes::from(value)));
        }
        let mut batch = Batch { seq: Seq(seq), ..Default::default() };
        for (key, value) in touched {
            match value {
                Some(value) => batch.puts.push((key, value)),
                None => batch.deletes.push(key),
            }
        }
        store.commit(&batch).unwrap();
        model.commit(&batch).unwrap();
        match random.below(40) {
            0 => store.records.rotate_memtable_and_wait().unwrap(),
            1 => store.records.major_compact().unwrap(),
            2 => assert_eq!(store.sync().unwrap(), Seq(seq)),
            3 => {
                drop(store);
                store = EmbeddedStore::open(directory.path()).unwrap();
                assert_eq!(store.last_seq(), Seq(seq));
            }
            _ => {}
        }
        let (from, to) = (random.below(200), random.below(220));
        let (from, to) = (format!("key {from:03}"), format!("key {to:03}"));
        let limit = random.below(50) as usize;
        assert_eq!(
            store.scan(from.as_bytes(), to.as_bytes(), limit).unwrap(),
            model.scan(from.as_bytes(), to.as_bytes(), limit).unwrap(),
            "after batch {seq}"
        );
        let key = format!("key {:03}", random.below(200));
        assert_eq!(store.get(key.as_bytes()).unwrap(), model.get(key.as_bytes()).unwrap());
    }
}

#[test]
fn a_flipped_bit_in_a_table_is_never_read_as_a_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    (1..=BATCHES).for_each(|seq| store.commit(&history(seq)).unwrap());
    store.records.rotate_memtable_and_wait().unwrap();
    store.sync().unwrap();
    drop(store);
    let tables = directory.path().join("fjall/keyspaces/1/tables");
    let table = std::fs::read_dir(&tables).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&table).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&table, &bad).unwrap();
        // fjall checks a table when it reads it, so a bad one is found at the start or at the first read.
        match EmbeddedStore::open(directory.path()).and_then(|store| store.scan(&[1], &[0xff], 1_000)) {
            Ok(found) => assert_eq!(found, expected(BATCHES), "byte {at}"),
            Err(StoreError::Engine(_) | StoreError::Corrupt(_)) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 0);
}

const CHILD_DIRECTORY: &str = "DFS_TEST_STORE_OF_CHILD";

/// Commits until it is killed, and says after each batch which one it was.
fn commit_until_killed(directory: &Path) {
    use std::io::Write;
    let store = EmbeddedStore::open(directory).unwrap();
    let mut out = std::io::stdout();
    for seq in store.last_seq().0 + 1.. {
        store.commit(&history(seq)).unwrap();
        if seq % 64 == 0 {
            store.sync().unwrap();
        }
        if seq % 100 == 0 {
            store.records.rotate_memtable().unwrap();
        }
        writeln!(out, "committed {seq}").unwrap();
    }
}

#[test]
fn kill_9_loses_no_committed_batch() {
    use std::io::{BufRead, BufReader};
    if let Some(directory) = std::env::var_os(CHILD_DIRECTORY) {
        return commit_until_killed(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 1..=4u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::kill_9_loses_no_committed_batch", "--nocapture"])
            .env(CHILD_DIRECTORY, directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = |line: std::io::Result<String>| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok();
        let goal = last + 97 * round;
        last = lines.by_ref().filter_map(told).find(|seq| *seq >= goal).expect("the child goes on");
        child.kill().unwrap();
        child.wait().unwrap();
        last = lines.filter_map(told).last().unwrap_or(last);
        let store = EmbeddedStore::open(directory.path()).unwrap();
        let found = store.last_seq().0;
        assert!(found == last || found == last + 1, "{last} was committed, {found} is there");
        assert_eq!(store.scan(&[1], &[0xff], 1_000).unwrap(), expected(found), "all of it");
        last = found;
    }
}
