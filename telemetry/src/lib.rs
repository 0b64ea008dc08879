//! How a daemon is seen from outside: its log, and its page of metrics.
//!
//! Each crate lists its own metrics in one `metrics.rs`; this crate registers and serves them. `/metrics` is the
//! Prometheus text format, process metrics included; `/healthz` answers 200 while the daemon says it is well, else 503
//! with the reason.

mod http;
mod log;
mod metric;

pub use axum;
pub use http::{Health, serve};
pub use log::init_log;
pub use metric::{counter, counters, gauge, gauges, registered, registry};

/// Upper bounds, in seconds, of the buckets of every latency histogram: from a cached answer to a deadline.
pub const LATENCY_BUCKETS_SECONDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];
