//! The state that only one thread at a time touches, and what a request does to it.
//!
//! # Invariants
//!
//! - An operation's changes go into the batch whole or not at all, with the reply that a retry will get.
//! - Nobody is told of a change before its batch is committed; the executor sees to that.
//! - After the first error of the store nothing is served any more.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use dfs_proto::env::Clock;
use dfs_proto::planted::{self, Bug};
use dfs_proto::{BootSession, ChunkId, FsError, InodeId, MonoMs, NodeId, Seq, SessionId, UnixNanos};
use parking_lot::{Mutex, RwLock};

use super::Observer;
use super::control::Control;
use super::durability::Durability;
use super::records::{CACHED_RECORDS_MAX, RecordStore};
use crate::core::care::{Counters, CutIntent};
use crate::core::ids::FreshIds;
use crate::core::key::{Key, Range};
use crate::core::node_table::{NodeTable, Space};
use crate::core::op;
use crate::core::opens::Opens;
use crate::core::orders::Orders;
use crate::core::outcome::{Body, OpenChange, Outcome};
use crate::core::record::{IdMarks, Node, Record, StoredCounters};
use crate::core::request::{Call, Replay, Request};
use crate::core::session::{KeptReply, REPLIES_MAX, ReclaimWindow, Reply, Sessions};
use crate::core::standing::Standing;
use crate::core::unsettled::Unsettled;
use crate::core::view::{Cluster, Stop, View};
use crate::store::{MetaStore, Snapshot, StoreError};

/// Positions that a restart leaves free above the last one found: more than can have been told to mounts and lost.
const SEQ_GAP_AT_RESTART: u64 = 1 << 20;
/// Times an operation may ask for more records. A path that is deep asks once a level.
const ROUNDS_MAX: usize = 1_000_000;

/// What a call gets.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The reply, or why there is none.
    pub result: Result<Reply, FsError>,
    /// It must not be given before everything up to here is durable.
    pub durable_first: Seq,
    /// What the session may be told is durable, at most; `None`: everything that is.
    pub durable_max: Option<Seq>,
    /// What to finish before the caller is told.
    pub cut: Option<CutIntent>,
    /// For each chunk of the reply, the run of its primary that it may be granted to; 0: none.
    pub boots: Vec<BootSession>,
}

impl Answer {
    /// Returns the answer to a call that failed.
    pub fn failed(error: FsError) -> Self {
        Self { result: Err(error), durable_first: Seq(0), durable_max: None, cut: None, boots: Vec::new() }
    }
}

/// Times by which the state goes, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long replicas of dropped chunks are kept.
    pub reclaim_delay_ms: u64,
    /// Lease of a mount's session.
    pub session_ms: u64,
    /// How long a restart waits for the sessions it knew.
    pub reclaim_window_ms: u64,
    /// A random number.
    pub seed: u64,
}

/// The state that only one thread at a time touches.
pub struct MasterState {
    pub(crate) records: RecordStore,
    pub(crate) sessions: Sessions,
    pub(crate) opens: Opens,
    pub(crate) counters: Counters,
    /// Orphans that nobody has open, to be purged.
    pub(crate) purgeable: BTreeSet<InodeId>,
    pub(crate) nodes_on_record: BTreeMap<[u8; 16], NodeId>,
    /// Where each reclaim entry that was handed out stands.
    pub(crate) reclaims_given: BTreeMap<ChunkId, UnixNanos>,
    pub(crate) reclaim_cursor: Option<Key>,
    /// Sessions that ended without being given back, and may still write.
    pub(super) fencing: BTreeSet<SessionId>,
    /// When it was last looked for sessions whose lease ran out.
    pub(crate) sessions_checked: Option<MonoMs>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(super) control: Control,
    durability: Arc<Durability>,
    observer: Arc<dyn Observer>,
    unsettled: Unsettled,
    ids: FreshIds,
    /// Marks that are on their way to stable media, and the position at which they are.
    reserving: Option<(IdMarks, Seq)>,
    last_seq: Seq,
    /// Where the log stood when this run began: what it found.
    recovered: Seq,
    window: Option<ReclaimWindow>,
    requests_in_batch: usize,
}

