//! Who is told of what went wrong, and what becomes of the bytes.

use std::time::{Duration, Instant};

use super::*;

fn corrupt() -> FsError {
    FsError::Corrupt("unit 3".into())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A mount that pushes soon by itself, and a file in chunks that is open and synced.
fn eager_mount(policy: Policy) -> (Mount, InodeId, HandleId) {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, FileSettings { push_age_ms: 20, policy, ..settings() });
    let handle = mount.open(inode);
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.fsync(handle).unwrap();
    (mount, inode, handle)
}

#[test]
fn a_push_in_the_background_that_fails_is_told_to_all_who_had_it_open_and_to_nobody_else() {
    let (mount, inode, writer) = eager_mount(Policy::Soft { ms: 20_000 });
    let (closes, syncs) = (mount.open(inode), mount.open(inode));
    mount.cluster.refuse(Some(FsError::NoSpace));
    mount.write(writer, 0, &pattern(100_000, 2));
    wait_until("it is given up", || mount.table.dirty_bytes() == 0);
    mount.cluster.refuse(None);
    let late = mount.open(inode);
    assert_eq!(mount.table.flush(writer), Err(FsError::NoSpace));
    mount.table.release(writer);
    assert_eq!(mount.table.flush(late), Ok(()));
    assert_eq!(mount.table.fsync(late), Ok(()));
    assert_eq!(mount.table.flush(closes), Err(FsError::NoSpace), "though another handle was told and is gone");
    assert_eq!(mount.table.fsync(syncs), Err(FsError::NoSpace));
    assert_eq!((mount.table.flush(closes), mount.table.fsync(syncs)), (Ok(()), Ok(())), "once");
}

#[test]
fn who_was_told_of_one_failure_is_told_of_the_next_and_why() {
    let (mount, inode, first) = eager_mount(Policy::Soft { ms: 20_000 });
    let second = mount.open(inode);
    mount.cluster.refuse(Some(FsError::NoSpace));
    mount.write(first, 0, b"one");
    assert_eq!(mount.table.fsync(first).map_err(|error| error.errno()), Err(libc::ENOSPC));
    mount.cluster.refuse(Some(FsError::Io("disk".into())));
    mount.write(first, 0, b"two");
    assert_eq!(mount.table.fsync(first).map_err(|error| error.errno()), Err(libc::EIO));
    assert_eq!(mount.table.fsync(second).map_err(|error| error.errno()), Err(libc::EIO), "the last one, once");
    mount.cluster.refuse(None);
    assert_eq!((mount.table.fsync(first), mount.table.fsync(second)), (Ok(()), Ok(())));
}

#[test]
fn a_mapped_page_that_is_lost_is_told_by_msync_and_close_of_every_handle() {
    let (mount, inode, mapped) = eager_mount(Policy::Soft { ms: 20_000 });
    let chosen = mount.open(inode);
    mount.cluster.refuse(Some(FsError::NoSpace));
    assert_eq!(mount.table.write_back(chosen, 4096, &pattern(4096, 3)), Ok(4096));
    // msync(2) comes as an fsync of the handle that was mapped.
    assert_eq!(mount.table.fsync(mapped), Err(FsError::NoSpace));
    assert_eq!(mount.table.flush(chosen), Err(FsError::NoSpace));
    mount.cluster.refuse(None);
    assert_eq!(mount.read(mapped, 4096, 4096), &pattern(100_000, 1)[4096..8192]);
}

#[test]
fn a_failed_barrier_is_told_to_the_others_too_and_covered_by_the_next_fsync() {
    let (mount, inode, first) = eager_mount(Policy::Soft { ms: 20_000 });
    let second = mount.open(inode);
    mount.write(first, 0, b"synced?");
    mount.cluster.refuse_barriers(Some(FsError::Io("disk".into())));
    assert!(mount.table.fsync(first).is_err());
    mount.cluster.refuse_barriers(None);
    assert!(mount.table.fsync(second).is_err());
    let before = mount.cluster.barriers();
    mount.table.fsync(second).unwrap();
    assert_eq!(mount.cluster.barriers() - before, 1, "nothing was known to be durable");
}

