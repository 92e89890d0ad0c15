//! Metrics of objects, from whichever server a client has asked: the leader alone knows them, so that another asks it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use gantry_apiserver::{CustomMetrics, MetricOf, NoMetric, ObjectMetric, ServedMetric};
use gantry_base::selector::LabelSelector;
use gantry_rpc::raft::raft_client::RaftClient;
use gantry_rpc::raft::{self as rpc, ObjectMetricsAnswer, ObjectMetricsRequest};
use gantry_store::Store;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::leader::{PATIENCE, elsewhere};
use crate::peers::{PEER_MESSAGE, Peers};

/// Metrics as the server that leads knows them.
pub struct LeaderMetrics {
    /// This server's own, for when it leads.
    pub own: Arc<dyn CustomMetrics>,
    /// Who leads.
    pub store: Store,
    /// How the leader is reached.
    pub peers: Peers,
}

/// Why the leader has not told anything.
fn unavailable(why: &anyhow::Error) -> String {
    format!("asking the leading server: {why:#}")
}

impl LeaderMetrics {
    async fn client(&self, leader: u64) -> Result<RaftClient<Channel>> {
        let channel = self.peers.connect(leader).await?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(PEER_MESSAGE)
            .max_encoding_message_size(PEER_MESSAGE))
    }

    async fn served_by(&self, leader: u64) -> Result<Vec<ServedMetric>> {
        let mut client = self.client(leader).await?;
        let asked = client.served_metrics(rpc::ServedMetricsRequest {});
        let answer = tokio::time::timeout(PATIENCE, asked).await??;
        let metrics = answer.into_inner().metrics.into_iter();
        Ok(metrics.map(served).collect())
    }

    async fn values_of(
        &self,
        leader: u64,
        of: MetricOf<'_>,
    ) -> Result<Result<Vec<ObjectMetric>, NoMetric>> {
        let mut client = self.client(leader).await?;
        let asked = client.object_metrics(request(of));
        match tokio::time::timeout(PATIENCE, asked).await? {
            Ok(answer) => Ok(Ok(values(answer.into_inner()))),
            Err(status) => none(&status).map(Err).map_err(Into::into),
        }
    }
}

#[async_trait]
impl CustomMetrics for LeaderMetrics {
    async fn served(&self) -> Result<Vec<ServedMetric>, String> {
        match elsewhere(&self.store) {
            None => self.own.served().await,
            Some(leader) => {
                let asked = self.served_by(leader).await;
                asked.map_err(|error| unavailable(&error))
            }
        }
    }

    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
        match elsewhere(&self.store) {
            None => self.own.values(of).await,
            Some(leader) => {
                let asked = self.values_of(leader, of).await;
                asked.unwrap_or_else(|error| Err(NoMetric::Unavailable(unavailable(&error))))
            }
        }
    }
}

/// What this server answers another one that asks what is served.
pub(crate) async fn answer_served(
    own: &dyn CustomMetrics,
) -> Result<rpc::ServedMetricsAnswer, Status> {
    let metrics = own.served().await.map_err(Status::unavailable)?;
    let metrics = metrics.into_iter().map(|one| rpc::ServedMetric {
        resource: one.resource,
        namespaced: one.namespaced,
        metric: one.metric,
    });
    Ok(rpc::ServedMetricsAnswer {
        metrics: metrics.collect(),
    })
}

/// What this server answers another one that asks for values.
pub(crate) async fn answer(
    own: &dyn CustomMetrics,
    asked: &ObjectMetricsRequest,
) -> Result<ObjectMetricsAnswer, Status> {
    let selector = LabelSelector::parse(&asked.selector);
    let selector = selector.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let of = MetricOf {
        namespace: &asked.namespace,
        resource: &asked.resource,
        objects: &asked.objects,
        metric: &asked.metric,
        selector: &selector,
    };
    let values = own.values(of).await.map_err(|none| match none {
        NoMetric::Unknown => Status::not_found(of.unknown()),
        NoMetric::Unavailable(why) => Status::unavailable(why),
    })?;
    Ok(ObjectMetricsAnswer {
        objects: values.into_iter().map(told).collect(),
    })
}

