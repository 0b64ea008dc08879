//! The sync barrier at the primary: everything that was answered before it is on stable media of all members after it.
//!
//! A barrier cannot bring to stable media what is gone. If all members lost their power since a write was acknowledged, the
//! grant's loss version is above the one under which that was: the barrier is refused, and who wrote has to say so.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::planted::{self, Bug};
use dfs_proto::{FsError, Version};

use super::super::message::{DiskJob, PeerAnswer, PeerRequest, Reply, Tag};
use super::activation::Ready;
use super::call::{Call, Flow, News, Step, Work};
use super::change::Leave;
use super::{Active, Job, ReplicaCore};

/// A member that does not answer to a sync in this time is looked after: it may be busy syncing, or gone.
const SYNC_MS: u64 = 4_000;

/// A barrier, from its beginning to its answer.
#[derive(Debug)]
pub(super) struct Barrier {
    /// The lowest version under which a write was acknowledged that is to be covered, 0 if nobody asks.
    since: Version,
    round: Option<Round>,
}

impl Barrier {
    /// Returns a barrier that covers writes acknowledged under `since` and later versions.
    pub(super) fn new(since: Version) -> Self {
        Self { since, round: None }
    }
}

/// One attempt, under one activation.
#[derive(Debug)]
struct Round {
    active: Arc<Active>,
    others: Vec<Tag>,
    own: Option<Tag>,
}

impl ReplicaCore {
    pub(super) fn barrier(&mut self, step: &mut Step<'_>, call: &mut Call, barrier: &mut Barrier, news: News) -> Flow {
        if let Some(round) = &mut barrier.round {
            match news {
                News::Disk(tag, result) if round.own == Some(tag) => match result {
                    Ok(_) => round.own = None,
                    Err(error) => return unfit(&error),
                },
                News::Peer(tag, result) => {
                    if let Some(at) = round.others.iter().position(|known| *known == tag) {
                        round.others.swap_remove(at);
                        if !matches!(result, Ok(PeerAnswer::Done)) {
                            self.deactivate(round.active.activation);
                            barrier.round = None;
                            return self.begin_barrier(step, call, barrier);
                        }
                    }
                }
                _ => {}
            }
            if round.own.is_some() || !round.others.is_empty() {
                return Flow::Wait;
            }
            return Flow::End(Ok(Reply::Done));
        }
        self.begin_barrier(step, call, barrier)
    }

    fn begin_barrier(&mut self, step: &mut Step<'_>, call: &mut Call, barrier: &mut Barrier) -> Flow {
        let active = match self.ensure_active(step, call) {
            Ready::Now(active) => active,
            Ready::Later => return Flow::Wait,
            Ready::Never(error) => return Flow::End(Err(error)),
            Ready::Leave(reason) => return Flow::Become(Work::Leave(Box::new(Leave::unfit(reason)))),
        };
        if let Err(error) = active.may_acknowledge() {
            return Flow::End(Err(error));
        }
        if self.has_lost(barrier.since) && !planted::is(Bug::ForgottenLoss) {
            return Flow::End(Err(FsError::UnsyncedLost));
        }
        let until = call.attempt(step, SYNC_MS);
        let sync = PeerRequest::Barrier { seq: self.committed, activation: active.activation, keys: Vec::new() };
        let members = if planted::is(Bug::BarrierOnlyHere) { &[][..] } else { &active.others[..] };
        let others = members
            .iter()
            .map(|member| call.send(step, member, active.version, sync.clone(), Bytes::new(), until))
            .collect();
        let own = Some(self.start(step, call, DiskJob::Sync, Job::Look));
        barrier.round = Some(Round { active, others, own });
        Flow::Wait
    }

    /// Returns whether a write that was acknowledged under `since`, and not synced, may be gone. Only with the grant of the
    /// active primary; a later grant can but say of more that it is lost.
    fn has_lost(&self, since: Version) -> bool {
        let loss = self.grant.as_ref().map_or(Version(0), |sealed| sealed.grant.loss_version);
        since != Version(0) && since < loss
    }
}

/// Ends the work of a primary whose own disk has failed: it leaves the set.
pub(super) fn unfit(error: &FsError) -> Flow {
    Flow::Become(Work::Leave(Box::new(Leave::unfit(format!("its own replica cannot be used: {error}")))))
}
