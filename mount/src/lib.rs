//! The mount: a FUSE client of a dfs cluster.
//!
//! ```text
//! mount    puts it together: mount point, session, threads
//! fuse/    the adapter on fuser: workers, replies                     (only place that sees fuser)
//!   fs/    POSIX calls on our own types; fs/file is the data path
//!     core/    calls of chunks, fsync, deadlines: decided here, done in fs and remote
//!     cache/   what is dirty, what to read ahead: plain functions
//!     remote/  carries it out: master session, chunk servers, retries (only place that sees the wire messages)
//! ```
//!
//! Arrows go down only.

pub mod cache;
pub mod core;
pub mod fs;
pub mod fuse;
pub mod metrics;
mod mount;
pub mod remote;

pub use core::Policy;
pub use fuse::{MountPoint, VfsOption};
pub use mount::{MountConfig, MountError, Mounted, Unmounter, mount};
