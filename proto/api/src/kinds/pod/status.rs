//! What may become of a pod's status: it keeps to its own past.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodResourceClaimStatus, PodSpec, PodStatus,
};
use serde::Serialize;

use crate::field::{ErrorList, Path};
use crate::kinds::addresses;
use crate::names;

/// Conditions of Kubernetes' own, which need no qualified name.
const CONDITIONS: [&str; 3] = ["Initialized", "PodScheduled", "Ready"];
const NO_GENERATION: &str = "must be a non-negative integer";

fn check_conditions(status: &PodStatus, path: &Path, errors: &mut ErrorList) {
    for (index, condition) in status.conditions.iter().flatten().enumerate() {
        let path = path.child("conditions").index(index);
        if let Some(number) = condition.observed_generation.filter(|number| *number < 0) {
            errors.invalid(&path.child("observedGeneration"), number, NO_GENERATION);
        }
        if !CONDITIONS.contains(&condition.type_.as_str()) {
            let details = names::qualified_name(&condition.type_);
            errors.invalid_each(&path.child("Type"), &condition.type_, details);
        }
    }
}

fn ended(status: &ContainerStatus) -> Option<i32> {
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    Some(ended.exit_code)
}

/// Whether an end of one container may begin all of them anew.
fn may_all_restart(spec: &PodSpec) -> bool {
    let init = spec.init_containers.iter().flatten();
    let mut rules = spec
        .containers
        .iter()
        .chain(init)
        .flat_map(|container| container.restart_policy_rules.iter().flatten());
    rules.any(|rule| rule.action == "RestartAllContainers")
}

/// Whether a container that ended so is begun anew: by the first of its rules about the code, by its own policy, or by the
/// pod's.
fn restarts(container: &Container, pod_policy: &str, code: i32) -> bool {
    let by = |policy: &str| match policy {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    };
    let Some(policy) = &container.restart_policy else {
        return by(pod_policy);
    };
    let mut rules = container.restart_policy_rules.iter().flatten();
    let rule = rules.find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|listed| *listed == code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    });
    let restart = ["Restart", "RestartAllContainers"];
    rule.is_some_and(|rule| restart.contains(&rule.action.as_str())) || by(policy)
}

type Statuses = Option<Vec<ContainerStatus>>;

/// Checks that containers which are not to be restarted stay ended; `containers` are those that may be.
fn check_transitions(
    (new, old): (&Statuses, &Statuses),
    (containers, policy): (&[Container], &str),
    path: &Path,
    errors: &mut ErrorList,
) {
    let going: HashSet<&str> = new
        .iter()
        .flatten()
        .filter(|status| ended(status).is_none())
        .map(|status| status.name.as_str())
        .collect();
    let mut by_name: HashMap<&str, &Container> = HashMap::new();
    for container in containers {
        by_name.entry(&container.name).or_insert(container);
    }
    for (index, before) in old.iter().flatten().enumerate() {
        let Some(code) = ended(before).filter(|_| going.contains(before.name.as_str())) else {
            continue;
        };
        let container = by_name.get(before.name.as_str());
        if !container.is_some_and(|container| restarts(container, policy, code)) {
            let detail = "may not be transitioned to non-terminated state";
            errors.forbidden(&path.index(index).child("state"), detail);
        }
    }
}

/// An address as Kubernetes prints it inside of messages: its internal type's own field name.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(rename = "IP")]
    ip: &'a str,
}

/// Checks the addresses of a pod or of its node: one, or one of each family.
fn check_addresses(list: &[&str], path: &Path, errors: &mut ErrorList) {
    for (index, address) in list.iter().enumerate() {
        addresses::check(address, &path.index(index), errors);
    }
    let families: HashSet<bool> = list.iter().map(|address| address.contains(':')).collect();
    if families.len() < list.len() {
        let printed: Vec<Printed<'_>> = list.iter().map(|ip| Printed { ip }).collect();
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid(path, printed, detail);
    }
}

fn check_claims(
    statuses: &[PodResourceClaimStatus],
    spec: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let claims = spec.resource_claims.iter().flatten();
    let known: HashSet<&str> = claims.map(|claim| claim.name.as_str()).collect();
    let mut seen = HashSet::new();
    for (index, status) in statuses.iter().enumerate() {
        let path = path.index(index);
        let name = status.name.as_str();
        if !known.contains(name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&path.child("name"), name, detail);
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        if let Some(claim) = &status.resource_claim_name {
            let details = names::dns1123_subdomain(claim);
            errors.invalid_each(&path.child("resourceClaimName"), claim, details);
        }
    }
}

/// Checks as whom containers run.
fn check_users(statuses: &Statuses, is_windows: bool, path: &Path, errors: &mut ErrorList) {
    for (index, status) in statuses.iter().flatten().enumerate() {
        let path = path.index(index).child("user").child("linux");
        let Some(user) = status.user.as_ref().and_then(|user| user.linux.as_ref()) else {
            continue;
        };
        if is_windows {
            errors.forbidden(&path, "cannot be set for a windows pod");
            continue;
        }
        let mut check = |id: i64, path: &Path| {
            if !(0..=i64::from(i32::MAX)).contains(&id) {
                let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
                errors.invalid(path, id, &detail);
            }
        };
        check(user.uid, &path.child("uid"));
        check(user.gid, &path.child("gid"));
        for (index, group) in user.supplemental_groups.iter().flatten().enumerate() {
            check(*group, &path.child("supplementalGroups").index(index));
        }
    }
}

