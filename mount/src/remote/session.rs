//! The session with the master: requests that happen once, whatever breaks on the way.
//!
//! ```text
//!   call ──▶ number ──▶ connection of the pool ──▶ reply ──▶ kept until durable ──▶ forgotten
//!              ▲            │ broken, silent, TryAgain
//!              └────────────┘ same number, until the policy's deadline
//!
//!   new boot session in the hello: reclaim(opens) ─▶ replay(kept, by seq) ─▶ reclaim(last) ─▶ goes on
//!   UnknownSession:                open another session, generation + 1, kept requests are lost
//! ```
//!
//! # Invariants
//!
//! - A number names one request for as long as the session lives; no number that can still be asked about (in flight or
//!   kept) is below an `acked_below` that was sent.
//! - A change whose reply was seen is either durable at the master or in [`State::kept`] and replayed after a restart.
//! - No lock is held during a call; `recovery` is taken before `state`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::env::{random_bytes, random_u64};
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello};
use dfs_proto::{BootSession, ClusterId, FsError, InodeId, NodeId, Seq, SessionId, UnixNanos};
use parking_lot::{Condvar, Mutex};

use super::convert::{self, missing};
use super::retry::{self, Policy};
use crate::fs::{Attr, Caller};
use crate::metrics::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A master that is silent for so long is left, and the request repeated on a new connection, perhaps elsewhere.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections kept open while nobody uses them; with as many as there are threads nobody ever waits for one.
const IDLE_MAX: usize = 32;
/// Replies that are kept for a replay. Above it, calls first wait until the master has synced.
const KEPT_MAX: usize = 4_096;
/// How often the master hears of us at least, and how old `durable_seq` may become.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Releases are gathered for so long: nobody waits for one, and each would cost a round trip.
const RELEASE_DELAY: Duration = Duration::from_millis(50);
/// How long the master is asked to take the session back. It ends by itself if not.
const CLOSE_MS: u64 = 5_000;
/// Inodes in one request of releases or reclaimed opens.
const OPENS_BATCH: usize = 10_000;

/// What the master is told about this mount, and how long it is waited for.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Addresses of masters, `host:port`, tried in this order.
    pub masters: Vec<String>,
    /// This host.
    pub host: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// `host:port` of this mount's `/metrics`, or empty.
    pub metrics_address: String,
    /// The directory to mount instead of the root, relative to it; empty: the root.
    pub subdir: String,
    /// The mount will not change anything.
    pub read_only: bool,
    /// How long calls wait for a master.
    pub policy: Policy,
    /// How long the first connection is tried, in milliseconds.
    pub connect_ms: u64,
}

/// What a request does at the master, which decides what is kept of it until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: asked again freely.
    Reads,
    /// Holds a file open.
    Opens,
    /// Changes the namespace or attributes.
    Changes,
    /// Changes, and holds the result open.
    ChangesAndOpens,
    /// Changes content, which belongs to the session that wrote it: never carried over to another one.
    ChangesContent,
}

impl Effect {
    fn is_recorded(self) -> bool {
        matches!(self, Self::Changes | Self::ChangesAndOpens | Self::ChangesContent)
    }

    fn opens(self) -> bool {
        matches!(self, Self::Opens | Self::ChangesAndOpens)
    }
}

/// The session. All threads share it.
#[derive(Debug)]
pub(super) struct Session {
    config: SessionConfig,
    boot: BootSession,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Held by the one thread that reclaims and replays, or opens another session.
    recovery: Mutex<()>,
    wakeup: Condvar,
    on_lost: OnceLock<OnLost>,
}

/// What is to be done when the session is lost.
struct OnLost(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OnLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnLost(..)")
    }
}

#[derive(Debug)]
struct State {
    cluster: Option<ClusterId>,
    session: SessionId,
    generation: u64,
    /// The master process that knows this session. Replies of another one do not count.
    master_boot: BootSession,
    /// A recovery has taken its copy of `kept` and `opens`: what is answered by the old master now comes too late.
    is_recovering: bool,
    /// The master that answered last, an index into the configured ones.
    master_at: usize,
    idle: Vec<Connection>,
    next_number: u64,
    in_flight: BTreeSet<u64>,
    kept: BTreeMap<u64, Kept>,
    durable_seq: u64,
    seen_seq: u64,
    opens: BTreeMap<u64, u32>,
    releases: BTreeMap<u64, u32>,
    is_closed: bool,
    background: Option<std::thread::JoinHandle<()>>,
}

