//! The pass over the records, and the judging of what servers say they hold.

use dfs_proto::replica_set::{Home, OrderKind};
use dfs_proto::{FsError, MonoMs, NodeId};

use super::{Care, Event, JUDGED_IN_A_TICK, MOVES_MAX, PAGE_RECORDS, PAGES_IN_A_TICK, World};
use crate::core::care::{ChunkFacts, SetChange, Step};
use crate::core::fleet::{Load, Redundancy};
use crate::core::inventory::Verdict;
use crate::core::repair::Bounds;
use crate::core::{rebalance, scrub_plan};

impl Care {
    /// Goes on with the pass over the records.
    pub(super) fn count(
        &mut self,
        now: MonoMs,
        nodes_changed: bool,
        load: &mut Load,
        world: &mut impl World,
    ) -> Result<(), FsError> {
        self.census.begin_if_due(now, nodes_changed);
        for _ in 0..PAGES_IN_A_TICK {
            let Some(after) = self.census.next_page() else { break };
            let page = world.chunk_page(after, PAGE_RECORDS)?;
            for facts in &page {
                self.look_at(facts, now, load, world)?;
            }
            if page.len() < PAGE_RECORDS {
                self.census.end();
            }
        }
        Ok(())
    }

    pub(super) fn look_at(
        &mut self,
        facts: &ChunkFacts,
        now: MonoMs,
        load: &mut Load,
        world: &mut impl World,
    ) -> Result<(), FsError> {
        let redundancy = Redundancy::of(facts, &self.fleet);
        self.census.add(facts, &redundancy, &self.fleet);
        if let Some((before, begun)) = self.census.span()
            && scrub_plan::is_due(facts.chunk, self.settings.scrub_period_ms, before, begun)
        {
            self.scrubs.add_due(facts.home());
        }
        if self.needs_a_primary(facts) {
            if let Some(usable) = world.make_usable(facts.home())? {
                self.note(&usable);
            }
            return Ok(());
        }
        if let Some(node) = self.inventory.lost_member(facts, &self.fleet) {
            self.let_go(facts, node, now, world)?;
        }
        let gone = facts.stale.iter().copied().find(|node| self.fleet.node(*node).is_none());
        if let Some(node) = gone {
            // The server was removed for good, and with it what it held.
            self.change(facts, SetChange::ForgetStale(node), world)?;
        }
        self.note(facts);
        if self.rebalance.decide(&self.fleet, self.queue.len()) && load.total < MOVES_MAX as u32 {
            let home = facts.home();
            let bounds = Bounds { limits: &self.settings.fills, load };
            let is_refused = |node: NodeId| self.refused.get(&(home, node)).is_some_and(|until| now < *until);
            if let Some(Step::Change(change)) = rebalance::step(facts, &self.fleet, bounds, is_refused)
                && self.change(facts, change, world)?.is_some()
            {
                self.attend(home, now, load, world)?;
            }
        }
        Ok(())
    }

    /// A member that does not hold its replica leaves; a primary finds that out itself when it is told to compare.
    pub(super) fn let_go(
        &mut self,
        facts: &ChunkFacts,
        node: NodeId,
        now: MonoMs,
        world: &mut impl World,
    ) -> Result<(), FsError> {
        self.events.push(Event::Lost { home: facts.home(), chunk: facts.chunk, node });
        if node == facts.primary {
            self.order(facts, node, OrderKind::Scrub { deep: false }, now, world)?;
        } else {
            self.change(facts, SetChange::Remove(node), world)?;
            self.requeue(facts.home());
        }
        Ok(())
    }

    /// Judges what servers say they hold.
    pub(super) fn judge(&mut self, now: MonoMs, world: &mut impl World) -> Result<(), FsError> {
        let mut left = JUDGED_IN_A_TICK;
        while left > 0
            && let Some((page, from)) = self.judging.pop_front()
        {
            let until = page.held.len().min(from + left).min(from + PAGE_RECORDS);
            let held = &page.held[from..until];
            let homes: Vec<Home> = held.iter().map(|replica| replica.home).collect();
            let records = world.chunks(&homes)?;
            let may_delete = world.may_delete();
            for (replica, record) in held.iter().zip(&records) {
                let (node, chunk) = (page.node, replica.chunk);
                match self.inventory.judge(node, replica, record.as_ref(), may_delete, now) {
                    Verdict::Fine | Verdict::Unknown => {}
                    Verdict::Note(change) => {
                        if let Some(facts) = record {
                            self.change(facts, change, world)?;
                            self.requeue(facts.home());
                        }
                    }
                    Verdict::Freeze => self.events.push(Event::Frozen { node, chunk }),
                    Verdict::Reclaim => {
                        world.reclaim(node, chunk)?;
                        self.events.push(Event::Reclaimed { node, chunk });
                    }
                }
            }
            left = left.saturating_sub(held.len().max(1));
            if until < page.held.len() {
                self.judging.push_front((page, until));
            }
        }
        Ok(())
    }
}
