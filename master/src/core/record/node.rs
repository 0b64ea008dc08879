//! A chunk server, for as long as the cluster lives.

use bytes::Bytes;
use dfs_proto::{BootSession, Seq};

use super::{RecordError, open, seal};
use crate::core::care::NodeFacts;

/// A chunk server, for as long as the cluster lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// What it said of itself last.
    pub facts: NodeFacts,
    /// The run of its process that registered last.
    pub boot: BootSession,
    /// Runs that have ended, the last ones, oldest first: one that registered again, or one whose lease was over when
    /// others were given its roles. A server that still goes by such a run is given a new one.
    pub ended: Vec<BootSession>,
    /// Where the log stood when it last came back without what it had not synced; 0: never. It is not trusted to be in
    /// sync where the replica set is older than this.
    pub suspect_seq: Seq,
    /// It is to be emptied.
    pub is_draining: bool,
    /// Log position of the last change.
    pub seq: Seq,
}

/// Most runs of a server that are remembered as ended.
const ENDED_MAX: usize = 16;

impl Node {
    /// Returns whether it was removed: only its id is kept.
    pub fn is_removed(&self) -> bool {
        // One that registers says where it is.
        self.facts.data_address.is_empty()
    }

    /// Remembers that `boot` has ended.
    pub fn end_run(&mut self, boot: BootSession) {
        if !self.ended.contains(&boot) {
            self.ended.push(boot);
        }
        let surplus = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..surplus);
    }

    pub(super) fn encode(&self) -> Bytes {
        seal(&StoredNode {
            server_id: Bytes::copy_from_slice(&self.facts.server_id),
            data_address: self.facts.data_address.clone(),
            http_address: self.facts.http_address.clone(),
            rack: self.facts.rack.clone(),
            host: self.facts.host.clone(),
            software: self.facts.software.clone(),
            seq: self.seq.0,
            boot: self.boot.0,
            ended: self.ended.iter().map(|boot| boot.0).collect(),
            suspect_seq: self.suspect_seq.0,
            is_draining: self.is_draining,
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
            boot: BootSession(stored.boot),
            ended: stored.ended.into_iter().map(BootSession).collect(),
            suspect_seq: Seq(stored.suspect_seq),
            is_draining: stored.is_draining,
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
    #[prost(fixed64, tag = "8")]
    boot: u64,
    #[prost(fixed64, repeated, tag = "9")]
    ended: Vec<u64>,
    #[prost(uint64, tag = "10")]
    suspect_seq: u64,
    #[prost(bool, tag = "11")]
    is_draining: bool,
}
