//! Chunk servers become known.

use dfs_proto::{BootSession, FsError, MonoMs, NodeId, Seq};

use super::MasterState;
use super::control::{Control, Pulse, PulseReply, Report};
use crate::core::care::NodeFacts;
use crate::core::node_table::Disk;
use crate::core::op;

/// What a chunk server says when it starts, or when it is not known any more.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    /// What it says of itself.
    pub facts: NodeFacts,
    /// This run of its process.
    pub boot: BootSession,
    /// Acknowledged writes that were not synced may be missing there.
    pub is_suspect: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its id.
    pub node: NodeId,
    /// The run that it goes by from now on: another one than it named if that has ended for the master.
    pub boot: BootSession,
    /// It must be durable up to here before it is entered and told.
    pub durable_first: Seq,
}

impl MasterState {
    /// Puts a chunk server on record. Once that is durable, [`Self::enter`] makes it known, and it may be told.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn register(&mut self, registration: &Registration) -> Result<Registered, FsError> {
        let facts = &registration.facts;
        let known = self.nodes_on_record.get(&facts.server_id).copied();
        let last = self.nodes_on_record.values().max().map_or(0, |node| node.0);
        let id = known.unwrap_or(NodeId(last + 1));
        let mut boot = registration.boot;
        let applied = self.internal(|view| {
            let (outcome, node) = op::register_node(view, id, facts, registration.boot, registration.is_suspect)?;
            boot = node.boot;
            Ok(outcome)
        })?;
        self.nodes_on_record.insert(facts.server_id, id);
        if registration.is_suspect
            && known.is_some()
            && let Some(record) = self.node_record(id)?
        {
            // Before it is durable and the run is entered: a set that changes from here on has this log position behind it,
            // and would pass for one that was made of trusted members.
            self.control.nodes.write().note_record(id, &record);
        }
        Ok(Registered { node: id, boot, durable_first: applied.durable_first })
    }

    /// Makes a chunk server known, whose record is durable: from here on it is granted chunks in its present run.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`]; [`FsError::Stale`] if it has registered in another run since.
    pub fn enter(&mut self, registration: Registration, registered: &Registered) -> Result<(), FsError> {
        let record = self.node_record(registered.node)?.filter(|record| record.boot == registered.boot);
        let record = record.ok_or(FsError::Stale("this run of the server has ended"))?;
        let now = self.clock.mono();
        let mut nodes = self.control.nodes.write();
        nodes.register(registered.node, registration.facts, registered.boot, registration.disks, now);
        nodes.note_record(registered.node, &record);
        Ok(())
    }

    /// Takes a pulse that came at `now`; `None`: the sender has to register. Needs none of the records.
    pub fn pulse(&self, pulse: Pulse, now: MonoMs) -> Option<PulseReply> {
        self.control.pulse(pulse, now)
    }

    /// Takes a report that came at `now`. Returns whether the sender is known. Needs none of the records.
    pub fn report(&self, report: Report, now: MonoMs) -> bool {
        self.control.report(report, now)
    }

    /// Notes whether node `id` is to be emptied.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`] if it is not on record; [`FsError::Io`].
    pub fn drain(&mut self, id: NodeId, is_draining: bool) -> Result<Seq, FsError> {
        let applied = self.internal(|view| op::drain_node(view, id, is_draining))?;
        let record = self.node_record(id)?.ok_or(FsError::NoEntry)?;
        self.control.nodes.write().note_record(id, &record);
        Ok(applied.durable_first)
    }

    /// Forgets node `id`, which no chunk names.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub fn remove_node(&mut self, id: NodeId) -> Result<Seq, FsError> {
        let applied = self.internal(|view| op::remove_node(view, id))?;
        self.control.nodes.write().remove(id);
        Ok(applied.durable_first)
    }

    /// Returns the tables that pulses and reports touch.
    pub fn control(&self) -> &Control {
        &self.control
    }
}
