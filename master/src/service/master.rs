//! One running master.

use std::net::SocketAddr;

use dfs_proto::ClusterId;

use super::config::{MasterConfig, MasterError};

/// Where a master listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The hot plane.
    pub hot: SocketAddr,
    /// gRPC.
    pub control: SocketAddr,
    /// Pages: `/metrics`, `/healthz`, `/sd`.
    pub http: SocketAddr,
}

/// A running master.
pub struct Master {
    addresses: Addresses,
    cluster: ClusterId,
}

impl Master {
    /// Starts a master.
    ///
    /// # Errors
    ///
    /// [`MasterError`].
    pub fn start(_config: MasterConfig) -> Result<Self, MasterError> {
        Err(MasterError::DataDir("not yet".into()))
    }

    /// Returns where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns its cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
    }

    /// Stops it in order.
    pub fn stop(self) {}
}
