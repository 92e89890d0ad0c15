//! What kinds with a pod template share.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::json;

use super::pod_spec;
use crate::field::{ErrorList, Path};
use crate::selector::{self, LabelSelector as Selector};
use crate::{meta, names};

/// Fills in what a template's pod leaves out.
pub fn default_template(template: &mut PodTemplateSpec) {
    pod_spec::default(template.spec.get_or_insert_default());
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
    validate_not_negative(replicas, &path.child("replicas"), errors);
    let labels = selector.match_labels.as_ref();
    let expressions = selector.match_expressions.as_ref();
    if labels.is_none() && expressions.is_none() {
        errors.required(&path.child("selector"), "");
    } else if labels.is_none_or(BTreeMap::is_empty) && expressions.is_none_or(Vec::is_empty) {
        let detail = "empty selector is invalid for deployment";
        errors.invalid(&path.child("selector"), json!({}), detail);
    }
    selector::validate(selector, &path.child("selector"), errors);
    validate_template(selector, template, &path.child("template"), errors);
}

/// Checks a template whose pods are to run for ever.
fn validate_template(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let empty = ObjectMeta::default();
    let metadata = template.metadata.as_ref().unwrap_or(&empty);
    let labels = metadata.labels.as_ref();
    let metadata_path = path.child("metadata");
    let wanted = Selector::from_api(Some(selector));
    // No selector at all selects nothing, an empty one everything.
    let is_given = selector.match_labels.is_some() || selector.match_expressions.is_some();
    if !is_given || !wanted.is_everything() && !wanted.matches_map(labels) {
        let detail = "`selector` does not match template `labels`";
        errors.invalid(&metadata_path.child("labels"), labels, detail);
    }
    meta::validate_maps(metadata, &metadata_path, errors);
    let path = path.child("spec");
    pod_spec::validate(template.spec.as_ref(), &path, errors);
    let Some(spec) = &template.spec else {
        return;
    };
    if spec
        .ephemeral_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        let detail = "ephemeral containers not allowed in pod template";
        errors.forbidden(&path.child("ephemeralContainers"), detail);
    }
    if let Some(policy) = spec
        .restart_policy
        .as_deref()
        .filter(|policy| *policy != "Always")
    {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.forbidden(&path.child("activeDeadlineSeconds"), detail);
    }
}

/// Checks that the selector stays: what it had selected would be orphaned.
pub fn validate_selector_kept(new: &LabelSelector, old: &LabelSelector, errors: &mut ErrorList) {
    if new != old {
        let path = Path::new("spec").child("selector");
        errors.invalid(&path, new, "field is immutable");
    }
}

/// Checks a number that counts something.
pub fn validate_not_negative(number: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(number) = number.filter(|number| *number < 0) {
        errors.invalid(path, number, names::NOT_NEGATIVE);
    }
}

/// Warnings about a template.
pub fn template_warnings(template: &PodTemplateSpec) -> Vec<String> {
    let path = Path::new("spec").child("template").child("spec");
    let spec = template.spec.as_ref();
    spec.map(|spec| pod_spec::warnings(spec, &path))
        .unwrap_or_default()
}
