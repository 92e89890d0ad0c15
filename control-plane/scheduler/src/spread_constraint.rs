//! How evenly a pod wants pods like it to be spread over nodes with different values of a label.

use gantry_base::node_affinity::Labels;
use gantry_base::selector::LabelSelector;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::selection::narrowed;

/// A constraint, compiled once per pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpreadConstraint {
    /// Nodes that break it are refused, rather than just worse.
    pub(crate) hard: bool,
    pub(crate) topology_key: String,
    /// The largest difference between the value with most pods and the one with fewest.
    pub(crate) max_skew: i64,
    pub(crate) selector: LabelSelector,
    /// With fewer values of the label than this, a further one counts as having no pods.
    pub(crate) min_domains: usize,
    /// Nodes do not count that the pod's selector and affinity rule out.
    pub(crate) honours_affinity: bool,
    /// Nor those that its tolerations do.
    pub(crate) honours_taints: bool,
}

impl SpreadConstraint {
    /// Of a pod with these labels.
    pub(crate) fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let honours = |policy: Option<&String>, by_default: &str| {
            policy.map_or(by_default, String::as_str) == "Honor"
        };
        let same = constraint.match_label_keys.as_deref().unwrap_or_default();
        Self {
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            selector: narrowed(constraint.label_selector.as_ref(), same, &[], labels),
            min_domains: constraint
                .min_domains
                .and_then(|domains| usize::try_from(domains).ok())
                .unwrap_or(1),
            honours_affinity: honours(constraint.node_affinity_policy.as_ref(), "Honor"),
            honours_taints: honours(constraint.node_taints_policy.as_ref(), "Ignore"),
        }
    }

    /// What a pod would rather have that says nothing itself.
    pub(crate) fn soft(topology_key: &str, max_skew: i32) -> Self {
        let constraint = TopologySpreadConstraint {
            topology_key: topology_key.to_owned(),
            max_skew,
            ..TopologySpreadConstraint::default()
        };
        Self::new(&constraint, &Labels::new())
    }

    /// A node's value of the label.
    pub(crate) fn value<'a>(&self, labels: &'a Labels) -> Option<&'a str> {
        labels.get(&self.topology_key).map(String::as_str)
    }
}
