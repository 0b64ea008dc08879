//! Plans that even out how full servers are. Only plans: nothing is moved here.
//!
//! The ring says where a chunk would be placed today. A replica moves only from a server that the ring does not propose
//! for it any more to one that it does, so a server that joins gets its arcs and nothing else moves; and only from a
//! fuller to an emptier one, as long as the two are far apart. The move itself is one more replica: when it is in sync,
//! [`super::repair`] lets the fullest member go.
//!
//! ```text
//!   spread of fill ratios:   0 ……… 5 % ………… 10 % ………
//!                                stops        begins        (so that it does not begin again at once)
//! ```

use dfs_proto::NodeId;

use super::care::{ChunkFacts, SetChange, Step};
use super::fleet::{Fleet, FleetNode, Redundancy};
use super::node_table::NodeState;
use super::repair::Bounds;

/// Spread of fill ratios, in thousandths, above which moves begin.
const BEGIN_PERMILLE: u64 = 100;
/// Spread at which they stop.
const STOP_PERMILLE: u64 = 50;

/// Whether moves are being made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebalance {
    is_running: bool,
}

impl Rebalance {
    /// Looks at the servers, and returns whether replicas are to be moved. Never while repairs are pending.
    pub fn decide(&mut self, fleet: &Fleet, repairs_pending: usize) -> bool {
        let spread = spread_permille(fleet);
        self.is_running = if self.is_running { spread > STOP_PERMILLE } else { spread > BEGIN_PERMILLE };
        self.is_running && repairs_pending == 0
    }
}

/// Returns the distance between the fullest and the emptiest server that takes replicas, in thousandths.
fn spread_permille(fleet: &Fleet) -> u64 {
    let fills = || fleet.iter().filter(|(_, node)| takes_part(node)).map(|(_, node)| node.fill_permille());
    fills().max().unwrap_or(0) - fills().min().unwrap_or(0)
}

fn takes_part(node: &FleetNode) -> bool {
    node.state == NodeState::Online && !node.is_draining && node.capacity_bytes > 0
}

/// Returns the move for `chunk`, if it is one that evens out: to whom a replica is to be added.
///
/// `is_refused`: as in [`super::repair::step`].
pub fn step(
    chunk: &ChunkFacts,
    fleet: &Fleet,
    bounds: Bounds<'_>,
    is_refused: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    let redundancy = Redundancy::of(chunk, fleet);
    let is_whole = redundancy.online == chunk.wanted
        && chunk.in_sync.len() as u32 == chunk.wanted
        && chunk.syncing.is_empty()
        && !chunk.in_sync.iter().any(|node| fleet.is_draining(*node));
    if !is_whole || !bounds.load.may_lead(chunk.primary, bounds.limits) {
        return None;
    }
    let proposed: Vec<NodeId> = fleet.proposals(chunk).take(chunk.wanted as usize).collect();
    // The fullest member is the one that goes in the end; if the ring wants it there, the chunk stays as it is.
    let from = chunk.in_sync.iter().copied().max_by_key(|node| fleet.fill_permille(*node))?;
    if proposed.contains(&from) {
        return None;
    }
    let host = |node: NodeId| fleet.node(node).map(|found| &found.host);
    let rack = |node: NodeId| fleet.node(node).map(|found| &found.rack);
    let to = proposed
        .into_iter()
        .filter(|node| !chunk.in_sync.contains(node))
        .min_by_key(|node| fleet.fill_permille(*node))?;
    let others = || chunk.in_sync.iter().copied().filter(|node| *node != from);
    let keeps_apart = others().all(|other| host(other) != host(to)) || others().any(|other| host(other) == host(from));
    let keeps_racks = others().any(|other| rack(other) != rack(to)) || others().all(|other| rack(other) == rack(from));
    let is_worth_it = fleet.fill_permille(from) > fleet.fill_permille(to) + STOP_PERMILLE;
    let fits = fleet.has_room_for(chunk, to, bounds.load) && bounds.load.may_fill(to, bounds.limits) && !is_refused(to);
    (is_worth_it && keeps_apart && keeps_racks && fits).then_some(Step::Change(SetChange::Add(to)))
}

