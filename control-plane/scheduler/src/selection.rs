//! Which pods terms and constraints are about, by namespace and labels.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_base::node_affinity::Labels;
use gantry_base::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;

/// The labels of each namespace.
pub(crate) type Namespaces = HashMap<Arc<str>, Labels>;

/// Pods by their namespaces and labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Selection {
    /// Sorted; all namespaces when there is none.
    pub(crate) namespaces: Option<Vec<Arc<str>>>,
    pub(crate) selector: LabelSelector,
}

impl Selection {
    /// Those of one namespace.
    pub(crate) fn within(namespace: &Arc<str>, selector: &LabelSelector) -> Self {
        Self {
            namespaces: Some(vec![namespace.clone()]),
            selector: selector.clone(),
        }
    }

    /// Whether a pod with these labels is one.
    pub(crate) fn matches(&self, namespace: &Arc<str>, labels: &Labels) -> bool {
        let namespaces = self.namespaces.as_ref();
        namespaces.is_none_or(|namespaces| namespaces.binary_search(namespace).is_ok())
            && self.selector.matches_map(Some(labels))
    }
}

/// What a pod says of other pods that it wants near, or far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodTerm {
    /// Namespaces by name; sorted.
    namespaces: Vec<Arc<str>>,
    /// And namespaces by their labels.
    of_namespaces: LabelSelector,
    pub(crate) selector: LabelSelector,
    /// Near means: on a node with the same value of this label.
    pub(crate) topology_key: Arc<str>,
}

impl PodTerm {
    /// A term of a pod in `namespace` with these labels.
    pub(crate) fn new(term: &PodAffinityTerm, namespace: &Arc<str>, labels: &Labels) -> Self {
        let named = term.namespaces.iter().flatten();
        let mut namespaces: Vec<Arc<str>> = named.map(|name| name.as_str().into()).collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.clone());
        }
        namespaces.sort_unstable();
        namespaces.dedup();
        Self {
            namespaces,
            of_namespaces: LabelSelector::from_api(term.namespace_selector.as_ref()),
            selector: narrowed(
                term.label_selector.as_ref(),
                term.match_label_keys.as_deref().unwrap_or_default(),
                term.mismatch_label_keys.as_deref().unwrap_or_default(),
                labels,
            ),
            topology_key: term.topology_key.as_str().into(),
        }
    }

    /// The pods that it is about, with the namespaces there are now.
    pub(crate) fn selection(&self, all: &Namespaces) -> Selection {
        let selector = self.selector.clone();
        if self.of_namespaces.is_everything() {
            return Selection {
                namespaces: None,
                selector,
            };
        }
        let mut namespaces = self.namespaces.clone();
        if self.of_namespaces != LabelSelector::nothing() {
            let labelled = all
                .iter()
                .filter(|(_, labels)| self.of_namespaces.matches_map(Some(labels)))
                .map(|(name, _)| name.clone());
            namespaces.extend(labelled);
            namespaces.sort_unstable();
            namespaces.dedup();
        }
        Selection {
            namespaces: Some(namespaces),
            selector,
        }
    }

    /// Whether it is about a pod with these labels.
    pub(crate) fn matches(&self, namespace: &Arc<str>, labels: &Labels, all: &Namespaces) -> bool {
        self.selector.matches_map(Some(labels))
            && (self.namespaces.binary_search(namespace).is_ok()
                || self.of_namespaces.matches_map(all.get(namespace)))
    }
}

/// What a pod says of other pods.
#[derive(Debug, Default)]
pub(crate) struct PodTerms {
    /// It must be near pods of each.
    pub(crate) required: Vec<Arc<PodTerm>>,
    /// It must not be near pods of any.
    pub(crate) excluded: Vec<Arc<PodTerm>>,
    /// How gladly it is near pods of each; below zero, how gladly it is not.
    pub(crate) preferred: Vec<(i64, Arc<PodTerm>)>,
}

