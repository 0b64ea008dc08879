//! The data path over a cluster in memory.

mod cluster;
mod durability;
mod errors;
mod locations;
mod model;
mod stress;

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::env::SystemClock;
use dfs_proto::{FsError, InodeId};

use self::cluster::{CHUNK, Cluster, Faults};
use super::{FileSettings, FileTable, HandleId, OpenOptions, Whence};
use crate::core::Policy;
use crate::fs::Attr;
use crate::metrics::Metrics;

/// One mount of a cluster.
struct Mount {
    cluster: Arc<Cluster>,
    table: Arc<FileTable>,
    metrics: Arc<Metrics>,
}

fn settings() -> FileSettings {
    FileSettings { policy: Policy::Soft { ms: 20_000 }, push_age_ms: 600_000, ..FileSettings::default() }
}

impl Mount {
    fn new(cluster: &Arc<Cluster>, settings: FileSettings) -> Self {
        let backend: Arc<Cluster> = Arc::clone(cluster);
        let metrics = Arc::new(Metrics::new());
        let table = FileTable::new(backend, Arc::new(SystemClock), settings, Arc::clone(&metrics));
        Self { cluster: Arc::clone(cluster), table, metrics }
    }

    /// The master ends the session; the mount opens another one.
    fn lose_session(&self) {
        self.table.session_lost();
        self.cluster.begin_session();
    }

    fn open(&self, inode: InodeId) -> HandleId {
        self.open_keeping(inode).0
    }

    fn open_keeping(&self, inode: InodeId) -> (HandleId, bool) {
        let (attr, content) = self.cluster.opened(inode);
        self.table.open(&attr, content, OpenOptions::default())
    }

    fn open_append(&self, inode: InodeId) -> HandleId {
        let (attr, content) = self.cluster.opened(inode);
        self.table.open(&attr, content, OpenOptions { append: true, direct: false }).0
    }

    fn write(&self, handle: HandleId, offset: u64, data: &[u8]) {
        assert_eq!(self.table.write(handle, offset, data, false), Ok(data.len() as u32));
    }

    fn read(&self, handle: HandleId, offset: u64, size: u32) -> Bytes {
        self.table.read(handle, offset, size).expect("the cluster answers")
    }

    fn truncate(&self, inode: InodeId, size: u64) -> Attr {
        let attr = self.cluster.attr(inode);
        self.table.truncate(&attr, size, || self.cluster.set_size(inode, size)).expect("the cluster answers")
    }

    fn stat(&self, inode: InodeId) -> Attr {
        let mut attr = self.cluster.attr(inode);
        self.table.note_attr(&attr);
        self.table.overlay(&mut attr);
        attr
    }
}

fn mount() -> (Mount, InodeId, HandleId) {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, settings());
    let handle = mount.open(inode);
    (mount, inode, handle)
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed).max(1)).collect()
}

#[test]
fn a_small_file_is_one_commit_and_stays_inline() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"hello");
    assert_eq!(mount.read(handle, 0, 100), &b"hello"[..]);
    assert_eq!(mount.stat(inode).size, 5);
    assert_eq!(mount.cluster.attr(inode).size, 0);
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    assert_eq!(mount.cluster.counts(), (0, 0, 1, 0));
    assert_eq!(mount.cluster.opened(inode).1.unwrap(), &b"hello"[..]);
}

#[test]
fn a_file_that_outgrows_the_inode_moves_into_chunks() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(16_384, 1));
    mount.table.flush(handle).unwrap();
    assert!(mount.cluster.attr(inode).is_inline);
    mount.write(handle, 16_384, b"!");
    assert_eq!(mount.read(handle, 16_383, 10).len(), 2);
    mount.table.flush(handle).unwrap();
    let attr = mount.cluster.attr(inode);
    assert!(!attr.is_inline);
    assert_eq!((attr.size, attr.chunks), (16_385, 1));
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    assert_eq!(other.read(there, 0, 16_384), &pattern(16_384, 1)[..]);
    assert_eq!(other.read(there, 16_384, 16_384), &b"!"[..]);
}

#[test]
fn a_reopen_after_own_writes_keeps_the_kernel_s_pages() {
    let (mount, inode, handle) = mount();
    for round in 0..3 {
        mount.write(handle, round * 10, b"0123456789");
        mount.table.flush(handle).unwrap();
    }
    mount.table.release(handle);
    let (handle, keeps) = mount.open_keeping(inode);
    assert!(keeps);
    mount.write(handle, 0, &pattern(100_000, 3));
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    assert!(mount.open_keeping(inode).1);
}

