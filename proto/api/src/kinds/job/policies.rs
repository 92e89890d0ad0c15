//! What decides about a job as a whole: which failures of its pods count, and what is success.

use std::collections::{BTreeSet, HashSet};

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule, SuccessPolicyRule,
};

use super::indexes;
use crate::field::{ErrorList, ErrorType, Path};
use crate::kinds::workload;
use crate::names;

const MAX_RULES: usize = 20;
const MAX_PATTERNS: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES: usize = 64 * 1024;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// Says what is wrong with something that is not shown.
pub(super) fn invalid_whole(path: &Path, detail: &str, errors: &mut ErrorList) {
    errors.push(ErrorType::Invalid, path, || {
        format!("Invalid value: {detail}")
    });
}

/// Checks a text that must be one of a few.
fn check_one_of(text: &str, known: &[&str], path: &Path, errors: &mut ErrorList) {
    if text.is_empty() {
        let known: Vec<String> = known.iter().map(|text| format!("{text:?}")).collect();
        errors.required(path, &format!("valid values: [{}]", known.join(" ")));
    } else if !known.contains(&text) {
        errors.not_supported(path, text, known);
    }
}

/// Checks which failures count.
pub(super) fn validate_failure(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    let Some(policy) = &spec.pod_failure_policy else {
        return;
    };
    let path = path.child("rules");
    if policy.rules.len() > MAX_RULES {
        errors.too_many(&path, policy.rules.len(), MAX_RULES);
    }
    let pod = spec.template.spec.as_ref();
    let containers = pod.into_iter().flat_map(|pod| {
        let init = pod.init_containers.iter().flatten();
        pod.containers.iter().chain(init)
    });
    let containers: HashSet<&str> = containers.map(|one| one.name.as_str()).collect();
    let each = spec.backoff_limit_per_index.is_some();
    for (index, rule) in policy.rules.iter().enumerate() {
        check_rule(rule, each, &containers, &path.index(index), errors);
    }
}

fn check_rule(
    rule: &PodFailurePolicyRule,
    each: bool,
    containers: &HashSet<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let action_path = path.child("action");
    if rule.action == "FailIndex" {
        if !each {
            let detail = "requires the backoffLimitPerIndex to be set";
            errors.invalid(&action_path, &rule.action, detail);
        }
    } else {
        check_one_of(&rule.action, &ACTIONS, &action_path, errors);
    }
    if let Some(codes) = &rule.on_exit_codes {
        check_exit_codes(codes, containers, &path.child("onExitCodes"), errors);
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    check_patterns(patterns, &path.child("onPodConditions"), errors);
    match (rule.on_exit_codes.is_some(), patterns.is_empty()) {
        (true, false) => {
            let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
            invalid_whole(path, detail, errors);
        }
        (false, true) => {
            let detail = "specifying one of OnExitCodes and OnPodConditions is required";
            invalid_whole(path, detail, errors);
        }
        _ => {}
    }
}

fn check_exit_codes(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    containers: &HashSet<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    check_one_of(&codes.operator, &OPERATORS, &path.child("operator"), errors);
    if let Some(container) = &codes.container_name
        && !containers.contains(container.as_str())
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), container, detail);
    }
    let path = path.child("values");
    if codes.values.is_empty() {
        errors.invalid(&path, &codes.values, "at least one value is required");
    } else if codes.values.len() > MAX_EXIT_CODES {
        errors.too_many(&path, codes.values.len(), MAX_EXIT_CODES);
    }
    let mut seen = BTreeSet::new();
    for (index, code) in codes.values.iter().enumerate() {
        let path = path.index(index);
        if codes.operator == "In" && *code == 0 {
            errors.invalid(&path, code, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            errors.duplicate(&path, code);
        }
    }
    if !codes.values.is_sorted() {
        errors.invalid(&path, &codes.values, "must be ordered");
    }
}

fn check_patterns(
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
    path: &Path,
    errors: &mut ErrorList,
) {
    if patterns.len() > MAX_PATTERNS {
        errors.too_many(path, patterns.len(), MAX_PATTERNS);
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        let details = names::qualified_name(&pattern.type_);
        errors.invalid_each(&path.child("type"), &pattern.type_, details);
        let status = pattern.status.as_deref().unwrap_or_default();
        check_one_of(status, &STATUSES, &path.child("status"), errors);
    }
}

/// Checks what becomes of pods that are on their way out: their failure may count only when they are gone.
pub(super) fn validate_replacement(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    let known: &[&str] = match spec.pod_failure_policy {
        Some(_) => &["Failed"],
        None => &["Failed", "TerminatingOrFailed"],
    };
    if let Some(policy) = &spec.pod_replacement_policy
        && !known.contains(&policy.as_str())
    {
        errors.not_supported(path, policy, known);
    }
}

/// Checks what is success, of a job with indexes.
pub(super) fn validate_success(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    let Some(policy) = &spec.success_policy else {
        return;
    };
    let path = path.child("rules");
    if policy.rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&path, detail);
    }
    if policy.rules.len() > MAX_RULES {
        errors.too_many(&path, policy.rules.len(), MAX_RULES);
    }
    // Without completions the job is refused already.
    let completions = spec.completions.unwrap_or(0);
    for (index, rule) in policy.rules.iter().enumerate() {
        check_success(rule, completions, &path.index(index), errors);
    }
}

fn check_success(rule: &SuccessPolicyRule, completions: i32, path: &Path, errors: &mut ErrorList) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.required(path, detail);
    }
    let mut named = None;
    if let Some(list) = &rule.succeeded_indexes {
        let path = path.child("succeededIndexes");
        if list.len() > MAX_INDEXES {
            errors.too_long(&path, MAX_INDEXES);
        }
        named = Some(0);
        match indexes::count(list, completions) {
            Ok(count) => named = Some(count),
            Err(error) => {
                let detail = format!("error parsing succeededIndexes: {error}");
                errors.invalid(&path, list, &detail);
            }
        }
    }
    let Some(count) = rule.succeeded_count else {
        return;
    };
    let path = path.child("succeededCount");
    workload::validate_not_negative(Some(count), &path, errors);
    if count > completions {
        let detail = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        errors.invalid(&path, count, &detail);
    }
    if let Some(named) = named.filter(|named| count > *named) {
        let detail = format!(
            "must be less than or equal to {named} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.invalid(&path, count, &detail);
    }
}
