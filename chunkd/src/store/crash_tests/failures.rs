//! Disks that fail while they are used.

use bytes::Bytes;
use dfs_proto::{ChunkId, Version};

use super::history::{content, open};
use super::memory::{Image, MemoryVolume};
use super::random::Random;
use crate::core::message::WriteKey;
use crate::core::unit::{UnitState, WriteStamp};
use crate::store::StoreError;
use crate::store::chunk_file::UnitRead;
use crate::store::data_dir::replica_path;
use crate::store::header::Header;
use crate::store::layout::entry_offset;
use crate::store::replica_store::{OpenReplica, ReplicaStore};

fn header(chunk: u64) -> Header {
    Header {
        chunk: ChunkId(chunk),
        version: Version(1),
        home: Default::default(),
        chunk_size_log2: 17,
        incomplete: false,
    }
}

fn put(replica: &OpenReplica, first: u32, count: u32, seq: u64) -> Result<(), StoreError> {
    let stamp = WriteStamp { version: Version(1), seq };
    let units = (first..first + count).map(|unit| content(Some((seq, false)), unit));
    let states = units.clone().map(|unit| UnitState::data(stamp, crc32c::crc32c(&unit))).collect::<Vec<_>>();
    let key = WriteKey { client: 1, number: seq, part: 0, stamp };
    replica.file.put(first, &states, &Bytes::from(units.flatten().collect::<Vec<_>>()), Some(key))
}

fn holds(replica: &OpenReplica, unit: u32, seq: u64) -> bool {
    let mut buffer = vec![0; 4096];
    let read = replica.file.read(unit, 1, &mut buffer).unwrap()[0];
    matches!(read, UnitRead::Good(_)) && buffer == content(Some((seq, false)), unit)
}

fn start() -> (MemoryVolume, ReplicaStore, OpenReplica) {
    let volume = MemoryVolume::new(Image::default(), true);
    let store = open(&volume, "boot").unwrap();
    let replica = store.create_replica(&header(1)).unwrap();
    (volume, store, replica)
}

#[test]
fn a_sync_that_failed_fences_the_disk_for_good_and_the_next_start_is_suspect() {
    // The journal's sync, and that of a chunk file with first writes.
    for count in [1, 16] {
        let (volume, store, replica) = start();
        put(&replica, 0, count, 1).unwrap();
        volume.fail_syncs(1);
        assert!(matches!(replica.sync(), Err(StoreError::Write(_))));
        for _ in 0..3 {
            assert!(matches!(replica.sync(), Err(StoreError::Fenced(_))));
            assert!(matches!(put(&replica, 0, 1, 2), Err(StoreError::Fenced(_))));
            assert!(matches!(store.disks()[0].flush(), Err(StoreError::Fenced(_))));
            assert!(matches!(store.disks()[0].checkpoint(), Err(StoreError::Fenced(_))));
            assert!(replica.file.read(0, 1, &mut [0; 4096]).is_err(), "nothing on it is read either");
        }
        assert!(matches!(store.create_replica(&header(2)), Err(StoreError::Fenced(_))));
        let (held, _) = store.inventory(None, 10);
        assert_eq!(held, []);
        assert_eq!(store.stranded()[0].0, ChunkId(1));
        store.clear_suspect();
        drop((replica, store));
        assert!(open(&volume, "boot").unwrap().is_suspect());
        let told = open(&volume, "boot").unwrap();
        told.clear_suspect();
        drop(told);
        assert!(!open(&volume, "boot").unwrap().is_suspect());
    }
}

#[test]
fn on_a_full_disk_overwrites_syncs_versions_and_deletions_go_on_and_first_writes_are_refused_whole() {
    let (volume, store, replica) = start();
    let other = store.create_replica(&header(2)).unwrap();
    put(&other, 0, 16, 1).unwrap();
    put(&replica, 0, 16, 2).unwrap();
    store.disks()[0].checkpoint().unwrap();
    volume.set_full(true);
    // Many times what the journal holds.
    for seq in 10..200 {
        put(&replica, seq as u32 % 12, 4, seq).unwrap();
        assert!(matches!(put(&replica, 20, 10, seq), Err(StoreError::NoSpace)));
        assert!(matches!(put(&replica, 30, 1, seq), Err(StoreError::NoSpace)));
        replica.sync().unwrap();
        let version = Version(seq);
        replica.file.set_header(&Header { version, ..replica.file.header() }).unwrap();
    }
    assert!(!store.disks()[0].has_failed());
    assert!(store.disks()[0].journal_figures().checkpoints > 3);
    store.delete(ChunkId(2)).unwrap();
    drop((replica, other, store));
    let store = open(&volume, "boot").unwrap();
    assert!(!store.disks()[0].has_failed(), "a start needs no room");
    let replica = store.open_replica(ChunkId(1)).unwrap().unwrap();
    assert!(holds(&replica, 10, 199 - 1) || holds(&replica, 10, 199));
    assert_eq!(replica.header.version, Version(199));
    assert!((20..32).all(|unit| replica.file.slots(unit, 1)[0].state().is_none()));
    assert!(store.open_replica(ChunkId(2)).unwrap().is_none());
    volume.set_full(false);
    put(&replica, 20, 10, 300).unwrap();
}

