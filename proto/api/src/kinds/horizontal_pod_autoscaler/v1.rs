//! HorizontalPodAutoscaler in its first version, which knows the use of processors alone: all else is in annotations.

mod metrics;

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v1::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus,
};
use k8s_openapi::api::autoscaling::v2;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::HorizontalPodAutoscalerKind as Hub;
use super::{BEHAVIOR, CONDITIONS, CURRENT, METRICS, default_metric, drop_annotations};
use crate::field::ErrorList;
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::kinds::table::Printer;
use crate::parts;
use crate::schema::TypeSchema;
use crate::status::StatusError;

/// See [`HorizontalPodAutoscaler`].
pub struct HorizontalPodAutoscalerKind;

/// Behavior as the annotation has it: by the names of Go's fields.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Behavior {
    scale_up: Option<Rules>,
    scale_down: Option<Rules>,
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Rules {
    stabilization_window_seconds: Option<i32>,
    select_policy: Option<String>,
    policies: Option<Vec<Policy>>,
    tolerance: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Policy {
    r#type: String,
    value: i32,
    period_seconds: i32,
}

impl From<v2::HPAScalingRules> for Rules {
    fn from(rules: v2::HPAScalingRules) -> Self {
        let policy = |policy: v2::HPAScalingPolicy| Policy {
            r#type: policy.type_,
            value: policy.value,
            period_seconds: policy.period_seconds,
        };
        Self {
            stabilization_window_seconds: rules.stabilization_window_seconds,
            select_policy: rules.select_policy,
            policies: rules
                .policies
                .map(|policies| policies.into_iter().map(policy).collect()),
            tolerance: rules.tolerance,
        }
    }
}

impl From<Rules> for v2::HPAScalingRules {
    fn from(rules: Rules) -> Self {
        let policy = |policy: Policy| v2::HPAScalingPolicy {
            type_: policy.r#type,
            value: policy.value,
            period_seconds: policy.period_seconds,
        };
        Self {
            stabilization_window_seconds: rules.stabilization_window_seconds,
            select_policy: rules.select_policy,
            policies: rules
                .policies
                .map(|policies| policies.into_iter().map(policy).collect()),
            tolerance: rules.tolerance,
        }
    }
}

/// What an annotation holds; it is gone from the object then. One that cannot be read says nothing.
fn take<T: DeserializeOwned>(annotations: &mut BTreeMap<String, String>, name: &str) -> Option<T> {
    let text = annotations.remove(name)?;
    serde_json::from_str(&text).ok()
}

fn put<T: Serialize>(annotations: &mut BTreeMap<String, String>, name: &str, value: &T) {
    if let Ok(text) = serde_json::to_string(value) {
        annotations.insert(name.to_owned(), text);
    }
}

/// Whether a metric is what this version has a field for: a share of the processors.
fn processors(metric: &v2::MetricSpec) -> Option<i32> {
    let resource = metric.resource.as_ref();
    let resource = resource.filter(|source| metric.type_ == "Resource" && source.name == "cpu");
    resource?.target.average_utilization
}

fn processors_used(metric: &v2::MetricStatus) -> Option<i32> {
    let resource = metric.resource.as_ref();
    let resource = resource.filter(|status| metric.type_ == "Resource" && status.name == "cpu");
    resource?.current.average_utilization
}

fn to_hub(object: HorizontalPodAutoscaler) -> v2::HorizontalPodAutoscaler {
    let mut metadata = object.metadata;
    let mut annotations = metadata.annotations.unwrap_or_default();
    let spec = object.spec;
    let others: Option<Vec<metrics::Spec>> = take(&mut annotations, METRICS);
    let others = others.into_iter().flatten().map(v2::MetricSpec::from);
    let mut metrics: Vec<v2::MetricSpec> = others.collect();
    if let Some(share) = spec.target_cpu_utilization_percentage {
        let mut metric = default_metric();
        if let Some(resource) = &mut metric.resource {
            resource.target.average_utilization = Some(share);
        }
        metrics.push(metric);
    }
    if metrics.is_empty() {
        // Known here alone, where all metrics are.
        metrics.push(default_metric());
    }
    let behavior: Option<Behavior> = take(&mut annotations, BEHAVIOR);
    let behavior = behavior.filter(|behavior| *behavior != Behavior::default());
    let conditions: Option<Vec<metrics::Condition>> = take(&mut annotations, CONDITIONS);
    let conditions = conditions.map(|all| all.into_iter().map(Into::into).collect());
    let status = object.status.unwrap_or_default();
    let used = status
        .current_cpu_utilization_percentage
        .map(|share| v2::MetricStatus {
            type_: "Resource".to_owned(),
            resource: Some(v2::ResourceMetricStatus {
                name: "cpu".to_owned(),
                current: v2::MetricValueStatus {
                    average_utilization: Some(share),
                    ..v2::MetricValueStatus::default()
                },
            }),
            ..v2::MetricStatus::default()
        });
    let known: Option<Vec<metrics::Status>> = take(&mut annotations, CURRENT);
    let known = known.map(|known| known.into_iter().map(v2::MetricStatus::from).collect());
    metadata.annotations = Some(annotations);
    drop_annotations(&mut metadata);
    v2::HorizontalPodAutoscaler {
        metadata,
        spec: v2::HorizontalPodAutoscalerSpec {
            scale_target_ref: v2::CrossVersionObjectReference {
                api_version: spec.scale_target_ref.api_version,
                kind: spec.scale_target_ref.kind,
                name: spec.scale_target_ref.name,
            },
            min_replicas: spec.min_replicas,
            max_replicas: spec.max_replicas,
            metrics: Some(metrics),
            behavior: behavior.map(|behavior| v2::HorizontalPodAutoscalerBehavior {
                scale_up: behavior.scale_up.map(Into::into),
                scale_down: behavior.scale_down.map(Into::into),
            }),
        },
        status: Some(v2::HorizontalPodAutoscalerStatus {
            observed_generation: status.observed_generation,
            last_scale_time: status.last_scale_time,
            current_replicas: Some(status.current_replicas),
            desired_replicas: status.desired_replicas,
            // What the annotation says is more.
            current_metrics: known.or_else(|| used.map(|used| vec![used])),
            conditions,
        }),
    }
}

fn from_hub(object: v2::HorizontalPodAutoscaler) -> HorizontalPodAutoscaler {
    let mut metadata = object.metadata;
    drop_annotations(&mut metadata);
    let mut annotations = metadata.annotations.unwrap_or_default();
    let spec = object.spec;
    let metrics = spec.metrics.unwrap_or_default();
    let share = metrics.iter().find_map(processors);
    let others = metrics
        .into_iter()
        .filter(|metric| processors(metric).is_none());
    let others: Vec<metrics::Spec> = others.map(metrics::Spec::from).collect();
    if !others.is_empty() {
        put(&mut annotations, METRICS, &others);
    }
    if let Some(behavior) = spec.behavior {
        let behavior = Behavior {
            scale_up: behavior.scale_up.map(Into::into),
            scale_down: behavior.scale_down.map(Into::into),
        };
        put(&mut annotations, BEHAVIOR, &behavior);
    }
    let status = object.status.unwrap_or_default();
    let current = status.current_metrics.unwrap_or_default();
    let used = current.iter().filter_map(processors_used).next_back();
    let current: Vec<metrics::Status> = current.into_iter().map(Into::into).collect();
    if !current.is_empty() {
        put(&mut annotations, CURRENT, &current);
    }
    let conditions = status.conditions.unwrap_or_default().into_iter();
    let conditions: Vec<metrics::Condition> = conditions.map(Into::into).collect();
    if !conditions.is_empty() {
        put(&mut annotations, CONDITIONS, &conditions);
    }
    metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    HorizontalPodAutoscaler {
        metadata,
        spec: HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: spec.scale_target_ref.api_version,
                kind: spec.scale_target_ref.kind,
                name: spec.scale_target_ref.name,
            },
            min_replicas: spec.min_replicas,
            max_replicas: spec.max_replicas,
            target_cpu_utilization_percentage: share,
        },
        status: Some(HorizontalPodAutoscalerStatus {
            observed_generation: status.observed_generation,
            last_scale_time: status.last_scale_time,
            current_replicas: status.current_replicas.unwrap_or(0),
            desired_replicas: status.desired_replicas,
            current_cpu_utilization_percentage: used,
        }),
    }
}