/// A request whose reply was seen, and what the reply said.
#[derive(Clone, Debug)]
struct Kept {
    request: pb::MetaRequest,
    replay: pb::Replay,
}

/// What a call brought.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: meta_reply::Body,
    /// The time the operation used.
    pub(super) time: UnixNanos,
}

/// Why an attempt gave no reply.
enum Failed {
    /// Nothing is known about the request: it may have been carried out.
    Unanswered(FsError),
    /// It was certainly not carried out.
    NotSent(FsError),
}

impl Session {
    pub(super) fn open(config: SessionConfig, metrics: Arc<Metrics>) -> Result<(Arc<Self>, Attr), FsError> {
        let state = State {
            cluster: None,
            session: SessionId(0),
            generation: 0,
            master_boot: BootSession(0),
            is_recovering: false,
            master_at: 0,
            idle: Vec::new(),
            next_number: 1,
            in_flight: BTreeSet::new(),
            kept: BTreeMap::new(),
            durable_seq: 0,
            seen_seq: 0,
            opens: BTreeMap::new(),
            releases: BTreeMap::new(),
            is_closed: false,
            background: None,
        };
        let connect_policy = Policy::Soft { ms: config.connect_ms };
        let session = Arc::new(Self {
            config,
            boot: BootSession(random_u64()),
            metrics,
            state: Mutex::new(state),
            recovery: Mutex::new(()),
            wakeup: Condvar::new(),
            on_lost: OnceLock::new(),
        });
        let root = retry::run(connect_policy, "open session", |_| session.open_at_master(), |_| ())?;
        let weak = Arc::downgrade(&session);
        let background = std::thread::Builder::new()
            .name("dfs-session".into())
            .spawn(move || background(&weak))
            .map_err(|error| FsError::Io(format!("no thread for the session: {error}")))?;
        session.state.lock().background = Some(background);
        Ok((session, root))
    }

    pub(super) fn on_lost(&self, act: impl Fn() + Send + Sync + 'static) {
        // The first one stays: there is one mount to a session.
        let _ = self.on_lost.set(OnLost(Box::new(act)));
    }

