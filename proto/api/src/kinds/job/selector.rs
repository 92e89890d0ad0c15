//! The selector that a job gets for its own pods alone, and the labels of theirs that it selects.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;

use crate::field::{ErrorList, Path};
use crate::kinds::workload;
use crate::selector::LabelSelector as Selector;

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// What they were called before they had a prefix. Both are kept.
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";

/// The labels that tell a job's pods from others, in the order in which they are asked for.
fn labels(job: &Job) -> [(&'static str, String); 4] {
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let name = job.metadata.name.clone().unwrap_or_default();
    [
        (OLD_CONTROLLER_UID, uid.clone()),
        (OLD_JOB_NAME, name.clone()),
        (CONTROLLER_UID, uid),
        (JOB_NAME, name),
    ]
}

/// Gives a new job its selector, and its pods the labels that it selects. What contradicts them is left, to be refused.
pub(super) fn generate(job: &mut Job) {
    let given = labels(job);
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let Some(spec) = &mut job.spec else {
        return;
    };
    if spec.manual_selector == Some(true) {
        return;
    }
    let metadata = spec.template.metadata.get_or_insert_default();
    let labels = metadata.labels.get_or_insert_default();
    for (key, value) in given {
        labels.entry(key.to_owned()).or_insert(value);
    }
    let selector = spec.selector.get_or_insert_default();
    let selected = selector.match_labels.get_or_insert_default();
    selected.entry(CONTROLLER_UID.to_owned()).or_insert(uid);
}

/// Whether the pods have the labels that have a prefix: those of jobs from before that do not.
pub(super) fn has_prefixed_labels(job: &Job) -> bool {
    let template = job.spec.as_ref().map(|spec| &spec.template);
    let labels = template.and_then(workload::labels_of);
    [CONTROLLER_UID, JOB_NAME]
        .into_iter()
        .all(|key| labels.is_some_and(|labels| labels.contains_key(key)))
}

/// Checks that a job which names no selector of its own has the one that it was given.
pub(super) fn validate(job: &Job, with_prefix: bool, errors: &mut ErrorList) {
    let Some(spec) = &job.spec else {
        return;
    };
    let Some(selector) = &spec.selector else {
        return;
    };
    if spec.manual_selector == Some(true) {
        return;
    }
    if job.metadata.uid.as_deref().unwrap_or_default().is_empty() {
        errors.required(&Path::new("metadata").child("uid"), "");
    }
    let path = Path::new("spec").child("template").child("metadata");
    let has = workload::labels_of(&spec.template);
    let mut expected = BTreeMap::new();
    for (key, value) in labels(job) {
        if !with_prefix && key.contains('/') {
            continue;
        }
        check_label(has, key, &value, &path.child("labels").key(key), errors);
        expected.insert(key.to_owned(), value);
    }
    if !Selector::from_api(Some(selector)).matches_map(Some(&expected)) {
        let path = Path::new("spec").child("selector");
        let detail = "`selector` not auto-generated";
        errors.invalid(&path, workload::Printed::from(selector), detail);
    }
}

fn check_label(
    labels: Option<&BTreeMap<String, String>>,
    key: &str,
    value: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    let found = labels.and_then(|labels| labels.get(key));
    let detail = format!("must be '{value}'");
    if found.is_none() {
        errors.required(path, &detail);
    }
    if found.map(String::as_str).unwrap_or_default() != value {
        errors.invalid(path, labels, &detail);
    }
}
