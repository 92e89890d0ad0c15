//! What an autoscaler must be.

use std::collections::BTreeSet;

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricSource, CrossVersionObjectReference, HPAScalingRules,
    HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricIdentifier, MetricSpec,
    MetricTarget,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

use crate::field::{ErrorList, Path};
use crate::kinds::pod_spec;
use crate::names;
use crate::quantity::Quantity;

const LONGEST_WINDOW: i32 = 3600;
const LONGEST_PERIOD: i32 = 1800;
const AT_LEAST_ONE: &str = "must be greater than 0";
const SORTS: &[&str] = &[
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

/// Whether an amount is more than nothing.
fn is_positive(amount: &Written) -> bool {
    let amount: Result<Quantity, _> = amount.0.parse();
    amount.is_ok_and(|amount| amount.sign() > 0)
}

/// The whole of what is wished for.
pub(super) fn spec(spec: &HorizontalPodAutoscalerSpec, path: &Path, errors: &mut ErrorList) {
    let (least, most) = (spec.min_replicas, spec.max_replicas);
    let metrics = spec.metrics.as_deref().unwrap_or_default();
    // Pods that are not there say nothing of themselves: what may have none is scaled by something else.
    let looks_elsewhere = |metric: &MetricSpec| ["Object", "External"].contains(&&*metric.type_);
    let may_be_none = metrics.iter().any(looks_elsewhere);
    let fewest = if may_be_none { 0 } else { 1 };
    if let Some(least) = least.filter(|least| *least < fewest) {
        let detail = format!("must be greater than or equal to {fewest}");
        errors.invalid(&path.child("minReplicas"), least, &detail);
    }
    let most_path = path.child("maxReplicas");
    match most {
        0 => errors.required(&most_path, "must be set and greater than 0"),
        ..0 => errors.invalid(&most_path, most, "must be greater than or equal to 1"),
        _ => {}
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.invalid(&most_path, most, detail);
    }
    let target_path = path.child("scaleTargetRef");
    reference(&spec.scale_target_ref, &target_path, errors);
    group(&spec.scale_target_ref, &target_path, errors);
    let metrics_path = path.child("metrics");
    for (number, metric) in metrics.iter().enumerate() {
        self::metric(metric, &metrics_path.index(number), errors);
    }
    if least == Some(0) && !may_be_none {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&metrics_path, detail);
    }
    if let Some(behavior) = &spec.behavior {
        let path = path.child("behavior");
        for (rules, name) in [
            (&behavior.scale_up, "scaleUp"),
            (&behavior.scale_down, "scaleDown"),
        ] {
            if let Some(rules) = rules {
                self::rules(rules, &path.child(name), errors);
            }
        }
    }
}

/// What was found out.
pub(super) fn status(status: &HorizontalPodAutoscalerStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    for (count, name) in [
        (status.current_replicas.unwrap_or(0), "currentReplicas"),
        (status.desired_replicas, "desiredReplicas"),
    ] {
        if count < 0 {
            errors.invalid(&path.child(name), count, names::NOT_NEGATIVE);
        }
    }
}

fn reference(object: &CrossVersionObjectReference, path: &Path, errors: &mut ErrorList) {
    for (text, name) in [(&object.kind, "kind"), (&object.name, "name")] {
        let path = path.child(name);
        if text.is_empty() {
            errors.required(&path, "");
        }
        for detail in names::path_segment(text) {
            errors.invalid(&path, text, &detail);
        }
    }
}

/// What is scaled is found by its group: only one kind of the core group can be.
fn group(object: &CrossVersionObjectReference, path: &Path, errors: &mut ErrorList) {
    let version = object.api_version.as_deref().unwrap_or_default();
    let has_group = version.contains('/') && !version.starts_with('/');
    if is_group_version(version) && !has_group && object.kind != "ReplicationController" {
        let detail = "apiVersion must specify API group";
        errors.invalid(&path.child("apiVersion"), version, detail);
    }
    group_version(version, path, errors);
}

fn is_group_version(version: &str) -> bool {
    version.matches('/').count() < 2
}

