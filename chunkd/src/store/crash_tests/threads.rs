//! Many threads on one disk, which is looked after meanwhile, and then killed.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dfs_proto::{ChunkId, Version};

use super::history::{content, options};
use super::random::Random;
use crate::core::unit::{UnitState, WriteStamp};
use crate::store::chunk_file::UnitRead;
use crate::store::header::Header;
use crate::store::replica_store::{OpenReplica, ReplicaStore};
use crate::store::volume::OsVolume;

const UNITS_EACH: u32 = 16;

fn put(replica: &OpenReplica, first: u32, count: u32, seq: u64) {
    let stamp = WriteStamp { version: Version(1), seq };
    let units: Vec<Vec<u8>> = (first..first + count).map(|unit| content(Some((seq, false)), unit)).collect();
    let states: Vec<UnitState> = units.iter().map(|unit| UnitState::data(stamp, crc32c::crc32c(unit))).collect();
    replica.file.put(first, &states, &Bytes::from(units.concat()), None).unwrap();
}

fn check(replica: &OpenReplica, unit: u32, seq: u64) {
    let mut buffer = vec![0; 4096];
    let read = replica.file.read(unit, 1, &mut buffer).unwrap()[0];
    let UnitRead::Good(state) = read else { panic!("unit {unit}: {read:?}") };
    assert_eq!(state.stamp.seq, seq, "unit {unit}");
    assert!(buffer == content((seq > 0).then_some((seq, false)), unit), "unit {unit}");
}

#[test]
fn threads_that_write_read_sync_and_tend_one_disk_lose_nothing_when_they_are_killed() {
    const THREADS: u32 = 6;
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        let volume = OsVolume::take(directory.path()).unwrap().unwrap();
        ReplicaStore::open_on(vec![std::sync::Arc::new(volume)], "boot", &options()).unwrap()
    };
    let mut held = vec![vec![0u64; UNITS_EACH as usize]; THREADS as usize];
    for round in 0..3u64 {
        let store = start();
        let header = |chunk| Header {
            chunk: ChunkId(chunk),
            version: Version(1),
            home: Default::default(),
            chunk_size_log2: 20,
            incomplete: false,
        };
        // Two threads to a replica.
        let open: Vec<OpenReplica> = (1..=u64::from(THREADS / 2))
            .map(|chunk| match store.open_replica(ChunkId(chunk)).unwrap() {
                Some(open) => open,
                None => store.create_replica(&header(chunk)).unwrap(),
            })
            .collect();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (store, open, is_over) = (&store, &open, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let disk = &store.disks()[0];
                    disk.flush().unwrap();
                    disk.checkpoint().unwrap();
                }
            });
            let writers: Vec<_> = (0..THREADS)
                .zip(&mut held)
                .map(|(thread, held)| {
                    scope.spawn(move || {
                        let mut random = Random(round * 100 + u64::from(thread));
                        let base = thread % 2 * UNITS_EACH;
                        for step in 1..=300u64 {
                            let seq = round * 1_000 + step;
                            let replica = &open[thread as usize / 2];
                            let first = random.below(u64::from(UNITS_EACH)) as u32;
                            let count = (random.below(12) as u32 + 1).min(UNITS_EACH - first);
                            match random.below(10) {
                                0..=5 => {
                                    put(replica, base + first, count, seq);
                                    held[first as usize..(first + count) as usize].fill(seq);
                                }
                                6 => replica.sync().unwrap(),
                                7 => replica.file.set_header(&replica.file.header()).unwrap(),
                                _ => check(replica, base + first, held[first as usize]),
                            }
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            is_over.store(true, Ordering::Relaxed);
        });
        drop((open, store));
        let store = start();
        for (thread, held) in (0..THREADS).zip(&held) {
            let replica = store.open_replica(ChunkId(u64::from(thread / 2) + 1)).unwrap().unwrap();
            for (unit, seq) in (thread % 2 * UNITS_EACH..).zip(held) {
                check(&replica, unit, *seq);
            }
        }
    }
}
