//! Where the metrics come from that are served as `external.metrics.k8s.io`.

use std::collections::BTreeMap;

use async_trait::async_trait;

/// One series of an external metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalMetric {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Thousandths, rounded up.
    pub millis: i64,
    /// When it was so, nanoseconds since the epoch.
    pub unix_nanos: i64,
}

/// Why there are no series, in words for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoExternalMetric {
    /// The namespace has no such metric.
    Unknown(String),
    /// It cannot be told now.
    Unavailable(String),
}

/// Tells metrics from outside of the cluster; the composition root knows who asks for them.
#[async_trait]
pub trait ExternalMetrics: Send + Sync + 'static {
    /// All series of a metric of a namespace.
    async fn series(
        &self,
        namespace: &str,
        metric: &str,
    ) -> Result<Vec<ExternalMetric>, NoExternalMetric>;
}
