//! POSIX calls on our own types.
//!
//! - [`FileSystem`]: the calls themselves; `namespace` has those by name, `attributes` those on inodes, `open_files`
//!   those on handles
//! - [`attr_cache`]: what the master said less than a second ago
//! - [`directory`]: open directories
//! - [`file`]: the data path

#![allow(clippy::disallowed_methods, reason = "a shell: it holds the clock and starts background work")]

pub mod attr;
pub mod attr_cache;
mod attributes;
pub mod caller;
pub mod directory;
pub mod elastic_pool;
pub mod file;
mod filesystem;
mod namespace;
mod open_files;

pub use attr::Attr;
pub use attr_cache::Shown;
pub use caller::Caller;
pub use filesystem::FileSystem;
pub use namespace::{Entry, NewNode};
pub use open_files::{OpenFile, may_write};
