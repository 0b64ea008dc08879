//! One running master: everything started in order, and stopped in the opposite one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::env::{Clock, SystemClock, random_u64};
use dfs_proto::wire::Listener;
use dfs_proto::{BootSession, ClusterId, Seq};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::care_world::CareBoard;
use super::config::{Deadlines, EngineKind, MasterConfig, MasterError};
use super::data_dir::{ClusterIdentity, DataDir};
use super::data_plane::DataPlane;
use super::executor::Executor;
use super::metrics::MasterMetrics;
use super::{Shared, caretaker, clients, http, nodes};
use crate::core::node_table::NodeTable;
use crate::store::{self, MetaStore};

/// How long services get to end when the master stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

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

/// A running master. Dropping it stops it too.
pub struct Master {
    shared: Arc<Shared>,
    addresses: Addresses,
    hot: Listener,
    stopping: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    _data: DataDir,
}

impl Master {
    /// Starts a master. It serves when this returns.
    ///
    /// # Errors
    ///
    /// [`MasterError`], with the directory or address in its text.
    pub fn start(config: MasterConfig) -> Result<Self, MasterError> {
        Self::start_with(config, Deadlines::default())
    }

    /// As [`Self::start`], with other deadlines: tests have less patience.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(config: MasterConfig, deadlines: Deadlines) -> Result<Self, MasterError> {
        let listen_at = config.listen.clone();
        let (host, port) = split_address(&listen_at)?;
        let data = DataDir::open(&config.data)?;
        let (identity, store) = open_store(&data, config.engine)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Arc::new(MasterMetrics::new());
        let table = Arc::new(RwLock::new(NodeTable::new(config.lease_ms, config.offline_ms)));
        let executor = Executor::start(store, Arc::clone(&table), Arc::clone(&clock), Arc::clone(&metrics), &config)?;
        let boot = BootSession(random_u64());
        let shared = Arc::new(Shared {
            started: clock.mono(),
            is_serving: AtomicBool::new(false),
            config,
            deadlines,
            clock,
            cluster: identity.cluster,
            grant_key: identity.grant_key,
            boot,
            executor,
            metrics,
            nodes: table,
            data: DataPlane::new(identity.cluster, boot),
            care: CareBoard::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("master-async")
            .enable_all()
            .build()?;
        let address = |offset: u16| match port {
            0 => Ok(format!("{host}:0")),
            port => port.checked_add(offset).map(|port| format!("{host}:{port}")).ok_or_else(|| MasterError::Listen {
                address: listen_at.clone(),
                error: std::io::Error::other("the two ports above it are needed too"),
            }),
        };
        let (control_at, http_at) = (address(1)?, address(2)?);
        let listen = |address: &str| {
            let address = address.to_owned();
            move |error| MasterError::Listen { address, error }
        };
        let control = runtime.block_on(nodes::serve(Arc::clone(&shared), &control_at)).map_err(listen(&control_at))?;
        let http = runtime.block_on(http::serve(Arc::clone(&shared), &http_at)).map_err(listen(&http_at))?;
        let (stopping, stop) = watch::channel(false);
        runtime.spawn(caretaker::run(Arc::clone(&shared), stop));
        let hot = clients::start(Arc::clone(&shared), &listen_at).map_err(listen(&listen_at))?;
        shared.is_serving.store(true, Ordering::Release);
        let addresses = Addresses { hot: hot.address(), control, http };
        tracing::info!(
            cluster = %shared.cluster,
            hot = %addresses.hot,
            control = %addresses.control,
            http = %addresses.http,
            "master started"
        );
        Ok(Self { shared, addresses, hot, stopping, runtime: Some(runtime), _data: data })
    }

    /// Returns where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns why the master cannot serve any more, if so: its store failed, and what is in memory may not be what is on
    /// disk. Whoever started it then stops it; a new start reads what is there.
    pub fn failure(&self) -> Option<String> {
        self.shared.executor.failure()
    }

    /// Returns its cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.shared.cluster
    }

    /// Stops it in order: no new requests, then everything that was answered is durable.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.shared.is_serving.store(false, Ordering::Release);
        self.hot.stop();
        // Nobody listens any more if the caretaker ended by itself.
        let _ = self.stopping.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(STOP_TIMEOUT);
        }
        self.shared.executor.stop();
        // Threads of connections let go of the store a moment after their sockets are shut down. Whoever starts a
        // master on this directory next must not find it locked.
        let until = Instant::now() + STOP_TIMEOUT;
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::info!(cluster = %self.shared.cluster, "master stopped");
    }
}

/// Opens the store of the cluster that `data` belongs to; a new one if it is empty.
fn open_store(data: &DataDir, engine: EngineKind) -> Result<(ClusterIdentity, Arc<dyn MetaStore>), MasterError> {
    if engine == EngineKind::Memory {
        // A new file system at each start must be a new cluster too: its ids begin anew.
        return Ok((ClusterIdentity::new(), store::open(engine, &data.store_path())?));
    }
    match data.identity()? {
        Some(identity) => Ok((identity, store::open(engine, &data.store_path())?)),
        None => {
            let store = store::open(engine, &data.store_path())?;
            if store.last_seq() > Seq(0) {
                let path = data.store_path();
                let text = format!("{}: there is metadata but no CLUSTER file that says whose", path.display());
                return Err(MasterError::DataDir(text));
            }
            let identity = ClusterIdentity::new();
            data.write_identity(&identity)?;
            Ok((identity, store))
        }
    }
}

fn split_address(listen: &str) -> Result<(&str, u16), MasterError> {
    let wrong = |error: &str| MasterError::Listen {
        address: listen.to_owned(),
        error: std::io::Error::new(std::io::ErrorKind::InvalidInput, error),
    };
    let (host, port) = listen.rsplit_once(':').ok_or_else(|| wrong("host:port is expected"))?;
    Ok((host, port.parse().map_err(|_| wrong("the port is not a number up to 65535"))?))
}
