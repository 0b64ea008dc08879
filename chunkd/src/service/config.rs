//! The settings of a chunk server.

use std::path::PathBuf;

/// The settings of a chunk server.
#[derive(Clone, Debug)]
pub struct ChunkdConfig {
    /// Data directories, one for each disk; made if absent. Not empty.
    pub data: Vec<PathBuf>,
    /// The master's hot address, `host:port`; its control plane is at the next port.
    pub master: String,
    /// Where to serve data, `host:port`. `/metrics` is at the next port. Port 0 takes free ones for both.
    pub listen: String,
    /// The `host:port` by which mounts and other servers reach the data plane; the bound address if absent.
    pub advertise: Option<String>,
    /// A name for what fails together, for placement; may be empty.
    pub rack: String,
    /// Bytes of each disk that are left free, but at most 5 % of it.
    pub reserve_bytes: u64,
    /// How long one request may take here, in milliseconds, before it fails.
    pub op_timeout_ms: u64,
    /// Replicas that are kept open.
    pub open_files_max: usize,
}

impl ChunkdConfig {
    /// Returns the default settings for these data directories and this master.
    pub fn new(data: Vec<PathBuf>, master: String) -> Self {
        Self {
            data,
            master,
            listen: "127.0.0.1:7100".into(),
            advertise: None,
            rack: String::new(),
            reserve_bytes: 1 << 30,
            op_timeout_ms: 10_000,
            open_files_max: 8192,
        }
    }
}
