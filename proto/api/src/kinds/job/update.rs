//! What may change in a job once it exists: little, and what its pods ask of nodes while none of them runs.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Affinity, Container, PodSpec, PodTemplateSpec};
use serde::Serialize;

use super::{holds, is_indexed, validation};
use crate::field::{ErrorList, ErrorType, Path};
use crate::kinds::{internal, workload};
use crate::meta::IMMUTABLE;

/// Whether the job waits, and none of its pods runs.
fn is_quiet(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    let waits = spec.is_some_and(|spec| spec.suspend == Some(true));
    let status = job.status.as_ref();
    let never_ran = status.is_none_or(|status| status.start_time.is_none());
    let nothing_runs = status.is_none_or(|status| status.active.unwrap_or(0) == 0);
    waits && (never_ran || holds(status, "Suspended") && nothing_runs)
}

/// Takes over what a job that waits may ask of nodes in another way.
fn keep_directives(old: &mut PodTemplateSpec, new: &PodTemplateSpec) {
    let now = new.metadata.clone().unwrap_or_default();
    let metadata = old.metadata.get_or_insert_default();
    (metadata.labels, metadata.annotations) = (now.labels, now.annotations);
    let (Some(old), Some(new)) = (&mut old.spec, &new.spec) else {
        return;
    };
    if let Some(now) = &new.affinity {
        let before = old.affinity.get_or_insert_default();
        before.node_affinity.clone_from(&now.node_affinity);
    } else if let Some(before) = &mut old.affinity {
        before.node_affinity = None;
        let has_more = *before != Affinity::default();
        old.affinity = old.affinity.take().filter(|_| has_more);
    }
    old.node_selector.clone_from(&new.node_selector);
    old.tolerations.clone_from(&new.tolerations);
    old.scheduling_gates.clone_from(&new.scheduling_gates);
}

/// Takes over what the same containers ask for.
fn keep_amounts(old: &mut PodSpec, new: &PodSpec) {
    let keep = |old: &mut [Container], new: &[Container]| {
        if old.len() != new.len() {
            return;
        }
        for (old, new) in old.iter_mut().zip(new) {
            if old.name == new.name {
                old.resources.clone_from(&new.resources);
            }
        }
    };
    keep(&mut old.containers, &new.containers);
    keep(
        old.init_containers.as_deref_mut().unwrap_or_default(),
        new.init_containers.as_deref().unwrap_or_default(),
    );
}

fn check_template(new: &JobSpec, old: &JobSpec, is_quiet: bool, errors: &mut ErrorList) {
    let path = Path::new("spec").child("template");
    let mut before = old.template.clone();
    if !is_quiet {
        if !workload::same(&new.template, &before) {
            errors.push(ErrorType::Invalid, &path, || {
                let printed = internal::print_template(&new.template);
                format!("Invalid value: {printed}: {IMMUTABLE}")
            });
        }
        return;
    }
    keep_directives(&mut before, &new.template);
    let now = new.template.spec.clone().unwrap_or_default();
    let mut before = before.spec.unwrap_or_default();
    keep_amounts(&mut before, &now);
    if !workload::same(&now, &before) {
        errors.push(ErrorType::Invalid, &path.child("spec"), || {
            let printed = internal::print_pod(&now);
            format!("Invalid value: {printed}: {IMMUTABLE}")
        });
    }
}

/// Checks that a value stays as it was.
fn check_kept<T: PartialEq + Serialize>(new: &T, old: &T, field: &str, errors: &mut ErrorList) {
    if new != old {
        errors.invalid(&Path::new("spec").child(field), new, IMMUTABLE);
    }
}

/// As [`check_kept`], of a policy that is printed as it is internally.
fn check_policy<T: PartialEq + Serialize>(
    new: &Option<T>,
    old: &Option<T>,
    field: &str,
    form: &'static str,
    errors: &mut ErrorList,
) {
    if new != old {
        let path = Path::new("spec").child(field);
        errors.push(ErrorType::Invalid, &path, || {
            let printed = internal::print(new, form);
            format!("Invalid value: {printed}: {IMMUTABLE}")
        });
    }
}

fn check_completions(new: &JobSpec, old: &JobSpec, errors: &mut ErrorList) {
    if !is_indexed(new) {
        check_kept(&new.completions, &old.completions, "completions", errors);
    } else if new.completions.is_some()
        && new.completions != old.completions
        && new.completions != new.parallelism
    {
        let path = Path::new("spec").child("completions");
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.invalid(&path, new.completions, detail);
    }
}

/// Checks an update, but for its metadata.
pub(super) fn validate(new: &Job, old: &Job, errors: &mut ErrorList) {
    let empty = JobSpec::default();
    let now = new.spec.as_ref().unwrap_or(&empty);
    let before = old.spec.as_ref().unwrap_or(&empty);
    validation::validate_selecting(now, errors);
    check_completions(now, before, errors);
    if now.selector != before.selector {
        let path = Path::new("spec").child("selector");
        let selector = now.selector.as_ref().map(workload::Printed::from);
        errors.invalid(&path, selector, IMMUTABLE);
    }
    check_template(now, before, is_quiet(old), errors);
    check_kept(
        &now.completion_mode,
        &before.completion_mode,
        "completionMode",
        errors,
    );
    check_policy(
        &now.pod_failure_policy,
        &before.pod_failure_policy,
        "podFailurePolicy",
        "*PodFailurePolicy",
        errors,
    );
    check_kept(
        &now.backoff_limit_per_index,
        &before.backoff_limit_per_index,
        "backoffLimitPerIndex",
        errors,
    );
    check_kept(&now.managed_by, &before.managed_by, "managedBy", errors);
    check_policy(
        &now.success_policy,
        &before.success_policy,
        "successPolicy",
        "*SuccessPolicy",
        errors,
    );
}
