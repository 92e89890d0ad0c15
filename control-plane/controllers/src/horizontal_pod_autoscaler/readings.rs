//! Asks for the figures that an autoscaler's metrics are about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::autoscaling::v2::{MetricIdentifier, MetricSpec};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::figures::{Figures, FiguresError, Metric, PodUsage, PodValue};
use super::metrics::Reading;
use super::replicas::Sample;

/// Whoever has not answered by then has no figures.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

const RESOURCE: &str = "resource";
const CUSTOM: &str = "custom";
const EXTERNAL: &str = "external";

/// One reading of each metric, and how long it took; all asked for at once.
pub(super) async fn read(
    figures: &dyn Figures,
    namespace: &str,
    metrics: &[MetricSpec],
    pods: &[Arc<Pod>],
) -> (Vec<Reading>, Vec<Duration>) {
    let began = Instant::now();
    let all = metrics.iter().map(|spec| async move {
        let reading = read_one(figures, namespace, spec, pods).await;
        (reading, began.elapsed())
    });
    join_all(all).await.into_iter().unzip()
}

async fn read_one(
    figures: &dyn Figures,
    namespace: &str,
    spec: &MetricSpec,
    pods: &[Arc<Pod>],
) -> Reading {
    let metric = |metric| of(namespace, metric);
    if let Some(source) = &spec.resource {
        return usage(figures, pods, &source.name, None);
    }
    if let Some(source) = &spec.container_resource {
        return usage(figures, pods, &source.name, Some(&source.container));
    }
    if let Some(source) = &spec.pods {
        let asked = of_pods(figures, metric(&source.metric), pods, LONGEST_WAIT);
        let values = match asked.await {
            Ok(values) => values,
            Err(why) => return Reading::Failed(why),
        };
        let by_name = values.iter().map(|value| (value.pod.as_str(), value));
        let by_name: HashMap<&str, &PodValue> = by_name.collect();
        let samples = pods.iter().map(|pod| {
            let value = by_name.get(pod.metadata.name.as_deref()?)?;
            Some(Sample {
                value: value.millis,
                at: value.at,
                window: value.window,
            })
        });
        return Reading::Pods(samples.collect());
    }
    if let Some(source) = &spec.object {
        let asked = figures.of_object(metric(&source.metric), &source.described_object);
        return match answered(CUSTOM, LONGEST_WAIT, asked).await {
            Ok(value) => Reading::Value(value),
            Err(why) => Reading::Failed(why),
        };
    }
    if let Some(source) = &spec.external {
        let asked = figures.external(metric(&source.metric));
        return match answered(EXTERNAL, LONGEST_WAIT, asked).await {
            Ok(values) if values.is_empty() => Reading::Failed(none(EXTERNAL)),
            Ok(values) => Reading::Values(values),
            Err(why) => Reading::Failed(why),
        };
    }
    Reading::Failed("no metrics returned".to_owned())
}

fn of<'a>(namespace: &'a str, metric: &'a MetricIdentifier) -> Metric<'a> {
    Metric {
        namespace,
        name: &metric.name,
        selector: metric.selector.as_ref(),
    }
}

/// A metric of each of the pods that has it, at least of one; or why there is none.
pub(crate) async fn of_pods(
    figures: &dyn Figures,
    metric: Metric<'_>,
    pods: &[Arc<Pod>],
    longest_wait: Duration,
) -> Result<Vec<PodValue>, String> {
    let values = answered(CUSTOM, longest_wait, figures.of_pods(metric, pods)).await?;
    match values.is_empty() {
        true => Err(none(CUSTOM)),
        false => Ok(values),
    }
}

fn none(api: &str) -> String {
    format!("no metrics returned from {api} metrics API")
}

fn failed(api: &str, why: &str) -> String {
    format!("unable to fetch metrics from {api} metrics API: {why}")
}

async fn answered<T>(
    api: &str,
    longest_wait: Duration,
    asked: impl Future<Output = Result<T, FiguresError>>,
) -> Result<T, String> {
    match tokio::time::timeout(longest_wait, asked).await {
        Ok(answer) => answer.map_err(|error| failed(api, &error.0)),
        Err(_) => Err(failed(api, &format!("no answer within {longest_wait:?}"))),
    }
}

/// What the pods use of a resource, in all containers or in one.
fn usage(
    figures: &dyn Figures,
    pods: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Reading {
    // Whether anything is measured at all, even if there are no pods.
    if let Err(error) = figures.usage("") {
        return Reading::Failed(failed(RESOURCE, &error.0));
    }
    let mut samples = Vec::with_capacity(pods.len());
    let mut is_known = false;
    for pod in pods {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let usage = match figures.usage(uid) {
            Ok(usage) => usage,
            Err(error) => return Reading::Failed(failed(RESOURCE, &error.0)),
        };
        is_known |= usage.is_some();
        let of_pod = usage.as_deref();
        match of_pod.map(|usage| sample(usage, resource, container)) {
            None => samples.push(None),
            Some(Ok(sample)) => samples.push(sample),
            Some(Err(container)) => {
                let metadata = &pod.metadata;
                let namespace = metadata.namespace.as_deref().unwrap_or_default();
                let name = metadata.name.as_deref().unwrap_or_default();
                return Reading::Failed(format!(
                    "failed to get container metrics: container {container} not present in metrics for pod {namespace}/{name}"
                ));
            }
        }
    }
    match is_known {
        true => Reading::Pods(samples),
        false => Reading::Failed(none(RESOURCE)),
    }
}

/// What a pod uses of a resource, if anything measures that; or the container that it does not have.
fn sample<'a>(
    usage: &PodUsage,
    resource: &str,
    container: Option<&'a str>,
) -> Result<Option<Sample>, &'a str> {
    let mut of = usage
        .containers
        .iter()
        .filter(|of| container.is_none_or(|wanted| of.name == wanted))
        .peekable();
    if of.peek().is_none() {
        return container.map_or(Ok(None), Err);
    }
    let value = match resource {
        // Each container's amount is rounded up, as it is where it is served.
        "cpu" => of
            .map(|of| of.cpu_nanocores.div_ceil(1_000_000))
            .sum::<u64>(),
        "memory" => of
            .map(|of| of.working_set_bytes)
            .fold(0u64, u64::saturating_add)
            .saturating_mul(1000),
        _ => return Ok(None),
    };
    Ok(Some(Sample {
        value: i64::try_from(value).unwrap_or(i64::MAX),
        at: usage.at,
        window: usage.window,
    }))
}
