//! The rules of a cluster role that gathers them from others.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{AggregationRule, ClusterRole, PolicyRule};

use crate::selector::LabelSelector;

/// The rules of all cluster roles that a selector finds, selector by selector and sorted by name, each once. The gathering
/// role, `name`, adds nothing itself.
pub fn gather<'a>(
    name: &str,
    aggregation: &AggregationRule,
    roles: impl Iterator<Item = &'a ClusterRole>,
) -> Vec<PolicyRule> {
    let own = |role: &ClusterRole| role.metadata.name.as_deref() == Some(name);
    let mut others: Vec<&ClusterRole> = roles.filter(|role| !own(role)).collect();
    others.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    let selectors = aggregation.cluster_role_selectors.iter().flatten();
    let (mut gathered, mut known) = (Vec::new(), BTreeSet::new());
    for selector in selectors {
        let selector = LabelSelector::from_api(Some(selector));
        let found = others
            .iter()
            .filter(|role| selector.matches_map(role.metadata.labels.as_ref()));
        for rule in found.flat_map(|role| role.rules.iter().flatten()) {
            // Rules have an order of equality only as text.
            if known.insert(serde_json::to_string(rule).unwrap_or_default()) {
                gathered.push(rule.clone());
            }
        }
    }
    gathered
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn role(name: &str, labels: Value, resources: &[&str]) -> ClusterRole {
        let rules: Vec<Value> = resources
            .iter()
            .map(|resource| json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "rules": rules,
        }))
        .unwrap()
    }

    #[test]
    fn rules_come_by_selector_and_name_and_only_once() {
        let roles = [
            role("b", json!({"x": "1"}), &["pods", "services"]),
            role("a", json!({"x": "1"}), &["services"]),
            role("c", json!({"y": "1"}), &["nodes", "pods"]),
            role("sum", json!({"x": "1"}), &["secrets"]),
            role("z", json!({}), &["configmaps"]),
        ];
        let aggregation: AggregationRule = serde_json::from_value(json!({
            "clusterRoleSelectors": [{"matchLabels": {"y": "1"}}, {"matchLabels": {"x": "1"}}],
        }))
        .unwrap();
        let gathered = gather("sum", &aggregation, roles.iter());
        let resources: Vec<String> = gathered
            .iter()
            .flat_map(|rule| rule.resources.clone().unwrap_or_default())
            .collect();
        assert_eq!(resources, ["nodes", "pods", "services"]);
        let none: AggregationRule = serde_json::from_value(json!({
            "clusterRoleSelectors": [{"matchLabels": {"none": "1"}}],
        }))
        .unwrap();
        assert!(gather("sum", &none, roles.iter()).is_empty());
    }
}
