//! The data path: open files, their buffered writes, their reads.
//!
//! ```text
//!  fuse adapter ──▶ FileTable ──▶ FileState (one an inode)  ──▶ cache::DirtyMap, cache::ReadAhead   (pure)
//!                       │              ▲        │
//!                       │         push pool     ▼
//!                       └────────▶ (threads) ─▶ Backend: the master's and the chunk servers' calls
//! ```
//!
//! The adapter keeps names, attributes and opens at the master (`MasterClient::open`, `release`); it tells this module
//! of every attribute it sees ([`FileTable::note_attr`]) and lets it correct what it is about to show
//! ([`FileTable::overlay`]), since the master does not know of buffered writes yet. Before it changes attributes other
//! than the size it calls [`FileTable::settle`], so that a later commit does not undo an explicit `utimes` or `chmod`.

mod backend;
mod budget;
mod chunk_calls;
mod commit;
mod kept;
mod locations;
mod pool;
mod push;
mod read;
mod resize;
mod seek;
mod state;
mod sync;
mod table;
mod under_way;
mod unsynced;
mod write;

pub use backend::{Backend, Remote};
pub use table::{FileSettings, FileTable, HandleId, OpenOptions, Unwritten, Whence};

#[cfg(test)]
mod tests;
