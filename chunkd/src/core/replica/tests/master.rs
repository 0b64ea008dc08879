//! A master of one chunk: the record of its set, and who may be its primary.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::planted::{self, Bug};
use dfs_proto::replica_set::{ChangeKind, ChangeRequest, Grant, Home, Member};
use dfs_proto::{BootSession, FsError, NodeId, Version};

use super::super::super::message::{MasterAnswer, Sealed};

pub const LEASE_MS: u64 = 2_000;
const GUARD_MS: u64 = 120;
const REPLICAS: usize = 3;

#[derive(Debug)]
pub struct Master {
    pub version: Version,
    pub primary: NodeId,
    pub boot: BootSession,
    pub members: Vec<NodeId>,
    pub syncing: Vec<NodeId>,
    pub min_in_sync: u32,
    boots: BTreeMap<NodeId, BootSession>,
    leases: BTreeMap<NodeId, u64>,
    ended: Vec<BootSession>,
    /// Once removed from the set: with [`Bug::ElectRemoved`] they may lead.
    removed: Vec<NodeId>,
}

impl Master {
    pub fn new(chunk_size_members: &[NodeId], boot: BootSession, min_in_sync: u32) -> Self {
        Self {
            version: Version(1),
            primary: chunk_size_members[0],
            boot,
            members: chunk_size_members.to_vec(),
            syncing: Vec::new(),
            min_in_sync,
            boots: BTreeMap::new(),
            leases: BTreeMap::new(),
            ended: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Takes a pulse in, and with it the registration of a new run. Returns whether the lease is renewed: a run whose
    /// roles were given to others has ended.
    pub fn pulse(&mut self, now: u64, node: NodeId, boot: BootSession) -> bool {
        if self.ended.contains(&boot) {
            return false;
        }
        self.boots.insert(node, boot);
        self.leases.insert(node, now + LEASE_MS + GUARD_MS);
        true
    }

    pub fn has_lease(&self, now: u64, node: NodeId) -> bool {
        self.leases.get(&node).is_some_and(|until| now < *until)
    }

    pub fn grant(&self) -> Sealed {
        let member = |node: &NodeId| Member { node: *node, address: "".into() };
        let grant = Grant {
            chunk: super::world::CHUNK,
            home: Home::default(),
            version: self.version,
            primary: self.primary,
            primary_boot: self.boot,
            members: self.members.iter().map(member).collect(),
            syncing: self.syncing.iter().map(member).collect(),
            min_in_sync: self.min_in_sync,
            may_create: false,
            chunk_size_log2: super::world::SIZE_LOG2,
            loss_version: Version(0),
        };
        Sealed { grant: Arc::new(grant), bytes: Bytes::new() }
    }

    /// Answers a request of a chunk server.
    pub fn change(&mut self, now: u64, request: &ChangeRequest) -> MasterAnswer {
        let result = self.try_change(now, request);
        let is_primary = request.node == self.primary && self.is_bound(request);
        MasterAnswer { result, grant: is_primary.then(|| self.grant()) }
    }

    fn is_bound(&self, request: &ChangeRequest) -> bool {
        planted::is(Bug::NoSessionBinding)
            || self.boots.get(&request.node) == Some(&request.boot)
                && (request.node != self.primary || self.boot == request.boot)
    }

    fn try_change(&mut self, now: u64, request: &ChangeRequest) -> Result<(), FsError> {
        if !self.is_bound(request) {
            return Err(FsError::Stale("another run"));
        }
        let is_primary = request.node == self.primary;
        let is_copy = self.version.0 == request.version.0 + 1;
        match request.kind {
            ChangeKind::Drop { node } if is_copy && is_primary && !self.names(node) => return Ok(()),
            ChangeKind::FinishSync { node } if is_copy && is_primary && self.members.contains(&node) => return Ok(()),
            ChangeKind::Leave if is_copy && !self.names(request.node) => return Ok(()),
            _ => {}
        }
        if self.version != request.version {
            return Err(FsError::Stale("another version"));
        }
        let of_primary = || if is_primary { Ok(()) } else { Err(FsError::Stale("not the primary")) };
        match request.kind {
            ChangeKind::Refresh => return of_primary(),
            ChangeKind::Drop { node } => {
                of_primary()?;
                if node == self.primary || !self.names(node) {
                    return Err(FsError::Invalid("who"));
                }
                self.remove(node);
            }
            ChangeKind::FinishSync { node } => {
                of_primary()?;
                if !self.syncing.contains(&node) {
                    return Err(FsError::Invalid("who"));
                }
                self.syncing.retain(|known| *known != node);
                self.members.push(node);
            }
            ChangeKind::Leave if is_primary => {
                let Some(next) = self.successor(now) else { return Err(FsError::TryAgain("nobody else")) };
                return self.lead(next);
            }
            ChangeKind::Leave => {
                if self.members == [request.node] || !self.names(request.node) {
                    return Err(FsError::Busy);
                }
                self.remove(request.node);
            }
        }
        self.version.0 += 1;
        Ok(())
    }

    fn names(&self, node: NodeId) -> bool {
        self.members.contains(&node) || self.syncing.contains(&node)
    }

    fn remove(&mut self, node: NodeId) {
        self.members.retain(|known| *known != node);
        self.syncing.retain(|known| *known != node);
        self.removed.push(node);
    }

    fn successor(&self, now: u64) -> Option<NodeId> {
        let fit = |node: &&NodeId| **node != self.primary && self.has_lease(now, **node);
        if planted::is(Bug::ElectRemoved)
            && let Some(node) = self.removed.iter().rev().find(fit)
        {
            return Some(*node);
        }
        self.members.iter().find(fit).copied()
    }

    /// Makes `node` the primary instead of the present one, which leaves.
    fn lead(&mut self, node: NodeId) -> Result<(), FsError> {
        let old = self.primary;
        self.remove(old);
        self.removed.retain(|known| *known != node);
        if !self.members.contains(&node) {
            self.syncing.retain(|known| *known != node);
            self.members.push(node);
        }
        self.primary = node;
        self.boot = self.boots[&node];
        self.version.0 += 1;
        Ok(())
    }

    /// Looks after the set; `coin` decides where there is a choice.
    pub fn care(&mut self, now: u64, nodes: &[NodeId], coin: bool) {
        let current = self.boots.get(&self.primary);
        let has_restarted = current.is_some_and(|boot| *boot != self.boot);
        if has_restarted && coin {
            // The same server again: its old run is over.
            self.boot = self.boots[&self.primary];
        } else if has_restarted || !self.has_lease(now, self.primary) || planted::is(Bug::TakeOverTooEarly) && coin {
            if let Some(next) = self.successor(now) {
                self.ended.push(self.boot);
                let _ = self.lead(next);
            } else if has_restarted {
                self.boot = self.boots[&self.primary];
            }
        }
        if self.members.len() + self.syncing.len() < REPLICAS
            && let Some(node) = nodes.iter().find(|node| !self.names(**node) && self.has_lease(now, **node))
        {
            self.removed.retain(|known| known != node);
            self.syncing.push(*node);
            self.version.0 += 1;
        }
    }
}
