//! A barrier for writes that may be gone, because all members lost their power since.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;
use dfs_proto::replica_set::Grant;
use dfs_proto::unit::checksums;
use dfs_proto::{ChunkId, FsError, MonoMs, Version};

use super::super::super::message::{
    CallId, ClientRequest, DiskAnswer, DiskJob, Effect, Input, PeerAnswer, PeerRequest, Reply, Request, Sealed,
};
use super::super::{Recovered, ReplicaCore};
use super::owner;

/// Returns the grant of `version`, of a set that was believed with version `loss` after a loss.
fn grant(version: u64, loss: u64) -> Sealed {
    let Sealed { grant, bytes } = owner::grant(version, &[]);
    Sealed { grant: Arc::new(Grant { loss_version: Version(loss), ..Grant::clone(&grant) }), bytes }
}

/// Lets the core, as primary, answer a mount. Peers and the disk do all they are told to.
fn ask(core: &mut ReplicaCore, call: u64, grant: &Sealed, request: ClientRequest) -> Result<Reply, FsError> {
    let context = owner::context();
    let request = Request::Client { grant: grant.clone(), request };
    let mut effects = Vec::new();
    core.step(&context, Input::Begin { call: CallId(call), deadline: MonoMs(900_000), request }, &mut effects);
    loop {
        assert!(!effects.is_empty(), "it waits for nothing");
        match effects.remove(0) {
            Effect::Send { call, tag, request, .. } => {
                let answer = match request {
                    PeerRequest::Activate { .. } => {
                        PeerAnswer::Table { present: true, seq: 0, table: Vec::new(), keys: Vec::new() }
                    }
                    PeerRequest::Prepare(prepare) => PeerAnswer::Prepared { seq: prepare.seq },
                    _ => PeerAnswer::Done,
                };
                core.step(&context, Input::Answered { call, tag, result: Ok(answer) }, &mut effects);
            }
            Effect::Disk { call, tag, job } => {
                let answer = match job {
                    DiskJob::Table | DiskJob::Entries { .. } => DiskAnswer::Table(Vec::new()),
                    _ => DiskAnswer::Done,
                };
                core.step(&context, Input::DiskDone { call, tag, result: Ok(answer) }, &mut effects);
            }
            Effect::Reply { result, .. } => return result,
            _ => {}
        }
    }
}

fn barrier(core: &mut ReplicaCore, call: u64, grant: &Sealed, since: u64) -> Result<(), FsError> {
    ask(core, call, grant, ClientRequest::Barrier { since: Version(since) }).map(drop)
}

#[test]
fn a_write_says_under_which_version_all_have_it() {
    let mut core = ReplicaCore::new(Version(4), false, ChunkId(9), 16, Recovered::default());
    let data = Bytes::from(vec![7; UNIT_SIZE as usize]);
    let write = ClientRequest::Write { offset: 0, crcs: checksums(0, &data), data, client: 5, number: 1 };
    let answer = ask(&mut core, 1, &grant(4, 0), write.clone());
    assert!(matches!(answer, Ok(Reply::Written { version: Version(4), .. })), "{answer:?}");
    // The repeated one is not applied again. That all have it is true of the version in which it was asked.
    let answer = ask(&mut core, 2, &grant(6, 6), write);
    assert!(matches!(answer, Ok(Reply::Written { version: Version(6), .. })), "{answer:?}");
}

#[test]
fn a_barrier_for_what_was_acknowledged_before_a_loss_is_refused() {
    let mut core = ReplicaCore::new(Version(4), false, ChunkId(9), 16, Recovered::default());
    assert_eq!(barrier(&mut core, 1, &grant(4, 0), 4), Ok(()));
    assert_eq!(barrier(&mut core, 2, &grant(5, 5), 4), Err(FsError::UnsyncedLost));
    assert_eq!(barrier(&mut core, 3, &grant(5, 5), 5), Ok(()));
    assert_eq!(barrier(&mut core, 4, &grant(5, 5), 0), Ok(()), "nothing is asked for");
}

#[test]
fn a_loss_is_remembered_by_later_versions() {
    let mut core = ReplicaCore::new(Version(4), false, ChunkId(9), 16, Recovered::default());
    assert_eq!(barrier(&mut core, 1, &grant(8, 5), 4), Err(FsError::UnsyncedLost));
    assert_eq!(barrier(&mut core, 2, &grant(8, 5), 6), Ok(()));
}
