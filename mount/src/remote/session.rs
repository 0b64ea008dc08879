//! The session with the master: requests that happen once, whatever breaks on the way.
//!
//! ```text
//!   call ──▶ number ──▶ connection of the pool ──▶ reply ──▶ kept until durable ──▶ forgotten
//!              ▲            │ broken, silent, TryAgain
//!              └────────────┘ same number, until the policy's deadline
//!
//!   new boot session in the hello: reclaim(opens) ─▶ replay(in the ledger's order) ─▶ reclaim(last) ─▶ goes on
//!   UnknownSession:                open another session, generation + 1, kept requests are lost
//! ```
//!
//! `ledger` has the requests and their order, `holds` the open files, `recovery` what a restarted master is told.
//!
//! # Requests whose outcome is not known
//!
//! The connection broke, or nothing came in time. A request with a number is repeated: the master answers from its
//! record. Without a number:
//!
//! | | | because |
//! |---|---|---|
//! | look-ups, listings, `Sync`, `Ping`, `SessionReclaim` | repeated | the second one changes nothing |
//! | `Open` | repeated | counted twice, the file stays open until the session ends; not counted, it could be freed in use |
//! | `Release` | never repeated | the other way round |
//! | `SessionOpen` | repeated | the first session ends by itself |
//! | `SessionClose` | repeated | `UnknownSession` then means that it is done |
//!
//! # Invariants
//!
//! - A change whose reply was seen is either durable at the master or in the ledger and replayed after a restart.
//! - No lock is held during a call; `recovery` is taken before `state`.

mod holds;
mod ledger;
mod recovery;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dfs_proto::env::random_u64;
use dfs_proto::wire::pb::{self, meta_reply, meta_request};
use dfs_proto::wire::{Connection, FrameKind, Identity, WireError, connect, offer_hello, op_name};
use dfs_proto::{BootSession, ClusterId, FsError, InodeId, NodeId, Seq, SessionId, UnixNanos};
use parking_lot::{Condvar, Mutex};

use self::holds::Holds;
use self::ledger::{Ledger, replay_of};
use super::convert::missing;
use super::retry;
use crate::core::Policy;
use crate::fs::{Attr, Caller};
use crate::metrics::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A master that is silent for so long is left, and the request repeated on a new connection, perhaps elsewhere.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections kept open while nobody uses them; with as many as there are threads nobody ever waits for one.
const IDLE_MAX: usize = 32;
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
    /// Gives the session back.
    Ends,
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

/// What is to be done when the session is lost and another one is there.
struct OnLost(Box<dyn Fn(SessionId) + Send + Sync>);

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
    /// A recovery has taken its copy of what to reclaim and replay: what the old master answers now comes too late.
    is_recovering: bool,
    /// The master that answered last, an index into the configured ones.
    master_at: usize,
    idle: Vec<Connection>,
    ledger: Ledger,
    holds: Holds,
    is_closed: bool,
    background: Option<std::thread::JoinHandle<()>>,
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