/// A version, perhaps of a group.
fn group_version(version: &str, path: &Path, errors: &mut ErrorList) {
    if !is_group_version(version) {
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&path.child("apiVersion"), version, &detail);
    }
}

fn identifier(metric: &MetricIdentifier, path: &Path, errors: &mut ErrorList) {
    let path = path.child("name");
    if metric.name.is_empty() {
        errors.required(&path, "must specify a metric name");
    }
    for detail in names::path_segment(&metric.name) {
        errors.invalid(&path, &metric.name, &detail);
    }
}

fn target(target: &MetricTarget, path: &Path, errors: &mut ErrorList) {
    let sort = target.type_.as_str();
    if sort.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&sort) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid(&path.child("type"), sort, detail);
    }
    for (amount, name) in [
        (&target.value, "value"),
        (&target.average_value, "averageValue"),
    ] {
        if let Some(amount) = amount.as_ref().filter(|amount| !is_positive(amount)) {
            errors.invalid(&path.child(name), amount, "must be positive");
        }
    }
    if let Some(share) = target.average_utilization.filter(|share| *share < 1) {
        errors.invalid(&path.child("averageUtilization"), share, AT_LEAST_ONE);
    }
}

/// A target of pods' own resources: an amount or a share, and not both.
fn resource_target(wanted: &MetricTarget, path: &Path, errors: &mut ErrorList) {
    target(wanted, path, errors);
    match (wanted.average_utilization, &wanted.average_value) {
        (None, None) => errors.required(
            &path.child("averageUtilization"),
            "must set either a target raw value or a target utilization",
        ),
        (Some(_), Some(_)) => errors.forbidden(
            &path.child("averageValue"),
            "may not set both a target raw value and a target utilization",
        ),
        _ => {}
    }
}

fn resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(&path.child("name"), "must specify a resource name");
    }
}

/// A resource of one of the pods' containers.
fn container_resource(source: &ContainerResourceMetricSource, path: &Path, errors: &mut ErrorList) {
    resource_name(&source.name, path, errors);
    if !source.name.is_empty() {
        pod_spec::check_resource_name(&source.name, true, &path.child("name"), errors);
    }
    let container_path = path.child("container");
    match source.container.as_str() {
        "" => errors.required(&container_path, "must specify a container"),
        name => errors.invalid_each(&container_path, name, names::dns1123_label(name)),
    }
    resource_target(&source.target, &path.child("target"), errors);
}

/// Checks the sources that are there, the first of them in full, and returns their names.
fn sources(metric: &MetricSpec, path: &Path, errors: &mut ErrorList) -> BTreeSet<&'static str> {
    let mut present = BTreeSet::new();
    let mut is_first = |name| {
        present.insert(name);
        present.len() == 1
    };
    if let Some(source) = &metric.object
        && is_first("object")
    {
        let path = path.child("object");
        let described = &source.described_object;
        let described_path = path.child("describedObject");
        reference(described, &described_path, errors);
        let version = described.api_version.as_deref().unwrap_or_default();
        group_version(version, &described_path, errors);
        identifier(&source.metric, &path.child("metric"), errors);
        let path = path.child("target");
        target(&source.target, &path, errors);
        if source.target.value.is_none() && source.target.average_value.is_none() {
            let detail = "must set either a target value or averageValue";
            errors.required(&path.child("averageValue"), detail);
        }
    }
    if let Some(source) = &metric.external
        && is_first("external")
    {
        let path = path.child("external");
        identifier(&source.metric, &path.child("metric"), errors);
        let path = path.child("target");
        target(&source.target, &path, errors);
        match (&source.target.value, &source.target.average_value) {
            (None, None) => errors.required(
                &path.child("averageValue"),
                "must set either a target value for metric or a per-pod target",
            ),
            (Some(_), Some(_)) => errors.forbidden(
                &path.child("value"),
                "may not set both a target value for metric and a per-pod target",
            ),
            _ => {}
        }
    }
    if let Some(source) = &metric.pods
        && is_first("pods")
    {
        let path = path.child("pods");
        identifier(&source.metric, &path.child("metric"), errors);
        let path = path.child("target");
        target(&source.target, &path, errors);
        if source.target.average_value.is_none() {
            let detail = "must specify a positive target averageValue";
            errors.required(&path.child("averageValue"), detail);
        }
    }
    if let Some(source) = &metric.resource
        && is_first("resource")
    {
        let path = path.child("resource");
        resource_name(&source.name, &path, errors);
        resource_target(&source.target, &path.child("target"), errors);
    }
    if let Some(source) = &metric.container_resource
        && is_first("containerResource")
    {
        container_resource(source, &path.child("containerResource"), errors);
    }
    present
}

