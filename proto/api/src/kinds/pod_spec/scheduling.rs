//! Where a pod may run: affinity, tolerations, spreading, gates.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec,
    Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

use crate::field::{ErrorList, Path};
use crate::names;
use crate::selector;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_EMPTY: &str = "can not be empty";

fn check_label_key(key: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(path, key, names::qualified_name(key));
}

/// Checks what is asked of a node's labels; the values themselves only where the pod cannot run without.
fn check_requirement(
    requirement: &NodeSelectorRequirement,
    with_values: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let values = requirement.values.as_deref().unwrap_or_default();
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => errors.required(
            &values_path,
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
            &values_path,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "Gt" | "Lt" if values.len() != 1 => errors.required(
            &values_path,
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        operator => errors.invalid(
            &path.child("operator"),
            operator,
            "not a valid selector operator",
        ),
    }
    check_label_key(&requirement.key, &path.child("key"), errors);
    for (index, value) in values.iter().enumerate().filter(|_| with_values) {
        errors.invalid_each(&values_path.index(index), value, names::label_value(value));
    }
}

fn check_field_requirement(
    requirement: &NodeSelectorRequirement,
    path: &Path,
    errors: &mut ErrorList,
) {
    let values = requirement.values.as_deref().unwrap_or_default();
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(&values_path, detail);
            }
        }
        operator => errors.invalid(
            &path.child("operator"),
            operator,
            "not a valid selector operator",
        ),
    }
    if requirement.key == "metadata.name" {
        for (index, value) in values.iter().enumerate() {
            let details = names::dns1123_subdomain(value);
            errors.invalid_each(&values_path.index(index), value, details);
        }
    } else {
        errors.invalid(
            &path.child("key"),
            &requirement.key,
            "not a valid field selector key",
        );
    }
}

fn check_term(term: &NodeSelectorTerm, with_values: bool, path: &Path, errors: &mut ErrorList) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        check_requirement(requirement, with_values, &path, errors);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        check_field_requirement(requirement, &path, errors);
    }
}

/// Checks which nodes are asked for.
pub(in crate::kinds) fn check_node_selector(
    selector: &NodeSelector,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        check_term(term, true, &path.index(index), errors);
    }
}

fn check_weight(weight: i32, path: &Path, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn check_pod_term(term: &PodAffinityTerm, path: &Path, errors: &mut ErrorList) {
    for (selector, name) in [
        (&term.label_selector, "labelSelector"),
        (&term.namespace_selector, "namespaceSelector"),
    ] {
        if let Some(selector) = selector {
            selector::validate(selector, &path.child(name), errors);
        }
    }
    for name in term.namespaces.iter().flatten() {
        let details = names::dns1123_label(name);
        errors.invalid_each(&path.child("namespace"), name, details);
    }
    let keys = [&term.match_label_keys, &term.mismatch_label_keys];
    check_followed(keys, term.label_selector.as_ref(), path, errors);
    let path = path.child("topologyKey");
    if term.topology_key.is_empty() {
        errors.required(&path, NO_EMPTY);
    }
    check_label_key(&term.topology_key, &path, errors);
}

/// Checks keys of labels whose values a term takes over from the pod. They are in the selector already, at its end, if the pod
/// has them: only a key that is there twice was there before.
fn check_followed(
    [matched, mismatched]: [&Option<Vec<String>>; 2],
    selector: Option<&LabelSelector>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let matched = matched.as_deref().unwrap_or_default();
    let mismatched = mismatched.as_deref().unwrap_or_default();
    for (keys, name) in [
        (matched, "matchLabelKeys"),
        (mismatched, "mismatchLabelKeys"),
    ] {
        let path = path.child(name);
        if !keys.is_empty() && selector.is_none() {
            let detail = "must not be specified when labelSelector is not set";
            errors.forbidden(&path, detail);
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            check_label_key(key, &path.index(index), errors);
        }
    }
    let places = matched.iter().enumerate();
    let place_of: HashMap<&String, usize> = places.map(|(index, key)| (key, index)).collect();
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    let expressions = selector.and_then(|selector| selector.match_expressions.as_ref());
    let mut asked: HashSet<&String> = labels.into_iter().flatten().map(|(key, _)| key).collect();
    for expression in expressions.into_iter().flatten() {
        let key = &expression.key;
        if let (Some(index), false) = (place_of.get(key), asked.insert(key)) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.invalid(&path.index(*index), key, detail);
        }
    }
    let mismatched: HashSet<&String> = mismatched.iter().collect();
    for (index, key) in matched.iter().enumerate() {
        if mismatched.contains(key) {
            let path = path.child("matchLabelKeys").index(index);
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.invalid(&path, key, detail);
        }
    }
}

