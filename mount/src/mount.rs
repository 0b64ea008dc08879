//! Puts a mount together and takes it apart again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::env::{Clock, SystemClock};
use dfs_telemetry::axum::Router;

use crate::core::Policy;
use crate::fs::FileSystem;
use crate::fs::file::{FileSettings, FileTable, Remote};
use crate::fuse::{
    FuseSession, FuseUnmounter, MountPoint, MountPointError, SessionOptions, VfsOption, WaitPools, WaitsFor, path_text,
};
use crate::metrics::Metrics;
use crate::remote::{MasterClient, SessionConfig};

/// How long a mount waits for its first answer from a master.
const CONNECT_MS: u64 = 10_000;

/// What to mount, where, and how.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Masters, `host:port` of the hot plane, tried in this order.
    pub masters: Vec<String>,
    /// The directory to mount instead of the root, relative to it; empty: the root.
    pub subdir: Vec<u8>,
    /// The directory to mount on.
    pub mount_point: PathBuf,
    /// The first column of /proc/mounts.
    pub source: String,
    /// Nothing can be changed through this mount.
    pub read_only: bool,
    /// Options of the kernel's VFS.
    pub vfs_options: Vec<VfsOption>,
    /// Users other than the one who mounts may enter.
    pub allow_other: bool,
    /// What happens when the cluster does not answer.
    pub policy: Policy,
    /// `host:port` for /metrics and /healthz; `None`: a free port of 127.0.0.1.
    pub http: Option<String>,
    /// Most bytes written by programs and not yet on replicas.
    pub dirty_bytes_max: u64,
    /// Most bytes fetched ahead of one open file.
    pub read_ahead_bytes: u64,
    /// Threads that take requests from the kernel.
    pub workers: usize,
}

