//! The orders that servers were given and have not reported on.
//!
//! ```text
//! give ──▶ told with each pulse of the server ──▶ result ──▶ taken by whoever plans
//!                   └── withdrawn: the server has a new run, the set no longer asks for it, or it took too long
//! ```
//!
//! In memory only: a master that restarts plans anew, and ids begin at a random place so that a result of an earlier run
//! is taken for none of this one.
//!
//! # Invariants
//!
//! - At most one order of a kind for a chunk (and, for fills, for whom) is under way.
//! - The table is bounded, as a whole and for each server and kind.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs_proto::replica_set::{Home, Order, OrderKind, OrderOutcome, OrderReport};
use dfs_proto::{BootSession, ChunkId, FsError, MonoMs, NodeId, Version};

use super::care::ChunkFacts;
use super::fleet::Load;

/// Most orders under way.
pub const ORDERS_MAX: usize = 10_000;
/// Most orders in the answer to one pulse; the oldest first.
pub const ORDERS_IN_A_PULSE_MAX: usize = 256;
/// Most results that wait for their turn. One that does not fit is reported again.
const RESULTS_MAX: usize = 10_000;

/// What an order is for, without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// To fill a replica.
    Fill,
    /// To compare and check.
    Scrub,
    /// To stop to be the primary.
    HandOver,
    /// To delete an old replica.
    Discard,
}

impl Duty {
    /// All duties.
    pub const ALL: [Self; 4] = [Self::Fill, Self::Scrub, Self::HandOver, Self::Discard];

    /// Returns what an order of this kind is for.
    pub fn of(kind: OrderKind) -> Self {
        match kind {
            OrderKind::Fill { .. } => Self::Fill,
            OrderKind::Scrub { .. } => Self::Scrub,
            OrderKind::HandOver => Self::HandOver,
            OrderKind::Discard { .. } => Self::Discard,
        }
    }

    /// Returns the word for it in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Scrub => "scrub",
            Self::HandOver => "hand_over",
            Self::Discard => "discard",
        }
    }

    /// Returns how many a server is given at once. It carries out a few side by side.
    fn per_node_max(self) -> usize {
        match self {
            Self::Fill => 16,
            Self::Scrub => 16,
            Self::HandOver => 16,
            Self::Discard => 64,
        }
    }

    /// Returns after how long without a result an order is taken back, in milliseconds. A lost order is planned again.
    fn patience_ms(self) -> u64 {
        match self {
            Self::Fill => 600_000,
            Self::Scrub => 1_800_000,
            Self::HandOver => 30_000,
            Self::Discard => 300_000,
        }
    }
}

/// An order under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Who is to carry it out.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// Where the chunk's record is.
    pub home: Home,
    /// The chunk.
    pub chunk: ChunkId,
    /// The version of its set when it was ordered.
    pub version: Version,
    /// What is to be done.
    pub kind: OrderKind,
    /// When it was ordered.
    pub since: MonoMs,
    grant: Bytes,
}

/// An order and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: u64,
    /// The order.
    pub order: Pending,
    /// What was done, or why it was not.
    pub result: Result<OrderReport, FsError>,
}

/// Sets orders for the same thing apart from others: chunk, duty, who is filled or carries it out.
type Purpose = (ChunkId, Duty, NodeId);

fn purpose(chunk: ChunkId, kind: OrderKind, node: NodeId) -> Purpose {
    let whom = match kind {
        OrderKind::Fill { node } => node,
        OrderKind::Discard { .. } => node,
        // A deep one is not the same as one that only compares.
        OrderKind::Scrub { deep } => NodeId(u32::from(deep)),
        OrderKind::HandOver => node,
    };
    (chunk, Duty::of(kind), whom)
}

/// The orders under way.
#[derive(Debug)]
pub struct Orders {
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    by_node: BTreeMap<NodeId, BTreeSet<u64>>,
    by_purpose: BTreeMap<Purpose, u64>,
    finished: Vec<Finished>,
    /// Orders whose results somebody waits for, and those that came.
    watched: BTreeMap<u64, Option<Result<OrderReport, FsError>>>,
}

impl Orders {
    /// Returns an empty table whose ids begin near `seed`, a random number.
    pub fn new(seed: u64) -> Self {
        Self {
            // Room for a life of ids above it.
            next_id: (seed >> 16).max(1),
            pending: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_purpose: BTreeMap::new(),
            finished: Vec::new(),
            watched: BTreeMap::new(),
        }
    }

