//! What the master decides: pure functions over plain data, with the time and every random seed as arguments.
//!
//! ```text
//! request ──▶ op::run ( view of records, now ) ──▶ outcome { puts, deletes, reply }      no clock, no I/O, no engine
//! ```
//!
//! - records and their keys: [`key`], [`record`]
//! - operations: [`request`], [`view`], [`op`], [`outcome`]
//! - what is in memory only: [`opens`], [`session`], [`unsettled`], [`ids`]
//! - chunk servers: [`node_table`], [`standing`], [`fences`], [`ring`], [`placement`]; what the caretaker asks for: [`care`]

pub mod care;
pub mod care_loop;
pub mod census;
pub mod check;
pub mod drain;
pub mod fences;
pub mod fleet;
pub mod ids;
pub mod inventory;
pub mod key;
pub mod location;
pub mod node_table;
pub mod op;
pub mod opens;
pub mod orders;
pub mod outcome;
pub mod placement;
pub mod rebalance;
pub mod record;
pub mod repair;
pub mod request;
pub mod ring;
pub mod scrub_plan;
pub mod session;
pub mod standing;
pub mod unsettled;
pub mod view;