#[test]
fn what_was_lost_with_all_power_before_its_fsync_is_told_once_to_every_handle() {
    let (mount, inode, first) = eager_mount(Policy::Soft { ms: 20_000 });
    let second = mount.open(inode);
    // In both chunks.
    mount.write(first, 0, &pattern(100_000, 2));
    mount.table.flush(first).unwrap();
    mount.cluster.lose_unsynced();
    let late = mount.open(inode);
    assert_eq!(mount.table.fsync(first), Err(FsError::UnsyncedLost));
    assert_eq!(mount.table.fsync(first), Ok(()));
    assert_eq!(mount.table.fsync(second), Err(FsError::UnsyncedLost));
    assert_eq!((mount.table.fsync(second), mount.table.fsync(first)), (Ok(()), Ok(())));
    assert_eq!(mount.read(late, 0, 1 << 20), &pattern(100_000, 1)[..]);
    mount.write(first, 0, &pattern(100_000, 3));
    mount.table.fsync(first).unwrap();
    mount.cluster.lose_unsynced();
    assert_eq!((mount.table.fsync(first), mount.table.fsync(second)), (Ok(()), Ok(())), "it had been synced");
    assert_eq!(mount.read(late, 0, 1 << 20), &pattern(100_000, 3)[..]);
}

#[test]
fn a_loss_is_told_although_there_were_writes_and_a_failed_fsync_after_it() {
    let (mount, _, handle) = eager_mount(Policy::Soft { ms: 20_000 });
    mount.write(handle, 0, b"lost");
    mount.table.flush(handle).unwrap();
    mount.cluster.lose_unsynced();
    mount.write(handle, 9_000, b"later");
    mount.table.flush(handle).unwrap();
    mount.cluster.refuse_barriers(Some(FsError::Io("disk".into())));
    assert_eq!(mount.table.fsync(handle), Err(FsError::Io("disk".into())));
    mount.cluster.refuse_barriers(None);
    assert_eq!(mount.table.fsync(handle), Err(FsError::UnsyncedLost));
    assert_eq!(mount.table.fsync(handle), Ok(()));
}

#[test]
fn a_loss_after_a_close_is_told_to_who_opens_the_file_and_syncs_it() {
    let (mount, inode, handle) = eager_mount(Policy::Soft { ms: 20_000 });
    mount.write(handle, 0, b"lost");
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    mount.cluster.lose_unsynced();
    let handle = mount.open(inode);
    assert_eq!(mount.table.fsync(handle), Err(FsError::UnsyncedLost));
    assert_eq!(mount.table.fsync(handle), Ok(()));
}

#[test]
fn inline_content_that_was_synced_is_not_given_up_for_chunks_that_lost_their_copy_of_it() {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, settings());
    let handle = mount.open(inode);
    mount.write(handle, 0, b"synced");
    mount.table.fsync(handle).unwrap();
    mount.write(handle, 20_000, b"not synced");
    cluster.hold_barriers(true);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| mount.table.flush(handle));
        wait_until("the copy is in the chunk", || cluster.counts().1 > 0);
        wait_until("its barrier waits", || cluster.barriers_held() > 0);
        cluster.lose_unsynced();
        cluster.hold_barriers(false);
        assert_eq!(closing.join().unwrap(), Err(FsError::UnsyncedLost));
    });
    assert!(cluster.attr(inode).is_inline);
    let other = Mount::new(&cluster, settings());
    assert_eq!(other.read(other.open(inode), 0, 1 << 20), &b"synced"[..]);
    assert_eq!(mount.read(handle, 0, 1 << 20), &b"synced"[..]);
    mount.write(handle, 0, b"again");
    mount.table.fsync(handle).unwrap();
}

#[test]
fn a_lost_session_is_told_to_every_handle_of_a_dirty_file_and_to_none_of_a_clean_one() {
    let (mount, inode, first) = eager_mount(Policy::Soft { ms: 20_000 });
    let second = mount.open(inode);
    let clean = mount.open(mount.cluster.make().inode);
    mount.cluster.be_silent(true);
    mount.write(first, 0, b"lost");
    mount.lose_session();
    mount.cluster.be_silent(false);
    let late = mount.open(inode);
    assert_eq!(mount.table.fsync(first), Err(FsError::SessionLost));
    assert_eq!(mount.table.flush(second), Err(FsError::SessionLost));
    assert_eq!((mount.table.flush(late), mount.table.fsync(clean)), (Ok(()), Ok(())));
    mount.write(first, 0, b"new session");
    mount.table.fsync(first).unwrap();
    assert_eq!(mount.read(late, 0, 11), &b"new session"[..]);
}

