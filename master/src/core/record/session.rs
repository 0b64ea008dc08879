//! The session of a mount, kept so that a restarted master expects it back.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};

/// The session of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// 16 random bytes the mount made for this one mount.
    pub client_id: Bytes,
    /// Its host.
    pub host: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Version of dfs.
    pub software: String,
    /// `host:port` of its pages, or empty.
    pub metrics_address: String,
    /// The directory it mounts instead of the root, or empty.
    pub subdir: Bytes,
    /// It asked not to change anything.
    pub is_read_only: bool,
    /// Its lease ran out: it has ended, and chunk servers refuse what still comes from it.
    pub is_fenced: bool,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Session {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredSession {
            client_id: self.client_id.clone(),
            host: self.host.clone(),
            mount_point: self.mount_point.clone(),
            software: self.software.clone(),
            metrics_address: self.metrics_address.clone(),
            subdir: self.subdir.clone(),
            is_read_only: self.is_read_only,
            is_fenced: self.is_fenced,
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredSession = open("session", bytes)?;
        Ok(Self {
            client_id: stored.client_id,
            host: stored.host,
            mount_point: stored.mount_point,
            software: stored.software,
            metrics_address: stored.metrics_address,
            subdir: stored.subdir,
            is_read_only: stored.is_read_only,
            is_fenced: stored.is_fenced,
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSession {
    #[prost(bytes = "bytes", tag = "1")]
    client_id: Bytes,
    #[prost(string, tag = "2")]
    host: String,
    #[prost(string, tag = "3")]
    mount_point: String,
    #[prost(string, tag = "4")]
    software: String,
    #[prost(string, tag = "5")]
    metrics_address: String,
    #[prost(bytes = "bytes", tag = "6")]
    subdir: Bytes,
    #[prost(bool, tag = "7")]
    is_read_only: bool,
    #[prost(uint64, tag = "8")]
    seq: u64,
    #[prost(bool, tag = "9")]
    is_fenced: bool,
}
