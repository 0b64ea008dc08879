//! Replicas on disks: one file each, in data directories that are ours alone while we run, and a journal for each disk.
//!
//! - [`layout`]: the bytes of a replica file; [`header`], [`unit_table`]: their codecs
//! - [`journal`]: in which order changes reach a disk, and what is left of them after a crash
//! - [`chunk_file`]: reading and writing one replica; [`unit_map`], [`overlay`]: what of it is in memory; [`write_plan`]
//! - [`volume`], [`raw_file`]: the few operations on names and files that they need, so that tests put disks of their own
//!   below
//! - [`data_dir`], [`disk`], [`replica_store`], [`options`]: data directories, their space and health, and all replicas in
//!   them; [`look`]: a replica from outside
//!
//! Nothing here has a thread or looks at a clock: whoever runs a store calls [`disk::Disk::flush`] each second, and what
//! [`disk::Disk::due`] says.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns the files")]

pub mod chunk_file;
#[cfg(test)]
mod crash_tests;
pub mod data_dir;
pub mod disk;
pub mod header;
pub mod journal;
pub mod layout;
pub mod look;
pub mod options;
pub mod overlay;
pub mod raw_file;
pub mod replica_store;
pub mod unit_map;
pub mod unit_table;
pub mod volume;
pub mod write_plan;

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
    /// The replica was deleted while it was open.
    #[error("the replica was deleted")]
    Deleted,
    /// Another build wrote the file. It is left as it is.
    #[error("the replica has format {0}, this build knows only {known}", known = header::FORMAT)]
    OtherFormat(u32),
    /// The file is not a replica of this chunk, or damaged beyond its units.
    #[error("bad replica file: {0}")]
    BadFile(String),
}

impl StoreError {
    /// Says where a disk failed a write: what it said alone does not tell the name from the file.
    fn at(self, what: impl FnOnce() -> String) -> Self {
        match self {
            Self::Write(error) => Self::Write(std::io::Error::new(error.kind(), format!("{}: {error}", what()))),
            other => other,
        }
    }
}
