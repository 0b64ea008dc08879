//! What is dirty and what to read ahead: plain functions.
//!
//! No clock, thread, lock or socket here: time is an argument, and what is to be pushed or fetched is handed out for
//! the caller to carry out.

mod dirty;
mod ranges;
mod read_ahead;

pub use dirty::{DirtyMap, Mark, Part, Sealed, Ticket};
pub use ranges::RangeSet;
pub use read_ahead::{Fetch, Found, ReadAhead};