fn check_pod_terms(
    required: Option<&Vec<PodAffinityTerm>>,
    preferred: Option<&Vec<WeightedPodAffinityTerm>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, term) in required.into_iter().flatten().enumerate() {
        check_pod_term(term, &path.child(REQUIRED).index(index), errors);
    }
    for (index, term) in preferred.into_iter().flatten().enumerate() {
        let path = path.child(PREFERRED).index(index);
        check_weight(term.weight, &path, errors);
        check_pod_term(
            &term.pod_affinity_term,
            &path.child("podAffinityTerm"),
            errors,
        );
    }
}

/// Checks what the pod wants to be near to, or far from.
pub(super) fn validate_affinity(affinity: Option<&Affinity>, path: &Path, errors: &mut ErrorList) {
    let Some(affinity) = affinity else {
        return;
    };
    if let Some(nodes) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &nodes.required_during_scheduling_ignored_during_execution {
            check_node_selector(selector, &path.child(REQUIRED), errors);
        }
        let preferred = &nodes.preferred_during_scheduling_ignored_during_execution;
        for (index, term) in preferred.iter().flatten().enumerate() {
            let path = path.child(PREFERRED).index(index);
            check_weight(term.weight, &path, errors);
            check_term(&term.preference, false, &path.child("preference"), errors);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        check_pod_terms(
            pods.required_during_scheduling_ignored_during_execution
                .as_ref(),
            pods.preferred_during_scheduling_ignored_during_execution
                .as_ref(),
            &path.child("podAffinity"),
            errors,
        );
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        check_pod_terms(
            pods.required_during_scheduling_ignored_during_execution
                .as_ref(),
            pods.preferred_during_scheduling_ignored_during_execution
                .as_ref(),
            &path.child("podAntiAffinity"),
            errors,
        );
    }
}

/// Checks which taints the pod bears.
pub(in crate::kinds) fn validate_tolerations(
    tolerations: &[Toleration],
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let operator_path = path.child("operator");
        if !key.is_empty() {
            check_label_key(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&operator_path, operator, detail);
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                let details = names::label_value(value);
                if !details.is_empty() {
                    errors.invalid(&operator_path, value, &details.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.invalid(&operator_path, value, detail);
                }
            }
            "Lt" | "Gt" => {
                let known = ["Equal", "Exists", "Lt", "Gt"];
                errors.not_supported(&operator_path, operator, &known);
            }
            operator => errors.not_supported(&operator_path, operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, &EFFECTS);
        }
    }
}

/// Checks that an update only adds tolerations, or changes how long they last.
pub(in crate::kinds) fn check_tolerations_added(
    new: &[Toleration],
    old: &[Toleration],
    path: &Path,
    errors: &mut ErrorList,
) {
    fn lasting(toleration: &Toleration) -> [Option<&str>; 4] {
        [
            toleration.key.as_deref(),
            toleration.operator.as_deref(),
            toleration.value.as_deref(),
            toleration.effect.as_deref(),
        ]
    }
    let kept: HashSet<_> = new.iter().map(lasting).collect();
    if !old
        .iter()
        .all(|toleration| kept.contains(&lasting(toleration)))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        return errors.forbidden(path, detail);
    }
    validate_tolerations(new, path, errors);
}

/// Checks that an update of a gated pod only narrows its node selector.
pub(in crate::kinds) fn check_node_selector_additions(
    new: &PodSpec,
    old: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (Some(old), new) = (
        &old.node_selector,
        new.node_selector.clone().unwrap_or_default(),
    ) else {
        return;
    };
    if !old.iter().all(|(key, value)| new.get(key) == Some(value)) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&path.child("nodeSelector"), new, detail);
    }
}

/// A term as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedTerm<'a> {
    match_expressions: Option<Vec<PrintedRequirement<'a>>>,
    match_fields: Option<Vec<PrintedRequirement<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedRequirement<'a> {
    key: &'a str,
    operator: &'a str,
    values: Option<&'a Vec<String>>,
}

impl<'a> From<&'a NodeSelectorTerm> for PrintedTerm<'a> {
    fn from(term: &'a NodeSelectorTerm) -> Self {
        let print = |all: &'a Option<Vec<NodeSelectorRequirement>>| {
            let print = |requirement: &'a NodeSelectorRequirement| PrintedRequirement {
                key: &requirement.key,
                operator: &requirement.operator,
                values: requirement.values.as_ref(),
            };
            all.as_ref()
                .map(|all| all.iter().map(print).collect::<Vec<_>>())
        };
        Self {
            match_expressions: print(&term.match_expressions),
            match_fields: print(&term.match_fields),
        }
    }
}

