//! How a metric comes into a registry.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Returns a registry with the metrics of this process.
pub fn registry() -> Registry {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self())).expect("it is the first of its registry");
    registry
}

/// Adds a metric that was just made to `registry`, and returns it.
///
/// # Panics
///
/// If its name or labels are not valid, or the name is taken: they are constants, and a daemon's first start shows it.
pub fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels of metrics are valid");
    registry.register(Box::new(metric.clone())).expect("each name of a metric is used once");
    metric
}

/// Makes a counter; panics as [`registered`].
pub fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

/// Makes a counter for each set of values of `labels`; panics as [`registered`].
pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

/// Makes a gauge; panics as [`registered`].
pub fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

/// Makes a gauge for each set of values of `labels`; panics as [`registered`].
pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}
