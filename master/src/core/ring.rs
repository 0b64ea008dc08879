//! The consistent-hash ring that proposes nodes for a chunk.
//!
//! Each node owns points on a circle of 64-bit numbers, more of them the larger it is. A chunk's key is a place on the
//! circle; the nodes are proposed in the order in which their points follow that place. The ring only proposes:
//! [`super::placement`] disposes, and the chunk record keeps what was chosen.
//!
//! # Invariants
//!
//! - A node's points depend on nothing but its id and its own size, so a node that joins or leaves changes the
//!   proposals of its own arcs and of no other.
//! - The hash is part of this file and never changes with a library or a machine.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::NodeId;

/// Capacity that earns a node one point.
const BYTES_PER_POINT: u64 = 4 << 30;
/// Nodes below 256 GiB count as that large: with fewer points chance alone would spread them badly.
const POINTS_MIN: u32 = 64;
/// Nodes above 8 TiB count as that large: a bound for the memory of the ring.
const POINTS_MAX: u32 = 2_048;

/// Nodes as points on a circle.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    points: BTreeSet<(u64, NodeId)>,
    nodes: BTreeMap<NodeId, u32>,
}

impl Ring {
    /// Returns an empty ring.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `node` on the ring as one of `capacity_bytes`, or changes its size: points are then only added, or only
    /// taken away.
    pub fn set(&mut self, node: NodeId, capacity_bytes: u64) {
        let wanted = points_of(capacity_bytes);
        let present = self.nodes.insert(node, wanted).unwrap_or(0);
        for point in present..wanted {
            self.points.insert((position(node, point), node));
        }
        for point in wanted..present {
            self.points.remove(&(position(node, point), node));
        }
    }

    /// Takes `node` off the ring.
    pub fn remove(&mut self, node: NodeId) {
        for point in 0..self.nodes.remove(&node).unwrap_or(0) {
            self.points.remove(&(position(node, point), node));
        }
    }

    /// Returns how many nodes are on the ring.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether nobody is on the ring.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the nodes in the order proposed for `key`, each once, all of them.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = NodeId> + '_ {
        let start = (mix(key ^ 0x6368_756e_6b20_6b65), NodeId(0));
        let mut seen = BTreeSet::new();
        let around = self.points.range(start..).chain(self.points.range(..start));
        around.map(|(_, node)| *node).filter(move |node| seen.insert(*node)).take(self.nodes.len())
    }
}

/// Returns the number of points for a capacity.
fn points_of(capacity_bytes: u64) -> u32 {
    u32::try_from(capacity_bytes / BYTES_PER_POINT).unwrap_or(u32::MAX).clamp(POINTS_MIN, POINTS_MAX)
}

fn position(node: NodeId, point: u32) -> u64 {
    mix(mix(u64::from(node.0)) ^ u64::from(point))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;
    const KEYS: u64 = 20_000;

    fn ring(nodes: &[(u32, u64)]) -> Ring {
        let mut ring = Ring::new();
        for (node, capacity) in nodes {
            ring.set(NodeId(*node), *capacity);
        }
        ring
    }

    fn first_three(ring: &Ring, key: u64) -> Vec<NodeId> {
        ring.walk(key).take(3).collect()
    }

    #[test]
    fn proposals_never_change_between_builds() {
        let ring = ring(&[(1, TIB), (2, TIB), (3, TIB), (4, TIB)]);
        let text: Vec<String> = (0..6).map(|key| ring.walk(key).map(|node| node.to_string()).collect()).collect();
        assert_eq!(text, ["3142", "3421", "3421", "2143", "3124", "4213"]);
    }

    #[test]
    fn every_node_is_proposed_once_from_every_place() {
        let ring = ring(&[(1, TIB), (2, 0), (7, 20 * TIB)]);
        for key in 0..1_000 {
            let mut nodes: Vec<u32> = ring.walk(key).map(|node| node.0).collect();
            nodes.sort_unstable();
            assert_eq!(nodes, [1, 2, 7]);
        }
        assert_eq!(Ring::new().walk(5).next(), None);
    }

    #[test]
    fn a_node_of_twice_the_size_gets_about_twice_the_chunks() {
        let ring = ring(&[(1, TIB), (2, TIB), (3, 2 * TIB), (4, 4 * TIB)]);
        let mut counts = BTreeMap::new();
        for key in 0..KEYS {
            *counts.entry(ring.walk(key).next().expect("not empty")).or_insert(0u32) += 1;
        }
        for (node, share) in [(1, 1.0), (2, 1.0), (3, 2.0), (4, 4.0)] {
            let expected = KEYS as f64 * share / 8.0;
            let deviation = f64::from(counts[&NodeId(node)]) / expected - 1.0;
            assert!(deviation.abs() < 0.15, "node {node}: {deviation:+.3} from its share");
        }
    }

    #[test]
    fn a_node_that_joins_changes_only_its_arcs() {
        let before = ring(&(1..=9).map(|node| (node, TIB)).collect::<Vec<_>>());
        let mut after = before.clone();
        after.set(NodeId(10), TIB);
        let mut changed = 0u32;
        for key in 0..KEYS {
            let (old, new) = (first_three(&before, key), first_three(&after, key));
            if old != new {
                changed += 1;
                let mut without: Vec<NodeId> = after.walk(key).filter(|node| *node != NodeId(10)).collect();
                without.truncate(3);
                assert_eq!(without, old, "the others keep their order");
            }
        }
        // 3 of 10 replicas' places should name the new node now.
        let share = f64::from(changed) / KEYS as f64;
        assert!((0.25..0.35).contains(&share), "{share:.3} of the chunks changed");
    }

    #[test]
    fn a_node_that_leaves_and_returns_leaves_no_trace() {
        let nodes: Vec<(u32, u64)> = (1..=5).map(|node| (node, TIB)).collect();
        let before = ring(&nodes);
        let mut after = before.clone();
        after.remove(NodeId(3));
        assert_eq!(after.len(), 4);
        assert!((0..KEYS).all(|key| after.walk(key).all(|node| node != NodeId(3))));
        after.set(NodeId(3), TIB);
        after.set(NodeId(3), 2 * TIB);
        after.set(NodeId(3), TIB);
        assert!((0..KEYS).all(|key| before.walk(key).eq(after.walk(key))));
    }

    #[test]
    fn sizes_are_bounded_on_both_sides() {
        for (bytes, points) in [
            (0, 64),
            (65 * BYTES_PER_POINT - 1, 64),
            (65 * BYTES_PER_POINT, 65),
            (2_048 * BYTES_PER_POINT, 2_048),
            (u64::MAX, 2_048),
        ] {
            assert_eq!(points_of(bytes), points, "{bytes} bytes");
        }
    }
}