/// What becomes of a reply without failure.
enum Accepted {
    /// It counts.
    Yes,
    /// It counts, but the master has not counted the open of this inode.
    ButOpen(InodeId),
    /// It does not count, because a recovery has begun since: again.
    No,
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
            ledger: Ledger::default(),
            holds: Holds::default(),
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
        let root = retry::run(connect_policy, "open session", &session.metrics, |_| session.open_at_master())?;
        let weak = Arc::downgrade(&session);
        let background = std::thread::Builder::new()
            .name("dfs-session".into())
            .spawn(move || background(&weak))
            .map_err(|error| FsError::Io(format!("no thread for the session: {error}")))?;
        session.state.lock().background = Some(background);
        Ok((session, root))
    }

    pub(super) fn on_lost(&self, act: impl Fn(SessionId) + Send + Sync + 'static) {
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
            let ms = self.config.policy.left_ms(0).map_or(CLOSE_MS, |ms| ms.min(CLOSE_MS));
            match self.call_within(Policy::Soft { ms }, Caller::MOUNT, request, Effect::Ends) {
                // An earlier try got through, or the session had ended before.
                Err(FsError::UnknownSession) => Ok(()),
                outcome => outcome.map(drop),
            }
        });
        self.state.lock().idle.clear();
        outcome
    }

    pub(super) fn release(&self, inode: InodeId) {
        let is_first = self.state.lock().holds.released(inode.0);
        if is_first {
            self.wakeup.notify_one();
        }
    }

    pub(super) fn sync(&self) -> Result<(), FsError> {
        let seq = self.state.lock().ledger.seen_seq();
        self.sync_to(Seq(seq))
    }

    pub(super) fn sync_to(&self, seq: Seq) -> Result<(), FsError> {
        if self.state.lock().ledger.is_durable(seq.0) {
            return Ok(());
        }
        self.call(Caller::MOUNT, meta_request::Body::Sync(pb::Sync { seq: seq.0 }), Effect::Reads).map(drop)
    }

    pub(super) fn call(&self, caller: Caller, body: meta_request::Body, effect: Effect) -> Result<Answer, FsError> {
        self.call_within(self.config.policy, caller, body, effect)
    }

    pub(super) fn call_within(
        &self,
        policy: Policy,
        caller: Caller,
        body: meta_request::Body,
        effect: Effect,
    ) -> Result<Answer, FsError> {
        let op = op_name(&body);
        let mut request = pb::MetaRequest { uid: caller.uid, gid: caller.gid, body: Some(body), ..Default::default() };
        if effect.is_recorded() {
            self.begin(&mut request)?;
        }
        let _under_way = UnderWay { session: self, number: request.number };
        let mut open_again = None;
        let mut may_have_happened = false;
        let outcome = retry::run(policy, op, &self.metrics, |deadline| {
            loop {
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
                        FsError::UnknownSession if effect != Effect::Ends => {
                            self.renew(generation)?;
                            if effect == Effect::ChangesContent || effect.is_recorded() && may_have_happened {
                                return Ok(Err(FsError::SessionLost));
                            }
                        }
                        error => return Ok(Err(error)),
                    },
                    None => {
                        match self.accept(&mut request, &reply, effect, boot) {
                            Accepted::Yes => {}
                            Accepted::ButOpen(inode) => open_again = Some(inode),
                            Accepted::No => continue,
                        }
                        let time = UnixNanos(reply.time);
                        return Ok(reply.body.map(|body| Answer { body, time }).ok_or_else(|| missing("body")));
                    }
                }
            }
        });
        let answer = match outcome {
            Ok(result) => result,
            Err(FsError::TryAgain(_)) => Err(FsError::TimedOut("the master")),
            Err(error) => Err(error),
        }?;
        if let Some(inode) = open_again {
            // Counted here already, with the answer; so this one is not.
            let open = meta_request::Body::Open(pb::Open { inode: inode.0, write: false });
            self.call_within(policy, caller, open, Effect::Reads).inspect_err(|_| self.release(inode))?;
        }
        Ok(answer)
    }

    /// Enters a request into the ledger, which gives it its number.
    fn begin(&self, request: &mut pb::MetaRequest) -> Result<(), FsError> {
        if self.state.lock().ledger.begin(request).is_some() {
            return Ok(());
        }
        self.sync()?;
        // What was not trimmed by that belongs to a master that is gone: a recovery is under way.
        self.state.lock().ledger.begin(request).map(drop).ok_or(FsError::TimedOut("the master's disk"))
    }

    /// Takes in a reply without failure.
    fn accept(
        &self,
        request: &mut pb::MetaRequest,
        reply: &pb::MetaReply,
        effect: Effect,
        boot: BootSession,
    ) -> Accepted {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.master_boot != boot || state.is_recovering {
            if matches!(effect, Effect::Reads | Effect::Ends) {
                return Accepted::Yes;
            }
            // The master restarted behind this reply. If it comes too late to be replayed with the others: alone.
            if reply.seq > 0 {
                request.replay = Some(replay_of(reply));
                state.ledger.answered_too_late(request.number, reply);
            }
            return Accepted::No;
        }
        let mut was_replayed = false;
        if request.number > 0 {
            was_replayed = state.ledger.answered(request.number, reply) || request.replay.is_some();
        } else {
            state.ledger.note(reply.seq, reply.durable_seq);
            state.ledger.note_shown(request.body.as_ref(), reply.body.as_ref());
        }
        if effect.opens()
            && let Some(meta_reply::Body::Opened(pb::Opened { attr: Some(attr), .. })) = &reply.body
        {
            state.holds.opened(attr.inode);
            if was_replayed {
                // To the master, opens of replays are among those that are reclaimed. This one is not.
                return Accepted::ButOpen(InodeId(attr.inode));
            }
        }
        Accepted::Yes
    }

    /// Sends a request once and reads the reply. Returns it with the boot session of the master that gave it.
    fn attempt(
        &self,
        request: &pb::MetaRequest,
        deadline: Option<Instant>,
    ) -> Result<(pb::MetaReply, BootSession), Failed> {
        loop {
            let (mut connection, boot, is_reused) = self.take_connection(request.number).map_err(Failed::NotSent)?;
            let answer_by = Instant::now() + ANSWER_TIMEOUT;
            let by = deadline.map_or(answer_by, |at| at.clamp(Instant::now() + Duration::from_millis(50), answer_by));
            match exchange(&mut connection, request, by, &self.metrics) {
                Ok(reply) => {
                    self.give_back(connection, boot);
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

    /// Returns a connection for the request with this number (0: none), which is taken for sent from then on; the
    /// boot session of the master at its end, which knows this session; and whether it was used before.
    fn take_connection(&self, number: u64) -> Result<(Connection, BootSession, bool), FsError> {
        {
            let mut state = self.state.lock();
            if !state.is_recovering
                && let Some(connection) = state.idle.pop()
            {
                state.ledger.sent(number);
                return Ok((connection, state.master_boot, true));
            }
        }
        let (connection, boot) = self.dial(true)?;
        let is_known = self.state.lock().master_boot == boot;
        let connection = if is_known { connection } else { self.recover(connection, boot)? };
        self.state.lock().ledger.sent(number);
        Ok((connection, boot, false))
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

    /// Tells the master of releases, each once at most.
    fn send_releases(&self) {
        loop {
            let (batch, counted_by, generation) = {
                let mut state = self.state.lock();
                if state.is_recovering {
                    // Those of before it are not to be sent, those of after it not to this master.
                    return;
                }
                (state.holds.take_releases(OPENS_BATCH), state.master_boot, state.generation)
            };
            if batch.is_empty() {
                return;
            }
            let request = pb::MetaRequest {
                body: Some(meta_request::Body::Release(pb::Release { opens: batch.clone() })),
                ..Default::default()
            };
            let outcome = self.take_connection(0).map_err(Failed::NotSent).and_then(|(mut connection, boot, _)| {
                if boot != counted_by {
                    // It was told what is open, and these were not among it.
                    return Ok(());
                }
                let reply = exchange(&mut connection, &request, Instant::now() + ANSWER_TIMEOUT, &self.metrics)
                    .map_err(|error| Failed::Unanswered(error.into()))?;
                self.give_back(connection, boot);
                match reply.failure.map(FsError::from) {
                    None => Ok(()),
                    Some(error @ FsError::TryAgain(_)) => Err(Failed::NotSent(error)),
                    Some(error) => Err(Failed::Unanswered(error)),
                }
            });
            match outcome {
                Ok(()) => {}
                Err(Failed::NotSent(_)) => {
                    let mut state = self.state.lock();
                    if state.master_boot == counted_by && state.generation == generation && !state.is_recovering {
                        state.holds.put_back(batch);
                    }
                    return;
                }
                Err(Failed::Unanswered(error)) => {
                    // If the master did not get them, its counts are too high until this session ends.
                    tracing::warn!(%error, "closed files may not have been released at the master");
                    self.state.lock().idle.clear();
                    return;
                }
            }
        }
    }

    fn give_back(&self, connection: Connection, boot: BootSession) {
        let mut state = self.state.lock();
        if state.master_boot == boot && state.idle.len() < IDLE_MAX && !state.is_closed {
            state.idle.push(connection);
        }
    }
}

/// Takes a request out of the ledger when its call ends, however it ends.
struct UnderWay<'a> {
    session: &'a Session,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.number > 0 {
            self.session.state.lock().ledger.end(self.number);
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
            if !state.holds.has_releases() {
                let left = PING_EVERY.saturating_sub(pinged.elapsed());
                session.wakeup.wait_for(&mut state, left);
            }
            if state.holds.has_releases() && !state.is_closed {
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
