//! Changes of replica sets: each a compare-and-set on the version, which rises by one.
//!
//! ```text
//! asked by chunk servers             by the master itself
//!   drop_member   finish_sync          make_usable: settle_suspects, take_over
//!   leave         (refresh)            by_master:   add, remove, note or forget a stale replica
//!                                      force_primary
//! ```
//!
//! # Rules
//!
//! - A request is bound to a run of its server: of an ended one it is refused.
//! - A primary is moved only if it said so itself, or no run of its server can hold a lease any more.
//! - The last member in sync never leaves.
//! - A repeated request whose effect is there is answered as the first one was.
//! - A version is durable before anybody is granted it ([`Chunk::version_seq`]): replicas that know a version which a power
//!   cut took from the record would refuse every grant for good.
//! - A member that came back without what it had not synced is trusted only once it was made equal: a change that leaves one
//!   in the set leaves [`Chunk::set_seq`] as it is.

mod by_master;
mod change_set;
mod drop_member;
mod finish_sync;
mod force_primary;
mod leave;
mod settle_suspects;
mod take_over;
mod usable;

use std::sync::Arc;

use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::{ChangeKind, ChangeRequest};
use dfs_proto::{FsError, NodeId};

pub use by_master::change_by_master;
pub use force_primary::force_primary;
pub use settle_suspects::AWAY_MS;
pub use usable::{is_usable, make_usable};

use crate::core::outcome::Outcome;
use crate::core::record::Chunk;
use crate::core::view::{Stop, View};
use change_set::Found;

/// The set was changed by somebody else since.
const CHANGED_SINCE: FsError = FsError::Stale("the replica set has changed since");

/// What a chunk server is answered.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Whether it was done, now or by an earlier copy of the request.
    pub result: Result<(), FsError>,
    /// The chunk as it is now, if the one who asked is its primary and may be granted it.
    pub granted: Option<Arc<Chunk>>,
}

/// Carries out a change that a chunk server asks for.
///
/// # Errors
///
/// [`Stop`]. What is refused is in [`Changed::result`].
pub fn change(view: &View<'_>, request: &ChangeRequest) -> Result<(Outcome, Changed), Stop> {
    let outcome = Outcome::new(view);
    let refused = |error| Changed { result: Err(error), granted: None };
    let standing = view.cluster.standing(request.node);
    let is_present_run = request.boot == standing.boot && request.boot.0 != 0;
    if !is_present_run && !planted::is(Bug::NoSessionBinding) {
        return Ok((outcome, refused(FsError::Stale("this run of the server has ended"))));
    }
    let found = match change_set::find(view, request.home)? {
        Some(found) if found.chunk.id == request.chunk => found,
        _ => return Ok((outcome, refused(FsError::Stale("there is no such chunk")))),
    };
    let mut set = Chunk::clone(&found.chunk);
    let result = asked(view, request, &found, &mut set);
    let mut outcome = outcome;
    let chunk = if result.is_ok() { change_set::put(view, &mut outcome, &found, set) } else { found.chunk };
    outcome.durable_first = chunk.version_seq;
    let is_granted = chunk.primary == request.node && !standing.taints(&chunk);
    Ok((outcome, Changed { result, granted: is_granted.then_some(chunk) }))
}

fn asked(view: &View<'_>, request: &ChangeRequest, found: &Found, set: &mut Chunk) -> Result<(), FsError> {
    if let ChangeKind::Leave = request.kind {
        return leave::leave(view, request, set);
    }
    if found.chunk.primary != request.node {
        return Err(FsError::Stale("another server is the primary"));
    }
    if view.cluster.standing(request.node).taints(&found.chunk) {
        return Err(FsError::TryAgain("what this server may have lost is yet to be settled"));
    }
    match request.kind {
        ChangeKind::Drop { node } => drop_member::drop_member(request, node, set),
        ChangeKind::FinishSync { node } => finish_sync::finish_sync(request, node, set),
        ChangeKind::Refresh | ChangeKind::Leave => Ok(()),
    }
}

/// Returns whether the set stands where the sender thinks. `Ok(false)`: its request was carried out before.
///
/// # Errors
///
/// [`CHANGED_SINCE`].
fn compare(request: &ChangeRequest, set: &Chunk, is_done: bool) -> Result<bool, FsError> {
    if set.version == request.version || planted::is(Bug::NoCompareAndSet) {
        Ok(true)
    } else if set.version.0 == request.version.0 + 1 && is_done {
        Ok(false)
    } else {
        Err(CHANGED_SINCE)
    }
}

/// Returns the best of `candidates` to be primary next: one that can serve now before one that may later, one that is
/// trusted before one that is not.
fn next_primary(view: &View<'_>, set: &Chunk, candidates: &[NodeId]) -> Option<NodeId> {
    candidates.iter().copied().min_by_key(|node| {
        let standing = view.cluster.standing(*node);
        (standing.taints(set), !standing.is_online)
    })
}
