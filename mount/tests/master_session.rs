//! The session with a master that is slow, silent, restarted, or has forgotten us.

#![allow(clippy::disallowed_methods, reason = "a test uses clocks and threads")]

mod fake_master;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_mount::core::Policy;
use dfs_mount::fs::{Attr, Caller};
use dfs_mount::metrics::Metrics;
use dfs_mount::remote::{Make, MasterClient, SessionConfig};
use dfs_proto::{FsError, InodeId, Kind, Name};
use fake_master::FakeMaster;

const CALLER: Caller = Caller { uid: 7, gid: 8 };

fn open_session(masters: &[&str], policy: Policy) -> (MasterClient, Attr) {
    let config = SessionConfig {
        masters: masters.iter().map(|&address| address.to_owned()).collect(),
        host: "test".into(),
        mount_point: "/mnt".into(),
        metrics_address: String::new(),
        subdir: String::new(),
        read_only: false,
        policy,
        connect_ms: 5_000,
    };
    MasterClient::open_session(config, Arc::new(Metrics::new())).expect("a session")
}

fn soft(ms: u64) -> Policy {
    Policy::Soft { ms }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).expect("a name")
}

fn new_node(text: &str, kind: Kind, open: bool) -> Make {
    Make {
        parent: InodeId::ROOT,
        name: name(text),
        kind,
        mode: 0o755,
        rdev: 0,
        target: Bytes::new(),
        open,
        exclusive: true,
    }
}

fn make(client: &MasterClient, text: &str, kind: Kind, open: bool) -> Result<Attr, FsError> {
    client.make(CALLER, &new_node(text, kind, open)).map(|made| made.attr)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_master_that_answers_is_found_among_those_that_do_not() {
    let master = FakeMaster::start();
    let (client, root) = open_session(&["127.0.0.1:1", &master.address], soft(5_000));
    assert_eq!(root.inode, InodeId::ROOT);
    let made = make(&client, "d", Kind::Directory, false).expect("made");
    assert_eq!((made.uid, made.gid), (7, 8));
    assert_eq!(client.lookup(CALLER, InodeId::ROOT, &name("d")).expect("found").inode, made.inode);
    client.close().expect("closes");
    assert_eq!(master.sessions(), 0);
}

#[test]
fn a_change_whose_answer_was_lost_happens_once() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    master.swallow_next("Make");
    make(&client, "d", Kind::Directory, false).expect("the repeat is answered from the record, not with `Exists`");
    assert_eq!(master.names(), ["d"]);
}

#[test]
fn what_was_not_on_the_disk_is_replayed_after_a_restart_with_the_same_ids() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(10_000));
    let durable = make(&client, "durable", Kind::Directory, false).expect("made");
    master.set_durable(false);
    let made: Vec<Attr> =
        ["a", "b", "c"].iter().map(|text| make(&client, text, Kind::Directory, false).expect("made")).collect();
    let open = make(&client, "open", Kind::File, true).expect("made");
    master.kill();
    master.start_again();
    for (text, before) in ["a", "b", "c", "durable"].iter().zip(made.iter().chain([&durable])) {
        let after = client.lookup(CALLER, InodeId::ROOT, &name(text)).expect("it is there again");
        assert_eq!((after.inode, after.ctime), (before.inode, before.ctime), "{text}");
    }
    assert_eq!(master.opens().get(&open.inode.0), Some(&1), "held open once, not twice");
    client.release(open.inode);
    wait_until("the release", || master.opens().is_empty());
}

#[test]
fn what_rests_on_a_change_without_an_answer_is_replayed_behind_it() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(20_000));
    master.set_durable(false);
    master.withhold_next("Make");
    let making = client.clone();
    let call = std::thread::spawn(move || make(&making, "a", Kind::Directory, false));
    wait_until("the answer is withheld", || master.is_withheld());
    let seen = client.lookup(CALLER, InodeId::ROOT, &name("a")).expect("it shows already");
    let below = Make { parent: seen.inode, ..new_node("b", Kind::Directory, false) };
    let before = client.make(CALLER, &below).expect("made").attr;
    master.kill();
    master.start_again();
    assert_eq!(call.join().expect("no panic").expect("made").inode, seen.inode);
    assert_eq!(client.lookup(CALLER, seen.inode, &name("b")).expect("it is there again"), before);
    assert_eq!(master.names(), ["a", "b"]);
}

#[test]
fn a_new_file_whose_answer_died_with_the_master_is_held_open_by_the_next_one() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(20_000));
    for is_durable in [false, true] {
        master.set_durable(is_durable);
        master.withhold_next("Make");
        let making = client.clone();
        let call = std::thread::spawn(move || make(&making, &format!("file {is_durable}"), Kind::File, true));
        wait_until("the answer is withheld", || master.is_withheld());
        master.kill();
        master.start_again();
        let file = call.join().expect("no panic").expect("made");
        assert_eq!(master.opens().get(&file.inode.0), Some(&1), "on the disk: {is_durable}");
    }
}

