//! What a job may ask for.

use k8s_openapi::api::batch::v1::{Job, JobSpec};

use super::{INDEXED, MANY_AT_ONCE, MANY_COMPLETIONS, NON_INDEXED, is_indexed, policies, selector};
use crate::field::{ErrorList, ErrorType, Path};
use crate::kinds::{internal, workload};
use crate::names;
use crate::selector::LabelSelector as Selector;

/// The most pods at once, and the most failed indexes, of a job with indexes: the lists of them have bounds.
const MAX_INDEXED: i32 = 100_000;
/// The most failed indexes of a job with many completions.
const MAX_FAILED_OF_MANY: i32 = 10_000;
const MAX_MANAGER: usize = 63;

const BAD_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";

/// Checks a job, but for its metadata. `with_prefix` says whether its pods have the labels with a prefix.
pub(super) fn validate(job: &Job, with_prefix: bool, errors: &mut ErrorList) {
    let empty = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&empty);
    selector::validate(job, with_prefix, errors);
    validate_selecting(spec, errors);
    // A pod's host has the pod's index in its name.
    let name = job.metadata.name.as_deref().unwrap_or_default();
    if let Some(completions) = spec.completions
        && is_indexed(spec)
        && completions > 0
    {
        let host = format!("{name}-{}", completions - 1);
        if !names::dns1123_label(&host).is_empty() {
            let path = Path::new("metadata").child("name");
            let detail = format!("will not able to create pod with invalid DNS label: {host}");
            errors.invalid(&path, name, &detail);
        }
    }
}

/// Checks a spec that selects its pods.
pub(super) fn validate_selecting(spec: &JobSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    validate_spec(spec, &path, errors);
    let selector_path = path.child("selector");
    let before = errors.0.len();
    match &spec.selector {
        None => errors.required(&selector_path, ""),
        Some(selector) => crate::selector::validate(selector, &selector_path, errors),
    }
    let makes_sense = spec.selector.is_none() || errors.0.len() == before;
    let labels = workload::labels_of(&spec.template);
    if makes_sense && !Selector::from_api(spec.selector.as_ref()).matches_map(labels) {
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(&path, labels, workload::UNSELECTED);
    }
}

/// Checks everything but the selector.
fn validate_spec(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    check_numbers(spec, path, errors);
    if let Some(manager) = &spec.managed_by {
        check_manager(manager, &path.child("managedBy"), errors);
    }
    check_mode(spec, path, errors);
    policies::validate_failure(spec, &path.child("podFailurePolicy"), errors);
    let success_path = path.child("successPolicy");
    if let Some(policy) = spec.success_policy.as_ref().filter(|_| !is_indexed(spec)) {
        errors.push(ErrorType::Invalid, &success_path, || {
            let printed = internal::print(policy, "SuccessPolicy");
            format!("Invalid value: {printed}: {ASKS_FOR_INDEXES}")
        });
    } else {
        policies::validate_success(spec, &success_path, errors);
    }
    policies::validate_replacement(spec, &path.child("podReplacementPolicy"), errors);
    let template_path = path.child("template");
    workload::validate_any_pods(&spec.template, &template_path, errors);
    let path = template_path.child("spec").child("restartPolicy");
    let pod = spec.template.spec.as_ref();
    let restart = pod.and_then(|pod| pod.restart_policy.as_deref());
    match restart.unwrap_or_default() {
        "" | "Always" => errors.required(&path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(&path, "OnFailure", detail);
        }
        "OnFailure" | "Never" => {}
        policy => errors.not_supported(&path, policy, &["OnFailure", "Never"]),
    }
}

const ASKS_FOR_INDEXES: &str = "requires indexed completion mode";

fn check_numbers(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    workload::validate_not_negative(spec.parallelism, &path.child("parallelism"), errors);
    workload::validate_not_negative(spec.completions, &path.child("completions"), errors);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|seconds| *seconds < 0) {
        let path = path.child("activeDeadlineSeconds");
        errors.invalid(&path, seconds, names::NOT_NEGATIVE);
    }
    for (number, name) in [
        (spec.backoff_limit, "backoffLimit"),
        (spec.ttl_seconds_after_finished, "ttlSecondsAfterFinished"),
        (spec.backoff_limit_per_index, "backoffLimitPerIndex"),
        (spec.max_failed_indexes, "maxFailedIndexes"),
    ] {
        workload::validate_not_negative(number, &path.child(name), errors);
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        let path = path.child("backoffLimitPerIndex");
        errors.required(&path, "when maxFailedIndexes is specified");
    }
}

