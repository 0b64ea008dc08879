//! A whole chunk server: start and stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::env::random_u64;
use dfs_proto::wire::Listener;
use dfs_proto::{BootSession, NodeId};
use dfs_telemetry::{Health, axum, serve};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;

use super::config::ChunkdConfig;
use super::control::{self, Announcement};
use super::data_plane::{CONNECTIONS_MAX, DataPlane};
use super::disks::DiskCare;
use super::master_link::{self, MasterLink};
use super::orders;
use super::shared::Shared;
use crate::store::data_dir::DataDirError;
use crate::store::replica_store::ReplicaStore;

/// How long an orderly stop waits for requests that are under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a chunk server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ChunkdError {
    /// A setting makes no sense; the text says which and why.
    #[error("{0}")]
    Config(String),
    /// A data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The operating system gives no threads.
    #[error("cannot start threads: {0}")]
    Threads(#[source] io::Error),
}

/// Where a chunk server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The data plane.
    pub data: SocketAddr,
    /// `/metrics` and `/healthz`.
    pub http: SocketAddr,
}

/// A chunk server that runs until [`ChunkServer::stop`].
pub struct ChunkServer {
    shared: Arc<Shared>,
    listener: Listener,
    care: Arc<DiskCare>,
    runtime: Runtime,
    addresses: Addresses,
}

impl ChunkServer {
    /// Starts a chunk server; it returns once it listens. Registration goes on in the background for as long as it takes.
    ///
    /// # Errors
    ///
    /// [`ChunkdError`].
    pub fn start(config: ChunkdConfig) -> Result<Self, ChunkdError> {
        if config.data.is_empty() {
            return Err(ChunkdError::Config("a chunk server needs at least one data directory".into()));
        }
        let endpoint = master_link::endpoint(&config.master).map_err(ChunkdError::Config)?;
        let http_address = next_port(&config.listen).map_err(ChunkdError::Config)?;
        let (open_files_max, connections_max) = share_descriptors(raise_open_files(), config.open_files_max);
        let boot_id = host_boot_id();
        let store = ReplicaStore::open(&config.data, config.reserve_bytes, &boot_id)?;
        if !store.was_clean() {
            tracing::warn!(
                suspect = store.is_suspect(),
                "the last stop was not orderly: replicas are checked when opened"
            );
        }
        let op_timeout = Duration::from_millis(config.op_timeout_ms.max(1));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("dfs-chunkd-control")
            .enable_all()
            .build()
            .map_err(ChunkdError::Threads)?;
        let master = MasterLink::new(&endpoint, runtime.handle().clone());
        let shared = Arc::new(Shared::new(store, master, open_files_max, op_timeout, BootSession(random_u64())));
        let registry = shared.metrics.registry.clone();
        let http = runtime
            .block_on(serve(&http_address, registry, health(&shared), axum::Router::new()))
            .map_err(|error| ChunkdError::Listen { address: http_address, error })?;
        let plane = DataPlane::new(Arc::clone(&shared), connections_max);
        let listener = Listener::start(&config.listen, connections_max, "dfs-chunkd-data", move |connection| {
            plane.serve(connection);
        })
        .map_err(|error| ChunkdError::Listen { address: config.listen.clone(), error })?;
        let addresses = Addresses { data: listener.address(), http };
        let announcement = Announcement {
            data_address: config.advertise.unwrap_or_else(|| addresses.data.to_string()),
            http_address: addresses.http.to_string(),
            rack: config.rack,
            host: host_name(),
            host_boot_id: boot_id,
        };
        let care = Arc::new(DiskCare::default());
        if let Err(error) = orders::start(&shared).and_then(|()| care.start(&shared)) {
            listener.stop();
            shared.orders.stop();
            care.stop();
            return Err(ChunkdError::Threads(error));
        }
        runtime.spawn(control::run(Arc::clone(&shared), announcement));
        Ok(Self { shared, listener, care, runtime, addresses })
    }

    /// Returns where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns its node id, 0 until it has registered.
    pub fn node(&self) -> NodeId {
        self.shared.node()
    }

    /// Returns why this server can never serve, if so: the master refuses it for what it is (disks of another cluster,
    /// another protocol). Whoever started it then stops it and reports the reason; nothing is tried again.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure().map(str::to_owned)
    }

    /// Ends in order: requests under way are finished, everything is synced, and the disks say so.
    pub fn stop(self) {
        self.listener.stop();
        self.shared.orders.stop();
        self.care.stop();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.listener.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        if self.listener.connections() == 0 {
            self.shared.store.close_clean();
        }
        // Threads of connections let go of the store a moment after their connections are counted as ended. Whoever
        // starts a server on these directories next must not find them locked.
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn health(shared: &Arc<Shared>) -> Health {
    let shared = Arc::clone(shared);
    Arc::new(move || {
        if let Some(reason) = shared.failure() {
            return Err(format!("the master refuses this server: {reason}"));
        }
        shared.membership().map_err(|error| error.to_string())?;
        shared.check_lease().map_err(|error| error.to_string())?;
        match shared.store.disks().iter().find(|disk| disk.has_failed()) {
            Some(disk) => Err(format!("the disk {} has failed", disk.path().display())),
            None => Ok(()),
        }
    })
}

fn next_port(listen: &str) -> Result<String, String> {
    let wrong =
        || format!("{listen:?} cannot be listened on: HOST:PORT is expected, and the port after it is used too");
    let (host, port) = listen.rsplit_once(':').ok_or_else(wrong)?;
    match port.parse::<u16>().map_err(|_| wrong())? {
        0 => Ok(format!("{host}:0")),
        port => Ok(format!("{host}:{}", port.checked_add(1).ok_or_else(wrong)?)),
    }
}

/// Raises the limit of open files as far as allowed, and returns it.
fn raise_open_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Returns how many replicas and how many connections may be open with `limit` descriptors.
fn share_descriptors(limit: usize, replicas_wanted: usize) -> (usize, usize) {
    // A connection has two descriptors here, its thread one, and it may need one to each of two peers.
    (replicas_wanted.min(limit / 2), CONNECTIONS_MAX.min(limit / 12).max(16))
}

fn host_boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".into(), |id| id.trim().into())
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "unknown".into())
}
