//! The containers of a pod: those that initialise and those that stay.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, EphemeralContainer, PodSpec,
    ResourceRequirements,
};
use serde::Deserialize;

use super::handlers::{ProbeUse, validate_lifecycle, validate_probe};
use super::{Surroundings, environment, mounts, resources, security};
use crate::field::{ErrorList, Path};
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
pub(super) const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: [&str; 2] = ["File", "FallbackToLogsOnError"];

fn check_ports(ports: &[ContainerPort], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let path = path.child("name");
            let details = names::port_name(name);
            for detail in &details {
                errors.invalid(&path, name, detail);
            }
            if details.is_empty() && !seen.insert(name) {
                errors.duplicate(&path, name);
            }
        }
        let number_path = path.child("containerPort");
        if port.container_port == 0 {
            errors.required(&number_path, "");
        } else if let Some(detail) = names::is_port_number(i64::from(port.container_port)) {
            errors.invalid(&number_path, port.container_port, &detail);
        }
        if let Some(number) = port.host_port.filter(|number| *number != 0)
            && let Some(detail) = names::is_port_number(i64::from(number))
        {
            errors.invalid(&path.child("hostPort"), number, &detail);
        }
        match port.protocol.as_deref().unwrap_or_default() {
            "" => errors.required(&path.child("protocol"), ""),
            protocol if PROTOCOLS.contains(&protocol) => {}
            protocol => errors.not_supported(&path.child("protocol"), protocol, &PROTOCOLS),
        }
    }
}

/// Checks that no two ports want the same one of the host; `containers` are positions and containers that run together.
fn check_host_ports<'a>(
    containers: impl Iterator<Item = (usize, &'a Container)>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut seen = HashSet::new();
    for (container_index, container) in containers {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|number| *number != 0) else {
                continue;
            };
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let address = port.host_ip.as_deref().unwrap_or_default();
            if !seen.insert((protocol, address, number)) {
                let path = path.index(container_index).child("ports").index(index);
                let claim = format!("{protocol}/{address}/{number}");
                errors.duplicate(&path.child("hostPort"), claim);
            }
        }
    }
}

/// Refuses what is none of the choices, or nothing.
pub(super) fn check_choice(
    value: Option<&str>,
    choices: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    match value.unwrap_or_default() {
        "" => errors.required(path, ""),
        value if choices.contains(&value) => {}
        value => errors.not_supported(path, value, choices),
    }
}

fn check_common(
    container: &Container,
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let name_path = path.child("name");
    if container.name.is_empty() {
        errors.required(&name_path, "");
    } else {
        let details = names::dns1123_label(&container.name);
        errors.invalid_each(&name_path, &container.name, details);
    }
    if container.image.as_deref().unwrap_or_default().is_empty() {
        errors.required(&path.child("image"), "");
    }
    check_choice(
        container.termination_message_policy.as_deref(),
        &MESSAGE_POLICIES,
        &path.child("terminationMessagePolicy"),
        errors,
    );
    let ports = container.ports.as_deref().unwrap_or_default();
    check_ports(ports, &path.child("ports"), errors);
    let variables = container.env.as_deref().unwrap_or_default();
    environment::validate_variables(variables, &path.child("env"), errors);
    let sources = container.env_from.as_deref().unwrap_or_default();
    environment::validate_sources(sources, &path.child("envFrom"), errors);
    mounts::validate(container, &surroundings.volumes, path, errors);
    check_choice(
        container.image_pull_policy.as_deref(),
        &PULL_POLICIES,
        &path.child("imagePullPolicy"),
        errors,
    );
    if let Some(resources) = &container.resources {
        let path = path.child("resources");
        resources::validate(resources, &path, errors);
        resources::validate_claims(resources, &surroundings.claims, &path, errors);
    }
    let policies = container.resize_policy.as_deref().unwrap_or_default();
    let resize_path = path.child("resizePolicy");
    check_resize(policies, surroundings.restart_policy, &resize_path, errors);
    security::validate_container(
        container.security_context.as_ref(),
        surroundings.host_users,
        &path.child("securityContext"),
        errors,
    );
}

fn check_probes_and_hooks(
    container: &Container,
    grace_period: i64,
    path: &Path,
    errors: &mut ErrorList,
) {
    let lifecycle = container.lifecycle.as_ref();
    validate_lifecycle(lifecycle, grace_period, &path.child("lifecycle"), errors);
    for (probe, usage, name) in [
        (
            &container.liveness_probe,
            ProbeUse::Liveness,
            "livenessProbe",
        ),
        (
            &container.readiness_probe,
            ProbeUse::Readiness,
            "readinessProbe",
        ),
        (&container.startup_probe, ProbeUse::Startup, "startupProbe"),
    ] {
        let path = path.child(name);
        validate_probe(probe.as_ref(), usage, grace_period, &path, errors);
    }
}

