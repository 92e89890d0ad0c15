//! The metrics of objects that this server can tell while it leads: its sources, side by side. What is measured of connections is
//! in `connections.rs`, what pods expose in `scraped.rs`; what is behind a service, `cluster.rs` knows.

mod cluster;
mod connections;
mod scraped;

use std::sync::Arc;

use async_trait::async_trait;
use gantry_apiserver::{CustomMetrics, MetricOf, NoMetric, ObjectMetric, ServedMetric};

pub(crate) use cluster::Cluster;
pub(crate) use connections::ConnectionMetrics;
pub(crate) use scraped::ScrapedMetrics;

/// Several sources: the first that serves a metric for such objects tells it.
pub(crate) struct Sources(pub(crate) Vec<Arc<dyn CustomMetrics>>);

#[async_trait]
impl CustomMetrics for Sources {
    async fn served(&self) -> Result<Vec<ServedMetric>, String> {
        let mut all = Vec::new();
        for source in &self.0 {
            all.extend(source.served().await?);
        }
        Ok(all)
    }

    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
        for source in &self.0 {
            match source.values(of).await {
                Err(NoMetric::Unknown) => {}
                answer => return answer,
            }
        }
        Err(NoMetric::Unknown)
    }
}

#[cfg(test)]
mod tests;
