//! What is allowed in a pod and yet likely a mistake, or about to go.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::field::Path;

/// Warnings beyond these are not told: the headers that carry them have room for less.
const MAX_WARNINGS: usize = 100;

fn check_container(container: &Container, path: &Path, warnings: &mut Vec<String>) {
    if warnings.len() >= MAX_WARNINGS {
        return;
    }
    let mut claims = HashMap::new();
    let ports = container.ports.as_deref().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let claim = (
            port.container_port,
            port.protocol.as_deref(),
            port.host_port.unwrap_or(0),
            port.host_ip.as_deref().unwrap_or_default(),
        );
        let earlier = *claims.entry(claim).or_insert(index);
        if earlier != index {
            let path = path.child("ports");
            warnings.push(format!(
                "{}: duplicate port definition with {}",
                path.index(index),
                path.index(earlier)
            ));
        }
    }
    let variables = container.env.as_deref().unwrap_or_default();
    let mut defined = HashSet::new();
    for (index, variable) in variables.iter().enumerate() {
        let value = variable.value.as_deref().unwrap_or_default();
        // Appending to an earlier value of the same name is no mistake.
        let appends = value.contains(&format!("$({})", variable.name));
        if !defined.insert(&variable.name) && !appends {
            warnings.push(format!(
                "{}: hides previous definition of \"{}\", which may be dropped when using apply",
                path.child("env").index(index),
                variable.name
            ));
        }
    }
}

/// Warnings about a spec, of a pod or of a template.
pub fn warnings(spec: &PodSpec, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for label in spec.node_selector.iter().flatten().map(|(label, _)| label) {
        let replacement = match label.as_str() {
            "beta.kubernetes.io/arch" => "kubernetes.io/arch",
            "beta.kubernetes.io/os" => "kubernetes.io/os",
            "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
            "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
            _ => continue,
        };
        let key = path.child("nodeSelector").key(label);
        warnings.push(format!(
            "{key}: deprecated since v1.14; use \"{replacement}\" instead"
        ));
    }
    let init = spec.init_containers.iter().flatten();
    for (index, container) in init.enumerate() {
        let path = path.child("initContainers").index(index);
        check_container(container, &path, &mut warnings);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = path.child("containers").index(index);
        check_container(container, &path, &mut warnings);
    }
    warnings
}
