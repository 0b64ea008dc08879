//! Operations by path, one a line: `operation arguments -> result`.

use dfs_proto::{FsError, Kind, UnixNanos};

use super::world::World;
use crate::core::request::{CommitWrite, Rename, Request, SetTime, SetXattr};

/// Runs the script, checks each line's result, and after each line what must always be true.
fn check(script: &str) -> World {
    let mut world = World::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (command, expected) = line.split_once("->").unwrap_or((line, "ok"));
        let words: Vec<&str> = command.split_whitespace().collect();
        let result = match run(&mut world, &words) {
            Ok(text) => text,
            Err(error) => variant(&error),
        };
        assert_eq!(result, expected.trim(), "{line}");
        world.check_invariants();
    }
    world
}

fn variant(error: &FsError) -> String {
    let text = format!("{error:?}");
    text.split(['(', ' ']).next().unwrap_or(&text).to_owned()
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).expect("an octal mode")
}

fn run(world: &mut World, words: &[&str]) -> Result<String, FsError> {
    let done = |_| "ok".to_owned();
    match *words {
        ["mkdir", path] => world.make(path, Kind::Directory, false, false).map(|_| "ok".into()),
        ["create", path] => world.make(path, Kind::File, false, false).map(|_| "ok".into()),
        ["open", path] => world.make(path, Kind::File, true, false).map(|_| "ok".into()),
        ["open-excl", path] => world.make(path, Kind::File, true, true).map(|_| "ok".into()),
        ["symlink", path] => world.make(path, Kind::Symlink, false, false).map(|_| "ok".into()),
        ["mkfifo", path] => world.make(path, Kind::Fifo, false, false).map(|_| "ok".into()),
        ["mkdev", path] => world.make(path, Kind::BlockDevice, false, false).map(|_| "ok".into()),
        ["unlink", path] => {
            let (parent, name) = world.place(path)?;
            world.ask(Request::Unlink { parent, name }).map(done)
        }
        ["rmdir", path] => {
            let (parent, name) = world.place(path)?;
            world.ask(Request::Rmdir { parent, name }).map(done)
        }
        ["rename", from, to] => rename(world, from, to, 0),
        ["rename", from, to, "noreplace"] => rename(world, from, to, 1),
        ["rename", from, to, "exchange"] => rename(world, from, to, 2),
        ["rename", from, to, "whiteout"] => rename(world, from, to, 4),
        ["rename", from, to, "both"] => rename(world, from, to, 3),
        ["link", from, to] => {
            let inode = world.find(from)?.id;
            let (parent, name) = world.place(to)?;
            world.ask(Request::Link { inode, parent, name }).map(done)
        }
        ["chmod", path, mode] => world.set(path, |set| set.mode = Some(octal(mode))).map(|_| "ok".into()),
        ["chown", path, uid, gid] => world
            .set(path, |set| {
                (set.uid, set.gid) = (uid.parse().ok(), gid.parse().ok());
            })
            .map(|_| "ok".into()),
        ["chown-unprivileged", path, gid] => world
            .set(path, |set| {
                (set.gid, set.clear_suid_sgid) = (gid.parse().ok(), true);
            })
            .map(|_| "ok".into()),
        ["truncate", path, size] => {
            world.set(path, |set| set.size = Some(size.parse().expect("a size"))).map(|_| "ok".into())
        }
        ["utimens", path, atime, mtime] => world
            .set(path, |set| {
                let time = |text: &str| match text {
                    "omit" => None,
                    "now" => Some(SetTime::Now),
                    at => Some(SetTime::At(UnixNanos(at.parse().expect("a time")))),
                };
                (set.atime, set.mtime) = (time(atime), time(mtime));
            })
            .map(|_| "ok".into()),
        ["write", path, text] => {
            let file = world.find(path)?;
            let commit = CommitWrite {
                inode: file.id,
                content: Some(text.to_owned().into()),
                if_data_version: file.data_version,
                ..CommitWrite::default()
            };
            world.ask(Request::CommitWrite(commit)).map(done)
        }
        ["cat", path] => Ok(String::from_utf8_lossy(&world.content(path)?).replace('\0', "0")),
        ["setxattr", path, name, value] => setxattr(world, path, name, value, (false, false)),
        ["setxattr-create", path, name, value] => setxattr(world, path, name, value, (true, false)),
        ["setxattr-replace", path, name, value] => setxattr(world, path, name, value, (false, true)),
        ["getxattr", path, name] => {
            let inode = world.find(path)?.id;
            match world.ask(Request::GetXattr { inode, name: name.to_owned().into() })? {
                crate::core::outcome::Body::XattrValue(value) => Ok(String::from_utf8_lossy(&value).into_owned()),
                other => panic!("unexpected {other:?}"),
            }
        }
        ["listxattr", path] => {
            let inode = world.find(path)?.id;
            match world.ask(Request::ListXattr { inode })? {
                crate::core::outcome::Body::XattrNames(names) => {
                    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
                    Ok(names.join(" "))
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        ["removexattr", path, name] => {
            let inode = world.find(path)?.id;
            world.ask(Request::RemoveXattr { inode, name: name.to_owned().into() }).map(done)
        }
        ["readlink", path] => {
            let inode = world.find(path)?.id;
            match world.ask(Request::ReadLink { inode })? {
                crate::core::outcome::Body::Target(target) => Ok(String::from_utf8_lossy(&target).into_owned()),
                other => panic!("unexpected {other:?}"),
            }
        }
        ["ls", path] => {
            let inode = world.find(path)?.id;
            let names: Vec<String> = world.list(inode)?.iter().map(|entry| entry.name.to_string()).collect();
            Ok(names.join(" "))
        }
        ["stat", path, ref fields @ ..] => {
            let inode = world.find(path)?;
            let value = |field: &&str| match *field {
                "mode" => format!("mode={:o}", inode.mode),
                "nlink" => format!("nlink={}", inode.nlink),
                "size" => format!("size={}", inode.size),
                "owner" => format!("owner={}:{}", inode.uid, inode.gid),
                "kind" => format!("kind={}", inode.kind.word()),
                "rdev" => format!("rdev={}", inode.rdev),
                "atime" => format!("atime={}", inode.atime.0),
                "mtime" => format!("mtime={}", inode.mtime.0),
                "ctime" => format!("ctime={}", inode.ctime.0),
                "version" => format!("version={}", inode.data_version),
                "inline" => format!("inline={}", inode.is_inline),
                other => panic!("unknown field {other}"),
            };
            Ok(fields.iter().map(value).collect::<Vec<_>>().join(" "))
        }
        ["at", time] => {
            world.now = time.parse::<i64>().expect("a time") - 1;
            Ok("ok".into())
        }
        _ => panic!("unknown command {words:?}"),
    }
}

fn rename(world: &mut World, from: &str, to: &str, flags: u32) -> Result<String, FsError> {
    let (parent, name) = world.place(from)?;
    let (new_parent, new_name) = world.place(to)?;
    let request = Rename { parent, name, new_parent, new_name, flags };
    world.ask(Request::Rename(request)).map(|_| "ok".into())
}

fn setxattr(
    world: &mut World,
    path: &str,
    name: &str,
    value: &str,
    (create, replace): (bool, bool),
) -> Result<String, FsError> {
    let (name, value) = (name.to_owned().into(), value.to_owned().into());
    let request = SetXattr { inode: world.find(path)?.id, name, value, create, replace };
    world.ask(Request::SetXattr(request)).map(|_| "ok".into())
}

#[test]
fn each_kind_is_made_as_its_manual_page_says() {
    check(
        "
        mkdir /d
        stat /d kind mode nlink owner size -> kind=directory mode=750 nlink=2 owner=10:20 size=0
        stat / nlink -> nlink=3
        create /d/f
        stat /d/f kind mode nlink size inline -> kind=file mode=750 nlink=1 size=0 inline=true
        symlink /d/s
        stat /d/s kind mode size -> kind=symlink mode=777 size=6
        readlink /d/s -> target
        readlink /d/f -> Invalid
        mkfifo /d/p
        stat /d/p kind rdev -> kind=fifo rdev=0
        mkdev /d/b
        stat /d/b kind rdev -> kind=block device rdev=7
        ls /d -> f s p b
        create /d/f -> Exists
        mkdir /d/f -> Exists
        create /none/f -> NoEntry
        create /d/f/g -> NotDirectory
        ",
    );
}

#[test]
fn open_with_o_creat_opens_what_is_there_unless_it_must_be_new() {
    check(
        "
        open /f
        open /f
        open-excl /f -> Exists
        mkdir /d
        open /d -> IsDirectory
        open-excl /d -> Exists
        symlink /s
        open /s -> Exists
        ",
    );
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    check(
        "
        mkdir /d
        chown /d 1 99
        chmod /d 2755
        create /d/f
        stat /d/f owner mode -> owner=10:99 mode=750
        mkdir /d/sub
        stat /d/sub owner mode -> owner=10:99 mode=2750
        mkdir /plain
        stat /plain owner mode -> owner=10:20 mode=750
        ",
    );
}

#[test]
fn unlink_takes_one_name_and_the_file_with_the_last() {
    let world = check(
        "
        create /f
        link /f /g
        stat /f nlink -> nlink=2
        at 100
        unlink /f
        stat /g nlink ctime mtime -> nlink=1 ctime=100 mtime=1
        stat / mtime ctime -> mtime=100 ctime=100
        unlink /f -> NoEntry
        mkdir /d
        unlink /d -> IsDirectory
        unlink /g
        rmdir /d
        ls / ->
        ",
    );
    assert_eq!(world.counters.inodes, 1);
}

#[test]
fn an_open_file_outlives_its_last_name() {
    let mut world = check("open /f\nwrite /f hello\n");
    let file = world.find("/f").expect("there").id;
    let (parent, name) = world.place("/f").expect("a place");
    world.ask(Request::Unlink { parent, name }).expect("unlinked");
    world.check_invariants();
    let orphan = world.inode(file).expect("still there");
    assert_eq!((orphan.nlink, orphan.size, world.counters.orphans), (0, 5, 1));
    let (parent, name) = world.place("/again").expect("a place");
    let refused = world.ask(Request::Link { inode: file, parent, name });
    assert_eq!(refused, Err(FsError::NoEntry), "an orphan gets no name again");
    world.release(file);
    world.check_invariants();
    assert_eq!(world.inode(file), Err(FsError::NoEntry));
    assert_eq!((world.counters.inodes, world.counters.orphans), (1, 0));
}

#[test]
fn nothing_is_made_in_a_directory_that_was_removed_while_open() {
    let mut world = check("mkdir /d\n");
    let directory = world.find("/d").expect("there").id;
    world.ask(Request::Open { inode: directory }).expect("opened");
    let (parent, name) = world.place("/d").expect("a place");
    world.ask(Request::Rmdir { parent, name }).expect("removed");
    world.check_invariants();
    let name = super::world::name_of("f");
    let make = crate::core::request::Make {
        parent: directory,
        name,
        kind: Kind::File,
        mode: 0,
        rdev: 0,
        target: bytes::Bytes::new(),
        open: false,
        exclusive: false,
    };
    assert_eq!(world.ask(Request::Make(make)), Err(FsError::NoEntry));
    assert_eq!(world.list(directory).expect("listed"), []);
    world.release(directory);
    world.check_invariants();
    assert_eq!(world.counters.inodes, 1);
}

#[test]
fn rmdir_wants_an_empty_directory() {
    check(
        "
        mkdir /d
        create /d/f
        rmdir /d -> NotEmpty
        rmdir /d/f -> NotDirectory
        rmdir /none -> NoEntry
        unlink /d/f
        rmdir /d
        stat / nlink -> nlink=2
        ",
    );
}

#[test]
fn rename_replaces_what_may_be_replaced() {
    check(
        "
        create /a
        create /b
        write /a aa
        rename /a /b
        ls / -> b
        cat /b -> aa
        rename /none /b -> NoEntry
        mkdir /d
        rename /b /d -> IsDirectory
        rename /d /b -> NotDirectory
        mkdir /e
        create /e/f
        rename /d /e -> NotEmpty
        rename /e /d
        ls /d -> f
        stat / nlink -> nlink=3
        rename /d /d
        rename /b /c noreplace
        create /b
        rename /b /c noreplace -> Exists
        rename /b /c whiteout -> NotSupported
        rename /b /c both -> Invalid
        rename /b /b noreplace -> Exists
        ",
    );
}

#[test]
fn two_names_of_one_file_renamed_onto_each_other_both_stay() {
    check(
        "
        create /a
        link /a /b
        rename /a /b
        ls / -> a b
        rename /a /b exchange
        stat /a nlink -> nlink=2
        ",
    );
}

#[test]
fn a_directory_is_never_moved_below_itself() {
    check(
        "
        mkdir /a
        mkdir /a/b
        mkdir /a/b/c
        rename /a /a/b/c/d -> IntoItself
        rename /a /a/x -> IntoItself
        rename /a/b /a/b/c -> IntoItself
        mkdir /z
        rename /a /a/b/c exchange -> IntoItself
        rename /a/b/c /a exchange -> IntoItself
        rename /a/b /z/b
        stat /a nlink -> nlink=2
        stat /z nlink -> nlink=3
        rename /a /z/b/c/a
        ls /z/b/c -> a
        ",
    );
}

#[test]
fn a_directory_is_not_replaced_by_what_is_in_it() {
    check(
        "
        mkdir /a
        mkdir /a/b
        mkdir /a/b/c
        create /a/b/f
        rename /a/b/c /a -> NotEmpty
        rename /a/b/f /a -> NotEmpty
        rename /a/b/f /a/b -> NotEmpty
        mkdir /e
        rename /a/b/f /e -> IsDirectory
        rename /a/b/f /a exchange -> IntoItself
        rename /a /a/x exchange -> NoEntry
        ",
    );
}

#[test]
fn a_file_and_a_directory_change_places_and_both_parents_count_right() {
    check(
        "
        mkdir /p
        mkdir /q
        create /p/f
        mkdir /q/d
        mkdir /q/d/sub
        rename /p/f /q/d exchange
        stat /p nlink -> nlink=3
        stat /q nlink -> nlink=2
        stat /p/f nlink -> nlink=3
        rename /p/f /q/d exchange
        stat /p nlink -> nlink=2
        stat /q nlink -> nlink=3
        mkdir /q/e
        rename /q/d /q/e exchange
        stat /q nlink -> nlink=4
        ",
    );
}

#[test]
fn exchange_swaps_two_names_of_any_kind() {
    check(
        "
        mkdir /d
        mkdir /e
        create /d/f
        mkdir /e/sub
        create /e/sub/x
        rename /d/f /e/sub exchange
        stat /d/f kind -> kind=directory
        ls /d/f -> x
        stat /e/sub kind -> kind=file
        stat /d nlink -> nlink=3
        stat /e nlink -> nlink=2
        rename /d/f /e/none exchange -> NoEntry
        rename /d/f /e/sub exchange
        stat /e nlink -> nlink=3
        ",
    );
}

#[test]
fn rename_changes_the_times_of_both_directories_and_the_ctime_of_the_file() {
    check(
        "
        mkdir /d
        mkdir /e
        create /d/f
        create /e/g
        link /e/g /h
        at 100
        rename /d/f /e/g
        stat /d mtime ctime -> mtime=100 ctime=100
        stat /e mtime ctime -> mtime=100 ctime=100
        stat /e/g ctime mtime -> ctime=100 mtime=3
        stat /h nlink ctime mtime -> nlink=1 ctime=100 mtime=4
        ",
    );
}

#[test]
fn a_listing_meets_each_name_once_whatever_is_renamed_meanwhile() {
    check(
        "
        create /a
        create /b
        create /c
        rename /a /z
        ls / -> z b c
        rename /c /b
        ls / -> z b
        create /d
        ls / -> z b d
        ",
    );
}

#[test]
fn link_refuses_directories_and_taken_names() {
    check(
        "
        mkdir /d
        create /f
        link /d /e -> NotPermitted
        link /d /f -> Exists
        symlink /s
        link /s /s2
        readlink /s2 -> target
        stat /s2 nlink kind -> nlink=2 kind=symlink
        link /f /d -> Exists
        link /f /f/x -> NotDirectory
        at 50
        link /f /d/g
        stat /f nlink ctime mtime -> nlink=2 ctime=50 mtime=2
        stat /d mtime ctime -> mtime=50 ctime=50
        ",
    );
}

#[test]
fn attributes_are_set_with_the_times_that_posix_names() {
    check(
        "
        create /f
        at 10
        chmod /f 4711
        stat /f mode mtime ctime -> mode=4711 mtime=1 ctime=10
        at 20
        chown /f 5 6
        stat /f owner mode ctime -> owner=5:6 mode=4711 ctime=20
        chown-unprivileged /f 7
        stat /f owner mode -> owner=5:7 mode=711
        chmod /f 2640
        chown-unprivileged /f 8
        stat /f mode -> mode=2640
        at 30
        utimens /f 1000 -5
        stat /f atime mtime ctime -> atime=1000 mtime=-5 ctime=30
        at 40
        utimens /f omit now
        stat /f atime mtime ctime -> atime=1000 mtime=40 ctime=40
        at 50
        truncate /f 0
        stat /f mtime ctime version -> mtime=50 ctime=50 version=1
        mkdir /d
        truncate /d 0 -> IsDirectory
        mkfifo /p
        truncate /p 0 -> Invalid
        ",
    );
}

#[test]
fn ctime_does_not_go_back_with_the_clock() {
    check(
        "
        at 100
        create /f
        at 50
        chmod /f 700
        stat /f ctime -> ctime=100
        ",
    );
}

#[test]
fn inline_content_is_cut_and_lengthened_with_zeros() {
    check(
        "
        create /f
        write /f hello
        stat /f size version -> size=5 version=2
        truncate /f 2
        cat /f -> he
        truncate /f 4
        cat /f -> he00
        truncate /f 0
        cat /f ->
        truncate /f 3
        cat /f -> 000
        truncate /f 16384
        stat /f size inline -> size=16384 inline=true
        truncate /f 16385 -> Stale
        truncate /f 0
        truncate /f 16385
        stat /f size inline -> size=16385 inline=false
        truncate /f 0
        stat /f size inline -> size=0 inline=true
        truncate /f 288230376151711744
        truncate /f 288230376151711745 -> FileTooBig
        ",
    );
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    check(
        "
        create /f
        getxattr /f user.a -> NoAttribute
        listxattr /f ->
        at 10
        setxattr /f user.a one
        stat /f ctime mtime -> ctime=10 mtime=1
        setxattr-create /f user.a two -> Exists
        setxattr-replace /f user.b two -> NoAttribute
        setxattr-replace /f user.a two
        getxattr /f user.a -> two
        setxattr-create /f user.b three
        listxattr /f -> user.a user.b
        removexattr /f user.a
        removexattr /f user.a -> NoAttribute
        listxattr /f -> user.b
        unlink /f
        ",
    );
}

#[test]
fn the_names_of_all_attributes_fit_one_list() {
    let mut world = World::new();
    world.make("/f", Kind::File, false, false).expect("made");
    let inode = world.find("/f").expect("there").id;
    let set = |world: &mut World, number: usize| {
        let name = format!("user.{number:0>250}").into();
        let value = bytes::Bytes::new();
        world.ask(Request::SetXattr(SetXattr { inode, name, value, create: false, replace: false }))
    };
    // 256 bytes each with the NUL: 256 of them are the 64 KiB that a list may have.
    for number in 0..256 {
        set(&mut world, number).expect("fits");
    }
    assert_eq!(set(&mut world, 256), Err(FsError::NoSpace));
    assert!(set(&mut world, 255).is_ok(), "one that exists can still change");
    world.check_invariants();
    let (parent, name) = world.place("/f").expect("a place");
    world.ask(Request::Unlink { parent, name }).expect("unlinked");
    world.check_invariants();
    assert_eq!(world.purgeable.len(), 1, "too many to go in one step");
    assert_eq!(world.counters.orphans, 1);
    world.run(|view, now| crate::core::op::purge(view, now, inode, 10)).expect("purged");
    world.check_invariants();
    assert_eq!(world.counters.inodes, 1);
}