/// Gives an object what another has in some annotations, and nothing where that has nothing.
fn keep(new: &mut HorizontalPodAutoscaler, old: &HorizontalPodAutoscaler, names: &[&str]) {
    let before = old.metadata.annotations.as_ref();
    let annotations = new.metadata.annotations.get_or_insert_default();
    for name in names {
        match before.and_then(|before| before.get(*name)) {
            Some(kept) => annotations.insert((*name).to_owned(), kept.clone()),
            None => annotations.remove(*name),
        };
    }
}

/// Reads one version of an object and writes the other, as Go would write it.
fn converted<Read: DeserializeOwned, Written: Serialize + JsonSchema>(
    object: Value,
    convert: impl FnOnce(Read) -> Written,
) -> Result<Value, StatusError> {
    let failed = |error: serde_json::Error| {
        StatusError::internal(format!("converting an autoscaler: {error}"))
    };
    let other = convert(serde_json::from_value(object).map_err(failed)?);
    let mut value = serde_json::to_value(&other).map_err(failed)?;
    TypeSchema::of::<Written>().complete(&mut value);
    Ok(value)
}

impl Kind for HorizontalPodAutoscalerKind {
    type Object = HorizontalPodAutoscaler;

    const INFO: StaticInfo = StaticInfo {
        version: "v1",
        ..Hub::INFO
    };

