//! Deployment: replicas of a pod, rolled from one version to the next.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// See [`Deployment`].
pub struct DeploymentKind;

/// A strategy as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedStrategy<'a> {
    r#type: &'a str,
    rolling_update: Option<PrintedRolling>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedRolling {
    max_unavailable: Value,
    max_surge: Value,
}

/// An amount as Go writes one that may be left out: a zero.
fn printed(amount: Option<&IntOrString>) -> Value {
    amount.map_or_else(|| json!(0), |amount| json!(amount))
}

fn validate_strategy(strategy: &DeploymentStrategy, path: &Path, errors: &mut ErrorList) {
    let rolling_path = path.child("rollingUpdate");
    match strategy.type_.as_deref().unwrap_or_default() {
        "Recreate" => {
            if strategy.rolling_update.is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(&rolling_path, detail);
            }
        }
        "RollingUpdate" => {
            let rolling = strategy.rolling_update.clone().unwrap_or_default();
            let none = || IntOrString::Int(0);
            let unavailable = rolling.max_unavailable.unwrap_or_else(none);
            let surge = rolling.max_surge.unwrap_or_else(none);
            let unavailable_path = rolling_path.child("maxUnavailable");
            workload::validate_amount(&unavailable, &unavailable_path, errors);
            workload::validate_amount(&surge, &rolling_path.child("maxSurge"), errors);
            if workload::is_zero(&unavailable) && workload::is_zero(&surge) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.invalid(&unavailable_path, &unavailable, detail);
            }
            workload::validate_at_most_all(&unavailable, &unavailable_path, errors);
        }
        other => {
            let rolling = strategy
                .rolling_update
                .as_ref()
                .map(|rolling| PrintedRolling {
                    max_unavailable: printed(rolling.max_unavailable.as_ref()),
                    max_surge: printed(rolling.max_surge.as_ref()),
                });
            let printed = PrintedStrategy {
                r#type: other,
                rolling_update: rolling,
            };
            errors.not_supported(path, printed, &["Recreate", "RollingUpdate"]);
        }
    }
}

fn validate_status(status: &DeploymentStatus, old: &DeploymentStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    let replicas = status.replicas.unwrap_or(0);
    let ready = status.ready_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let counts = [
        ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ];
    workload::validate_observed(status.observed_generation, &path, errors);
    workload::validate_not_negative(Some(replicas), &path.child("replicas"), errors);
    for (name, count) in counts.into_iter().chain([(
        "unavailableReplicas",
        status.unavailable_replicas.unwrap_or(0),
    )]) {
        workload::validate_not_negative(Some(count), &path.child(name), errors);
    }
    for (name, count) in [
        ("terminatingReplicas", status.terminating_replicas),
        ("collisionCount", status.collision_count),
    ] {
        workload::validate_not_negative(count, &path.child(name), errors);
    }
    workload::validate_within(&counts, replicas, &path, errors);
    if available > ready {
        let detail = "cannot be greater than readyReplicas";
        errors.invalid(&path.child("availableReplicas"), available, detail);
    }
    let collisions = status.collision_count;
    if old
        .collision_count
        .is_some_and(|old| collisions.is_none_or(|now| now < old))
    {
        let path = path.child("collisionCount");
        errors.invalid(&path, collisions.unwrap_or(0), "cannot be decremented");
    }
}

impl Kind for DeploymentKind {
    type Object = Deployment;

    const INFO: StaticInfo = StaticInfo {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<Deployment> = parts!(Deployment: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const SELECTORS: &'static [&'static str] = &["/spec/selector"];

    fn default(object: &mut Deployment) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec
            .strategy
            .get_or_insert_with(DeploymentStrategy::default);
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some("RollingUpdate".to_owned());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy
                .rolling_update
                .get_or_insert_with(RollingUpdateDeployment::default);
            let quarter = || IntOrString::String("25%".to_owned());
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        workload::default_template(&mut spec.template);
    }

    fn validate(object: &Deployment, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let empty = DeploymentSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        workload::validate_not_negative(spec.replicas, &path.child("replicas"), errors);
        workload::validate(&spec.selector, &spec.template, &path, errors);
        if let Some(strategy) = &spec.strategy {
            validate_strategy(strategy, &path.child("strategy"), errors);
        }
        for (number, name) in [
            (spec.min_ready_seconds, "minReadySeconds"),
            (spec.revision_history_limit, "revisionHistoryLimit"),
            (spec.progress_deadline_seconds, "progressDeadlineSeconds"),
        ] {
            workload::validate_not_negative(number, &path.child(name), errors);
        }
        if let Some(deadline) = spec.progress_deadline_seconds
            && deadline <= spec.min_ready_seconds.unwrap_or(0)
        {
            let path = path.child("progressDeadlineSeconds");
            errors.invalid(&path, deadline, "must be greater than minReadySeconds");
        }
    }

    fn changed(new: &Deployment, old: &Deployment) -> bool {
        new.spec != old.spec || new.metadata.annotations != old.metadata.annotations
    }

