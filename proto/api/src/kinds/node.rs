//! Node: a machine that runs pods.

mod row;

use std::collections::{BTreeSet, HashSet};

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use serde_json::json;

use super::table::Printer;
use super::{addresses, pod_spec};
use crate::field::{ErrorList, ErrorType, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::names;
use crate::parts;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// See [`Node`].
pub struct NodeKind;

fn empty() -> &'static NodeSpec {
    static EMPTY: std::sync::OnceLock<NodeSpec> = std::sync::OnceLock::new();
    EMPTY.get_or_init(NodeSpec::default)
}

fn validate_taints(spec: &NodeSpec, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, taint) in spec.taints.iter().flatten().enumerate() {
        // The field is under spec; the message's path is Kubernetes' own.
        let path = Path::new("metadata").child("taints").index(index);
        let details = names::qualified_name(&taint.key);
        errors.invalid_each(&path.child("key"), &taint.key, details);
        let value = taint.value.as_deref().unwrap_or_default();
        let details = names::label_value(value);
        if !details.is_empty() {
            errors.invalid(&path.child("value"), value, &details.join(";"));
        }
        match taint.effect.as_str() {
            "" => errors.required(&path.child("effect"), ""),
            effect if EFFECTS.contains(&effect) => {}
            other => errors.not_supported(&path.child("effect"), other, EFFECTS),
        }
        if !taken.insert((&taint.key, &taint.effect)) {
            let value = format!(
                r#"{{"Key":{},"Value":{},"Effect":{},"TimeAdded":{}}}"#,
                json!(taint.key),
                json!(value),
                json!(taint.effect),
                json!(taint.time_added)
            );
            errors.push(ErrorType::Duplicate, &path, || {
                format!("Duplicate value: {value}: taints must be unique by key and effect pair")
            });
        }
    }
}

fn validate_pod_cidrs(spec: &NodeSpec, errors: &mut ErrorList) {
    let path = Path::new("spec").child("podCIDRs");
    let networks = spec.pod_cidrs.as_deref().unwrap_or_default();
    let before = errors.0.len();
    for (index, network) in networks.iter().enumerate() {
        addresses::check_cidr(network, &path.index(index), errors);
    }
    let families: BTreeSet<bool> = networks
        .iter()
        .map(|network| network.contains(':'))
        .collect();
    if errors.0.len() == before && families.len() < networks.len() {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.invalid(&path, networks, detail);
    }
}

fn validate_amounts(status: &NodeStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    for (field, amounts) in [
        ("capacity", &status.capacity),
        ("allocatable", &status.allocatable),
    ] {
        for (resource, amount) in amounts.iter().flatten() {
            let path = path.child(field).child(resource);
            pod_spec::check_amount(resource, amount, &path, errors);
        }
    }
}

fn validate_status(status: &NodeStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    validate_amounts(status, errors);
    let mut taken = HashSet::new();
    for (index, address) in status.addresses.iter().flatten().enumerate() {
        if !taken.insert((&address.type_, &address.address)) {
            errors.duplicate(&path.child("addresses").index(index), address);
        }
    }
}

impl Kind for NodeKind {
    type Object = Node;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<Node> = parts!(Node: spec, status);