    const PARTS: Parts<HorizontalPodAutoscaler> = parts!(HorizontalPodAutoscaler: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut HorizontalPodAutoscaler) {
        object.spec.min_replicas.get_or_insert(1);
    }

    fn prepare_create(object: &mut HorizontalPodAutoscaler) {
        if let Some(annotations) = &mut object.metadata.annotations {
            annotations.remove(CURRENT);
            annotations.remove(CONDITIONS);
        }
    }

    fn validate(object: &HorizontalPodAutoscaler, errors: &mut ErrorList) {
        Hub::validate(&to_hub(object.clone()), errors);
    }

    fn prepare_update(new: &mut HorizontalPodAutoscaler, old: &HorizontalPodAutoscaler) {
        keep(new, old, &[CURRENT, CONDITIONS]);
    }

    // The fields of the spec have been restored; these are the rest of it.
    fn prepare_status_update(new: &mut HorizontalPodAutoscaler, old: &HorizontalPodAutoscaler) {
        keep(new, old, &[METRICS, BEHAVIOR]);
    }

    fn validate_status_update(
        new: &HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscaler,
        errors: &mut ErrorList,
    ) {
        Hub::validate_status_update(&to_hub(new.clone()), &to_hub(old.clone()), errors);
    }

    fn convert_to_hub(object: Value) -> Result<Value, StatusError> {
        converted(object, to_hub)
    }

    fn convert_from_hub(object: Value) -> Result<Value, StatusError> {
        converted(object, from_hub)
    }

