//! What the controllers tell Prometheus, through the default registry.

use std::sync::LazyLock;

use prometheus::IntCounter;

/// The metrics of every server of this process together.
pub(crate) struct Metrics {
    pub(crate) idled: IntCounter,
    pub(crate) woken: IntCounter,
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    idled: registered(
        "gantry_deployments_idled_total",
        "How often the replicas of a Deployment without connections were taken away.",
    ),
    woken: registered(
        "gantry_deployments_woken_total",
        "How often the replicas of a Deployment were brought back for connections that are held.",
    ),
});

fn registered(name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect("the name is well-formed");
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric is not exposed");
    }
    metric
}