#[test]
fn a_reopen_after_another_mount_s_write_drops_them_and_sees_it() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.flush(handle).unwrap();
    assert_eq!(mount.read(handle, 0, 4).len(), 4);

    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    other.write(there, 0, b"other");
    other.table.flush(there).unwrap();

    let (again, keeps) = mount.open_keeping(inode);
    assert!(!keeps);
    assert_eq!(mount.read(again, 0, 5), &b"other"[..]);
}

#[test]
fn inline_writes_of_two_mounts_are_merged() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"aaaaaaaaaa");
    mount.table.flush(handle).unwrap();
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    other.write(there, 2, b"BB");
    mount.write(handle, 6, b"CC");
    other.table.flush(there).unwrap();
    mount.table.flush(handle).unwrap();
    assert_eq!(mount.cluster.opened(inode).1.unwrap(), &b"aaBBaaCCaa"[..]);
}

#[test]
fn inline_content_that_changed_while_it_was_left_is_merged() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"aaaaaaaaaa");
    mount.table.flush(handle).unwrap();
    mount.write(handle, 20_000, b"far");
    mount.write(handle, 4, b"MM");
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    other.write(there, 0, b"OTHER");
    other.table.flush(there).unwrap();
    mount.table.flush(handle).unwrap();
    assert!(!mount.cluster.attr(inode).is_inline);
    let third = Mount::new(&mount.cluster, settings());
    assert_eq!(third.read(third.open(inode), 0, 12), &b"OTHEMMaaaa\0\0"[..]);
}

#[test]
fn a_file_that_two_mounts_move_into_chunks_has_both_writes() {
    let (mount, inode, handle) = mount();
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    mount.write(handle, 20_000, b"one");
    other.write(there, 30_000, b"two");
    mount.table.flush(handle).unwrap();
    other.table.flush(there).unwrap();
    let third = Mount::new(&mount.cluster, settings());
    let handle = third.open(inode);
    assert_eq!(third.read(handle, 20_000, 3), &b"one"[..]);
    assert_eq!(third.read(handle, 30_000, 3), &b"two"[..]);
}

#[test]
fn appends_of_two_handles_never_overlap() {
    let (mount, inode, _) = mount();
    let handles = [mount.open_append(inode), mount.open_append(inode)];
    std::thread::scope(|scope| {
        for (at, handle) in handles.into_iter().enumerate() {
            let mount = &mount;
            scope.spawn(move || {
                for _ in 0..2_000 {
                    mount.write(handle, 0, &[b'a' + at as u8; 17]);
                }
                mount.table.flush(handle).unwrap();
            });
        }
    });
    assert_eq!(mount.cluster.attr(inode).size, 2 * 2_000 * 17);
    let handle = mount.open(inode);
    let all = mount.read(handle, 0, 1 << 20);
    assert!(all.chunks(17).all(|record| record.iter().all(|byte| *byte == record[0])));
    assert_eq!(all.iter().filter(|byte| **byte == b'a').count(), 2_000 * 17);
}

#[test]
fn mapped_pages_go_to_their_offset_whatever_the_handle() {
    let (mount, inode, _) = mount();
    let handle = mount.open_append(inode);
    mount.write(handle, 0, b"0123456789");
    assert_eq!(mount.table.write_back(handle, 2, b"mm"), Ok(2));
    assert_eq!(mount.read(handle, 0, 20), &b"01mm456789"[..]);
}

#[test]
fn what_was_pushed_and_cut_off_does_not_come_back() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(200_000, 7));
    mount.table.fsync(handle).unwrap();
    mount.write(handle, 200_000, &pattern(30_000, 7));
    // Full slots are pushed at once; the size that covers them is not committed.
    assert_eq!(mount.truncate(inode, 100_000).size, 100_000);
    assert_eq!(mount.truncate(inode, 300_000).size, 300_000);
    assert_eq!(mount.read(handle, 99_999, 1), &pattern(200_000, 7)[99_999..100_000]);
    for offset in (100_000..300_000).step_by(50_000) {
        assert!(mount.read(handle, offset, 50_000).iter().all(|byte| *byte == 0), "{offset}");
    }
}

#[test]
fn a_truncate_of_a_closed_inline_file_past_what_may_be_inline_moves_it() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"abc");
    mount.table.release(handle);
    assert_eq!(mount.truncate(inode, 1 << 40).size, 1 << 40);
    let handle = mount.open(inode);
    assert_eq!(mount.read(handle, 0, 5), &b"abc\0\0"[..]);
    assert_eq!(mount.read(handle, (1 << 40) - 3, 100), &[0; 3][..]);
}

