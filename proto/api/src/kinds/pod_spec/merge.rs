//! What of a pod is made one when it is created: its own labels, and the selectors that ask for pods with the same ones.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodAffinityTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

type Labels = BTreeMap<String, String>;

fn add(
    selector: &mut Option<LabelSelector>,
    keys: Option<&Vec<String>>,
    operator: &str,
    labels: &Labels,
) {
    let Some(selector) = selector else {
        return;
    };
    for key in keys.into_iter().flatten() {
        if let Some(value) = labels.get(key) {
            let expressions = selector.match_expressions.get_or_insert_default();
            expressions.push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

/// Adds the values of the pod's labels to selectors that name their keys.
pub(in crate::kinds) fn merge_labels(spec: &mut PodSpec, labels: Option<&Labels>) {
    let Some(labels) = labels else {
        return;
    };
    let follow = |term: &mut PodAffinityTerm| {
        let keys = term.match_label_keys.as_ref();
        add(&mut term.label_selector, keys, "In", labels);
        let keys = term.mismatch_label_keys.as_ref();
        add(&mut term.label_selector, keys, "NotIn", labels);
    };
    if let Some(affinity) = &mut spec.affinity {
        let near = affinity.pod_affinity.as_mut().map(|terms| {
            (
                &mut terms.preferred_during_scheduling_ignored_during_execution,
                &mut terms.required_during_scheduling_ignored_during_execution,
            )
        });
        let far = affinity.pod_anti_affinity.as_mut().map(|terms| {
            (
                &mut terms.preferred_during_scheduling_ignored_during_execution,
                &mut terms.required_during_scheduling_ignored_during_execution,
            )
        });
        for (preferred, required) in near.into_iter().chain(far) {
            let preferred = preferred.iter_mut().flatten();
            preferred.for_each(|term| follow(&mut term.pod_affinity_term));
            required.iter_mut().flatten().for_each(follow);
        }
    }
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        let keys = constraint.match_label_keys.as_ref();
        add(&mut constraint.label_selector, keys, "In", labels);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_ask_for_the_pods_own_labels() {
        let mut spec: PodSpec = serde_json::from_value(json!({
            "containers": [],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "z", "labelSelector": {"matchLabels": {"a": "b"}},
                "matchLabelKeys": ["k", "none"], "mismatchLabelKeys": ["l"]
            }]}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["k"]}
            ]
        }))
        .unwrap();
        let labels = BTreeMap::from(
            [("k", "1"), ("l", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        merge_labels(&mut spec, Some(&labels));
        let spec = serde_json::to_value(spec).unwrap();
        let path = "/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/labelSelector/matchExpressions";
        assert_eq!(
            spec.pointer(path),
            Some(&json!([
                {"key": "k", "operator": "In", "values": ["1"]},
                {"key": "l", "operator": "NotIn", "values": ["2"]}
            ]))
        );
        let spread = spec.pointer("/topologySpreadConstraints/0/labelSelector");
        assert_eq!(spread, None, "no selector selects nothing");
    }
}