    pub(super) fn id(&self) -> SessionId {
        self.state.lock().session
    }

    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.state.lock().cluster
    }

    pub(super) fn boot(&self) -> BootSession {
        self.boot
    }

    pub(super) fn close(&self) -> Result<(), FsError> {
        let background = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.background.take()
        };
        self.wakeup.notify_all();
        if let Some(thread) = background {
            // A panic there has been reported already.
            let _ = thread.join();
        }
        let outcome = self.sync().and_then(|()| {
            // What is open ends with the session: no releases are needed.
            let request = meta_request::Body::SessionClose(pb::SessionClose {});
            self.call_within(Policy::Soft { ms: CLOSE_MS }, Caller::MOUNT, request, Effect::Reads)
        });
        self.state.lock().idle.clear();
        outcome.map(drop)
    }

    pub(super) fn release(&self, inode: InodeId) {
        let mut state = self.state.lock();
        if let Some(count) = state.opens.get_mut(&inode.0) {
            *count -= 1;
            if *count == 0 {
                state.opens.remove(&inode.0);
            }
        }
        let is_first = state.releases.is_empty();
        *state.releases.entry(inode.0).or_default() += 1;
        drop(state);
        if is_first {
            self.wakeup.notify_one();
        }
    }

    pub(super) fn sync(&self) -> Result<(), FsError> {
        let seq = self.state.lock().seen_seq;
        self.sync_to(Seq(seq))
    }

    pub(super) fn sync_to(&self, seq: Seq) -> Result<(), FsError> {
        if self.state.lock().durable_seq >= seq.0 {
            return Ok(());
        }
        self.call(Caller::MOUNT, meta_request::Body::Sync(pb::Sync { seq: seq.0 }), Effect::Reads).map(drop)
    }

    pub(super) fn call(&self, caller: Caller, body: meta_request::Body, effect: Effect) -> Result<Answer, FsError> {
        self.call_within(self.config.policy, caller, body, effect)
    }

    fn call_within(
        &self,
        policy: Policy,
        caller: Caller,
        body: meta_request::Body,
        effect: Effect,
    ) -> Result<Answer, FsError> {
        let op = op_name(&body);
        let (number, acked_below) = if effect.is_recorded() { self.take_number()? } else { (0, 0) };
        let _in_flight = InFlight { session: self, number };
        let mut request =
            pb::MetaRequest { number, acked_below, uid: caller.uid, gid: caller.gid, replay: None, body: Some(body) };
        let mut may_have_happened = false;
        let outcome = retry::run(
            policy,
            op,
            |deadline| loop {
                let generation = self.generation();
                let (reply, boot) = match self.attempt(&request, deadline) {
                    Ok(answer) => answer,
                    Err(Failed::NotSent(error)) => return Err(error),
                    Err(Failed::Unanswered(error)) => {
                        may_have_happened = true;
                        return Err(error);
                    }
                };
                match reply.failure {
                    Some(failure) => match FsError::from(failure) {
                        error @ FsError::TryAgain(_) => return Err(error),
                        FsError::UnknownSession => {
                            self.renew(generation)?;
                            if effect == Effect::ChangesContent || effect.is_recorded() && may_have_happened {
                                return Ok(Err(FsError::SessionLost));
                            }
                        }
                        error => return Ok(Err(error)),
                    },
                    None if self.accept(&mut request, &reply, effect, boot) => {
                        let time = UnixNanos(reply.time);
                        return Ok(reply.body.map(|body| Answer { body, time }).ok_or_else(|| missing("body")));
                    }
                    // The master restarted behind this reply, too late to be replayed with the others: again, alone.
                    None => {}
                }
            },
            |error| self.metrics.count_retry(error),
        );
        match outcome {
            Ok(result) => result,
            Err(FsError::TryAgain(_)) => Err(FsError::TimedOut("the master")),
            Err(error) => Err(error),
        }
    }

    /// Returns a new number and the number below which no reply will be asked for again.
    fn take_number(&self) -> Result<(u64, u64), FsError> {
        loop {
            let mut state = self.state.lock();
            if state.kept.len() < KEPT_MAX {
                let number = state.next_number;
                state.next_number += 1;
                state.in_flight.insert(number);
                let oldest_kept = state.kept.first_key_value().map_or(number, |(&oldest, _)| oldest);
                let oldest_in_flight = state.in_flight.first().copied().unwrap_or(number);
                return Ok((number, oldest_kept.min(oldest_in_flight)));
            }
            drop(state);
            self.sync()?;
            // What was not trimmed by that belongs to a master that is gone: a recovery is under way.
            if self.state.lock().kept.len() >= KEPT_MAX {
                return Err(FsError::TimedOut("the master's disk"));
            }
        }
    }

    /// Takes in a reply without failure. False: the reply does not count, because a recovery has begun since.
    fn accept(&self, request: &mut pb::MetaRequest, reply: &pb::MetaReply, effect: Effect, boot: BootSession) -> bool {
        let counts = effect != Effect::Reads;
        let mut state = self.state.lock();
        if state.master_boot != boot || state.is_recovering {
            if counts && reply.seq > 0 {
                request.replay = Some(replay_of(reply));
            }
            return !counts;
        }
        state.note(reply.seq, reply.durable_seq);
        if request.number > 0 && reply.seq > state.durable_seq {
            let kept = Kept { request: request.clone(), replay: replay_of(reply) };
            state.kept.insert(request.number, kept);
        }
        if effect.opens()
            && let Some(meta_reply::Body::Opened(pb::Opened { attr: Some(attr), .. })) = &reply.body
        {
            *state.opens.entry(attr.inode).or_default() += 1;
        }
        true
    }

    /// Sends a request once and reads the reply. Returns it with the boot session of the master that gave it.
    fn attempt(
        &self,
        request: &pb::MetaRequest,
        deadline: Option<Instant>,
    ) -> Result<(pb::MetaReply, BootSession), Failed> {
        loop {
            let (mut connection, boot, is_reused) = self.take_connection().map_err(Failed::NotSent)?;
            let answer_by = Instant::now() + ANSWER_TIMEOUT;
            let by = deadline.map_or(answer_by, |at| at.clamp(Instant::now() + Duration::from_millis(50), answer_by));
            match exchange(&mut connection, request, by, &self.metrics) {
                Ok(reply) => {
                    let mut state = self.state.lock();
                    if state.master_boot == boot && state.idle.len() < IDLE_MAX && !state.is_closed {
                        state.idle.push(connection);
                    }
                    return Ok((reply, boot));
                }
                Err(error) => {
                    self.state.lock().idle.clear();
                    // An idle connection dies unseen when the master restarts: no reason to wait before a new one. The
                    // request may have arrived all the same; it carries its number.
                    if is_reused && matches!(error, WireError::Closed | WireError::Io(_)) && request.number == 0 {
                        self.metrics.count_retry(&FsError::Io(String::new()));
                        continue;
                    }
                    tracing::debug!(%error, "the master did not answer");
                    return Err(Failed::Unanswered(FsError::TryAgain("the master did not answer")));
                }
            }
        }
    }

    fn take_connection(&self) -> Result<(Connection, BootSession, bool), FsError> {
        {
            let mut state = self.state.lock();
            if !state.is_recovering
                && let Some(connection) = state.idle.pop()
            {
                return Ok((connection, state.master_boot, true));
            }
        }
        let (connection, boot) = self.dial(true)?;
        if self.state.lock().master_boot == boot {
            return Ok((connection, boot, false));
        }
        self.recover(connection, boot).map(|connection| (connection, boot, false))
    }

    /// Connects to a master, beginning with the one that answered last.
    fn dial(&self, with_session: bool) -> Result<(Connection, BootSession), FsError> {
        let (cluster, session, at) = {
            let state = self.state.lock();
            let session = if with_session { state.session } else { SessionId(0) };
            (state.cluster, session, state.master_at)
        };
        let own = Identity { cluster, role: pb::Role::Mount, node: NodeId(0), boot: self.boot, session };
        let masters = &self.config.masters;
        let mut refused = None;
        for step in 0..masters.len() {
            let index = (at + step) % masters.len();
            let dialed = connect(&masters[index], CONNECT_TIMEOUT).and_then(|mut connection| {
                offer_hello(&mut connection, &own, pb::Role::Master, Instant::now() + CONNECT_TIMEOUT)
                    .map(|peer| (connection, peer))
            });
            match dialed {
                Ok((connection, peer)) => {
                    let mut state = self.state.lock();
                    state.master_at = index;
                    state.cluster = state.cluster.or(peer.cluster);
                    return Ok((connection, peer.boot));
                }
                Err(WireError::Refused(reason)) => {
                    tracing::warn!(master = %masters[index], %reason, "the master refuses this mount");
                    refused = Some(FsError::Io(format!("{}: refused: {reason}", masters[index])));
                }
                Err(error) => tracing::debug!(master = %masters[index], %error, "cannot reach the master"),
            }
        }
        // A session that exists may outlive a refusal: a standby says so until it is in charge.
        match refused {
            Some(error) if session == SessionId(0) => Err(error),
            _ => Err(FsError::TryAgain("no master can be reached")),
        }
    }

    /// Opens a session at a master and makes it ours. The caller holds `recovery`, or is alone.
    fn open_at_master(&self) -> Result<Attr, FsError> {
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
        state.kept.clear();
        // This connection said hello without a session: it is not one of the pool.
        state.idle.clear();
        state.durable_seq = reply.durable_seq;
        state.seen_seq = 0;
        Ok(root)
    }

    /// Gets the session back from a master that restarted. Returns the connection, ready for use.
    fn recover(&self, mut connection: Connection, boot: BootSession) -> Result<Connection, FsError> {
        let _one_at_a_time = self
            .recovery
            .try_lock_for(ANSWER_TIMEOUT)
            .ok_or(FsError::TryAgain("the session is being got back from a restarted master"))?;
        let (kept, opens) = {
            let mut state = self.state.lock();
            if state.master_boot == boot {
                return Ok(connection);
            }
            state.is_recovering = true;
            state.idle.clear();
            let mut kept: Vec<Kept> = state.kept.values().cloned().collect();
            kept.sort_by_key(|kept| kept.replay.seq);
            (kept, open_counts(&state.opens))
        };
        tracing::info!(kept = kept.len(), opens = opens.len(), "the master restarted: reclaiming the session");
        let outcome = self.reclaim_and_replay(&mut connection, kept, opens);
        let mut state = self.state.lock();
        state.is_recovering = false;
        match outcome {
            Ok(durable_seq) => {
                state.master_boot = boot;
                state.durable_seq = durable_seq;
                state.note(0, durable_seq);
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
        kept: Vec<Kept>,
        opens: Vec<pb::OpenCount>,
    ) -> Result<u64, FsError> {
        for batch in opens.chunks(OPENS_BATCH) {
            self.ask(connection, &reclaim(batch.to_vec(), false))?;
        }
        if opens.is_empty() {
            self.ask(connection, &reclaim(Vec::new(), false))?;
        }
        for Kept { mut request, replay } in kept {
            let (number, op) = (request.number, request.body.as_ref().map_or("nothing", op_name));
            request.replay = Some(replay);
            // Opens were reclaimed already: a second one would never be released.
            if let Some(meta_request::Body::Make(make)) = &mut request.body {
                make.open = false;
            }
            match self.ask(connection, &request) {
                Ok(reply) => {
                    let mut state = self.state.lock();
                    state.seen_seq = state.seen_seq.max(reply.seq);
                    if let Some(kept) = state.kept.get_mut(&number)
                        && reply.seq > 0
                    {
                        kept.replay.seq = reply.seq;
                    }
                }
                Err(error @ (FsError::UnknownSession | FsError::TryAgain(_))) => return Err(error),
                Err(error) => {
                    tracing::error!(op, number, %error, "an acknowledged change could not be replayed: it is lost");
                    self.state.lock().kept.remove(&number);
                }
            }
        }
        Ok(self.ask(connection, &reclaim(Vec::new(), true))?.durable_seq)
    }

    /// Asks on this very connection, through `TryAgain`, for as long as a recovery may take.
    fn ask(&self, connection: &mut Connection, request: &pb::MetaRequest) -> Result<pb::MetaReply, FsError> {
        retry::run(
            Policy::Soft { ms: ANSWER_TIMEOUT.as_millis() as u64 },
            "recover the session",
            |_| {
                let reply = exchange(connection, request, Instant::now() + ANSWER_TIMEOUT, &self.metrics);
                // Not transient: after a wire error this connection is of no use.
                let reply = reply.map_err(|error| FsError::Io(error.to_string()))?;
                match reply.failure.clone() {
                    Some(failure) => Err(failure.into()),
                    None => Ok(reply),
                }
            },
            |error| self.metrics.count_retry(error),
        )
        .map_err(|error| match error {
            FsError::Io(_) => FsError::TryAgain("the master did not answer"),
            other => other,
        })
    }

    /// Opens another session in place of the one of `generation`, which the master does not know any more.
    fn renew(&self, generation: u64) -> Result<(), FsError> {
        let _one_at_a_time =
            self.recovery.try_lock_for(ANSWER_TIMEOUT).ok_or(FsError::TryAgain("another session is being opened"))?;
        let (is_done, lost, old) = {
            let state = self.state.lock();
            (state.generation != generation, state.kept.len(), state.session)
        };
        if is_done {
            return Ok(());
        }
        self.open_at_master()?;
        let (session, opens) = {
            let mut state = self.state.lock();
            state.generation += 1;
            (state.session, open_counts(&state.opens))
        };
        self.metrics.sessions_lost.inc();
        tracing::error!(
            %old, %session, changes_not_durable = lost,
            "the master ended this mount's session: data that was not written yet is lost, and reported by fsync and close"
        );
        if let Some(OnLost(act)) = self.on_lost.get() {
            act();
        }
        let (mut connection, _) = self.dial(true)?;
        for batch in opens.chunks(OPENS_BATCH) {
            self.ask(&mut connection, &reclaim(batch.to_vec(), true))?;
        }
        Ok(())
    }

    fn send_releases(&self) {
        loop {
            let batch: Vec<pb::OpenCount> = {
                let mut state = self.state.lock();
                let inodes: Vec<u64> = state.releases.keys().copied().take(OPENS_BATCH).collect();
                inodes
                    .into_iter()
                    .filter_map(|inode| state.releases.remove(&inode).map(|count| pb::OpenCount { inode, count }))
                    .collect()
            };
            if batch.is_empty() {
                return;
            }
            let body = meta_request::Body::Release(pb::Release { opens: batch });
            if let Err(error) = self.call(Caller::MOUNT, body, Effect::Reads) {
                // The counts at the master are too high until this session ends; then they are dropped.
                tracing::warn!(%error, "closed files could not be released at the master");
                return;
            }
        }
    }
}

impl State {
    fn note(&mut self, seq: u64, durable_seq: u64) {
        self.seen_seq = self.seen_seq.max(seq);
        if durable_seq > self.durable_seq || seq == 0 {
            self.durable_seq = self.durable_seq.max(durable_seq);
            let durable = self.durable_seq;
            if self.kept.first_key_value().is_some_and(|(_, kept)| kept.replay.seq <= durable) {
                self.kept.retain(|_, kept| kept.replay.seq > durable);
            }
        }
    }
}

/// Takes a number off the list of those in flight when its call ends, however it ends.
struct InFlight<'a> {
    session: &'a Session,
    number: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.number > 0 {
            self.session.state.lock().in_flight.remove(&self.number);
        }
    }
}

