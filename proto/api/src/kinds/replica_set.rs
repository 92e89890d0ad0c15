//! ReplicaSet: a number of equal pods.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use serde_json::json;

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// See [`ReplicaSet`].
pub struct ReplicaSetKind;

fn validate_status(status: &ReplicaSetStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    let ready = status.ready_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let counts = [
        (
            "fullyLabeledReplicas",
            status.fully_labeled_replicas.unwrap_or(0),
        ),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ];
    let replicas = [("replicas", status.replicas)];
    for (name, count) in replicas.into_iter().chain(counts) {
        workload::validate_not_negative(Some(count), &path.child(name), errors);
    }
    let terminating = status.terminating_replicas;
    workload::validate_not_negative(terminating, &path.child("terminatingReplicas"), errors);
    workload::validate_observed(status.observed_generation, &path, errors);
    workload::validate_within(&counts, status.replicas, &path, errors);
    if available > ready {
        let detail = "cannot be greater than readyReplicas";
        errors.invalid(&path.child("availableReplicas"), available, detail);
    }
}

impl Kind for ReplicaSetKind {
    type Object = ReplicaSet;

    const INFO: StaticInfo = StaticInfo {
        group: "apps",
        version: "v1",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<ReplicaSet> = parts!(ReplicaSet: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const SELECTORS: &'static [&'static str] = &["/spec/selector"];

    fn default(object: &mut ReplicaSet) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        workload::default_template(spec.template.get_or_insert_default());
    }

    fn prepare_create(object: &mut ReplicaSet) {
        object.status = Some(ReplicaSetStatus::default());
    }

    fn validate(object: &ReplicaSet, errors: &mut ErrorList) {
        let empty = ReplicaSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let template = spec.template.clone().unwrap_or_default();
        let path = Path::new("spec");
        workload::validate_not_negative(spec.replicas, &path.child("replicas"), errors);
        let seconds = spec.min_ready_seconds;
        workload::validate_not_negative(seconds, &path.child("minReadySeconds"), errors);
        workload::validate(&spec.selector, &template, &path, errors);
    }

    fn validate_update(new: &ReplicaSet, old: &ReplicaSet, errors: &mut ErrorList) {
        Self::validate(new, errors);
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            workload::validate_selector_kept(&new.selector, &old.selector, errors);
        }
    }

    fn warnings(new: &ReplicaSet, old: Option<&ReplicaSet>) -> Vec<String> {
        let template = new.spec.as_ref().and_then(|spec| spec.template.as_ref());
        workload::warnings(&new.metadata, old.map(|old| &old.metadata), template)
    }

    fn validate_status_update(new: &ReplicaSet, _old: &ReplicaSet, errors: &mut ErrorList) {
        if let Some(status) = &new.status {
            validate_status(status, errors);
        }
    }

    fn printer() -> Printer<ReplicaSet> {
        let doc = |field: &str| table::field_doc::<ReplicaSetSpec>(field);
        let status = |field: &str| table::field_doc::<ReplicaSetStatus>(field);
        let numbers = [
            table::column("Desired", "integer", doc("replicas"), 0),
            table::column("Current", "integer", status("replicas"), 0),
            table::column("Ready", "integer", status("readyReplicas"), 0),
        ];
        Printer::<ReplicaSet>::named()
            .columns(numbers, |object, _| {
                let asked = object.spec.as_ref().and_then(|spec| spec.replicas);
                let status = object.status.clone().unwrap_or_default();
                [
                    json!(asked.unwrap_or(0)),
                    json!(status.replicas),
                    json!(status.ready_replicas.unwrap_or(0)),
                ]
            })
            .age()
            .columns(workload::template_columns(1), |object, _| {
                let spec = object.spec.as_ref();
                workload::template_cells(spec.and_then(|spec| spec.template.as_ref()))
            })
            .column(
                table::column("Selector", "string", doc("selector"), 1),
                |object| {
                    let spec = object.spec.as_ref();
                    json!(workload::selector_cell(spec.map(|spec| &spec.selector)))
                },
            )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn counts_fit_each_other() {
        let told = |status: Value| {
            let mut errors = ErrorList::default();
            validate_status(&serde_json::from_value(status).unwrap(), &mut errors);
            errors.told()
        };
        assert!(
            told(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1})).is_empty()
        );
        assert_eq!(
            told(json!({"replicas": 1, "readyReplicas": 0, "availableReplicas": 2})),
            [
                "status.availableReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas",
            ]
        );
        assert_eq!(
            told(json!({"replicas": -1, "observedGeneration": -1})).len(),
            5,
            "negative, and all others more"
        );
    }
}
