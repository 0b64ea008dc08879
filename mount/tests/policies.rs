//! `hard` and `soft=SECONDS` on a real mount, while servers stand still. Needs root and /dev/fuse.

#![allow(clippy::disallowed_methods, reason = "a test uses files")]

mod fake_chunk_server;
mod fake_master;
mod test_mount;

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_mount::{MountError, Policy};
use fake_chunk_server::FakeChunkServer;
use fake_master::CLUSTER;
use nix::mount::MntFlags;
use test_mount::TestMount;

static CONTENT: [u8; 300_000] = [7; 300_000];

/// A mount with a file `file` in chunks, written and synced.
fn mount(policy: Policy) -> Option<(TestMount, FakeChunkServer)> {
    let test = TestMount::with(policy, Vec::new())?;
    let server = FakeChunkServer::start(CLUSTER);
    test.master.set_chunk_server(server.address());
    write(&test.at("file"), &CONTENT).expect("written");
    Some((test, server))
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads the end of a file past the kernel's pages.
fn read_directly(path: &Path) -> std::io::Result<usize> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    file.seek(std::io::SeekFrom::Start(4096))?;
    let mut buffer = vec![0; 8192];
    file.read(&mut buffer)
}

fn errno<T>(outcome: std::io::Result<T>) -> Option<i32> {
    outcome.err().and_then(|error| error.raw_os_error())
}

#[test]
fn on_a_soft_mount_every_call_ends_in_time_and_the_mount_too() {
    let Some((mut test, server)) = mount(Policy::Soft { ms: 2_000 }) else { return };
    server.stop(true);
    let (file, begun) = (test.at("file"), Instant::now());
    std::thread::scope(|scope| {
        let file = &file;
        let reads: Vec<_> = (0..8).map(|_| scope.spawn(move || errno(read_directly(file)))).collect();
        let sync = scope.spawn(move || {
            let mut open = fs::File::options().write(true).open(file).expect("opens");
            open.write_all(b"new").expect("is buffered");
            let synced = errno(open.sync_all());
            (synced, errno(open.sync_all()))
        });
        for read in reads {
            assert_eq!(read.join().expect("no panic"), Some(libc::EIO));
        }
        assert_eq!(sync.join().expect("no panic").0, Some(libc::EIO));
    });
    // Twice: an fsync that fails, and another one that finds barriers that have not been sent.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());

    let mut open = fs::File::options().write(true).open(&file).expect("opens");
    open.write_all(b"lost").expect("is buffered");
    let begun = Instant::now();
    test.detach(MntFlags::MNT_DETACH);
    drop(open);
    let ended = test.wait();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(matches!(ended, Ok(()) | Err(MountError::Flush(_))), "{ended:?}");
}

#[test]
fn on_a_hard_mount_calls_wait_are_counted_and_go_on() {
    let Some((mut test, server)) = mount(Policy::Hard) else { return };
    server.stop(true);
    // Each has its own: a file that is made anew is empty for a moment, and a read may come just then.
    let (file, other) = (test.at("file"), test.at("other"));
    std::thread::scope(|scope| {
        let (file, other, test) = (&file, &other, &test);
        let sync = scope.spawn(move || write(other, &CONTENT[..100_000]));
        let read = scope.spawn(move || read_directly(file));
        let begun = Instant::now();
        while test.metric("dfs_mount_waiting_requests") < 1.0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "nobody waits");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
        assert!(fs::metadata(file).is_ok() && !sync.is_finished(), "names go on");
        server.stop(false);
        let healed = Instant::now();
        sync.join().expect("no panic").expect("goes through");
        assert_eq!(read.join().expect("no panic").expect("goes through"), 8192);
        assert!(healed.elapsed() < Duration::from_secs(3), "{:?}", healed.elapsed());
    });
    assert!(fs::read(&other).expect("reads") == CONTENT[..100_000]);
    test.unmount();
}

#[test]
fn a_forced_unmount_frees_who_waits_on_a_hard_mount() {
    let Some((mut test, server)) = mount(Policy::Hard) else { return };
    server.stop(true);
    let file = test.at("file");
    let waiting = {
        let file = file.clone();
        std::thread::spawn(move || errno(read_directly(&file)))
    };
    let begun = Instant::now();
    while test.metric("dfs_mount_waiting_requests") < 1.0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody waits");
        std::thread::sleep(Duration::from_millis(50));
    }
    let begun = Instant::now();
    // Aborts the connection; the mount itself is still in use by the one who waits.
    let _ = nix::mount::umount2(test.directory.path(), MntFlags::MNT_FORCE);
    let failed = waiting.join().expect("no panic");
    assert!(failed.is_some(), "it was told");
    test.detach(MntFlags::MNT_DETACH);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(dfs_mount::MountPoint::mounted_type(test.directory.path()).is_none());
    // What it has taken on is not dropped: its threads end once the server is back.
    server.stop(false);
    let _ = test.wait();
}

#[test]
fn a_silent_master_does_not_keep_the_mount_s_process_for_ever() {
    let Some((mut test, _server)) = mount(Policy::Soft { ms: 2_000 }) else { return };
    test.master.set_silent(true);
    let begun = Instant::now();
    assert_eq!(errno(fs::metadata(test.at("unknown"))), Some(libc::EIO));
    test.detach(MntFlags::MNT_DETACH);
    let ended = test.wait();
    // The names; a release that is on its way and sent only once, 10 s; what it was told of, and the session.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(matches!(ended, Ok(()) | Err(MountError::Flush(_))), "{ended:?}");
}
