//! Metrics as the annotations of the first version have them.

use k8s_openapi::api::autoscaling::v2::{
    self, CrossVersionObjectReference, MetricIdentifier, MetricTarget, MetricValueStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
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

/// An amount that is always written.
fn zero() -> Quantity {
    Quantity("0".to_owned())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectSpec {
    target: CrossVersionObjectReference,
    metric_name: String,
    #[serde(default = "zero")]
    target_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectStatus {
    target: CrossVersionObjectReference,
    metric_name: String,
    #[serde(default = "zero")]
    current_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodsSpec {
    metric_name: String,
    #[serde(default = "zero")]
    target_average_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodsStatus {
    metric_name: String,
    #[serde(default = "zero")]
    current_average_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
}

/// Of a pod, or of one of its containers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpec {
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
    metric_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric_selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_value: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExternalStatus {
    metric_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric_selector: Option<LabelSelector>,
    #[serde(default = "zero")]
    current_value: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current_average_value: Option<Quantity>,
}

fn identifier(name: String, selector: Option<LabelSelector>) -> MetricIdentifier {
    MetricIdentifier { name, selector }
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
        // What was not measured is not there.
        average_value: Some(status.current_average_value.clone()).filter(|value| *value != zero()),
        value: None,
    }
}

impl From<Spec> for v2::MetricSpec {
    fn from(spec: Spec) -> Self {
        Self {
            type_: spec.r#type,
            object: spec.object.map(|source| v2::ObjectMetricSource {
                described_object: source.target,
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
                target: source.described_object,
                metric_name: source.metric.name,
                target_value: source.target.value.unwrap_or_else(zero),
                selector: source.metric.selector,
                average_value: source.target.average_value,
            }),
            pods: spec.pods.map(|source| PodsSpec {
                metric_name: source.metric.name,
                target_average_value: source.target.average_value.unwrap_or_else(zero),
                selector: source.metric.selector,
            }),
            resource: spec
                .resource
                .map(|source| resource(source.name, source.target, String::new())),
            container_resource: spec
                .container_resource
                .map(|source| resource(source.name, source.target, source.container)),
            external: spec.external.map(|source| ExternalSpec {
                metric_name: source.metric.name,
                metric_selector: source.metric.selector,
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
                described_object: status.target,
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
                target: status.described_object,
                metric_name: status.metric.name,
                current_value: status.current.value.unwrap_or_else(zero),
                selector: status.metric.selector,
                average_value: status.current.average_value,
            }),
            pods: status.pods.map(|status| PodsStatus {
                metric_name: status.metric.name,
                current_average_value: status.current.average_value.unwrap_or_else(zero),
                selector: status.metric.selector,
            }),
            resource: status
                .resource
                .map(|status| resource(status.name, status.current, String::new())),
            container_resource: status
                .container_resource
                .map(|status| resource(status.name, status.current, status.container)),
            external: status.external.map(|status| ExternalStatus {
                metric_name: status.metric.name,
                metric_selector: status.metric.selector,
                current_value: status.current.value.unwrap_or_else(zero),
                current_average_value: status.current.average_value,
            }),
        }
    }
}
