//! What a mount decides about the cluster, without doing it: no clock, no socket, no thread. Time and answers are
//! arguments; what is to be asked next is the result.
//!
//! - [`ChunkCall`]: one call of a chunk's data, through lost servers and moved primaries.
//! - [`SyncPlan`]: the steps of an fsync, in the order that keeps sizes behind bytes.
//! - [`Unsynced`]: what was written and not synced, so that an fsync notices its loss.
//! - [`Policy`]: how long a mount waits for a cluster that does not answer.
//! - [`Location`]: where a chunk is, until a server says `Stale`.
//!
//! `remote` and `fs` carry it out in a mount; a simulator does so in one thread with a clock and a network of its own.

mod backoff;
mod chunk_call;
mod location;
mod policy;
mod sync_plan;
mod unsynced;

pub use backoff::Backoff;
pub use chunk_call::{Ask, ChunkCall, Damage, Input, LookUp, Outcome, Step, Trouble};
pub use location::{Location, Replica};
pub use policy::Policy;
pub use sync_plan::{SyncPlan, SyncStep};
pub use unsynced::Unsynced;
