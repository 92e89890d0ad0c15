//! The checks of a pod's spec, in the order in which Kubernetes makes them.

use k8s_openapi::api::core::v1::PodSpec;

use super::containers::{self, Surroundings};
use super::{network, scheduling, security, volumes};
use crate::field::{ErrorList, Path};
use crate::names;

const DEFAULT_GRACE_PERIOD: i64 = 30;
const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

fn check_subdomain(name: Option<&str>, path: &Path, errors: &mut ErrorList) {
    if let Some(name) = name.filter(|name| !name.is_empty())
        && let Some(detail) = names::is_dns1123_subdomain(name)
    {
        errors.invalid(path, name, &detail);
    }
}

fn check_labels(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for (key, value) in spec.node_selector.iter().flatten() {
        for detail in names::label_key(key) {
            errors.invalid(path, key, &detail);
        }
        for detail in names::label_value(value) {
            errors.invalid(path, value, &detail);
        }
    }
}

/// Checks a spec, of a pod or of a template. `None` is checked as an empty one.
pub fn validate(spec: Option<&PodSpec>, path: &Path, errors: &mut ErrorList) {
    let empty = PodSpec::default();
    let spec = spec.unwrap_or(&empty);
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let surroundings = Surroundings {
        volumes: volumes::validate(volumes, &path.child("volumes"), errors),
        grace_period: spec
            .termination_grace_period_seconds
            .unwrap_or(DEFAULT_GRACE_PERIOD),
        host_users: spec.host_users.unwrap_or(true),
    };
    containers::validate(spec, &surroundings, path, errors);
    containers::validate_init(spec, &surroundings, path, errors);
    let policy_path = path.child("restartPolicy");
    match spec.restart_policy.as_deref().unwrap_or_default() {
        "" => errors.required(&policy_path, ""),
        policy if RESTART_POLICIES.contains(&policy) => {}
        policy => errors.not_supported(&policy_path, policy, &RESTART_POLICIES),
    }
    let policy = spec.dns_policy.as_deref();
    network::validate_dns_policy(policy, &path.child("dnsPolicy"), errors);
    check_labels(spec, &path.child("nodeSelector"), errors);
    security::validate_pod(spec, path, errors);
    let affinity = spec.affinity.as_ref();
    scheduling::validate_affinity(affinity, &path.child("affinity"), errors);
    network::validate_dns_config(spec, &path.child("dnsConfig"), errors);
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    scheduling::validate_readiness_gates(gates, &path.child("readinessGates"), errors);
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    scheduling::validate_gates(gates, &path.child("schedulingGates"), errors);
    let constraints = spec
        .topology_spread_constraints
        .as_deref()
        .unwrap_or_default();
    let spread_path = path.child("topologySpreadConstraints");
    scheduling::validate_spreading(constraints, &spread_path, errors);
    let account = spec.service_account_name.as_deref();
    check_subdomain(account, &path.child("serviceAccountName"), errors);
    let node = spec.node_name.as_deref();
    check_subdomain(node, &path.child("nodeName"), errors);
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, &detail);
    }
    network::validate_names(spec, path, errors);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    scheduling::validate_tolerations(tolerations, &path.child("tolerations"), errors);
    network::validate_host_aliases(spec, &path.child("hostAliases"), errors);
    let class = spec.priority_class_name.as_deref();
    check_subdomain(class, &path.child("priorityClassName"), errors);
    let class = spec.runtime_class_name.as_deref();
    check_subdomain(class, &path.child("runtimeClassName"), errors);
    if let Some(policy) = spec.preemption_policy.as_deref() {
        const POLICIES: [&str; 2] = ["Never", "PreemptLowerPriority"];
        if !POLICIES.contains(&policy) {
            errors.not_supported(&path.child("preemptionPolicy"), policy, &POLICIES);
        }
    }
}

/// As [`validate`], with what is asked of pods and not of templates.
pub fn validate_for_pod(spec: Option<&PodSpec>, path: &Path, errors: &mut ErrorList) {
    validate(spec, path, errors);
    let Some(spec) = spec else {
        return;
    };
    let account = spec.service_account_name.as_deref().unwrap_or_default();
    if account.is_empty() {
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            let sources = volume
                .projected
                .as_ref()
                .and_then(|projected| projected.sources.as_ref());
            for (source_index, source) in sources.into_iter().flatten().enumerate() {
                if source.service_account_token.is_some() {
                    let path = path.child("volumes").index(index).child("projected");
                    let path = path.child("sources").index(source_index);
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(&path.child("serviceAccountToken"), detail);
                }
            }
        }
    }
    containers::validate_images(&spec.containers, &path.child("containers"), errors);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    containers::validate_images(init, &path.child("initContainers"), errors);
}