#[test]
fn a_failed_push_is_reported_once_by_every_handle_open_at_the_time() {
    let (mount, inode, first) = mount();
    let second = mount.open(inode);
    mount.write(first, 0, &pattern(100_000, 1));
    mount.cluster.refuse(Some(FsError::NoSpace));
    assert_eq!(mount.table.fsync(first), Err(FsError::NoSpace));
    mount.cluster.refuse(None);
    let third = mount.open(inode);
    assert_eq!(mount.table.fsync(third), Ok(()));
    assert_eq!(mount.table.flush(second), Err(FsError::NoSpace));
    assert_eq!(mount.table.flush(second), Ok(()));
    assert_eq!(mount.table.fsync(first), Ok(()));
    mount.write(first, 0, b"goes on");
    mount.table.fsync(first).unwrap();
}

#[test]
fn silence_ends_at_the_deadline_and_is_an_error() {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, FileSettings { policy: Policy::Soft { ms: 300 }, ..settings() });
    let handle = mount.open(inode);
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.flush(handle).unwrap();
    cluster.be_silent(true);
    mount.write(handle, 0, &pattern(100_000, 2));
    assert!(matches!(mount.table.flush(handle), Err(FsError::NoReplica(_))));
    assert!(matches!(mount.table.read(handle, 0, 10), Err(FsError::NoReplica(_))));
    assert_eq!(mount.table.flush(handle), Ok(()));
    cluster.be_silent(false);
    assert_eq!(mount.read(handle, 0, 10), &pattern(100_000, 1)[..10]);
}

#[test]
fn writers_wait_for_room_and_get_it() {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, FileSettings { dirty_bytes_max: 0, ..settings() });
    let handle = mount.open(inode);
    // Small scattered writes: none of them fills a slot, so only pressure makes them go.
    for at in 0..2_000u64 {
        mount.write(handle, at * 20_000, &pattern(5_000, at as u8));
        assert!(mount.table.dirty_bytes() <= 4 << 20);
    }
    mount.table.flush(handle).unwrap();
    assert_eq!(mount.table.dirty_bytes(), 0);
    for at in (0..2_000u64).step_by(97) {
        assert_eq!(mount.read(handle, at * 20_000, 5_000), &pattern(5_000, at as u8)[..]);
    }
}

#[test]
fn a_writer_that_gets_no_room_fails_in_time() {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let settings = FileSettings { dirty_bytes_max: 0, policy: Policy::Soft { ms: 400 }, ..settings() };
    let mount = Mount::new(&cluster, settings);
    let handle = mount.open(inode);
    cluster.be_silent(true);
    let mut failures = 0;
    for at in 0..6u64 {
        failures += u32::from(mount.table.write(handle, at << 20, &pattern(1 << 20, 1), false).is_err());
    }
    // The first pieces give up after 400 ms too, and make room: at least one writer had to wait, none for ever.
    assert!(failures > 0 || mount.table.flush(handle).is_err());
    drop(mount);
}

#[test]
fn what_is_old_enough_is_pushed_and_committed_without_being_asked() {
    let cluster = Cluster::new(1);
    let (small, large) = (cluster.make().inode, cluster.make().inode);
    let mount = Mount::new(&cluster, FileSettings { push_age_ms: 50, ..settings() });
    let (in_small, in_large) = (mount.open(small), mount.open(large));
    mount.write(in_small, 0, b"small");
    mount.write(in_large, 0, &pattern(100_000, 1));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while cluster.attr(small).size != 5 || cluster.attr(large).size != 100_000 {
        assert!(std::time::Instant::now() < deadline, "{:?}", cluster.attr(large));
        std::thread::yield_now();
    }
}

#[test]
fn a_random_read_is_one_round_trip() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(16 * CHUNK as usize, 1));
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    let other = Mount::new(&mount.cluster, settings());
    let handle = other.open(inode);
    let before = mount.cluster.counts();
    for at in [9u64, 3, 14, 0, 7] {
        assert_eq!(other.read(handle, at * CHUNK + 4096, 4096).len(), 4096);
    }
    let after = mount.cluster.counts();
    assert_eq!(after.0 - before.0, 5);
    assert_eq!(after.3 - before.3, 1, "one look-up for 16 chunks");
}

