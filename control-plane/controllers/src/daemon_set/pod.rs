//! The pods of a set: how one is made for a node, and what one says of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_api::node_affinity::NAME;
use gantry_api::taints::{NO_EXECUTE, NO_SCHEDULE};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::history::{Naming, name_of};
use crate::pods::{from_template, phase, ready_condition};

/// The label of a pod that says the hash of its revision.
const HASH: &str = Naming::ByTemplate.label();
/// The label of a pod that says how often the template had changed.
const GENERATION: &str = "pod-template-generation";
/// The same, of the set.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// What pods are not kept from and not taken off nodes by. One that is not ready yet, though, gets no pod: that is another
/// effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];
/// Nor by this, where they use the node's network.
const TOLERATED_BY_HOSTS: (&str, &str) = ("node.kubernetes.io/network-unavailable", NO_SCHEDULE);

/// The template that the set asks for, as pods are labelled with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    /// What new pods are labelled with.
    pub(crate) hash: String,
    /// Those of revisions that hold the same, its own among them.
    pub(crate) hashes: BTreeSet<String>,
    /// How often the template has changed.
    pub(crate) generation: Option<String>,
}

impl Version {
    /// Of the set's current revision, which is one of all.
    pub(crate) fn of(
        set: &DaemonSet,
        current: &ControllerRevision,
        all: &[Arc<ControllerRevision>],
    ) -> Self {
        let hash = hash_of(current).to_owned();
        let same = all.iter().filter(|known| known.data == current.data);
        let mut hashes: BTreeSet<String> = same.map(|known| hash_of(known).to_owned()).collect();
        hashes.insert(hash.clone());
        let annotations = set.metadata.annotations.as_ref();
        let generation = annotations
            .and_then(|annotations| annotations.get(TEMPLATE_GENERATION)?.parse::<i64>().ok());
        Self {
            hash,
            hashes,
            generation: generation.map(|generation| generation.to_string()),
        }
    }

    /// Whether a pod is of this template. How often it has changed says so of pods alone that have no hash: an earlier set of
    /// that name counted for itself.
    pub(crate) fn is_of(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.metadata.labels.as_ref()?.get(name);
        match revision_of(pod) {
            Some(hash) => self.hashes.contains(hash),
            None => self.generation.is_some() && label(GENERATION) == self.generation.as_ref(),
        }
    }
}

/// The hash of a revision; where it has none, its name is as good.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get(HASH));
    hash.map_or_else(|| name_of(revision), String::as_str)
}

/// The hash of the revision that a pod is of.
pub(crate) fn revision_of(pod: &Pod) -> Option<&str> {
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(HASH).map(String::as_str)
}

/// What pods of the template tolerate.
pub(crate) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let hosts = spec.host_network.unwrap_or(false);
    let added = TOLERATED
        .into_iter()
        .chain(hosts.then_some(TOLERATED_BY_HOSTS));
    for (key, effect) in added {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        // One that ends after a time becomes one that never does.
        let is_same = |known: &&mut Toleration| {
            let value = known.value.as_deref().unwrap_or_default();
            known.key == toleration.key
                && known.operator == toleration.operator
                && known.effect == toleration.effect
                && value.is_empty()
        };
        match tolerations.iter_mut().find(is_same) {
            Some(known) => *known = toleration,
            None => tolerations.push(toleration),
        }
    }
    tolerations
}