    /// Gives an order about `chunk` to `node` in its run `boot`; `grant`: of the primary, sealed. Returns its id; `None`
    /// if there is no room for it. One that is under way for the same purpose stays and is returned.
    pub fn give(
        &mut self,
        chunk: &ChunkFacts,
        node: NodeId,
        boot: BootSession,
        kind: OrderKind,
        grant: Bytes,
        now: MonoMs,
    ) -> Option<u64> {
        let purpose = purpose(chunk.chunk, kind, node);
        if let Some(id) = self.by_purpose.get(&purpose) {
            return Some(*id);
        }
        if self.pending.len() >= ORDERS_MAX || self.count(node, Duty::of(kind)) >= Duty::of(kind).per_node_max() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let (home, version) = (chunk.home(), chunk.version);
        let order = Pending { node, boot, home, chunk: chunk.chunk, version, kind, since: now, grant };
        self.pending.insert(id, order);
        self.by_node.entry(node).or_default().insert(id);
        self.by_purpose.insert(purpose, id);
        Some(id)
    }

    /// Returns what `node` in its run `boot` has to do, oldest first. Orders of an earlier run are withdrawn: whoever was
    /// to carry them out is gone.
    pub fn of_node(&mut self, node: NodeId, boot: BootSession) -> Vec<Order> {
        let ids: Vec<u64> = self.by_node.get(&node).into_iter().flatten().copied().collect();
        let mut orders = Vec::new();
        for id in ids {
            let Some(order) = self.pending.get(&id) else { continue };
            if order.boot != boot {
                self.withdraw(id);
            } else if orders.len() < ORDERS_IN_A_PULSE_MAX {
                orders.push(Order { id, chunk: order.chunk, kind: order.kind, grant: order.grant.clone() });
            }
        }
        orders
    }

    /// Takes the results that `node` in its run `boot` reports. Those of orders that are not under way say nothing.
    pub fn report(&mut self, node: NodeId, boot: BootSession, outcomes: Vec<OrderOutcome>) {
        for OrderOutcome { id, result } in outcomes {
            let is_theirs = self.pending.get(&id).is_some_and(|order| order.node == node && order.boot == boot);
            if is_theirs
                && self.finished.len() < RESULTS_MAX
                && let Some(order) = self.withdraw(id)
            {
                if let Some(watched) = self.watched.get_mut(&id) {
                    *watched = Some(result.clone());
                }
                self.finished.push(Finished { id, order, result });
            }
        }
    }

