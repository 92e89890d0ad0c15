//! What scheduling needs to know of a pod, worked out once.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use gantry_base::node_affinity::{Labels, Term, named};
use gantry_base::taints::is_tolerated;
use gantry_informer::object::controller_of;
use gantry_informer::{Key, Reference, disruption};
use k8s_openapi::api::core::v1::{Pod, PodCondition, Taint, Toleration, Volume};

use crate::resources::{LEAST_MEMORY, LEAST_MILLI_CPU, Resources, of_pod};
use crate::selection::PodTerms;
use crate::spread_constraint::SpreadConstraint;

/// A port on the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// `0.0.0.0` for all addresses.
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// A claim that a volume of a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NamedClaim {
    pub(crate) key: Key,
    /// Whether it is made for the pod alone: then no other of that name will do.
    pub(crate) is_pods_own: bool,
}

impl NamedClaim {
    fn of(volume: &Volume, pod: &Key) -> Option<Self> {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Self {
                key: Key::new(&pod.namespace, &claim.claim_name),
                is_pods_own: false,
            });
        }
        volume.ephemeral.as_ref().map(|_| Self {
            key: Key::new(&pod.namespace, &format!("{}-{}", pod.name, volume.name)),
            is_pods_own: true,
        })
    }
}

/// How many terms of affinity and spread constraints a pod may have. One with more is not scheduled, and where it runs for all
/// that, nobody heeds them.
const MOST_TERMS: usize = 256;

/// The reason of the condition of a pod whose room the scheduler wants.
pub(crate) const PREEMPTED: &str = "PreemptionByScheduler";

/// The kinds of controllers whose pods are spread though they do not say so.
const REPLICATING: [(&str, &str); 3] = [
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("v1", "ReplicationController"),
];

/// A pod as the scheduler sees it.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) uid: Arc<str>,
    pub(crate) key: Key,
    pub(crate) labels: Labels,
    /// The uid of its controller, of a kind whose pods are replicas of each other.
    pub(crate) controller: Option<Arc<str>>,
    pub(crate) generation: Option<i64>,
    pub(crate) resource_version: String,
    pub(crate) priority: i32,
    pub(crate) never_preempts: bool,
    /// The node that its status says it is expected on, once others have left.
    pub(crate) nominated: Option<Arc<str>>,
    /// When it began to run, in seconds of Unix time; one that has not will begin later than all that have.
    pub(crate) started: i64,
    /// What its status says of its being evicted.
    pub(crate) disruption: Option<Box<PodCondition>>,
    /// The node it is bound to.
    pub(crate) node: Option<Arc<str>>,
    pub(crate) requests: Resources,
    /// For scoring: never nothing.
    pub(crate) weight_cpu: i64,
    pub(crate) weight_memory: i64,
    pub(crate) host_ports: Vec<HostPort>,
    /// The claims that its volumes are, each once, in the order of its volumes.
    pub(crate) claims: Vec<NamedClaim>,
    pub(crate) node_selector: Vec<(String, String)>,
    /// Any of these must match; absent: all nodes do.
    pub(crate) required: Option<Vec<Term>>,
    pub(crate) preferred: Vec<(i64, Term)>,
    /// What it says of other pods.
    pub(crate) terms: PodTerms,
    /// How evenly pods are to be spread.
    pub(crate) spread: Vec<SpreadConstraint>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) images: Vec<String>,
    pub(crate) containers: usize,
    /// Whether something still holds its scheduling back.
    pub(crate) gated: bool,
    pub(crate) deleting: bool,
    pub(crate) finished: bool,
    scheduler: Option<String>,
    /// What its status says of its scheduling.
    pub(crate) condition: Option<PodCondition>,
}

