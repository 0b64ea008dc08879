//! Settings of a master, and what can go wrong at its start.

use std::path::PathBuf;
use std::time::Duration;

pub use crate::store::EngineKind;

/// Settings of a master.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Directory of its data; made if absent.
    pub data: PathBuf,
    /// `host:port` of the hot plane; gRPC is at port + 1, pages at port + 2. Port 0 takes three free ports.
    pub listen: String,
    /// What keeps the records.
    pub engine: EngineKind,
    /// The address to tell others, if it is not `listen`.
    pub advertise: Option<String>,
    /// How long replicas of deleted chunks are kept.
    pub reclaim_delay_ms: u64,
    /// Node lease.
    pub lease_ms: u64,
    /// How often chunk servers renew it.
    pub pulse_ms: u64,
    /// How often chunk servers report space and load.
    pub report_ms: u64,
    /// Silence after which a chunk server counts as offline.
    pub offline_ms: u64,
    /// A committed change is made durable within about this time even if nobody waits for it.
    pub sync_interval_ms: u64,
    /// Lease of a mount's session.
    pub session_ms: u64,
    /// How long a restarted master waits for its sessions to come back before it takes new work.
    pub reclaim_window_ms: u64,
    /// How long a replica of a chunk that the master does not know is kept.
    pub unknown_grace_ms: u64,
    /// What each chunk server may copy, in bytes a second, to fill and repair replicas.
    pub repair_bytes_per_second: u64,
    /// What each chunk server may read, in bytes a second, to check replicas.
    pub scrub_bytes_per_second: u64,
    /// Each chunk is checked, and its replicas compared, once in this time; 0: never.
    pub scrub_period_ms: u64,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            listen: "127.0.0.1:7000".into(),
            engine: EngineKind::Embedded,
            advertise: None,
            reclaim_delay_ms: 10_000,
            lease_ms: 5_000,
            pulse_ms: 1_000,
            report_ms: 30_000,
            offline_ms: 90_000,
            sync_interval_ms: 5,
            session_ms: 60_000,
            reclaim_window_ms: 3_000,
            unknown_grace_ms: 60_000,
            repair_bytes_per_second: 100 << 20,
            scrub_bytes_per_second: 20 << 20,
            scrub_period_ms: 14 * 24 * 3_600_000,
        }
    }
}

/// How long things may take that nobody sets: tests have less patience.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// What a truncate has left to do, a chunk's primary above all. After that the caretaker goes on with it.
    pub cut: Duration,
    /// Another call's wait for a truncate of the same file. After that the mount is told to try again.
    pub cut_wait: Duration,
    /// A peer's hello.
    pub hello: Duration,
    /// The next whole request on a connection: silence, or a byte now and then, must not hold a thread for good. A mount
    /// whose spare connection is closed makes a new one.
    pub idle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            // A mount that waits 10 s for an answer asks again.
            cut: Duration::from_secs(8),
            cut_wait: Duration::from_secs(5),
            hello: Duration::from_secs(5),
            idle: Duration::from_secs(600),
        }
    }
}

/// Why a master did not start.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The data directory cannot be used; the text names it and says why.
    #[error("{0}")]
    DataDir(String),
    /// The metadata store cannot be opened or read.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// An address cannot be used.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// What was asked for.
        address: String,
        /// Why not.
        error: std::io::Error,
    },
    /// The operating system refused something else.
    #[error("{0}")]
    Os(#[from] std::io::Error),
}
