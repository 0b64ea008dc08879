//! A real mount, over a master in this process. Needs root and /dev/fuse; without them there is nothing to test.

#![allow(clippy::disallowed_methods, reason = "a test uses files")]

mod fake_master;
mod test_mount;

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_mount::{MountConfig, Policy, VfsOption, mount};
use test_mount::TestMount;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn names_can_be_made_listed_moved_and_removed() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    fs::create_dir(test.at("d")).expect("mkdir");
    assert_eq!(fs::metadata(test.at("d")).expect("stat").nlink(), 2);
    fs::create_dir(test.at("d/sub")).expect("mkdir");
    assert_eq!(fs::metadata(test.at("d")).expect("stat").nlink(), 3, "known at once");
    drop(fs::File::create(test.at("d/file")).expect("create"));
    symlink("file", test.at("d/symlink")).expect("symlink");
    assert_eq!(fs::read_link(test.at("d/symlink")).expect("readlink"), Path::new("file"));
    fs::hard_link(test.at("d/file"), test.at("d/link")).expect("link");
    assert_eq!(fs::metadata(test.at("d/file")).expect("stat").nlink(), 2);
    assert_eq!(names(&test.at("d")), ["file", "link", "sub", "symlink"]);

    fs::rename(test.at("d/file"), test.at("moved")).expect("rename");
    assert_eq!(names(&test.at("d")), ["link", "sub", "symlink"]);
    assert_eq!(
        fs::metadata(test.at("moved")).expect("stat").ino(),
        fs::metadata(test.at("d/link")).expect("stat").ino()
    );
    fs::remove_file(test.at("moved")).expect("unlink");
    assert_eq!(fs::metadata(test.at("d/link")).expect("stat").nlink(), 1, "its other name went");
    let not_empty = fs::remove_dir(test.at("d")).expect_err("not empty");
    assert_eq!(not_empty.raw_os_error(), Some(libc::ENOTEMPTY));
    for name in ["d/link", "d/symlink"] {
        fs::remove_file(test.at(name)).expect("unlink");
    }
    fs::remove_dir(test.at("d/sub")).expect("rmdir");
    assert_eq!(fs::metadata(test.at("d")).expect("stat").nlink(), 2);
    fs::remove_dir(test.at("d")).expect("rmdir");
    assert_eq!(names(test.directory.path()), [""; 0]);
    test.unmount();
    assert_eq!(test.master.sessions(), 0);
}

#[test]
fn a_removed_directory_can_still_be_looked_at_by_who_holds_it() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    fs::create_dir(test.at("d")).expect("mkdir");
    let held = fs::File::open(test.at("d")).expect("open");
    fs::remove_dir(test.at("d")).expect("rmdir");
    assert_eq!(held.metadata().expect("fstat").nlink(), 0);
    assert_eq!(fs::metadata(test.at("d")).expect_err("gone").kind(), std::io::ErrorKind::NotFound);
    drop(held);
    test.unmount();
}

#[test]
fn attributes_can_be_set_to_the_nanosecond() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    let file = test.at("file");
    drop(fs::File::create(&file).expect("create"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).expect("chmod");
    assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o7777, 0o4751);
    std::os::unix::fs::chown(&file, Some(12), Some(34)).expect("chown");
    let stat = fs::metadata(&file).expect("stat");
    assert_eq!((stat.uid(), stat.gid()), (12, 34));
    let path = CString::new(file.as_os_str().as_bytes()).expect("no NUL");
    for (seconds, nanos) in [(1_700_000_000, 123_456_789), (-1, 999_999_999), (-5, 0), (0, 1)] {
        let time = nix::sys::time::TimeSpec::new(seconds, nanos);
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            path.as_c_str(),
            &time,
            &time,
            nix::sys::stat::UtimensatFlags::FollowSymlink,
        )
        .expect("utimensat");
        let stat = fs::metadata(&file).expect("stat");
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (seconds, nanos));
        assert_eq!((stat.atime(), stat.atime_nsec()), (seconds, nanos));
    }
    test.unmount();
}

#[test]
fn a_directory_of_thousands_lists_each_name_once() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    fs::create_dir(test.at("d")).expect("mkdir");
    let mut expected: Vec<String> = (0..2_500).map(|at| format!("name-{at:05}")).collect();
    for name in &expected {
        fs::create_dir(test.at("d").join(name)).expect("mkdir");
    }
    expected.sort();
    assert_eq!(names(&test.at("d")), expected);
    test.master.take_log();
    for entry in fs::read_dir(test.at("d")).expect("lists") {
        assert!(entry.expect("an entry").metadata().expect("stat").is_dir());
    }
    let asked = test.master.take_log();
    assert!(asked.len() < 300, "attributes come with the names: {} requests", asked.len());
    test.unmount();
}

