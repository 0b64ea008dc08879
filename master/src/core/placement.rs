//! Chooses the nodes of a new chunk: the ring proposes, the filters here dispose.
//!
//! Wishes are given up one after the other until there are enough nodes:
//!
//! ```text
//! 1  not busy, room for a whole chunk, a rack and a host of its own
//! 2  …                                 a host of its own
//! 3  …                                 any host                     (all on one machine)
//! 4  also busy ones
//! 5  also nearly full ones
//! ```
//!
//! Never given up: distinct nodes, online, with a valid lease, with room for one write.

use std::collections::BTreeMap;

use dfs_proto::NodeId;
use dfs_proto::limits::DATA_BYTES_MAX;

use super::ring::Ring;

/// Room a node must have, in bytes: one write of the largest size.
pub const FREE_BYTES_MIN: u64 = DATA_BYTES_MAX as u64;
/// New chunks a node may be given above twice the average since its last report before it counts as busy.
const BUSY_SLACK: u64 = 8;

/// What placement must know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its host's name.
    pub host: &'a str,
    /// Its rack, empty if it has none.
    pub rack: &'a str,
    /// Bytes left for replicas on its largest working disk.
    pub free_bytes: u64,
    /// Heard of lately, with a valid node lease.
    pub is_usable: bool,
    /// Chunks placed there since its last report.
    pub recent: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// As many nodes as this if possible.
    pub replicas: usize,
    /// With fewer than this, fail.
    pub replicas_min: usize,
    /// Room that each should have.
    pub chunk_bytes: u64,
    /// Where on the ring to begin: the chunk's id.
    pub seed: u64,
    /// Nodes that are not to be chosen.
    pub exclude: &'a [NodeId],
}

/// Why there are no nodes for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Too few nodes are there at all: a fault that can pass.
    #[error("{usable} of the {needed} chunk servers that are needed are online")]
    TooFewNodes {
        /// Nodes online with a valid lease that are not excluded.
        usable: usize,
        /// The fewest that would do.
        needed: usize,
    },
    /// Enough nodes are there, but too few have room: ENOSPC.
    #[error("{with_space} of {usable} online chunk servers have room, {needed} are needed")]
    NoSpace {
        /// Of those, the ones with room.
        with_space: usize,
        /// Nodes online with a valid lease that are not excluded.
        usable: usize,
        /// The fewest that would do.
        needed: usize,
    },
}

