//! A chunk server in this process: chunks in a map, and silence when it is asked for.

#![allow(dead_code, clippy::disallowed_methods, reason = "each test uses a part; a test may use sockets")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::wire::pb::{self, data_reply, data_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, Listener, accept_hello};
use dfs_proto::{BootSession, ClusterId, FsError, NodeId, SessionId, unit};
use parking_lot::{Condvar, Mutex};
use prost::Message;

pub struct FakeChunkServer {
    listener: Listener,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<u64, Vec<u8>>,
    /// The host is there, the process stands still: connections are made, nothing is read or said.
    is_stopped: bool,
    is_over: bool,
}

impl FakeChunkServer {
    pub fn start(cluster: ClusterId) -> Self {
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let listener = Listener::start("127.0.0.1:0", 256, "fake-chunkd", move |connection| {
            serve(connection, cluster, &serving);
        });
        Self { listener: listener.expect("listens"), shared }
    }

    pub fn address(&self) -> String {
        self.listener.address().to_string()
    }

    /// As SIGSTOP and SIGCONT.
    pub fn stop(&self, is_stopped: bool) {
        self.shared.state.lock().is_stopped = is_stopped;
        self.shared.changed.notify_all();
    }
}

impl Drop for FakeChunkServer {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Waits while the process is stopped. `false`: it is over.
    fn runs(&self) -> bool {
        let mut state = self.state.lock();
        while state.is_stopped && !state.is_over {
            self.changed.wait(&mut state);
        }
        !state.is_over
    }
}

fn serve(mut connection: Connection, cluster: ClusterId, shared: &Shared) {
    if !shared.runs() {
        return;
    }
    let own = Identity {
        cluster: Some(cluster),
        role: pb::Role::ChunkServer,
        node: NodeId(1),
        boot: BootSession(1),
        session: SessionId(0),
    };
    if accept_hello(&mut connection, &own, &[pb::Role::Mount], Duration::from_secs(5)).is_err() {
        return;
    }
    while let Ok(frame) = connection.recv(None) {
        if !shared.runs() {
            return;
        }
        let request = pb::DataRequest::decode(frame.head).expect("decodes");
        let (reply, payload) = match shared.state.lock().answer(&request, &frame.payload) {
            Ok((body, payload)) => (pb::DataReply { body: Some(body), failure: None }, payload),
            Err(error) => (pb::DataReply { body: None, failure: Some((&error).into()) }, Bytes::new()),
        };
        if connection.send(FrameKind::DataReply, frame.request_id, &reply, &payload).is_err() {
            return;
        }
    }
}

impl State {
    fn answer(&mut self, request: &pb::DataRequest, payload: &[u8]) -> Result<(data_reply::Body, Bytes), FsError> {
        let chunk = self.chunks.entry(request.chunk).or_default();
        let mut reach = |end: usize| {
            if chunk.len() < end {
                chunk.resize(end, 0);
            }
        };
        match request.body.clone().expect("has a body") {
            data_request::Body::Write(write) => {
                let (from, to) = (write.offset as usize, write.offset as usize + payload.len());
                reach(to);
                chunk[from..to].copy_from_slice(payload);
                Ok((data_reply::Body::Written(pb::Written { seq: 1, version: 1 }), Bytes::new()))
            }
            data_request::Body::Read(read) => {
                let (from, to) = (read.offset as usize, (read.offset + read.length) as usize);
                reach(to);
                let data = Bytes::copy_from_slice(&chunk[from..to]);
                let crcs = unit::checksums(read.offset, &data);
                Ok((data_reply::Body::ReadData(pb::ReadData { crcs, all_zero: false }), data))
            }
            data_request::Body::Barrier(_) => Ok((data_reply::Body::Synced(pb::Synced {}), Bytes::new())),
            _ => Err(FsError::NotSupported),
        }
    }
}