/// Why the leader has no values; what it did not mean to say is an error of its own.
fn none(status: &Status) -> Result<NoMetric, Status> {
    match status.code() {
        Code::NotFound => Ok(NoMetric::Unknown),
        Code::Unavailable => Ok(NoMetric::Unavailable(status.message().to_owned())),
        _ => Err(status.clone()),
    }
}

fn request(of: MetricOf<'_>) -> ObjectMetricsRequest {
    ObjectMetricsRequest {
        namespace: of.namespace.to_owned(),
        resource: of.resource.to_owned(),
        objects: of.objects.to_vec(),
        metric: of.metric.to_owned(),
        selector: of.selector.to_string(),
    }
}

fn served(said: rpc::ServedMetric) -> ServedMetric {
    ServedMetric {
        resource: said.resource,
        namespaced: said.namespaced,
        metric: said.metric,
    }
}

fn told(value: ObjectMetric) -> rpc::ObjectMetric {
    let nanos = |window: Duration| u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
    rpc::ObjectMetric {
        object: value.object,
        milli: value.millis,
        unix_nanoseconds: value.unix_nanos,
        window_nanoseconds: value.window.map_or(0, nanos),
    }
}

fn values(said: ObjectMetricsAnswer) -> Vec<ObjectMetric> {
    let values = said.objects.into_iter().map(|said| ObjectMetric {
        object: said.object,
        millis: said.milli,
        unix_nanos: said.unix_nanoseconds,
        window: Some(Duration::from_nanos(said.window_nanoseconds))
            .filter(|window| !window.is_zero()),
    });
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods have a load, and in another namespace nobody knows of which.
    struct Told;

    #[async_trait]
    impl CustomMetrics for Told {
        async fn served(&self) -> Result<Vec<ServedMetric>, String> {
            Ok(vec![ServedMetric {
                resource: "pods".to_owned(),
                namespaced: true,
                metric: "load".to_owned(),
            }])
        }

        async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
            assert_eq!(of.selector.to_string(), "verb in (GET,PUT)");
            match (of.resource, of.namespace) {
                ("pods", "default") => {}
                ("pods", _) => return Err(NoMetric::Unavailable("it is dark".to_owned())),
                _ => return Err(NoMetric::Unknown),
            }
            let value = |window, object: &String| ObjectMetric {
                object: object.clone(),
                millis: 1500,
                unix_nanos: 7,
                window,
            };
            let windows = [Some(Duration::from_secs(3)), None];
            let objects = of.objects.iter().zip(windows);
            Ok(objects
                .map(|(object, window)| value(window, object))
                .collect())
        }
    }

    #[tokio::test]
    async fn another_server_is_told_what_this_one_would_say() {
        let objects = ["db", "web"].map(str::to_owned);
        let selector = LabelSelector::parse("verb in (PUT,GET)").expect("a selector");
        for (resource, namespace) in [
            ("pods", "default"),
            ("pods", "other"),
            ("services", "default"),
        ] {
            let of = MetricOf {
                namespace,
                resource,
                objects: &objects,
                metric: "load",
                selector: &selector,
            };
            let here = Told.values(of).await;
            let there = match answer(&Told, &request(of)).await {
                Ok(answer) => Ok(values(answer)),
                Err(status) => Err(none(&status).expect("it was meant")),
            };
            assert_eq!(there, here, "{resource} of {namespace}");
        }
        let here = Told.served().await.expect("known");
        let there = answer_served(&Told).await.expect("known");
        let there: Vec<_> = there.metrics.into_iter().map(served).collect();
        assert_eq!(there, here);
        let lost = Status::unimplemented("an older server");
        assert!(none(&lost).is_err());
    }
}
