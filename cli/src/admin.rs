//! Asks the master over the control plane, for the commands that show something.

use std::time::Duration;

use dfs_proto::wire::pb;
use dfs_proto::wire::pb::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};

use crate::exit::{refused, unreachable};
use crate::settings::Settings;

/// A blocking client of the master's `Admin` service.
pub struct Admin {
    runtime: tokio::runtime::Runtime,
    client: AdminClient<Channel>,
    address: String,
}

impl Admin {
    /// Returns a client for the master of the settings. The connection is made at the first question.
    ///
    /// # Errors
    ///
    /// An address that is none.
    pub fn from_settings(settings: &Settings) -> anyhow::Result<Self> {
        let timeout = settings.parse("client.timeout_ms", "a number of milliseconds")?;
        Self::new(settings.text("client.master"), Duration::from_millis(timeout))
    }

    /// Returns a client for the master whose hot plane is at `master`; its control plane is at the next port.
    ///
    /// # Errors
    ///
    /// An address that is none, or no runtime.
    pub fn new(master: &str, timeout: Duration) -> anyhow::Result<Self> {
        let address = crate::source::address(master, master)?;
        let (host, port) = address.rsplit_once(':').expect("an address has a port");
        let port: u16 = port.parse().expect("the port was checked");
        let uri = format!("http://{host}:{}", u32::from(port) + 1);
        let endpoint = Endpoint::from_shared(uri)?.connect_timeout(timeout).timeout(timeout);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // The lazy channel registers with the runtime it is made in.
        let client = runtime.block_on(async { AdminClient::new(endpoint.connect_lazy()) });
        Ok(Self { runtime, client: client.max_decoding_message_size(64 << 20), address })
    }

    /// Returns the state of the cluster.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached or refuses.
    pub fn status(&mut self) -> anyhow::Result<pb::StatusReply> {
        let answer = self.runtime.block_on(self.client.status(pb::StatusRequest {}));
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// Returns what the master knows of one inode.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached or refuses.
    pub fn info(&mut self, request: pb::InfoRequest) -> anyhow::Result<pb::InfoReply> {
        let answer = self.runtime.block_on(self.client.info(request));
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// Has a chunk server emptied, or no longer.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached or refuses.
    pub fn drain(&mut self, request: pb::DrainRequest) -> anyhow::Result<pb::DrainReply> {
        let answer = self.runtime.block_on(self.client.drain(request));
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// Has a chunk server forgotten.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached or refuses.
    pub fn remove_node(&mut self, request: pb::RemoveNodeRequest) -> anyhow::Result<()> {
        let answer = self.runtime.block_on(self.client.remove_node(request));
        answer.map(|_| ()).map_err(|status| self.explain(&status))
    }

    /// Has a replica made the primary although acknowledged writes may be missing there.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached or refuses.
    pub fn force_primary(&mut self, request: pb::ForcePrimaryRequest) -> anyhow::Result<pb::ForcePrimaryReply> {
        let answer = self.runtime.block_on(self.client.force_primary(request));
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// Has the master check everything, and tells `hear` what it says as it goes.
    ///
    /// # Errors
    ///
    /// If the master cannot be reached, refuses, or fails on the way.
    pub fn fsck(&mut self, request: pb::FsckRequest, mut hear: impl FnMut(pb::FsckProgress)) -> anyhow::Result<()> {
        let heard = self.runtime.block_on(async {
            let mut progress = self.client.fsck(request).await?.into_inner();
            while let Some(said) = progress.message().await? {
                hear(said);
            }
            Ok(())
        });
        heard.map_err(|status: tonic::Status| self.explain(&status))
    }

    fn explain(&self, status: &tonic::Status) -> anyhow::Error {
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => unreachable(format!(
                "the master at {} does not answer ({}): is it running, and is the address right? (--master HOST:PORT)",
                self.address,
                status.message()
            )),
            _ => refused(format!("the master at {} refused: {}", self.address, status.message())),
        }
    }
}