/// Whether a term asks for all that another did, and perhaps for more. One that asked for nothing, and so matched nothing,
/// stays.
fn is_narrower(new: &NodeSelectorTerm, old: &NodeSelectorTerm) -> bool {
    fn all(list: &Option<Vec<NodeSelectorRequirement>>) -> &[NodeSelectorRequirement] {
        list.as_deref().unwrap_or_default()
    }
    let (expressions, fields) = (all(&new.match_expressions), all(&new.match_fields));
    let (old_expressions, old_fields) = (all(&old.match_expressions), all(&old.match_fields));
    let was_empty = old_expressions.is_empty() && old_fields.is_empty();
    let is_empty = expressions.is_empty() && fields.is_empty();
    (!was_empty || is_empty)
        && expressions.starts_with(old_expressions)
        && fields.starts_with(old_fields)
}

/// Checks that an update of a gated pod only narrows what it asks of its node.
pub(in crate::kinds) fn check_node_affinity_additions(
    new: &PodSpec,
    old: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    fn terms(spec: &PodSpec) -> &[NodeSelectorTerm] {
        let affinity = spec.affinity.as_ref();
        let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
        let required = nodes.and_then(|nodes| {
            nodes
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        required
            .map(|required| required.node_selector_terms.as_slice())
            .unwrap_or_default()
    }
    let (now, before) = (terms(new), terms(old));
    if before.is_empty() {
        return;
    }
    let path = path.child("affinity").child("nodeAffinity");
    let path = path.child(REQUIRED).child("nodeSelectorTerms");
    if now.len() != before.len() {
        let printed: Vec<PrintedTerm<'_>> = now.iter().map(PrintedTerm::from).collect();
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(&path, printed, detail);
    }
    for (index, (now, before)) in now.iter().zip(before).enumerate() {
        if !is_narrower(now, before) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.invalid(&path.index(index), PrintedTerm::from(now), detail);
        }
    }
}

/// Checks how evenly pods are to be spread.
pub(super) fn validate_spreading(
    constraints: &[TopologySpreadConstraint],
    path: &Path,
    errors: &mut ErrorList,
) {
    const WHEN: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
    let mut following: HashMap<(&str, &str), usize> = HashMap::new();
    for constraint in constraints {
        let same = (&*constraint.topology_key, &*constraint.when_unsatisfiable);
        *following.entry(same).or_default() += 1;
    }
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let when = constraint.when_unsatisfiable.as_str();
        if constraint.max_skew <= 0 {
            let detail = "must be greater than zero";
            errors.invalid(&path.child("maxSkew"), constraint.max_skew, detail);
        }
        if constraint.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), NO_EMPTY);
        }
        if !WHEN.contains(&when) {
            errors.not_supported(&path.child("whenUnsatisfiable"), when, &WHEN);
        }
        let same = following.entry((&constraint.topology_key, when));
        let left = same.and_modify(|left| *left -= 1).or_default();
        if *left > 0 {
            let value = format!("{{{}, {when}}}", constraint.topology_key);
            errors.duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), value);
        }
        if let Some(domains) = constraint.min_domains {
            let path = path.child("minDomains");
            if domains <= 0 {
                errors.invalid(&path, domains, "must be greater than zero");
            }
            if when != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"
                );
                errors.invalid(&path, domains, &detail);
            }
        }
        for (policy, name) in [
            (&constraint.node_affinity_policy, "nodeAffinityPolicy"),
            (&constraint.node_taints_policy, "nodeTaintsPolicy"),
        ] {
            const POLICIES: [&str; 2] = ["Honor", "Ignore"];
            if let Some(policy) = policy
                && !POLICIES.contains(&policy.as_str())
            {
                errors.not_supported(&path.child(name), policy, &POLICIES);
            }
        }
        let selector = constraint.label_selector.as_ref();
        check_followed(
            [&constraint.match_label_keys, &None],
            selector,
            &path,
            errors,
        );
        if let Some(selector) = selector {
            selector::validate(selector, &path.child("labelSelector"), errors);
        }
    }
}

/// Checks what must be true before the pod counts as ready, and what holds it back from scheduling.
pub(super) fn validate_all_gates(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let gates = spec.readiness_gates.iter().flatten().enumerate();
    for (index, gate) in gates {
        let path = path.child("readinessGates").index(index);
        let details = names::qualified_name(&gate.condition_type);
        errors.invalid_each(&path.child("conditionType"), &gate.condition_type, details);
    }
    let mut seen = BTreeSet::new();
    let gates = spec.scheduling_gates.iter().flatten().enumerate();
    for (index, gate) in gates {
        let path = path.child("schedulingGates").index(index);
        errors.invalid_each(&path, &gate.name, names::qualified_name(&gate.name));
        if !seen.insert(&gate.name) {
            errors.duplicate(&path, &gate.name);
        }
    }
}

#[cfg(test)]
mod tests;
