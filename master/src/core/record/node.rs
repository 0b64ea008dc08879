//! A chunk server, for as long as the cluster lives.

use bytes::Bytes;
use dfs_proto::Seq;

use super::{RecordError, open, seal};
use crate::core::care::NodeFacts;

/// A chunk server, for as long as the cluster lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it said of itself last.
    pub facts: NodeFacts,
    /// Log position of the last change.
    pub seq: Seq,
}

impl Node {
    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredNode {
            server_id: Bytes::copy_from_slice(&self.facts.server_id),
            data_address: self.facts.data_address.clone(),
            http_address: self.facts.http_address.clone(),
            rack: self.facts.rack.clone(),
            host: self.facts.host.clone(),
            software: self.facts.software.clone(),
            seq: self.seq.0,
        })
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let stored: StoredNode = open("node", bytes)?;
        let server_id = stored.server_id[..]
            .try_into()
            .map_err(|_| RecordError { kind: "node", what: "a server id has 16 bytes" })?;
        Ok(Self {
            facts: NodeFacts {
                server_id,
                data_address: stored.data_address,
                http_address: stored.http_address,
                rack: stored.rack,
                host: stored.host,
                software: stored.software,
            },
            seq: Seq(stored.seq),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredNode {
    #[prost(bytes = "bytes", tag = "1")]
    server_id: Bytes,
    #[prost(string, tag = "2")]
    data_address: String,
    #[prost(string, tag = "3")]
    http_address: String,
    #[prost(string, tag = "4")]
    rack: String,
    #[prost(string, tag = "5")]
    host: String,
    #[prost(string, tag = "6")]
    software: String,
    #[prost(uint64, tag = "7")]
    seq: u64,
}