impl PodInfo {
    pub(crate) fn new(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.as_ref();
        let requests = of_pod(pod);
        let key = Key::of(&pod.metadata);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let terms = spec.affinity.as_ref();
        let terms = terms.map(|affinity| PodTerms::new(affinity, &key.namespace, &labels));
        let affinity = spec
            .affinity
            .and_then(|affinity| affinity.node_affinity)
            .unwrap_or_default();
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .map(|selector| selector.node_selector_terms.iter().map(Term::new).collect());
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(|term| (i64::from(term.weight), Term::new(&term.preference)))
            .collect();
        let all = || {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        };
        let host_network = spec.host_network.unwrap_or(false);
        let mut known = HashSet::new();
        let claims = spec
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| NamedClaim::of(volume, &key))
            .filter(|claim| known.insert(claim.clone()))
            .collect();
        Self {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            controller: controller_of(&pod.metadata)
                .filter(|owner| {
                    let kind = (owner.api_version.as_str(), owner.kind.as_str());
                    REPLICATING.contains(&kind)
                })
                .map(|owner| owner.uid.as_str().into()),
            generation: pod.metadata.generation,
            resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            nominated: status
                .and_then(|status| status.nominated_node_name.as_deref())
                .filter(|node| !node.is_empty())
                .map(Into::into),
            started: status
                .and_then(|status| status.start_time.as_ref())
                .map_or(i64::MAX, |time| time.0.as_second()),
            disruption: condition(pod, disruption::TARGET).cloned().map(Box::new),
            node: spec
                .node_name
                .as_deref()
                .filter(|node| !node.is_empty())
                .map(Into::into),
            weight_cpu: if requests.milli_cpu == 0 {
                LEAST_MILLI_CPU
            } else {
                requests.milli_cpu
            },
            weight_memory: if requests.memory == 0 {
                LEAST_MEMORY
            } else {
                requests.memory
            },
            requests,
            host_ports: all()
                .flat_map(|container| container.ports.iter().flatten())
                .filter_map(|port| {
                    let number = match port.host_port {
                        Some(number) if number > 0 => number,
                        _ if host_network => port.container_port,
                        _ => return None,
                    };
                    Some(HostPort {
                        ip: port
                            .host_ip
                            .clone()
                            .filter(|ip| !ip.is_empty())
                            .unwrap_or_else(|| "0.0.0.0".to_owned()),
                        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                        port: number,
                    })
                })
                .collect(),
            claims,
            images: all()
                .filter_map(|container| container.image.as_deref())
                .map(normalised)
                .collect(),
            containers: all().count(),
            node_selector: spec.node_selector.into_iter().flatten().collect(),
            required,
            preferred,
            terms: terms.unwrap_or_default(),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|constraint| SpreadConstraint::new(constraint, &labels))
                .collect(),
            key,
            labels,
            tolerations: spec.tolerations.unwrap_or_default(),
            gated: spec.scheduling_gates.is_some_and(|gates| !gates.is_empty()),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            finished: status
                .and_then(|status| status.phase.as_deref())
                .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed")),
            scheduler: spec.scheduler_name,
            condition: condition(pod, "PodScheduled").cloned(),
        }
    }

    /// Whether it waits for the scheduler of that name, and for nothing else.
    pub(crate) fn is_waiting_for(&self, scheduler: &str) -> bool {
        self.node.is_none()
            && !self.gated
            && !self.deleting
            && !self.finished
            && self.scheduler.as_deref().unwrap_or("default-scheduler") == scheduler
    }

    /// For events about it.
    pub(crate) fn reference(&self) -> Reference {
        Reference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            uid: self.uid.to_string(),
            resource_version: self.resource_version.clone(),
        }
    }

    /// Whether it is on its way out because a scheduler wanted its room.
    pub(crate) fn leaves_for_another(&self) -> bool {
        self.deleting
            && self.disruption.as_ref().is_some_and(|condition| {
                condition.status == "True" && condition.reason.as_deref() == Some(PREEMPTED)
            })
    }

    /// Whether it says more of other pods than can be asked of many of them again and again.
    pub(crate) fn says_too_much(&self) -> bool {
        self.terms.len() + self.spread.len() > MOST_TERMS
    }

    /// Whether other pods matter to where it can run, beside the room that they take.
    pub(crate) fn looks_at_others(&self) -> bool {
        self.terms.len() > 0 || !self.spread.is_empty()
    }

    /// The nodes that it names, where it can run on no others.
    pub(crate) fn named_nodes(&self) -> Option<BTreeSet<&str>> {
        named(self.required.as_ref()?)
    }

    /// Whether one of its tolerations covers the taint.
    pub(crate) fn tolerates(&self, taint: &Taint) -> bool {
        is_tolerated(&self.tolerations, taint)
    }
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The name under which nodes report an image: with its tag.
fn normalised(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_claim_is_known_once_whoever_makes_it() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [], "volumes": [
                {"name": "e", "ephemeral": {}},
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "none", "emptyDir": {}},
                {"name": "b", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}
            ]}
        }))
        .expect("a pod");
        let claim = |name: &str, is_pods_own| NamedClaim {
            key: Key::new("ns", name),
            is_pods_own,
        };
        let claims = PodInfo::new(&pod).claims;
        assert_eq!(claims, [claim("p-e", true), claim("data", false)]);
    }

    #[test]
    fn host_ports_conflict_by_address_too() {
        let port = |ip: &str, port: i32| HostPort {
            ip: ip.to_owned(),
            protocol: "TCP".to_owned(),
            port,
        };
        for (left, right, expected) in [
            (port("0.0.0.0", 80), port("10.0.0.1", 80), true),
            (port("10.0.0.2", 80), port("10.0.0.1", 80), false),
            (port("10.0.0.1", 80), port("10.0.0.1", 80), true),
            (port("0.0.0.0", 80), port("0.0.0.0", 81), false),
        ] {
            assert_eq!(left.conflicts(&right), expected, "{left:?} {right:?}");
        }
    }

    #[test]
    fn an_image_without_tag_is_the_latest() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("nginx@sha256:0", "nginx@sha256:0"),
        ] {
            assert_eq!(normalised(image), expected);
        }
    }
}
