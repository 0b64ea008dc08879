//! The care for replicas: looks at records and servers, and has done what the planners plan.
//!
//! ```text
//!  pulse, report, change ──▶ Inbox ─┐                      ┌─▶ set changes  (World::change, make_usable)
//!                                   ├─▶ Care::tick, now ───┤
//!  chunk records, page by page ─────┘      planners        └─▶ orders       (told with the next pulses)
//! ```
//!
//! It holds nothing that a restart must not lose: a new master begins with a pass over the records. Driven by the
//! caretaker's thread in a server and by a simulator in one thread; both lend it a [`World`].
//!
//! # Invariants
//!
//! - Bounded work in a tick, and bounded memory.
//! - What the plan was made for is compared when it is carried out: each change names the version it is for.

mod attend;
mod look;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs_proto::replica_set::{Home, OrderKind};
use dfs_proto::{FsError, MonoMs, NodeId};

use super::care::SetChange;
use super::census::{Census, Count};
use super::fleet::{FillLimits, Fleet, FleetNode};
use super::inventory::{Inventory, Page};
use super::node_table::NodeState;
use super::orders::{Duty, Finished};
use super::rebalance::Rebalance;
use super::repair::{self, Queue};
use super::scrub_plan::{self, Waiting};
pub use world::{Event, Inbox, World};

/// Chunk records read at once: about a millisecond of the state's time.
const PAGE_RECORDS: usize = 256;
/// Pages read in one tick.
const PAGES_IN_A_TICK: usize = 16;
/// Chunks looked at for repair in one tick, and for draining.
const ATTENDED_IN_A_TICK: usize = 128;
/// Replicas of servers' lists judged in one tick.
const JUDGED_IN_A_TICK: usize = 4_096;
/// Most pages that wait to be judged.
const JUDGING_MAX: usize = 1_024;
/// Steps taken for one chunk at once.
const STEPS_MAX: usize = 8;
/// Most chunks that wait to be drained, or to have old replicas discarded; the next pass finds the others.
const WAITING_MAX: usize = 20_000;
/// Chunks whose old replicas are discarded in one tick.
const DISCARDS_IN_A_TICK: usize = 256;
/// Scrubs under way.
const SCRUBS_MAX: usize = 8;
/// Moves under way to even out how full servers are.
const MOVES_MAX: usize = 4;
/// A chunk for which nothing could be done is looked at again after this, then twice as long, and so on.
const PAUSE_MS: u64 = 1_000;
/// At most after this.
const PAUSE_MAX_MS: u64 = 60_000;
/// A server that failed to take a replica is not chosen for it again for this long.
const REFUSED_MS: u64 = 300_000;
/// Failures of the same fill after which another server is chosen.
const FILL_TRIES: u32 = 3;

/// Settings of the care for replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CareSettings {
    /// How many fills may be under way.
    pub fills: FillLimits,
    /// Each chunk is checked and compared once in this time; 0: never.
    pub scrub_period_ms: u64,
    /// How long a replica of a chunk that the master does not know is kept.
    pub unknown_grace_ms: u64,
    /// A pass over the records begins this long after the one before began.
    pub census_period_ms: u64,
}

impl Default for CareSettings {
    fn default() -> Self {
        Self {
            fills: FillLimits::default(),
            scrub_period_ms: 14 * 24 * 3_600_000,
            unknown_grace_ms: 60_000,
            census_period_ms: 10_000,
        }
    }
}

/// The care for replicas.
#[derive(Debug)]
pub struct Care {
    settings: CareSettings,
    fleet: Fleet,
    census: Census,
    queue: Queue,
    drains: BTreeSet<Home>,
    discards: BTreeSet<Home>,
    scrubs: Waiting,
    rebalance: Rebalance,
    inventory: Inventory,
    /// Pages that are being judged, and how far.
    judging: VecDeque<(Page, usize)>,
    /// When a chunk is looked at again, and how often nothing could be done.
    pauses: BTreeMap<Home, (MonoMs, u32)>,
    failures: BTreeMap<(Home, NodeId), u32>,
    refused: BTreeMap<(Home, NodeId), MonoMs>,
    events: Vec<Event>,
}