#[test]
fn a_replica_that_was_closed_with_writes_in_the_journal_is_opened_with_them() {
    let (_, store, replica) = start();
    put(&replica, 0, 1, 1).unwrap();
    drop(replica);
    let again = store.open_replica(ChunkId(1)).unwrap().unwrap();
    assert!(holds(&again, 0, 1));
    store.disks()[0].checkpoint().unwrap();
    assert_eq!(store.disks()[0].journal_figures().dirty_replicas, 0);
    drop(again);
    assert!(holds(&store.open_replica(ChunkId(1)).unwrap().unwrap(), 0, 1));
}

#[test]
fn nothing_is_recorded_of_a_replica_that_was_deleted_while_open() {
    let (volume, store, replica) = start();
    put(&replica, 0, 1, 1).unwrap();
    store.delete(ChunkId(1)).unwrap();
    assert!(matches!(put(&replica, 0, 1, 2), Err(StoreError::Deleted)));
    let made = store.create_replica(&header(1)).unwrap();
    assert!(matches!(put(&replica, 0, 1, 3), Err(StoreError::Deleted)));
    put(&made, 1, 1, 4).unwrap();
    drop((replica, made, store));
    let store = open(&volume, "boot").unwrap();
    let replica = store.open_replica(ChunkId(1)).unwrap().unwrap();
    assert!(holds(&replica, 1, 4));
    assert_eq!(replica.file.table().len(), 1);
}

#[test]
fn a_replica_that_was_discarded_is_made_again_under_a_later_version_only() {
    let (_volume, store, replica) = start();
    drop(replica);
    store.discard(ChunkId(1), Version(5)).unwrap();
    assert!(store.was_deleted(ChunkId(1), Version(4)), "a grant from before would find a replica without data");
    assert!(!store.was_deleted(ChunkId(1), Version(5)));
    store.discard(ChunkId(1), Version(3)).unwrap();
    assert!(store.was_deleted(ChunkId(1), Version(4)), "a late copy of an earlier order");
    store.delete(ChunkId(1)).unwrap();
    store.discard(ChunkId(1), Version(9)).unwrap();
    assert!(store.was_deleted(ChunkId(1), Version(100)), "a chunk that is gone does not come back");
}

#[test]
fn callers_share_syncs_and_a_sync_without_changes_is_free() {
    let (volume, store, replica) = start();
    put(&replica, 0, 1, 1).unwrap();
    replica.sync().unwrap();
    let syncs = || store.disks()[0].journal_figures().syncs;
    let before = (syncs(), volume.log_length());
    assert!(!replica.file.is_unsynced());
    replica.sync().unwrap();
    assert_eq!((syncs(), volume.log_length()), before);
    let other = store.create_replica(&header(2)).unwrap();
    put(&replica, 0, 1, 2).unwrap();
    put(&other, 0, 1, 3).unwrap();
    replica.sync().unwrap();
    other.sync().unwrap();
    assert_eq!(syncs(), before.0 + 1);
}

