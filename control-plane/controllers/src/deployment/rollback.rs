//! Automatic rollback: a revision that does not work takes itself back. The pure part, beside the rollout's own plan.
//!
//! What is known is kept in annotations of the Deployment, each the hash of a template, written with its status:
//!
//! - [`HEALTHY`], the last template whose rollout completed; a revision that fails goes back to it;
//! - [`WARM`], the one before, for a while after that: until then a revision that fails after its success goes back there;
//! - [`FAILED`], the template that was taken back last. As long as it is wanted, it is taken back at once.
//!
//! ```text
//!            completes                      keep-warm is over
//! rollout ---------------> HEALTHY, WARM ---------------------> HEALTHY
//!    | fails                     | fails
//!    v                           v
//! FAILED, condition RolledBack; then the template is that of HEALTHY (or WARM) again
//! ```
//!
//! A template is only ever gone back to that was complete or, where nothing is remembered yet, whose pods are all
//! available; and from what it went back to it goes nowhere. So it never flaps.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::evidence::{Fault, Verdict, judge, laggard, shown};
use super::policy::Policy;
use super::revision::{TEMPLATE_HASH, revision_of, same_template, text};
use super::sizing::{available, size, wanted};
use super::status::{
    CANARY_STEP, NEW_SET_AVAILABLE, PROGRESSING, REPLICA_FAILURE, TIMED_OUT, condition,
    is_complete, is_rolled_back, left,
};
use super::undo::template_of;

pub(crate) const HEALTHY: &str = "gantry.dev/healthy-template";
pub(crate) const WARM: &str = "gantry.dev/warm-template";
pub(crate) const FAILED: &str = "gantry.dev/failed-template";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// What is known when it is decided.
pub(crate) struct Look<'a> {
    pub(crate) deployment: &'a Deployment,
    pub(crate) policy: &'a Policy,
    /// The set of the current template.
    pub(crate) new: Option<&'a ReplicaSet>,
    /// All others.
    pub(crate) old: &'a [ReplicaSet],
    /// The hash of the current template.
    pub(crate) hash: &'a str,
    /// The pods of the current set.
    pub(crate) pods: &'a [Arc<Pod>],
    /// What a metric of these pods says against them.
    pub(crate) metric: Option<&'a Fault>,
    /// The status as the sets bring it about now.
    pub(crate) status: &'a DeploymentStatus,
    pub(crate) now: Timestamp,
}

/// An annotation, and its value; none takes it away.
pub(crate) type Note = (&'static str, Option<String>);

/// What is to be done before, or instead of, a pass of the rollout.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// What to remember.
    pub(crate) notes: Vec<Note>,
    /// The condition of an earlier rollback is over.
    pub(crate) is_over: bool,
    /// The current revision is given up: why, and in what words.
    pub(crate) given_up: Option<Fault>,
    /// The Deployment with the template to go back to.
    pub(crate) restore: Option<Deployment>,
    /// When to look again though nothing changed.
    pub(crate) wake: Option<Duration>,
}

/// Decides.
pub(crate) fn decide(look: &Look<'_>) -> Decision {
    let mut decision = Decision::default();
    let noted = |name: &str| text(&look.deployment.metadata, name);
    let (healthy, warm, failed) = (noted(HEALTHY), noted(WARM), noted(FAILED));
    if !look.policy.is_on {
        // What was healthy now may be no longer when somebody switches it on again.
        for name in [HEALTHY, WARM, FAILED] {
            if noted(name).is_some() {
                decision.notes.push((name, None));
            }
        }
        decision.is_over = true;
        return decision;
    }
    let current = look.new.and_then(hash_of).unwrap_or(look.hash);
    let target = look.target(healthy, current);
    if failed == Some(current)
        && let Some(target) = target
    {
        decision.restore = restored(look.deployment, target);
        return decision;
    }
    let is_over = match failed {
        Some(_) => healthy != Some(current),
        // Somebody took the annotation away, such as who undoes a rollout with kubectl.
        None => is_rolled_back(look.status),
    };
    if is_over {
        // What is known of the progress is still that of the revision which failed: the next pass looks at this one.
        decision.notes.extend(failed.map(|_| (FAILED, None)));
        decision.is_over = true;
        return decision;
    }
    let Some(new) = look.new else {
        return decision;
    };
    if healthy == Some(current) {
        if let Some(warm) = warm {
            look.probation(new, warm, &mut decision);
        }
        return decision;
    }
    if let Some(target) = target {
        look.rollout(new, target, &mut decision);
    }
    if decision.given_up.is_none()
        && wanted(look.deployment) > 0
        && is_complete(look.deployment, look.status)
    {
        let before = healthy.filter(|hash| look.named(hash).is_some());
        let before = before.filter(|_| look.completed().is_some());
        decision.notes.push((HEALTHY, Some(current.to_owned())));
        if warm != before {
            decision.notes.push((WARM, before.map(str::to_owned)));
        }
        decision.wake = None;
    }
    decision
}

