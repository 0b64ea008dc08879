//! Where a call is carried out: on the worker that took it, or on a thread that may wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dfs_proto::FsError;
use fuser::{
    Errno, Notifier, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::adapter::Adapter;
use super::gate::Gate;
use super::ops::{Op, OpMetrics, WaitsFor};
use super::wait_pools::WaitPools;
use crate::fs::FileSystem;

/// What all threads that carry calls out share.
pub(super) struct Shared {
    pub(super) fs: Arc<FileSystem>,
    pub(super) pools: WaitPools,
    pub(super) gate: Gate,
    pub(super) ops: OpMetrics,
    /// There once the session is; the kernel sends nothing before that which needs it.
    pub(super) notifier: OnceLock<Notifier>,
}

/// A reply that can also be an error.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}
refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

impl Adapter {
    /// Carries a call out that may wait for the network, here if the gate is open, else on a pool.
    pub(super) fn serve<T, R: Refuse>(
        &self,
        op: Op,
        reply: R,
        call: impl FnOnce(&FileSystem) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(&Shared, R, T) + Send + 'static,
    ) {
        self.serve_waiting(op, op.waits_for(), reply, call, answer);
    }

    /// As [`Self::serve`], for a call that waits for something else than most of its kind.
    pub(super) fn serve_waiting<T, R: Refuse>(
        &self,
        op: Op,
        waits_for: WaitsFor,
        reply: R,
        call: impl FnOnce(&FileSystem) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(&Shared, R, T) + Send + 'static,
    ) {
        let begun = Instant::now();
        self.run(waits_for, move |shared| shared.carry_out(op, begun, reply, |shared, _| call(&shared.fs), answer));
    }

    /// Carries a call out that waits for nobody.
    pub(super) fn serve_at_once<T, R: Refuse>(
        &self,
        op: Op,
        reply: R,
        call: impl FnOnce(&FileSystem) -> Result<T, FsError>,
        answer: impl FnOnce(&Shared, R, T),
    ) {
        self.shared.carry_out(op, Instant::now(), reply, |shared, _| call(&shared.fs), answer);
    }

    /// Carries out a listing, whose reply is filled in by the call, entry by entry: at once if `is_ready`.
    pub(super) fn list<R: Refuse>(
        &self,
        op: Op,
        is_ready: bool,
        reply: R,
        fill: impl FnOnce(&Shared, &mut R) -> Result<(), FsError> + Send + 'static,
        ok: fn(R),
    ) {
        let begun = Instant::now();
        let job = move |shared: &Shared| shared.carry_out(op, begun, reply, fill, |_, reply, ()| ok(reply));
        if is_ready { job(&self.shared) } else { self.run(op.waits_for(), job) }
    }

    /// Runs a job here if the gate is open, else on the pool of those that wait for the same.
    fn run(&self, waits_for: WaitsFor, job: impl FnOnce(&Shared) + Send + 'static) {
        if let Some(_pass) = self.shared.gate.enter() {
            job(&self.shared);
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.shared.pools.of(waits_for).spawn(move || job(&shared));
    }
}

impl Shared {
    /// Carries a call out on this thread, counts it, and answers. The call is lent the reply, to fill it in on the way.
    pub(super) fn carry_out<T, R: Refuse>(
        &self,
        op: Op,
        begun: Instant,
        mut reply: R,
        call: impl FnOnce(&Self, &mut R) -> Result<T, FsError>,
        answer: impl FnOnce(&Self, R, T),
    ) {
        // A worker that dies of one request would leave fewer for all others, and one day none.
        let result = catch_unwind(AssertUnwindSafe(|| call(self, &mut reply))).unwrap_or_else(|_| {
            tracing::error!(?op, "a bug: the call panicked; it fails with EIO");
            Err(FsError::Io("a bug in the mount".into()))
        });
        match result {
            Ok(value) => {
                // Counted before it is answered: who asks for the metrics after the call sees the call.
                self.ops.count(op, begun, None);
                answer(self, reply, value);
            }
            Err(error) => {
                let errno = error.errno();
                self.ops.count(op, begun, Some(errno));
                if errno == libc::EIO {
                    tracing::warn!(?op, %error, "a call fails with EIO");
                }
                reply.refuse(Errno::from_i32(errno));
            }
        }
    }
}
