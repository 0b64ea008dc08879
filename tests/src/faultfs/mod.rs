//! A file system that fails on demand: a FUSE layer over a directory, below the data of a chunk server.
//!
//! ```text
//!   chunk server ──▶ kernel ──▶ adapter ──▶ disk ──▶ LOWER/tree
//!                                            │
//!                    control ──▶ rules       ├── unsynced   what sectors and sizes were when last synced
//!                    (socket)                └── names      what directories were
//! ```
//!
//! Operations fail or lie by [`rules`]. A *power cut* takes back a random part of what was not synced: sectors of 512
//! bytes, sizes, names. What programs see meanwhile is what a page cache would show: everything that they wrote.

mod adapter;
pub mod control;
pub mod disk;
pub mod names;
pub mod rules;
pub mod unsynced;

pub use adapter::serve;
