//! What kinds with a pod template share.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::pod_spec;
use crate::field::{ErrorList, Path};
use crate::names;
use crate::selector::{self, LabelSelector as Selector};

/// Fills in what a template's pod leaves out.
pub fn default_template(template: &mut PodTemplateSpec) {
    if let Some(spec) = &mut template.spec {
        pod_spec::default(spec);
    }
}

/// Names and images of a template's containers, as tables show them.
pub fn containers(template: &PodTemplateSpec) -> (String, String) {
    let containers = template
        .spec
        .as_ref()
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let names: Vec<&str> = containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    let images: Vec<&str> = containers
        .iter()
        .filter_map(|container| container.image.as_deref())
        .collect();
    (names.join(","), images.join(","))
}

/// A selector as tables show it.
pub fn selector_text(selector: &LabelSelector) -> String {
    Selector::from_api(Some(selector)).to_string()
}

/// Checks replicas, selector and template against each other.
pub fn validate(
    replicas: Option<i32>,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(replicas) = replicas.filter(|replicas| *replicas < 0) {
        errors.invalid(&path.child("replicas"), replicas, names::NOT_NEGATIVE);
    }
    let empty = selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(|expressions| expressions.is_empty());
    if empty {
        errors.required(&path.child("selector"), "");
    }
    selector::validate(selector, &path.child("selector"), errors);
    let path = path.child("template");
    let metadata = template.metadata.clone().unwrap_or_default();
    if !empty && !Selector::from_api(Some(selector)).matches_map(metadata.labels.as_ref()) {
        errors.invalid(
            &path.child("metadata").child("labels"),
            metadata.labels.unwrap_or_default(),
            "`selector` does not match template `labels`",
        );
    }
    let spec_path = path.child("spec");
    pod_spec::validate(template.spec.as_ref(), &spec_path, errors);
    let policy = template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    if let Some(policy) = policy.filter(|policy| *policy != "Always") {
        errors.not_supported(&spec_path.child("restartPolicy"), policy, &["Always"]);
    }
}
