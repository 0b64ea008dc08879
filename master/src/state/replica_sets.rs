//! Replica sets: changes that chunk servers ask for, those of the master itself, and grants.
//!
//! A grant is made of a chunk and the run of its primary as they are in one turn of the state. Put together from different
//! moments it could name a run that has come back without what the record still takes it to have.

use std::sync::Arc;

use dfs_proto::replica_set::{ChangeRequest, Grant, Home};
use dfs_proto::{BootSession, ChunkIndex, FsError, NodeId, Seq, Version};

use super::master::{Answer, MasterState};
use crate::core::care::SetChange;
use crate::core::key::Key;
use crate::core::location::{Location, locate};
use crate::core::op::replica_set::{self, is_usable};
use crate::core::outcome::Body;
use crate::core::record::{Chunk, Inode};
use crate::core::standing::Standing;

/// A grant that is not sealed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The grant.
    pub grant: Grant,
    /// It must be durable up to here before anybody is given it.
    pub durable_first: Seq,
}

/// What a chunk server is answered that asked for a change.
#[derive(Clone, Debug)]
pub struct ChangeReply {
    /// Whether it was done, now or by an earlier copy of the request.
    pub result: Result<(), FsError>,
    /// How the set stands now, if the sender is its primary.
    pub grant: Option<Grant>,
    /// It must be durable up to here before the sender is told.
    pub durable_first: Seq,
}

impl MasterState {
    /// Carries out a change of a replica set that a chunk server asks for.
    pub fn change_replicas(&mut self, request: &ChangeRequest) -> ChangeReply {
        let mut changed = None;
        let applied = self.internal(|view| {
            let (outcome, done) = replica_set::change(view, request)?;
            let granted = match done.granted {
                Some(chunk) => Some((view.inode(request.home.inode)?, chunk)),
                None => None,
            };
            changed = Some((done.result, granted));
            Ok(outcome)
        });
        let refused = |error| ChangeReply { result: Err(error), grant: None, durable_first: Seq(0) };
        match (applied, changed) {
            (Ok(applied), Some((result, granted))) => {
                self.control.inbox.lock().changed(request.home);
                let grant = granted.map(|(file, chunk)| self.locate(&file, request.home.index, &chunk).grant);
                ChangeReply { result, grant, durable_first: applied.durable_first }
            }
            (Err(error), _) => refused(error),
            (Ok(_), None) => refused(FsError::Io("a change was not carried out".into())),
        }
    }

    /// Carries out a change that the caretaker planned for the chunk at `home` when it was at `version`. Returns the chunk
    /// as it then is, and what must be durable before anybody acts on it.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] if the set has changed since; [`FsError::Invalid`]; [`FsError::Io`].
    pub fn change_by_master(
        &mut self,
        home: Home,
        version: Version,
        change: SetChange,
    ) -> Result<(Arc<Chunk>, Seq), FsError> {
        let mut chunk = None;
        let applied = self.internal(|view| {
            let (outcome, changed) = replica_set::change_by_master(view, home, version, change)?;
            chunk = Some(changed);
            Ok(outcome)
        })?;
        chunk.map(|chunk| (chunk, applied.durable_first)).ok_or_else(nothing_came_out)
    }

    /// Makes `node` the only member in sync of the chunk at `home`, although acknowledged writes may be missing there.
    ///
    /// # Errors
    ///
    /// [`FsError::Invalid`] if it holds no replica; [`FsError::TryAgain`] while the present primary may still serve;
    /// [`FsError::Stale`] if there is no such chunk; [`FsError::Io`].
    pub fn force_primary(&mut self, home: Home, node: NodeId) -> Result<(Arc<Chunk>, Seq), FsError> {
        let mut chunk = None;
        let applied = self.internal(|view| {
            let (outcome, changed) = replica_set::force_primary(view, home, node)?;
            chunk = Some(changed);
            Ok(outcome)
        })?;
        chunk.map(|chunk| (chunk, applied.durable_first)).ok_or_else(nothing_came_out)
    }

