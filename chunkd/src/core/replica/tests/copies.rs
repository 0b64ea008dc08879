//! A request of the primary comes twice, and the second copy long after the first.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::replica_set::{Grant, Home, Member};
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::super::super::message::{
    CallId, Context, DiskAnswer, DiskJob, Effect, Input, PeerAnswer, PeerRequest, Reply, Request, Sealed,
};
use super::super::{Recovered, ReplicaCore};

const VERSION: Version = Version(4);

fn activate(activation: u64) -> PeerRequest {
    let member = |node| Member { node: NodeId(node), address: "".into() };
    let grant = Grant {
        chunk: ChunkId(9),
        version: VERSION,
        primary: NodeId(2),
        primary_boot: BootSession(5),
        members: vec![member(2)],
        syncing: vec![member(1)],
        min_in_sync: 1,
        home: Home::default(),
        may_create: false,
        chunk_size_log2: 16,
        loss_version: Version(0),
    };
    PeerRequest::Activate { grant: Sealed { grant: Arc::new(grant), bytes: Bytes::new() }, activation }
}

/// Lets the core answer a request of the primary, with a disk that does all it is told to.
fn ask(core: &mut ReplicaCore, call: u64, request: PeerRequest) -> Result<Reply, FsError> {
    let context = Context {
        now: MonoMs(1_000),
        node: NodeId(1),
        boot: BootSession(1),
        lease_until: MonoMs(5_000),
        disk_room: 1 << 30,
        random: 9,
    };
    let request =
        Request::Peer { node: NodeId(2), boot: BootSession(5), version: VERSION, request, payload: Bytes::new() };
    let call = CallId(call);
    let mut effects = Vec::new();
    core.step(&context, Input::Begin { call, deadline: MonoMs(9_000), request }, &mut effects);
    loop {
        assert!(!effects.is_empty(), "it waits for nothing");
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Disk { tag, job, .. } => {
                    let answer = match job {
                        DiskJob::Table => DiskAnswer::Table(Vec::new()),
                        _ => DiskAnswer::Done,
                    };
                    core.step(&context, Input::DiskDone { call, tag, result: Ok(answer) }, &mut effects);
                }
                Effect::Reply { result, .. } => return result,
                _ => {}
            }
        }
    }
}

fn is_whole(answer: Result<Reply, FsError>) -> bool {
    matches!(answer, Ok(Reply::Peer(PeerAnswer::Table { present: true, .. })))
}

#[test]
fn a_replica_that_was_filled_stays_whole_when_the_activation_comes_once_more() {
    let mut core = ReplicaCore::new(VERSION, true, ChunkId(9), 16, Recovered::default());
    assert!(!is_whole(ask(&mut core, 1, activate(7))));
    // Until the primary goes on, it may not have heard the answer.
    assert!(ask(&mut core, 2, activate(7)).is_ok());
    let barrier = PeerRequest::Barrier { seq: 3, activation: 7, keys: Vec::new() };
    assert!(matches!(ask(&mut core, 3, barrier), Ok(Reply::Peer(PeerAnswer::Done))));
    assert!(matches!(ask(&mut core, 4, activate(7)), Err(FsError::TryAgain(_))));
}

#[test]
fn a_replica_that_was_filled_stays_whole_when_an_attempt_that_was_given_up_comes_late() {
    let mut core = ReplicaCore::new(VERSION, true, ChunkId(9), 16, Recovered::default());
    assert!(!is_whole(ask(&mut core, 1, activate(7))));
    let barrier = PeerRequest::Barrier { seq: 3, activation: 7, keys: Vec::new() };
    assert!(matches!(ask(&mut core, 2, barrier), Ok(Reply::Peer(PeerAnswer::Done))));
    // The primary sent this one before the other, and it was never followed.
    assert!(matches!(ask(&mut core, 3, activate(6)), Err(FsError::TryAgain(_))));
    assert!(!core.is_incomplete(), "the master may have taken it into the set");
}
