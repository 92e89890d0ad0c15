//! What the server tells Prometheus of nodes, through the default registry.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, exponential_buckets};

/// The metrics of every server of this process together.
pub(crate) struct Metrics {
    pub(crate) services_programmed: Histogram,
    pub(crate) nodes_connected: IntGauge,
    pub(crate) nodes_lost: IntCounter,
    pub(crate) reports_refused: IntCounter,
    pub(crate) wakes: IntCounter,
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    Metrics {
    services_programmed: registered(
        Histogram::with_opts(
            HistogramOpts::new(
                "gantry_services_programmed_duration_seconds",
                "From the moment a change of a Service or EndpointSlice was sent to nodes until all of them had it in their rules.",
            )
            .buckets(exponential_buckets(0.000_5, 2.0, 16).expect("the bounds are positive")),
        )
        .expect("the name is well-formed"),
    ),
    nodes_connected: registered(
        IntGauge::new(
            "gantry_nodes_connected",
            "Nodes linked to this server, which are none unless it leads.",
        )
        .expect("the name is well-formed"),
    ),
    reports_refused: registered(
        IntCounter::new(
            "gantry_node_reports_refused_total",
            "What nodes said that they may not say, or that could not be read.",
        )
        .expect("the name is well-formed"),
    ),
    wakes: registered(
        IntCounter::new(
            "gantry_wakes_total",
            "How often nodes said that they hold connections to a Service that nothing serves.",
        )
        .expect("the name is well-formed"),
    ),
    nodes_lost: registered(
        IntCounter::new(
            "gantry_nodes_lost_total",
            "How often a node fell silent and was given up.",
        )
        .expect("the name is well-formed"),
    ),
}
});

fn registered<M: Collector + Clone + 'static>(metric: M) -> M {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric is not exposed");
    }
    metric
}