    fn validate_update(new: &Deployment, old: &Deployment, errors: &mut ErrorList) {
        Self::validate(new, errors);
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            workload::validate_selector_kept(&new.selector, &old.selector, errors);
        }
    }

    fn validate_status_update(new: &Deployment, old: &Deployment, errors: &mut ErrorList) {
        let empty = DeploymentStatus::default();
        let status = new.status.as_ref().unwrap_or(&empty);
        validate_status(status, old.status.as_ref().unwrap_or(&empty), errors);
    }

    fn warnings(new: &Deployment, old: Option<&Deployment>) -> Vec<String> {
        let template = new.spec.as_ref().map(|spec| &spec.template);
        workload::warnings(&new.metadata, old.map(|old| &old.metadata), template)
    }

    fn prepare_status_update(new: &mut Deployment, old: &Deployment) {
        new.metadata.labels.clone_from(&old.metadata.labels);
    }

    fn printer() -> Printer<Deployment> {
        let numbers = [
            table::column("Ready", "string", "Number of the pod with ready state", 0),
            table::column(
                "Up-to-date",
                "string",
                "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
                0,
            ),
            table::column(
                "Available",
                "string",
                "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
                0,
            ),
        ];
        let selector = table::field_doc::<DeploymentSpec>("selector");
        Printer::<Deployment>::named()
            .columns(numbers, |object, _| {
                let asked = object.spec.as_ref().and_then(|spec| spec.replicas);
                let status = object.status.clone().unwrap_or_default();
                let ready = status.ready_replicas.unwrap_or(0);
                [
                    json!(format!("{ready}/{}", asked.unwrap_or(0))),
                    json!(status.updated_replicas.unwrap_or(0)),
                    json!(status.available_replicas.unwrap_or(0)),
                ]
            })
            .age()
            .columns(workload::template_columns(1), |object, _| {
                let spec = object.spec.as_ref();
                workload::template_cells(spec.map(|spec| &spec.template))
            })
            .column(table::column("Selector", "string", selector, 1), |object| {
                let spec = object.spec.as_ref();
                json!(workload::selector_cell(spec.map(|spec| &spec.selector)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: Value) -> Vec<String> {
        let mut object = serde_json::from_value(json!({"spec": spec})).unwrap();
        DeploymentKind::default(&mut object);
        let mut errors = ErrorList::default();
        DeploymentKind::validate(&object, &mut errors);
        errors.told()
    }

    fn template(labels: Value) -> Value {
        json!({
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}]}
        })
    }

    #[test]
    fn a_selector_without_sense_selects_nothing() {
        let labels = json!({"a": "b c"});
        let found = refused(json!({
            "selector": {"matchLabels": labels}, "template": template(json!({"a": "b"}))
        }));
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found[1],
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b c\"}}: invalid label selector"
        );
        let good = json!({"matchLabels": {"a": "b"}});
        let bad = template(json!({"a": "b", "c": "d e"}));
        let found = refused(json!({"selector": good, "template": bad}));
        assert!(found[0].starts_with("spec.template.labels: Invalid value: \"d e\""));
    }

    #[test]
    fn a_strategy_is_known() {
        let found = refused(json!({
            "selector": {"matchLabels": {"a": "b"}}, "template": template(json!({"a": "b"})),
            "strategy": {"type": "Foo"}
        }));
        assert_eq!(
            found,
            [
                "spec.strategy: Unsupported value: {\"Type\":\"Foo\",\"RollingUpdate\":null}: supported values: \"Recreate\", \"RollingUpdate\""
            ]
        );
    }

    #[test]
    fn counts_fit_each_other_and_collisions_only_grow() {
        let status = |value: Value| -> Deployment {
            serde_json::from_value(json!({"status": value})).unwrap()
        };
        let update = |new: Value| {
            let mut errors = ErrorList::default();
            let old = status(json!({"collisionCount": 2}));
            DeploymentKind::validate_status_update(&status(new), &old, &mut errors);
            errors.told()
        };
        assert_eq!(
            update(
                json!({"replicas": 1, "updatedReplicas": 2, "terminatingReplicas": -1, "collisionCount": 1})
            ),
            [
                "status.terminatingReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.collisionCount: Invalid value: 1: cannot be decremented",
            ]
        );
        assert!(update(json!({"collisionCount": 3})).is_empty());
    }

    #[test]
    fn warnings_are_about_names_and_new_templates() {
        let object = |name: &str, generation: i64| -> Deployment {
            let mut spec = template(json!({}));
            spec["spec"]["terminationGracePeriodSeconds"] = json!(-1);
            serde_json::from_value(json!({
                "metadata": {"name": name, "generation": generation},
                "spec": {"selector": {}, "template": spec}
            }))
            .unwrap()
        };
        let warned = |old: Option<&Deployment>| DeploymentKind::warnings(&object("a.b", 2), old);
        let created = warned(None);
        assert_eq!(
            created[0],
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"
        );
        assert_eq!(created.len(), 2, "{created:?}");
        assert!(created[1].starts_with("spec.template.spec.terminationGracePeriodSeconds: "));
        assert_eq!(warned(Some(&object("a.b", 1))).len(), 1);
        assert_eq!(warned(Some(&object("a.b", 2))).len(), 0);
    }
}
