//! Metrics and conditions as the annotations of the first version have them: texts, in which fields are in Go's order.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::{
    self, CrossVersionObjectReference, MetricIdentifier, MetricTarget, MetricValueStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, Time,
};
use serde::{Deserialize, Serialize};

/// What is aimed at.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<PodsSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<ResourceSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<ResourceSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<ExternalSpec>,
}

/// What was measured.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<PodsStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<ResourceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<ResourceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<ExternalStatus>,
}

/// How it goes.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// What a metric describes.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
}

/// Which series a metric is of.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    #[serde(skip_serializing_if = "Option::is_none")]
    match_labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    match_expressions: Option<Vec<LabelSelectorRequirement>>,
}

/// An amount that is always written.
fn zero() -> Quantity {
    Quantity("0".to_owned())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectSpec {
    #[serde(default)]
    target: Reference,
    #[serde(default)]
    metric_name: String,
    #[serde(default = "zero")]
    target_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Selector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectStatus {
    #[serde(default)]
    target: Reference,
    #[serde(default)]
    metric_name: String,
    #[serde(default = "zero")]
    current_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Selector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodsSpec {
    #[serde(default)]
    metric_name: String,
    #[serde(default = "zero")]
    target_average_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Selector>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodsStatus {
    #[serde(default)]
    metric_name: String,
    #[serde(default = "zero")]
    current_average_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<Selector>,
}

/// Of a pod, or of one of its containers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpec {
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_average_utilization: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    container: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceStatus {
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current_average_utilization: Option<i32>,
    #[serde(default = "zero")]
    current_average_value: Quantity,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    container: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExternalSpec {
    #[serde(default)]
    metric_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric_selector: Option<Selector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_value: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExternalStatus {
    #[serde(default)]
    metric_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric_selector: Option<Selector>,
    #[serde(default = "zero")]
    current_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current_average_value: Option<Quantity>,
}

fn identifier(name: String, selector: Option<Selector>) -> MetricIdentifier {
    MetricIdentifier {
        name,
        selector: selector.map(Into::into),
    }
}

/// A target by its sort, which follows from what it has.
fn target(sort: &str, value: Option<Quantity>, average_value: Option<Quantity>) -> MetricTarget {
    MetricTarget {
        type_: sort.to_owned(),
        value,
        average_value,
        average_utilization: None,
    }
}

fn resource_target(source: &ResourceSpec) -> MetricTarget {
    let sort = match source.target_average_utilization {
        Some(_) => "Utilization",
        None => "AverageValue",
    };
    MetricTarget {
        average_utilization: source.target_average_utilization,
        ..target(sort, None, source.target_average_value.clone())
    }
}

fn resource_current(status: &ResourceStatus) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: status.current_average_utilization,
        average_value: Some(status.current_average_value.clone()),
        value: None,
    }
}

impl From<Reference> for CrossVersionObjectReference {
    fn from(reference: Reference) -> Self {
        Self {
            kind: reference.kind,
            name: reference.name,
            api_version: reference.api_version,
        }
    }
}

impl From<CrossVersionObjectReference> for Reference {
    fn from(reference: CrossVersionObjectReference) -> Self {
        Self {
            kind: reference.kind,
            name: reference.name,
            api_version: reference.api_version,
        }
    }
}

impl From<Selector> for LabelSelector {
    fn from(selector: Selector) -> Self {
        Self {
            match_labels: selector.match_labels,
            match_expressions: selector.match_expressions,
        }
    }
}

impl From<LabelSelector> for Selector {
    fn from(selector: LabelSelector) -> Self {
        Self {
            match_labels: selector.match_labels.filter(|labels| !labels.is_empty()),
            match_expressions: selector.match_expressions.filter(|all| !all.is_empty()),
        }
    }
}

impl From<Condition> for v2::HorizontalPodAutoscalerCondition {
    fn from(condition: Condition) -> Self {
        Self {
            type_: condition.r#type,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        }
    }
}

impl From<v2::HorizontalPodAutoscalerCondition> for Condition {
    fn from(condition: v2::HorizontalPodAutoscalerCondition) -> Self {
        Self {
            r#type: condition.type_,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        }
    }
}

impl From<Spec> for v2::MetricSpec {
    fn from(spec: Spec) -> Self {
        Self {
            type_: spec.r#type,
            object: spec.object.map(|source| v2::ObjectMetricSource {
                described_object: source.target.into(),
                metric: identifier(source.metric_name, source.selector),
                target: match source.average_value {
                    None => target("Value", Some(source.target_value), None),
                    // What was not set is not there.
                    average => {
                        let value = Some(source.target_value).filter(|value| *value != zero());
                        target("AverageValue", value, average)
                    }
                },
            }),
            pods: spec.pods.map(|source| v2::PodsMetricSource {
                metric: identifier(source.metric_name, source.selector),
                target: target("AverageValue", None, Some(source.target_average_value)),
            }),
            resource: spec.resource.map(|source| v2::ResourceMetricSource {
                target: resource_target(&source),
                name: source.name,
            }),
            container_resource: spec.container_resource.map(|source| {
                v2::ContainerResourceMetricSource {
                    target: resource_target(&source),
                    name: source.name,
                    container: source.container,
                }
            }),
            external: spec.external.map(|source| v2::ExternalMetricSource {
                metric: identifier(source.metric_name, source.metric_selector),
                target: target(
                    match source.target_value {
                        Some(_) => "Value",
                        None => "AverageValue",
                    },
                    source.target_value,
                    source.target_average_value,
                ),
            }),
        }
    }
}

impl From<v2::MetricSpec> for Spec {
    fn from(spec: v2::MetricSpec) -> Self {
        let resource = |name: String, target: MetricTarget, container: String| ResourceSpec {
            name,
            target_average_utilization: target.average_utilization,
            target_average_value: target.average_value,
            container,
        };
        Self {
            r#type: spec.type_,
            object: spec.object.map(|source| ObjectSpec {
                target: source.described_object.into(),
                metric_name: source.metric.name,
                target_value: source.target.value.unwrap_or_else(zero),
                selector: source.metric.selector.map(Into::into),
                average_value: source.target.average_value,
            }),
            pods: spec.pods.map(|source| PodsSpec {
                metric_name: source.metric.name,
                target_average_value: source.target.average_value.unwrap_or_else(zero),
                selector: source.metric.selector.map(Into::into),
            }),
            resource: spec
                .resource
                .map(|source| resource(source.name, source.target, String::new())),
            container_resource: spec
                .container_resource
                .map(|source| resource(source.name, source.target, source.container)),
            external: spec.external.map(|source| ExternalSpec {
                metric_name: source.metric.name,
                metric_selector: source.metric.selector.map(Into::into),
                target_value: source.target.value,
                target_average_value: source.target.average_value,
            }),
        }
    }
}

impl From<Status> for v2::MetricStatus {
    fn from(status: Status) -> Self {
        let of = |value: Option<Quantity>, average_value: Option<Quantity>| MetricValueStatus {
            value,
            average_value,
            average_utilization: None,
        };
        Self {
            type_: status.r#type,
            object: status.object.map(|status| v2::ObjectMetricStatus {
                described_object: status.target.into(),
                metric: identifier(status.metric_name, status.selector),
                current: of(Some(status.current_value), status.average_value),
            }),
            pods: status.pods.map(|status| v2::PodsMetricStatus {
                metric: identifier(status.metric_name, status.selector),
                current: of(None, Some(status.current_average_value)),
            }),
            resource: status.resource.map(|status| v2::ResourceMetricStatus {
                current: resource_current(&status),
                name: status.name,
            }),
            container_resource: status.container_resource.map(|status| {
                v2::ContainerResourceMetricStatus {
                    current: resource_current(&status),
                    name: status.name,
                    container: status.container,
                }
            }),
            external: status.external.map(|status| v2::ExternalMetricStatus {
                metric: identifier(status.metric_name, status.metric_selector),
                current: of(Some(status.current_value), status.current_average_value),
            }),
        }
    }
}

impl From<v2::MetricStatus> for Status {
    fn from(status: v2::MetricStatus) -> Self {
        let resource =
            |name: String, current: MetricValueStatus, container: String| ResourceStatus {
                name,
                current_average_utilization: current.average_utilization,
                current_average_value: current.average_value.unwrap_or_else(zero),
                container,
            };
        Self {
            r#type: status.type_,
            object: status.object.map(|status| ObjectStatus {
                target: status.described_object.into(),
                metric_name: status.metric.name,
                current_value: status.current.value.unwrap_or_else(zero),
                selector: status.metric.selector.map(Into::into),
                average_value: status.current.average_value,
            }),
            pods: status.pods.map(|status| PodsStatus {
                metric_name: status.metric.name,
                current_average_value: status.current.average_value.unwrap_or_else(zero),
                selector: status.metric.selector.map(Into::into),
            }),
            resource: status
                .resource
                .map(|status| resource(status.name, status.current, String::new())),
            container_resource: status
                .container_resource
                .map(|status| resource(status.name, status.current, status.container)),
            external: status.external.map(|status| ExternalStatus {
                metric_name: status.metric.name,
                metric_selector: status.metric.selector.map(Into::into),
                current_value: status.current.value.unwrap_or_else(zero),
                current_average_value: status.current.average_value,
            }),
        }
    }
}
