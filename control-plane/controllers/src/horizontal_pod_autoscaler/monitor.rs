//! What autoscaling tells Prometheus, through the default registry, under Kubernetes' names.

use std::sync::LazyLock;
use std::time::Duration;

use gantry_informer::metrics::registered;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, exponential_buckets};

/// What a look at an autoscaler, or one of its metrics, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    ScaleUp,
    ScaleDown,
    None,
}

impl Action {
    /// From so many replicas to so many.
    pub(super) fn of(from: i32, to: i32) -> Self {
        match to {
            _ if to > from => Self::ScaleUp,
            _ if to < from => Self::ScaleDown,
            _ => Self::None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::ScaleUp => "scale_up",
            Self::ScaleDown => "scale_down",
            Self::None => "none",
        }
    }
}

/// Whose fault it is that nothing came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// What the autoscaler says cannot be.
    Spec,
    Internal,
}

/// One metric that was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Computation {
    /// One of [`TYPES`], or that it is none.
    metric_type: &'static str,
    outcome: Result<Action, Fault>,
}

/// The types of metrics, as labels: these and no others.
const TYPES: [&str; 5] = [
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

impl Computation {
    pub(super) fn new(metric_type: &str, outcome: Result<Action, Fault>) -> Self {
        let known = TYPES.into_iter().find(|known| *known == metric_type);
        Self {
            metric_type: known.unwrap_or("unknown"),
            outcome,
        }
    }
}

struct Metrics {
    reconciliations: IntCounterVec,
    reconciling: HistogramVec,
    computations: IntCounterVec,
    computing: HistogramVec,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let named = |name: &str| format!("horizontal_pod_autoscaler_controller_{name}");
    let counter = |name: &str, help: &str, labels: &[&str]| {
        let counter = IntCounterVec::new(Opts::new(named(name), help), labels);
        registered(counter.expect("the name and the labels are well-formed"))
    };
    let histogram = |name: &str, help: &str, labels: &[&str]| {
        let buckets = exponential_buckets(0.001, 2.0, 15).expect("the bounds are positive");
        let options = HistogramOpts::new(named(name), help).buckets(buckets);
        let histogram = HistogramVec::new(options, labels);
        registered(histogram.expect("the name and the labels are well-formed"))
    };
    let of_looks = ["action", "error"];
    let of_metrics = ["action", "error", "metric_type"];
    Metrics {
        reconciliations: counter(
            "reconciliations_total",
            "Looks at autoscalers, by what they came to and whose fault it was if to nothing.",
            &of_looks,
        ),
        reconciling: histogram(
            "reconciliation_duration_seconds",
            "How long a look at an autoscaler took.",
            &of_looks,
        ),
        computations: counter(
            "metric_computation_total",
            "Metrics of autoscalers that were computed, by what they asked for and whose fault it was if for nothing.",
            &of_metrics,
        ),
        computing: histogram(
            "metric_computation_duration_seconds",
            "How long it took to have a metric's figures and to compute what it asks for.",
            &of_metrics,
        ),
    }
});

fn labels(outcome: Result<Action, Fault>) -> [&'static str; 2] {
    match outcome {
        Ok(action) => [action.label(), "none"],
        Err(Fault::Spec) => [Action::None.label(), "spec"],
        Err(Fault::Internal) => [Action::None.label(), "internal"],
    }
}

/// Notes a look at an autoscaler.
pub(super) fn reconciled(outcome: Result<Action, Fault>, took: Duration) {
    let labels = labels(outcome);
    METRICS.reconciliations.with_label_values(&labels).inc();
    let took = took.as_secs_f64();
    METRICS.reconciling.with_label_values(&labels).observe(took);
}

/// Notes a metric that was computed.
pub(super) fn computed(computation: &Computation, took: Duration) {
    let [action, error] = labels(computation.outcome);
    let labels = [action, error, computation.metric_type];
    METRICS.computations.with_label_values(&labels).inc();
    let took = took.as_secs_f64();
    METRICS.computing.with_label_values(&labels).observe(took);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_in_kubernetes_words() {
        for (outcome, shown) in [
            (Ok(Action::of(2, 5)), ["scale_up", "none"]),
            (Ok(Action::of(5, 2)), ["scale_down", "none"]),
            (Ok(Action::of(2, 2)), ["none", "none"]),
            (Err(Fault::Spec), ["none", "spec"]),
            (Err(Fault::Internal), ["none", "internal"]),
        ] {
            assert_eq!(labels(outcome), shown);
        }
    }

    #[test]
    fn what_came_to_something_is_counted_by_types_that_there_are() {
        let made_up = Computation::new("of a stranger", Err(Fault::Spec));
        let labels = ["none", "spec", "unknown"];
        let counted = || METRICS.computations.with_label_values(&labels).get();
        let before = counted();
        computed(&made_up, Duration::from_secs(1));
        assert_eq!(counted(), before + 1);
        assert_eq!(
            Computation::new("Pods", Ok(Action::None)).metric_type,
            "Pods"
        );
    }
}
