//! Tests of the operations: scripts by path, and random operations against a simple tree; what must always be true.

mod chunks;
pub(crate) mod invariants;
mod listing;
mod model;
mod replica_sets;
mod script;
mod world;
