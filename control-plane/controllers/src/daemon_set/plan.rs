//! The pure part: on which nodes to make pods, and which to delete.
//!
//! First every node is to have the pods that it should, and no others; that done, pods are brought to the current template. A
//! set without a surge takes an old pod and makes another once it has gone; one with a surge makes another beside the old
//! one, which goes when that is available.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::placement::{Place, Spot, Spots};
use super::pod::{Version, bound_to, is_leaving};
use crate::deployment::scaled;
use crate::pod_control::{BURST, burst};
use crate::pods::{Availability, availability, is_ready, phase};

/// What the plan is made from.
pub(crate) struct Observed<'a> {
    pub(crate) set: &'a DaemonSet,
    pub(crate) spots: &'a Spots<'a>,
    pub(crate) version: &'a Version,
    /// How long failed pods have to stay, by their nodes.
    pub(crate) held: &'a HashMap<String, Duration>,
    pub(crate) now: Timestamp,
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Failed,
    Succeeded,
    /// Its node has another, or is to have none, or there is no such node.
    Superfluous,
    /// It is of another template than the current one.
    Outdated,
}

/// A pod that goes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Removal {
    pub(crate) pod: Arc<Pod>,
    pub(crate) node: String,
    pub(crate) why: Why,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The nodes that get a pod.
    pub(crate) create: Vec<String>,
    pub(crate) delete: Vec<Removal>,
    /// After what time there may be more to do, without any event telling so.
    pub(crate) wake: Option<Duration>,
}

impl Plan {
    /// Whether nothing is to be done now.
    pub(crate) fn is_idle(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }

    fn remove(&mut self, node: &str, pod: &Arc<Pod>, why: Why) {
        self.delete.push(Removal {
            pod: pod.clone(),
            node: node.to_owned(),
            why,
        });
    }
}

/// How pods are replaced by those of another template; none where their deletion is waited for.
pub(crate) fn rolling(set: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    let is_rolling = strategy.type_.as_deref() == Some("RollingUpdate");
    strategy.rolling_update.as_ref().filter(|_| is_rolling)
}

/// A number, or a share of the nodes, rounded up.
fn amount(value: Option<&IntOrString>, nodes: usize) -> usize {
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
    usize::try_from(scaled(value, nodes, true)).unwrap_or(0)
}

/// Whether a node may have two pods for a while.
pub(crate) fn allows_surge(set: &DaemonSet) -> bool {
    rolling(set).is_some_and(|rolling| amount(rolling.max_surge.as_ref(), 1) > 0)
}

/// How many nodes may have two pods, and how many none that is available, while pods are replaced on so many.
pub(crate) fn limits(rolling: &RollingUpdateDaemonSet, nodes: usize) -> (usize, usize) {
    let surge = amount(rolling.max_surge.as_ref(), nodes);
    let unavailable = amount(rolling.max_unavailable.as_ref(), nodes);
    match nodes > 0 && surge == 0 && unavailable == 0 {
        // Nothing would ever be replaced.
        true => (0, 1),
        false => (surge, unavailable),
    }
}

/// How many nodes are to have a pod.
pub(crate) fn desired(spots: &Spots<'_>) -> usize {
    let wanted = |spot: &&Spot<'_>| spot.place == Some(Place::Wanted);
    spots.values().filter(wanted).count()
}

/// The pods of a node that stay, one of each sort at most.
#[derive(Default)]
struct Pair<'a> {
    old: Option<&'a Arc<Pod>>,
    new: Option<&'a Arc<Pod>>,
}

/// What to do now. The next plan is due when what was done has been seen, and when anything else about the set changes.
pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    for (node, spot) in observed.spots {
        observed.keep(node, spot, &mut plan);
    }
    if plan.is_idle()
        && let Some(rolling) = rolling(observed.set)
    {
        match limits(rolling, desired(observed.spots)) {
            (0, unavailable) => observed.replace(unavailable, &mut plan),
            (surge, _) => observed.surge(surge, &mut plan),
        }
    }
    plan.delete.truncate(BURST);
    if let Some(spec) = &observed.set.spec
        && !plan.create.is_empty()
    {
        plan.create.truncate(burst(&spec.template));
    }
    plan
}

