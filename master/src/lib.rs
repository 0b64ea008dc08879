//! The metadata server: the namespace, sessions, where chunks are, and the care for them.
//!
//! - [`core`]: what should happen, as pure functions over plain records: operations, sessions, placement
//! - [`store`]: ordered key-value engines behind one trait
//! - [`state`]: all of that around one store, for one thread: what a service or a simulator holds
//! - [`service`]: the shell that carries it out: executor, hot plane, control plane, pages, caretaker
//!
//! [`Master::start`] puts them together; everything else is public for tests and tools.

pub mod core;
pub mod service;
pub mod state;
pub mod store;

pub use service::config::{Deadlines, EngineKind, MasterConfig, MasterError};
pub use service::master::{Addresses, Master};
