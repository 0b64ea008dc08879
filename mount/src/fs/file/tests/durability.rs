//! What survives power loss, and whose `fsync` may say so.

use std::time::{Duration, Instant};

use super::*;

/// The master's disk has all that it knows, as some milliseconds after any change.
fn master_syncs(mount: &Mount) {
    let other = mount.open(mount.cluster.make().inode);
    mount.table.fsync(other).unwrap();
}

fn content_after_power_loss(mount: &Mount, inode: InodeId) -> Bytes {
    mount.cluster.crash();
    let other = Mount::new(&mount.cluster, settings());
    other.read(other.open(inode), 0, 1 << 20)
}

#[test]
fn fsync_survives_power_loss() {
    let (mount, inode, handle) = mount();
    let content = pattern(3 * CHUNK as usize + 100, 1);
    mount.write(handle, 0, &content);
    mount.table.fsync(handle).unwrap();
    mount.write(handle, 5, b"later");
    mount.table.flush(handle).unwrap();
    assert_eq!(content_after_power_loss(&mount, inode), &content[..]);
}

#[test]
fn synced_inline_content_survives_power_loss_after_it_moved_into_chunks_without_a_sync() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, b"synced");
    mount.table.fsync(handle).unwrap();
    mount.write(handle, 20_000, b"not synced");
    mount.table.flush(handle).unwrap();
    assert!(!mount.cluster.attr(inode).is_inline);
    master_syncs(&mount);
    assert_eq!(content_after_power_loss(&mount, inode)[..6], b"synced"[..]);
}

#[test]
fn a_new_file_moves_into_chunks_without_a_barrier() {
    let (mount, _, handle) = mount();
    mount.write(handle, 0, &pattern(100_000, 1));
    mount.table.flush(handle).unwrap();
    assert_eq!(mount.cluster.barriers(), 0);
}

#[test]
fn an_fsync_after_a_reopen_covers_what_was_written_before() {
    let (mount, inode, handle) = mount();
    let content = pattern(100_000, 1);
    mount.write(handle, 0, &content);
    mount.table.flush(handle).unwrap();
    mount.table.release(handle);
    assert_eq!(mount.table.open_files(), 0);
    let handle = mount.open(inode);
    mount.table.fsync(handle).unwrap();
    assert_eq!(content_after_power_loss(&mount, inode), &content[..]);
}

#[test]
fn an_fsync_waits_for_the_one_that_is_at_it() {
    let (mount, inode, first) = mount();
    let second = mount.open(inode);
    mount.write(first, 0, &pattern(30_000, 1));
    mount.cluster.hold_barriers(true);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| mount.table.fsync(first));
        let other = scope.spawn(|| {
            let outcome = mount.table.fsync(second);
            (outcome, mount.cluster.barriers())
        });
        let deadline = Instant::now() + Duration::from_millis(200);
        while !other.is_finished() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        mount.cluster.hold_barriers(false);
        assert_eq!(one.join().unwrap(), Ok(()));
        assert_eq!(other.join().unwrap(), (Ok(()), 1));
    });
}

#[test]
fn those_who_wait_behind_a_call_that_hangs_fail_in_time() {
    let cluster = Cluster::new(1);
    let inode = cluster.make().inode;
    let mount = Mount::new(&cluster, FileSettings { policy: Policy::Soft { ms: 300 }, ..settings() });
    let handles: Vec<HandleId> = (0..9).map(|_| mount.open(inode)).collect();
    mount.write(handles[0], 0, &pattern(30_000, 1));
    mount.table.flush(handles[0]).unwrap();
    cluster.hold_barriers(true);
    let begun = Instant::now();
    let mount = &mount;
    std::thread::scope(|scope| {
        let calls: Vec<_> =
            handles.iter().map(|&handle| scope.spawn(move || (mount.table.fsync(handle), begun.elapsed()))).collect();
        let deadline = begun + Duration::from_secs(5);
        while calls.iter().filter(|call| call.is_finished()).count() < handles.len() - 1 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        cluster.hold_barriers(false);
        let outcomes: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        assert_eq!(outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).count(), 1, "{outcomes:?}");
        assert!(outcomes.iter().all(|(_, after)| *after < Duration::from_secs(3)), "{outcomes:?}");
    });
}

#[test]
fn a_size_is_not_told_before_the_bytes_below_it_are_on_stable_media() {
    let (mount, inode, handle) = mount();
    mount.write(handle, 0, &pattern(30_000, 1));
    mount.table.fsync(handle).unwrap();
    mount.write(handle, 30_000, &pattern(30_000, 2));
    mount.cluster.refuse_barriers(Some(FsError::Io("the disk is gone".into())));
    assert!(mount.table.fsync(handle).is_err());
    assert_eq!(mount.cluster.attr(inode).size, 30_000);
    mount.cluster.refuse_barriers(None);
    mount.table.fsync(handle).unwrap();
    assert_eq!(mount.cluster.attr(inode).size, 60_000);
}

#[test]
fn a_close_of_any_handle_pushes_pages_that_were_mapped() {
    let (mount, inode, mapped) = mount();
    let chosen = mount.open(inode);
    mount.write(chosen, 0, &pattern(30_000, 1));
    mount.table.flush(chosen).unwrap();
    assert_eq!(mount.table.write_back(chosen, 0, b"page"), Ok(4));
    mount.table.flush(mapped).unwrap();
    let other = Mount::new(&mount.cluster, settings());
    assert_eq!(other.read(other.open(inode), 0, 4), &b"page"[..]);
}