/// Checks what a change of resources does to a container. The list is named, not the policy, as Kubernetes does.
fn check_resize(
    policies: &[ContainerResizePolicy],
    restart_policy: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    const RESOURCES: [&str; 2] = ["cpu", "memory"];
    const POLICIES: [&str; 2] = ["NotRequired", "RestartContainer"];
    let mut seen = HashSet::new();
    for (index, policy) in policies.iter().enumerate() {
        let (resource, restart) = (&policy.resource_name, &policy.restart_policy);
        if !seen.insert(resource) {
            errors.duplicate(&path.index(index), resource);
        }
        check_choice(Some(resource), &RESOURCES, path, errors);
        check_choice(Some(restart), &POLICIES, path, errors);
        if restart_policy == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path, restart, detail);
        }
    }
}

/// Checks a container's own restart policy and the rules beside it.
fn check_restart_policy(container: &Container, path: &Path, errors: &mut ErrorList) {
    const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
    const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    const MAX_RULES: usize = 20;
    const MAX_CODES: usize = 255;
    let rules = container
        .restart_policy_rules
        .as_deref()
        .unwrap_or_default();
    let policy_path = path.child("restartPolicy");
    match container.restart_policy.as_deref() {
        None if rules.is_empty() => return,
        None => {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required(&policy_path, detail);
        }
        Some(policy) if POLICIES.contains(&policy) => {}
        Some(policy) => errors.not_supported(&policy_path, policy, &POLICIES),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        if !ACTIONS.contains(&rule.action.as_str()) {
            errors.not_supported(&path.child("action"), &rule.action, &ACTIONS);
        }
        let path = path.child("exitCodes");
        let Some(exit_codes) = &rule.exit_codes else {
            errors.required(&path, "must be specified");
            continue;
        };
        if !OPERATORS.contains(&exit_codes.operator.as_str()) {
            errors.not_supported(&path.child("operator"), &exit_codes.operator, &OPERATORS);
        }
        let values = exit_codes.values.as_ref().map_or(0, Vec::len);
        if values > MAX_CODES {
            errors.too_many(&path.child("values"), values, MAX_CODES);
        }
    }
}

/// As [`check_restart_policy`], of an init container: without a policy its rules are not looked at.
fn check_init_restart_policy(container: &Container, path: &Path, errors: &mut ErrorList) {
    let rules = container.restart_policy_rules.as_ref();
    if container.restart_policy.is_some() {
        check_restart_policy(container, path, errors);
    } else if rules.is_some_and(|rules| !rules.is_empty()) {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.required(&path.child("restartPolicy"), detail);
    }
}

/// Checks the containers that stay.
pub(super) fn validate(
    spec: &PodSpec,
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("containers");
    if spec.containers.is_empty() {
        return errors.required(&path, "");
    }
    let mut seen = HashSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let path = path.index(index);
        check_common(container, surroundings, &path, errors);
        if !seen.insert(container.name.as_str()) {
            errors.duplicate(&path.child("name"), &container.name);
        }
        check_probes_and_hooks(container, surroundings.grace_period, &path, errors);
        check_restart_policy(container, &path, errors);
    }
    check_host_ports(spec.containers.iter().enumerate(), &path, errors);
}

/// Checks the containers that initialise, or start first and stay.
pub(super) fn validate_init(
    spec: &PodSpec,
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("initContainers");
    let mut seen: HashSet<&str> = spec
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let list_path = &path;
        let path = path.index(index);
        check_common(container, surroundings, &path, errors);
        check_init_restart_policy(container, &path, errors);
        let name = container.name.as_str();
        if seen.contains(name) {
            errors.duplicate(&path.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        check_host_ports(std::iter::once((index, container)), list_path, errors);
        if container.restart_policy.as_deref() == Some("Always") {
            check_probes_and_hooks(container, surroundings.grace_period, &path, errors);
        } else {
            for (present, name) in [
                (container.lifecycle.is_some(), "lifecycle"),
                (container.liveness_probe.is_some(), "livenessProbe"),
                (container.readiness_probe.is_some(), "readinessProbe"),
                (container.startup_probe.is_some(), "startupProbe"),
            ] {
                if present {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errors.forbidden(&path.child(name), detail);
                }
            }
            let policies = container.resize_policy.iter().flatten().enumerate();
            for (index, policy) in policies {
                if policy.restart_policy == "RestartContainer" {
                    let path = path.child("resizePolicy").index(index);
                    let detail =
                        "must not be set to 'RestartContainer' for non-sidecar initContainers";
                    errors.invalid(&path.child("restartPolicy"), &policy.restart_policy, detail);
                }
            }
        }
    }
}

/// An ephemeral container as one that it has nearly all fields of.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let fields = serde_json::to_value(ephemeral).unwrap_or_default();
    Container::deserialize(fields).unwrap_or_default()
}

