//! Which nodes a pod can run on, by themselves. Filters run in order; the first that refuses a node tells why.

use std::borrow::Cow;

use gantry_base::taints::keeps_away;
use k8s_openapi::api::core::v1::Taint;

use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::snapshot::NodeInfo;

/// Why a node was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The filter, by Kubernetes' name for it.
    pub(crate) filter: &'static str,
    /// In Kubernetes' words.
    pub(crate) reasons: Vec<Cow<'static, str>>,
    /// Whether evicting other pods from the node could help.
    pub(crate) resolvable: bool,
}

impl Refusal {
    pub(crate) fn one(filter: &'static str, reason: &'static str, resolvable: bool) -> Self {
        Self {
            filter,
            reasons: vec![Cow::Borrowed(reason)],
            resolvable,
        }
    }
}

type Filter = fn(&PodInfo, &NodeInfo) -> Result<(), Refusal>;

const FILTERS: [Filter; 5] = [unschedulable, taints, affinity, ports, fit];

/// Whether the pod can run on the node, as far as other pods matter only by the room that they take.
pub(crate) fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    FILTERS.iter().try_for_each(|filter| filter(pod, node))
}

fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if !node.unschedulable {
        return Ok(());
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    if pod.tolerates(&taint) {
        return Ok(());
    }
    Err(Refusal::one(
        "NodeUnschedulable",
        "node(s) were unschedulable",
        false,
    ))
}

/// Whether no taint keeps the pod off the node.
pub(crate) fn is_tolerated(pod: &PodInfo, node: &NodeInfo) -> bool {
    let repels = |taint: &Taint| keeps_away(taint) && !pod.tolerates(taint);
    !node.taints.iter().any(repels)
}

fn taints(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if is_tolerated(pod, node) {
        return Ok(());
    }
    Err(Refusal::one(
        "TaintToleration",
        "node(s) had untolerated taint(s)",
        false,
    ))
}

/// Whether the pod's selector and affinity leave it the node.
pub(crate) fn is_selected(pod: &PodInfo, node: &NodeInfo) -> bool {
    let selected = pod
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = pod.required.as_ref().is_none_or(|terms| {
        terms
            .iter()
            .any(|term| term.matches(&node.name, &node.labels))
    });
    selected && required
}

fn affinity(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if is_selected(pod, node) {
        return Ok(());
    }
    Err(Refusal::one(
        "NodeAffinity",
        "node(s) didn't match Pod's node affinity/selector",
        false,
    ))
}

fn ports(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let taken = |wanted| {
        node.host_ports
            .iter()
            .any(|(_, port)| port.conflicts(wanted))
    };
    if !pod.host_ports.iter().any(taken) {
        return Ok(());
    }
    Err(Refusal::one(
        "NodePorts",
        "node(s) didn't have free ports for the requested pod ports",
        true,
    ))
}

fn fit(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    room(pod, node, &node.requested, node.pods.len())
}

