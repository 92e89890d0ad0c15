//! Which nodes are a set's.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::node_affinity::{Labels, Term};
use gantry_api::taints::{NO_EXECUTE, is_tolerated, keeps_away};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;

use super::pod::{bound_to, is_leaving, target, tolerations};
use crate::pods::is_finished;

/// What a node is to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is to have a pod.
    Wanted,
    /// It gets none, and keeps one that it has.
    Spared,
    /// It is to have none.
    Refused,
}

/// What a set asks of nodes, compiled.
pub(crate) struct Placement {
    /// The only node, where the template names one.
    name: Option<String>,
    selector: Labels,
    /// One of these must match; absent: all nodes do.
    required: Option<Vec<Term>>,
    tolerations: Vec<Toleration>,
}

impl Placement {
    pub(crate) fn of(set: &DaemonSet) -> Self {
        let spec = set.spec.as_ref();
        let spec = spec.and_then(|spec| spec.template.spec.as_ref());
        let affinity = spec.and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        Self {
            name: spec
                .and_then(|spec| spec.node_name.clone())
                .filter(|name| !name.is_empty()),
            selector: spec
                .and_then(|spec| spec.node_selector.clone())
                .unwrap_or_default(),
            required: required
                .map(|required| required.node_selector_terms.iter().map(Term::new).collect()),
            tolerations: spec.map(tolerations).unwrap_or_default(),
        }
    }

    /// What the node is to the set.
    pub(crate) fn place(&self, node: &Node) -> Place {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let none = Labels::new();
        let labels = node.metadata.labels.as_ref().unwrap_or(&none);
        let is_meant = self.name.as_ref().is_none_or(|only| only == name)
            && self
                .selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .required
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)));
        if !is_meant {
            return Place::Refused;
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let mut place = Place::Wanted;
        for taint in taints.into_iter().flatten() {
            if !keeps_away(taint) || is_tolerated(&self.tolerations, taint) {
                continue;
            }
            if taint.effect == NO_EXECUTE {
                return Place::Refused;
            }
            place = Place::Spared;
        }
        place
    }
}

/// Whether all that [`Placement::place`] looks at is the same. Most of what a node says of itself is something else.
pub(crate) fn is_same(old: &Node, new: &Node) -> bool {
    fn taints(node: &Node) -> &[Taint] {
        let spec = node.spec.as_ref();
        spec.and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
    }
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

/// A node as the set sees it.
#[derive(Debug, Default)]
pub(crate) struct Spot<'a> {
    /// None: there is no such node.
    pub(crate) place: Option<Place>,
    /// Those that are for it: bound ones before others, and the oldest first.
    pub(crate) pods: Vec<&'a Arc<Pod>>,
}

/// Nodes that are to have a pod, or for which there is one, by name.
pub(crate) type Spots<'a> = BTreeMap<&'a str, Spot<'a>>;

/// The order of a node's pods.
fn age(pod: &Pod) -> (bool, Option<Timestamp>, Option<&str>) {
    let created = pod.metadata.creation_timestamp.as_ref();
    (
        bound_to(pod).is_none(),
        created.map(|time| time.0),
        pod.metadata.name.as_deref(),
    )
}

/// Brings nodes and the set's pods together. Pods that have ended and are on their way out are nobody's business any more.
pub(crate) fn spots<'a>(places: &[(&'a str, Place)], pods: &'a [Arc<Pod>]) -> Spots<'a> {
    let mut spots = Spots::new();
    let present = pods
        .iter()
        .filter(|pod| !(is_finished(pod) && is_leaving(pod)));
    for pod in present {
        if let Some(node) = target(pod) {
            spots.entry(node).or_default().pods.push(pod);
        }
    }
    for (node, place) in places {
        match spots.get_mut(node) {
            Some(spot) => spot.place = Some(*place),
            None if *place == Place::Wanted => {
                spots.entry(*node).or_default().place = Some(*place);
            }
            None => {}
        }
    }
    for spot in spots.values_mut() {
        spot.pods.sort_by(|left, right| age(left).cmp(&age(right)));
    }
    spots
}

