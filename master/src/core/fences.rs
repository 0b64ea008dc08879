//! Sessions of mounts that were lost: chunk servers refuse what still comes from them.
//!
//! ```text
//! session's lease runs out ──▶ fenced ── every server has it in force, or holds no lease ──▶ complete ──▶ forgotten
//!                                 └── told with each pulse, for an hour
//! ```
//!
//! The position of a fence is that of the session's end in the log, so it rises across restarts of the master.

use std::collections::BTreeMap;

use dfs_proto::{MonoMs, Seq, SessionId};

/// How long chunk servers are told of a fence, in milliseconds: longer than any request of a lost mount is on its way.
pub const FENCE_MS: u64 = 3_600_000;

/// The sessions that are fenced.
#[derive(Clone, Debug, Default)]
pub struct Fences {
    fenced: BTreeMap<SessionId, Fence>,
    last: Seq,
}

#[derive(Clone, Copy, Debug)]
struct Fence {
    seq: Seq,
    since: MonoMs,
}

impl Fences {
    /// Fences `session`, which ended at `seq`.
    pub fn add(&mut self, session: SessionId, seq: Seq, now: MonoMs) {
        self.fenced.insert(session, Fence { seq, since: now });
        self.last = self.last.max(seq);
    }

    /// Returns where `session` ended, if it is fenced.
    pub fn seq(&self, session: SessionId) -> Option<Seq> {
        self.fenced.get(&session).map(|fence| fence.seq)
    }

    /// Returns the position of the last fence.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Returns who is fenced.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.fenced.keys().copied().collect()
    }

    /// Returns the fences that nobody needs any more.
    pub fn expired(&self, now: MonoMs) -> Vec<SessionId> {
        let is_old = |fence: &Fence| now.since(fence.since) >= FENCE_MS;
        self.fenced.iter().filter(|(_, fence)| is_old(fence)).map(|(session, _)| *session).collect()
    }

    /// Forgets a fence.
    pub fn forget(&mut self, session: SessionId) {
        self.fenced.remove(&session);
    }
}