#[test]
fn a_release_whose_answer_was_lost_is_not_sent_again() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    let file = make(&client, "file", Kind::File, true).expect("made");
    client.open(CALLER, file.inode, true).expect("opened");
    let other = make(&client, "other", Kind::File, true).expect("made");
    master.swallow_next("Release");
    client.release(file.inode);
    wait_until("the release", || master.opens().get(&file.inode.0) == Some(&1));
    client.release(other.inode);
    wait_until("a later one", || !master.opens().contains_key(&other.inode.0));
    assert_eq!(master.opens().get(&file.inode.0), Some(&1), "the second handle still holds it");
}

#[test]
fn a_release_that_a_dead_master_missed_is_not_news_to_the_next_one() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(10_000));
    let file = make(&client, "file", Kind::File, true).expect("made");
    client.open(CALLER, file.inode, true).expect("opened");
    let other = make(&client, "other", Kind::File, true).expect("made");
    master.kill();
    client.release(file.inode);
    master.start_again();
    client.get_attr(file.inode).expect("the session is reclaimed");
    client.release(other.inode);
    wait_until("a later one", || !master.opens().contains_key(&other.inode.0));
    assert_eq!(master.opens().get(&file.inode.0), Some(&1), "the second handle still holds it");
}

#[test]
fn a_session_that_is_gone_when_it_is_given_back_is_no_loss() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    let is_lost = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_lost);
    client.on_session_lost(move |_| told.store(true, Ordering::SeqCst));
    master.swallow_next("SessionClose");
    client.close().expect("closes");
    assert_eq!(master.sessions(), 0);
    assert!(!is_lost.load(Ordering::SeqCst));
}

#[test]
fn a_call_that_meets_a_dead_master_waits_for_the_next_one() {
    let master = Arc::new(FakeMaster::start());
    let (client, _) = open_session(&[&master.address], soft(30_000));
    master.kill();
    let (calling, again) = (client.clone(), Arc::clone(&master));
    let call = std::thread::spawn(move || make(&calling, "late", Kind::Directory, false));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!call.is_finished());
    again.start_again();
    call.join().expect("no panic").expect("made");
    assert_eq!(master.names(), ["late"]);
}

#[test]
fn silence_ends_with_the_deadline() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(300));
    master.set_silent(true);
    let begun = Instant::now();
    assert_eq!(client.get_attr(InodeId::ROOT), Err(FsError::TimedOut("the master")));
    assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn a_lost_session_is_replaced_and_says_so() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    let open = make(&client, "open", Kind::File, true).expect("made");
    let is_lost = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_lost);
    client.on_session_lost(move |_| told.store(true, Ordering::SeqCst));
    let before = (client.session(), client.generation());
    master.end_all_sessions();
    make(&client, "new", Kind::Directory, false).expect("made under the new session");
    assert!(is_lost.load(Ordering::SeqCst));
    assert_ne!(client.session(), before.0);
    assert_eq!(client.generation(), before.1 + 1);
    wait_until("what is open is open in the new session", || master.opens().get(&open.inode.0) == Some(&1));
}

#[test]
fn what_is_open_is_told_to_the_master_of_a_new_session_until_it_is_heard() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    let open = make(&client, "open", Kind::File, true).expect("made");
    master.end_all_sessions();
    master.take_log();
    master.swallow_next("SessionReclaim");
    make(&client, "new", Kind::Directory, false).expect("made under the new session");
    let reclaims = master.take_log().iter().filter(|op| *op == "SessionReclaim").count();
    assert!(reclaims >= 2, "{reclaims}");
    assert_eq!(master.opens().get(&open.inode.0), Some(&1));
}

#[test]
fn content_of_a_lost_session_is_not_written_by_the_next_one() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(5_000));
    let file = make(&client, "file", Kind::File, true).expect("made");
    master.end_all_sessions();
    let commit = dfs_mount::remote::CommitWrite {
        inode: file.inode,
        end: 1,
        mtime: file.mtime,
        written: Vec::new(),
        content: Some(Bytes::from_static(b"x")),
        leave_inline: false,
        if_data_version: file.data_version,
        clear_suid_sgid: false,
    };
    assert_eq!(client.commit_write(commit), Err(FsError::SessionLost));
}

#[test]
fn many_threads_share_the_session() {
    let master = FakeMaster::start();
    let (client, _) = open_session(&[&master.address], soft(10_000));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for at in 0..50 {
                    make(&client, &format!("{thread}-{at}"), Kind::Directory, false).expect("made");
                }
            });
        }
    });
    assert_eq!(master.names().len(), 400);
    client.sync().expect("synced");
}
