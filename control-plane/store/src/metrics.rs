//! What the store tells Prometheus, through the default registry.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntGauge, exponential_buckets};

/// The metrics of every store of this process together.
pub(crate) struct Metrics {
    pub(crate) proposal: Histogram,
    pub(crate) fsync: Histogram,
    pub(crate) watchers: IntGauge,
    pub(crate) applied: IntGauge,
    pub(crate) revision: IntGauge,
    pub(crate) free: IntGauge,
    pub(crate) read_only: IntGauge,
    pub(crate) diverged: IntGauge,
    pub(crate) lagged: prometheus::IntCounter,
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    proposal: histogram(
        "gantry_store_proposal_duration_seconds",
        "From the submission of a transaction to its application.",
    ),
    fsync: histogram(
        "gantry_store_log_fsync_duration_seconds",
        "How long one durable write to the Raft log took.",
    ),
    watchers: gauge("gantry_store_watchers", "Open watches."),
    applied: gauge(
        "gantry_store_applied_index",
        "The last applied entry of the Raft log.",
    ),
    revision: gauge("gantry_store_revision", "The last applied revision."),
    free: gauge(
        "gantry_store_disk_free_bytes",
        "How much room the disk with the data directory has left.",
    ),
    diverged: gauge(
        "gantry_store_diverged",
        "1 while this member leads and the state of another differs from its own, 0 otherwise.",
    ),
    read_only: gauge(
        "gantry_store_read_only",
        "1 while this member refuses writes for want of room on disks, 0 otherwise.",
    ),
    lagged: registered(
        prometheus::IntCounter::new(
            "gantry_store_watchers_lagged_total",
            "Watches closed because their reader fell behind.",
        )
        .expect("the name is well-formed"),
    ),
});

fn histogram(name: &str, help: &str) -> Histogram {
    let buckets = exponential_buckets(0.000_05, 2.0, 18).expect("the bounds are positive");
    let options = HistogramOpts::new(name, help).buckets(buckets);
    registered(Histogram::with_opts(options).expect("the name is well-formed"))
}

fn gauge(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help).expect("the name is well-formed"))
}

fn registered<M: Collector + Clone + 'static>(metric: M) -> M {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric of the store is not exposed");
    }
    metric
}
