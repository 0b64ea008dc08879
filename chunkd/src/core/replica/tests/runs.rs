//! A server goes on, but its run has ended: the master has given its roles to others.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::{Grant, Home, Member};
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::super::super::message::{
    CallId, ClientRequest, Context, DiskAnswer, DiskJob, Effect, Input, Reply, Request, Sealed,
};
use super::super::super::unit::UnitState;
use super::super::{Recovered, ReplicaCore};

const READ: CallId = CallId(7);

fn context(boot: u64) -> Context {
    let (now, lease_until) = (MonoMs(1_000), MonoMs(5_000));
    Context { now, node: NodeId(1), boot: BootSession(boot), lease_until, disk_room: 1 << 30, random: 9 }
}

fn grant(boot: u64) -> Sealed {
    let grant = Grant {
        chunk: ChunkId(9),
        version: Version(4),
        primary: NodeId(1),
        primary_boot: BootSession(boot),
        members: vec![Member { node: NodeId(1), address: "".into() }],
        syncing: Vec::new(),
        min_in_sync: 1,
        home: Home::default(),
        may_create: false,
        chunk_size_log2: 16,
        loss_version: Version(0),
    };
    Sealed { grant: Arc::new(grant), bytes: Bytes::new() }
}

/// Begins a read under a grant to run 1, ends its disk job in run `boot`, and returns the answer.
fn read_that_ends_in(boot: u64) -> Result<Reply, FsError> {
    let mut core = ReplicaCore::new(Version(4), false, ChunkId(9), 16, Recovered::default());
    let request = ClientRequest::Read { offset: 0, length: UNIT_SIZE };
    let request = Request::Client { grant: grant(1), request };
    let mut effects = Vec::new();
    core.step(&context(1), Input::Begin { call: READ, deadline: MonoMs(9_000), request }, &mut effects);
    let is_read = |effect: &Effect| match effect {
        Effect::Disk { tag, job: DiskJob::Read { .. }, .. } => Some(*tag),
        _ => None,
    };
    let tag = effects.iter().find_map(is_read).expect("the disk is read");
    let content = Bytes::from_static(&[0; UNIT_SIZE as usize]);
    let result = Ok(DiskAnswer::Units(vec![Some(UnitState::NEVER)], content));
    effects.clear();
    core.step(&context(boot), Input::DiskDone { call: READ, tag, result }, &mut effects);
    let reply = effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { call: READ, result } => Some(result),
        _ => None,
    });
    reply.expect("it is answered")
}

#[test]
fn what_was_granted_to_a_run_ends_with_it() {
    assert!(matches!(read_that_ends_in(1), Ok(Reply::Data { .. })));
    // The lease is the new run's, so it says nothing about this read.
    assert!(matches!(read_that_ends_in(2), Err(FsError::Stale(_))));
}
