//! What kinds with a pod template share.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{pod_spec, table};
use crate::field::{ErrorList, Path};
use crate::kind::Column;
use crate::schema::TypeSchema;
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

/// Columns of a template's containers. `priority` as of [`Column`].
pub(super) fn template_columns(priority: i32) -> [Column; 2] {
    let text = |name, description: &str| table::column(name, "string", description, priority);
    [
        text("Containers", "Names of each container in the template."),
        text(
            "Images",
            "Images referenced by each container in the template.",
        ),
    ]
}

/// What is in [`template_columns`].
pub(super) fn template_cells(template: Option<&PodTemplateSpec>) -> [Value; 2] {
    let (names, images) = template.map(containers).unwrap_or_default();
    [json!(names), json!(images)]
}

/// Labels as tables show them.
pub fn labels_text(labels: Option<&BTreeMap<String, String>>) -> String {
    let labels = labels.into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    table::or_none(labels.join(","))
}

/// A selector as tables show it.
pub fn selector_text(selector: &LabelSelector) -> String {
    Selector::from_api(Some(selector)).to_string()
}

/// What a column of selectors shows, of an object without a spec too.
pub(super) fn selector_cell(selector: Option<&LabelSelector>) -> String {
    selector_text(selector.unwrap_or(&LabelSelector::default()))
}

/// As [`selector_cell`], of what may have no selector.
pub(super) fn selector_or_none(selector: Option<&LabelSelector>) -> String {
    table::or_none(Selector::from_api(selector).to_string())
}

/// A selector as Go prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Printed<'a> {
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
    let labels = labels_of(template);
    let wanted = Selector::from_api(Some(selector));
    // No selector at all selects nothing, an empty one everything.
    let is_given = selector.match_labels.is_some() || selector.match_expressions.is_some();
    if !is_given || !wanted.is_everything() && !wanted.matches_map(labels) {
        errors.invalid(&path.child("metadata").child("labels"), labels, UNSELECTED);
    }
    validate_pods(template, "ReplicaSet", path, errors);
}

/// What is wrong with a template whose pods are not selected.
pub(super) const UNSELECTED: &str = "`selector` does not match template `labels`";

/// The labels of a template's pods.
pub(super) fn labels_of(template: &PodTemplateSpec) -> Option<&BTreeMap<String, String>> {
    template.metadata.as_ref()?.labels.as_ref()
}

/// Checks a template whose pods are to run for ever, but for its labels. `kind` is what has it.
pub(super) fn validate_pods(
    template: &PodTemplateSpec,
    kind: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_any_pods(template, path, errors);
    let Some(spec) = &template.spec else {
        return;
    };
    let path = path.child("spec");
    if let Some(policy) = spec
        .restart_policy
        .as_deref()
        .filter(|policy| *policy != "Always")
    {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.child("activeDeadlineSeconds"), &detail);
    }
}

/// Checks a template of pods.
pub(super) fn validate_any_pods(template: &PodTemplateSpec, path: &Path, errors: &mut ErrorList) {
    let empty = ObjectMeta::default();
    let metadata = template.metadata.as_ref().unwrap_or(&empty);
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
}

/// The share that a text such as `25%` gives.
fn percent(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('%')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Checks a number of pods, or a share of all of them.
pub fn validate_amount(amount: &IntOrString, path: &Path, errors: &mut ErrorList) {
    match amount {
        IntOrString::Int(number) => {
            validate_not_negative(Some(*number), path, errors);
        }
        IntOrString::String(text) if percent(text).is_none() => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.invalid(path, text, detail);
        }
        IntOrString::String(_) => {}
    }
}

/// Whether an amount is of none.
pub fn is_zero(amount: &IntOrString) -> bool {
    match amount {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(text) => percent(text).unwrap_or(0) == 0,
    }
}

/// Checks that a share is none of more than there are.
pub fn validate_at_most_all(amount: &IntOrString, path: &Path, errors: &mut ErrorList) {
    if let IntOrString::String(text) = amount
        && percent(text).is_some_and(|share| share > 100)
    {
        errors.invalid(path, text, "must not be greater than 100%");
    }
}

/// Checks that the selector stays: what it had selected would be orphaned.
pub fn validate_selector_kept(new: &LabelSelector, old: &LabelSelector, errors: &mut ErrorList) {
    if new != old {
        let path = Path::new("spec").child("selector");
        errors.invalid(&path, Printed::from(new), meta::IMMUTABLE);
    }
}

/// Whether two values are the same when they are stored, where nothing and something empty are.
pub(super) fn same<T: JsonSchema + PartialEq + Serialize>(one: &T, other: &T) -> bool {
    let stored = |value: &T| {
        let mut value = serde_json::to_value(value).unwrap_or_default();
        TypeSchema::of::<T>().complete(&mut value);
        value
    };
    one == other || stored(one) == stored(other)
}

/// Checks a number that counts something.
pub fn validate_not_negative(number: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(number) = number.filter(|number| *number < 0) {
        errors.invalid(path, number, names::NOT_NEGATIVE);
    }
}

/// Checks the generation that a status is about.
pub(super) fn validate_observed(generation: Option<i64>, path: &Path, errors: &mut ErrorList) {
    if let Some(generation) = generation.filter(|number| *number < 0) {
        let path = path.child("observedGeneration");
        errors.invalid(&path, generation, names::NOT_NEGATIVE);
    }
}

/// Checks that none of a status' counts is of more pods than there are.
pub(super) fn validate_within(
    counts: &[(&str, i32)],
    replicas: i32,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (name, count) in counts {
        if *count > replicas {
            let detail = "cannot be greater than status.replicas";
            errors.invalid(&path.child(name), count, detail);
        }
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
    warnings.extend(template_warnings(template, &path));
    warnings
}

/// Warnings about a template's pods.
pub(super) fn template_warnings(template: Option<&PodTemplateSpec>, path: &Path) -> Vec<String> {
    let empty = ObjectMeta::default();
    let Some((template, spec)) = template.and_then(|one| Some((one, one.spec.as_ref()?))) else {
        return Vec::new();
    };
    let metadata = template.metadata.as_ref().unwrap_or(&empty);
    pod_spec::warnings(metadata, spec, true, path)
}
