//! Three chunk servers in this process, real sockets, real files, and a master of a few lines.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests own their files, threads and sockets")]

mod harness;
mod master;
mod recovery;
mod service;
mod speed;