impl<'a> Look<'a> {
    /// The set with that hash among the others.
    fn named(&self, hash: &str) -> Option<&'a ReplicaSet> {
        self.old
            .iter()
            .find(|set| hash_of(set) == Some(hash) && set.metadata.deletion_timestamp.is_none())
    }

    /// The set to go back to: the one that is remembered, or else the one with the most pods, if all of them are available.
    fn target(&self, healthy: Option<&str>, current: &str) -> Option<&'a ReplicaSet> {
        let remembered = healthy.filter(|hash| *hash != current);
        remembered.and_then(|hash| self.named(hash)).or_else(|| {
            let largest = self
                .old
                .iter()
                .filter(|set| set.metadata.deletion_timestamp.is_none())
                .max_by_key(|set| (size(set), revision_of(&set.metadata)))?;
            (size(largest) > 0 && available(largest) >= size(largest)).then_some(largest)
        })
    }

    /// When the rollout of the current template completed.
    fn completed(&self) -> Option<Timestamp> {
        let progressing = condition(self.status, PROGRESSING)?;
        let is_so = progressing.reason.as_deref() == Some(NEW_SET_AVAILABLE);
        progressing
            .last_update_time
            .as_ref()
            .filter(|_| is_so)
            .map(|time| time.0)
    }

    /// The current revision has succeeded a moment ago, and may still turn out not to work. That a pod of it finds no node
    /// any more is not its fault.
    fn probation(&self, new: &ReplicaSet, warm: &str, decision: &mut Decision) {
        let left = self
            .completed()
            .and_then(|since| left(since, self.policy.keep_warm, self.now));
        let (Some(left), Some(target)) = (left, self.named(warm)) else {
            decision.notes.push((WARM, None));
            return;
        };
        let placed = |pod: &&Arc<Pod>| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        };
        let placed: Vec<Arc<Pod>> = self.pods.iter().filter(placed).cloned().collect();
        match judge(self.policy, &placed, self.now) {
            Verdict::Failed(fault) => self.give_up(new, target, fault, decision),
            Verdict::Until(wake) => decision.wake = Some(wake.min(left)),
            Verdict::Open => decision.wake = Some(left),
        }
    }

    /// The current revision is being rolled out.
    fn rollout(&self, new: &ReplicaSet, target: &ReplicaSet, decision: &mut Decision) {
        match judge(self.policy, self.pods, self.now) {
            Verdict::Failed(fault) => return self.give_up(new, target, fault, decision),
            Verdict::Until(wake) => decision.wake = Some(wake),
            Verdict::Open => {}
        }
        if let Some(fault) = self.metric {
            return self.give_up(new, target, fault.clone(), decision);
        }
        // Until there is a pod of it, or a reason why there is none, all that is told is of the rollout before.
        let has_begun = new
            .status
            .as_ref()
            .is_some_and(|status| status.replicas > 0)
            || condition(self.status, REPLICA_FAILURE).is_some();
        if !has_begun {
            return;
        }
        let progressing = condition(self.status, PROGRESSING);
        let reason = progressing.and_then(|condition| condition.reason.as_deref());
        if reason == Some(TIMED_OUT) {
            return self.give_up(new, target, self.standing_still(TIMED_OUT), decision);
        }
        let is_held = reason == Some(CANARY_STEP);
        let Some(stall) = self.policy.stall.filter(|_| !is_held) else {
            return;
        };
        let since = progressing.and_then(|condition| condition.last_update_time.as_ref());
        let Some(since) = since.or(new.metadata.creation_timestamp.as_ref()) else {
            return;
        };
        match left(since.0, stall, self.now) {
            Some(left) => decision.wake = Some(decision.wake.map_or(left, |wake| wake.min(left))),
            None => self.give_up(new, target, self.standing_still("NoProgress"), decision),
        }
    }

    /// Why a revision makes no progress, as far as anybody says.
    fn standing_still(&self, reason: &str) -> Fault {
        laggard(reason, self.pods).unwrap_or_else(|| {
            let refused = condition(self.status, REPLICA_FAILURE);
            let words = refused.and_then(|condition| condition.message.as_deref());
            Fault {
                reason: reason.to_owned(),
                message: words.map_or_else(|| "it has made no progress".to_owned(), shown),
                asks: None,
            }
        })
    }

    fn give_up(
        &self,
        new: &ReplicaSet,
        target: &ReplicaSet,
        mut fault: Fault,
        decision: &mut Decision,
    ) {
        let current = hash_of(new).unwrap_or(self.hash);
        let Some(back) = hash_of(target) else {
            return;
        };
        fault.message = format!(
            "Revision {} failed and was taken back to revision {}: {}",
            revision_of(&new.metadata),
            revision_of(&target.metadata),
            fault.message
        );
        decision.notes = vec![
            (HEALTHY, Some(back.to_owned())),
            (WARM, None),
            (FAILED, Some(current.to_owned())),
        ];
        decision.is_over = false;
        decision.wake = None;
        decision.given_up = Some(fault);
    }
}

/// The hash that a set's template has been given.
pub(crate) fn hash_of(set: &ReplicaSet) -> Option<&str> {
    let labels = set.metadata.labels.as_ref()?;
    labels.get(TEMPLATE_HASH).map(String::as_str)
}

/// The Deployment with a set's template, and that revision's cause of change.
fn restored(deployment: &Deployment, target: &ReplicaSet) -> Option<Deployment> {
    let mut changed = deployment.clone();
    let template = template_of(target)?;
    let spec = changed.spec.as_mut()?;
    if same_template(&spec.template, &template) {
        return None;
    }
    spec.template = template;
    let annotations = changed.metadata.annotations.get_or_insert_default();
    match text(&target.metadata, CHANGE_CAUSE) {
        Some(cause) => annotations.insert(CHANGE_CAUSE.to_owned(), cause.to_owned()),
        None => annotations.remove(CHANGE_CAUSE),
    };
    Some(changed)
}
