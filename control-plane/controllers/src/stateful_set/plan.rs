//! The pure part: what to do next about the pods of a set.
//!
//! Pods of a set in order are made and kept one after the other: nothing is done about a pod before all those of lower
//! ordinals are available, and they go from the highest ordinal down, one at a time. Those of a parallel set are made and
//! deleted at once; they are brought to another template one at a time all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::claims::{self, Known, Work};
use super::identity::{Version, correction, ordinal_of, ordinals, pod_name, pod_of, revision_of};
use crate::deployment::scaled;
use crate::pod_control::{BURST, burst};
use crate::pods::{Availability, availability, is_finished, is_ready, phase};

/// What the plan is made from.
pub(crate) struct Observed<'a> {
    pub(crate) set: &'a StatefulSet,
    /// The set's own, each of an ordinal.
    pub(crate) pods: &'a [Arc<Pod>],
    pub(crate) claims: Known<'a>,
    /// What pods were of before the update, and below its partition still are.
    pub(crate) current: &'a Version,
    /// What the set asks for.
    pub(crate) update: &'a Version,
    pub(crate) now: Timestamp,
}

/// What to do about one pod: about its claims, then about itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) pod: String,
    pub(crate) claims: Work,
    pub(crate) then: Then,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Then {
    Nothing,
    Create(Box<Pod>),
    /// With this strategic merge patch, which may be empty: then only the claims were not as they should be.
    Update(Value),
    Delete(Arc<Pod>),
}

/// Steps that may be taken at once in a parallel set, and one after the other in a set in order. Those of a phase follow
/// when those of the one before have succeeded.
pub(crate) type Phase = Vec<Step>;

/// Whether the pods of a set are made and deleted at once.
pub(crate) fn is_parallel(set: &StatefulSet) -> bool {
    let policy = set.spec.as_ref();
    let policy = policy.and_then(|spec| spec.pod_management_policy.as_deref());
    policy == Some("Parallel")
}

fn strategy(set: &StatefulSet) -> Option<&str> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    strategy.type_.as_deref()
}

/// Whether pods are brought to another template by the set itself.
pub(crate) fn is_rolling(set: &StatefulSet) -> bool {
    strategy(set) == Some("RollingUpdate")
}

fn rolling(spec: &StatefulSetSpec) -> Option<&RollingUpdateStatefulSetStrategy> {
    spec.update_strategy.as_ref()?.rolling_update.as_ref()
}

/// How many of the lowest pods keep the current revision.
fn partition(spec: &StatefulSetSpec) -> i64 {
    let partition = rolling(spec).and_then(|rolling| rolling.partition);
    i64::from(partition.unwrap_or(0).max(0))
}

/// Whether a pod runs and is ready.
pub(crate) fn is_healthy(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

struct Planning<'a> {
    observed: &'a Observed<'a>,
    spec: &'a StatefulSetSpec,
    /// The pods of the ordinals that are wanted.
    replicas: BTreeMap<i64, &'a Arc<Pod>>,
    /// Those of others.
    condemned: BTreeMap<i64, &'a Arc<Pod>>,
    in_order: bool,
}

/// What to do now. The next plan is due when what was done has been seen, and when anything else about the set changes.
pub(crate) fn plan(observed: &Observed<'_>) -> Vec<Phase> {
    let set = observed.set;
    let Some(spec) = set
        .spec
        .as_ref()
        .filter(|_| set.metadata.deletion_timestamp.is_none())
    else {
        return Vec::new();
    };
    let wanted = ordinals(spec);
    let pods = observed.pods.iter();
    let pods = pods.filter_map(|pod| Some((ordinal_of(set, &pod.metadata)?, pod)));
    let (replicas, condemned) = pods.partition(|(ordinal, _)| wanted.contains(ordinal));
    let planning = Planning {
        observed,
        spec,
        replicas,
        condemned,
        in_order: !is_parallel(set),
    };
    let (kept, settled) = planning.keep();
    let mut phases = vec![kept];
    if settled {
        phases.push(planning.part());
        let (condemned, settled) = planning.condemn();
        phases.push(condemned);
        if settled {
            phases.push(planning.update());
        }
    }
    phases.retain(|phase| !phase.is_empty());
    phases
}

