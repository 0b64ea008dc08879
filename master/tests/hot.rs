//! The hot plane of a running master, as a mount sees it.

#![allow(clippy::disallowed_methods, reason = "a shell: deadlines and files of a test")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dfs_master::{Deadlines, EngineKind, Master, MasterConfig};
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, connect, offer_hello};
use dfs_proto::{BootSession, FsError, InodeId, Kind, NodeId, SessionId};
use meta_request::Body;

struct Mount {
    connection: Connection,
    number: u64,
    seq: u64,
}

fn config(directory: &std::path::Path, engine: EngineKind) -> MasterConfig {
    MasterConfig { data: directory.to_owned(), listen: "127.0.0.1:0".into(), engine, ..Default::default() }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

impl Mount {
    fn dial(master: &Master, session: u64) -> Self {
        let address = master.addresses().hot.to_string();
        let mut connection = connect(&address, Duration::from_secs(5)).expect("connects");
        let own = Identity {
            cluster: None,
            role: pb::Role::Mount,
            node: NodeId(0),
            boot: BootSession(7),
            session: SessionId(session),
        };
        let peer = offer_hello(&mut connection, &own, pb::Role::Master, deadline()).expect("welcome");
        assert_eq!(peer.cluster, Some(master.cluster_id()));
        Self { connection, number: 1, seq: 0 }
    }

    fn open(master: &Master, client: u8) -> (Self, u64) {
        let mut mount = Self::dial(master, 0);
        let open = pb::SessionOpen { client_id: vec![client; 16].into(), host: "here".into(), ..Default::default() };
        let Ok(meta_reply::Body::SessionOpened(opened)) = mount.ask(Body::SessionOpen(open)) else {
            panic!("no session")
        };
        assert_eq!(opened.root.expect("a root").inode, InodeId::ROOT.0);
        (mount, opened.session)
    }

    fn send(&mut self, request: &pb::MetaRequest) -> pb::MetaReply {
        let (reply, _): (pb::MetaReply, _) = self
            .connection
            .call(FrameKind::MetaRequest, FrameKind::MetaReply, request, &[], Some(deadline()))
            .expect("answered");
        self.seq = self.seq.max(reply.seq);
        reply
    }

    fn ask(&mut self, body: Body) -> Result<meta_reply::Body, FsError> {
        let number = self.number;
        self.number += 1;
        let reply = self.send(&pb::MetaRequest { number, body: Some(body), ..Default::default() });
        match reply.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(reply.body.expect("a body")),
        }
    }

    fn attr(&mut self, body: Body) -> Result<pb::Attr, FsError> {
        match self.ask(body)? {
            meta_reply::Body::Entry(entry) => Ok(entry.attr.expect("attributes")),
            meta_reply::Body::Opened(opened) => Ok(opened.attr.expect("attributes")),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn make(parent: u64, name: &str, kind: Kind) -> Body {
    Body::Make(pb::Make {
        parent,
        name: name.to_owned().into(),
        kind: kind as u32,
        mode: 0o644,
        open: kind == Kind::File,
        ..Default::default()
    })
}

fn lookup(parent: u64, name: &str) -> Body {
    Body::Lookup(pb::Lookup { parent, name: name.to_owned().into() })
}

fn names(mount: &mut Mount, inode: u64) -> Vec<String> {
    let list = Body::ReadDir(pb::ReadDir { inode, after: 0, limit: 0, plus: true });
    let Ok(meta_reply::Body::Listing(listing)) = mount.ask(list) else { panic!("no listing") };
    assert!(listing.end);
    listing.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

#[test]
fn a_mount_makes_finds_writes_lists_and_removes() {
    let directory = tempfile::tempdir().expect("a directory");
    let master = Master::start(config(directory.path(), EngineKind::Embedded)).expect("starts");
    let (mut mount, _) = Mount::open(&master, 1);
    let dir = mount.attr(make(1, "dir", Kind::Directory)).expect("made").inode;
    let file = mount.attr(make(dir, "file", Kind::File)).expect("made");
    assert!(file.is_inline && file.nlink == 1);
    let commit = pb::CommitWrite {
        inode: file.inode,
        content: Some("hello".into()),
        if_data_version: file.data_version,
        ..Default::default()
    };
    let written = mount.attr(Body::CommitWrite(commit)).expect("committed");
    assert_eq!((written.size, written.data_version), (5, file.data_version + 1));
    let Ok(meta_reply::Body::Opened(opened)) = mount.ask(Body::Open(pb::Open { inode: file.inode, write: false }))
    else {
        panic!("not opened")
    };
    assert_eq!(&opened.content[..], b"hello");
    assert_eq!(mount.attr(lookup(dir, "file")).expect("found").size, 5);
    assert_eq!(names(&mut mount, 1), ["dir"]);
    assert_eq!(names(&mut mount, dir), ["file"]);
    assert_eq!(mount.attr(lookup(1, "none")), Err(FsError::NoEntry));
    let unlink = |name: &str| Body::Unlink(pb::Unlink { parent: dir, name: name.to_owned().into() });
    mount.ask(unlink("file")).expect("unlinked");
    assert_eq!(mount.attr(lookup(dir, "file")), Err(FsError::NoEntry));
    // Two handles are open still.
    let get = || Body::GetAttr(pb::GetAttr { inode: file.inode });
    assert_eq!(mount.attr(get()).expect("an orphan").nlink, 0);
    let opens = vec![pb::OpenCount { inode: file.inode, count: 2 }];
    mount.ask(Body::Release(pb::Release { opens })).expect("released");
    assert_eq!(mount.attr(get()), Err(FsError::NoEntry));
    master.stop();
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_is_not_done_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let master = Master::start(config(directory.path(), EngineKind::Embedded)).expect("starts");
    let cluster = master.cluster_id();
    let (mut mount, session) = Mount::open(&master, 1);
    let request = pb::MetaRequest { number: 77, body: Some(make(1, "a", Kind::Directory)), ..Default::default() };
    let first = mount.send(&request);
    assert!(first.failure.is_none() && first.seq > 0);
    let again = mount.send(&request);
    assert_eq!((again.seq, &again.body), (first.seq, &first.body));
    let sync = Body::Sync(pb::Sync { seq: first.seq });
    mount.ask(sync).expect("synced");
    master.stop();

    let master = Master::start(config(directory.path(), EngineKind::Embedded)).expect("starts again");
    assert_eq!(master.cluster_id(), cluster);
    let mut mount = Mount::dial(&master, session);
    assert!(matches!(mount.attr(lookup(1, "a")), Err(FsError::TryAgain(_))), "it has to come back first");
    mount.ask(Body::SessionReclaim(pb::SessionReclaim { opens: vec![], last: false })).expect("reclaimed");
    let mut replay = request.clone();
    replay.replay = Some(pb::Replay { seq: first.seq, time: first.time, ..Default::default() });
    let replayed = mount.send(&replay);
    assert_eq!(replayed.body, first.body);
    mount.ask(Body::SessionReclaim(pb::SessionReclaim { opens: vec![], last: true })).expect("reclaimed");
    mount.attr(lookup(1, "a")).expect("still there");
    assert_eq!(names(&mut mount, 1), ["a"]);
}

#[test]
fn nobody_is_served_without_a_session() {
    let directory = tempfile::tempdir().expect("a directory");
    let master = Master::start(config(directory.path(), EngineKind::Memory)).expect("starts");
    let mut mount = Mount::dial(&master, 12_345);
    assert_eq!(mount.attr(lookup(1, "a")), Err(FsError::UnknownSession));
    let (mut mount, session) = Mount::open(&master, 1);
    let (_, same) = Mount::open(&master, 1);
    assert_eq!(session, same, "a retry of the same mount opens no second session");
    mount.ask(Body::SessionClose(pb::SessionClose {})).expect("closed");
    assert_eq!(mount.attr(lookup(1, "a")), Err(FsError::UnknownSession));
}

#[test]
fn a_data_directory_in_use_or_of_another_make_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let master = Master::start(config(directory.path(), EngineKind::Embedded)).expect("starts");
    let Err(error) = Master::start(config(directory.path(), EngineKind::Embedded)) else { panic!("started twice") };
    assert!(error.to_string().contains("another process uses"), "{error}");
    master.stop();
    std::fs::remove_file(directory.path().join("CLUSTER")).expect("removed");
    let Err(error) = Master::start(config(directory.path(), EngineKind::Embedded)) else { panic!("started") };
    assert!(error.to_string().contains("no CLUSTER file"), "{error}");
}

/// Returns how long it takes until the master hangs up on `stream`, to which `drip` is sent a byte at a time.
fn until_hung_up(mut stream: TcpStream, drip: &[u8]) -> Duration {
    let started = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("sets");
    let mut drip = drip.iter();
    while started.elapsed() < Duration::from_secs(20) {
        if let Some(byte) = drip.next() {
            // It may have hung up already: the read tells.
            let _ = stream.write_all(&[*byte]);
        }
        match stream.read(&mut [0; 64]) {
            Ok(0) => return started.elapsed(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return started.elapsed(),
            _ => {}
        }
    }
    panic!("the connection is open still");
}

#[test]
fn peers_that_say_nothing_or_little_or_nonsense_are_hung_up_on_and_others_are_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let short = Duration::from_millis(300);
    let deadlines = Deadlines { hello: short, idle: 2 * short, ..Deadlines::default() };
    let master = Master::start_with(config(directory.path(), EngineKind::Memory), deadlines).expect("starts");
    let hot = master.addresses().hot;
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(hot).expect("connects")).collect();
    let (mut mount, _) = Mount::open(&master, 1);
    mount.attr(make(1, "a", Kind::Directory)).expect("served meanwhile");
    let header = dfs_proto::wire::FrameHeader::encode(FrameKind::Hello, 1, b"some head", b"");
    assert!(until_hung_up(TcpStream::connect(hot).expect("connects"), &header) >= short, "a byte now and then");
    for stream in silent {
        until_hung_up(stream, b"");
    }

    let mut large = header;
    large[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut stream = TcpStream::connect(hot).expect("connects");
    stream.write_all(&large).expect("sent");
    assert!(until_hung_up(stream, b"") < short, "a length above the limit is not waited for");

    let welcome = Mount::dial(&master, 0).connection;
    let request = dfs_proto::wire::FrameHeader::encode(FrameKind::MetaRequest, 1, &[7; 1 << 20], b"");
    let stream = welcome.socket().expect("cloned");
    assert!(until_hung_up(stream, &request) >= short, "a request that does not come to its end");
}
