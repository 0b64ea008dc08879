//! One replica that is open: its core, and the calls that are under way.
//!
//! Every call has a thread of its own ([`super::call`]). It steps the core under the lock of the replica and then carries
//! out what the core wants done for its call. What the core wants done for another call goes into the mailbox of that
//! call, and its thread is woken.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use dfs_proto::{FsError, Version};
use parking_lot::Mutex;

use super::waker::Waker;
use crate::core::message::{CallId, Context, Effect, Event, Input, Sealed};
use crate::core::replica::ReplicaCore;
use crate::store::replica_store::OpenReplica;

/// One open replica.
pub(super) struct Replica {
    pub open: OpenReplica,
    /// No other lock is taken under it, but that of the node lease.
    state: Mutex<State>,
}

struct State {
    core: ReplicaCore,
    /// The calls under way.
    calls: BTreeMap<CallId, Mailbox>,
    /// The grant that was checked last.
    verified: Option<Sealed>,
    end: Option<End>,
    /// A step is under way. If it still is when the lock is free, the step panicked.
    is_stepping: bool,
}

/// Why a replica serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Deleted on order.
    Deleted,
    /// To be opened anew.
    Reopened,
}

impl End {
    /// Returns what callers are told.
    pub fn error(self) -> FsError {
        match self {
            Self::Deleted => FsError::Stale("the replica was deleted"),
            Self::Reopened => FsError::TryAgain("the replica is being opened anew"),
        }
    }
}

#[derive(Default)]
struct Mailbox {
    effects: Vec<Effect>,
    waker: Option<Arc<Waker>>,
    is_asleep: bool,
}

/// What a step of the core has left for others than the call that made it.
#[derive(Default)]
pub(super) struct Delivery {
    wake: Vec<Arc<Waker>>,
    /// Effects of calls that have no thread any more.
    pub strays: BTreeMap<CallId, VecDeque<Effect>>,
    /// What happened.
    pub events: Vec<Event>,
}

impl Delivery {
    /// Wakes the threads that have something to do. Not under the lock: they need it.
    pub fn wake(&mut self) {
        self.wake.drain(..).for_each(|waker| waker.wake());
    }
}

impl Replica {
    pub fn new(open: OpenReplica, core: ReplicaCore) -> Self {
        let state = State { core, calls: BTreeMap::new(), verified: None, end: None, is_stepping: false };
        Self { open, state: Mutex::new(state) }
    }

    /// Returns the grant that was checked last, if it is the one in `bytes`.
    pub fn verified(&self, bytes: &[u8], version: Version) -> Option<Sealed> {
        let state = self.state.lock();
        state.verified.as_ref().filter(|known| known.bytes == *bytes && known.grant.version == version).cloned()
    }

    /// Notes a grant that was checked, unless it is older than the replica.
    pub fn note_verified(&self, sealed: &Sealed) {
        let mut state = self.state.lock();
        if sealed.grant.version >= state.core.version() {
            state.verified = Some(sealed.clone());
        }
    }

    /// Registers a call of the present thread.
    ///
    /// # Errors
    ///
    /// [`End::error`].
    pub fn open_call(&self, call: CallId, waker: Option<Arc<Waker>>) -> Result<(), FsError> {
        let mut state = self.state.lock();
        if let Some(end) = state.check() {
            return Err(end.error());
        }
        state.calls.insert(call, Mailbox { waker, ..Mailbox::default() });
        Ok(())
    }

    /// Hands a call over to the thread of `waker`.
    pub fn move_call(&self, call: CallId, waker: Option<Arc<Waker>>) {
        self.state.lock().calls.entry(call).or_default().waker = waker;
    }

    /// Ends a call.
    ///
    /// # Errors
    ///
    /// [`End::error`] if the replica ended before it: what the call has to say is void.
    pub fn close_call(&self, call: CallId) -> Result<(), FsError> {
        let mut state = self.state.lock();
        state.calls.remove(&call);
        state.check().map_or(Ok(()), |end| Err(end.error()))
    }

    /// Tells the core `input`. What it wants done for `call` is added to `todo`, behind what others left for it.
    ///
    /// # Errors
    ///
    /// [`End::error`]; then `input` was not told.
    pub fn step(
        &self,
        context: impl FnOnce() -> Context,
        input: Input,
        call: CallId,
        todo: &mut VecDeque<Effect>,
        scratch: &mut Vec<Effect>,
    ) -> Result<Delivery, FsError> {
        let mut delivery = Delivery::default();
        let mut state = self.state.lock();
        if let Some(end) = state.check() {
            return Err(end.error());
        }
        // Only now: waiting for the lock takes time, and what a read has found is current if the lease runs after that.
        let context = context();
        state.is_stepping = true;
        state.core.step(&context, input, scratch);
        state.is_stepping = false;
        if let Some(mailbox) = state.calls.get_mut(&call) {
            todo.extend(mailbox.effects.drain(..));
        }
        for effect in scratch.drain(..) {
            let of = match &effect {
                Effect::Note(event) => {
                    delivery.events.push(event.clone());
                    continue;
                }
                Effect::Send { call, .. }
                | Effect::Disk { call, .. }
                | Effect::AskMaster { call, .. }
                | Effect::Expire { call, .. }
                | Effect::Reply { call, .. } => *call,
            };
            if of == call {
                todo.push_back(effect);
                continue;
            }
            match state.calls.get_mut(&of) {
                Some(mailbox) => {
                    mailbox.effects.push(effect);
                    if std::mem::take(&mut mailbox.is_asleep) {
                        delivery.wake.extend(mailbox.waker.clone());
                    }
                }
                None => delivery.strays.entry(of).or_default().push_back(effect),
            }
        }
        Ok(delivery)
    }

    /// Takes what others left for `call` into `todo`. If that is nothing, the thread is woken as soon as there is
    /// something, and may sleep.
    ///
    /// # Errors
    ///
    /// [`End::error`].
    pub fn collect(&self, call: CallId, todo: &mut VecDeque<Effect>) -> Result<(), FsError> {
        let mut state = self.state.lock();
        if let Some(end) = state.check() {
            return Err(end.error());
        }
        if let Some(mailbox) = state.calls.get_mut(&call) {
            todo.extend(mailbox.effects.drain(..));
            mailbox.is_asleep = todo.is_empty();
        }
        Ok(())
    }

    /// Ends the replica if `may_end` says so of the version it goes by. Whoever waits in a call is told.
    pub fn end(&self, end: End, may_end: impl FnOnce(Version) -> bool) -> bool {
        let mut state = self.state.lock();
        if !may_end(state.core.version()) {
            return false;
        }
        state.end.get_or_insert(end);
        state.wake_all();
        true
    }

    /// Returns whether no call is under way.
    pub fn is_deserted(&self) -> bool {
        self.state.lock().calls.is_empty()
    }

    /// Returns whether it can be closed.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.calls.is_empty() && state.core.is_idle()
    }

    /// Checks that it still serves.
    ///
    /// # Errors
    ///
    /// [`End::error`].
    pub fn check(&self) -> Result<(), FsError> {
        self.state.lock().check().map_or(Ok(()), |end| Err(end.error()))
    }
}

impl State {
    /// Returns why the replica serves no more, if so.
    fn check(&mut self) -> Option<End> {
        if self.is_stepping && self.end.is_none() {
            tracing::error!("a step of a replica panicked: it is opened anew");
            self.end = Some(End::Reopened);
            self.wake_all();
        }
        self.end
    }

    fn wake_all(&self) {
        self.calls.values().filter_map(|mailbox| mailbox.waker.as_ref()).for_each(|waker| waker.wake());
    }
}
