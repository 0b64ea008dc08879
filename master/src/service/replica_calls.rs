//! What the control plane asks of the executor about chunk servers and replica sets.

use std::sync::Arc;

use dfs_proto::replica_set::{ChangeRequest, Home};
use dfs_proto::{FsError, NodeId, Version};

use super::executor::Executor;
use crate::core::care::SetChange;
use crate::core::record::Chunk;
use crate::state::{ChangeReply, Granted, Registered, Registration};

impl Executor {
    /// Makes a chunk server known; its record is durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`]; [`FsError::Stale`] if it registered in another run meanwhile.
    pub fn register(&self, registration: Registration) -> Result<Registered, FsError> {
        let said = registration.clone();
        let registered = self.with(move |state| state.register(&said))?;
        self.wait_first(registered.durable_first)?;
        self.with(move |state| state.enter(registration, &registered))?;
        Ok(registered)
    }

    /// Carries out a change of a replica set that a chunk server asks for; durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`]: whether it was done is not known. A refusal is in [`ChangeReply::result`].
    pub fn change_replicas(&self, request: ChangeRequest) -> Result<ChangeReply, FsError> {
        let reply = self.with(move |state| Ok(state.change_replicas(&request)))?;
        self.wait_first(reply.durable_first)?;
        Ok(reply)
    }

    /// Carries out a change that the caretaker planned; durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] if the set has changed since; [`FsError::Invalid`]; [`FsError::Io`].
    pub fn change_by_master(&self, home: Home, version: Version, change: SetChange) -> Result<Arc<Chunk>, FsError> {
        let (chunk, durable_first) = self.with(move |state| state.change_by_master(home, version, change))?;
        self.wait_first(durable_first)?;
        Ok(chunk)
    }

    /// Makes `node` the only member in sync of a chunk; durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::Invalid`], [`FsError::TryAgain`], [`FsError::Stale`], [`FsError::Io`].
    pub fn force_primary(&self, home: Home, node: NodeId) -> Result<Arc<Chunk>, FsError> {
        let (chunk, durable_first) = self.with(move |state| state.force_primary(home, node))?;
        self.wait_first(durable_first)?;
        Ok(chunk)
    }

    /// Settles suspects of a chunk and replaces a lost primary, as far as that can be done now; `None` if it is gone.
    ///
    /// # Errors
    ///
    /// [`FsError::TryAgain`], [`FsError::Io`].
    pub fn make_usable(&self, home: Home) -> Result<Option<Arc<Chunk>>, FsError> {
        self.with(move |state| state.make_usable(home))
    }

    /// Returns a grant for a chunk, which may be given out; `None` if there is no such chunk.
    ///
    /// # Errors
    ///
    /// [`FsError::NoReplica`] if there is nobody to make it for; [`FsError::TryAgain`], [`FsError::Io`].
    pub fn grant(&self, home: Home) -> Result<Option<Granted>, FsError> {
        let granted = self.with(move |state| state.grant(home))?;
        if let Some(granted) = &granted {
            self.wait_first(granted.durable_first)?;
        }
        Ok(granted)
    }

    /// Notes whether a chunk server is to be emptied; durable on return.
    ///
    /// # Errors
    ///
    /// [`FsError::NoEntry`] if there is none; [`FsError::Io`].
    pub fn drain(&self, node: NodeId, is_draining: bool) -> Result<(), FsError> {
        let durable_first = self.with(move |state| state.drain(node, is_draining))?;
        self.wait_first(durable_first)
    }
}
