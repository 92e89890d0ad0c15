//! What work queues tell Prometheus, through the default registry, under Kubernetes' names.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    exponential_buckets,
};

const NAME: [&str; 1] = ["name"];
const VALID: &str = "the name and the labels are well-formed";

/// The metrics of all queues of this process, by their names: as many as there are reconcilers.
struct Metrics {
    depth: IntGaugeVec,
    adds: IntCounterVec,
    retries: IntCounterVec,
    waited: HistogramVec,
    worked: HistogramVec,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let counter =
        |name, help| registered(IntCounterVec::new(Opts::new(name, help), &NAME).expect(VALID));
    let histogram = |name, help| {
        let buckets = exponential_buckets(1e-6, 10.0, 10).expect("the bounds are positive");
        let options = HistogramOpts::new(name, help).buckets(buckets);
        registered(HistogramVec::new(options, &NAME).expect(VALID))
    };
    let depth = Opts::new("workqueue_depth", "Keys that wait to be reconciled.");
    Metrics {
        depth: registered(IntGaugeVec::new(depth, &NAME).expect(VALID)),
        adds: counter("workqueue_adds_total", "Keys that were queued."),
        retries: counter(
            "workqueue_retries_total",
            "Keys that are to be tried again after a failure.",
        ),
        waited: histogram(
            "workqueue_queue_duration_seconds",
            "How long keys waited to be reconciled.",
        ),
        worked: histogram(
            "workqueue_work_duration_seconds",
            "How long reconciling a key took.",
        ),
    }
});

/// Has the default registry tell of a metric. One that is known there under its name already is kept, and not told of.
pub fn registered<M: Collector + Clone + 'static>(metric: M) -> M {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric is not exposed");
    }
    metric
}

/// The metrics of one queue. Queues of the same name, such as of several servers in a process, are told of together.
pub(crate) struct QueueMetrics {
    pub(crate) depth: IntGauge,
    pub(crate) adds: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) waited: Histogram,
    pub(crate) worked: Histogram,
}

impl QueueMetrics {
    pub(crate) fn of(name: &'static str) -> Self {
        let name = [name];
        Self {
            depth: METRICS.depth.with_label_values(&name),
            adds: METRICS.adds.with_label_values(&name),
            retries: METRICS.retries.with_label_values(&name),
            waited: METRICS.waited.with_label_values(&name),
            worked: METRICS.worked.with_label_values(&name),
        }
    }
}
