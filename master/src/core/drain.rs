//! Plans that empty a server. Only plans: nothing is moved here.
//!
//! A replica of a draining server counts until another one has taken its place: one more is filled elsewhere, and then
//! [`super::repair`] sees one too many and lets the draining one go; a primary hands over first.

use dfs_proto::NodeId;

use super::care::{ChunkFacts, SetChange, Step};
use super::fleet::{Fleet, Redundancy};
use super::repair::{Bounds, leaves};

/// Returns the next step towards a `chunk` without replicas on draining servers; `None`: there are none, or nothing can be
/// done now. A chunk that lacks replicas is repaired first.
///
/// `is_refused`: as in [`super::repair::step`].
pub fn step(
    chunk: &ChunkFacts,
    fleet: &Fleet,
    bounds: Bounds<'_>,
    is_refused: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    let draining = chunk.in_sync.iter().copied().find(|node| fleet.is_draining(*node))?;
    let redundancy = Redundancy::of(chunk, fleet);
    let stays =
        |node: &&NodeId| fleet.is_online(**node) && !fleet.is_draining(**node) && !fleet.is_tainted(chunk, **node);
    let staying = chunk.in_sync.iter().filter(stays).count() as u32;
    let is_led = fleet.is_online(chunk.primary) && !fleet.is_tainted(chunk, chunk.primary);
    if staying >= chunk.wanted {
        // More were made than are wanted; this one is not needed.
        return is_led.then(|| leaves(chunk, draining));
    }
    if !is_led
        || redundancy.online < chunk.wanted.min(chunk.in_sync.len() as u32)
        || staying + redundancy.syncing >= chunk.wanted
    {
        return None;
    }
    if !bounds.load.may_lead(chunk.primary, bounds.limits) {
        return None;
    }
    // Who leaves does not count as a neighbour.
    let beside: Vec<NodeId> =
        chunk.in_sync.iter().chain(&chunk.syncing).copied().filter(|node| !fleet.is_draining(*node)).collect();
    let is_allowed =
        |node: NodeId| !is_refused(node) && !chunk.names(node) && bounds.load.may_fill(node, bounds.limits);
    fleet.choose(chunk, &beside, bounds.load, is_allowed).map(|node| Step::Change(SetChange::Add(node)))
}

#[cfg(test)]
mod tests {
    use dfs_proto::replica_set::OrderKind;

    use super::super::fleet::script::{chunk, fleet};
    use super::super::fleet::{FillLimits, Load};
    use super::super::repair;
    use super::*;

    /// Each line: a chunk, and the next step for it by drain, or else by repair.
    #[track_caller]
    fn check(servers: &str, script: &str) {
        let fleet = fleet(servers);
        for line in script.lines().filter(|line| !line.trim().is_empty()) {
            let (left, expected) = line.split_once("->").expect("has an arrow");
            let chunk = chunk(left);
            let bounds = Bounds { limits: &FillLimits::default(), load: &Load::default() };
            let step = step(&chunk, &fleet, bounds, |_| false)
                .or_else(|| repair::step(&chunk, &fleet, bounds, |_| false, |_| false));
            let said = match step {
                None => "nothing".into(),
                Some(Step::Change(SetChange::Add(node))) => format!("add {node}"),
                Some(Step::Change(SetChange::Remove(node))) => format!("remove {node}"),
                Some(Step::Order(to, OrderKind::Fill { node })) => format!("{to} fills {node}"),
                Some(Step::Order(to, OrderKind::HandOver)) => format!("{to} hands over"),
                Some(other) => format!("{other:?}"),
            };
            assert_eq!(said, expected.trim(), "{line}");
        }
    }

    #[test]
    fn a_replica_is_made_elsewhere_before_the_draining_one_leaves() {
        check(
            "
            1 a r1 50%
            2 b r2 50% draining
            3 c r3 50%
            4 d r2 50%
            ",
            "
            9: 1* 3 4          -> nothing
            9: 1* 2 3          -> add 4
            9: 1* 2 3 +4       -> 1 fills 4
            9: 1* 2 3 4        -> remove 2
            9: 2* 1 3          -> add 4
            9: 2* 1 3 4        -> 2 hands over
            ",
        );
    }

    #[test]
    fn without_another_place_the_replica_stays() {
        check("1 a - 5%\n2 b - 5% draining\n3 c - 5%\n4 d - 5% offline\n5 e - 5% full", "9: 1* 2 3 -> nothing");
    }

    #[test]
    fn what_lacks_replicas_is_repaired_first() {
        check("1 a - 5%\n2 b - 5% draining\n3 c - 5% expired\n4 d - 5%\n5 e - 5%", "9: 1* 2 3 -> nothing");
        check("1 a - 5%\n2 b - 5% draining\n3 c - 5% offline\n4 d - 5%", "9: 1* 2 3 -> add 4\n9: 1* 2 3 4 -> remove 3");
    }
}