#[test]
fn a_sequential_reader_has_four_pieces_in_flight() {
    let (mount, inode, handle) = mount();
    let content = pattern(64 * CHUNK as usize, 1);
    mount.write(handle, 0, &content);
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    let other = Mount::new(&mount.cluster, settings());
    let handle = other.open(inode);
    other.read(handle, 0, CHUNK as u32);
    mount.cluster.hold_reads_until(4);
    let mut at = CHUNK;
    while at < content.len() as u64 {
        let bytes = other.read(handle, at, CHUNK as u32);
        assert_eq!(bytes, &content[at as usize..at as usize + bytes.len()]);
        at += bytes.len() as u64;
    }
    assert!(mount.cluster.reads_at_once() >= 4);
    assert_eq!(mount.cluster.counts().0, 64, "each piece once");
}

#[test]
fn what_was_read_ahead_is_not_shown_after_a_write_below_it() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(8 * CHUNK as usize, 1));
    mount.table.flush(handle).unwrap();
    let reader = mount.open(inode);
    mount.read(reader, 0, CHUNK as u32);
    mount.read(reader, CHUNK, CHUNK as u32);
    mount.write(handle, 3 * CHUNK, b"new");
    mount.table.fsync(handle).unwrap();
    assert_eq!(mount.read(reader, 2 * CHUNK, CHUNK as u32).len(), CHUNK as usize);
    assert_eq!(mount.read(reader, 3 * CHUNK, 3), &b"new"[..]);
}

#[test]
fn holes_are_found_and_made() {
    let (mount, _, handle) = mount();
    mount.write(handle, 0, &pattern(2 * CHUNK as usize, 1));
    mount.write(handle, 5 * CHUNK, &pattern(100, 2));
    let seek = |offset, whence| mount.table.lseek(handle, offset, whence);
    assert_eq!(seek(0, Whence::Hole), Ok(2 * CHUNK));
    assert_eq!(seek(2 * CHUNK, Whence::Data), Ok(5 * CHUNK));
    assert_eq!(seek(5 * CHUNK, Whence::Hole), Ok(5 * CHUNK + 100));
    assert_eq!(seek(5 * CHUNK + 100, Whence::Data), Err(FsError::PastEnd));

    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    mount.table.fallocate(handle, punch, 4096, CHUNK + 4096).unwrap();
    assert_eq!(seek(0, Whence::Hole), Ok(4096));
    assert_eq!(seek(4096, Whence::Data), Ok(CHUNK + 8192));
    assert!(mount.read(handle, 4096, CHUNK as u32 + 4096).iter().all(|byte| *byte == 0));
    assert_eq!(mount.read(handle, 0, 4096), &pattern(4096, 1)[..]);
    assert_eq!(mount.table.fallocate(handle, libc::FALLOC_FL_COLLAPSE_RANGE, 0, CHUNK), Err(FsError::NotSupported));
}

#[test]
fn allocation_extends_without_content() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"abc");
    mount.table.fallocate(handle, 0, 0, 10).unwrap();
    assert_eq!(mount.cluster.opened(inode).1.unwrap(), &b"abc\0\0\0\0\0\0\0"[..]);
    mount.table.fallocate(handle, libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 30).unwrap();
    assert_eq!(mount.stat(inode).size, 10);
    mount.table.fallocate(handle, libc::FALLOC_FL_ZERO_RANGE, 1, 1 << 20).unwrap();
    assert_eq!(mount.cluster.attr(inode).size, (1 << 20) + 1);
    assert_eq!(mount.read(handle, 0, 4), &b"a\0\0\0"[..]);
}

#[test]
fn ranges_are_copied_but_not_onto_themselves() {
    let (mount, _, handle) = mount();
    let content = pattern(3 * CHUNK as usize, 5);
    mount.write(handle, 0, &content);
    let target = mount.open(mount.cluster.make().inode);
    assert_eq!(mount.table.copy_range((handle, 100), (target, 7), 1 << 30), Ok(3 * CHUNK - 100));
    assert_eq!(mount.read(target, 7, 1 << 20), &content[100..]);
    assert_eq!(mount.table.copy_range((handle, 0), (handle, 10), 20).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(mount.table.copy_range((handle, 0), (handle, 20), 20), Ok(20));
}

/// Found by the model: the loop read on into what it had just appended.
#[test]
fn a_copy_does_not_read_what_it_appends() {
    let (mount, inode, handle) = mount();
    mount.truncate(inode, 16_606);
    assert_eq!(mount.table.copy_range((handle, 0), (handle, CHUNK), CHUNK), Ok(16_606));
    assert_eq!(mount.stat(inode).size, CHUNK + 16_606);
}

#[test]
fn a_lost_session_fails_what_was_buffered() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"kept");
    mount.table.flush(handle).unwrap();
    mount.write(handle, 0, b"lost");
    mount.table.session_lost();
    assert_eq!(mount.read(handle, 0, 4), &b"kept"[..]);
    assert_eq!(mount.table.fsync(handle), Err(FsError::SessionLost));
    assert_eq!(mount.table.fsync(handle), Ok(()));
    assert_eq!(mount.table.dirty_bytes(), 0);
    assert_eq!(mount.cluster.attr(inode).size, 4);
}

