//! The shell of the chunk server: sockets, threads and clocks around the cores and the store.
//!
//! - [`config`], [`server`]: settings; start and stop
//! - `data_plane`: a thread for each connection; `admit`: who may ask; `translate`: messages and the cores' vocabulary
//! - `replica`, `replicas`: the replicas that are open, each with its core and the calls under way
//! - `call`: one call, carried out by one thread; `ask`, `peers`: asking other servers; `disk_job`: the disk; `late`: what
//!   is left when a call was replied to; `waker`: waking a thread that waits
//! - `control`: registration, pulses and reports; `master_link`: the way to the master; `orders`, `budget`: what it wants
//!   done, and how fast; `fences`: mounts that are refused
//! - `disks`: space, journals, and disks that fail; `metrics`
//!
//! # Threads and waits
//!
//! A connection has a thread, which reads a request, carries it out (asking other servers on connections of its own), and
//! answers. Nothing runs elsewhere. Every wait has a deadline, and serving a peer never asks a third server, so a
//! cluster in which all threads wait for each other ends by itself. Mounts may take only part of the connections.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets, threads and deadlines")]

mod admit;
mod ask;
mod budget;
mod call;
pub mod config;
mod control;
mod data_plane;
mod disk_job;
mod disks;
mod fences;
mod late;
mod master_link;
mod metrics;
mod orders;
mod peers;
mod replica;
mod replicas;
pub mod server;
mod shared;
mod translate;
mod waker;
