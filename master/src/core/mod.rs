//! What the master decides: pure functions over plain data, with the time and every random seed as arguments.
//!
//! ```text
//! request ──▶ op::* ( view of records, now ) ──▶ outcome { puts, deletes, reply }      no clock, no I/O, no engine
//! ```

pub mod care;
pub mod node_table;
pub mod placement;
pub mod ring;
