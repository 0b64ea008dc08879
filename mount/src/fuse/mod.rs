//! The adapter on fuser: the only place that knows FUSE.
//!
//! # What calls cost
//!
//! FUSE requests a program waits for, and round trips to the master that these take; data goes to chunk servers on top.
//! `0/1` is 0 while what is known is younger than a second.
//!
//! | Call | FUSE requests | round trips |
//! |---|---|---|
//! | `stat`, warm | 0 | 0 |
//! | `stat`, cold | LOOKUP | 1 |
//! | `open`, `close` of a file | LOOKUP, OPEN (FLUSH if it was opened for writing) | 0/1 + 1 |
//! | `open` of an existing file with O_TRUNC | LOOKUP, OPEN, SETATTR | 0/1 + 1 + 1 |
//! | create, write 4 KiB, `close` | LOOKUP, CREATE, GETXATTR, WRITE, FLUSH | 1 + 1 + 0 + 0 + 1 |
//! | write 4 KiB, `fsync`, of a file in chunks | WRITE, FSYNC | 0 + 2, and 2 to the primary |
//! | `mkdir`, `symlink`, `mknod` | LOOKUP, MKDIR … | 1 + 1 |
//! | `unlink`, `rmdir` | LOOKUP, UNLINK … | 0/1 + 1 |
//! | `rename` | 2 LOOKUP, RENAME | 0/1 + 1 + 1 |
//! | `ls -l`, each 1,000 names | READDIRPLUS for each 4 KiB of names | 1, fetched ahead |
//!
//! After each change in a directory the kernel asks for the directory's attributes again before it checks permissions in
//! it. That GETATTR is answered from what is known here, brought up to date with the time the change was made at.
//! RELEASE is answered before anything is done about it. Before the first write to an inode the kernel asks for its
//! `security.capability`, which is answered here; `HANDLE_KILLPRIV_V2` keeps it from asking before each further one.
//!
//! # Threads
//!
//! ```text
//!   /dev/fuse ──▶ worker (several, a cloned descriptor each)
//!                   │ known here ──────────────────────────▶ answers
//!                   │ gate open (at most workers - 2 inside) ▶ asks, waits, answers
//!                   └ gate shut ──▶ wait pools ────────────▶ asks, waits, answers
//! ```
//!
//! So two workers at least are free at all times, however many calls wait for a server that is away; and calls that wait
//! for one kind of server never keep those waiting that need another (`wait_pools`).

#![allow(clippy::disallowed_methods, reason = "a shell: it owns threads and clocks")]

mod adapter;
mod convert;
mod dispatch;
mod gate;
mod mount_point;
mod ops;
mod session;
mod wait_pools;

pub use mount_point::{MountPoint, MountPointError};
pub use ops::WaitsFor;
pub use session::{FuseSession, FuseUnmounter, SessionOptions, VfsOption, path_text};
pub use wait_pools::WaitPools;