/// A pod for the node. The scheduler is told where it belongs by its affinity, in which the node's name takes the place of what
/// the template says: that has been looked at already.
pub(crate) fn pod_of(set: &DaemonSet, version: &Version, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = from_template(set, template.unwrap_or_default());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), version.hash.clone());
    if let Some(generation) = &version.generation {
        labels.insert(GENERATION.to_owned(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NAME.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
    pod
}

/// The node that a pod is bound to.
pub(crate) fn bound_to(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    Some(node).filter(|node| !node.is_empty())
}

/// The node that a pod is for, bound to it or not.
pub(crate) fn target(pod: &Pod) -> Option<&str> {
    bound_to(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let required = affinity
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()?;
        let mut fields = required
            .node_selector_terms
            .iter()
            .flat_map(|term| term.match_fields.iter().flatten());
        let named = fields.find(|field| field.key == NAME && field.operator == "In")?;
        match named.values.as_deref()? {
            [node] => Some(node.as_str()),
            _ => None,
        }
    })
}

/// Whether it is on its way out.
pub(crate) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether two states of a pod are the same to who plans by them. Most of what a node says of a pod is.
pub(crate) fn is_same(old: &Pod, new: &Pod) -> bool {
    fn seen(pod: &Pod) -> impl PartialEq + '_ {
        let ready = ready_condition(pod);
        let ready = ready.map(|ready| (&ready.status, &ready.last_transition_time));
        (phase(pod), ready, bound_to(pod), is_leaving(pod))
    }
    let (old_metadata, new_metadata) = (&old.metadata, &new.metadata);
    old_metadata.uid == new_metadata.uid
        && old_metadata.labels == new_metadata.labels
        && old_metadata.owner_references == new_metadata.owner_references
        && seen(old) == seen(new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> DaemonSet {
        let metadata = json!({"labels": {"app": "x"}});
        serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "ns", "uid": "s",
                "annotations": {TEMPLATE_GENERATION: "3"}},
            "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": metadata, "spec": spec}},
        }))
        .expect("a set")
    }

    fn version(hash: &str) -> Version {
        Version {
            hash: hash.to_owned(),
            hashes: [hash.to_owned()].into(),
            generation: Some("3".to_owned()),
        }
    }

    #[test]
    fn a_pod_is_for_one_node_and_tolerates_its_troubles() {
        let terms = json!([{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]);
        let required = json!({"nodeSelectorTerms": terms});
        let preferred = json!([{"weight": 1, "preference": {}}]);
        let set = set(json!({
            "containers": [{"name": "c"}],
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
                {"key": "mine", "operator": "Exists"},
            ],
            "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required,
                "preferredDuringSchedulingIgnoredDuringExecution": preferred,
            }},
        }));
        let pod = pod_of(&set, &version("h"), "node-1");
        assert_eq!(target(&pod), Some("node-1"));
        assert_eq!(bound_to(&pod), None);
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("d-"));
        let labels = pod.metadata.labels.clone().expect("labels");
        let expected = [
            ("app", "x"),
            ("controller-revision-hash", "h"),
            (GENERATION, "3"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(labels, expected.into());
        let spec = serde_json::to_value(pod.spec.as_ref()).expect("JSON");
        let affinity = &spec["affinity"]["nodeAffinity"];
        assert_eq!(
            affinity["requiredDuringSchedulingIgnoredDuringExecution"],
            json!({"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]})
        );
        let kept = &affinity["preferredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(kept[0]["weight"], 1);
        let tolerations = spec["tolerations"].as_array().expect("tolerations");
        assert_eq!(tolerations.len(), 7);
        assert!(
            tolerations
                .iter()
                .all(|toleration| toleration.get("tolerationSeconds").is_none())
        );
        assert_eq!(tolerations[1]["key"], "mine");
    }

    #[test]
    fn pods_of_the_nodes_network_do_not_wait_for_one() {
        let keys = |hosts: bool| -> Vec<String> {
            let spec = json!({"containers": [], "hostNetwork": hosts});
            let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
            let keys = tolerations(&spec).into_iter();
            keys.filter_map(|toleration| toleration.key).collect()
        };
        let network = TOLERATED_BY_HOSTS.0.to_owned();
        assert!(keys(true).contains(&network));
        assert!(!keys(false).contains(&network));
    }

    #[test]
    fn a_pod_is_of_a_template_by_its_hash() {
        let pod = |labels: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a pod")
        };
        let version = version("h");
        for (labels, expected) in [
            (json!({"controller-revision-hash": "h"}), true),
            (json!({"controller-revision-hash": "i"}), false),
            (
                json!({"controller-revision-hash": "i", GENERATION: "3"}),
                false,
            ),
            (json!({GENERATION: "3"}), true),
            (json!({GENERATION: "2"}), false),
            (json!({}), false),
        ] {
            assert_eq!(version.is_of(&pod(labels.clone())), expected, "{labels}");
        }
    }

    #[test]
    fn revisions_that_hold_the_same_are_one() {
        let revision = |name: &str, data: &str| {
            let revision = json!({
                "metadata": {"name": name, "labels": {"controller-revision-hash": name}},
                "data": {"what": data}, "revision": 1,
            });
            let revision = serde_json::from_value::<ControllerRevision>(revision);
            Arc::new(revision.expect("a revision"))
        };
        let all = [revision("a", "x"), revision("b", "y"), revision("c", "x")];
        let version = Version::of(&set(json!({"containers": []})), &all[2], &all);
        assert_eq!(version.hash, "c");
        assert_eq!(version.hashes, ["a".to_owned(), "c".to_owned()].into());
        assert_eq!(version.generation.as_deref(), Some("3"));
    }

    #[test]
    fn what_nobody_plans_by_is_no_change() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"uid": "1"}, "status": status}))
                .expect("a pod")
        };
        let pending = pod(json!({"phase": "Pending"}));
        assert!(is_same(
            &pending,
            &pod(json!({"phase": "Pending", "podIP": "10.0.0.1"}))
        ));
        assert!(!is_same(&pending, &pod(json!({"phase": "Running"}))));
        let ready =
            json!({"phase": "Pending", "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(!is_same(&pending, &pod(ready)));
    }
}
