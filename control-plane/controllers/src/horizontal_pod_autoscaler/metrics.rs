//! What each metric of an autoscaler asks for, and what is told of it: one function per type.

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus,
    PodsMetricSource, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;

use super::monitor::Fault;
use super::replicas::{Counting, Sample, total};
use super::requests::request;
use super::writing::{decimal, millis, of_its_kind, written};

const UNKNOWN_TYPE: &str = "InvalidMetricSourceType";

/// The figures of one metric.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reading {
    /// One of each pod, in their order, where there is one.
    Pods(Vec<Option<Sample>>),
    /// Thousandths.
    Value(i64),
    /// Thousandths, of each series.
    Values(Vec<i64>),
    /// Why there are none.
    Failed(String),
}

/// What a metric asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) replicas: i32,
    /// What the metric is called in events and conditions.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Of the event, and of the condition if nothing can be done.
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// The same, told among all metrics.
    pub(super) summary: String,
}

impl Trouble {
    /// Whose fault it is.
    pub(super) fn fault(&self) -> Fault {
        match self.reason == UNKNOWN_TYPE {
            true => Fault::Spec,
            false => Fault::Internal,
        }
    }
}

type Outcome = Result<Asked, Trouble>;

/// What the metric asks for.
pub(super) fn ask(
    spec: &MetricSpec,
    reading: &Reading,
    namespace: &str,
    counting: &Counting<'_>,
) -> Outcome {
    match spec.type_.as_str() {
        "Resource" => {
            if let Some(source) = &spec.resource {
                let found = of_resource(&source.name, None, &source.target, reading, counting);
                return resource(&source.name, found);
            }
        }
        "ContainerResource" => {
            if let Some(source) = &spec.container_resource {
                let container = source.container.as_str();
                let target = &source.target;
                let found = of_resource(&source.name, Some(container), target, reading, counting);
                return container_resource(&source.name, container, found);
            }
        }
        "Pods" => {
            if let Some(source) = &spec.pods {
                return pods(source, reading, counting);
            }
        }
        "Object" => {
            if let Some(source) = &spec.object {
                return object(source, reading, namespace, counting);
            }
        }
        "External" => {
            if let Some(source) = &spec.external {
                return external(source, reading, namespace, counting);
            }
        }
        _ => {}
    }
    let message = format!("unknown metric source type {:?}", spec.type_);
    Err(Trouble {
        reason: UNKNOWN_TYPE,
        summary: message.clone(),
        message,
    })
}

/// What was measured where the reading is of another sort: nothing.
fn unread(reading: &Reading) -> String {
    match reading {
        Reading::Failed(why) => why.clone(),
        _ => "no metrics returned".to_owned(),
    }
}

/// The replicas, what the metric is called, and its value.
type Found = Result<(i32, String, MetricValueStatus), String>;

fn of_resource(
    name: &str,
    container: Option<&str>,
    target: &MetricTarget,
    reading: &Reading,
    counting: &Counting<'_>,
) -> Found {
    let wanted = match (&target.average_value, target.average_utilization) {
        (Some(value), _) => Wanted::Average(millis(value)),
        (None, Some(percent)) => Wanted::Utilization(percent),
        (None, None) => {
            return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
        }
    };
    let what = match wanted {
        Wanted::Average(_) => "usage",
        Wanted::Utilization(_) => "utilization",
    };
    let failed = |why: String| format!("failed to get {name} {what}: {why}");
    let Reading::Pods(samples) = reading else {
        let why = unread(reading);
        return Err(failed(format!(
            "unable to get metrics for resource {name}: {why}"
        )));
    };
    match wanted {
        Wanted::Average(target) => {
            let asked = counting.by_average(samples, name, target);
            let (replicas, measured) = asked.map_err(failed)?;
            let current = MetricValueStatus {
                average_value: of_its_kind(name, measured.average),
                ..MetricValueStatus::default()
            };
            Ok((replicas, format!("{name} resource"), current))
        }
        Wanted::Utilization(target) => {
            let asks = |pod: &Pod| request(pod, container, name);
            let asked = counting.by_utilization(samples, name, asks, target);
            let (replicas, measured) = asked.map_err(failed)?;
            let current = MetricValueStatus {
                average_utilization: Some(measured.utilization),
                average_value: of_its_kind(name, measured.average),
                ..MetricValueStatus::default()
            };
            let of = match container {
                Some(_) => "container resource",
                None => "resource",
            };
            let called = format!("{name} {of} utilization (percentage of request)");
            Ok((replicas, called, current))
        }
    }
}

#[derive(Clone, Copy)]
enum Wanted {
    /// Thousandths per pod.
    Average(i64),
    /// Percent of what is asked for.
    Utilization(i32),
}

fn resource(name: &str, found: Found) -> Outcome {
    let (replicas, called, current) = found.map_err(|message| Trouble {
        reason: "FailedGetResourceMetric",
        summary: format!("failed to get {name} resource metric value: {message}"),
        message,
    })?;
    Ok(Asked {
        replicas,
        name: called,
        status: MetricStatus {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricStatus {
                name: name.to_owned(),
                current,
            }),
            ..MetricStatus::default()
        },
    })
}

fn container_resource(name: &str, container: &str, found: Found) -> Outcome {
    let (replicas, called, current) = found.map_err(|message| Trouble {
        reason: "FailedGetContainerResourceMetric",
        summary: format!("failed to get {container} container metric value: {message}"),
        message,
    })?;
    Ok(Asked {
        replicas,
        name: called,
        status: MetricStatus {
            type_: "ContainerResource".to_owned(),
            container_resource: Some(ContainerResourceMetricStatus {
                name: name.to_owned(),
                container: container.to_owned(),
                current,
            }),
            ..MetricStatus::default()
        },
    })
}