/// What each node is to the set.
pub(crate) fn places<'a>(placement: &Placement, nodes: &'a [Arc<Node>]) -> Vec<(&'a str, Place)> {
    let place = |node: &'a Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        (name, placement.place(node))
    };
    nodes.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn place(spec: Value, node: Value) -> Place {
        let template = json!({"spec": spec});
        let set =
            json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "template": template}});
        let set: DaemonSet = serde_json::from_value(set).expect("a set");
        let node: Node = serde_json::from_value(node).expect("a node");
        Placement::of(&set).place(&node)
    }

    fn node(taints: Value) -> Value {
        json!({"metadata": {"name": "n", "labels": {"zone": "z1"}}, "spec": {"taints": taints}})
    }

    fn zone(values: &[&str]) -> Value {
        let term =
            json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": values}]});
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
    }

    #[test]
    fn a_node_is_meant_by_name_labels_and_affinity() {
        for (spec, expected) in [
            (json!({}), Place::Wanted),
            (json!({"nodeName": ""}), Place::Wanted),
            (json!({"nodeName": "n"}), Place::Wanted),
            (json!({"nodeName": "m"}), Place::Refused),
            (json!({"nodeSelector": {"zone": "z1"}}), Place::Wanted),
            (json!({"nodeSelector": {"zone": "z2"}}), Place::Refused),
            (json!({"affinity": zone(&["z1", "z2"])}), Place::Wanted),
            (json!({"affinity": zone(&["z2"])}), Place::Refused),
        ] {
            let mut whole = json!({"containers": []});
            for (key, value) in spec.as_object().expect("an object") {
                whole[key] = value.clone();
            }
            assert_eq!(place(whole, node(json!([]))), expected, "{spec}");
        }
    }

    #[test]
    fn taints_keep_pods_away_and_the_stricter_ones_drive_them_off() {
        let system = |key: &str| format!("node.kubernetes.io/{key}");
        for (key, effect, expected) in [
            ("mine".to_owned(), "NoSchedule", Place::Spared),
            ("mine".to_owned(), "NoExecute", Place::Refused),
            ("mine".to_owned(), "PreferNoSchedule", Place::Wanted),
            ("known".to_owned(), "NoExecute", Place::Wanted),
            (system("unschedulable"), "NoSchedule", Place::Wanted),
            (system("disk-pressure"), "NoSchedule", Place::Wanted),
            (system("network-unavailable"), "NoSchedule", Place::Spared),
            (system("unreachable"), "NoExecute", Place::Wanted),
            (system("not-ready"), "NoSchedule", Place::Spared),
        ] {
            let spec =
                json!({"containers": [], "tolerations": [{"key": "known", "operator": "Exists"}]});
            let tainted = node(json!([{"key": key, "effect": effect}]));
            assert_eq!(place(spec, tainted), expected, "{key} {effect}");
        }
        let both =
            json!([{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}]);
        assert_eq!(place(json!({"containers": []}), node(both)), Place::Refused);
    }

    #[test]
    fn a_heartbeat_is_no_change() {
        let of = |node: Value| -> Node { serde_json::from_value(node).expect("a node") };
        let plain = of(node(json!([])));
        let mut beaten = plain.clone();
        beaten.status.get_or_insert_default().phase = Some("Running".to_owned());
        let mut annotated = plain.clone();
        annotated.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        let mut untainted = plain.clone();
        untainted.spec = None;
        for other in [&beaten, &annotated, &untainted] {
            assert!(is_same(&plain, other), "{other:?}");
        }
        let tainted = of(node(json!([{"key": "k", "effect": "NoSchedule"}])));
        let mut labelled = plain.clone();
        labelled.metadata.labels = None;
        assert!(!is_same(&plain, &tainted));
        assert!(!is_same(&plain, &labelled));
    }
}
