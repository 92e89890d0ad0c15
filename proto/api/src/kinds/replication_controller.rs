//! ReplicationController: a number of equal pods, selected by labels alone. What came before ReplicaSet.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerSpec, ReplicationControllerStatus,
};
use serde_json::json;

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// See [`ReplicationController`].
pub struct ReplicationControllerKind;

fn validate_template(
    template: &PodTemplateSpec,
    selector: &BTreeMap<String, String>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let labels = workload::labels_of(template);
    let has = |(key, value): (&String, &String)| {
        labels.is_some_and(|labels| labels.get(key) == Some(value))
    };
    if !selector.iter().all(has) {
        let path = path.child("metadata").child("labels");
        errors.invalid(&path, labels, workload::UNSELECTED);
    }
    workload::validate_pods(template, "ReplicationController", path, errors);
}

impl Kind for ReplicationControllerKind {
    type Object = ReplicationController;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<ReplicationController> = parts!(ReplicationController: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const FIELD_LABELS: &'static [&'static str] = &["status.replicas"];

    fn default(object: &mut ReplicationController) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let Some(template) = &mut spec.template else {
            return;
        };
        workload::default_template(template);
        let labels = workload::labels_of(template);
        let Some(labels) = labels.filter(|labels| !labels.is_empty()) else {
            return;
        };
        for map in [&mut spec.selector, &mut object.metadata.labels] {
            if map.as_ref().is_none_or(BTreeMap::is_empty) {
                *map = Some(labels.clone());
            }
        }
    }

    fn prepare_create(object: &mut ReplicationController) {
        object.status = Some(ReplicationControllerStatus::default());
    }

    fn validate(object: &ReplicationController, errors: &mut ErrorList) {
        let (path, empty) = (Path::new("spec"), ReplicationControllerSpec::default());
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let seconds_path = path.child("minReadySeconds");
        workload::validate_not_negative(spec.min_ready_seconds, &seconds_path, errors);
        let selector = spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            errors.required(&path.child("selector"), "");
        }
        workload::validate_not_negative(spec.replicas, &path.child("replicas"), errors);
        let template_path = path.child("template");
        match &spec.template {
            None => errors.required(&template_path, ""),
            Some(template) => validate_template(template, &selector, &template_path, errors),
        }
    }

    fn validate_status_update(
        new: &ReplicationController,
        _old: &ReplicationController,
        errors: &mut ErrorList,
    ) {
        let (path, status) = (Path::new("status"), new.status.clone().unwrap_or_default());
        let ready = status.ready_replicas.unwrap_or(0);
        let available = status.available_replicas.unwrap_or(0);
        let labelled = status.fully_labeled_replicas.unwrap_or(0);
        let parts = [
            ("fullyLabeledReplicas", labelled),
            ("readyReplicas", ready),
            ("availableReplicas", available),
        ];
        let all = [("replicas", status.replicas)];
        for (name, count) in all.into_iter().chain(parts) {
            workload::validate_not_negative(Some(count), &path.child(name), errors);
        }
        workload::validate_observed(status.observed_generation, &path, errors);
        workload::validate_within(&parts, status.replicas, &path, errors);
        if available > ready {
            let detail = "cannot be greater than readyReplicas";
            errors.invalid(&path.child("availableReplicas"), available, detail);
        }
    }

    fn warnings(new: &ReplicationController, old: Option<&ReplicationController>) -> Vec<String> {
        // Of a change, Kubernetes warns about the template that was.
        let spec = old.unwrap_or(new).spec.as_ref();
        let template = spec.and_then(|spec| spec.template.as_ref());
        workload::warnings(&new.metadata, old.map(|old| &old.metadata), template)
    }

    fn selectable_fields(object: &ReplicationController) -> Vec<(&'static str, String)> {
        let status = object.status.as_ref();
        let replicas = status.map_or(0, |status| status.replicas);
        vec![("status.replicas", replicas.to_string())]
    }

    fn printer() -> Printer<ReplicationController> {
        let doc = |field: &str| table::field_doc::<ReplicationControllerSpec>(field);
        let status = |field: &str| table::field_doc::<ReplicationControllerStatus>(field);
        let numbers = [
            table::column("Desired", "integer", doc("replicas"), 0),
            table::column("Current", "integer", status("replicas"), 0),
            table::column("Ready", "integer", status("readyReplicas"), 0),
        ];
        Printer::<ReplicationController>::named()
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
                    json!(workload::labels_text(
                        spec.and_then(|spec| spec.selector.as_ref())
                    ))
                },
            )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn controller(spec: Value) -> ReplicationController {
        let object = json!({"metadata": {"name": "r"}, "spec": spec});
        let mut object = serde_json::from_value(object).unwrap();
        ReplicationControllerKind::default(&mut object);
        object
    }

    fn template(labels: Value) -> Value {
        let container = json!({
            "name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File",
        });
        json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}})
    }

    #[test]
    fn labels_of_the_template_are_those_of_all_unless_others_are_named() {
        let bare = controller(json!({"template": template(json!({"a": "b"}))}));
        let labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert_eq!(bare.metadata.labels, labels);
        let spec = bare.spec.unwrap();
        assert_eq!((spec.selector, spec.replicas), (labels, Some(1)));
        let own = json!({"selector": {"x": "y"}, "template": template(json!({"a": "b"}))});
        let own = controller(own).spec.unwrap().selector;
        assert_eq!(own, Some([("x".to_owned(), "y".to_owned())].into()));
    }

    #[test]
    fn a_controller_selects_the_pods_of_its_template() {
        let refused = |spec: Value| {
            let mut errors = ErrorList::default();
            ReplicationControllerKind::validate(&controller(spec), &mut errors);
            let paths = errors.0.iter().map(|error| error.path.to_string());
            paths.collect::<Vec<_>>()
        };
        let labels = json!({"a": "b"});
        assert_eq!(
            refused(json!({"template": template(labels.clone())})),
            [""; 0]
        );
        assert_eq!(
            refused(json!({"selector": {"x": "y"}, "template": template(labels.clone())})),
            ["spec.template.metadata.labels"]
        );
        assert_eq!(
            refused(json!({"template": template(json!({}))})),
            ["spec.selector"]
        );
        assert_eq!(refused(json!({})), ["spec.selector", "spec.template"]);
        let negative = json!({"replicas": -1, "template": template(labels)});
        assert_eq!(refused(negative), ["spec.replicas"]);
    }
}
