//! The session with the master.

use std::sync::Arc;

use dfs_proto::wire::pb::{meta_reply, meta_request};
use dfs_proto::{FsError, InodeId, Seq, SessionId};

use super::retry::Policy;
use crate::fs::{Attr, Caller};
use crate::metrics::Metrics;

/// What the master is told about this mount, and how long it is waited for.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Addresses of masters, `host:port`, tried in this order.
    pub masters: Vec<String>,
    /// This host.
    pub host: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// `host:port` of this mount's `/metrics`, or empty.
    pub metrics_address: String,
    /// The directory to mount instead of the root, relative to it; empty: the root.
    pub subdir: String,
    /// The mount will not change anything.
    pub read_only: bool,
    /// How long calls wait for a master.
    pub policy: Policy,
    /// How long the first connection is tried, in milliseconds.
    pub connect_ms: u64,
}

/// What a request does at the master, which decides what is kept of it until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: asked again freely.
    Reads,
    /// Holds a file open.
    Opens,
    /// Changes the namespace or attributes.
    Changes,
    /// Changes, and holds the result open.
    ChangesAndOpens,
    /// Changes content, which belongs to the session that wrote it: never carried over to another one.
    ChangesContent,
}

/// The session.
#[derive(Debug)]
pub(super) struct Session {}

impl Session {
    pub(super) fn open(_config: SessionConfig, _metrics: Arc<Metrics>) -> Result<(Arc<Self>, Attr), FsError> {
        Err(FsError::NotSupported)
    }
    pub(super) fn close(&self) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
    pub(super) fn id(&self) -> SessionId {
        SessionId(0)
    }
    pub(super) fn generation(&self) -> u64 {
        0
    }
    pub(super) fn release(&self, _inode: InodeId) {}
    pub(super) fn sync(&self) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
    pub(super) fn sync_to(&self, _seq: Seq) -> Result<(), FsError> {
        Err(FsError::NotSupported)
    }
    pub(super) fn call(
        &self,
        _caller: Caller,
        _body: meta_request::Body,
        _effect: Effect,
    ) -> Result<meta_reply::Body, FsError> {
        Err(FsError::NotSupported)
    }
}
