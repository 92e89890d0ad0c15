//! HorizontalPodAutoscaler: how many pods a workload has, by what they are busy with.

pub mod v1;
mod validation;

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// See [`HorizontalPodAutoscaler`].
pub struct HorizontalPodAutoscalerKind;

/// Percent of the processors that pods ask for, where nothing is said.
const UTILIZATION: i32 = 80;
/// Metrics that a row shows.
const SHOWN: usize = 2;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// What the first version, and versions before it, had no fields for. Nothing else may be kept there.
const ANNOTATIONS: [&str; 6] = [
    METRICS,
    CURRENT,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

/// Takes the annotations away that have fields here.
fn drop_annotations(metadata: &mut ObjectMeta) {
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| !ANNOTATIONS.contains(&name.as_str()));
        if annotations.is_empty() {
            metadata.annotations = None;
        }
    }
}

/// What is aimed at where nothing is said.
fn default_metric() -> MetricSpec {
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(UTILIZATION),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn policy(sort: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy {
        type_: sort.to_owned(),
        value,
        period_seconds: 15,
    }
}

/// Fills what rules do not say.
fn default_rules(
    rules: &mut Option<HPAScalingRules>,
    window: Option<i32>,
    policies: &[HPAScalingPolicy],
) {
    let rules = rules.get_or_insert_default();
    if rules.stabilization_window_seconds.is_none() {
        rules.stabilization_window_seconds = window;
    }
    rules.select_policy.get_or_insert_with(|| "Max".to_owned());
    rules.policies.get_or_insert_with(|| policies.to_vec());
}

/// `CURRENT/TARGET` of a metric, as far as it is known.
fn progress(current: Option<&str>, target: Option<&Quantity>) -> String {
    let target = target.map_or("<auto>", |target| &target.0);
    format!("{}/{target}", current.unwrap_or("<unknown>"))
}

/// What a metric of pods' own resources says.
fn of_resource(name: &str, target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    if target.average_value.is_some() {
        let current = current.and_then(|current| current.average_value.as_ref());
        let current = current.map(|value| value.0.as_str());
        let progress = progress(current, target.average_value.as_ref());
        return format!("{name}: {progress}");
    }
    let percent = |share: Option<i32>, none: &str| {
        share.map_or_else(|| none.to_owned(), |share| format!("{share}%"))
    };
    let current = current.and_then(|current| current.average_utilization);
    format!(
        "{name}: {}/{}",
        percent(current, "<unknown>"),
        percent(target.average_utilization, "<auto>")
    )
}

/// What a metric of anything else says: its own value, or its average over the pods.
fn of_value(target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    let text = |value: Option<&Quantity>| value.map(|value| value.0.clone());
    if target.average_value.is_some() {
        let current = text(current.and_then(|current| current.average_value.as_ref()));
        let progress = progress(current.as_deref(), target.average_value.as_ref());
        return format!("{progress} (avg)");
    }
    let current = text(current.and_then(|current| current.value.as_ref()));
    progress(current.as_deref(), target.value.as_ref())
}

fn metric_text(spec: &MetricSpec, status: Option<&MetricStatus>) -> String {
    let none = "<unknown type>".to_owned();
    match spec.type_.as_str() {
        "External" => spec.external.as_ref().map_or(none, |source| {
            let status = status.and_then(|status| status.external.as_ref());
            of_value(&source.target, status.map(|status| &status.current))
        }),
        "Object" => spec.object.as_ref().map_or(none, |source| {
            let status = status.and_then(|status| status.object.as_ref());
            of_value(&source.target, status.map(|status| &status.current))
        }),
        "Pods" => spec.pods.as_ref().map_or(none, |source| {
            let status = status.and_then(|status| status.pods.as_ref());
            let current = status.and_then(|status| status.current.average_value.as_ref());
            let current = current.map(|value| value.0.as_str());
            progress(current, source.target.average_value.as_ref())
        }),
        "Resource" => spec.resource.as_ref().map_or(none, |source| {
            let status = status.and_then(|status| status.resource.as_ref());
            let current = status.map(|status| &status.current);
            of_resource(&source.name, &source.target, current)
        }),
        "ContainerResource" => spec.container_resource.as_ref().map_or(none, |source| {
            let status = status.and_then(|status| status.container_resource.as_ref());
            let current = status.map(|status| &status.current);
            of_resource(&source.name, &source.target, current)
        }),
        _ => none,
    }
}

fn metrics_text(specs: &[MetricSpec], statuses: &[MetricStatus]) -> String {
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let texts = specs.iter().enumerate().take(SHOWN);
    let texts = texts.map(|(number, spec)| metric_text(spec, statuses.get(number)));
    let shown = texts.collect::<Vec<_>>().join(", ");
    match specs.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

impl Kind for HorizontalPodAutoscalerKind {
    type Object = HorizontalPodAutoscaler;

    const INFO: StaticInfo = StaticInfo {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<HorizontalPodAutoscaler> = parts!(HorizontalPodAutoscaler: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut HorizontalPodAutoscaler) {
        drop_annotations(&mut object.metadata);
        let spec = &mut object.spec;
        spec.min_replicas.get_or_insert(1);
        let metrics = spec.metrics.get_or_insert_default();
        if metrics.is_empty() {
            metrics.push(default_metric());
        }
        if let Some(behavior) = &mut spec.behavior {
            let up = [policy("Pods", 4), policy("Percent", 100)];
            default_rules(&mut behavior.scale_up, Some(0), &up);
            default_rules(&mut behavior.scale_down, None, &[policy("Percent", 100)]);
        }
    }

    fn validate(object: &HorizontalPodAutoscaler, errors: &mut ErrorList) {
        validation::spec(&object.spec, &Path::new("spec"), errors);
    }

    fn validate_status_update(
        new: &HorizontalPodAutoscaler,
        _old: &HorizontalPodAutoscaler,
        errors: &mut ErrorList,
    ) {
        let status = new.status.clone().unwrap_or_default();
        validation::status(&status, errors);
    }

    fn printer() -> Printer<HorizontalPodAutoscaler> {
        let spec = |name, field| {
            let doc = table::field_doc::<HorizontalPodAutoscalerSpec>(field);
            table::column(name, "string", doc, 0)
        };
        let replicas = table::field_doc::<HorizontalPodAutoscalerStatus>("currentReplicas");
        Printer::<HorizontalPodAutoscaler>::named()
            .column(spec("Reference", "scaleTargetRef"), |object| {
                let target = &object.spec.scale_target_ref;
                json!(format!("{}/{}", target.kind, target.name))
            })
            .column(spec("Targets", "metrics"), |object| {
                let asked = object.spec.metrics.as_deref().unwrap_or_default();
                let status = object.status.as_ref();
                let current = status.and_then(|status| status.current_metrics.as_deref());
                json!(metrics_text(asked, current.unwrap_or_default()))
            })
            .column(spec("MinPods", "minReplicas"), |object| {
                let least = object.spec.min_replicas;
                json!(least.map_or_else(|| "<unset>".to_owned(), |least| least.to_string()))
            })
            .column(spec("MaxPods", "maxReplicas"), |object| {
                json!(object.spec.max_replicas)
            })
            .column(table::column("Replicas", "string", replicas, 0), |object| {
                let status = object.status.as_ref();
                json!(
                    status
                        .and_then(|status| status.current_replicas)
                        .unwrap_or(0)
                )
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn autoscaler(spec: Value) -> HorizontalPodAutoscaler {
        let mut object = json!({
            "metadata": {"name": "a"},
            "spec": {"maxReplicas": 5, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
        });
        if let (Some(own), Value::Object(more)) = (object["spec"].as_object_mut(), spec) {
            own.extend(more);
        }
        serde_json::from_value(object).expect("an autoscaler")
    }

    #[test]
    fn rules_are_filled_one_by_one() {
        let mut object = autoscaler(json!({"behavior": {"scaleUp": {"selectPolicy": "Disabled"}}}));
        HorizontalPodAutoscalerKind::default(&mut object);
        assert_eq!(
            serde_json::to_value(&object.spec.behavior).expect("JSON"),
            json!({
                "scaleUp": {
                    "stabilizationWindowSeconds": 0, "selectPolicy": "Disabled",
                    "policies": [
                        {"type": "Pods", "value": 4, "periodSeconds": 15},
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                    ],
                },
                "scaleDown": {
                    "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
                },
            })
        );
        assert_eq!(object.spec.min_replicas, Some(1));
        let mut plain = autoscaler(json!({}));
        HorizontalPodAutoscalerKind::default(&mut plain);
        assert_eq!(plain.spec.behavior, None);
        assert_eq!(plain.spec.metrics, Some(vec![default_metric()]));
    }

    #[test]
    fn annotations_of_the_first_version_are_not_kept() {
        let mut object = autoscaler(json!({}));
        let annotations = [(BEHAVIOR, "{}"), ("own", "kept")];
        let annotations = annotations.map(|(name, text)| (name.to_owned(), text.to_owned()));
        object.metadata.annotations = Some(annotations.into());
        HorizontalPodAutoscalerKind::default(&mut object);
        assert_eq!(json!(object.metadata.annotations), json!({"own": "kept"}));
        let only = [(METRICS.to_owned(), "[]".to_owned())];
        object.metadata.annotations = Some(only.into());
        HorizontalPodAutoscalerKind::default(&mut object);
        assert_eq!(object.metadata.annotations, None);
    }

    fn row(metrics: Value, status: Value) -> Vec<Value> {
        let mut object = autoscaler(json!({"metrics": metrics}));
        object.status = serde_json::from_value(status).expect("a status");
        HorizontalPodAutoscalerKind::printer().row(&object, 0)
    }

    #[test]
    fn a_row_has_kubernetes_columns() {
        let printer = HorizontalPodAutoscalerKind::printer();
        let header = printer.header().iter().map(|column| column.name.as_ref());
        assert_eq!(
            header.collect::<Vec<&str>>(),
            [
                "Name",
                "Reference",
                "Targets",
                "MinPods",
                "MaxPods",
                "Replicas",
                "Age"
            ]
        );
        let status = json!({"currentReplicas": 2, "desiredReplicas": 3});
        assert_eq!(
            row(json!([]), status),
            [
                json!("a"),
                json!("Deployment/d"),
                json!("<none>"),
                json!("<unset>"),
                json!(5),
                json!(2),
                json!("<unknown>")
            ]
        );
    }

    #[test]
    fn every_type_of_metric_is_shown_beside_its_target() {
        let metric = json!({"name": "m"});
        let of = json!({"kind": "Service", "name": "s"});
        let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
        let share = json!({"type": "Utilization", "averageUtilization": 50});
        let value = json!({"type": "Value", "value": "30"});
        for (type_, source, target, current, shown) in [
            (
                "Resource",
                json!({"name": "cpu"}),
                share.clone(),
                json!({"averageUtilization": 12, "averageValue": "6m"}),
                ["cpu: 12%/50%", "cpu: <unknown>/50%"],
            ),
            (
                "Resource",
                json!({"name": "memory"}),
                average("1Gi"),
                json!({"averageValue": "64Mi"}),
                ["memory: 64Mi/1Gi", "memory: <unknown>/1Gi"],
            ),
            (
                "ContainerResource",
                json!({"name": "cpu", "container": "c"}),
                share,
                json!({"averageUtilization": 12}),
                ["cpu: 12%/50%", "cpu: <unknown>/50%"],
            ),
            (
                "ContainerResource",
                json!({"name": "cpu", "container": "c"}),
                average("100m"),
                json!({"averageValue": "6m"}),
                ["cpu: 6m/100m", "cpu: <unknown>/100m"],
            ),
            (
                "Pods",
                json!({"metric": metric}),
                average("10"),
                json!({"averageValue": "1500m"}),
                ["1500m/10", "<unknown>/10"],
            ),
            (
                "Object",
                json!({"metric": metric, "describedObject": of}),
                value.clone(),
                json!({"value": "7"}),
                ["7/30", "<unknown>/30"],
            ),
            (
                "Object",
                json!({"metric": metric, "describedObject": of}),
                average("10"),
                json!({"averageValue": "7"}),
                ["7/10 (avg)", "<unknown>/10 (avg)"],
            ),
            (
                "External",
                json!({"metric": metric}),
                value,
                json!({"value": "7"}),
                ["7/30", "<unknown>/30"],
            ),
            (
                "External",
                json!({"metric": metric}),
                average("10"),
                json!({"averageValue": "7"}),
                ["7/10 (avg)", "<unknown>/10 (avg)"],
            ),
        ] {
            let mut field = type_.to_owned();
            field[..1].make_ascii_lowercase();
            let with = |name: &str, value: &Value| {
                let mut source = source.clone();
                let members = source.as_object_mut().expect("a source");
                members.insert(name.to_owned(), value.clone());
                json!([{"type": type_, &field: source}])
            };
            let (spec, current) = (with("target", &target), with("current", &current));
            let status = json!({"desiredReplicas": 0, "currentMetrics": current});
            assert_eq!(row(spec.clone(), status)[2], shown[0], "{spec}");
            // What could not be measured has a place without a source.
            let nothing = json!({"desiredReplicas": 0, "currentMetrics": [{"type": ""}]});
            for status in [nothing, json!({"desiredReplicas": 0})] {
                assert_eq!(row(spec.clone(), status)[2], shown[1], "{spec}");
            }
        }
        let status = json!({"desiredReplicas": 0});
        assert_eq!(row(json!([{"type": "Other"}]), status)[2], "<unknown type>");
    }

    #[test]
    fn of_many_metrics_two_are_shown() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 50}}});
        for (count, shown) in [
            (1, "cpu: <unknown>/50%"),
            (2, "cpu: <unknown>/50%, cpu: <unknown>/50%"),
            (3, "cpu: <unknown>/50%, cpu: <unknown>/50% + 1 more..."),
            (7, "cpu: <unknown>/50%, cpu: <unknown>/50% + 5 more..."),
        ] {
            let metrics = Value::from(vec![cpu.clone(); count]);
            assert_eq!(row(metrics, json!({"desiredReplicas": 0}))[2], shown);
        }
    }
}
