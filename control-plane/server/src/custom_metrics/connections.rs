//! The connections of pods, and of the pods behind a service, as metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_apiserver::{CustomMetrics, MetricOf, NoMetric, ObjectMetric, ServedMetric};
use gantry_usage::{Figures, ServiceName};
use jiff::Timestamp;

use super::Cluster;
use crate::measured::WINDOW;

const PODS: &str = "pods";
const SERVICES: &str = "services";

/// What is told of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Those that are open.
    Open,
    /// Those that are opened, in a second.
    New,
}

const METRICS: [(&str, Told); 2] = [
    ("connections", Told::Open),
    ("new_connections_per_second", Told::New),
];

/// See the module's documentation.
pub(crate) struct ConnectionMetrics {
    pub(crate) figures: Arc<Figures>,
    pub(crate) cluster: Arc<Cluster>,
}

/// A value, and when and over what it was so.
#[derive(Clone, Copy)]
struct Value {
    millis: u64,
    unix_nanos: i64,
    window: Option<Duration>,
}

impl Value {
    /// Of both together: as old as the older.
    fn plus(self, other: Self) -> Self {
        Self {
            millis: self.millis.saturating_add(other.millis),
            unix_nanos: self.unix_nanos.min(other.unix_nanos),
            window: self.window.max(other.window),
        }
    }

    fn of(self, object: &str) -> ObjectMetric {
        ObjectMetric {
            object: object.to_owned(),
            millis: i64::try_from(self.millis).unwrap_or(i64::MAX),
            unix_nanos: self.unix_nanos,
            window: self.window,
        }
    }
}

impl ConnectionMetrics {
    /// Of a pod of the namespace; none of one on its node's network, or of which nothing has been heard.
    fn of_pod(&self, told: Told, namespace: &str, uid: &str, now: Instant) -> Option<Value> {
        let (pod, value) = match told {
            Told::Open => {
                let known = self.figures.connections(uid, now)?;
                let value = Value {
                    millis: known.connections.open.saturating_mul(1000),
                    unix_nanos: known.unix_nanos,
                    window: None,
                };
                (known.pod, value)
            }
            Told::New => {
                let known = self.figures.new_connections(uid, WINDOW, now)?;
                let value = Value {
                    millis: known.millis_per_second,
                    unix_nanos: known.unix_nanos,
                    window: Some(known.window),
                };
                (known.pod, value)
            }
        };
        // A slice may name whatever somebody has written into it.
        (pod.namespace == namespace).then_some(value)
    }

    /// Those that nodes hold to a service while nothing serves it; of one that nothing brings back, whatever they say, none.
    fn held(
        &self,
        told: Told,
        namespace: &str,
        service: &str,
        now: Instant,
    ) -> Result<Value, NoMetric> {
        let held = match told {
            Told::Open if self.cluster.is_woken(namespace, service)? => {
                let service = ServiceName {
                    namespace: namespace.to_owned(),
                    name: service.to_owned(),
                };
                self.figures.held(&service, now)
            }
            Told::Open | Told::New => 0,
        };
        let nanos = Timestamp::now().as_nanosecond();
        Ok(Value {
            millis: held.saturating_mul(1000),
            unix_nanos: i64::try_from(nanos).unwrap_or(i64::MAX),
            window: None,
        })
    }

    /// Of all pods behind a service together, with what is held to it. Without either it is nothing; where nothing is known of
    /// any of the pods it is unknown.
    fn of_service(
        &self,
        told: Told,
        namespace: &str,
        service: &str,
        now: Instant,
    ) -> Result<Option<Value>, NoMetric> {
        let Some(pods) = self.cluster.behind(namespace, service)? else {
            return Ok(None);
        };
        let held = self.held(told, namespace, service, now)?;
        if pods.is_empty() {
            return Ok(Some(held));
        }
        let values = pods
            .iter()
            .filter_map(|uid| self.of_pod(told, namespace, uid, now));
        Ok(values.reduce(Value::plus).map(|value| value.plus(held)))
    }
}

#[async_trait]
impl CustomMetrics for ConnectionMetrics {
    async fn served(&self) -> Result<Vec<ServedMetric>, String> {
        let served = METRICS.iter().flat_map(|(metric, _)| {
            [PODS, SERVICES].map(|resource| ServedMetric {
                resource: resource.to_owned(),
                namespaced: true,
                metric: (*metric).to_owned(),
            })
        });
        Ok(served.collect())
    }

    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
        let told = METRICS.iter().find(|(metric, _)| *metric == of.metric);
        let (_, told) = *told.ok_or(NoMetric::Unknown)?;
        let (namespace, now) = (of.namespace, Instant::now());
        // Their series have no labels.
        let is_selected = of.selector.matches(|_| None);
        let mut values = Vec::new();
        for object in of.objects.iter().filter(|_| is_selected) {
            let value = match of.resource {
                PODS => {
                    let uid = self.cluster.pod(namespace, object)?;
                    uid.and_then(|uid| self.of_pod(told, namespace, &uid, now))
                }
                SERVICES => self.of_service(told, namespace, object, now)?,
                _ => return Err(NoMetric::Unknown),
            };
            values.extend(value.map(|value| value.of(object)));
        }
        match of.resource {
            PODS | SERVICES => Ok(values),
            _ => Err(NoMetric::Unknown),
        }
    }
}
