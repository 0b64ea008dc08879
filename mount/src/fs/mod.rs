//! POSIX calls on our own types.

#![allow(clippy::disallowed_methods, reason = "a shell: it holds the clock and starts background work")]

pub mod attr;
pub mod caller;
pub mod file;

pub use attr::Attr;
pub use caller::Caller;