/// Pings, and sends the releases that have gathered, until the session is closed or dropped.
fn background(session: &std::sync::Weak<Session>) {
    let mut is_down = false;
    let mut pinged = Instant::now();
    loop {
        let Some(session) = session.upgrade() else { return };
        {
            let mut state = session.state.lock();
            if state.is_closed {
                return;
            }
            if state.releases.is_empty() {
                let left = PING_EVERY.saturating_sub(pinged.elapsed());
                session.wakeup.wait_for(&mut state, left);
            }
            if !state.releases.is_empty() && !state.is_closed {
                // A spurious early end of the wait only makes the batch smaller.
                session.wakeup.wait_for(&mut state, RELEASE_DELAY);
            }
            if state.is_closed {
                return;
            }
        }
        session.send_releases();
        if pinged.elapsed() < PING_EVERY {
            continue;
        }
        pinged = Instant::now();
        let policy = Policy::Soft { ms: PING_EVERY.as_millis() as u64 };
        let ping = meta_request::Body::Ping(pb::Ping {});
        match session.call_within(policy, Caller::MOUNT, ping, Effect::Reads) {
            Ok(_) if is_down => {
                is_down = false;
                tracing::info!("the master answers again");
            }
            Err(error) if !is_down => {
                is_down = true;
                tracing::warn!(%error, "the master does not answer");
            }
            _ => {}
        }
    }
}

