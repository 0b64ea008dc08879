//! The whole state of a master, and everything that changes it, without a thread, a socket or a clock of its own.
//!
//! ```text
//! service: executor, planes, caretaker ─┐                         ┌─▶ core::op on core::view
//!                                       ├─▶ MasterState (records, ┼─▶ core::node_table, fences
//! a simulator, in one thread           ─┘   sessions, nodes)      └─▶ store: batches, syncs
//! ```
//!
//! [`MasterState`] is used by one thread at a time. What it decides is in a batch until [`MasterState::commit`]; nobody may
//! be told before. What [`Answer::durable_first`] names must be on stable media first: whoever holds the state syncs, or
//! waits for a thread that does.

#![allow(clippy::disallowed_methods, reason = "how long commits take is measured; nothing is decided by it")]

mod care;
mod care_world;
mod control;
mod durability;
mod master;
mod nodes;
mod records;
mod replica_sets;
mod sessions;

use std::time::Duration;

pub use care::{CutStep, Info};
pub use care_world::StateWorld;
pub use control::{Control, Pulse, PulseReply, Report};
pub use durability::Durability;
pub use master::{Answer, Applied, MasterState, Settings};
pub use nodes::{Registered, Registration};
pub use replica_sets::{ChangeReply, Granted};

/// Who wants to know how the state works: metrics.
pub trait Observer: Send + Sync {
    /// A batch of so many requests was committed, and that took so long.
    fn committed(&self, requests: usize, took: Duration);
}

/// Nobody wants to know.
impl Observer for () {
    fn committed(&self, _requests: usize, _took: Duration) {}
}

#[cfg(test)]
mod tests;
