//! Tests of the operations: scripts by path, and random operations against a simple tree.

mod chunks;
mod model;
mod script;
mod world;
