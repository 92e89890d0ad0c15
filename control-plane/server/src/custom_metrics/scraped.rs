//! Metrics that pods expose themselves, and of the pods behind a service together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_apiserver::{CustomMetrics, MetricOf, NoMetric, ObjectMetric, ServedMetric};
use gantry_nodes::Hub;
use gantry_usage::{Figures, ScrapedMetric, ScrapedValue};

use super::Cluster;
use crate::external::millis;
use crate::measured::WINDOW;

const PODS: &str = "pods";
const SERVICES: &str = "services";

/// See the module's documentation.
pub(crate) struct ScrapedMetrics {
    pub(crate) figures: Arc<Figures>,
    pub(crate) cluster: Arc<Cluster>,
    /// Knows what is wanted of pods.
    pub(crate) hub: Arc<Hub>,
}

/// Of both together: as old as the older.
fn plus(one: ScrapedValue, other: ScrapedValue) -> ScrapedValue {
    ScrapedValue {
        value: one.value + other.value,
        unix_nanos: one.unix_nanos.min(other.unix_nanos),
        window: one.window.max(other.window),
    }
}

fn told(object: &str, value: ScrapedValue) -> ObjectMetric {
    ObjectMetric {
        object: object.to_owned(),
        millis: millis(value.value),
        unix_nanos: value.unix_nanos,
        window: Some(value.window).filter(|window| *window > Duration::ZERO),
    }
}

#[async_trait]
impl CustomMetrics for ScrapedMetrics {
    /// What autoscalers name: nothing else is asked of pods.
    async fn served(&self) -> Result<Vec<ServedMetric>, String> {
        let wanted = self.hub.wanted_series().into_iter();
        let served = wanted.flat_map(|metric| {
            [PODS, SERVICES].map(|resource| ServedMetric {
                resource: resource.to_owned(),
                namespaced: true,
                metric: metric.clone(),
            })
        });
        Ok(served.collect())
    }

    /// Where no object has the metric, why: what is wrong with a pod that cannot be asked, or that nobody knows such a metric.
    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
        let selects = |labels: &BTreeMap<String, String>| of.selector.matches_map(Some(labels));
        let metric = ScrapedMetric {
            namespace: of.namespace,
            name: of.metric,
            selects: &selects,
            window: WINDOW,
        };
        let (mut values, mut trouble, now) = (Vec::new(), None, Instant::now());
        for object in of.objects {
            let pods: BTreeSet<String> = match of.resource {
                PODS => {
                    let pod = self.cluster.pod(of.namespace, object)?;
                    pod.into_iter().collect()
                }
                SERVICES => {
                    let pods = self.cluster.behind(of.namespace, object)?;
                    pods.unwrap_or_default()
                }
                _ => return Err(NoMetric::Unknown),
            };
            let mut sum: Option<ScrapedValue> = None;
            for uid in pods {
                match self.figures.scraped(&uid, &metric, now) {
                    Some(Ok(value)) => sum = Some(sum.map_or(value, |sum| plus(sum, value))),
                    Some(Err(why)) => trouble = trouble.or(Some(why)),
                    None => {}
                }
            }
            values.extend(sum.map(|sum| told(object, sum)));
        }
        match (values.is_empty(), trouble) {
            (false, _) => Ok(values),
            (true, Some(why)) => Err(NoMetric::Unavailable(why)),
            (true, None) => Err(NoMetric::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_base::selector::LabelSelector;
    use gantry_usage::{PodName, ScrapedPod, ScrapedSample, ScrapedSeries};

    use super::*;

    /// Pods with a gauge of one label, or with what is wrong with them, and one that was not asked.
    fn source(pods: &[(&str, Result<f64, &str>)]) -> ScrapedMetrics {
        let figures = Arc::new(Figures::default());
        let answers = pods.iter().map(|(name, answer)| ScrapedPod {
            pod: Arc::new(PodName {
                namespace: "default".to_owned(),
                name: (*name).to_owned(),
                uid: (*name).to_owned(),
            }),
            at: 1,
            answer: match answer {
                Ok(value) => Ok(vec![ScrapedSeries {
                    name: "depth".to_owned(),
                    labels: [("queue".to_owned(), "a".to_owned())].into(),
                    is_counter: false,
                    value: *value,
                }]),
                Err(why) => Err((*why).to_owned()),
            },
        });
        let sample = ScrapedSample {
            clock: 1,
            pods: answers.collect(),
        };
        figures.take_scraped("node", sample, Instant::now(), 7);
        let mut names: Vec<&str> = pods.iter().map(|(name, _)| *name).collect();
        names.push("silent");
        ScrapedMetrics {
            figures,
            cluster: Arc::new(Cluster::of_pods(&names)),
            hub: Arc::default(),
        }
    }

    async fn values(
        source: &ScrapedMetrics,
        resource: &str,
        objects: &[&str],
        selector: &str,
    ) -> Result<Vec<(String, i64)>, NoMetric> {
        let objects: Vec<String> = objects.iter().map(|name| (*name).to_owned()).collect();
        let selector = LabelSelector::parse(selector).expect("a selector");
        let values = source.values(MetricOf {
            namespace: "default",
            resource,
            objects: &objects,
            metric: "depth",
            selector: &selector,
        });
        let values = values.await?.into_iter();
        Ok(values.map(|value| (value.object, value.millis)).collect())
    }

    #[tokio::test]
    async fn pods_and_services_have_what_pods_expose() {
        let source = source(&[("a", Ok(0.3)), ("b", Err("refused")), ("c", Ok(2.0))]);
        let all = ["a", "b", "c", "silent", "ghost"];
        let expected = [("a".to_owned(), 300), ("c".to_owned(), 2000)];
        assert_eq!(
            values(&source, "pods", &all, "").await,
            Ok(expected.to_vec())
        );
        assert_eq!(
            values(&source, "pods", &all, "queue=a").await,
            Ok(expected.to_vec())
        );
        let front = values(&source, "services", &["front"], "").await;
        assert_eq!(front, Ok(vec![("front".to_owned(), 2300)]));
    }

    #[tokio::test]
    async fn where_nothing_is_known_it_is_said_why() {
        let source = source(&[("a", Ok(1.0)), ("b", Err("refused"))]);
        let why = "pod default/b cannot be scraped: refused".to_owned();
        let of_b = values(&source, "pods", &["b", "silent"], "").await;
        assert_eq!(of_b, Err(NoMetric::Unavailable(why)));
        for (resource, object, selector) in [
            ("pods", "silent", ""),
            ("pods", "a", "queue=b"),
            ("services", "back", ""),
            ("nodes", "a", ""),
        ] {
            let none = values(&source, resource, &[object], selector).await;
            assert_eq!(none, Err(NoMetric::Unknown), "{resource} {object}");
        }
    }
}