/// Checks the name of another controller, `example.com/controller`.
fn check_manager(manager: &str, path: &Path, errors: &mut ErrorList) {
    let parts = manager.split_once('/');
    match parts.filter(|(host, rest)| !host.is_empty() && !rest.is_empty()) {
        _ if manager.is_empty() => errors.required(path, ""),
        None => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid(path, manager, detail);
        }
        Some((host, rest)) => {
            errors.invalid_each(path, host, names::dns1123_subdomain(host));
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
            if !rest.bytes().all(allowed) {
                errors.invalid(path, rest, BAD_PATH);
            }
        }
    }
    if manager.len() > MAX_MANAGER {
        errors.too_long(path, MAX_MANAGER);
    }
}

/// Checks whether pods have indexes, and what follows.
fn check_mode(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    const MODES: [&str; 2] = [NON_INDEXED, INDEXED];
    if let Some(mode) = &spec.completion_mode
        && !MODES.contains(&mode.as_str())
    {
        errors.not_supported(&path.child("completionMode"), mode, &MODES);
    }
    if is_indexed(spec) {
        check_indexed(spec, path, errors);
    }
    if spec
        .completion_mode
        .as_deref()
        .is_none_or(|mode| mode == NON_INDEXED)
    {
        for (number, name) in [
            (spec.backoff_limit_per_index, "backoffLimitPerIndex"),
            (spec.max_failed_indexes, "maxFailedIndexes"),
        ] {
            if let Some(number) = number {
                errors.invalid(&path.child(name), number, ASKS_FOR_INDEXES);
            }
        }
    }
}

fn check_indexed(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    let (at_once_path, failed_path) = (path.child("parallelism"), path.child("maxFailedIndexes"));
    let completions = spec.completions;
    if completions.is_none() {
        let detail = format!("when completion mode is {INDEXED}");
        errors.required(&path.child("completions"), &detail);
    }
    if let Some(at_once) = spec.parallelism.filter(|number| *number > MAX_INDEXED) {
        let detail = format!(
            "must be less than or equal to {MAX_INDEXED} when completion mode is {INDEXED}"
        );
        errors.invalid(&at_once_path, at_once, &detail);
    }
    if let Some(failed) = spec.max_failed_indexes {
        if completions.is_some_and(|completions| failed > completions) {
            let detail = "must be less than or equal to completions";
            errors.invalid(&failed_path, failed, detail);
        }
        if failed > MAX_INDEXED {
            let detail = format!("must be less than or equal to {MAX_INDEXED}");
            errors.invalid(&failed_path, failed, &detail);
        }
    }
    let many = completions.is_some_and(|completions| completions > MANY_COMPLETIONS);
    if !many || spec.backoff_limit_per_index.is_none() {
        return;
    }
    if spec.max_failed_indexes.is_none() {
        let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.required(&failed_path, &detail);
    }
    for (number, max, path) in [
        (spec.parallelism, MANY_AT_ONCE, &at_once_path),
        (spec.max_failed_indexes, MAX_FAILED_OF_MANY, &failed_path),
    ] {
        if let Some(number) = number.filter(|number| *number > max) {
            let detail = format!(
                "must be less than or equal to {max} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
            );
            errors.invalid(path, number, &detail);
        }
    }
}

/// Checks the spec of a template of jobs, which select pods of their own when they are made.
pub(in crate::kinds) fn validate_template(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    validate_spec(spec, path, errors);
    if let Some(selector) = &spec.selector {
        let detail = "`selector` will be auto-generated";
        let path = path.child("selector");
        errors.invalid(&path, workload::Printed::from(selector), detail);
    }
    if spec.manual_selector == Some(true) {
        let path = path.child("manualSelector");
        errors.not_supported(&path, true, &["nil", "false"]);
    }
}