    /// Gives the chunk at `home` a primary that can serve, if there can be one now: settles suspects, replaces a primary
    /// that is certainly lost. Returns the chunk as it then is, `None` if it is gone.
    ///
    /// # Errors
    ///
    /// [`FsError::TryAgain`] if the lost primary turned up at this very moment; [`FsError::Io`].
    pub fn make_usable(&mut self, home: Home) -> Result<Option<Arc<Chunk>>, FsError> {
        let (mut before, mut after) = (None, None);
        self.internal(|view| {
            let record = view.find(&Key::Chunk(home.inode, home.index))?;
            let (outcome, chunk) = replica_set::make_usable(view, home)?;
            (before, after) = (record, chunk);
            Ok(outcome)
        })?;
        if let (Some(crate::core::record::Record::Chunk(before)), Some(after)) = (before, &after)
            && before.version != after.version
        {
            tracing::info!(
                chunk = %after.id,
                version = %after.version,
                old_primary = %before.primary,
                primary = %after.primary,
                in_sync = after.in_sync.len(),
                "a replica set was changed so that it can be served"
            );
        }
        Ok(after)
    }

    /// Returns a grant for the chunk at `home`, which is made usable first if it is not; `None` if there is no such chunk.
    ///
    /// # Errors
    ///
    /// [`FsError::NoReplica`] if its primary has no run to make it for; as [`Self::make_usable`].
    pub fn grant(&mut self, home: Home) -> Result<Option<Granted>, FsError> {
        let Some(chunk) = self.make_usable(home)? else { return Ok(None) };
        let mut file = None;
        self.internal(|view| {
            file = Some(view.inode(home.inode)?);
            Ok(crate::core::outcome::Outcome::new(view))
        })?;
        let file: Arc<Inode> = file.ok_or_else(nothing_came_out)?;
        let grant = self.locate(&file, home.index, &chunk).grant;
        if grant.primary_boot == BootSession(0) {
            return Err(FsError::NoReplica(format!(
                "chunk {}: its primary, node {}, is away",
                chunk.id, chunk.primary
            )));
        }
        Ok(Some(Granted { grant, durable_first: chunk.version_seq }))
    }

    /// Returns where `chunk` of `file`, as it is in this turn of the state, can be found now.
    pub fn locate(&self, file: &Inode, index: ChunkIndex, chunk: &Chunk) -> Location {
        let boot = self.boot_to_grant(chunk);
        locate(&self.control.nodes.read(), self.clock.mono(), file, index, chunk, boot)
    }

    /// Returns where the chunks of an answer are, for whoever holds the state alone (a service does this outside).
    pub fn locations(&self, answer: &Answer) -> Vec<Option<Location>> {
        let Ok(reply) = &answer.result else { return Vec::new() };
        let Body::Chunks { inode, chunks } = &reply.body else { return Vec::new() };
        let (nodes, now) = (self.control.nodes.read(), self.clock.mono());
        let found = chunks.iter().zip(&answer.boots);
        found
            .map(|((index, chunk), boot)| {
                chunk.as_deref().map(|chunk| locate(&nodes, now, inode, *index, chunk, *boot))
            })
            .collect()
    }

    /// Makes the chunks of an answer usable, as far as that can be done now, and notes for which runs of their primaries
    /// they are.
    pub(super) fn prepare_chunks(&mut self, answer: &mut Answer) {
        let Ok(reply) = &mut answer.result else { return };
        let Body::Chunks { inode, chunks } = &mut reply.body else { return };
        for (index, chunk) in chunks.iter_mut() {
            let Some(chunk) = chunk else {
                answer.boots.push(BootSession(0));
                continue;
            };
            if !is_usable(chunk, |node| self.standing(node)) {
                // If nothing can be done now the old location is told, and the mount asks again.
                if let Ok(Some(usable)) = self.make_usable(Home { inode: inode.id, index: *index }) {
                    *chunk = usable;
                }
            }
            answer.boots.push(self.boot_to_grant(chunk));
            answer.durable_first = answer.durable_first.max(chunk.version_seq);
        }
    }

    /// Returns the run of the primary that `chunk` may be granted to; 0: none.
    fn boot_to_grant(&self, chunk: &Chunk) -> BootSession {
        let standing = self.standing(chunk.primary);
        if standing.taints(chunk) { BootSession(0) } else { standing.boot }
    }

    pub(super) fn standing(&self, node: NodeId) -> Standing {
        self.control.nodes.read().standing(node, self.clock.mono())
    }
}

fn nothing_came_out() -> FsError {
    FsError::Io("an operation came to no end".into())
}