/// Why nothing was mounted, or how it ended badly.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory will not do.
    #[error(transparent)]
    MountPoint(#[from] MountPointError),
    /// No master was named.
    #[error("no master was named")]
    NoMaster,
    /// The name of the subdirectory cannot be sent.
    #[error("the subdirectory's name is not UTF-8")]
    Subdir,
    /// No master answered.
    #[error("no master answers at {masters}: {error}")]
    Unreachable {
        /// Those that were tried.
        masters: String,
        /// The last failure.
        error: FsError,
    },
    /// A master answered, and will not have this mount.
    #[error("the master refuses: {0}")]
    Refused(FsError),
    /// The directory to be mounted is not there.
    #[error("no directory {0} in this file system")]
    NoSubdir(String),
    /// The metrics' address cannot be taken.
    #[error("http at {address}: {error}")]
    Http {
        /// The address.
        address: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The kernel, or fusermount3, would not mount.
    #[error("{0}")]
    Kernel(std::io::Error),
    /// It is in use, or may not be unmounted by us.
    #[error("unmounting: {0}")]
    Unmount(std::io::Error),
    /// Serving the kernel ended otherwise than by an unmount.
    #[error("the FUSE session ended: {0}")]
    Session(std::io::Error),
    /// Not everything that was buffered could be written when it ended.
    #[error("not all data was written: {0}")]
    Flush(FsError),
}

impl MountError {
    /// Returns whether it may go away by itself: nobody refused, somebody was not there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A file system that is mounted.
pub struct Mounted {
    fuse: FuseSession,
    fs: Arc<FileSystem>,
    pools: WaitPools,
    runtime: tokio::runtime::Runtime,
    http: SocketAddr,
}

/// Unmounts, from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter(FuseUnmounter);

impl Unmounter {
    /// Unmounts; [`Mounted::wait`] then writes everything out and returns. Does nothing if it is unmounted already.
    ///
    /// # Errors
    ///
    /// [`MountError::Unmount`], as while a program uses it.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.0.unmount().map_err(MountError::Unmount)
    }
}

/// Mounts, and serves in threads of its own until it is unmounted.
///
/// # Errors
///
/// [`MountError`]; nothing is left behind then.
pub fn mount(config: MountConfig) -> Result<Mounted, MountError> {
    if config.masters.is_empty() {
        return Err(MountError::NoMaster);
    }
    let subdir = String::from_utf8(config.subdir.clone()).map_err(|_| MountError::Subdir)?;
    let mount_point = MountPoint::check(&config.mount_point)?;
    let metrics = Arc::new(Metrics::new());
    let (runtime, http) = serve_http(&config, &metrics)?;
    let session = SessionConfig {
        masters: config.masters.clone(),
        host: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        mount_point: path_text(mount_point.path()),
        metrics_address: http.to_string(),
        subdir: subdir.clone(),
        read_only: config.read_only,
        policy: config.policy,
        connect_ms: CONNECT_MS,
    };
    let (master, root) = MasterClient::open_session(session, Arc::clone(&metrics)).map_err(|error| match error {
        FsError::NoEntry | FsError::NotDirectory => MountError::NoSubdir(subdir),
        FsError::TryAgain(_) | FsError::TimedOut(_) => {
            MountError::Unreachable { masters: config.masters.join(", "), error }
        }
        error => MountError::Refused(error),
    })?;
    let started = start(&config, &master, &root, &mount_point, &metrics);
    match started {
        Ok((fuse, fs, pools)) => Ok(Mounted { fuse, fs, pools, runtime, http }),
        Err(error) => {
            if let Err(error) = master.close() {
                tracing::warn!(%error, "the session was not closed; it ends by itself");
            }
            Err(error)
        }
    }
}

type Started = (FuseSession, Arc<FileSystem>, WaitPools);

fn start(
    config: &MountConfig,
    master: &MasterClient,
    root: &crate::fs::Attr,
    mount_point: &MountPoint,
    metrics: &Arc<Metrics>,
) -> Result<Started, MountError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let chunks = master.chunk_client(Arc::clone(metrics)).map_err(MountError::Refused)?;
    let chunks = Arc::new(chunks);
    let backend = Arc::new(Remote { master: master.clone(), chunks: Arc::clone(&chunks) });
    let settings = FileSettings {
        policy: config.policy,
        dirty_bytes_max: config.dirty_bytes_max,
        read_ahead_bytes: config.read_ahead_bytes,
        ..FileSettings::default()
    };
    let files = FileTable::new(backend, Arc::clone(&clock), settings, Arc::clone(metrics));
    let pools = WaitPools::default();
    let ahead = Arc::clone(pools.of(WaitsFor::Master));
    let is_dirsync = config.vfs_options.iter().any(|option| matches!(option, VfsOption::DirSync | VfsOption::Sync));
    let fs = Arc::new(FileSystem::new(root, master.clone(), files, clock, ahead, is_dirsync));
    let weak = Arc::downgrade(&fs);
    master.on_session_lost(move |session| {
        // First what was written under the old one is given up, or it would get through under the next.
        if let Some(fs) = weak.upgrade() {
            fs.session_lost();
        }
        chunks.session_changed(session);
    });
    let options = SessionOptions {
        source: config.source.clone(),
        read_only: config.read_only,
        allow_other: config.allow_other,
        vfs: config.vfs_options.clone(),
        workers: config.workers,
    };
    let fuse = FuseSession::start(Arc::clone(&fs), pools.clone(), mount_point, &options, metrics)
        .map_err(MountError::Kernel)?;
    Ok((fuse, fs, pools))
}

fn serve_http(config: &MountConfig, metrics: &Metrics) -> Result<(tokio::runtime::Runtime, SocketAddr), MountError> {
    let address = config.http.clone().unwrap_or_else(|| "127.0.0.1:0".into());
    let failed = |error| MountError::Http { address: address.clone(), error };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("dfs-http")
        .enable_all()
        .build()
        .map_err(failed)?;
    let registry = metrics.registry.clone();
    let bound = runtime.block_on(dfs_telemetry::serve(&address, registry, Arc::new(|| Ok(())), Router::new()));
    Ok((runtime, bound.map_err(failed)?))
}

impl Mounted {
    /// Waits until it is unmounted, from outside or by an [`Unmounter`], then writes out what is buffered, ends the
    /// session with the master, and all threads.
    ///
    /// # Errors
    ///
    /// [`MountError::Session`]; [`MountError::Flush`].
    pub fn wait(self) -> Result<(), MountError> {
        let served = self.fuse.wait().map_err(MountError::Session);
        self.pools.close();
        let flushed = self.fs.shut_down().map_err(MountError::Flush);
        self.runtime.shutdown_background();
        served.and(flushed)
    }

    /// Returns what unmounts it from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter(self.fuse.unmounter())
    }

    /// Returns where /metrics is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }
}
