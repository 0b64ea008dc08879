//! Plans that bring chunks back to the replicas they should have. Only plans: nothing is moved here.
//!
//! ```text
//! fewer replicas than wanted ──▶ one more is taken into the set (an old replica that is online, before a new place)
//! a replica that is in the set and not in sync ──▶ its primary is ordered to fill it
//! a replica that cannot be filled, or is one too many ──▶ it leaves
//! ```
//!
//! What is to be done is read off the record and the servers alone, so a master that restarts goes on where it was.
//! Everybody who adds a replica (repair, drain, rebalance) leaves the rest to the steps here.
//!
//! # Invariants
//!
//! - Most in danger first: the fewest replicas that can be read now, then the fewest that are being filled.
//! - A server that fell silent has until the verdict to come back, unless writes would be held up until then.
//! - No chunk is left with fewer good replicas than it has: one leaves only when as many as wanted are good without it.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::NodeId;
use dfs_proto::replica_set::{Home, OrderKind};

use super::care::{ChunkFacts, SetChange, Step, Task};
use super::fleet::{FillLimits, Fleet, Load, Redundancy};
use super::node_table::NodeState;
use super::placement::FREE_BYTES_MIN;

/// Most chunks on the queue: the next pass over the records finds what did not fit.
const QUEUED_MAX: usize = 100_000;

/// How much a chunk is in danger; the smaller, the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Danger {
    online: u32,
    syncing: u32,
}

impl Danger {
    /// Of a chunk that is to be looked at, before any other.
    pub const UNKNOWN: Self = Self { online: 0, syncing: 0 };
}

/// Chunks that need something, the ones in most danger first.
#[derive(Debug, Default)]
pub struct Queue {
    ranked: BTreeSet<(Danger, Home)>,
    dangers: BTreeMap<Home, Danger>,
}

impl Queue {
    /// Puts a chunk where it belongs. What does not fit displaces one in less danger, or is left out.
    pub fn put(&mut self, home: Home, danger: Danger) {
        self.remove(home);
        if self.ranked.len() == QUEUED_MAX {
            let Some(last) = self.ranked.last().copied().filter(|last| *last > (danger, home)) else { return };
            self.remove(last.1);
        }
        self.ranked.insert((danger, home));
        self.dangers.insert(home, danger);
    }

    /// Takes a chunk off.
    pub fn remove(&mut self, home: Home) {
        if let Some(danger) = self.dangers.remove(&home) {
            self.ranked.remove(&(danger, home));
        }
    }

    /// Returns the chunks in order of their danger.
    pub fn iter(&self) -> impl Iterator<Item = Home> + '_ {
        self.ranked.iter().map(|(_, home)| *home)
    }

    /// Returns how many chunks are on it.
    pub fn len(&self) -> usize {
        self.ranked.len()
    }

    /// Returns whether no chunk is on it.
    pub fn is_empty(&self) -> bool {
        self.ranked.is_empty()
    }
}

/// Returns in how much danger `chunk` is, or `None` if it has what it should have and nothing is to be done.
pub fn danger(chunk: &ChunkFacts, fleet: &Fleet) -> Option<Danger> {
    let redundancy = Redundancy::of(chunk, fleet);
    let is_whole = redundancy.online >= chunk.wanted
        && chunk.in_sync.len() as u32 == chunk.wanted
        && chunk.syncing.is_empty()
        && !chunk.in_sync.iter().any(|node| fleet.is_tainted(chunk, *node));
    (!is_whole).then_some(Danger { online: redundancy.online, syncing: redundancy.syncing })
}

/// What the plan for one chunk goes by, beside the chunk and the servers.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// How many fills may be under way.
    pub limits: &'a FillLimits,
    /// Those that are.
    pub load: &'a Load,
}

/// Returns the next step for each of `chunks`, in their order, as far as the limits allow.
pub fn plan(
    chunks: &[ChunkFacts],
    fleet: &Fleet,
    limits: &FillLimits,
    load: &mut Load,
    is_refused: impl Fn(Home, NodeId) -> bool,
    is_ordered: impl Fn(&ChunkFacts, NodeId) -> bool,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    for chunk in chunks {
        let bounds = Bounds { limits, load };
        let next = step(chunk, fleet, bounds, |node| is_refused(chunk.home(), node), |node| is_ordered(chunk, node));
        if let Some(step) = next {
            match step {
                Step::Change(SetChange::Add(target)) | Step::Order(_, OrderKind::Fill { node: target }) => {
                    load.add(chunk.primary, target);
                }
                _ => {}
            }
            tasks.push(Task { home: chunk.home(), version: chunk.version, step });
        }
    }
    tasks
}