/// Checks containers that were added to look into a pod: they have nothing that the pod would rely on.
pub(super) fn validate_ephemeral(
    spec: &PodSpec,
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    let path = path.child("ephemeralContainers");
    let init = spec.init_containers.iter().flatten();
    let others: HashSet<&str> = spec
        .containers
        .iter()
        .chain(init)
        .map(|container| container.name.as_str())
        .collect();
    let mut seen = others.clone();
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.index(index);
        let container = as_container(ephemeral);
        check_common(&container, surroundings, &path, errors);
        check_image(&container, &path, errors);
        if !seen.insert(&ephemeral.name) {
            errors.duplicate(&path.child("name"), &ephemeral.name);
        }
        let target = ephemeral
            .target_container_name
            .as_deref()
            .unwrap_or_default();
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        let resources = container.resources.unwrap_or_default();
        for (is_given, field) in [
            (container.ports.is_some(), "ports"),
            (resources != ResourceRequirements::default(), "resources"),
            (container.resize_policy.is_some(), "resizePolicy"),
            (container.restart_policy.is_some(), "restartPolicy"),
            (
                container.restart_policy_rules.is_some(),
                "restartPolicyRules",
            ),
            (container.liveness_probe.is_some(), "livenessProbe"),
            (container.readiness_probe.is_some(), "readinessProbe"),
            (container.startup_probe.is_some(), "startupProbe"),
            (container.lifecycle.is_some(), "lifecycle"),
        ] {
            if is_given {
                errors.forbidden(&path.child(field), DETAIL);
            }
        }
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let path = path.child("volumeMounts").index(index);
            for (below, field) in [
                (&mount.sub_path, "subPath"),
                (&mount.sub_path_expr, "subPathExpr"),
            ] {
                if below.as_ref().is_some_and(|below| !below.is_empty()) {
                    errors.forbidden(&path.child(field), DETAIL);
                }
            }
        }
    }
}

fn check_image(container: &Container, path: &Path, errors: &mut ErrorList) {
    let image = container.image.as_deref().unwrap_or_default();
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.invalid(&path.child("image"), image, detail);
    }
}

/// Checks what only pods forbid: templates have always been allowed images with spaces around.
pub(super) fn validate_images(containers: &[Container], path: &Path, errors: &mut ErrorList) {
    for (index, container) in containers.iter().enumerate() {
        check_image(container, &path.index(index), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(container: Value) -> Vec<String> {
        let container: Container = serde_json::from_value(container).unwrap();
        let mut errors = ErrorList::default();
        check_restart_policy(&container, &Path::new("c"), &mut errors);
        errors.told()
    }

    #[test]
    fn restart_rules_are_whole_and_beside_a_policy() {
        let rules = |rules: Value| {
            told(json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}))
        };
        let rule = |action: &str, operator: &str, codes: usize| json!({"action": action, "exitCodes": {"operator": operator, "values": vec![1; codes]}});
        let good = rule("Restart", "In", 255);
        assert!(rules(json!([good, rule("RestartAllContainers", "NotIn", 0)])).is_empty());
        let alone = told(json!({"name": "c", "restartPolicyRules": [good]}));
        let required = "c.restartPolicy: Required value: must specify restartPolicy when restart rules are used";
        assert_eq!(alone, [required]);
        let none = told(json!({"name": "c", "restartPolicyRules": [{"action": "Restart"}]}));
        assert_eq!(none.len(), 2, "{none:?}");
        assert_eq!(
            rules(json!([rule("DoNotRestart", "Equals", 256), {"action": "Restart"}])),
            [
                "c.restartPolicyRules[0].action: Unsupported value: \"DoNotRestart\": supported values: \"Restart\", \"RestartAllContainers\"",
                "c.restartPolicyRules[0].exitCodes.operator: Unsupported value: \"Equals\": supported values: \"In\", \"NotIn\"",
                "c.restartPolicyRules[0].exitCodes.values: Too many: 256: must have at most 255 items",
                "c.restartPolicyRules[1].exitCodes: Required value: must be specified",
            ]
        );
        let many: Vec<Value> = vec![good; 21];
        assert_eq!(
            rules(json!(many)),
            ["c.restartPolicyRules: Too many: 21: must have at most 20 items"]
        );
    }
}
