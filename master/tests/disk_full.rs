//! A master whose own disk is full: it stops serving, says so, and has everything it acknowledged once there is room.
//!
//! Needs a file system that can be full, which takes root; for anybody else there is nothing to test.

#![allow(clippy::disallowed_methods, reason = "a shell: deadlines, files and mounts of a test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dfs_master::{EngineKind, Master, MasterConfig};
use dfs_proto::wire::pb::{self, meta_reply, meta_request::Body};
use dfs_proto::wire::{Connection, FrameKind, Identity, connect, offer_hello};
use dfs_proto::{BootSession, FsError, Kind, NodeId, SessionId};

/// A small file system in memory, for as long as this lives.
struct SmallDisk {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl SmallDisk {
    /// `None` without the right to mount.
    fn new(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        std::fs::create_dir(&path).expect("made");
        let options = format!("size={size}");
        let is_mounted = run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"], &path);
        is_mounted.then_some(Self { _directory: directory, path })
    }

    fn resize(&self, size: &str) {
        assert!(run("mount", &["-o", &format!("remount,size={size}")], &self.path), "resized");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: after a failed test somebody may have files open on it still.
        run("umount", &["-l"], &self.path);
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).output().is_ok_and(|output| output.status.success())
}

fn start(disk: &SmallDisk) -> Master {
    let config = MasterConfig {
        data: disk.path.join("master"),
        listen: "127.0.0.1:0".into(),
        engine: EngineKind::Embedded,
        ..MasterConfig::default()
    };
    Master::start(config).expect("starts")
}

fn dial(master: &Master, session: u64) -> Connection {
    let mut connection = connect(&master.addresses().hot.to_string(), Duration::from_secs(5)).expect("connects");
    let (role, session) = (pb::Role::Mount, SessionId(session));
    let own = Identity { cluster: None, role, node: NodeId(0), boot: BootSession(7), session };
    offer_hello(&mut connection, &own, pb::Role::Master, deadline()).expect("welcome");
    connection
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn ask(connection: &mut Connection, number: u64, body: Body) -> Result<meta_reply::Body, FsError> {
    // What is acknowledged is forgotten, so that the disk fills with files and not with replies.
    let request = pb::MetaRequest { number, acked_below: number, body: Some(body), ..Default::default() };
    let (reply, _): (pb::MetaReply, _) = connection
        .call(FrameKind::MetaRequest, FrameKind::MetaReply, &request, &[], Some(deadline()))
        .expect("answered, if only with an error");
    reply.failure.map_or_else(|| Ok(reply.body.expect("a body")), |failure| Err(failure.into()))
}

fn open_session(connection: &mut Connection) -> u64 {
    let open = pb::SessionOpen { client_id: vec![1; 16].into(), ..Default::default() };
    match ask(connection, 0, Body::SessionOpen(open)) {
        Ok(meta_reply::Body::SessionOpened(opened)) => opened.session,
        other => panic!("unexpected {other:?}"),
    }
}

fn name(number: u64) -> bytes::Bytes {
    format!("file{number:06}").into()
}

fn create(connection: &mut Connection, number: u64) -> Result<(), FsError> {
    let kind = Kind::File as u32;
    let make = pb::Make { parent: 1, name: name(number), kind, exclusive: true, ..Default::default() };
    let meta_reply::Body::Entry(entry) = ask(connection, 2 * number, Body::Make(make))? else { panic!("an entry") };
    let content = Some(vec![number as u8; 16_000].into());
    let commit =
        pb::CommitWrite { inode: entry.attr.expect("there").inode, content, if_data_version: 1, ..Default::default() };
    ask(connection, 2 * number + 1, Body::CommitWrite(commit)).map(|_| ())
}

fn health(address: SocketAddr) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, answer)
}

#[test]
fn a_full_disk_stops_the_master_with_the_reason_and_loses_nothing() {
    check("24m");
}

#[test]
fn so_does_one_that_is_full_when_the_engine_writes_a_table() {
    check("72m");
}

fn check(size: &str) {
    let Some(disk) = SmallDisk::new(size) else {
        eprintln!("not run: mounting a tmpfs takes root");
        return;
    };
    let master = start(&disk);
    let mut connection = dial(&master, 0);
    let session = open_session(&mut connection);
    assert_eq!(health(master.addresses().http).0, 200);
    let mut made = 0;
    let error = loop {
        match create(&mut connection, made + 1) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 20_000, "{size} are full at some time");
    };
    assert!(matches!(&error, FsError::Io(_)), "{error}");
    let (status, page) = health(master.addresses().http);
    assert_eq!(status, 503, "{page}");
    // Who meets the full disk first, a commit or the engine's own thread, is chance.
    let has_reason = ["No space left", "bytes are free on the disk"].iter().any(|reason| page.contains(reason));
    assert!(has_reason, "{page}");
    let lookup = |number| Body::Lookup(pb::Lookup { parent: 1, name: name(number) });
    assert!(matches!(ask(&mut connection, 0, lookup(1)), Err(FsError::Io(_))), "nothing is served any more");
    assert!(made > 100, "{made} files");
    master.stop();

    disk.resize("512m");
    let master = start(&disk);
    let mut connection = dial(&master, session);
    ask(&mut connection, 0, Body::SessionReclaim(pb::SessionReclaim { last: true, ..Default::default() }))
        .expect("back");
    for number in 1..=made {
        let found = ask(&mut connection, 0, lookup(number));
        let Ok(meta_reply::Body::Entry(pb::Entry { attr: Some(attr), .. })) = found else {
            panic!("file {number} was acknowledged: {found:?}")
        };
        assert_eq!(attr.size, 16_000);
    }
    create(&mut connection, made + 10).expect("it goes on");
    assert_eq!(health(master.addresses().http).0, 200);
    master.stop();
}
