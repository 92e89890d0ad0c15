//! Job: pods that run to their end.

mod indexes;
mod policies;
mod selector;
mod status;
mod update;
mod validation;

pub(super) use validation::validate_template;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use serde_json::json;

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, Parts, StaticInfo};
use crate::parts;

/// See [`Job`].
pub struct JobKind;

const INDEXED: &str = "Indexed";
const NON_INDEXED: &str = "NonIndexed";

/// With more completions than these, and more pods at once, nobody may be able to tell which of them have failed.
const MANY_COMPLETIONS: i32 = 100_000;
const MANY_AT_ONCE: i32 = 10_000;

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some(INDEXED)
}

/// What a policy about failed pods leaves out.
pub(super) fn default_policy(spec: &mut JobSpec) {
    let rules = spec.pod_failure_policy.iter_mut();
    for rule in rules.flat_map(|policy| &mut policy.rules) {
        for pattern in rule.on_pod_conditions.iter_mut().flatten() {
            if pattern.status.as_deref().unwrap_or_default().is_empty() {
                pattern.status = Some("True".to_owned());
            }
        }
    }
}

/// Warnings about what a job asks for, which is at the path.
pub(super) fn spec_warnings(spec: &JobSpec, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    if is_indexed(spec)
        && spec.completions.unwrap_or(0) > MANY_COMPLETIONS
        && spec.parallelism.unwrap_or(0) > MANY_AT_ONCE
    {
        let warning = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
        warnings.push(format!("{path}: {warning}"));
    }
    let path = path.child("template");
    warnings.extend(workload::template_warnings(Some(&spec.template), &path));
    warnings
}

/// Whether a condition holds: the first of its type counts.
fn holds(status: Option<&JobStatus>, condition: &str) -> bool {
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|known| known.type_ == condition);
    found.is_some_and(|found| found.status == "True")
}

/// What tables say that has become of it.
fn state(job: &Job) -> &'static str {
    let holds = |condition: &str| holds(job.status.as_ref(), condition);
    match job.metadata.deletion_timestamp.is_some() {
        _ if holds("Complete") => "Complete",
        _ if holds("Failed") => "Failed",
        true => "Terminating",
        false if holds("Suspended") => "Suspended",
        false if holds("FailureTarget") => "FailureTarget",
        false if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        false => "Running",
    }
}

fn completions(job: &Job) -> String {
    let status = job.status.as_ref();
    let succeeded = status.and_then(|status| status.succeeded).unwrap_or(0);
    let spec = job.spec.as_ref();
    let parallelism = spec.and_then(|spec| spec.parallelism).unwrap_or(0);
    match spec.and_then(|spec| spec.completions) {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

/// How long it took, or takes. `now` is nanoseconds since the epoch.
fn duration(job: &Job, now: i64) -> String {
    let status = job.status.as_ref();
    let Some(start) = status.and_then(|status| status.start_time.as_ref()) else {
        return String::new();
    };
    let end = status.and_then(|status| status.completion_time.as_ref());
    let end = end.map(|end| i64::try_from(end.0.as_nanosecond()).unwrap_or(i64::MAX));
    table::since(Some(start), end.unwrap_or(now))
}

/// The labels of a job that has none are those of its pods.
fn take_labels(job: &mut Job) {
    let template = job.spec.as_ref().map(|spec| &spec.template);
    let labels = template.and_then(workload::labels_of);
    if job
        .metadata
        .labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && let Some(labels) = labels
    {
        job.metadata.labels = Some(labels.clone());
    }
}

impl Kind for JobKind {
    type Object = Job;

    const INFO: StaticInfo = StaticInfo {
        group: "batch",
        version: "v1",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        short_names: &[],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<Job> = parts!(Job: spec, status);

    const FIELD_LABELS: &'static [&'static str] = &["status.successful"];

    /// The labels of a job that names none come last, when those of its pods are whole; see [`Kind::prepare_create`].
    fn default(object: &mut Job) {
        let spec = object.spec.get_or_insert_default();
        if spec.parallelism.is_none() {
            spec.completions.get_or_insert(1);
            spec.parallelism = Some(1);
        }
        let each = spec.backoff_limit_per_index.is_some();
        spec.backoff_limit
            .get_or_insert(if each { i32::MAX } else { 6 });
        let text = |text: &str| Some(text.to_owned());
        if spec.completion_mode.is_none() {
            spec.completion_mode = text(NON_INDEXED);
        }
        spec.suspend.get_or_insert(false);
        default_policy(spec);
        if spec.pod_replacement_policy.is_none() {
            spec.pod_replacement_policy = match spec.pod_failure_policy {
                Some(_) => text("Failed"),
                None => text("TerminatingOrFailed"),
            };
        }
        spec.manual_selector.get_or_insert(false);
        workload::default_template(&mut spec.template);
    }

    fn prepare_create(object: &mut Job) {
        object.status = Some(JobStatus::default());
        selector::generate(object);
        take_labels(object);
    }

    fn validate(object: &Job, errors: &mut ErrorList) {
        validation::validate(object, true, errors);
    }

    fn prepare_update(new: &mut Job, _old: &Job) {
        take_labels(new);
    }

    fn prepare_status_update(new: &mut Job, _old: &Job) {
        take_labels(new);
    }

    /// Kubernetes checks the whole object as a new one, and once more as a changed one.
    fn validate_update(new: &Job, old: &Job, errors: &mut ErrorList) {
        validation::validate(new, selector::has_prefixed_labels(old), errors);
        update::validate(new, old, errors);
    }

    fn validate_status_update(new: &Job, old: &Job, errors: &mut ErrorList) {
        status::validate_update(new, old, errors);
    }

    fn warnings(new: &Job, old: Option<&Job>) -> Vec<String> {
        let Some(spec) = &new.spec else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        match old {
            None => {
                let used_in = "Pod names and hostnames";
                warnings.extend(workload::name_warning(&new.metadata, used_in));
            }
            Some(old) if old.metadata.generation == new.metadata.generation => return warnings,
            Some(_) => {}
        }
        warnings.extend(spec_warnings(spec, &Path::new("spec")));
        warnings
    }

    fn selectable_fields(object: &Job) -> Vec<(&'static str, String)> {
        let status = object.status.as_ref();
        let succeeded = status.and_then(|status| status.succeeded).unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }

    fn printer() -> Printer<Job> {
        let succeeded = table::field_doc::<JobStatus>("succeeded");
        let selector = table::field_doc::<JobSpec>("selector");
        let columns = [
            table::column("Status", "string", "Status of the job.", 0),
            table::column("Completions", "string", succeeded, 0),
            table::column(
                "Duration",
                "string",
                "Time required to complete the job.",
                0,
            ),
        ];
        Printer::<Job>::named()
            .columns(columns, |object, now| {
                [
                    json!(state(object)),
                    json!(completions(object)),
                    json!(duration(object, now)),
                ]
            })
            .age()
            .columns(workload::template_columns(1), |object, _| {
                let spec = object.spec.as_ref();
                workload::template_cells(spec.map(|spec| &spec.template))
            })
            .column(table::column("Selector", "string", selector, 1), |object| {
                let spec = object.spec.as_ref();
                let selector = spec.and_then(|spec| spec.selector.as_ref());
                json!(workload::selector_or_none(selector))
            })
    }
}

#[cfg(test)]
mod tests;
