//! How a chunk server stands at one moment, as far as replica sets care.

use dfs_proto::planted::{self, Bug};
use dfs_proto::{BootSession, Seq};

use super::record::Chunk;

/// How a chunk server stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The run of its process that grants are made for; 0: none, it has not registered with this run of the master, or its
    /// run has ended.
    pub boot: BootSession,
    /// Its node lease runs, as the master counts.
    pub is_online: bool,
    /// No run of it can hold a lease: it has certainly stopped to serve.
    pub is_lease_over: bool,
    /// The runs before its present one have certainly stopped to serve.
    pub are_former_leases_over: bool,
    /// Where the log stood when it last came back without what it had not synced; 0: never.
    pub suspect_seq: Seq,
    /// Milliseconds since it was last heard of, or since the master started.
    pub silent_ms: u64,
}

impl Standing {
    /// Returns whether its replica of `chunk` may lack what was acknowledged: it lost what was not synced later than the
    /// set was last known to be equal. It is granted nothing for this chunk until that is settled.
    pub fn taints(&self, chunk: &Chunk) -> bool {
        self.suspect_seq > chunk.set_seq && !planted::is(Bug::TrustAmnesiac)
    }
}
