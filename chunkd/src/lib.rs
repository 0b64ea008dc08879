//! The chunk server: it keeps replicas of chunks on its disks and, as the primary of some of them, orders their writes.
//!
//! - [`core`]: what should happen, as plain functions over plain data: the state machine of one replica
//!   ([`core::replica`]) with what goes in and comes out of it ([`core::message`]), and what it is made of
//! - [`store`]: replicas as files on disks, their journals, and what is left of them after a crash
//! - [`service`]: sockets, threads and clocks around both; [`ChunkServer`] is the whole
//!
//! ```text
//! mounts, master ──▶ service::data_plane ─┐                     ┌──▶ service::disk_job ──▶ store ──▶ files
//! other servers  ──▶          "           ├──▶ service::call ───┼──▶ service::ask ──▶ other chunk servers
//! orders         ──▶ service::orders ─────┘        │  ▲         └──▶ service::master_link ──▶ master
//!                                            input ▼  │ effects
//!                                            core::replica
//! ```

pub mod core;
pub mod service;
pub mod store;

pub use service::config::ChunkdConfig;
pub use service::server::{Addresses, ChunkServer, ChunkdError};
