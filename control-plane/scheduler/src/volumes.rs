//! The claims that pods name, and the volumes that these are bound to: which pods have to wait for theirs, and which nodes can
//! reach them.
//!
//! Nothing is bound here. A claim is bound once whoever binds claims says that it is done with it. The words are Kubernetes',
//! and so is the order in which it is asked what they tell.

use std::borrow::Cow;
use std::sync::Arc;

use gantry_base::node_affinity::{Labels, Term};
use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Informers, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::filters::Refusal;
use crate::pod::{NamedClaim, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};

const RESTRICTIONS: &str = "VolumeRestrictions";
const BINDING: &str = "VolumeBinding";
const ZONE: &str = "VolumeZone";

const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
const IN_USE: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
const OUT_OF_REACH: &str = "node(s) didn't match PersistentVolume's node affinity";
const VOLUME_GONE: &str =
    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const OTHER_ZONE: &str = "node(s) had no available volume zone";

/// A label of volumes, and the one that a node may have instead.
type ZoneLabel = (&'static str, &'static str);

/// On a claim, from when it and its volume know of each other.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// By which a volume says where it is.
const ZONES: [ZoneLabel; 4] = [
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    (
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
];
const CLAIM: &str = "persistentvolumeclaim";
const PERSISTENT_VOLUME: &str = "persistentvolume";
/// Index: claims by the volume that they say is theirs.
const VOLUME: &str = "volume";
/// No object has a longer name; but a pod may name what cannot be.
const LONGEST_NAME: usize = 253;

/// The claims and volumes that there are.
pub(crate) struct Storage {
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
}

impl Storage {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self::over(informers.of(), informers.of())
    }

    fn over(claims: Informer<PersistentVolumeClaim>, volumes: Informer<PersistentVolume>) -> Self {
        let claims = claims.index(VOLUME, |claim| {
            volume_of(claim).map(str::to_owned).into_iter().collect()
        });
        Self { claims, volumes }
    }

    /// Returns once all are known.
    pub(crate) async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
    }

    /// The claims that say that the volume is theirs.
    pub(crate) fn claims_of(&self, volume: &str) -> Vec<Key> {
        let claims = self.claims.indexed(VOLUME, volume);
        claims
            .iter()
            .map(|claim| Key::of(&claim.metadata))
            .collect()
    }

    /// What nodes have to reach for the pod; or why it has to wait, whatever the node.
    pub(crate) fn of(&self, pod: &PodInfo, snapshot: &Snapshot) -> Result<PodVolumes, Refusal> {
        let mut needed = PodVolumes::default();
        if pod.claims.is_empty() {
            return Ok(needed);
        }
        for named in pod.claims.iter().filter(|named| !named.is_pods_own) {
            let Some(claim) = self.claims.get(&named.key) else {
                return Err(refused(RESTRICTIONS, missing(CLAIM, &named.key.name)));
            };
            needed.in_use |= is_for_one_pod(&claim) && snapshot.is_claim_used(&named.key);
        }
        let mut unbound = false;
        let mut bound = Vec::new();
        for named in &pod.claims {
            let claim = self.usable(pod, named);
            let claim = claim.map_err(|reason| refused(BINDING, reason))?;
            match volume_of(&claim).filter(|_| is_bound(&claim)) {
                Some(volume) => bound.push((named, Key::new("", volume))),
                None => unbound = true,
            }
        }
        if unbound {
            return Err(Refusal::one(BINDING, UNBOUND, false));
        }
        for (named, key) in bound {
            match self.volumes.get(&key) {
                Some(volume) => needed.add(&volume, named),
                // Of those made for the pod, only the nodes are asked.
                None if named.is_pods_own => needed.reach.push(Reach::Nowhere),
                None => return Err(refused(ZONE, missing(PERSISTENT_VOLUME, &key.name))),
            }
        }
        Ok(needed)
    }

    /// The claim, if the pod may use it at all.
    fn usable(
        &self,
        pod: &PodInfo,
        named: &NamedClaim,
    ) -> Result<Arc<PersistentVolumeClaim>, String> {
        let name = &named.key.name;
        let Some(claim) = self.claims.get(&named.key) else {
            return Err(match named.is_pods_own {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {}",
                    quoted(name)
                ),
                false => missing(CLAIM, name),
            });
        };
        let status = claim.status.as_ref();
        if status.and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = quoted(volume_of(&claim).unwrap_or_default());
            let claim = quoted(name);
            return Err(format!(
                "persistentvolumeclaim {claim} bound to non-existent persistentvolume {volume}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!(
                "persistentvolumeclaim {} is being deleted",
                quoted(name)
            ));
        }
        let controller = controller_of(&claim.metadata);
        if named.is_pods_own && controller.is_none_or(|owner| *owner.uid != *pod.uid) {
            let (claim, pod) = (&named.key, &pod.key);
            return Err(format!(
                "PVC {claim} was not created for pod {pod} (pod is not owner)"
            ));
        }
        Ok(claim)
    }
}

