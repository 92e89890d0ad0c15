//! Where the metrics come from that are served as `custom.metrics.k8s.io`.

use std::time::Duration;

use async_trait::async_trait;
use gantry_api::selector::LabelSelector;

/// A metric that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedMetric {
    /// Of which objects: a plural name, with a group behind a dot where it has one, such as `pods`.
    pub resource: String,
    /// Whether those are in namespaces.
    pub namespaced: bool,
    /// Its name.
    pub metric: String,
}

/// A metric, and the objects that it is asked of.
#[derive(Clone, Copy, Debug)]
pub struct MetricOf<'a> {
    /// Their namespace; empty of objects that are in none.
    pub namespace: &'a str,
    /// What they are, as [`ServedMetric::resource`] says it.
    pub resource: &'a str,
    /// Their names.
    pub objects: &'a [String],
    /// The metric's name.
    pub metric: &'a str,
    /// Which of its series: by the labels of those, not of the objects.
    pub selector: &'a LabelSelector,
}

impl MetricOf<'_> {
    /// That nobody serves the metric for such objects, in the words of the project's adapters.
    pub fn unknown(&self) -> String {
        let Self {
            metric, resource, ..
        } = self;
        format!("the server could not find the metric {metric} for {resource}")
    }

    /// That an object does not have it.
    pub fn missing(&self, name: &str) -> String {
        let unknown = self.unknown();
        match self.selector.is_everything() {
            true => format!("{unknown} {name}"),
            false => format!("{unknown} {name} with selector {}", self.selector),
        }
    }
}

/// The metric of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMetric {
    /// The object's name.
    pub object: String,
    /// Thousandths, rounded up.
    pub millis: i64,
    /// When it was so, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What a rate is over.
    pub window: Option<Duration>,
}

/// Why there are no values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoMetric {
    /// The metric is not served for such objects.
    Unknown,
    /// It cannot be told now; why, in one sentence.
    Unavailable(String),
}

/// Tells metrics of objects; the composition root knows where they are measured.
#[async_trait]
pub trait CustomMetrics: Send + Sync + 'static {
    /// What can be asked for; or why nobody knows, in one sentence.
    async fn served(&self) -> Result<Vec<ServedMetric>, String>;

    /// The metric of those objects that have it, in any order.
    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric>;
}