fn exchange(
    connection: &mut Connection,
    request: &pb::MetaRequest,
    by: Instant,
    metrics: &Metrics,
) -> Result<pb::MetaReply, WireError> {
    metrics.master_round_trips.inc();
    let (reply, _) = connection.call(FrameKind::MetaRequest, FrameKind::MetaReply, request, &[], Some(by))?;
    Ok(reply)
}

fn reclaim(opens: Vec<pb::OpenCount>, last: bool) -> pb::MetaRequest {
    let body = meta_request::Body::SessionReclaim(pb::SessionReclaim { opens, last });
    pb::MetaRequest { body: Some(body), ..Default::default() }
}

fn open_counts(opens: &BTreeMap<u64, u32>) -> Vec<pb::OpenCount> {
    opens.iter().map(|(&inode, &count)| pb::OpenCount { inode, count }).collect()
}

fn replay_of(reply: &pb::MetaReply) -> pb::Replay {
    let (inode, chunks) = match &reply.body {
        Some(meta_reply::Body::Entry(pb::Entry { attr: Some(attr), .. }))
        | Some(meta_reply::Body::Opened(pb::Opened { attr: Some(attr), .. })) => (attr.inode, Vec::new()),
        Some(meta_reply::Body::Chunks(chunks)) => (0, chunks.locations.iter().map(|at| at.chunk).collect()),
        _ => (0, Vec::new()),
    };
    pb::Replay { seq: reply.seq, time: reply.time, inode, chunks }
}