/// Returns the next step for `chunk`; `None`: nothing to do, or nothing that can be done now.
///
/// `is_refused`: a server that failed to take this chunk a short while ago. `is_ordered`: a server whose fill was ordered
/// and is under way.
pub fn step(
    chunk: &ChunkFacts,
    fleet: &Fleet,
    bounds: Bounds<'_>,
    is_refused: impl Fn(NodeId) -> bool,
    is_ordered: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    // Without a primary that may serve nothing can be copied; who becomes the primary is decided elsewhere. So is what
    // becomes of members that cannot be trusted.
    if !fleet.is_online(chunk.primary) || chunk.in_sync.iter().any(|node| fleet.is_tainted(chunk, *node)) {
        return None;
    }
    let redundancy = Redundancy::of(chunk, fleet);
    let lost =
        |node: &&NodeId| fleet.state(**node) == NodeState::Offline || fleet.is_draining(**node) || is_refused(**node);
    if let Some(node) = chunk.syncing.iter().find(lost) {
        return Some(Step::Change(SetChange::Remove(*node)));
    }
    // Writes are held up below the minimum: then nobody waits for one that may come back.
    let is_urgent = redundancy.online < chunk.min_in_sync();
    let counted = if is_urgent { redundancy.online } else { redundancy.hoped };
    if counted + redundancy.syncing < chunk.wanted
        && let Some(node) = addition(chunk, fleet, bounds, is_urgent, counted + redundancy.syncing, &is_refused)
    {
        return Some(Step::Change(SetChange::Add(node)));
    }
    let fill = chunk.syncing.iter().copied().find(|node| {
        fleet.is_online(*node)
            && !is_ordered(*node)
            && bounds.load.may_lead(chunk.primary, bounds.limits)
            && bounds.load.may_fill(*node, bounds.limits)
    });
    if let Some(node) = fill {
        return Some(Step::Order(chunk.primary, OrderKind::Fill { node }));
    }
    surplus(chunk, fleet)
}

/// Returns who is to be filled for a chunk that has `counted` replicas or will have them.
fn addition(
    chunk: &ChunkFacts,
    fleet: &Fleet,
    bounds: Bounds<'_>,
    is_urgent: bool,
    counted: u32,
    is_refused: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let Bounds { limits, load } = bounds;
    if !load.may_lead(chunk.primary, limits) {
        return None;
    }
    // It lacks only what was written since it left: megabytes instead of the chunk.
    let returned = chunk.stale.iter().copied().find(|node| {
        !chunk.names(*node)
            && fleet.is_online(*node)
            && !fleet.is_draining(*node)
            && !is_refused(*node)
            && fleet.node(*node).is_some_and(|found| found.free_on_one_disk >= FREE_BYTES_MIN)
    });
    if let Some(node) = returned {
        return load.may_fill(node, limits).then_some(node);
    }
    let expected = chunk.stale.iter().filter(|node| {
        !chunk.names(**node) && fleet.state(**node) == NodeState::LeaseExpired && !fleet.is_draining(**node)
    });
    if !is_urgent && counted + expected.count() as u32 >= chunk.wanted {
        return None;
    }
    let beside: Vec<NodeId> = chunk.in_sync.iter().chain(&chunk.syncing).copied().collect();
    fleet.choose(chunk, &beside, load, |node| !is_refused(node) && load.may_fill(node, limits))
}

/// Returns how a chunk gets rid of one replica that it does not need.
fn surplus(chunk: &ChunkFacts, fleet: &Fleet) -> Option<Step> {
    if chunk.in_sync.len() as u32 <= chunk.wanted {
        return None;
    }
    let shares_a_host = |node: NodeId| {
        let host = |id: NodeId| fleet.node(id).map(|found| &found.host);
        chunk.in_sync.iter().any(|other| *other != node && host(*other) == host(node))
    };
    // The worst one goes; a primary only if it is the only worst, since to hand over takes a moment.
    let worst = chunk.in_sync.iter().copied().max_by_key(|node| {
        let is_offline = fleet.state(*node) == NodeState::Offline;
        let is_silent = !fleet.is_online(*node);
        let fill = fleet.fill_permille(*node);
        let key = (is_offline, fleet.is_draining(*node), is_silent, shares_a_host(*node), fill);
        (key, *node != chunk.primary, std::cmp::Reverse(*node))
    })?;
    // A draining one is as good as any beside one that is lost.
    let is_lost = fleet.state(worst) == NodeState::Offline;
    let is_good =
        |node: &&NodeId| **node != worst && fleet.is_online(**node) && (is_lost || !fleet.is_draining(**node));
    if (chunk.in_sync.iter().filter(is_good).count() as u32) < chunk.wanted
        || fleet.state(worst) == NodeState::LeaseExpired
    {
        return None;
    }
    Some(leaves(chunk, worst))
}

