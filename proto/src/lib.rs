//! What every part of dfs shares: the vocabulary, the wire formats, and the seams to the outside.
//!
//! - vocabulary: [`ids`], [`time`], [`name`], [`kind`], [`mode`], [`error`], [`limits`]
//! - protocols: [`replica_set`] (who holds a chunk, and how that changes), [`planted`] (bugs on purpose, for tests)
//! - bytes: [`unit`] (checksums of 4 KiB units), [`grant`] (sealed rights to chunks), [`wire`] (frames, hello,
//!   connections, the generated messages)
//! - [`env`]: clock and randomness, as traits, so that cores can be run by a simulator
//!
//! Nothing here knows a master, a chunk server or a mount; those crates never depend on each other, only on this one.

pub mod env;
pub mod error;
pub mod grant;
pub mod ids;
pub mod kind;
pub mod limits;
pub mod mode;
pub mod name;
pub mod planted;
pub mod replica_set;
pub mod time;
pub mod unit;
pub mod wire;

pub use error::FsError;
pub use ids::{BootSession, ChunkId, ChunkIndex, ClusterId, InodeId, NodeId, Seq, SessionId, Version};
pub use kind::Kind;
pub use name::Name;
pub use time::{MonoMs, UnixNanos};
