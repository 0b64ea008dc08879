//! The chunk server: it keeps replicas of chunks on its disks and, as the primary of some of them, orders their writes.
//!
//! - [`core`]: what should happen, as plain functions over plain data: who may serve ([`core::admission`],
//!   [`core::lease`]), in which order writes go ([`core::write_order`], [`core::dedupe`]), what a secondary does with
//!   what it is sent ([`core::follow`]), and how the replicas of a chunk are made equal ([`core::reconcile`])
//! - [`store`]: replicas as files on disks, their bytes, and what is left of them after a crash
//! - [`service`]: sockets, threads and clocks around both; [`ChunkServer`] is the whole
//!
//! ```text
//! mounts, master ──▶ service::data_plane ──▶ service::{primary, write, read} ──▶ core
//!                                                   │            │
//!                       service::peers ◀────────────┘            └──▶ store ──▶ files
//!                             │
//! other chunk servers ◀───────┘ ──▶ service::member (the same code on the other side)
//! ```

pub mod core;
pub mod service;
pub mod store;

pub use service::config::ChunkdConfig;
pub use service::server::{Addresses, ChunkServer, ChunkdError};
