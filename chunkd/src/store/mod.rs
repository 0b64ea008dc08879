//! Replicas on disks: one file each, in data directories that are ours alone while we run.
//!
//! - [`layout`]: the bytes of a replica file, and why a crash cannot mix old and new in a unit
//! - [`header`], [`unit_table`]: their codecs
//! - [`chunk_file`], [`recover`]: reading and writing one replica; what is left after a crash
//! - [`volume`], [`raw_file`]: the few operations on names and files that they need, so that tests put disks of their own
//!   below
//! - [`data_dir`], [`disk`], [`replica_store`]: data directories, their space and health, and all replicas in them

#![allow(clippy::disallowed_methods, reason = "a shell: it owns the files")]

pub mod chunk_file;
#[cfg(test)]
mod crash_tests;
pub mod data_dir;
pub mod disk;
pub mod header;
pub mod layout;
pub mod raw_file;
pub mod recover;
pub mod replica_store;
pub mod unit_table;
pub mod volume;

/// Why a replica could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. What was begun has been taken back.
    #[error("no space left on the disk")]
    NoSpace,
    /// The disk failed a read.
    #[error("read failed: {0}")]
    Read(#[source] std::io::Error),
    /// The disk failed a write or a sync: what it holds cannot be relied on any more.
    #[error("write failed: {0}")]
    Write(#[source] std::io::Error),
    /// A file cannot be opened at the moment, for want of descriptors or memory: nothing is wrong with the disk.
    #[error("cannot open a file: {0}")]
    Open(#[source] std::io::Error),
    /// The disk failed earlier in this run and is not used any more.
    #[error("the disk {0} failed earlier")]
    Fenced(String),
    /// A newer build wrote the file. It is left as it is.
    #[error("the replica has format {0}, this build knows {known}: use a newer dfs", known = header::FORMAT)]
    NewerFormat(u32),
    /// The file is not a replica of this chunk, or damaged beyond its units.
    #[error("bad replica file: {0}")]
    BadFile(String),
}