fn op_name(body: &meta_request::Body) -> &'static str {
    use meta_request::Body;
    match body {
        Body::SessionOpen(_) => "session_open",
        Body::SessionReclaim(_) => "session_reclaim",
        Body::SessionClose(_) => "session_close",
        Body::Ping(_) => "ping",
        Body::Sync(_) => "sync",
        Body::Lookup(_) => "lookup",
        Body::GetAttr(_) => "get_attr",
        Body::SetAttr(_) => "set_attr",
        Body::Make(_) => "make",
        Body::Unlink(_) => "unlink",
        Body::Rmdir(_) => "rmdir",
        Body::Rename(_) => "rename",
        Body::Link(_) => "link",
        Body::ReadLink(_) => "read_link",
        Body::Open(_) => "open",
        Body::Release(_) => "release",
        Body::ReadDir(_) => "read_dir",
        Body::StatFs(_) => "stat_fs",
        Body::SetXattr(_) => "set_xattr",
        Body::GetXattr(_) => "get_xattr",
        Body::ListXattr(_) => "list_xattr",
        Body::RemoveXattr(_) => "remove_xattr",
        Body::GetChunks(_) => "get_chunks",
        Body::AllocateChunks(_) => "allocate_chunks",
        Body::CommitWrite(_) => "commit_write",
        Body::GetInline(_) => "get_inline",
        Body::PunchChunks(_) => "punch_chunks",
        Body::ReportBadReplica(_) => "report_bad_replica",
    }
}