impl Planning<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        is_healthy(pod)
            && availability(pod, min_ready, self.observed.now) == Availability::Available
    }

    /// Neither on its way out nor otherwise unavailable.
    fn serves(&self, pod: &Pod) -> bool {
        !is_leaving(pod) && self.is_available(pod)
    }

    /// The pods that are wanted: made, replaced when they ended, and mended. Says whether one may go on to others.
    fn keep(&self) -> (Phase, bool) {
        let (mut phase, most) = (Phase::new(), burst(&self.spec.template));
        for ordinal in ordinals(self.spec) {
            if phase.len() >= most {
                return (phase, false);
            }
            let (step, go_on) = match self.replicas.get(&ordinal) {
                None => (self.create(ordinal), false),
                Some(pod) => self.keep_one(pod, ordinal),
            };
            phase.extend(step);
            if self.in_order && !go_on {
                return (phase, false);
            }
        }
        (phase, true)
    }

    /// None while a claim is to go first.
    fn create(&self, ordinal: i64) -> Option<Step> {
        let set = self.observed.set;
        let name = pod_name(set, ordinal);
        if claims::is_stale(set, &name, ordinal, self.observed.claims) {
            return None;
        }
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        };
        let pod = pod_of(set, self.version(ordinal), ordinal);
        Some(Step {
            pod: name,
            claims: claims::work(set, &metadata, ordinal, self.observed.claims),
            then: Then::Create(Box::new(pod)),
        })
    }

    /// What a new pod is of. Without a partition, as many as are of the current revision stay so until they are updated.
    fn version(&self, ordinal: i64) -> &Version {
        let place = ordinal - ordinals(self.spec).start;
        let status = self.observed.set.status.as_ref();
        let current = status.and_then(|status| status.current_replicas);
        let kept = match rolling(self.spec) {
            Some(_) => partition(self.spec),
            None if is_rolling(self.observed.set) => i64::from(current.unwrap_or(0)),
            None => 0,
        };
        match place < kept {
            true => self.observed.current,
            false => self.observed.update,
        }
    }

    fn step(&self, pod: &Pod, claims: Work, then: Then) -> Step {
        Step {
            pod: pod.metadata.name.clone().unwrap_or_default(),
            claims,
            then,
        }
    }

    fn keep_one(&self, pod: &Arc<Pod>, ordinal: i64) -> (Option<Step>, bool) {
        if is_finished(pod) {
            let delete = || self.step(pod, Work::default(), Then::Delete(pod.clone()));
            return ((!is_leaving(pod)).then(delete), false);
        }
        if is_leaving(pod) {
            return (None, false);
        }
        let go_on = self.is_available(pod);
        let is_pending = phase(pod) == "Pending";
        let may_mend = go_on || !self.in_order;
        if !may_mend && !is_pending {
            return (None, false);
        }
        let set = self.observed.set;
        let mut claims = claims::work(set, &pod.metadata, ordinal, self.observed.claims);
        let patch = may_mend.then(|| correction(set, pod, ordinal)).flatten();
        // A pod that runs has its claims, unless it is to mount others.
        let mounts_others = patch
            .as_ref()
            .is_some_and(|patch| patch.get("spec").is_some());
        if !is_pending && !mounts_others {
            claims.make.clear();
        }
        let then = match patch {
            Some(patch) => Then::Update(patch),
            None if claims.is_none() => return (None, go_on),
            None if is_pending => Then::Nothing,
            None => Then::Update(json!({})),
        };
        (Some(self.step(pod, claims, then)), go_on)
    }

    /// The claims of pods that are to go go with them where they should.
    fn part(&self) -> Phase {
        let set = self.observed.set;
        let steps = self.condemned.iter().rev().filter_map(|(ordinal, pod)| {
            let work = claims::parting(set, &pod.metadata, *ordinal, self.observed.claims);
            (!work.is_none()).then(|| self.step(pod, work, Then::Nothing))
        });
        steps.take(BURST).collect()
    }

    /// Pods that are wanted no more: the highest first. Says whether one may go on to the update.
    fn condemn(&self) -> (Phase, bool) {
        let going = self.condemned.values().rev();
        let delete = |pod: &Arc<Pod>| self.step(pod, Work::default(), Then::Delete(pod.clone()));
        if !self.in_order {
            let staying = going.filter(|pod| !is_leaving(pod));
            return (staying.take(BURST).map(|pod| delete(pod)).collect(), true);
        }
        let Some(highest) = self.condemned.values().next_back() else {
            return (Phase::new(), true);
        };
        if is_leaving(highest) {
            return (Phase::new(), false);
        }
        // One that is not available holds up the others, unless it is the lowest such: then it goes, too. So does one that
        // ended, which Kubernetes waits for in vain when a lower one is down as well.
        let first_down = self.condemned.values().find(|pod| !self.serves(pod));
        let is_first_down = first_down.is_some_and(|down| Arc::ptr_eq(down, highest));
        match self.is_available(highest) || is_first_down || is_finished(highest) {
            true => (vec![delete(highest)], false),
            false => (Phase::new(), false),
        }
    }

    /// Pods of another template than they should be, from the highest: none while one above is not available, or no more at
    /// once than may be unavailable.
    fn update(&self) -> Phase {
        if strategy(self.observed.set) == Some("OnDelete") {
            return Phase::new();
        }
        let wanted = ordinals(self.spec);
        let lowest = wanted.start + partition(self.spec);
        let is_old = |pod: &Pod| revision_of(pod) != Some(self.observed.update.name.as_str());
        let delete = |pod: &Arc<Pod>| self.step(pod, Work::default(), Then::Delete(pod.clone()));
        let unavailable = rolling(self.spec).and_then(|rolling| rolling.max_unavailable.as_ref());
        if let Some(unavailable) = unavailable {
            let total = self.spec.replicas.unwrap_or(1);
            let most = usize::try_from(scaled(Some(unavailable), total, false).max(1));
            let serving = self
                .replicas
                .values()
                .filter(|pod| self.serves(pod))
                .count();
            let total = usize::try_from(total).unwrap_or(0);
            let down = total.saturating_sub(serving);
            let old = self.replicas.range(lowest..).rev().map(|(_, pod)| pod);
            let old = old.filter(|pod| is_old(pod) && !is_leaving(pod) && !is_finished(pod));
            let most = most.unwrap_or(1).saturating_sub(down).min(BURST);
            return old.take(most).map(|pod| delete(pod)).collect();
        }
        for ordinal in (lowest..wanted.end).rev() {
            // One that is being made is waited for.
            let Some(pod) = self.replicas.get(&ordinal).filter(|pod| !is_finished(pod)) else {
                break;
            };
            if is_old(pod) && !is_leaving(pod) {
                return vec![delete(pod)];
            }
            if !self.serves(pod) {
                break;
            }
        }
        Phase::new()
    }
}