    const CREATED_WITH_STATUS: bool = true;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const FIELD_LABELS: &'static [&'static str] = &["spec.unschedulable"];

    fn default(object: &mut Node) {
        let spec = object.spec.get_or_insert_default();
        // One network under its old name, all of them under the new one: the first is the same.
        match spec.pod_cidr.as_ref().filter(|network| !network.is_empty()) {
            Some(network) => {
                let listed = spec.pod_cidrs.get_or_insert_default();
                if listed.first() != Some(network) {
                    *listed = vec![network.clone()];
                }
            }
            None => {
                let first = spec
                    .pod_cidrs
                    .as_ref()
                    .and_then(|networks| networks.first());
                spec.pod_cidr = first.cloned();
            }
        }
        let status = object.status.get_or_insert_default();
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
        let endpoints = status.daemon_endpoints.get_or_insert_default();
        endpoints.kubelet_endpoint.get_or_insert_default();
        status.node_info.get_or_insert_default();
    }

    fn validate(object: &Node, errors: &mut ErrorList) {
        let spec = object.spec.as_ref().unwrap_or(empty());
        validate_taints(spec, errors);
        if let Some(status) = &object.status {
            validate_amounts(status, errors);
        }
        validate_pod_cidrs(spec, errors);
    }

    fn validate_update(new: &Node, old: &Node, errors: &mut ErrorList) {
        let (new, old) = (
            new.spec.as_ref().unwrap_or(empty()),
            old.spec.as_ref().unwrap_or(empty()),
        );
        let path = Path::new("spec");
        let networks = |spec: &NodeSpec| spec.pod_cidrs.clone().unwrap_or_default();
        let (now, before) = (networks(new), networks(old));
        let changes = match now.len() == before.len() {
            true => now
                .iter()
                .zip(&before)
                .filter(|(now, before)| now != before)
                .count(),
            false => usize::from(!before.is_empty()),
        };
        for _ in 0..changes {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden(&path.child("podCIDRs"), detail);
        }
        let provider = |spec: &NodeSpec| spec.provider_id.clone().unwrap_or_default();
        if !provider(old).is_empty() && provider(new) != provider(old) {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&path.child("providerID"), detail);
        }
        validate_taints(new, errors);
        let external = |spec: &NodeSpec| spec.external_id.clone().unwrap_or_default();
        if external(new) != external(old) {
            errors.forbidden(&path.child("externalID"), "may not be updated");
        }
    }

    fn warnings(new: &Node, _old: Option<&Node>) -> Vec<String> {
        let spec = new.spec.as_ref().unwrap_or(empty());
        let mut warnings = Vec::new();
        if spec.config_source.is_some() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if spec.external_id.as_ref().is_some_and(|id| !id.is_empty()) {
            let warning = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            warnings.push(warning.to_owned());
        }
        let path = Path::new("spec").child("podCIDRs");
        for (index, network) in spec.pod_cidrs.iter().flatten().enumerate() {
            warnings.extend(addresses::form_warning(network, &path.index(index)));
        }
        warnings
    }

    fn validate_status_update(new: &Node, _old: &Node, errors: &mut ErrorList) {
        if let Some(status) = &new.status {
            validate_status(status, errors);
        }
    }

    fn selectable_fields(object: &Node) -> Vec<(&'static str, String)> {
        let cordoned = object
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or(false);
        vec![("spec.unschedulable", cordoned.to_string())]
    }

    fn printer() -> Printer<Node> {
        row::printer()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(spec: Value) -> Node {
        let mut object =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        NodeKind::default(&mut object);
        object
    }

    fn paths(errors: &ErrorList) -> Vec<String> {
        let errors = errors.0.iter();
        errors.map(|error| error.path.to_string()).collect()
    }

    #[test]
    fn one_pod_network_has_two_names() {
        for spec in [
            json!({"podCIDR": "10.244.7.0/24"}),
            json!({"podCIDRs": ["10.244.7.0/24"]}),
        ] {
            let spec = parse(spec).spec.unwrap();
            assert_eq!(spec.pod_cidr.as_deref(), Some("10.244.7.0/24"));
            assert_eq!(spec.pod_cidrs.unwrap(), ["10.244.7.0/24"]);
        }
    }

    #[test]
    fn taints_and_networks_are_checked() {
        let object = parse(json!({
            "taints": [
                {"key": "a", "effect": "Foo"},
                {"key": "b c", "effect": "NoSchedule"},
                {"key": "d", "effect": "NoExecute"},
                {"key": "d", "effect": "NoExecute", "value": "other"}
            ],
            "podCIDRs": ["abc"]
        }));
        let mut errors = ErrorList::default();
        NodeKind::validate(&object, &mut errors);
        let expected = [
            "metadata.taints[0].effect",
            "metadata.taints[1].key",
            "metadata.taints[3]",
            "spec.podCIDRs[0]",
        ];
        assert_eq!(paths(&errors), expected);
    }

    #[test]
    fn a_network_and_a_provider_are_given_once() {
        let old = parse(json!({"podCIDR": "10.244.8.0/24", "providerID": "x"}));
        let update = |spec: Value| {
            let mut errors = ErrorList::default();
            NodeKind::validate_update(&parse(spec), &old, &mut errors);
            paths(&errors)
        };
        let moved = json!({"podCIDR": "10.244.9.0/24", "providerID": "y"});
        assert_eq!(update(moved), ["spec.podCIDRs", "spec.providerID"]);
        let cordoned =
            json!({"podCIDR": "10.244.8.0/24", "providerID": "x", "unschedulable": true});
        assert_eq!(update(cordoned), Vec::<String>::new());
    }
}