#[test]
fn a_unit_that_is_lost_elsewhere_is_damaged_here_too_also_after_a_crash_and_a_checkpoint() {
    for is_checkpointed in [false, true] {
        let (volume, store, replica) = start();
        put(&replica, 0, 2, 1).unwrap();
        let stamp = WriteStamp { version: Version(1), seq: 2 };
        let lost = UnitState::lost(stamp, 77);
        replica.file.put(1, &[lost, lost], &Bytes::new(), None).unwrap();
        put(&replica, 8, 1, 3).unwrap();
        if is_checkpointed {
            store.disks()[0].checkpoint().unwrap();
        }
        let check = |replica: &OpenReplica| {
            let mut buffer = vec![0; 3 * 4096];
            let read = replica.file.read(0, 3, &mut buffer).unwrap();
            assert!(matches!(read[..], [UnitRead::Good(_), UnitRead::Bad, UnitRead::Bad]), "{read:?}");
            let entry = UnitState::data(stamp, 77);
            assert_eq!(replica.file.entries(1, 2), [(1, entry), (2, entry)]);
        };
        check(&replica);
        assert_eq!(replica.file.table().len(), 2);
        drop((replica, store));
        let store = open(&volume, "boot").unwrap();
        let replica = store.open_replica(ChunkId(1)).unwrap().unwrap();
        check(&replica);
        put(&replica, 1, 2, 4).unwrap();
        assert!(holds(&replica, 1, 4) && holds(&replica, 2, 4));
    }
}

#[test]
fn a_damaged_entry_where_nothing_was_ever_written_counts_for_nothing() {
    let (volume, store, replica) = start();
    put(&replica, 0, 2, 1).unwrap();
    store.disks()[0].checkpoint().unwrap();
    drop((replica, store));
    let (_, path) = replica_path(ChunkId(1));
    volume.change_image(|image| {
        let number = image.names[&path];
        for unit in [1, 9] {
            image.files.get_mut(&number).unwrap().flip(entry_offset(unit) + 8, 3);
        }
    });
    let store = open(&volume, "boot").unwrap();
    let replica = store.open_replica(ChunkId(1)).unwrap().unwrap();
    let mut buffer = vec![0; 16 * 4096];
    let read = replica.file.read(0, 16, &mut buffer).unwrap();
    assert_eq!(read[1], UnitRead::Bad);
    assert_eq!(read[9], UnitRead::Good(UnitState::NEVER));
    assert!(holds(&replica, 0, 1));
    assert_eq!(replica.file.extents(0, 16), [(0, 2)]);
    put(&replica, 9, 1, 2).unwrap();
    assert!(holds(&replica, 9, 2));
}

#[test]
fn replicas_that_hold_the_same_zero_the_same() {
    let (_volume, _store, replica) = start();
    put(&replica, 0, 1, 1).unwrap();
    // Made as if it had never been written, as the other one is.
    replica.file.put(0, &[UnitState::NEVER], &Bytes::new(), None).unwrap();
    assert_eq!(replica.file.table(), []);
    replica.file.zero(0, 4, WriteStamp { version: Version(1), seq: 2 }, None).unwrap();
    assert_eq!(replica.file.table(), []);
}

#[test]
fn a_replica_that_was_made_by_a_killed_process_is_there_after_the_power_is_lost() {
    let volume = MemoryVolume::new(Image::default(), true);
    let store = open(&volume, "boot").unwrap();
    let before = volume.log_length();
    drop(store.create_replica(&header(1)).unwrap());
    let made = volume.take_log();
    let mut found = 0;
    for killed in before..=made.len() {
        let volume = MemoryVolume::new(Image::after(&Image::default(), &made[..killed]), true);
        let store = open(&volume, "boot").unwrap();
        let Some(replica) = store.open_replica(ChunkId(1)).unwrap() else { continue };
        put(&replica, 0, 1, 1).unwrap();
        replica.sync().unwrap();
        store.disks()[0].checkpoint().unwrap();
        let events = [&made[..killed], &volume.take_log()].concat();
        for seed in 0..50 {
            let image = Image::after_power_loss(&Image::default(), &events, &mut Random(seed));
            let store = open(&MemoryVolume::new(image, false), "another boot").unwrap();
            let replica = store.open_replica(ChunkId(1)).unwrap();
            assert!(replica.is_some_and(|replica| holds(&replica, 0, 1)), "killed after {killed}, seed {seed}");
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn a_replica_that_cannot_be_read_is_not_made_anew_as_a_whole_one() {
    let (volume, store, replica) = start();
    put(&replica, 0, 1, 1).unwrap();
    replica.sync().unwrap();
    store.disks()[0].checkpoint().unwrap();
    drop((replica, store));
    let (_, path) = replica_path(ChunkId(1));
    volume.change_image(|image| {
        let id = image.names[&path];
        image.files.get_mut(&id).unwrap().flip(20, 1);
    });
    let store = open(&volume, "boot").unwrap();
    assert!(store.open_replica(ChunkId(1)).unwrap().is_none(), "its header is damaged");
    // As a grant says that is older than the first write.
    assert!(store.create_replica(&header(1)).unwrap().header.incomplete);
}