/// Returns between `replicas_min` and `replicas` distinct nodes; the first one is to be the primary.
///
/// # Errors
///
/// [`PlacementError`].
pub fn place(
    ring: &Ring,
    candidates: &BTreeMap<NodeId, Candidate<'_>>,
    wanted: &Wanted<'_>,
) -> Result<Vec<NodeId>, PlacementError> {
    let usable: Vec<(NodeId, &Candidate<'_>)> = ring
        .walk(wanted.seed)
        .filter(|node| !wanted.exclude.contains(node))
        .filter_map(|node| Some((node, candidates.get(&node)?)))
        .filter(|(_, candidate)| candidate.is_usable)
        .collect();
    let needed = wanted.replicas_min.max(1);
    if usable.len() < needed {
        return Err(PlacementError::TooFewNodes { usable: usable.len(), needed });
    }
    let with_space: Vec<_> =
        usable.iter().filter(|(_, candidate)| candidate.free_bytes >= FREE_BYTES_MIN).copied().collect();
    if with_space.len() < needed {
        return Err(PlacementError::NoSpace { with_space: with_space.len(), usable: usable.len(), needed });
    }

    let recent: u64 = with_space.iter().map(|(_, candidate)| candidate.recent).sum();
    let busy_above = 2 * recent / with_space.len() as u64 + BUSY_SLACK;
    let mut chosen: Vec<(NodeId, &Candidate<'_>)> = Vec::with_capacity(wanted.replicas);
    for wishes in 1..=5 {
        for (node, candidate) in &with_space {
            if chosen.len() >= wanted.replicas {
                break;
            }
            let has_room = wishes >= 5 || candidate.free_bytes >= wanted.chunk_bytes;
            let is_calm = wishes >= 4 || candidate.recent <= busy_above;
            let stands_alone = |(other, chosen): &(NodeId, &Candidate<'_>)| {
                other != node
                    && (wishes >= 3 || chosen.host != candidate.host)
                    && (wishes >= 2 || chosen.rack != candidate.rack)
            };
            if has_room && is_calm && chosen.iter().all(stands_alone) {
                chosen.push((*node, candidate));
            }
        }
    }
    assert!(chosen.len() >= needed, "the last wish but distinct nodes was given up");
    Ok(chosen.into_iter().map(|(node, _)| node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 20;
    const GIB: u64 = 1 << 30;

    /// Each line: node, host, rack, free, and what else there is to say (`down`, `recent=N`).
    fn cluster(text: &'static str) -> (Ring, BTreeMap<NodeId, Candidate<'static>>) {
        let (mut ring, mut candidates) = (Ring::new(), BTreeMap::new());
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let node = NodeId(words[0].parse().unwrap());
            let free_bytes = match words[3] {
                "roomy" => 100 * GIB,
                "tight" => CHUNK - 1,
                "full" => FREE_BYTES_MIN - 1,
                other => panic!("{other}"),
            };
            let recent = words.iter().find_map(|word| word.strip_prefix("recent=")).map_or(0, |n| n.parse().unwrap());
            let is_usable = !words.contains(&"down");
            ring.set(node, 1 << 40);
            candidates.insert(node, Candidate { host: words[1], rack: words[2], free_bytes, is_usable, recent });
        }
        (ring, candidates)
    }

    fn wanted(seed: u64) -> Wanted<'static> {
        Wanted { replicas: 3, replicas_min: 2, chunk_bytes: CHUNK, seed, exclude: &[] }
    }

    /// Asserts, for many seeds, that the nodes chosen are among `allowed`, in the number given, and that each of
    /// `allowed` is chosen for some seed.
    fn check(text: &'static str, replicas: usize, allowed: &[u32]) {
        let (ring, candidates) = cluster(text);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let nodes = place(&ring, &candidates, &wanted(seed)).expect("places");
            let distinct: std::collections::BTreeSet<_> = nodes.iter().map(|node| node.0).collect();
            assert_eq!((nodes.len(), distinct.len()), (replicas, replicas), "{nodes:?}");
            seen.extend(distinct);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), allowed);
    }

    fn check_fails(text: &'static str, expected: PlacementError) {
        let (ring, candidates) = cluster(text);
        for seed in 0..50 {
            assert_eq!(place(&ring, &candidates, &wanted(seed)), Err(expected));
        }
    }

    #[test]
    fn on_one_machine_the_nodes_are_distinct() {
        check("1 here - roomy\n2 here - roomy\n3 here - roomy\n4 here - roomy", 3, &[1, 2, 3, 4]);
    }

    #[test]
    fn racks_and_hosts_are_spread_when_there_are_enough() {
        let text = "
            1 a r1 roomy
            2 a r1 roomy
            3 b r1 roomy
            4 c r2 roomy
            5 d r2 roomy
            6 e r3 roomy
        ";
        let (ring, candidates) = cluster(text);
        for seed in 0..300 {
            let nodes = place(&ring, &candidates, &wanted(seed)).unwrap();
            let racks: std::collections::BTreeSet<_> = nodes.iter().map(|node| candidates[node].rack).collect();
            assert_eq!(racks.len(), 3, "{nodes:?}");
        }
    }

    #[test]
    fn with_too_few_racks_hosts_are_still_spread() {
        let text = "
            1 a r1 roomy
            2 a r1 roomy
            3 b r1 roomy
            4 c r2 roomy
        ";
        let (ring, candidates) = cluster(text);
        for seed in 0..300 {
            let nodes = place(&ring, &candidates, &wanted(seed)).unwrap();
            let hosts: std::collections::BTreeSet<_> = nodes.iter().map(|node| candidates[node].host).collect();
            assert_eq!(hosts.len(), 3, "{nodes:?}");
        }
    }

    #[test]
    fn nodes_that_are_down_full_or_busy_are_left_out() {
        check("1 a - roomy\n2 b - roomy\n3 c - roomy\n4 d - roomy down", 3, &[1, 2, 3]);
        check("1 a - roomy\n2 b - roomy\n3 c - roomy\n4 d - full", 3, &[1, 2, 3]);
        check("1 a - roomy\n2 b - roomy\n3 c - roomy\n4 d - tight", 3, &[1, 2, 3]);
        check("1 a - roomy\n2 b - roomy\n3 c - roomy\n4 d - roomy recent=1000", 3, &[1, 2, 3]);
    }

    #[test]
    fn tight_and_busy_nodes_are_better_than_none() {
        check("1 a - roomy\n2 b - tight\n3 c - tight", 3, &[1, 2, 3]);
        check("1 a - roomy\n2 b - roomy\n3 c - roomy recent=1000", 3, &[1, 2, 3]);
    }

    #[test]
    fn two_nodes_will_do_but_not_one() {
        check("1 a - roomy\n2 b - roomy\n3 c - roomy down", 2, &[1, 2]);
        check_fails("1 a - roomy\n2 b - roomy down", PlacementError::TooFewNodes { usable: 1, needed: 2 });
        check_fails("", PlacementError::TooFewNodes { usable: 0, needed: 2 });
    }

    #[test]
    fn a_full_cluster_is_told_from_a_broken_one() {
        check_fails(
            "1 a - roomy\n2 b - full\n3 c - full",
            PlacementError::NoSpace { with_space: 1, usable: 3, needed: 2 },
        );
    }

    #[test]
    fn excluded_nodes_are_not_chosen_and_do_not_count() {
        let (ring, candidates) = cluster("1 a - roomy\n2 b - roomy\n3 c - roomy");
        for seed in 0..50 {
            let one = Wanted { exclude: &[NodeId(2)], ..wanted(seed) };
            let nodes = place(&ring, &candidates, &one).unwrap();
            assert!(nodes.len() == 2 && !nodes.contains(&NodeId(2)));
            let two = Wanted { exclude: &[NodeId(2), NodeId(3)], ..wanted(seed) };
            assert_eq!(place(&ring, &candidates, &two), Err(PlacementError::TooFewNodes { usable: 1, needed: 2 }));
        }
    }
}
