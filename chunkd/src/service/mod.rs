//! The shell of the chunk server: sockets, threads and clocks around the cores and the store.
//!
//! - [`config`], [`server`]: settings; start and stop
//! - `data_plane`: a thread for each connection; `primary`, `write`, `read`, `barrier`: what mounts and the master ask;
//!   `member`: what other chunk servers ask; `peers`: asking them
//! - `replica`, `replicas`: the state in memory of one replica, and of those that are open
//! - `control`: registration, pulses, reports, deletions; `metrics`
//!
//! # Threads and waits
//!
//! A connection has a thread, which reads a request, carries it out (asking other servers on connections of its own), and
//! answers. Nothing runs elsewhere. Every wait has a deadline, and serving a peer never asks a third server, so a
//! cluster in which all threads wait for each other ends by itself. Mounts may take only part of the connections.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets, threads and deadlines")]

mod barrier;
pub mod config;
mod control;
mod data_plane;
mod member;
mod metrics;
mod peers;
mod primary;
mod read;
mod replica;
mod replicas;
pub mod server;
mod shared;
mod translate;
mod write;
