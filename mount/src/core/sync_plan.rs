//! The steps of an fsync, in order.
//!
//! ```text
//!   Push ─▶ Barriers ─▶ Commit ─▶ SyncMaster ─▶ Done
//!               ▲          │ it had to push more
//!               └──────────┘
//! ```
//!
//! # Invariants
//!
//! - Size after data: the master learns of a size only once the bytes below it are on the stable media of the replicas.
//!   After a crash a file may be shorter than what was written, and never holds zeros where a size promises bytes.
//! - A step that failed ends the plan: nothing is known to be durable then, and nobody may say otherwise.

use dfs_proto::planted::{self, Bug};

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncStep {
    /// Bring what is buffered to the replicas.
    Push,
    /// Have each chunk that was written since the last sync brought to stable media, on all its replicas.
    Barriers,
    /// Tell the master of sizes, times and chunks.
    Commit,
    /// Wait until the master has that on stable media.
    SyncMaster,
    /// Nothing: all of it is durable.
    Done,
}

const STEPS: usize = 4;
const ORDER: [SyncStep; STEPS] = [SyncStep::Push, SyncStep::Barriers, SyncStep::Commit, SyncStep::SyncMaster];
const WRONG_ORDER: [SyncStep; STEPS] = [SyncStep::Commit, SyncStep::SyncMaster, SyncStep::Push, SyncStep::Barriers];

/// One fsync.
#[derive(Clone, Copy, Debug)]
pub struct SyncPlan {
    order: [SyncStep; STEPS],
    at: usize,
}

impl Default for SyncPlan {
    fn default() -> Self {
        Self { order: if planted::is(Bug::SizeBeforeData) { WRONG_ORDER } else { ORDER }, at: 0 }
    }
}

impl SyncPlan {
    /// Returns the step that is to be taken now.
    pub fn step(&self) -> SyncStep {
        self.order.get(self.at).copied().unwrap_or(SyncStep::Done)
    }

    /// Takes note that the step succeeded. `pushed_more`: a commit found that it first had to bring bytes to the
    /// replicas, which no barrier has covered.
    pub fn succeeded(&mut self, pushed_more: bool) {
        self.at = match self.step() {
            SyncStep::Commit if pushed_more => self.order.iter().position(|step| *step == SyncStep::Barriers),
            _ => None,
        }
        .unwrap_or(self.at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(commits_that_push_more: u32) -> Vec<SyncStep> {
        let (mut plan, mut left, mut steps) = (SyncPlan::default(), commits_that_push_more, Vec::new());
        while plan.step() != SyncStep::Done {
            steps.push(plan.step());
            let pushed_more = plan.step() == SyncStep::Commit && left > 0;
            left -= u32::from(pushed_more);
            plan.succeeded(pushed_more);
        }
        steps
    }

    #[test]
    fn the_size_follows_the_data() {
        use SyncStep::{Barriers, Commit, Push, SyncMaster};
        assert_eq!(steps(0), [Push, Barriers, Commit, SyncMaster]);
    }

    #[test]
    fn what_a_commit_had_to_push_gets_a_barrier_too() {
        use SyncStep::{Barriers, Commit, Push, SyncMaster};
        assert_eq!(steps(2), [Push, Barriers, Commit, Barriers, Commit, Barriers, Commit, SyncMaster]);
    }
}
