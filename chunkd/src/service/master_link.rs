//! The control plane's connection to the master, for whoever has something to ask.

use std::error::Error;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::replica_set::{ChangeAnswer, ChangeRequest};
use dfs_proto::wire::pb;
use dfs_proto::wire::pb::chunk_servers_client::ChunkServersClient;
use tokio::runtime::Handle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel to the master, and the runtime that serves it.
pub(super) struct MasterLink {
    client: ChunkServersClient<Channel>,
    runtime: Handle,
}

impl MasterLink {
    /// Makes the channel; nothing is sent yet. It is connected when it is first used, and again whenever that is needed.
    pub fn new(endpoint: &Endpoint, runtime: Handle) -> Self {
        // A lazy channel needs a runtime from the start.
        let _entered = runtime.enter();
        let client = ChunkServersClient::new(endpoint.connect_lazy());
        Self { client, runtime }
    }

    /// Returns a client for use within the runtime.
    pub fn client(&self) -> ChunkServersClient<Channel> {
        self.client.clone()
    }

    /// Asks for a change of a replica set, from a thread outside the runtime.
    ///
    /// # Errors
    ///
    /// Nobody knows whether it was done.
    pub fn change_replicas(&self, request: &ChangeRequest, within: Duration) -> Result<ChangeAnswer, FsError> {
        let message = pb::ChangeReplicasRequest::from(request);
        let mut client = self.client();
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(within, client.change_replicas(message)).await });
        match answer {
            Ok(Ok(reply)) => Ok(reply.into_inner().into()),
            Ok(Err(status)) => Err(FsError::NoReplica(format!("the master: {}", brief(&status)))),
            Err(_) => Err(FsError::TimedOut("the master's answer to a change of a replica set")),
        }
    }
}

/// Returns how the control plane of the master at `master` (`host:port` of its hot plane) is reached.
///
/// # Errors
///
/// What is wrong with the address.
pub(super) fn endpoint(master: &str) -> Result<Endpoint, String> {
    let wrong = || format!("{master:?} is not the address of a master: HOST:PORT is expected");
    let (host, port) = master.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let port = port.checked_add(1).ok_or_else(wrong)?;
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).tcp_nodelay(true))
}

/// Returns a status in a few words: its message, and the error at the bottom of it.
pub(super) fn brief(status: &Status) -> String {
    let mut bottom: Option<&dyn Error> = status.source();
    while let Some(below) = bottom.and_then(Error::source) {
        bottom = Some(below);
    }
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    match bottom.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_is_at_the_next_port() {
        assert_eq!(endpoint("host:7000").expect("valid").uri().to_string(), "http://host:7001/");
        assert!(endpoint("host").is_err());
        assert!(endpoint("host:65535").is_err());
    }

    #[test]
    fn the_reason_is_the_message_and_the_error_at_the_bottom() {
        let error = std::io::Error::other(std::io::Error::from_raw_os_error(111));
        let status = Status::from_error(Box::new(error));
        assert!(brief(&status).contains("Connection refused"), "{}", brief(&status));
        assert!(!brief(&status).contains("Custom"), "{}", brief(&status));
    }
}
