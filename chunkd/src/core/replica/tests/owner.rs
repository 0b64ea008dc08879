//! The call that carries an activation on, when there is news that are not for the activation.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::replica_set::{Grant, Home, Member};
use dfs_proto::{BootSession, ChunkId, MonoMs, NodeId, Version};

use super::super::super::message::{
    CallId, Context, DiskAnswer, DiskJob, Effect, Input, PeerAnswer, PeerRequest, ReplicaOrder, Reply, Request, Sealed,
};
use super::super::{Recovered, ReplicaCore};

pub(super) fn context() -> Context {
    let (now, lease_until) = (MonoMs(100), MonoMs(1_000_000));
    Context { now, node: NodeId(1), boot: BootSession(1), lease_until, disk_room: 1 << 30, random: 9 }
}

fn member(node: u32) -> Member {
    Member { node: NodeId(node), address: "".into() }
}

pub(super) fn grant(version: u64, syncing: &[u32]) -> Sealed {
    let grant = Grant {
        chunk: ChunkId(9),
        home: Home::default(),
        version: Version(version),
        primary: NodeId(1),
        primary_boot: BootSession(1),
        members: vec![member(1), member(2)],
        syncing: syncing.iter().map(|node| member(*node)).collect(),
        min_in_sync: 2,
        may_create: false,
        chunk_size_log2: 16,
        loss_version: Version(0),
    };
    Sealed { grant: Arc::new(grant), bytes: Bytes::new() }
}

/// A replica whose effects are carried out one at a time, the oldest first.
struct Bench {
    core: ReplicaCore,
    todo: Vec<Effect>,
}

impl Bench {
    fn step(&mut self, input: Input) {
        self.core.step(&context(), input, &mut self.todo);
    }

    fn order(&mut self, call: u64, grant: Sealed, order: ReplicaOrder) {
        let request = Request::Order { grant, order };
        self.step(Input::Begin { call: CallId(call), deadline: MonoMs(900_000), request });
    }

    /// Carries at most `count` effects out, the oldest first. Returns which calls were replied to.
    fn work(&mut self, count: usize) -> Vec<u64> {
        let mut replied = Vec::new();
        for _ in 0..count {
            if self.todo.is_empty() {
                break;
            }
            match self.todo.remove(0) {
                Effect::Send { call, tag, request, .. } => {
                    let answer = match request {
                        PeerRequest::Activate { .. } => {
                            PeerAnswer::Table { present: true, seq: 0, table: Vec::new(), keys: Vec::new() }
                        }
                        _ => PeerAnswer::Done,
                    };
                    self.step(Input::Answered { call, tag, result: Ok(answer) });
                }
                Effect::Disk { call, tag, job } => {
                    let answer = match job {
                        DiskJob::Table | DiskJob::Entries { .. } => DiskAnswer::Table(Vec::new()),
                        DiskJob::Extents { .. } => DiskAnswer::Extents(Vec::new()),
                        _ => DiskAnswer::Done,
                    };
                    self.step(Input::DiskDone { call, tag, result: Ok(answer) });
                }
                Effect::Reply { call, result } => {
                    assert!(matches!(result, Ok(Reply::Order(_))), "{result:?}");
                    replied.push(call.0);
                }
                Effect::AskMaster { .. } | Effect::Expire { .. } | Effect::Note(_) => {}
            }
        }
        replied
    }
}

#[test]
fn a_newer_grant_in_the_middle_of_an_activation_leaves_nobody_waiting() {
    // However far the first has come by then.
    for count in 0..40 {
        let core = ReplicaCore::new(Version(4), false, ChunkId(9), 16, Recovered::default());
        let mut bench = Bench { core, todo: Vec::new() };
        bench.order(1, grant(4, &[]), ReplicaOrder::Scrub { deep: false });
        let mut replied = bench.work(count);
        bench.order(2, grant(5, &[3]), ReplicaOrder::Scrub { deep: false });
        replied.extend(bench.work(1_000));
        replied.sort_unstable();
        assert_eq!(replied, [1, 2], "after {count} effects");
    }
}