#[test]
fn what_was_on_its_way_when_the_session_was_lost_never_arrives() {
    let (mount, _, handle) = eager_mount(Policy::Soft { ms: 20_000 });
    let writes = mount.cluster.counts().1;
    mount.cluster.be_silent(true);
    mount.write(handle, 0, &pattern(100_000, 9));
    wait_until("it is tried", || mount.cluster.counts().1 > writes + 3);
    mount.lose_session();
    mount.cluster.be_silent(false);
    assert!(mount.table.fsync(handle).is_err());
    mount.table.fsync(handle).unwrap();
    assert_eq!(mount.read(handle, 0, 1 << 20), &pattern(100_000, 1)[..]);
}

#[test]
fn what_was_pushed_under_a_lost_session_is_synced_under_the_next() {
    let (mount, _, handle) = eager_mount(Policy::Soft { ms: 20_000 });
    mount.write(handle, 0, &pattern(100_000, 2));
    mount.table.flush(handle).unwrap();
    mount.lose_session();
    let before = mount.cluster.barriers();
    mount.table.fsync(handle).unwrap();
    assert_eq!(mount.cluster.barriers() - before, 2, "one a chunk");
}

#[test]
fn damage_without_a_good_copy_is_reported_to_the_master_and_read_as_an_error() {
    let (mount, _, handle) = eager_mount(Policy::Hard);
    mount.cluster.refuse(Some(corrupt()));
    assert_eq!(mount.table.read(handle, 0, 10), Err(corrupt()));
    assert_eq!(mount.cluster.damage().len(), 1);
    mount.cluster.refuse(None);
    assert_eq!(mount.read(handle, 0, 10), &pattern(100_000, 1)[..10]);
}

#[test]
fn a_primary_that_does_not_answer_is_named_to_the_master() {
    let (mount, _, handle) = eager_mount(Policy::Soft { ms: 200 });
    mount.cluster.be_silent(true);
    assert!(mount.table.read(handle, 0, 10).is_err());
    assert!(mount.cluster.lost().contains(&dfs_proto::NodeId(1)));
    let asked = mount.cluster.lost().len();
    mount.write(handle, 0, b"x");
    assert!(mount.table.fsync(handle).is_err());
    assert!(mount.cluster.lost().len() > asked, "by writers too");
}

#[test]
fn a_hard_mount_waits_is_counted_and_goes_on() {
    let (mount, _, handle) = eager_mount(Policy::Hard);
    mount.cluster.be_silent(true);
    mount.write(handle, 0, &pattern(100_000, 2));
    let mount = &mount;
    std::thread::scope(|scope| {
        let calls = [
            scope.spawn(move || mount.table.fsync(handle)),
            scope.spawn(move || mount.table.read(handle, 99_990, 10).map(drop)),
        ];
        let begun = Instant::now();
        wait_until("they are counted", || mount.metrics.waiting_requests.get() > 0);
        assert!(begun.elapsed() > Duration::from_secs(4), "not before they have waited long");
        assert!(!calls[0].is_finished());
        mount.cluster.be_silent(false);
        for call in calls {
            assert_eq!(call.join().unwrap(), Ok(()));
        }
    });
    assert_eq!(mount.metrics.waiting_requests.get(), 0);
    assert_eq!(mount.read(handle, 0, 1 << 20), &pattern(100_000, 2)[..]);
}

#[test]
fn a_soft_mount_fails_everything_in_time() {
    let (mount, inode, handle) = eager_mount(Policy::Soft { ms: 1_000 });
    let handles: Vec<HandleId> = (0..4).map(|_| mount.open(inode)).collect();
    mount.cluster.be_silent(true);
    mount.write(handle, 0, &pattern(100_000, 2));
    let (mount, begun) = (&mount, Instant::now());
    std::thread::scope(|scope| {
        let syncs = handles.iter().map(|&handle| scope.spawn(move || mount.table.fsync(handle)));
        let mut calls: Vec<_> = syncs.collect();
        calls.push(scope.spawn(move || mount.table.flush(handle)));
        let outcomes: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(|error| error.errno() == libc::EIO)));
    });
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
}
