//! Three chunk servers in this process, real sockets, real files, and a master of a few lines.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests own their files, threads and sockets")]

mod control;
mod disks;
mod harness;
mod hostile;
mod kill;
mod load;
mod master;
mod mounts;
mod recovery;
mod replication;
mod service;