impl Care {
    /// Returns one that has seen nothing yet.
    pub fn new(settings: CareSettings) -> Self {
        Self {
            settings,
            fleet: Fleet::default(),
            census: Census::new(settings.census_period_ms),
            queue: Queue::default(),
            drains: BTreeSet::new(),
            discards: BTreeSet::new(),
            scrubs: Waiting::default(),
            rebalance: Rebalance::default(),
            inventory: Inventory::new(settings.unknown_grace_ms),
            judging: VecDeque::new(),
            pauses: BTreeMap::new(),
            failures: BTreeMap::new(),
            refused: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Does a bounded piece of the work. `nodes`: all servers on record, as they are now.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`] if the master cannot serve. What was not done is done in a later tick.
    pub fn tick(
        &mut self,
        now: MonoMs,
        nodes: BTreeMap<NodeId, FleetNode>,
        inbox: Inbox,
        world: &mut impl World,
    ) -> Result<(), FsError> {
        let nodes_changed = self.look_at_nodes(nodes);
        self.inventory.mark(now, world.seq());
        self.take_results(now, world)?;
        let Inbox { urgent, damaged, pages } = inbox;
        damaged.into_iter().for_each(|home| self.scrubs.add_damaged(home));
        for page in pages {
            if self.judging.len() < JUDGING_MAX && self.inventory.take(&page, now) {
                self.judging.push_back((page, 0));
            }
        }
        let mut load = world.orders(|orders| orders.load());
        for home in urgent {
            self.pauses.remove(&home);
            self.attend(home, now, &mut load, world)?;
        }
        self.count(now, nodes_changed, &mut load, world)?;
        self.attend_queue(now, &mut load, world)?;
        self.judge(now, world)?;
        self.scrub(now, world)?;
        self.discard(now, world)?;
        self.tidy(now);
        Ok(())
    }

    /// Returns what is to be shown of the chunks.
    pub fn counts(&self) -> Count {
        self.census.count()
    }

    /// Returns the census.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Returns how many chunks wait for repair.
    pub fn repair_queue(&self) -> usize {
        self.queue.len()
    }

    /// Returns what servers hold.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Takes what was done since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Takes the servers as they are now. Returns whether any came, went, or is to be emptied.
    fn look_at_nodes(&mut self, nodes: BTreeMap<NodeId, FleetNode>) -> bool {
        let fact = |node: &FleetNode| (node.state, node.is_draining, node.suspect_seq);
        let facts = |fleet: &Fleet| fleet.iter().map(|(id, node)| (id, fact(node))).collect::<Vec<_>>();
        let before = facts(&self.fleet);
        // What a server failed to do in an earlier run says nothing about this one.
        let is_new_run = |id: NodeId| {
            let boot = |node: &FleetNode| node.boot;
            nodes.get(&id).map(boot) != self.fleet.node(id).map(boot)
        };
        self.failures.retain(|(_, node), _| !is_new_run(*node));
        self.refused.retain(|(_, node), _| !is_new_run(*node));
        self.fleet.refresh(nodes);
        let changed = before != facts(&self.fleet);
        if changed {
            self.pauses.clear();
            let fleet = &self.fleet;
            self.inventory.keep(|node| fleet.node(node).is_some());
        }
        changed
    }

    fn take_results(&mut self, now: MonoMs, world: &mut impl World) -> Result<(), FsError> {
        let fleet = &self.fleet;
        let (finished, expired) = world.orders(|orders| {
            let expired = orders.expire(now, |node| fleet.node(node).map(|found| found.boot));
            (orders.take_finished(), expired)
        });
        for order in expired {
            self.events.push(Event::Withdrawn { duty: Duty::of(order.kind) });
            self.pauses.remove(&order.home);
            self.requeue(order.home);
        }
        for done in finished {
            self.take_result(done, now, world)?;
        }
        Ok(())
    }

    fn take_result(&mut self, done: Finished, now: MonoMs, world: &mut impl World) -> Result<(), FsError> {
        let Finished { order, result, .. } = done;
        let (home, chunk, node, kind) = (order.home, order.chunk, order.node, order.kind);
        match (kind, &result) {
            (OrderKind::Fill { node }, Ok(_)) => {
                self.failures.remove(&(home, node));
                self.pauses.remove(&home);
                self.requeue(home);
            }
            (OrderKind::Fill { node }, Err(error)) => {
                let tries = self.failures.entry((home, node)).or_default();
                *tries += 1;
                if *tries >= FILL_TRIES || *error == FsError::NoSpace {
                    self.failures.remove(&(home, node));
                    self.refused.insert((home, node), now.plus(REFUSED_MS));
                }
                self.pause(home, now);
                self.requeue(home);
            }
            (OrderKind::Discard { .. }, Ok(_)) => {
                // Under another version it may hold a newer old replica by now.
                let found = world.chunks(&[home])?.pop().flatten();
                if let Some(facts) = found.filter(|facts| facts.chunk == chunk && facts.version == order.version) {
                    self.change(&facts, SetChange::ForgetStale(node), world)?;
                }
            }
            (OrderKind::HandOver, _) => self.requeue(home),
            (OrderKind::Scrub { .. }, Ok(report)) if report.bad_units > report.repaired_units => self.requeue(home),
            _ => {}
        }
        self.events.push(Event::Finished { home, chunk, node, kind, result });
        Ok(())
    }

    /// Has a chunk looked at soon, before those of which more is known.
    fn requeue(&mut self, home: Home) {
        self.queue.put(home, repair::Danger::UNKNOWN);
    }

    fn pause(&mut self, home: Home, now: MonoMs) {
        if self.pauses.len() >= WAITING_MAX {
            self.pauses.retain(|_, (until, _)| *until > now);
        }
        let tries = self.pauses.get(&home).map_or(0, |(_, tries)| *tries);
        let pause_ms = (PAUSE_MS << tries.min(6)).min(PAUSE_MAX_MS);
        self.pauses.insert(home, (now.plus(pause_ms), tries + 1));
    }

    fn is_paused(&self, home: Home, now: MonoMs) -> bool {
        self.pauses.get(&home).is_some_and(|(until, _)| now < *until)
    }

    fn scrub(&mut self, now: MonoMs, world: &mut impl World) -> Result<(), FsError> {
        // Whatever cannot be scrubbed now is left to the next period, or to the repair that it needs first.
        let mut looked = 0;
        while looked < ATTENDED_IN_A_TICK && world.orders(|orders| orders.count_of(Duty::Scrub)) < SCRUBS_MAX {
            let Some(home) = self.scrubs.take() else { break };
            looked += 1;
            if let Some(facts) = world.chunks(&[home])?.pop().flatten()
                && scrub_plan::is_fit(&facts, &self.fleet)
                && !self.order(&facts, facts.primary, OrderKind::Scrub { deep: true }, now, world)?
            {
                // Its server has enough to do.
                self.scrubs.add_due(home);
                break;
            }
        }
        Ok(())
    }

    fn discard(&mut self, now: MonoMs, world: &mut impl World) -> Result<(), FsError> {
        let homes: Vec<Home> = self.discards.iter().take(DISCARDS_IN_A_TICK).copied().collect();
        for home in &homes {
            self.discards.remove(home);
        }
        let durable = world.durable();
        for facts in world.chunks(&homes)?.into_iter().flatten() {
            if facts.seq > durable {
                // A power cut could give the set back as it was, with the replica that is to go in sync.
                self.discards.insert(facts.home());
                continue;
            }
            if repair::danger(&facts, &self.fleet).is_some() {
                continue;
            }
            let kind = OrderKind::Discard { below: facts.version };
            let online: Vec<NodeId> =
                facts.stale.iter().copied().filter(|node| self.fleet.state(*node) == NodeState::Online).collect();
            for node in online {
                self.order(&facts, node, kind, now, world)?;
            }
        }
        Ok(())
    }

    fn tidy(&mut self, now: MonoMs) {
        if self.refused.len() > WAITING_MAX {
            self.refused.clear();
        }
        self.refused.retain(|_, until| now < *until);
        if self.failures.len() > WAITING_MAX {
            self.failures.clear();
        }
    }
}

#[cfg(test)]
mod tests;
