//! Getting the session back from a master that restarted, and another one if it was lost.
//!
//! One thread does it, under `recovery`; the others' calls fail with `TryAgain` and come back.

use bytes::Bytes;
use dfs_proto::env::{Clock, SystemClock, random_bytes};
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::wire::{Connection, op_name};
use dfs_proto::{BootSession, ClusterId, FsError, SessionId};

use std::time::Instant;

use super::super::convert::{self, missing};
use super::super::retry;
use super::{ANSWER_TIMEOUT, OPENS_BATCH, OnLost, Session, exchange};
use crate::core::Policy;
use crate::fs::Attr;

impl Session {
    /// Opens a session at a master and makes it ours. The caller holds `recovery`, or is alone.
    pub(super) fn open_at_master(&self) -> Result<Attr, FsError> {
        let (mut connection, boot) = self.dial(false)?;
        let config = &self.config;
        let request = pb::MetaRequest {
            body: Some(meta_request::Body::SessionOpen(pb::SessionOpen {
                client_id: Bytes::copy_from_slice(&random_bytes::<16>()),
                host: config.host.clone(),
                mount_point: config.mount_point.clone(),
                software: env!("CARGO_PKG_VERSION").into(),
                metrics_address: config.metrics_address.clone(),
                subdir: config.subdir.clone(),
                read_only: config.read_only,
            })),
            ..Default::default()
        };
        let reply = exchange(&mut connection, &request, Instant::now() + ANSWER_TIMEOUT, &self.metrics)
            .map_err(|_| FsError::TryAgain("the master did not answer"))?;
        if let Some(failure) = reply.failure {
            return Err(failure.into());
        }
        let Some(meta_reply::Body::SessionOpened(opened)) = reply.body else { return Err(missing("session")) };
        let root = convert::attr(opened.root)?;
        let mut state = self.state.lock();
        state.cluster = ClusterId::from_slice(&opened.cluster_id).or(state.cluster);
        state.session = SessionId(opened.session);
        state.master_boot = boot;
        // This connection said hello without a session: it is not one of the pool.
        state.idle.clear();
        state.ledger.new_session(reply.durable_seq);
        Ok(root)
    }

    /// Gets the session back from a master that restarted. Returns the connection, ready for use.
    pub(super) fn recover(&self, mut connection: Connection, boot: BootSession) -> Result<Connection, FsError> {
        let _one_at_a_time = self
            .recovery
            .try_lock_for(ANSWER_TIMEOUT)
            .ok_or(FsError::TryAgain("the session is being got back from a restarted master"))?;
        let (numbers, opens) = {
            let mut state = self.state.lock();
            if state.master_boot == boot {
                return Ok(connection);
            }
            state.is_recovering = true;
            state.idle.clear();
            (state.ledger.to_replay(), state.holds.reclaim())
        };
        tracing::info!(changes = numbers.len(), opens = opens.len(), "the master restarted: reclaiming the session");
        let outcome = self.reclaim_and_replay(&mut connection, &numbers, opens);
        let mut state = self.state.lock();
        state.is_recovering = false;
        match outcome {
            Ok(durable_seq) => {
                state.master_boot = boot;
                state.ledger.restarted(durable_seq);
                Ok(connection)
            }
            // The request that comes next is told the same, and opens another session.
            Err(FsError::UnknownSession) => {
                state.master_boot = boot;
                Ok(connection)
            }
            Err(error) => Err(error),
        }
    }

    fn reclaim_and_replay(
        &self,
        connection: &mut Connection,
        numbers: &[u64],
        opens: Vec<pb::OpenCount>,
    ) -> Result<u64, FsError> {
        for batch in opens.chunks(OPENS_BATCH) {
            self.ask(connection, &reclaim(batch.to_vec(), false))?;
        }
        if opens.is_empty() {
            self.ask(connection, &reclaim(Vec::new(), false))?;
        }
        for &number in numbers {
            let now = SystemClock.wall().0;
            // One that was not answered may have been given up meanwhile.
            let Some(request) = self.state.lock().ledger.replay(number, now) else { continue };
            match self.ask(connection, &request) {
                Ok(reply) => self.state.lock().ledger.replayed(number, reply.seq),
                Err(error @ (FsError::UnknownSession | FsError::TryAgain(_))) => return Err(error),
                Err(error) => {
                    // Who waits for the answer to one that had none asks again, and is told.
                    if self.state.lock().ledger.lose(number) {
                        let op = request.body.as_ref().map_or("nothing", op_name);
                        tracing::error!(op, number, %error, "an acknowledged change could not be replayed: it is lost");
                    }
                }
            }
        }
        Ok(self.ask(connection, &reclaim(Vec::new(), true))?.durable_seq)
    }

    /// Asks on this very connection, through `TryAgain`, for as long as a recovery may take.
    fn ask(&self, connection: &mut Connection, request: &pb::MetaRequest) -> Result<pb::MetaReply, FsError> {
        retry::run(Policy::Soft { ms: ANSWER_TIMEOUT.as_millis() as u64 }, "recover the session", &self.metrics, |_| {
            let reply = exchange(connection, request, Instant::now() + ANSWER_TIMEOUT, &self.metrics);
            // Not transient: after a wire error this connection is of no use.
            let reply = reply.map_err(|error| FsError::Io(error.to_string()))?;
            match reply.failure.clone() {
                Some(failure) => Err(failure.into()),
                None => Ok(reply),
            }
        })
        .map_err(|error| match error {
            FsError::Io(_) => FsError::TryAgain("the master did not answer"),
            other => other,
        })
    }

    /// Opens another session in place of the one of `generation`, which the master does not know any more.
    pub(super) fn renew(&self, generation: u64) -> Result<(), FsError> {
        let _one_at_a_time =
            self.recovery.try_lock_for(ANSWER_TIMEOUT).ok_or(FsError::TryAgain("another session is being opened"))?;
        let (is_done, lost, old) = {
            let state = self.state.lock();
            (state.generation != generation, state.ledger.kept(), state.session)
        };
        if is_done {
            return Ok(());
        }
        self.open_at_master()?;
        let (session, opens) = {
            let mut state = self.state.lock();
            state.generation += 1;
            (state.session, state.holds.reclaim())
        };
        self.metrics.sessions_lost.inc();
        tracing::error!(
            %old, %session, changes_not_durable = lost,
            "the master ended this mount's session: data that was not written yet is lost, and reported by fsync and close"
        );
        if let Some(OnLost(act)) = self.on_lost.get() {
            act(session);
        }
        self.reclaim_under_new_session(&opens).inspect_err(|_| {
            // The next connection is then taken for one to a restarted master, and tells it.
            let mut state = self.state.lock();
            state.master_boot = BootSession(0);
            state.idle.clear();
        })
    }

    fn reclaim_under_new_session(&self, opens: &[pb::OpenCount]) -> Result<(), FsError> {
        let (mut connection, _) = self.dial(true)?;
        for batch in opens.chunks(OPENS_BATCH) {
            self.ask(&mut connection, &reclaim(batch.to_vec(), true))?;
        }
        Ok(())
    }
}

fn reclaim(opens: Vec<pb::OpenCount>, last: bool) -> pb::MetaRequest {
    let body = meta_request::Body::SessionReclaim(pb::SessionReclaim { opens, last });
    pb::MetaRequest { body: Some(body), ..Default::default() }
}
