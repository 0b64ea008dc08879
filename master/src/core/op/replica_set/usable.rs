//! A chunk is given a primary that can serve, if there can be one now.

use std::sync::Arc;

use dfs_proto::NodeId;
use dfs_proto::replica_set::Home;

use super::change_set::{self, Found};
use super::settle_suspects::settle_suspects;
use super::take_over::take_over;
use crate::core::key::Key;
use crate::core::outcome::Outcome;
use crate::core::record::{Chunk, Node, Record};
use crate::core::standing::Standing;
use crate::core::view::{Stop, View};

/// Returns whether there is nothing that [`make_usable`] could do about `chunk`.
pub fn is_usable(chunk: &Chunk, standing: impl Fn(NodeId) -> Standing) -> bool {
    !standing(chunk.primary).is_lease_over && chunk.in_sync.iter().all(|node| !standing(*node).taints(chunk))
}

/// Settles suspects and replaces a lost primary, as far as that can be done now. Returns the chunk as it then is; one that
/// is gone changes nothing.
///
/// A server whose roles are given to others is never believed again in its present run: the record of that is part of the
/// same change, or a restarted master would renew the lease of a run that still takes itself for a primary.
///
/// # Errors
///
/// [`Stop`].
pub fn make_usable(view: &View<'_>, home: Home) -> Result<(Outcome, Option<Arc<Chunk>>), Stop> {
    let mut outcome = Outcome::new(view);
    let Some(found) = change_set::find(view, home)? else { return Ok((outcome, None)) };
    let mut set = Chunk::clone(&found.chunk);
    settle_suspects(view, &mut set);
    take_over(view, &mut set);
    let chunk = change_primary(view, &mut outcome, &found, set)?;
    Ok((outcome, Some(chunk)))
}

/// Puts `set`; the run of a primary that was replaced by force of its lease's end has ended.
///
/// # Errors
///
/// [`Stop::Read`].
pub(super) fn change_primary(
    view: &View<'_>,
    outcome: &mut Outcome,
    found: &Found,
    set: Chunk,
) -> Result<Arc<Chunk>, Stop> {
    let lost = found.chunk.primary;
    if set.primary != lost && view.cluster.standing(lost).is_lease_over {
        outcome.ends_run = Some(lost);
        end_run(view, outcome, lost)?;
    }
    let chunk = change_set::put(view, outcome, found, set);
    outcome.durable_first = chunk.version_seq;
    Ok(chunk)
}

fn end_run(view: &View<'_>, outcome: &mut Outcome, id: NodeId) -> Result<(), Stop> {
    let Some(Record::Node(node)) = view.find(&Key::Node(id))? else { return Ok(()) };
    if node.boot.0 != 0 && !node.ended.contains(&node.boot) {
        let mut ended = Node::clone(&node);
        ended.end_run(node.boot);
        ended.seq = outcome.seq();
        outcome.put(Key::Node(id), Record::Node(Arc::new(ended)));
    }
    Ok(())
}
