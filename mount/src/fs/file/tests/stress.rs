//! Many threads on one file: nothing hangs, and in the end all mounts see the same.

use super::cluster::{CHUNK, Cluster, Faults};
use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn work(mount: &Mount, inode: InodeId, thread: u64, seed: u64) {
    let mut random = Random(seed * 31 + thread + 1);
    let mut handle = mount.open(inode);
    for _ in 0..250 {
        let offset = random.below(6 * CHUNK);
        let length = 1 + random.below(40_000);
        match random.below(20) {
            0 => {
                mount.truncate(inode, offset);
            }
            1 => mount.table.fsync(handle).unwrap(),
            2 => mount.table.flush(handle).unwrap(),
            3 => {
                mount.table.release(handle);
                handle = mount.open(inode);
            }
            4 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                mount.table.fallocate(handle, mode, offset, length).unwrap();
            }
            5 => mount.table.press(),
            6 => {
                mount.stat(inode);
            }
            7 => mount.table.settle(inode).unwrap(),
            8 if random.below(4) == 0 => {
                mount.truncate(inode, 0);
            }
            8..=13 => {
                mount.read(handle, offset, length as u32);
            }
            _ => mount.write(handle, offset, &pattern(length as usize, thread as u8 + 1)),
        }
    }
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
}

#[test]
fn threads_on_one_file_end_and_agree_with_other_mounts() {
    for seed in 0..12 {
        let cluster = Cluster::new(seed);
        let inode = cluster.make().inode;
        let settings = FileSettings { push_age_ms: 3, dirty_bytes_max: 0, ..settings() };
        let mount = Mount::new(&cluster, settings);
        let watch = mount.open(inode);
        if seed % 2 == 1 {
            cluster.set_faults(Faults { stale: 10, no_replica: 5, lost_answer: 10 });
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mount = &mount;
                scope.spawn(move || work(mount, inode, thread, seed));
            }
        });
        mount.table.flush(watch).unwrap();
        assert_eq!(mount.table.dirty_bytes(), 0, "seed {seed}");
        let size = mount.stat(inode).size;
        assert_eq!(size, cluster.attr(inode).size, "seed {seed}");
        let other = Mount::new(&cluster, settings);
        let there = other.open(inode);
        let mut at = 0;
        while at < size {
            let seen = mount.read(watch, at, 60_000);
            assert!(seen == other.read(there, at, 60_000), "seed {seed} at {at}");
            at += seen.len() as u64;
        }
        mount.table.release(watch);
        assert_eq!(mount.table.open_files(), 0);
    }
}

#[test]
fn mounts_that_fight_over_a_file_agree_once_it_is_reopened() {
    for seed in 0..20 {
        let cluster = Cluster::new(seed);
        let inode = cluster.make().inode;
        let settings = FileSettings { push_age_ms: 3, ..settings() };
        let mounts = [Mount::new(&cluster, settings), Mount::new(&cluster, settings)];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mount = &mounts[thread % 2];
                scope.spawn(move || work(mount, inode, thread as u64, seed));
            }
        });
        let third = Mount::new(&cluster, settings);
        let there = third.open(inode);
        let size = cluster.attr(inode).size;
        for mount in &mounts {
            assert_eq!(mount.table.open_files(), 0);
            assert_eq!(mount.table.dirty_bytes(), 0);
            let handle = mount.open(inode);
            assert_eq!(mount.stat(inode).size, size);
            let mut at = 0;
            while at < size {
                let seen = mount.read(handle, at, 60_000);
                assert!(seen == third.read(there, at, 60_000), "seed {seed} at {at}");
                at += seen.len() as u64;
            }
            mount.table.release(handle);
        }
    }
}