#[test]
fn faults_that_pass_are_not_seen() {
    let (mount, inode, handle) = mount();
    mount.cluster.set_faults(Faults { stale: 30, no_replica: 30, lost_answer: 30 });
    let content = pattern(40 * CHUNK as usize, 1);
    for (at, piece) in content.chunks(50_000).enumerate() {
        mount.write(handle, at as u64 * 50_000, piece);
    }
    mount.table.fsync(handle).unwrap();
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    let mut seen = Vec::new();
    while seen.len() < content.len() {
        seen.extend_from_slice(&other.read(there, seen.len() as u64, 100_000));
    }
    assert!(seen == content);
}

#[test]
fn set_id_bits_go_with_an_unprivileged_write() {
    let (mount, inode, handle) = mount();
    let mut attr = mount.cluster.attr(inode);
    attr.mode = 0o6775;
    assert_eq!(mount.table.write(handle, 0, b"x", true), Ok(1));
    mount.table.overlay(&mut attr);
    assert_eq!((attr.mode, attr.size), (0o775, 1));
}

#[test]
fn an_overtaken_answer_does_not_show_an_old_size() {
    let (mount, inode, handle) = mount();
    let mut old = mount.cluster.attr(inode);
    mount.write(handle, 0, b"abc");
    mount.table.flush(handle).unwrap();
    mount.table.overlay(&mut old);
    assert_eq!(old.size, 3);
}

#[test]
fn another_mount_s_truncate_to_nothing_below_buffered_writes() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.flush(handle).unwrap();
    mount.write(handle, 70_000, b"mine");
    let other = Mount::new(&mount.cluster, settings());
    other.truncate(inode, 0);
    mount.table.flush(handle).unwrap();
    let third = Mount::new(&mount.cluster, settings());
    let there = third.open(inode);
    assert_eq!(third.read(there, 70_000, 10), &b"mine"[..]);
    assert!(third.read(there, 0, 70_000).iter().all(|byte| *byte == 0));
}

#[test]
fn a_truncate_notices_that_another_mount_made_the_file_inline() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.flush(handle).unwrap();
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    other.truncate(inode, 0);
    other.write(there, 0, b"inline");
    other.table.flush(there).unwrap();
    assert_eq!(mount.truncate(inode, 50_000).size, 50_000);
    assert_eq!(mount.read(handle, 0, 8), &b"inline\0\0"[..]);
}

/// Why a mount never zeroes the gap when it makes a file longer (docs/decisions/0006).
#[test]
fn what_one_mount_has_pushed_and_not_committed_survives_that_others_make_the_file_longer() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(20_000, 1));
    mount.table.flush(handle).unwrap();
    let writes = mount.cluster.counts().1;
    mount.write(handle, 20_000, &pattern(10_000, 2));
    mount.table.press();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while mount.cluster.counts().1 == writes {
        assert!(std::time::Instant::now() < deadline, "it is never pushed");
        std::thread::yield_now();
    }
    assert_eq!(mount.cluster.attr(inode).size, 20_000);
    let other = Mount::new(&mount.cluster, settings());
    let there = other.open(inode);
    other.write(there, 40_000, b"further out");
    other.table.flush(there).unwrap();
    other.truncate(inode, 50_000);
    mount.table.flush(handle).unwrap();
    let third = Mount::new(&mount.cluster, settings());
    let seen = third.read(third.open(inode), 0, 100_000);
    assert_eq!(seen[20_000..30_000], pattern(10_000, 2));
    assert_eq!((&seen[40_000..40_011], seen.len()), (&b"further out"[..], 50_000));
}

#[test]
fn an_extension_of_an_empty_file_is_one_call() {
    let (mount, inode, handle) = mount();
    assert_eq!(mount.truncate(inode, 1 << 30).size, 1 << 30);
    assert_eq!(mount.cluster.counts().2, 0, "no commit");
    mount.write(handle, 1 << 29, b"middle");
    mount.table.fsync(handle).unwrap();
    let attr = mount.cluster.attr(inode);
    assert_eq!((attr.size, attr.chunks), (1 << 30, 1));
}
