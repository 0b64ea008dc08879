//! What a chunk server should do, without sockets, files, threads or clocks.

pub mod admission;
pub mod lease;
pub mod message;
pub mod reconcile;
pub mod replica;
pub mod unit;
pub mod write_order;