#[cfg(test)]
mod tests {
    use super::super::fleet::script::{CHUNK, chunk, fleet};
    use super::super::fleet::{FillLimits, Load};
    use super::super::repair;
    use super::*;

    fn moved(chunk: &ChunkFacts, fleet: &Fleet) -> Option<NodeId> {
        let bounds = Bounds { limits: &FillLimits::default(), load: &Load::default() };
        match step(chunk, fleet, bounds, |_| false) {
            None => None,
            Some(Step::Change(SetChange::Add(node))) => Some(node),
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_that_joined_gets_its_arcs_from_the_fullest_and_nothing_else_moves() {
        let before = fleet("1 a - 50%\n2 b - 50%\n3 c - 50%\n4 d - 50%");
        let after = fleet("1 a - 50%\n2 b - 50%\n3 c - 50%\n4 d - 50%\n5 e - 0%");
        let mut count = 0;
        for id in 0..2_000 {
            let mut chunk = chunk(&format!("{id}: 1* 2 3"));
            chunk.in_sync = before.proposals(&chunk).take(3).collect();
            chunk.primary = chunk.in_sync[0];
            assert_eq!(moved(&chunk, &before), None);
            if let Some(to) = moved(&chunk, &after) {
                count += 1;
                assert_eq!(to, NodeId(5));
                assert!(after.proposals(&chunk).take(3).any(|node| node == to));
                chunk.in_sync.push(to);
                let bounds = Bounds { limits: &FillLimits::default(), load: &Load::default() };
                let trimmed = repair::step(&chunk, &after, bounds, |_| false, |_| false);
                assert!(trimmed.is_some(), "one of the old ones goes");
            }
        }
        assert!((100..1_300).contains(&count), "{count} of 2000 chunks moved");
    }

    #[test]
    fn it_begins_above_ten_percent_stops_at_five_and_waits_for_repairs() {
        let mut rebalance = Rebalance::default();
        let mut check = |text: &str, repairs: usize, expected: bool| {
            assert_eq!(rebalance.decide(&fleet(text), repairs), expected, "{text}");
        };
        check("1 a - 50%\n2 b - 40%", 0, false);
        check("1 a - 50%\n2 b - 39%", 0, true);
        check("1 a - 50%\n2 b - 39%", 1, false);
        check("1 a - 50%\n2 b - 44%", 0, true);
        check("1 a - 50%\n2 b - 45%", 0, false);
        check("1 a - 50%\n2 b - 40%", 0, false);
        check("1 a - 50%\n2 b - 0% draining\n3 c - 0% offline", 0, false);
    }

    #[test]
    fn nothing_moves_to_a_full_or_busy_server_or_next_to_its_like() {
        let servers = "1 a - 60%\n2 b - 60%\n3 c - 60%\n4 d - 10%";
        let one = (0..1_000)
            .map(|id| chunk(&format!("{id}: 1* 2 3")))
            .find(|chunk| moved(chunk, &fleet(servers)).is_some())
            .expect("some chunk moves");
        for other in [
            "1 a - 60%\n2 b - 60%\n3 c - 60%\n4 d - 10% full",
            "1 a - 60%\n2 b - 60%\n3 c - 60%\n4 d - 10% draining",
            "1 a - 60%\n2 b - 60%\n3 c - 60%\n4 d - 10% expired",
            "1 a - 60%\n2 b - 60%\n3 c - 60%\n4 d - 56%",
        ] {
            assert_eq!(moved(&one, &fleet(other)), None, "{other}");
        }
        let mut load = Load::default();
        (0..FillLimits::default().per_target).for_each(|_| load.add(NodeId(9), NodeId(4)));
        let bounds = Bounds { limits: &FillLimits::default(), load: &load };
        assert_eq!(step(&one, &fleet(servers), bounds, |_| false), None);
        assert_eq!(one.chunk_bytes(), CHUNK);
    }
}