fn check_nomination(status: &PodStatus, old: &Pod, path: &Path, errors: &mut ErrorList) {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let before = old.status.as_ref();
    let before = text(before.and_then(|status| status.nominated_node_name.as_ref()));
    let now = text(status.nominated_node_name.as_ref());
    if now.is_empty() || now == before {
        return;
    }
    let path = path.child("nominatedNodeName");
    errors.invalid_each(&path, &now, names::dns1123_subdomain(&now));
    let bound = old.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    if !text(bound).is_empty() {
        let detail = "may not be set on pods that are already bound to a node";
        errors.forbidden(&path, detail);
    }
}

/// Checks an update of the status.
pub(super) fn validate(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let path = Path::new("status");
    let (empty, empty_spec) = (PodStatus::default(), PodSpec::default());
    let status = new.status.as_ref().unwrap_or(&empty);
    let before = old.status.as_ref().unwrap_or(&empty);
    let spec = old.spec.as_ref().unwrap_or(&empty_spec);
    check_conditions(status, &path, errors);
    check_nomination(status, old, &path, errors);
    if let Some(number) = status.observed_generation.filter(|number| *number < 0) {
        errors.invalid(&path.child("observedGeneration"), number, NO_GENERATION);
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let of_all: [(&str, (&Statuses, &Statuses), &[Container]); 2] = [
        (
            "containerStatuses",
            (&status.container_statuses, &before.container_statuses),
            &spec.containers,
        ),
        (
            "initContainerStatuses",
            (
                &status.init_container_statuses,
                &before.init_container_statuses,
            ),
            init,
        ),
    ];
    for (field, statuses, containers) in of_all.into_iter().filter(|_| !may_all_restart(spec)) {
        let path = path.child(field);
        check_transitions(statuses, (containers, policy), &path, errors);
    }
    let ephemeral = (
        &status.ephemeral_container_statuses,
        &before.ephemeral_container_statuses,
    );
    let ephemeral_path = path.child("ephemeralContainerStatuses");
    check_transitions(ephemeral, (&[], policy), &ephemeral_path, errors);
    let claims = status.resource_claim_statuses.as_deref();
    let claims_path = path.child("resourceClaimStatuses");
    check_claims(claims.unwrap_or_default(), spec, &claims_path, errors);
    let addresses = status.pod_ips.iter().flatten();
    let addresses: Vec<&str> = addresses.map(|address| address.ip.as_str()).collect();
    check_addresses(&addresses, &path.child("podIPs"), errors);
    let addresses = status.host_ips.iter().flatten();
    let addresses: Vec<&str> = addresses.map(|address| address.ip.as_str()).collect();
    let hosts_path = path.child("hostIPs");
    if let Some(first) = addresses.first()
        && status.host_ip.as_deref().unwrap_or_default() != *first
    {
        let path = hosts_path.index(0).child("ip");
        errors.invalid(&path, first, "must be equal to `hostIP`");
    }
    check_addresses(&addresses, &hosts_path, errors);
    let is_windows = spec
        .os
        .as_ref()
        .is_some_and(|system| system.name == "windows");
    for (field, statuses) in [
        ("containerStatuses", &status.container_statuses),
        ("initContainerStatuses", &status.init_container_statuses),
        (
            "ephemeralContainerStatuses",
            &status.ephemeral_container_statuses,
        ),
    ] {
        check_users(statuses, is_windows, &path.child(field), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(spec: Value, old: Value, new: Value) -> Vec<String> {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({"spec": spec, "status": status})).unwrap()
        };
        let mut errors = ErrorList::default();
        validate(&pod(new), &pod(old), &mut errors);
        errors.told()
    }

    fn ended(code: i32) -> Value {
        json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]})
    }

    fn begun(policy: &str, container: Value, code: i32) -> Vec<String> {
        let going = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
        let spec = json!({"restartPolicy": policy, "containers": [container]});
        told(spec, ended(code), going)
    }

    #[test]
    fn what_ended_for_good_stays_so() {
        let refused = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
        let plain = json!({"name": "c"});
        let rules = |action: &str| {
            json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": action, "exitCodes": {"operator": "In", "values": [7]}}
            ]})
        };
        for (policy, container, code, may) in [
            ("Always", plain.clone(), 0, true),
            ("OnFailure", plain.clone(), 1, true),
            ("OnFailure", plain.clone(), 0, false),
            ("Never", plain.clone(), 1, false),
            ("Never", rules("Restart"), 7, true),
            ("Always", rules("Restart"), 8, false),
            ("Never", rules("RestartAllContainers"), 8, true),
            (
                "Never",
                json!({"name": "c", "restartPolicy": "Always"}),
                0,
                true,
            ),
        ] {
            let expected: &[&str] = if may { &[] } else { &[refused] };
            assert_eq!(begun(policy, container, code), expected, "{policy} {code}");
        }
        assert_eq!(begun("Always", json!({"name": "d"}), 1), [refused]);
    }

    #[test]
    fn addresses_are_of_two_families_and_the_nodes_agree() {
        let spec = json!({"containers": [], "nodeName": "n"});
        let found = told(
            spec,
            json!({}),
            json!({
                "podIPs": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}],
                "hostIP": "192.0.2.9", "hostIPs": [{"ip": "192.0.2.8"}],
                "nominatedNodeName": "m", "observedGeneration": -1,
                "conditions": [{"type": "a b", "status": "True"}, {"type": "Ready", "status": "True"}]
            }),
        );
        let places: Vec<&str> = found
            .iter()
            .filter_map(|message| message.split(": ").next())
            .collect();
        let expected = [
            "status.conditions[0].Type",
            "status.nominatedNodeName",
            "status.observedGeneration",
            "status.podIPs",
            "status.hostIPs[0].ip",
        ];
        assert_eq!(places, expected);
        assert!(found[3].contains(r#"[{"IP":"192.0.2.1"},{"IP":"192.0.2.2"}]"#));
    }
}