    fn printer() -> Printer<HorizontalPodAutoscaler> {
        Hub::printer().through(|object: &HorizontalPodAutoscaler| to_hub(object.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::{ResourceKind as _, WriteScope, finish};
    use crate::typed::Typed;

    fn second() -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "namespace": "n", "annotations": {"own": "kept"}},
            "spec": {
                "minReplicas": 1, "maxReplicas": 5,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "100m"}}},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "q"},
                        "target": {"type": "Value", "value": "1k"},
                    }},
                    {"type": "External", "external": {"metric": {"name": "e"}, "target": {"type": "Value", "value": "30"}}},
                    {"type": "ContainerResource", "containerResource": {
                        "name": "memory", "container": "c", "target": {"type": "AverageValue", "averageValue": "100Mi"},
                    }},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
                "behavior": {"scaleDown": {
                    "selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
                }},
            },
            "status": {
                "currentReplicas": 2, "desiredReplicas": 3,
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "20m"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "current": {"averageValue": "90m"}}},
                ],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "R", "message": "m"}],
            },
        })
    }

    #[test]
    fn nothing_of_the_second_version_is_lost_in_the_first() {
        let first = HorizontalPodAutoscalerKind::convert_from_hub(second()).expect("converts");
        assert_eq!(first["apiVersion"], "autoscaling/v1");
        assert_eq!(first["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(first["status"]["currentCPUUtilizationPercentage"], 40);
        let annotations = &first["metadata"]["annotations"];
        let others: Value =
            serde_json::from_str(annotations[METRICS].as_str().expect("text")).expect("JSON");
        assert_eq!(
            others[0],
            json!({"type": "Pods", "pods": {"metricName": "m", "targetAverageValue": "100m"}})
        );
        assert_eq!(
            annotations[BEHAVIOR],
            r#"{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":null,"SelectPolicy":"Max","Policies":[{"Type":"Percent","Value":100,"PeriodSeconds":15}],"Tolerance":null}}"#
        );
        assert_eq!(
            annotations[CONDITIONS],
            r#"[{"type":"AbleToScale","status":"True","lastTransitionTime":null,"reason":"R","message":"m"}]"#
        );
        let object = &others[1]["object"];
        assert_eq!(object["target"], json!({"kind": "Service", "name": "s"}));
        let back = HorizontalPodAutoscalerKind::convert_to_hub(first).expect("converts");
        let mut expected = second();
        TypeSchema::of::<v2::HorizontalPodAutoscaler>().complete(&mut expected);
        assert_eq!(back, expected);
    }

    #[test]
    fn the_use_of_processors_is_the_last_of_metrics_and_the_first_that_is_a_share() {
        let cpu = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        let amount = cpu(json!({"type": "AverageValue", "averageValue": "1"}));
        let share = cpu(json!({"type": "Utilization", "averageUtilization": 50}));
        let mut object = second();
        object["spec"]["metrics"] = json!([amount, share]);
        let first = HorizontalPodAutoscalerKind::convert_from_hub(object).expect("converts");
        assert_eq!(first["spec"]["targetCPUUtilizationPercentage"], 50);
        let back = HorizontalPodAutoscalerKind::convert_to_hub(first).expect("converts");
        assert_eq!(back["spec"]["metrics"], json!([amount, share]));
    }

    #[test]
    fn each_write_keeps_the_annotations_of_the_other_part() {
        let of = |metrics: &str, conditions: &str| {
            json!({
                "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "a", "namespace": "n", "annotations": {
                    "own": metrics, METRICS: metrics, CONDITIONS: conditions,
                }},
                "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
            })
        };
        let metrics = |name: &str| {
            json!([{"type": "Pods", "pods": {"metricName": name, "targetAverageValue": "1"}}])
                .to_string()
        };
        let conditions = |reason: &str| {
            json!([{"type": "AbleToScale", "status": "True", "reason": reason}]).to_string()
        };
        let old = of(&metrics("old"), &conditions("Old"));
        let new = of(&metrics("new"), &conditions("New"));
        let kind = Typed::<HorizontalPodAutoscalerKind>::default();
        for (scope, metrics, conditions) in [
            (WriteScope::Main, metrics("new"), conditions("Old")),
            (WriteScope::Status, metrics("old"), conditions("New")),
        ] {
            let draft = kind.draft_update(new.clone(), &old, scope);
            let (written, _) = finish(draft.expect("a draft")).expect("valid");
            let annotations = &written["metadata"]["annotations"];
            assert_eq!(annotations[METRICS], metrics, "{scope:?}");
            assert_eq!(annotations[CONDITIONS], conditions, "{scope:?}");
            assert_eq!(annotations["own"], new["metadata"]["annotations"]["own"]);
        }
    }

    #[test]
    fn an_annotation_that_cannot_be_read_says_nothing() {
        let object = json!({
            "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {METRICS: "{", BEHAVIOR: "[]", CURRENT: "7"}},
            "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
        });
        let hub = HorizontalPodAutoscalerKind::convert_to_hub(object).expect("converts");
        assert_eq!(hub["metadata"], json!({"name": "a"}));
        assert_eq!(
            hub["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
    }
}
