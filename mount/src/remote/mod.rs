//! Carries things out: the session with the master, the chunk servers, and what happens when they do not answer.
//!
//! Blocking, and meant to be: the thread that asks reads the answer itself. Every call ends by its policy's deadline.
//!
//! - [`MasterClient`]: one method per metadata call. It retries by itself what the master's absence or `TryAgain`
//!   makes fail, always under the same request number, until the policy's deadline; all other errors are the caller's.
//! - [`ChunkClient`]: one method per data call, a single attempt each. What follows a failure is decided by
//!   [`crate::core::ChunkCall`], since between two attempts the location has to be looked up again.
//!
#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets, threads and deadlines")]

mod chunk;
mod convert;
mod master;
mod patience;
mod retry;
mod servers;
mod session;
mod silence;

pub use chunk::{ChunkClient, ReadData, WriteId};
pub use master::{
    AttrChange, Chunks, CommitWrite, Dirent, InlineData, Listing, Made, Make, MasterClient, Opened, StatFs, TimeChange,
};
pub use patience::Patience;
pub use session::SessionConfig;