impl PodTerms {
    pub(crate) fn new(affinity: &Affinity, namespace: &Arc<str>, labels: &Labels) -> Self {
        let term = |term: &PodAffinityTerm| Arc::new(PodTerm::new(term, namespace, labels));
        let (near, far) = (
            affinity.pod_affinity.as_ref(),
            affinity.pod_anti_affinity.as_ref(),
        );
        let required = near.and_then(|near| {
            near.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let excluded = far.and_then(|far| {
            far.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let gladly = near.and_then(|near| {
            near.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let reluctantly = far.and_then(|far| {
            far.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let weighted = |sign: i64| {
            move |weighted: &WeightedPodAffinityTerm| {
                let weight = sign * i64::from(weighted.weight);
                (weight, term(&weighted.pod_affinity_term))
            }
        };
        Self {
            required: required.into_iter().flatten().map(term).collect(),
            excluded: excluded.into_iter().flatten().map(term).collect(),
            preferred: gladly
                .into_iter()
                .flatten()
                .map(weighted(1))
                .chain(reluctantly.into_iter().flatten().map(weighted(-1)))
                .collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.required.len() + self.excluded.len() + self.preferred.len()
    }
}

/// A selector that also asks for the pod's own values of some labels, and for others of some. An absent one selects nothing.
pub(crate) fn narrowed(
    selector: Option<&metav1::LabelSelector>,
    same: &[String],
    other: &[String],
    labels: &Labels,
) -> LabelSelector {
    let Some(selector) = selector else {
        return LabelSelector::nothing();
    };
    if same.is_empty() && other.is_empty() {
        return LabelSelector::from_api(Some(selector));
    }
    let mut selector = selector.clone();
    let expressions = selector.match_expressions.get_or_insert_default();
    for (keys, operator) in [(same, "In"), (other, "NotIn")] {
        let own = keys.iter().filter_map(|key| Some((key, labels.get(key)?)));
        expressions.extend(own.map(|(key, value)| metav1::LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        }));
    }
    LabelSelector::from_api(Some(&selector))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn term(term: Value) -> PodTerm {
        let term: PodAffinityTerm = serde_json::from_value(term).expect("a term");
        let labels: Labels = [("version".to_owned(), "2".to_owned())].into();
        PodTerm::new(&term, &"own".into(), &labels)
    }

    #[test]
    fn a_term_is_about_its_own_namespace_named_ones_or_labelled_ones() {
        let namespaces: Namespaces = [("own", "x"), ("other", "y"), ("third", "y")]
            .map(|(name, team)| -> (Arc<str>, Labels) {
                let labels = [("team".to_owned(), team.to_owned())];
                (name.into(), labels.into())
            })
            .into();
        for (extra, expected) in [
            (json!({}), vec!["own"]),
            (json!({"namespaces": ["other"]}), vec!["other"]),
            (
                json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}),
                vec!["other", "third"],
            ),
            (
                json!({"namespaces": ["own"], "namespaceSelector": {"matchLabels": {"team": "y"}}}),
                vec!["other", "own", "third"],
            ),
            (
                json!({"namespaceSelector": {}}),
                vec!["other", "own", "third"],
            ),
        ] {
            let mut whole = json!({"topologyKey": "zone", "labelSelector": {}});
            for (key, value) in extra.as_object().expect("an object") {
                let object = whole.as_object_mut().expect("an object");
                object.insert(key.clone(), value.clone());
            }
            let term = term(whole);
            let selection = term.selection(&namespaces);
            for name in ["own", "other", "third"] {
                let is_meant = expected.contains(&name);
                let (name, labels) = (Arc::from(name), Labels::new());
                let found = term.matches(&name, &labels, &namespaces);
                assert_eq!(found, is_meant, "{extra} {name}");
                let found = selection.matches(&name, &labels);
                assert_eq!(found, is_meant, "{extra} {name}");
            }
        }
    }

    #[test]
    fn labels_may_have_to_be_the_pods_own_or_others() {
        let all = Namespaces::new();
        let selector = json!({"matchLabels": {"app": "a"}});
        let same = term(json!({"topologyKey": "zone", "labelSelector": selector,
            "matchLabelKeys": ["version", "absent"]}));
        let other = term(json!({"topologyKey": "zone", "labelSelector": selector,
            "mismatchLabelKeys": ["version"]}));
        let none = term(json!({"topologyKey": "zone", "matchLabelKeys": ["version"]}));
        for (version, is_same) in [("1", false), ("2", true)] {
            let labels = [("app", "a"), ("version", version)];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let (namespace, labels) = (Arc::from("own"), Labels::from(labels));
            assert_eq!(same.matches(&namespace, &labels, &all), is_same);
            assert_eq!(other.matches(&namespace, &labels, &all), !is_same);
            let found = none.matches(&namespace, &labels, &all);
            assert!(!found, "an absent selector is none");
        }
    }
}
