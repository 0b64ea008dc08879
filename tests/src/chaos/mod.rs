//! Chaos: a cluster of real processes, each on a network node of its own, under load, while everything fails in turn.
//!
//! ```text
//!   run ──▶ faults     what goes wrong, by seed          load, registers ──▶ hands ──▶ worker (a process a thread and mount)
//!    │       │                                                │
//!    │       ▼                                                ▼
//!    ├──▶ fleet ──▶ network (namespaces), faultfs        oracle, stamp, linearizability
//!    └──▶ settle: compares every file with the oracle         │
//!                                                        report ◀┘
//! ```
//!
//! What holds is said in docs/semantics.md: nothing that was closed is lost by kill -9 of servers, nothing that was
//! synced is lost by loss of power, nothing stale is read, no program sees an error under `hard`, and no call waits once
//! all is healed. Everything made outside of the process is in a [`ledger`].

pub mod enter;
pub mod faults;
pub mod fleet;
pub mod hands;
pub mod ledger;
pub mod load;
pub mod network;
pub mod oracle;
pub mod registers;
pub mod report;
pub mod run;
pub mod settle;
pub mod stamp;
pub mod worker;