/// Returns the step with which `node`, a member, leaves the set.
pub fn leaves(chunk: &ChunkFacts, node: NodeId) -> Step {
    if node == chunk.primary { Step::Order(node, OrderKind::HandOver) } else { Step::Change(SetChange::Remove(node)) }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::script::{chunk, fleet};
    use super::*;

    const FOUR: &str = "
        1 a r1 50%
        2 b r1 50%
        3 c r2 50%
        4 d r2 50%
    ";

    fn said(step: Option<Step>) -> String {
        match step {
            None => "nothing".into(),
            Some(Step::Change(SetChange::Add(node))) => format!("add {node}"),
            Some(Step::Change(SetChange::Remove(node))) => format!("remove {node}"),
            Some(Step::Order(to, OrderKind::Fill { node })) => format!("{to} fills {node}"),
            Some(Step::Order(to, OrderKind::HandOver)) => format!("{to} hands over"),
            Some(other) => format!("{other:?}"),
        }
    }

    /// Each line: a chunk, and the step for it. `ordered=N`: its fill is under way; `refused=N`: it failed lately.
    #[track_caller]
    fn check(servers: &str, script: &str) {
        let fleet = fleet(servers);
        for line in script.lines().filter(|line| !line.trim().is_empty()) {
            let (left, expected) = line.split_once("->").expect("has an arrow");
            let flag = |name: &str| {
                let found = left.split_whitespace().find_map(|word| word.strip_prefix(name));
                found.map(|node| NodeId(node.parse().unwrap()))
            };
            let (ordered, refused) = (flag("ordered="), flag("refused="));
            let words = left.split_whitespace().filter(|word| !word.contains("ered=") && !word.contains("used="));
            let chunk = chunk(&words.collect::<Vec<_>>().join(" "));
            let bounds = Bounds { limits: &FillLimits::default(), load: &Load::default() };
            let step = step(&chunk, &fleet, bounds, |node| Some(node) == refused, |node| Some(node) == ordered);
            assert_eq!(said(step), expected.trim(), "{line}");
        }
    }

    #[test]
    fn a_whole_chunk_needs_nothing() {
        check(FOUR, "9: 1* 2 3 -> nothing");
        assert_eq!(danger(&chunk("9: 1* 2 3"), &fleet(FOUR)), None);
        assert!(danger(&chunk("9: 1* 2"), &fleet(FOUR)).is_some());
        assert!(danger(&chunk("9: 1* 2 3 +4"), &fleet(FOUR)).is_some());
    }

    #[test]
    fn a_lost_replica_is_made_elsewhere_filled_and_the_surplus_goes() {
        check(
            "
            1 a r1 50%
            2 b r1 50%
            3 c r2 50% offline
            4 d r2 50%
            ",
            "
            9: 1* 2 3               -> add 4
            9: 1* 2 3 +4            -> 1 fills 4
            9: 1* 2 3 +4 ordered=4  -> nothing
            9: 1* 2 3 4             -> remove 3
            9: 1* 2 4 -3            -> nothing
            9: 1* 2 -3              -> add 4
            ",
        );
    }

    #[test]
    fn who_fell_silent_has_until_the_verdict_unless_writes_wait() {
        let silent = "
            1 a r1 50%
            2 b r1 50%
            3 c r2 50% expired
            4 d r2 50%
        ";
        check(
            silent,
            "
            9: 1* 2 3               -> nothing
            9: 1* 2 -3              -> nothing
            9: 1* 3                 -> add 2
            9: 1* -3                -> add 4
            9: 1* +4 -3             -> add 2
            9: 1* 2 4 3             -> nothing
            ",
        );
    }

    #[test]
    fn an_old_replica_that_is_back_is_filled_before_a_new_place_is_taken() {
        check(
            FOUR,
            "
            9: 1* 2 -3              -> add 3
            9: 1* 2 -4              -> add 4
            9: 1* 2 -4 refused=4    -> add 3
            9: 1* 2 +4 refused=4    -> remove 4
            ",
        );
    }

    #[test]
    fn nothing_is_copied_without_a_primary_or_from_one_that_cannot_be_trusted() {
        check("1 a r1 5% expired\n2 b r1 5%\n3 c r1 5%\n4 d r1 5%", "9: 1* 2 -> nothing");
        check("1 a r1 5%\n2 b r1 5% suspect=101\n3 c r1 5%\n4 d r1 5%", "9: 1* 2 -> nothing");
        check("1 a r1 5%\n2 b r1 5% suspect=100\n3 c r1 5%\n4 d r1 5%", "9: 1* 2 -> add 4");
    }

    #[test]
    fn a_new_replica_goes_to_another_rack_then_another_host_and_never_to_a_full_server() {
        check(
            "
            1 a r1 50%
            2 b r1 50%
            3 c r1 50%
            4 c r1 50%
            5 e r2 50%
            6 f r2 50% full
            7 g r2 50% draining
            8 h r2 50% offline
            ",
            "
            9: 1* 2                 -> add 5
            9: 1* 5 wanted=2        -> nothing
            9: 1* 2 3 5 wanted=5    -> add 4
            9: 1* 2 3 4 5 wanted=6  -> nothing
            ",
        );
    }

    #[test]
    fn a_replica_that_is_to_be_filled_on_a_lost_or_draining_server_leaves() {
        check(
            "1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 5% draining",
            "9: 1* 2 +3 -> remove 3\n9: 1* 2 +4 -> remove 4",
        );
    }

    #[test]
    fn of_too_many_the_worst_leaves_and_a_primary_hands_over() {
        check("1 a - 60%\n2 b - 50%\n3 c - 40%\n4 d - 10%", "9: 1* 2 3 4 -> 1 hands over\n9: 2* 1 3 4 -> remove 1");
        check("1 a - 60%\n2 b - 50%\n3 b - 40%\n4 d - 10%", "9: 1* 2 3 4 -> remove 2");
        check("1 a - 60%\n2 b - 5% draining\n3 c - 40%\n4 d - 10%", "9: 1* 2 3 4 -> remove 2");
        check("1 a - 60%\n2 b - 5% expired\n3 c - 40%\n4 d - 10%", "9: 1* 2 3 4 -> nothing");
        check("1 a - 50%\n2 b - 50%\n3 c - 50%\n4 d - 50%", "9: 1* 2 3 4 -> remove 2");
    }

    #[test]
    fn the_chunks_in_most_danger_come_first() {
        let fleet = fleet("1 a - 5%\n2 b - 5%\n3 c - 5% offline\n4 d - 5%\n5 e - 5% offline");
        let mut queue = Queue::default();
        for text in ["11: 1* 2 3", "12: 1* 3 5", "13: 1* 2 5", "14: 1* 3 5 +4", "15: 3* 5"] {
            let chunk = chunk(text);
            queue.put(chunk.home(), danger(&chunk, &fleet).expect("in danger"));
        }
        let order: Vec<u64> = queue.iter().map(|home| home.inode.0).collect();
        assert_eq!(order, [15, 12, 14, 11, 13]);
        queue.remove(chunk("12: 1*").home());
        assert_eq!((queue.len(), queue.iter().next().map(|home| home.inode.0)), (4, Some(15)));
    }

    #[test]
    fn fills_are_bounded_at_each_server_and_in_all() {
        let fleet = fleet("1 a - 5%\n2 b - 5%\n3 c - 5%\n4 d - 5%\n5 e - 5%");
        let chunks: Vec<ChunkFacts> =
            (0..40).map(|id| chunk(&format!("{id}: {}* 2", if id % 2 == 0 { 1 } else { 3 }))).collect();
        let limits = FillLimits { per_primary: 4, per_target: 4, total: 6 };
        let mut load = Load::default();
        let tasks = plan(&chunks, &fleet, &limits, &mut load, |_, _| false, |_, _| false);
        assert_eq!((tasks.len(), load.total), (6, 6));
        assert!(load.leading.values().chain(load.filling.values()).all(|count| *count <= 4), "{load:?}");
        let none = plan(&chunks, &fleet, &limits, &mut load, |_, _| false, |_, _| false);
        assert_eq!(none, []);
    }
}
