//! How a metric comes into a registry.

use prometheus::Registry;
use prometheus::core::Collector;

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
