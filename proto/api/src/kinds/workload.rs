//! What kinds with a pod template share.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta,
};
use serde::Serialize;
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

/// A selector as Go prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    match_labels: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    match_expressions: Option<&'a Vec<LabelSelectorRequirement>>,
}

impl<'a> From<&'a LabelSelector> for Printed<'a> {
    fn from(selector: &'a LabelSelector) -> Self {
        let (labels, expressions) = (&selector.match_labels, &selector.match_expressions);
        Self {
            match_labels: labels.as_ref().filter(|labels| !labels.is_empty()),
            match_expressions: expressions.as_ref().filter(|all| !all.is_empty()),
        }
    }
}

/// Checks selector and template against each other.
pub fn validate(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let labels = selector.match_labels.as_ref();
    let expressions = selector.match_expressions.as_ref();
    if labels.is_none() && expressions.is_none() {
        errors.required(&path.child("selector"), "");
    } else if labels.is_none_or(BTreeMap::is_empty) && expressions.is_none_or(Vec::is_empty) {
        let detail = "empty selector is invalid for deployment";
        errors.invalid(&path.child("selector"), json!({}), detail);
    }
    let before = errors.0.len();
    selector::validate(selector, &path.child("selector"), errors);
    // What a selector without sense selects is not asked.
    if errors.0.len() > before {
        let detail = "invalid label selector";
        errors.invalid(&path.child("selector"), Printed::from(selector), detail);
        return;
    }
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
    meta::validate_maps(metadata, path, errors);
    let spec = template.spec.as_ref();
    let annotations = metadata.annotations.as_ref();
    pod_spec::validate_annotations(annotations, spec, &path.child("annotations"), errors);
    let path = path.child("spec");
    pod_spec::validate(spec, &path, errors);
    let Some(spec) = spec else {
        return;
    };
    pod_spec::validate_matches(annotations, spec, &path, errors);
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
        errors.invalid(&path, Printed::from(new), meta::IMMUTABLE);
    }
}

/// Checks a number that counts something.
pub fn validate_not_negative(number: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(number) = number.filter(|number| *number < 0) {
        errors.invalid(path, number, names::NOT_NEGATIVE);
    }
}

/// The warning about a name that is no DNS label, though `used_in` asks for one.
pub fn name_warning(metadata: &ObjectMeta, used_in: &str) -> Option<String> {
    let faults = names::dns1123_label(metadata.name.as_deref().unwrap_or_default());
    (!faults.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            faults.join(" ")
        )
    })
}

/// Warnings about a workload and its template: all of them about a new one, else those about a template that may have
/// changed.
pub fn warnings(
    new: &ObjectMeta,
    old: Option<&ObjectMeta>,
    template: Option<&PodTemplateSpec>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    match old {
        None => warnings.extend(name_warning(new, "Pod names and hostnames")),
        Some(old) if old.generation == new.generation => return warnings,
        Some(_) => {}
    }
    let path = Path::new("spec").child("template");
    let empty = ObjectMeta::default();
    if let Some(template) = template
        && let Some(spec) = &template.spec
    {
        let metadata = template.metadata.as_ref().unwrap_or(&empty);
        warnings.extend(pod_spec::warnings(metadata, spec, true, &path));
    }
    warnings
}