/// A refusal that is about no node in particular.
fn refused(filter: &'static str, reason: String) -> Refusal {
    Refusal {
        filter,
        reasons: vec![Cow::Owned(reason)],
        resolvable: false,
    }
}

fn missing(what: &str, name: &str) -> String {
    format!("{what} {} not found", quoted(name))
}

fn quoted(name: &str) -> String {
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    format!("{shown:?}")
}

fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let volume = spec.volume_name.as_deref();
    volume.filter(|volume| !volume.is_empty())
}

/// Whether both sides of the claim's binding are written.
fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let mut annotations = claim.metadata.annotations.iter();
    annotations.any(|annotations| annotations.contains_key(BIND_COMPLETED))
}

fn is_for_one_pod(claim: &PersistentVolumeClaim) -> bool {
    let spec = claim.spec.as_ref();
    let modes = spec.and_then(|spec| spec.access_modes.as_ref());
    modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
}

/// From where a volume can be reached.
#[derive(Debug)]
enum Reach {
    /// From nodes that match one of these.
    Nodes(Vec<Term>),
    /// From no node: there is no such volume.
    Nowhere,
}

/// What a node has to reach to run a pod. Volumes that every node reaches are left out.
#[derive(Debug, Default)]
pub(crate) struct PodVolumes {
    /// Whether a claim that only one pod may use is another's.
    in_use: bool,
    reach: Vec<Reach>,
    /// Labels that a node in any zone has to have, with the values that will do.
    zones: Vec<(ZoneLabel, Vec<String>)>,
}

impl PodVolumes {
    fn add(&mut self, volume: &PersistentVolume, named: &NamedClaim) {
        let spec = volume.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.node_affinity.as_ref());
        if let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) {
            let terms = required.node_selector_terms.iter();
            self.reach
                .push(Reach::Nodes(terms.map(Term::new).collect()));
        }
        let labels = volume.metadata.labels.as_ref();
        let Some(labels) = labels.filter(|_| !named.is_pods_own) else {
            return;
        };
        for zone in ZONES {
            let values = labels.get(zone.0).and_then(|value| listed(value));
            self.zones.extend(values.map(|values| (zone, values)));
        }
    }

    /// Whether the pod finds its volumes on the node.
    pub(crate) fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if self.in_use {
            return Err(Refusal::one(RESTRICTIONS, IN_USE, true));
        }
        for reach in &self.reach {
            let refusal = match reach {
                // A volume cannot ask for a node by its name, but by its labels.
                Reach::Nodes(terms) if terms.iter().any(|term| term.matches("", &node.labels)) => {
                    continue;
                }
                Reach::Nodes(_) => OUT_OF_REACH,
                Reach::Nowhere => VOLUME_GONE,
            };
            return Err(Refusal::one(BINDING, refusal, false));
        }
        if self.zones.is_empty() || !is_in_any_zone(&node.labels) {
            return Ok(());
        }
        let labels = &node.labels;
        let within = self.zones.iter().all(|((key, other), values)| {
            let own = labels.get(*key).or_else(|| labels.get(*other));
            own.is_some_and(|own| values.contains(own))
        });
        match within {
            true => Ok(()),
            false => Err(Refusal::one(ZONE, OTHER_ZONE, false)),
        }
    }
}

/// Where nodes say nothing of zones, there is only one.
fn is_in_any_zone(labels: &Labels) -> bool {
    ZONES.iter().any(|(key, _)| labels.contains_key(*key))
}

/// The values of a label that may have several; none if one of them is empty.
fn listed(value: &str) -> Option<Vec<String>> {
    let values = value.split("__").map(str::trim);
    values
        .map(|value| Some(value.to_owned()).filter(|value| !value.is_empty()))
        .collect()
}

#[cfg(test)]
mod tests;