impl Observed<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        let spec = self.set.spec.as_ref();
        let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        availability(pod, min_ready, self.now) == Availability::Available
    }

    /// Gives a node the pods that it should have, whatever their template.
    fn keep(&self, node: &str, spot: &Spot<'_>, plan: &mut Plan) {
        let staying = spot.pods.iter().filter(|pod| !is_leaving(pod));
        match spot.place {
            Some(Place::Wanted) if spot.pods.is_empty() => plan.create.push(node.to_owned()),
            Some(Place::Wanted | Place::Spared) => self.settle(node, spot, plan),
            Some(Place::Refused) => {
                for pod in staying {
                    plan.remove(node, pod, Why::Superfluous);
                }
            }
            // Bound ones go with their node.
            None => {
                for pod in staying.filter(|pod| bound_to(pod).is_none()) {
                    plan.remove(node, pod, Why::Superfluous);
                }
            }
        }
    }

    /// Of a node that may have pods, takes those that have ended, and those above the number.
    fn settle(&self, node: &str, spot: &Spot<'_>, plan: &mut Plan) {
        let mut running = Vec::new();
        let mut is_held = false;
        for pod in spot.pods.iter().filter(|pod| !is_leaving(pod)) {
            match (phase(pod), self.held.get(node)) {
                ("Failed", Some(left)) => {
                    is_held = true;
                    plan.wake = Some(plan.wake.map_or(*left, |wake| wake.min(*left)));
                }
                ("Failed", None) => plan.remove(node, pod, Why::Failed),
                ("Succeeded", _) => plan.remove(node, pod, Why::Succeeded),
                _ => running.push(*pod),
            }
        }
        if !allows_surge(self.set) {
            for pod in running.into_iter().skip(1) {
                plan.remove(node, pod, Why::Superfluous);
            }
            return;
        }
        // One that leaves is not waited for. One that failed and stays is, or there would be ever more of them.
        if running.is_empty() && spot.place == Some(Place::Wanted) && !is_held {
            plan.create.push(node.to_owned());
        }
        if running.len() <= 1 {
            return;
        }
        // Of several of a sort, one that serves stays rather than an older one that does not.
        running.sort_by_key(|pod| !self.is_available(pod));
        let mut pair = Pair::default();
        for pod in running {
            let place = match self.version.is_of(pod) {
                true => &mut pair.new,
                false => &mut pair.old,
            };
            match place {
                None => *place = Some(pod),
                Some(_) => plan.remove(node, pod, Why::Superfluous),
            }
        }
        if let (Some(old), Some(new)) = (pair.old, pair.new)
            && (!is_ready(old) || self.is_available(new))
        {
            plan.remove(node, old, Why::Outdated);
        }
    }

    /// None while the node has several pods of a sort.
    fn pair<'s>(&self, spot: &Spot<'s>) -> Option<Pair<'s>> {
        let mut pair = Pair::default();
        for pod in spot.pods.iter().copied().filter(|pod| !is_leaving(pod)) {
            let place = match self.version.is_of(pod) {
                true => &mut pair.new,
                false => &mut pair.old,
            };
            if place.replace(pod).is_some() {
                return None;
            }
        }
        Some(pair)
    }

    /// Nodes that there are.
    fn known(&self) -> impl Iterator<Item = (&str, &Spot<'_>)> {
        let spots = self.spots.iter().map(|(node, spot)| (*node, spot));
        spots.filter(|(_, spot)| spot.place.is_some())
    }

    /// Takes old pods: those that serve nobody, and of others as many as may be unavailable. Their nodes get new ones when they
    /// have gone.
    fn replace(&self, most: usize, plan: &mut Plan) {
        let mut down = 0;
        let mut candidates = Vec::new();
        for (node, spot) in self.known() {
            match self.pair(spot) {
                Some(Pair {
                    old: Some(old),
                    new: None,
                }) => match self.is_available(old) {
                    true => candidates.push((node, old)),
                    false => {
                        down += 1;
                        plan.remove(node, old, Why::Outdated);
                    }
                },
                Some(Pair {
                    old: None,
                    new: Some(new),
                }) => down += usize::from(!self.is_available(new)),
                // Pods come or go there first.
                _ => down += 1,
            }
        }
        for (node, old) in candidates.into_iter().take(most.saturating_sub(down)) {
            plan.remove(node, old, Why::Outdated);
        }
    }

    /// Makes new pods beside old ones: where the old one serves nobody, and on as many other nodes as may have two. Nodes that
    /// get no pod any more keep an available one for as long as there are not enough without it.
    fn surge(&self, most: usize, plan: &mut Plan) {
        let (mut surging, mut available) = (0_usize, 0_usize);
        let (mut misplaced, mut candidates) = (Vec::new(), Vec::new());
        for (node, spot) in self.known() {
            let Some(pair) = self.pair(spot) else {
                surging += 1;
                continue;
            };
            let counted = pair.old.or(pair.new);
            available += usize::from(counted.is_some_and(|pod| self.is_available(pod)));
            let Some(old) = pair.old else {
                continue;
            };
            if let Some(new) = pair.new {
                match self.is_available(new) {
                    true => plan.remove(node, old, Why::Outdated),
                    false => surging += 1,
                }
                continue;
            }
            match (spot.place == Some(Place::Wanted), self.is_available(old)) {
                (true, true) => candidates.push(node),
                (true, false) => plan.create.push(node.to_owned()),
                (false, true) => misplaced.push((node, old)),
                (false, false) => plan.remove(node, old, Why::Superfluous),
            }
        }
        let spare = available.saturating_sub(desired(self.spots));
        for (node, old) in misplaced.into_iter().take(spare) {
            plan.remove(node, old, Why::Superfluous);
        }
        let free = most.saturating_sub(surging);
        let chosen = candidates.into_iter().take(free).map(str::to_owned);
        plan.create.extend(chosen);
    }
}