fn pods(source: &PodsMetricSource, reading: &Reading, counting: &Counting<'_>) -> Outcome {
    let trouble = |message: String| Trouble {
        reason: "FailedGetPodsMetric",
        summary: format!("failed to get pods metric value: {message}"),
        message,
    };
    let name = &source.metric.name;
    let target = source.target.average_value.as_ref().ok_or_else(|| {
        trouble("invalid pods metric source: no average value target was set".to_owned())
    })?;
    let Reading::Pods(samples) = reading else {
        let why = unread(reading);
        return Err(trouble(format!("unable to get metric {name}: {why}")));
    };
    let asked = counting.by_average(samples, "", millis(target));
    let (replicas, measured) = asked.map_err(trouble)?;
    Ok(Asked {
        replicas,
        name: format!("pods metric {name}"),
        status: MetricStatus {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricStatus {
                metric: source.metric.clone(),
                current: MetricValueStatus {
                    average_value: decimal(measured.average),
                    ..MetricValueStatus::default()
                },
            }),
            ..MetricStatus::default()
        },
    })
}

fn object(
    source: &ObjectMetricSource,
    reading: &Reading,
    namespace: &str,
    counting: &Counting<'_>,
) -> Outcome {
    let (name, described) = (&source.metric.name, &source.described_object);
    let trouble = |message: String, summary: String| Trouble {
        reason: "FailedGetObjectMetric",
        summary: format!("failed to get object metric value: {summary}"),
        message,
    };
    let usage = || match reading {
        Reading::Value(usage) => Ok(*usage),
        _ => Err(format!(
            "unable to get metric {name}: {} on {namespace} {}/{}",
            described.kind,
            described.name,
            unread(reading)
        )),
    };
    let target = &source.target;
    let (replicas, called, current) = match target.type_.as_str() {
        "Value" if target.value.is_some() => {
            let target = target.value.as_ref().map_or(0, millis);
            let asked = usage().and_then(|usage| Ok((counting.by_value(usage, target)?, usage)));
            let (replicas, usage) = asked.map_err(|why| trouble(why.clone(), why))?;
            let current = MetricValueStatus {
                value: decimal(usage),
                ..MetricValueStatus::default()
            };
            (
                replicas,
                format!("{} metric {name}", described.kind),
                current,
            )
        }
        "AverageValue" if target.average_value.is_some() => {
            let target = target.average_value.as_ref().map_or(0, millis);
            let usage = usage().map_err(|why| {
                let summary = format!("failed to get {name} object metric: {why}");
                trouble(why, summary)
            })?;
            let (replicas, average) = counting.by_value_per_pod(usage, target);
            let current = MetricValueStatus {
                average_value: decimal(average),
                ..MetricValueStatus::default()
            };
            // Kubernetes calls it external, too.
            let selector = written(source.metric.selector.as_ref());
            let called = format!("external metric {name}({selector})");
            (replicas, called, current)
        }
        _ => {
            let why = "invalid object metric source: neither a value target nor an average value target was set";
            return Err(trouble(why.to_owned(), why.to_owned()));
        }
    };
    Ok(Asked {
        replicas,
        name: called,
        status: MetricStatus {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricStatus {
                metric: source.metric.clone(),
                described_object: described.clone(),
                current,
            }),
            ..MetricStatus::default()
        },
    })
}

fn external(
    source: &ExternalMetricSource,
    reading: &Reading,
    namespace: &str,
    counting: &Counting<'_>,
) -> Outcome {
    let name = &source.metric.name;
    let selector = written(source.metric.selector.as_ref());
    let trouble = |message: String, summary: String| Trouble {
        reason: "FailedGetExternalMetric",
        summary: format!("failed to get {name} external metric value: {summary}"),
        message,
    };
    let usage = || match reading {
        Reading::Values(values) => Ok(total(values)),
        _ => Err(format!(
            "unable to get external metric {namespace}/{name}/{selector}: {}",
            unread(reading)
        )),
    };
    let target = &source.target;
    let (replicas, current) = match (&target.average_value, &target.value) {
        (Some(target), _) => {
            let usage = usage().map_err(|why| {
                let summary = format!("failed to get {name} external metric: {why}");
                trouble(why, summary)
            })?;
            let (replicas, average) = counting.by_value_per_pod(usage, millis(target));
            let current = MetricValueStatus {
                average_value: decimal(average),
                ..MetricValueStatus::default()
            };
            (replicas, current)
        }
        (None, Some(target)) => {
            let target = millis(target);
            let asked = usage().and_then(|usage| Ok((counting.by_value(usage, target)?, usage)));
            let (replicas, usage) = asked.map_err(|why| {
                let summary = format!("failed to get external metric {name}: {why}");
                trouble(why, summary)
            })?;
            let current = MetricValueStatus {
                value: decimal(usage),
                ..MetricValueStatus::default()
            };
            (replicas, current)
        }
        (None, None) => {
            let why = "invalid external metric source: neither a value target nor an average value target was set";
            return Err(trouble(why.to_owned(), why.to_owned()));
        }
    };
    Ok(Asked {
        replicas,
        name: format!("external metric {name}({selector})"),
        status: MetricStatus {
            type_: "External".to_owned(),
            external: Some(ExternalMetricStatus {
                metric: source.metric.clone(),
                current,
            }),
            ..MetricStatus::default()
        },
    })
}