/// Whether the node has room for the pod beside so many others that take so much.
pub(crate) fn room(
    pod: &PodInfo,
    node: &NodeInfo,
    used: &Resources,
    pods: usize,
) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    let mut resolvable = true;
    let pods = i64::try_from(pods).unwrap_or(i64::MAX);
    if pods.saturating_add(1) > node.pod_limit {
        reasons.push(Cow::Borrowed("Too many pods"));
    }
    let asked = &pod.requests;
    let mut compare = |asked: i64, all: i64, used: i64, reason: Cow<'static, str>| {
        if asked > 0 && asked > all.saturating_sub(used) {
            reasons.push(reason);
            // A node too small when empty is not helped by emptying it.
            resolvable &= asked <= all;
        }
    };
    let all = &node.allocatable;
    compare(
        asked.milli_cpu,
        all.milli_cpu,
        used.milli_cpu,
        "Insufficient cpu".into(),
    );
    compare(
        asked.memory,
        all.memory,
        used.memory,
        "Insufficient memory".into(),
    );
    compare(
        asked.ephemeral,
        all.ephemeral,
        used.ephemeral,
        "Insufficient ephemeral-storage".into(),
    );
    for (name, asked) in &asked.extended {
        if *asked > 0 && *asked > all.extended(name).saturating_sub(used.extended(name)) {
            let reason = format!("Insufficient {name}");
            compare(
                *asked,
                all.extended(name),
                used.extended(name),
                reason.into(),
            );
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Refusal {
        filter: "NodeResourcesFit",
        reasons,
        resolvable,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{
        Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
        Toleration,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::tests::{node, pod};

    fn verdict(pod: &Pod, node: Node, running: &[Pod]) -> Option<(Vec<String>, bool)> {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(&node);
        for running in running {
            snapshot.assign(Arc::new(PodInfo::new(running)), "n");
        }
        let refusal = check(&PodInfo::new(pod), &snapshot.nodes()[0]).err()?;
        let reasons = refusal.reasons.iter().map(ToString::to_string).collect();
        Some((reasons, refusal.resolvable))
    }

    fn refused(reason: &str, resolvable: bool) -> Option<(Vec<String>, bool)> {
        Some((vec![reason.to_owned()], resolvable))
    }

    #[test]
    fn room_is_counted_in_every_resource() {
        let n = || node("n", "2", "4Gi");
        assert_eq!(verdict(&pod("p", "2", "4Gi"), n(), &[]), None);
        assert_eq!(
            verdict(&pod("p", "3", ""), n(), &[]),
            refused("Insufficient cpu", false)
        );
        assert_eq!(
            verdict(&pod("p", "3", "5Gi"), n(), &[]),
            Some((
                vec![
                    "Insufficient cpu".to_owned(),
                    "Insufficient memory".to_owned()
                ],
                false
            ))
        );
        assert_eq!(
            verdict(&pod("p", "1500m", ""), n(), &[pod("q", "1", "")]),
            refused("Insufficient cpu", true)
        );
        let mut full = n();
        let list = full
            .status
            .get_or_insert_default()
            .allocatable
            .get_or_insert_default();
        list.insert("pods".to_owned(), Quantity("1".to_owned()));
        assert_eq!(verdict(&pod("p", "", ""), full.clone(), &[]), None);
        assert_eq!(
            verdict(&pod("p", "", ""), full, &[pod("q", "", "")]),
            refused("Too many pods", true)
        );
    }

    #[test]
    fn extended_resources_count_too() {
        let mut wants = pod("p", "", "");
        let container = &mut wants.spec.get_or_insert_default().containers[0];
        let requests = container
            .resources
            .get_or_insert_default()
            .requests
            .get_or_insert_default();
        requests.insert("example.com/gpu".to_owned(), Quantity("1".to_owned()));
        let mut has = node("n", "2", "4Gi");
        assert_eq!(
            verdict(&wants, has.clone(), &[]),
            refused("Insufficient example.com/gpu", false)
        );
        let list = has
            .status
            .get_or_insert_default()
            .allocatable
            .get_or_insert_default();
        list.insert("example.com/gpu".to_owned(), Quantity("1".to_owned()));
        assert_eq!(verdict(&wants, has.clone(), &[]), None);
        let mut other = wants.clone();
        other.metadata.uid = Some("q".to_owned());
        assert_eq!(
            verdict(&wants, has, &[other]),
            refused("Insufficient example.com/gpu", true)
        );
    }

    #[test]
    fn cordoned_and_tainted_nodes_take_only_who_tolerates_it() {
        let mut cordoned = node("n", "2", "4Gi");
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        let mut tainted = node("n", "2", "4Gi");
        tainted.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "k".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        }]);
        let plain = pod("p", "", "");
        assert_eq!(
            verdict(&plain, cordoned.clone(), &[]),
            refused("node(s) were unschedulable", false)
        );
        assert_eq!(
            verdict(&plain, tainted.clone(), &[]),
            refused("node(s) had untolerated taint(s)", false)
        );
        let mut tolerant = plain;
        tolerant.spec.get_or_insert_default().tolerations = Some(vec![Toleration {
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }]);
        assert_eq!(verdict(&tolerant, cordoned, &[]), None);
        assert_eq!(verdict(&tolerant, tainted, &[]), None);
    }

    #[test]
    fn selectors_and_affinity_must_match() {
        let reason = || refused("node(s) didn't match Pod's node affinity/selector", false);
        let mut selecting = pod("p", "", "");
        let select = |pod: &mut Pod, zone: &str| {
            let selector = [("zone".to_owned(), zone.to_owned())];
            pod.spec.get_or_insert_default().node_selector = Some(selector.into());
        };
        select(&mut selecting, "elsewhere");
        assert_eq!(verdict(&selecting, node("n", "2", "4Gi"), &[]), reason());
        select(&mut selecting, "zone-of-n");
        assert_eq!(verdict(&selecting, node("n", "2", "4Gi"), &[]), None);
        let term = |value: &str| NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: "zone".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![value.to_owned()]),
            }]),
            match_fields: None,
        };
        let mut requiring = pod("p", "", "");
        let mut require = |terms: Vec<NodeSelectorTerm>| {
            requiring.spec.get_or_insert_default().affinity = Some(Affinity {
                node_affinity: Some(NodeAffinity {
                    required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                        node_selector_terms: terms,
                    }),
                    ..NodeAffinity::default()
                }),
                ..Affinity::default()
            });
            verdict(&requiring, node("n", "2", "4Gi"), &[])
        };
        assert_eq!(require(vec![term("elsewhere")]), reason());
        assert_eq!(require(vec![term("elsewhere"), term("zone-of-n")]), None);
    }

    #[test]
    fn a_host_port_is_given_once() {
        let taking = |uid: &str| {
            let mut pod = pod(uid, "", "");
            let ports = pod.spec.get_or_insert_default().containers[0]
                .ports
                .get_or_insert_default();
            ports[0].host_port = Some(80);
            pod
        };
        assert_eq!(verdict(&taking("p"), node("n", "2", "4Gi"), &[]), None);
        assert_eq!(
            verdict(&taking("p"), node("n", "2", "4Gi"), &[taking("q")]),
            refused(
                "node(s) didn't have free ports for the requested pod ports",
                true
            )
        );
    }
}