/// The chunk servers as of one moment.
struct ClusterNow<'a> {
    nodes: &'a RwLock<NodeTable>,
    now: MonoMs,
}

impl Cluster for ClusterNow<'_> {
    fn place(&self, seed: u64, replicas: usize) -> Result<Vec<NodeId>, FsError> {
        self.nodes.read().place(seed, replicas, self.now)
    }

    fn space(&self) -> Space {
        self.nodes.read().space(self.now)
    }

    fn standing(&self, node: NodeId) -> Standing {
        self.nodes.read().standing(node, self.now)
    }
}

impl MasterState {
    /// Reads what there is in `store`, makes what a new file system needs, and reserves ids. Fills `nodes` with the
    /// chunk servers on record.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn load(
        store: Arc<dyn MetaStore>,
        nodes: Arc<RwLock<NodeTable>>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        // What was found may be in the kernel's memory only: it counts as durable once it is.
        store.sync()?;
        let durability = Arc::new(Durability::new(store.last_seq()));
        let records = RecordStore::new(store, CACHED_RECORDS_MAX);
        let recovered = records.store().last_seq();
        let marks = match records.read(&Key::Ids)? {
            Some(Record::Ids(marks)) => marks,
            Some(other) => return Err(StoreError::Corrupt(format!("id marks: {other:?}"))),
            None => IdMarks::default(),
        };
        let counters = match records.read(&Key::Counters)? {
            Some(Record::Counters(stored)) => stored.counters,
            Some(other) => return Err(StoreError::Corrupt(format!("counters: {other:?}"))),
            None => Counters::default(),
        };
        let now = clock.mono();
        let control =
            Control { nodes, orders: Arc::new(Mutex::new(Orders::new(settings.seed))), inbox: Arc::default() };
        let mut owner = Self {
            records,
            sessions: Sessions::default(),
            opens: Opens::default(),
            counters,
            purgeable: BTreeSet::new(),
            nodes_on_record: BTreeMap::new(),
            reclaims_given: BTreeMap::new(),
            reclaim_cursor: None,
            fencing: BTreeSet::new(),
            sessions_checked: None,
            settings,
            clock,
            control,
            durability,
            observer,
            unsettled: Unsettled::default(),
            ids: FreshIds::after(marks),
            reserving: None,
            last_seq: Seq(0),
            recovered,
            window: None,
            requests_in_batch: 0,
        };
        owner.last_seq = owner.begun_at();
        owner.control.nodes.write().begin(now);
        owner.load_sessions(now)?;
        for (key, record) in owner.records.read_range(&Range::nodes())? {
            if let (Key::Node(id), Record::Node(node)) = (key, record) {
                owner.nodes_on_record.insert(node.facts.server_id, id);
                if !node.is_removed() {
                    owner.control.nodes.write().note_record(id, &node);
                }
            }
        }
        for (key, _) in owner.records.read_range(&Range::orphans())? {
            if let Key::Orphan(id) = key {
                owner.purgeable.insert(id);
            }
        }
        owner.reserve_ids_now()?;
        let wall = owner.clock.wall();
        owner.internal(|view| op::make_root(view, wall)).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        owner.sync()?;
        Ok(owner)
    }

    /// Returns the record of node `id`.
    ///
    /// # Errors
    ///
    /// [`FsError::Io`].
    pub(super) fn node_record(&mut self, id: NodeId) -> Result<Option<Arc<Node>>, FsError> {
        let mut found = None;
        self.internal(|view| {
            found = view.find(&Key::Node(id))?;
            Ok(Outcome::new(view))
        })?;
        Ok(found.and_then(|record| match record {
            Record::Node(node) => Some(node),
            _ => None,
        }))
    }

    fn load_sessions(&mut self, now: MonoMs) -> Result<(), StoreError> {
        for (key, record) in self.records.read_range(&Range::sessions())? {
            match (key, record) {
                (Key::Session(id), Record::Session(session)) if session.is_fenced => {
                    self.control.nodes.write().fences_mut().add(id, session.seq, now);
                }
                (Key::Session(id), Record::Session(session)) => self.sessions.insert(id, session, now, true),
                _ => {}
            }
        }
        for (key, record) in self.records.read_range(&Range::replies())? {
            if let (Key::Reply(id, number), Record::Reply(saved)) = (key, record)
                && let Some(session) = self.sessions.get_mut(id)
            {
                let reply = Reply::from(&*saved);
                session.replies.insert(number, KeptReply { reply, is_stored: true, is_from_before: true });
            }
        }
        let expected: BTreeSet<SessionId> = self.sessions.iter().map(|(id, _)| id).collect();
        if !expected.is_empty() {
            self.window = Some(ReclaimWindow::new(now.plus(self.settings.reclaim_window_ms), expected));
        }
        Ok(())
    }

    /// Returns how far the log is on stable media.
    pub fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    /// Returns the chunk servers.
    pub fn nodes(&self) -> &Arc<RwLock<NodeTable>> {
        &self.control.nodes
    }

    /// Returns the highest position that an earlier run can have told anybody.
    pub(crate) fn begun_at(&self) -> Seq {
        match self.recovered {
            Seq(0) => Seq(0),
            Seq(recovered) => Seq(recovered + SEQ_GAP_AT_RESTART),
        }
    }

    /// Returns the position of the last change.
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// Returns whether a restarted master still waits for its sessions.
    pub(crate) fn is_in_reclaim_window(&mut self) -> bool {
        if let Some(window) = &self.window
            && window.is_over(self.clock.mono())
        {
            self.window = None;
            tracing::info!("new work is taken again");
        }
        self.window.is_some()
    }

    /// Runs one call. Its changes are in the batch, to be committed before the answer is given.
    pub fn perform(&mut self, call: &Call) -> Answer {
        self.requests_in_batch += 1;
        self.settle();
        let answer = match &call.request {
            Request::SessionOpen(request) => self.open_session(call, request),
            _ => self.perform_in_session(call),
        };
        let mut answer = answer;
        self.prepare_chunks(&mut answer);
        self.records.end_of_operation();
        answer
    }

    fn perform_in_session(&mut self, call: &Call) -> Answer {
        let mono = self.clock.mono();
        let is_window = self.is_in_reclaim_window();
        let Some(session) = self.sessions.get_mut(call.session) else {
            return Answer::failed(FsError::UnknownSession);
        };
        session.last_seen = mono;
        let is_returning = session.is_returning;
        for number in session.acknowledge(call.acked_below) {
            self.records.forget(Key::Reply(call.session, number));
        }
        // A session that comes back is not told that more is durable than what was found: it would forget what it has
        // yet to replay.
        let durable_max = is_returning.then_some(self.recovered);
        let is_admitted = match &call.request {
            Request::SessionReclaim { .. } | Request::SessionClose | Request::Ping => true,
            // What it has yet to replay is not in the log.
            Request::Sync => !is_window && !is_returning,
            _ => !is_window || (is_returning && call.replay.is_some()),
        };
        if !is_admitted {
            return Answer { durable_max, ..Answer::failed(FsError::TryAgain("waiting for sessions to come back")) };
        }
        let answer = match &call.request {
            Request::SessionClose => self.close_session(call.session),
            _ => self.perform_once(call),
        };
        if let Request::SessionReclaim { is_last: true, .. } = call.request
            && answer.result.is_ok()
        {
            self.is_back(call.session);
        }
        Answer { durable_max, ..answer }
    }

    pub(super) fn is_back(&mut self, session: SessionId) {
        if let Some(state) = self.sessions.get_mut(session) {
            state.is_returning = false;
        }
        if let Some(window) = &mut self.window {
            window.is_back(session);
        }
    }

    /// Answers a call that was answered before as it was then; runs any other.
    fn perform_once(&mut self, call: &Call) -> Answer {
        let session = self.sessions.get_mut(call.session).expect("the session was just found");
        if call.number > 0
            && !planted::is(Bug::NoReplyCache)
            && let Some(kept) = session.replies.get_mut(&call.number)
        {
            let reply = kept.reply.clone();
            // If the reply was seen, the mount names the open when it reclaims; if not, it learns of it only now.
            let opens_again = kept.is_from_before && call.replay.is_none();
            kept.is_from_before = false;
            if let Body::Opened { inode, .. } = &reply.body
                && opens_again
            {
                self.opens.add(call.session, inode.id, 1);
            }
            return Answer {
                result: Ok(reply),
                durable_first: Seq(0),
                durable_max: None,
                cut: None,
                boots: Vec::new(),
            };
        }
        if call.number > 0 && session.replies.len() >= REPLIES_MAX {
            return Answer::failed(FsError::TryAgain("too many replies are not acknowledged"));
        }
        let is_read_only = session.record.is_read_only;
        let now = call.replay.as_ref().map_or_else(|| self.clock.wall(), |replay| replay.time);
        let (result, seen) = self.run(call.session, call.replay.as_ref(), |view| op::run(view, now, call));
        match result {
            Ok(outcome) if is_read_only && outcome.is_change() && !matches!(call.request, Request::Release { .. }) => {
                Answer::failed(FsError::ReadOnly)
            }
            Ok(outcome) => {
                let durable_first = outcome.durable_first.max(seen);
                let cut = outcome.cut.clone();
                let reply = self.apply(call, outcome, now);
                Answer { durable_first, cut, ..Answer::of(reply) }
            }
            Err(error) => Answer { durable_first: seen, ..Answer::failed(error) },
        }
    }

    /// Calls an operation until it has all it asks for. Returns also the last position it showed that others wait for.
    pub(super) fn run(
        &mut self,
        session: SessionId,
        replay: Option<&Replay>,
        mut operation: impl FnMut(&View<'_>) -> Result<Outcome, Stop>,
    ) -> (Result<Outcome, FsError>, Seq) {
        for _ in 0..ROUNDS_MAX {
            let cluster = ClusterNow { nodes: &self.control.nodes, now: self.clock.mono() };
            let view = View::new(
                &self.records,
                session,
                Seq(self.last_seq.0 + 1),
                &self.opens,
                &cluster,
                &self.unsettled,
                self.ids,
                i64::try_from(self.settings.reclaim_delay_ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX),
                self.counters,
                replay,
            );
            // Nothing has changed before an operation is at its end: a bug in one ends that call, not the service.
            let ran = std::panic::catch_unwind(AssertUnwindSafe(|| operation(&view)));
            let stop = match ran.unwrap_or_else(|panic| Err(broken(&*panic))) {
                Ok(outcome) => {
                    let seen = view.seen();
                    self.ids = view.ids();
                    return (Ok(outcome), seen);
                }
                Err(Stop::Fail(error)) => return (Err(error), view.seen()),
                Err(stop) => stop,
            };
            if let Err(error) = self.provide(stop) {
                self.durability.fail(&error);
                return (Err(FsError::from(&error)), Seq(0));
            }
        }
        (Err(FsError::Io("an operation does not come to an end".into())), Seq(0))
    }

    fn provide(&mut self, stop: Stop) -> Result<(), StoreError> {
        match stop {
            Stop::Read(keys) => self.records.fetch(keys),
            Stop::Scan(range) => {
                self.commit()?;
                self.records.fetch_range(range)
            }
            Stop::Ids => self.reserve_ids_now(),
            Stop::Fail(_) => Ok(()),
        }
    }

    /// Puts what an operation decided into the batch.
    pub(super) fn apply(&mut self, call: &Call, outcome: Outcome, now: UnixNanos) -> Reply {
        let is_change = outcome.is_change();
        // A replay's opens are among those that the mount reclaims.
        let counts_opens = call.replay.is_none();
        let opens_something = !outcome.opens.is_empty();
        let body = self.apply_outcome(call.session, outcome, counts_opens);
        let seq = if is_change { self.last_seq } else { Seq(0) };
        let reply = Reply { seq, time: now, body };
        if call.number > 0 && (is_change || opens_something) {
            let saved = if is_change { reply.to_save() } else { None };
            let is_stored = saved.is_some();
            if let Some(saved) = saved {
                self.records.write(Key::Reply(call.session, call.number), Some(Record::Reply(saved.into())), seq);
            }
            if is_stored || !is_change {
                let session = self.sessions.get_mut(call.session).expect("the session was just found");
                let kept = KeptReply { reply: reply.clone(), is_stored, is_from_before: false };
                session.replies.insert(call.number, kept);
            }
        }
        reply
    }

    fn apply_outcome(&mut self, session: SessionId, mut outcome: Outcome, counts_opens: bool) -> Body {
        let body = std::mem::replace(&mut outcome.reply, Body::Done);
        for change in &outcome.opens {
            match *change {
                OpenChange::Open { inode, count } if counts_opens => self.opens.add(session, inode, count),
                OpenChange::Open { .. } => {}
                OpenChange::Release { inode, count } => {
                    self.opens.release(session, inode, count);
                }
            }
        }
        self.purgeable.extend(outcome.purgeable.iter().copied());
        if outcome.is_change() {
            let seq = outcome.seq();
            self.last_seq = seq;
            self.unsettled.add(seq, session);
            let totals = outcome.totals;
            for (key, record) in outcome.into_writes() {
                self.records.write(key, record, seq);
            }
            if totals != Default::default() {
                totals.apply(&mut self.counters);
                let stored = StoredCounters { counters: self.counters, seq };
                self.records.write(Key::Counters, Some(Record::Counters(stored)), seq);
            }
            self.reserve_ids_in_good_time();
        }
        body
    }

    /// Runs an operation of the master itself. It is called again for each record it lacks: what it hands out beside the
    /// outcome counts only as of the last call.
    ///
    /// # Errors
    ///
    /// What the operation fails with.
    pub(crate) fn internal(
        &mut self,
        operation: impl FnMut(&View<'_>) -> Result<Outcome, Stop>,
    ) -> Result<Applied, FsError> {
        self.settle();
        let (result, _) = self.run(SessionId(0), None, operation);
        self.records.end_of_operation();
        let outcome = result?;
        if let Some(lost) = outcome.ends_run {
            let now = self.clock.mono();
            if !self.control.nodes.write().end_run(lost, now) {
                return Err(FsError::TryAgain("a server that seemed lost is there again"));
            }
        }
        let applied = Applied { durable_first: outcome.durable_first, totals: outcome.totals };
        self.apply_outcome(SessionId(0), outcome, true);
        Ok(applied)
    }

    /// Ends all service, and returns what callers are told.
    pub(crate) fn stop_serving(&self, error: &StoreError) -> FsError {
        self.durability.fail(error);
        FsError::from(error)
    }

    fn settle(&mut self) {
        let durable = self.durability.durable();
        self.unsettled.settle(durable);
        if let Some((marks, seq)) = self.reserving
            && durable >= seq
        {
            self.ids.reserved(&marks);
            self.reserving = None;
        }
    }

    /// Sends marks on their way while there are still ids to use.
    fn reserve_ids_in_good_time(&mut self) {
        if self.reserving.is_none() && self.ids.is_low() {
            self.write_marks();
        }
    }

    fn write_marks(&mut self) {
        let marks = self.ids.reservation();
        self.last_seq = Seq(self.last_seq.0 + 1);
        let seq = self.last_seq;
        self.records.write(Key::Ids, Some(Record::Ids(IdMarks { seq, ..marks })), seq);
        self.reserving = Some((marks, seq));
    }

    fn reserve_ids_now(&mut self) -> Result<(), StoreError> {
        if self.reserving.is_none() {
            self.write_marks();
        }
        self.sync()?;
        self.settle();
        Ok(())
    }

    /// Commits, and returns all records as they are then, to be read while others go on.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.commit()?;
        self.records.store().snapshot()
    }

    /// Commits the batch that was made, if there is one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if let Some((seq, took)) = self.records.commit()? {
            self.durability.committed_up_to(seq);
            self.observer.committed(self.requests_in_batch, took);
        }
        self.requests_in_batch = 0;
        Ok(())
    }

    /// Commits, and puts everything committed so far on stable media.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.commit()?;
        let seq = self.records.store().sync()?;
        self.durability.durable_up_to(seq);
        Ok(())
    }
}

/// Returns what the caller of an operation that panicked is told.
fn broken(panic: &(dyn std::any::Any + Send)) -> Stop {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
    tracing::error!(what, "a bug: an operation panicked, its call fails");
    FsError::Io(format!("a bug in the master: {what}")).into()
}

/// What an operation of the master itself did.
pub struct Applied {
    /// It must be durable up to here before anybody acts on it; 0 if that does not matter.
    pub durable_first: Seq,
    /// How the totals changed.
    pub totals: crate::core::outcome::Delta,
}