fn metric(metric: &MetricSpec, path: &Path, errors: &mut ErrorList) {
    let sort = metric.type_.as_str();
    let sort_path = path.child("type");
    if sort.is_empty() {
        errors.required(&sort_path, "must specify a metric source type");
    }
    if !SORTS.contains(&sort) {
        errors.not_supported(&sort_path, sort, SORTS);
    }
    let mut present = sources(metric, path, errors);
    let expected = match sort {
        "Object" => "object",
        "External" => "external",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => "",
    };
    let count = present.len();
    if expected.is_empty() {
        errors.not_supported(&sort_path, sort, SORTS);
    } else if !present.remove(expected) {
        let detail = "must populate information for the given metric source";
        errors.required(&path.child(expected), detail);
    }
    if count != 1 {
        for other in present {
            let detail = "must populate the given metric source only";
            errors.forbidden(&path.child(other), detail);
        }
    }
}

fn rules(rules: &HPAScalingRules, path: &Path, errors: &mut ErrorList) {
    let window_path = path.child("stabilizationWindowSeconds");
    match rules.stabilization_window_seconds {
        Some(window) if window < 0 => {
            let detail = "must be greater than or equal to zero";
            errors.invalid(&window_path, window, detail);
        }
        Some(window) if window > LONGEST_WINDOW => {
            let detail = format!("must be less than or equal to {LONGEST_WINDOW}");
            errors.invalid(&window_path, window, &detail);
        }
        _ => {}
    }
    if let Some(select) = &rules.select_policy {
        let known = ["Disabled", "Max", "Min"];
        if !known.contains(&select.as_str()) {
            errors.not_supported(&path.child("selectPolicy"), select, &known);
        }
    }
    let policies_path = path.child("policies");
    let policies = rules.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        errors.required(&policies_path, "must specify at least one Policy");
    }
    for (number, policy) in policies.iter().enumerate() {
        let path = policies_path.index(number);
        let known = ["Percent", "Pods"];
        if !known.contains(&policy.type_.as_str()) {
            errors.not_supported(&path.child("type"), &policy.type_, &known);
        }
        let positive = "must be greater than zero";
        if policy.value <= 0 {
            errors.invalid(&path.child("value"), policy.value, positive);
        }
        let period = policy.period_seconds;
        if period <= 0 {
            errors.invalid(&path.child("periodSeconds"), period, positive);
        }
        if period > LONGEST_PERIOD {
            let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
            errors.invalid(&path.child("periodSeconds"), period, &detail);
        }
    }
    let tolerance = rules.tolerance.as_ref();
    let tolerance: Option<Quantity> = tolerance.and_then(|amount| amount.0.parse().ok());
    if let Some(tolerance) = tolerance.filter(|amount| amount.sign() < 0) {
        let path = path.child("tolerance");
        errors.invalid(&path, tolerance.to_string(), names::NOT_NEGATIVE);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(value: Value) -> Vec<String> {
        let object = serde_json::from_value(value).expect("a spec");
        let mut errors = ErrorList::default();
        spec(&object, &Path::new("spec"), &mut errors);
        errors.told()
    }

    #[test]
    fn metrics_have_one_source_and_a_target_that_can_be_reached() {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let of = |metric: Value| {
            refused(json!({"maxReplicas": 2, "scaleTargetRef": target, "metrics": [metric]}))
        };
        assert_eq!(
            of(json!({"type": "Resource"})),
            [
                "spec.metrics[0].resource: Required value: must populate information for the given metric source"
            ]
        );
        assert_eq!(
            of(
                json!({"type": "Pods", "pods": {"metric": {"name": ""}, "target": {"type": "Value", "value": "1"}}})
            ),
            [
                "spec.metrics[0].pods.metric.name: Required value: must specify a metric name",
                "spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue"
            ]
        );
        let both = json!({
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 5}},
            "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}},
        });
        assert_eq!(
            of(both),
            ["spec.metrics[0].pods: Forbidden: must populate the given metric source only"]
        );
    }

    #[test]
    fn what_is_scaled_has_a_group() {
        let of = |version: &str, kind: &str| {
            let target = json!({"apiVersion": version, "kind": kind, "name": "d"});
            refused(json!({"maxReplicas": 2, "scaleTargetRef": target}))
        };
        let none = "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group";
        assert_eq!(of("v1", "Pod"), [none]);
        assert_eq!(of("v1", "ReplicationController"), [""; 0]);
        assert_eq!(of("", "ReplicationController"), [""; 0]);
        assert_eq!(of("apps/v1", "Deployment"), [""; 0]);
        assert_eq!(of("a/b/c", "Deployment").len(), 1);
    }

    #[test]
    fn numbers_of_replicas_make_sense() {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let of = |least: i32, most: i32| {
            refused(json!({"minReplicas": least, "maxReplicas": most, "scaleTargetRef": target}))
        };
        assert_eq!(of(1, 1), [""; 0]);
        let below =
            "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`";
        assert_eq!(
            of(1, 0),
            [
                "spec.maxReplicas: Required value: must be set and greater than 0",
                below
            ]
        );
        assert_eq!(
            of(-2, -1),
            [
                "spec.minReplicas: Invalid value: -2: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1",
            ]
        );
        assert_eq!(
            of(0, 1),
            [
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
            ]
        );
        let none = |least: i32| {
            let value = json!({"type": "AverageValue", "averageValue": "10"});
            let queue = json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": value}});
            refused(
                json!({"minReplicas": least, "maxReplicas": 2, "scaleTargetRef": target, "metrics": [queue]}),
            )
        };
        assert_eq!(none(0), [""; 0]);
        let below = "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0";
        assert_eq!(none(-1), [below]);
    }

    #[test]
    fn what_is_measured_has_names_that_can_be_asked_for() {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let of = |metric: Value| {
            let told =
                refused(json!({"maxReplicas": 2, "scaleTargetRef": target, "metrics": [metric]}));
            told.into_iter()
                .map(|error| error.split(": ").next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        let half = json!({"type": "Utilization", "averageUtilization": 50});
        let container = |name: &str, container: &str| {
            let source = json!({"name": name, "container": container, "target": half});
            of(json!({"type": "ContainerResource", "containerResource": source}))
        };
        assert_eq!(container("cpu", "c"), [""; 0]);
        assert_eq!(
            container("storage", "A"),
            [
                "spec.metrics[0].containerResource.name",
                "spec.metrics[0].containerResource.container"
            ]
        );
        let object = |version: &str| {
            let described = json!({"apiVersion": version, "kind": "Service", "name": "s"});
            let value = json!({"type": "Value", "value": "1"});
            let source =
                json!({"describedObject": described, "metric": {"name": "m"}, "target": value});
            of(json!({"type": "Object", "object": source}))
        };
        assert_eq!(object("v1"), [""; 0]);
        assert_eq!(
            object("a/b/c"),
            ["spec.metrics[0].object.describedObject.apiVersion"]
        );
        // What is not positive is told once.
        let pods = json!({"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "0"}});
        assert_eq!(
            of(json!({"type": "Pods", "pods": pods})),
            ["spec.metrics[0].pods.target.averageValue"]
        );
    }

    #[test]
    fn a_tolerance_is_not_negative() {
        let of = |tolerance: &str| {
            let policy = json!({"type": "Pods", "value": 1, "periodSeconds": 1});
            refused(json!({
                "maxReplicas": 2,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                "behavior": {"scaleUp": {"policies": [policy], "tolerance": tolerance}},
            }))
        };
        assert_eq!(of("0"), [""; 0]);
        assert_eq!(
            of("-100m"),
            [
                "spec.behavior.scaleUp.tolerance: Invalid value: \"-100m\": must be greater than or equal to 0"
            ]
        );
    }
}
