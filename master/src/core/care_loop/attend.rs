//! One chunk at a time: what can be done now is done, and what is left is noted.

use bytes::Bytes;
use dfs_proto::replica_set::{Home, OrderKind};
use dfs_proto::{BootSession, FsError, MonoMs, NodeId};

use super::{ATTENDED_IN_A_TICK, Care, Event, STEPS_MAX, WAITING_MAX, World};
use crate::core::care::{ChunkFacts, SetChange, Step};
use crate::core::drain;
use crate::core::fleet::Load;
use crate::core::repair::{self, Bounds};

impl Care {
    pub(super) fn attend_queue(&mut self, now: MonoMs, load: &mut Load, world: &mut impl World) -> Result<(), FsError> {
        let next = |homes: &mut dyn Iterator<Item = Home>| -> Vec<Home> {
            homes.filter(|home| !self.is_paused(*home, now)).take(ATTENDED_IN_A_TICK).collect()
        };
        let homes = next(&mut self.queue.iter());
        let drains = next(&mut self.drains.iter().copied());
        for home in homes {
            self.attend(home, now, load, world)?;
        }
        // What is in danger goes before what is only to be elsewhere.
        for home in drains {
            if load.total >= self.settings.fills.total {
                break;
            }
            self.attend(home, now, load, world)?;
        }
        Ok(())
    }

    /// Does what can be done now for one chunk, and notes what is left.
    pub(super) fn attend(
        &mut self,
        home: Home,
        now: MonoMs,
        load: &mut Load,
        world: &mut impl World,
    ) -> Result<(), FsError> {
        let mut found = world.chunks(&[home])?.pop().flatten();
        let mut has_acted = false;
        for _ in 0..STEPS_MAX {
            let Some(mut facts) = found else { break };
            if self.needs_a_primary(&facts) {
                match world.make_usable(home)? {
                    Some(usable) => facts = usable,
                    None => {
                        found = None;
                        break;
                    }
                }
            }
            let filling = world.orders(|orders| {
                orders.revise(facts.chunk, Some(&facts));
                facts.syncing.iter().copied().filter(|node| orders.is_filling(facts.chunk, *node)).collect::<Vec<_>>()
            });
            let bounds = Bounds { limits: &self.settings.fills, load };
            let is_refused = |node: NodeId| self.refused.get(&(home, node)).is_some_and(|until| now < *until);
            let step = repair::step(&facts, &self.fleet, bounds, is_refused, |node| filling.contains(&node))
                .or_else(|| drain::step(&facts, &self.fleet, bounds, is_refused));
            let Some(step) = step else {
                found = Some(facts);
                break;
            };
            has_acted = true;
            match step {
                Step::Change(change) => {
                    if let SetChange::Add(target) = change {
                        load.add(facts.primary, target);
                    }
                    found = self.change(&facts, change, world)?;
                    if let SetChange::Add(target) = change {
                        load.forget(facts.primary, target);
                    }
                }
                Step::Order(node, kind) => {
                    let is_given = self.order(&facts, node, kind, now, world)?;
                    if let OrderKind::Fill { node: target } = kind
                        && is_given
                    {
                        load.add(node, target);
                    }
                    found = Some(facts);
                    if !is_given || kind == OrderKind::HandOver {
                        break;
                    }
                }
            }
        }
        let Some(facts) = found else {
            self.queue.remove(home);
            self.drains.remove(&home);
            return Ok(());
        };
        if has_acted {
            self.pauses.remove(&home);
        } else if !self.is_held_up(&facts, now) {
            self.pause(home, now);
        }
        self.note(&facts);
        Ok(())
    }

    /// Returns whether there would be something to do if fewer fills were under way.
    pub(super) fn is_held_up(&self, facts: &ChunkFacts, now: MonoMs) -> bool {
        let bounds = Bounds { limits: &self.settings.fills, load: &Load::default() };
        let is_refused = |node: NodeId| self.refused.get(&(facts.home(), node)).is_some_and(|until| now < *until);
        matches!(
            repair::step(facts, &self.fleet, bounds, is_refused, |_| true).or_else(|| drain::step(
                facts,
                &self.fleet,
                bounds,
                is_refused
            )),
            Some(Step::Change(SetChange::Add(_)))
        )
    }

    /// Notes what a chunk needs.
    pub(super) fn note(&mut self, facts: &ChunkFacts) {
        let home = facts.home();
        match repair::danger(facts, &self.fleet) {
            Some(danger) => {
                self.queue.put(home, danger);
                self.discards.remove(&home);
            }
            None => {
                self.queue.remove(home);
                if !facts.stale.is_empty() && self.discards.len() < WAITING_MAX {
                    self.discards.insert(home);
                }
            }
        }
        if facts.in_sync.iter().any(|node| self.fleet.is_draining(*node)) {
            if self.drains.len() < WAITING_MAX {
                self.drains.insert(home);
            }
        } else {
            self.drains.remove(&home);
        }
    }

    pub(super) fn needs_a_primary(&self, facts: &ChunkFacts) -> bool {
        !self.fleet.is_online(facts.primary) || facts.in_sync.iter().any(|node| self.fleet.is_tainted(facts, *node))
    }

    pub(super) fn change(
        &mut self,
        facts: &ChunkFacts,
        change: SetChange,
        world: &mut impl World,
    ) -> Result<Option<ChunkFacts>, FsError> {
        let (home, chunk) = (facts.home(), facts.chunk);
        match world.change(facts, change) {
            Ok(found) => {
                self.events.push(Event::Changed { home, chunk, change, error: None });
                Ok(found)
            }
            Err(error @ FsError::Io(_)) => Err(error),
            Err(error) => {
                self.events.push(Event::Changed { home, chunk, change, error: Some(error) });
                Ok(world.chunks(&[home])?.pop().flatten())
            }
        }
    }

    pub(super) fn order(
        &mut self,
        facts: &ChunkFacts,
        node: NodeId,
        kind: OrderKind,
        now: MonoMs,
        world: &mut impl World,
    ) -> Result<bool, FsError> {
        let Some(boot) = self.fleet.node(node).map(|found| found.boot).filter(|boot| *boot != BootSession(0)) else {
            return Ok(false);
        };
        let grant = match kind {
            OrderKind::Discard { .. } => Bytes::new(),
            _ => match world.grant(facts)? {
                Some(grant) => grant,
                None => return Ok(false),
            },
        };
        Ok(world.orders(|orders| orders.give(facts, node, boot, kind, grant, now)).is_some())
    }
}