#[test]
fn calls_cost_the_round_trips_that_are_written_down() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    drop(fs::metadata(test.directory.path()));
    test.master.take_log();
    fs::create_dir(test.at("d")).expect("mkdir");
    assert_eq!(test.master.take_log(), ["Lookup", "Make"]);
    fs::metadata(test.at("d")).expect("stat");
    assert_eq!(test.master.take_log(), [""; 0], "warm");
    fs::create_dir(test.at("e")).expect("mkdir");
    assert_eq!(test.master.take_log(), ["Lookup", "Make"], "the parent is known though it has changed");
    let mut file = fs::File::create(test.at("file")).expect("create");
    file.write_all(&[7; 4096]).expect("write");
    drop(file);
    let mut asked = test.master.take_log();
    asked.retain(|op| op != "Release");
    assert_eq!(asked, ["Lookup", "Make", "CommitWrite"]);
    assert_eq!(fs::read(test.at("file")).expect("read"), [7; 4096]);
    fs::metadata(test.at("file")).expect("stat");
    test.master.take_log();
    drop(fs::File::create(test.at("file")).expect("open with O_TRUNC"));
    let mut asked = test.master.take_log();
    asked.retain(|op| op != "Release" && op != "Lookup");
    assert_eq!(asked, ["Open", "SetAttr"]);
    assert_eq!(fs::metadata(test.at("file")).expect("stat").len(), 0);
    test.unmount();
}

#[test]
fn extended_attributes_are_kept_and_sized() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    drop(fs::File::create(test.at("file")).expect("create"));
    let path = CString::new(test.at("file").as_os_str().as_bytes()).expect("no NUL");
    set_xattr(&path, c"user.colour", b"blue").expect("set");
    assert_eq!(get_xattr(&path, c"user.colour", 0), Ok(4));
    assert_eq!(get_xattr(&path, c"user.colour", 3), Err(libc::ERANGE));
    assert_eq!(get_xattr(&path, c"user.colour", 4), Ok(4));
    assert_eq!(get_xattr(&path, c"user.taste", 4), Err(libc::ENODATA));
    assert_eq!(set_xattr(&path, c"system.nfs4_acl", b"x"), Err(libc::EOPNOTSUPP));
    test.unmount();
}

#[allow(unsafe_code)]
fn set_xattr(path: &CString, name: &std::ffi::CStr, value: &[u8]) -> Result<(), i32> {
    // SAFETY: both strings end with a NUL, and the value is as long as is said.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

#[allow(unsafe_code)]
fn get_xattr(path: &CString, name: &std::ffi::CStr, size: usize) -> Result<isize, i32> {
    let mut value = vec![0u8; size];
    // SAFETY: both strings end with a NUL, and the buffer is as long as is said.
    let result = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), size) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

#[test]
fn many_callers_of_a_silent_master_leave_known_names_answered() {
    let Some(mut test) = TestMount::new(Vec::new()) else { return };
    fs::create_dir(test.at("known")).expect("mkdir");
    test.master.set_silent(true);
    let waiting: Vec<_> = (0..20)
        .map(|at| {
            let path = test.at(&format!("unknown-{at}"));
            std::thread::spawn(move || fs::metadata(path).map(drop).map_err(|error| error.raw_os_error()))
        })
        .collect();
    let begun = Instant::now();
    let opened = fs::File::open(test.directory.path()).expect("needs no master");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(opened);
    for thread in waiting {
        assert_eq!(thread.join().expect("no panic"), Err(Some(libc::EIO)), "ends by the deadline");
    }
    test.master.set_silent(false);
    test.unmount();
}

#[test]
fn a_second_mount_on_the_same_directory_is_refused() {
    let Some(mut test) = TestMount::new(vec![VfsOption::NoAtime, VfsOption::NoExec]) else { return };
    let table = fs::read_to_string("/proc/mounts").expect("reads");
    let line = table.lines().find(|line| line.contains(&*test.directory.path().to_string_lossy())).expect("is there");
    assert!(line.contains("fuse.dfs") && line.contains("noatime") && line.contains("noexec"), "{line}");
    let error = mount(MountConfig {
        masters: vec![test.master.address.clone()],
        subdir: Vec::new(),
        mount_point: test.directory.path().to_owned(),
        source: "again".into(),
        read_only: false,
        vfs_options: Vec::new(),
        allow_other: false,
        policy: Policy::Hard,
        http: None,
        dirty_bytes_max: 1 << 20,
        read_ahead_bytes: 0,
        workers: 4,
    })
    .err()
    .expect("refused");
    assert!(error.to_string().contains("is mounted already"), "{error}");
    test.unmount();
}
