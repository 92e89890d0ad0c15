//! What may change in a pod once it exists: little of its spec, and a status that keeps to its own past.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};

use crate::field::{ErrorList, Path};
use crate::kinds::{addresses, pod_spec};
use crate::names;

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Conditions of Kubernetes' own, which need no qualified name.
const CONDITIONS: [&str; 7] = [
    "ContainersReady",
    "DisruptionTarget",
    "Initialized",
    "PodReadyToStartContainers",
    "PodScheduled",
    "Ready",
    "PodResizePending",
];

/// Takes over what may differ between two lists of containers; answers whether they are the same containers otherwise.
fn keep_images(
    new: &mut [Container],
    old: &[Container],
    path: &Path,
    errors: &mut ErrorList,
) -> bool {
    if new.len() != old.len() {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (index, (container, before)) in new.iter_mut().zip(old).enumerate() {
        if container.image.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.index(index).child("image"), "");
        }
        container.image.clone_from(&before.image);
    }
    true
}

fn check_deadline(new: Option<i64>, old: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let path = path.child("activeDeadlineSeconds");
    match (new, old) {
        (Some(new), Some(old)) if old < new => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
        }
        (None, Some(old)) => {
            errors.invalid(
                &path,
                old,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

fn gates(spec: &PodSpec) -> Vec<&str> {
    let gates = spec.scheduling_gates.iter().flatten();
    gates.map(|gate| gate.name.as_str()).collect()
}

/// Checks an update of the pod itself.
pub(super) fn validate(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let name = new.metadata.name.as_deref();
    pod_spec::validate_for_pod(new.spec.as_ref(), name, &path, errors);
    let (Some(mut spec), Some(before)) = (new.spec.clone(), old.spec.as_ref()) else {
        return;
    };
    let containers_path = path.child("containers");
    if !keep_images(
        &mut spec.containers,
        &before.containers,
        &containers_path,
        errors,
    ) {
        return;
    }
    let init = before.init_containers.as_deref().unwrap_or_default();
    let new_init = spec.init_containers.as_deref_mut().unwrap_or_default();
    if !keep_images(new_init, init, &path.child("initContainers"), errors) {
        return;
    }
    let had: HashSet<&str> = gates(before).into_iter().collect();
    for gate in gates(&spec).into_iter().filter(|gate| !had.contains(gate)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
        errors.forbidden(&path.child("schedulingGates"), &detail);
    }
    check_deadline(
        spec.active_deadline_seconds,
        before.active_deadline_seconds,
        &path,
        errors,
    );
    pod_spec::check_tolerations_added(
        spec.tolerations.as_deref().unwrap_or_default(),
        before.tolerations.as_deref().unwrap_or_default(),
        &path.child("tolerations"),
        errors,
    );
    if !had.is_empty() {
        pod_spec::check_node_selector_additions(&spec, before, &path, errors);
        spec.node_selector.clone_from(&before.node_selector);
    }
    let ended_early = spec.termination_grace_period_seconds == Some(1)
        && before
            .termination_grace_period_seconds
            .is_some_and(|seconds| seconds < 0);
    if ended_early {
        spec.termination_grace_period_seconds = before.termination_grace_period_seconds;
    }
    spec.active_deadline_seconds = before.active_deadline_seconds;
    spec.tolerations.clone_from(&before.tolerations);
    spec.scheduling_gates.clone_from(&before.scheduling_gates);
    if spec != *before {
        errors.forbidden(&path, MAY_CHANGE);
    }
}

fn ended(status: &ContainerStatus) -> Option<i32> {
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    Some(ended.exit_code)
}

/// Checks that a container which is not to be restarted stays ended.
fn check_transitions(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    restart_policy: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut now_of = HashMap::new();
    for status in new {
        now_of.entry(&status.name).or_insert(status);
    }
    for (index, before) in old.iter().enumerate() {
        let Some(code) = ended(before) else {
            continue;
        };
        let stays = restart_policy == "Never" || restart_policy == "OnFailure" && code == 0;
        let now = now_of.get(&before.name);
        if stays && now.is_some_and(|now| ended(now).is_none()) {
            let path = path.index(index).child("state");
            let detail = "may not be transitioned to non-terminated state";
            errors.forbidden(&path, detail);
        }
    }
}

/// Checks an update of the status.
pub(super) fn validate_status(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let path = Path::new("status");
    let empty = PodStatus::default();
    let (status, before) = (
        new.status.as_ref().unwrap_or(&empty),
        old.status.as_ref().unwrap_or(&empty),
    );
    for (index, condition) in status.conditions.iter().flatten().enumerate() {
        if CONDITIONS.contains(&condition.type_.as_str()) {
            continue;
        }
        for detail in names::qualified_name(&condition.type_) {
            let path = path.child("conditions").index(index).child("Type");
            errors.invalid(&path, &condition.type_, &detail);
        }
    }
    for (list, name) in [
        (
            status
                .pod_ips
                .iter()
                .flatten()
                .map(|ip| &ip.ip)
                .collect::<Vec<_>>(),
            "podIPs",
        ),
        (
            status.host_ips.iter().flatten().map(|ip| &ip.ip).collect(),
            "hostIPs",
        ),
    ] {
        for (index, address) in list.into_iter().enumerate() {
            addresses::check(address, &path.child(name).index(index), errors);
        }
    }
    let policy = old
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .unwrap_or("Always");
    check_transitions(
        status.container_statuses.as_deref().unwrap_or_default(),
        before.container_statuses.as_deref().unwrap_or_default(),
        policy,
        &path.child("containerStatuses"),
        errors,
    );
}
