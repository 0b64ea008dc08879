//! What chunk servers are told with their pulses. Leases go on however busy the records are, so none of this waits for
//! them.

use std::sync::Arc;

use dfs_proto::replica_set::{Home, Order, OrderOutcome};
use dfs_proto::{BootSession, ChunkId, MonoMs, NodeId, Seq, SessionId};
use parking_lot::{Mutex, RwLock};

use crate::core::care_loop::Inbox;
use crate::core::inventory::Page;
use crate::core::node_table::{Disk, NodeTable};
use crate::core::orders::Orders;

/// The tables that pulses and reports touch. Clones share them. Whoever locks two takes them in the order they stand in.
#[derive(Clone, Debug)]
pub struct Control {
    /// The chunk servers.
    pub nodes: Arc<RwLock<NodeTable>>,
    /// What they are to do.
    pub orders: Arc<Mutex<Orders>>,
    /// What they have to say to the caretaker.
    pub inbox: Arc<Mutex<Inbox>>,
}

/// A chunk server says that it is there.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// Which one.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// Deletions that are done.
    pub deleted: Vec<ChunkId>,
    /// What became of orders.
    pub results: Vec<OrderOutcome>,
    /// Fences up to here are in force.
    pub fence_seq: Seq,
}

/// What a chunk server that is known is told.
#[derive(Clone, Debug, Default)]
pub struct PulseReply {
    /// Replicas to delete.
    pub delete: Vec<ChunkId>,
    /// What to do.
    pub orders: Vec<Order>,
    /// Sessions whose requests are to be refused.
    pub fenced: Vec<SessionId>,
    /// The position of the last fence.
    pub fence_seq: Seq,
}

/// A chunk server says what it has.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which one.
    pub node: NodeId,
    /// In which run.
    pub boot: BootSession,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// A part of the list of its replicas.
    pub page: Option<Page>,
    /// Where chunks are of which it found damaged replicas.
    pub damaged: Vec<Home>,
}

impl Control {
    /// Takes a pulse that came at `now`, and renews the sender's lease. `None`: it is not known, and has to register.
    pub fn pulse(&self, pulse: Pulse, now: MonoMs) -> Option<PulseReply> {
        let Pulse { node, boot, deleted, results, fence_seq } = pulse;
        let answer = self.nodes.write().pulse(node, boot, &deleted, fence_seq, now)?;
        let mut orders = self.orders.lock();
        orders.report(node, boot, results);
        let orders = orders.of_node(node, boot);
        Some(PulseReply { delete: answer.delete, orders, fenced: answer.fenced, fence_seq: answer.fence_seq })
    }

    /// Takes a report that came at `now`. Returns whether the sender is known.
    pub fn report(&self, report: Report, now: MonoMs) -> bool {
        if !self.nodes.write().report(report.node, report.boot, report.disks, now) {
            return false;
        }
        let mut inbox = self.inbox.lock();
        if let Some(page) = report.page {
            inbox.listed(page);
        }
        report.damaged.into_iter().for_each(|home| inbox.damaged(home));
        true
    }
}
