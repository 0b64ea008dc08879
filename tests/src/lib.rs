//! Black-box tests of dfs: real processes of the release binary, real mounts, ordinary programs.
//!
//! ```text
//! binary    which `dfs` is tested                 wait      for a condition, with a deadline
//! ports     loopback ports of one cluster         program   other programs, with a deadline
//! daemon    one process with its log              http      one GET
//! cluster   master + chunk servers + mounts       manifest  a tree as a list that can be compared
//! workload  ordinary work that can be checked again later, after a crash or on another mount
//! faultfs   a file system that fails on demand    chaos     everything fails in turn, under load
//! figures   what was promised in numbers
//! random    numbers from a seed                   linearizability   a checker of histories
//! ```
//!
//! What it checks on a mount it also checks on a local directory (`tests/oracle.rs`): there it must pass, or it is the
//! test that is wrong. Nothing here knows a crate of dfs.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns processes, sockets, files and the time they take")]

pub mod binary;
pub mod chaos;
pub mod cluster;
pub mod daemon;
pub mod faultfs;
pub mod figures;
pub mod http;
pub mod linearizability;
pub mod manifest;
pub mod ports;
pub mod program;
pub mod random;
pub mod sim;
pub mod wait;
pub mod workload;
