use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::wire::{Listener, accept_hello};
use dfs_proto::{BootSession, ClusterId, NodeId};

use super::*;

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn identity(role: pb::Role, session: u64) -> Identity {
    Identity { cluster: Some(CLUSTER), role, node: NodeId(1), boot: BootSession(1), session: SessionId(session) }
}

/// What a server does with the requests it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    AfterMs(u64),
    Never,
}

/// A chunk server; it says hello to the first `hellos` connections and takes no notice of the others.
struct FakeServer {
    listener: Listener,
    /// The session in the last hello.
    session: Arc<AtomicU64>,
}

impl FakeServer {
    fn start(answers: Answers, hellos: u64) -> Self {
        let (count, session) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let seen = Arc::clone(&session);
        let listener = Listener::start("127.0.0.1:0", 64, "fake-server", move |mut connection| {
            if count.fetch_add(1, Ordering::SeqCst) >= hellos {
                while connection.recv(None).is_ok() {}
                return;
            }
            let own = identity(pb::Role::ChunkServer, 0);
            let roles = [pb::Role::Mount];
            let Ok(peer) = accept_hello(&mut connection, &own, &roles, Duration::from_secs(5)) else { return };
            seen.store(peer.session.0, Ordering::SeqCst);
            while let Ok(frame) = connection.recv(None) {
                if let Answers::AfterMs(ms) = answers {
                    std::thread::sleep(Duration::from_millis(ms));
                    let reply = pb::DataReply::default();
                    if connection.send(FrameKind::DataReply, frame.request_id, &reply, &[]).is_err() {
                        return;
                    }
                }
            }
        });
        Self { listener: listener.expect("listens"), session }
    }

    fn address(&self) -> Arc<str> {
        self.listener.address().to_string().into()
    }
}

fn servers() -> Servers {
    Servers::new(identity(pb::Role::Mount, 1))
}

fn within(ms: u64) -> Times {
    let now = Instant::now();
    Times { check_at: now + Duration::from_millis(ms.min(300)), until: now + Duration::from_millis(ms) }
}

fn ask(servers: &Servers, address: &Arc<str>, ms: u64) -> (Result<(), Trouble>, Duration) {
    let begun = Instant::now();
    let outcome = servers.ask(address, &pb::DataRequest::default(), b"payload", within(ms), None);
    (outcome.map(drop), begun.elapsed())
}

#[test]
fn a_server_that_is_there_has_all_the_time_there_is() {
    let server = FakeServer::start(Answers::AfterMs(3_000), u64::MAX);
    let (outcome, took) = ask(&servers(), &server.address(), 10_000);
    assert_eq!(outcome, Ok(()));
    assert!(took >= Duration::from_secs(3), "{took:?}");
}

#[test]
fn an_attempt_ends_in_time_at_a_server_that_is_there() {
    let server = FakeServer::start(Answers::Never, u64::MAX);
    let (outcome, took) = ask(&servers(), &server.address(), 1_000);
    assert!(matches!(outcome, Err(Trouble::Unanswered(_))), "{outcome:?}");
    assert!((Duration::from_millis(1_000)..Duration::from_millis(1_400)).contains(&took), "{took:?}");
}

#[test]
fn a_server_that_stopped_after_it_took_the_request_is_left_early() {
    let server = FakeServer::start(Answers::Never, 1);
    let (outcome, took) = ask(&servers(), &server.address(), 20_000);
    assert!(matches!(outcome, Err(Trouble::Unanswered(_))), "{outcome:?}");
    assert!(took < Duration::from_millis(2_500), "{took:?}");
}

#[test]
fn a_silent_server_is_looked_after_by_one_call_and_left_by_the_others_at_once() {
    let (servers, server) = (servers(), FakeServer::start(Answers::Never, 0));
    let address = server.address();
    assert!(ask(&servers, &address, 5_000).0.is_err());
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&servers, &address, 5_000))).collect();
        let outcomes: Vec<_> = calls.into_iter().map(|call| call.join().expect("no panic")).collect();
        assert!(outcomes.iter().all(|(outcome, _)| outcome.is_err()));
        let waited = outcomes.iter().filter(|(_, took)| *took > Duration::from_millis(500)).count();
        assert!(waited <= 2, "{outcomes:?}");
    });
}

#[test]
fn nobody_there_is_known_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address: Arc<str> = listener.local_addr().expect("bound").to_string().into();
    drop(listener);
    for _ in 0..3 {
        let (outcome, took) = ask(&servers(), &address, 5_000);
        assert!(matches!(outcome, Err(Trouble::Unanswered(_))), "{outcome:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
}

#[test]
fn what_was_written_under_a_lost_session_is_not_sent_under_the_next() {
    let (servers, server) = (servers(), FakeServer::start(Answers::AfterMs(0), u64::MAX));
    let address = server.address();
    let before = servers.generation();
    let write = |generation| {
        servers.ask(&address, &pb::DataRequest::default(), b"bytes", within(5_000), Some(generation)).map(drop)
    };
    assert_eq!(write(before), Ok(()));
    assert_eq!(server.session.load(Ordering::SeqCst), 1);
    servers.session_changed(SessionId(2));
    assert_eq!(write(before), Err(Trouble::Refused(FsError::SessionLost)));
    assert_eq!(write(servers.generation()), Ok(()));
    assert_eq!(server.session.load(Ordering::SeqCst), 2, "a new connection, a new hello");
}