    /// Takes what was finished since the last call.
    pub fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Takes an order back, and returns it if it was under way.
    pub fn withdraw(&mut self, id: u64) -> Option<Pending> {
        let order = self.pending.remove(&id)?;
        self.by_purpose.remove(&purpose(order.chunk, order.kind, order.node));
        if let Some(ids) = self.by_node.get_mut(&order.node) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_node.remove(&order.node);
            }
        }
        Some(order)
    }

    /// Takes back what nobody waits for any more: orders of runs that are not the present ones, and those that take too
    /// long. Returns them.
    pub fn expire(&mut self, now: MonoMs, boot_of: impl Fn(NodeId) -> Option<BootSession>) -> Vec<Pending> {
        let is_over = |order: &Pending| {
            boot_of(order.node) != Some(order.boot) || now.since(order.since) > Duty::of(order.kind).patience_ms()
        };
        let over: Vec<u64> = self.pending.iter().filter(|(_, order)| is_over(order)).map(|(id, _)| *id).collect();
        over.into_iter().filter_map(|id| self.withdraw(id)).collect()
    }

    /// Takes back the orders about `chunk` that its set no longer asks for; all of them if it is gone (`None`).
    pub fn revise(&mut self, chunk: ChunkId, facts: Option<&ChunkFacts>) {
        let of_chunk = (chunk, Duty::Fill, NodeId(0))..=(chunk, Duty::Discard, NodeId(u32::MAX));
        let ids: Vec<u64> = self.by_purpose.range(of_chunk).map(|(_, id)| *id).collect();
        for id in ids {
            let order = &self.pending[&id];
            // A change of the version alone is the primary's own doing: it drops members and finishes while it works.
            let is_asked_for = facts.filter(|facts| facts.chunk == chunk).is_some_and(|facts| match order.kind {
                OrderKind::Fill { node } => facts.primary == order.node && facts.names(node),
                OrderKind::Scrub { .. } => facts.primary == order.node,
                // Its server has left when it is done, and then says so.
                OrderKind::HandOver => true,
                OrderKind::Discard { .. } => facts.stale.contains(&order.node),
            });
            if !is_asked_for {
                self.withdraw(id);
            }
        }
    }

    /// Returns whether a fill of `node`'s replica of `chunk` is under way.
    pub fn is_filling(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.by_purpose.contains_key(&(chunk, Duty::Fill, node))
    }

    /// Has the result of order `id` kept until it is taken with [`Self::take_watched`] or no longer wanted.
    pub fn watch(&mut self, id: u64) {
        self.watched.entry(id).or_default();
    }

    /// Takes the result of an order that is watched; `None`: there is none yet, or there will be none because it was
    /// withdrawn.
    pub fn take_watched(&mut self, id: u64) -> Option<Result<OrderReport, FsError>> {
        let result = self.watched.get_mut(&id)?.take();
        if result.is_some() {
            self.watched.remove(&id);
        }
        result
    }

    /// Watches order `id` no more.
    pub fn forget_watched(&mut self, id: u64) {
        self.watched.remove(&id);
    }

    /// Returns whether order `id` is under way.
    pub fn is_pending(&self, id: u64) -> bool {
        self.pending.contains_key(&id)
    }

    /// Returns the fills under way, by the servers they burden.
    pub fn load(&self) -> Load {
        let mut load = Load::default();
        for order in self.pending.values() {
            if let OrderKind::Fill { node } = order.kind {
                load.add(order.node, node);
            }
        }
        load
    }

    /// Returns the orders under way, and where each one's chunk is.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Pending)> {
        self.pending.iter().map(|(id, order)| (*id, order))
    }

    /// Returns how many orders of a duty are under way.
    pub fn count_of(&self, duty: Duty) -> usize {
        self.pending.values().filter(|order| Duty::of(order.kind) == duty).count()
    }

    fn count(&self, node: NodeId, duty: Duty) -> usize {
        let ids = self.by_node.get(&node).into_iter().flatten();
        ids.filter(|id| self.pending.get(id).is_some_and(|order| Duty::of(order.kind) == duty)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::script::chunk;
    use super::*;

    const ONE: NodeId = NodeId(1);
    const BOOT: BootSession = BootSession(7);
    const FILL: OrderKind = OrderKind::Fill { node: NodeId(4) };

    fn with(texts: &[&str], kind: OrderKind) -> (Orders, Vec<u64>) {
        let mut orders = Orders::new(0);
        let ids = texts.iter().map(|text| {
            orders.give(&chunk(text), ONE, BOOT, kind, Bytes::from_static(b"grant"), MonoMs(0)).expect("there is room")
        });
        let ids = ids.collect();
        (orders, ids)
    }

    fn told(orders: &mut Orders, boot: u64) -> Vec<u64> {
        orders.of_node(ONE, BootSession(boot)).into_iter().map(|order| order.id).collect()
    }

    #[test]
    fn an_order_is_told_until_its_result_came_and_the_result_is_taken_once() {
        let (mut orders, ids) = with(&["5: 1* 2 +4", "6: 1* 2 +4"], FILL);
        assert_eq!(told(&mut orders, 7), ids);
        assert_eq!(told(&mut orders, 7), ids);
        assert_eq!(orders.of_node(NodeId(2), BOOT), []);
        let done = || OrderOutcome { id: ids[0], result: Ok(OrderReport::default()) };
        orders.report(NodeId(2), BOOT, vec![done()]);
        orders.report(ONE, BootSession(6), vec![done()]);
        assert_eq!(told(&mut orders, 7), ids, "said by somebody else");
        orders.report(ONE, BOOT, vec![done(), done(), OrderOutcome { id: 999, result: Err(FsError::NoSpace) }]);
        assert_eq!(told(&mut orders, 7), ids[1..]);
        let finished = orders.take_finished();
        assert_eq!((finished.len(), finished[0].id, finished[0].order.home.inode.0), (1, ids[0], 5));
        assert_eq!(orders.take_finished(), []);
    }

    #[test]
    fn a_watched_result_is_kept_for_who_waits() {
        let (mut orders, ids) = with(&["5: 1* 2 +4", "6: 1* 2 +4"], FILL);
        ids.iter().for_each(|id| orders.watch(*id));
        assert_eq!(orders.take_watched(ids[0]), None);
        orders.report(ONE, BOOT, vec![OrderOutcome { id: ids[0], result: Err(FsError::NoSpace) }]);
        orders.take_finished();
        assert_eq!(orders.take_watched(ids[0]), Some(Err(FsError::NoSpace)));
        assert_eq!(orders.take_watched(ids[0]), None);
        orders.withdraw(ids[1]);
        assert!(orders.take_watched(ids[1]).is_none() && !orders.is_pending(ids[1]));
        orders.forget_watched(ids[1]);
    }

    #[test]
    fn the_same_purpose_is_ordered_once() {
        let (mut orders, ids) = with(&["5: 1* 2 +4", "5: 1* 2 +4"], FILL);
        assert_eq!(ids[0], ids[1]);
        let other = OrderKind::Fill { node: NodeId(3) };
        let id = orders.give(&chunk("5: 1* 2 +4"), ONE, BOOT, other, Bytes::new(), MonoMs(0));
        assert_ne!(id, Some(ids[0]));
        assert!(orders.is_filling(ChunkId(5), NodeId(4)) && orders.is_filling(ChunkId(5), NodeId(3)));
        assert_eq!(orders.load().leading[&ONE], 2);
    }

    #[test]
    fn orders_end_with_the_run_of_the_server_or_after_long() {
        let (mut orders, _) = with(&["5: 1* 2 +4"], FILL);
        assert_eq!(told(&mut orders, 8), Vec::<u64>::new());
        assert_eq!(orders.count_of(Duty::Fill), 0);
        let (mut orders, _) = with(&["5: 1* 2 +4"], FILL);
        assert_eq!(orders.expire(MonoMs(600_000), |_| Some(BOOT)), []);
        assert_eq!(orders.expire(MonoMs(600_001), |_| Some(BOOT)).len(), 1);
        let (mut orders, _) = with(&["5: 1* 2 +4"], FILL);
        assert_eq!(orders.expire(MonoMs(1), |_| Some(BootSession(8))).len(), 1);
    }

    /// Asserts which orders are left once the set of chunk 5, of which all kinds were ordered, is this.
    #[track_caller]
    fn check_revised(text: Option<&str>, left: &[Duty]) {
        let mut orders = Orders::new(0);
        let facts = chunk("5: 1* 2 +4 -1");
        let kinds =
            [FILL, OrderKind::Scrub { deep: true }, OrderKind::HandOver, OrderKind::Discard { below: Version(5) }];
        for kind in kinds {
            orders.give(&facts, ONE, BOOT, kind, Bytes::new(), MonoMs(0));
        }
        orders.give(&chunk("6: 1* 2"), ONE, BOOT, OrderKind::HandOver, Bytes::new(), MonoMs(0));
        orders.revise(ChunkId(5), text.map(chunk).as_ref());
        let of_five = orders.iter().filter(|(_, order)| order.chunk == ChunkId(5));
        let mut found: Vec<Duty> = of_five.map(|(_, order)| Duty::of(order.kind)).collect();
        found.sort_unstable();
        assert_eq!(found, left, "{text:?}");
        assert_eq!(orders.count_of(Duty::HandOver) - usize::from(left.contains(&Duty::HandOver)), 1, "of chunk 6");
    }

    #[test]
    fn an_order_that_the_set_no_longer_asks_for_is_withdrawn() {
        use Duty::{Discard, Fill, HandOver, Scrub};
        check_revised(Some("5: 1* 2 +4 -1"), &[Fill, Scrub, HandOver, Discard]);
        check_revised(Some("5: 1* 2 4"), &[Fill, Scrub, HandOver]);
        check_revised(Some("5: 1* 2 -4"), &[Scrub, HandOver]);
        check_revised(Some("5: 2* 1 +4"), &[HandOver]);
        check_revised(Some("5: 2* -1"), &[HandOver, Discard]);
        check_revised(Some("6: 1* 2 +4"), &[]);
        check_revised(None, &[]);
    }

    #[test]
    fn a_server_is_given_a_bounded_number() {
        let mut orders = Orders::new(0);
        let kind = OrderKind::Discard { below: Version(5) };
        let given = (0..100)
            .filter(|id| {
                orders.give(&chunk(&format!("{id}: 2* -1")), ONE, BOOT, kind, Bytes::new(), MonoMs(0)).is_some()
            })
            .count();
        assert_eq!((given, orders.of_node(ONE, BOOT).len()), (64, 64));
        assert!(orders.give(&chunk("5: 1* 2"), NodeId(2), BOOT, kind, Bytes::new(), MonoMs(0)).is_some());
    }
}
