//! The status of a deployment: counts and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use gantry_informer::clock::seconds;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;

use super::sizing::{available, max_unavailable, sum, total, wanted};
use crate::replica_set::nonzero;

pub(crate) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(crate) const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub(crate) const FOUND_NEW_SET: &str = "FoundNewReplicaSet";
pub(crate) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const SET_UPDATED: &str = "ReplicaSetUpdated";
pub(crate) const FAILED_CREATE: &str = "ReplicaSetCreateError";
/// A step of a canary rollout holds as it should. Gantry's own.
pub(crate) const CANARY_STEP: &str = "CanaryStep";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// The current template is that of an earlier revision, since a later one failed. Gantry's own.
pub(crate) const ROLLED_BACK: &str = "RolledBack";
/// An annotation is malformed. Gantry's own.
const INVALID_ANNOTATIONS: &str = "InvalidAnnotations";
pub(crate) const INVALID_ANNOTATION: &str = "InvalidAnnotation";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// A deadline of `i32::MAX` seconds means none.
pub(crate) fn deadline(deployment: &Deployment) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let seconds = spec.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| Duration::from_secs(u64::from(seconds.max(0).unsigned_abs())))
}

/// The condition of that type.
pub(crate) fn condition<'a>(
    status: &'a DeploymentStatus,
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

/// A condition that begins now.
pub(crate) fn new_condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(seconds(now)),
        last_transition_time: Some(seconds(now)),
    }
}

/// Puts the condition at the end, unless status and reason are unchanged. A status that stays keeps its time.
pub(crate) fn set_condition(status: &mut DeploymentStatus, new: DeploymentCondition) {
    if let Some(current) = condition(status, &new.type_)
        && current.status == new.status
        && current.reason == new.reason
    {
        return;
    }
    renew_condition(status, new);
}

/// Puts the condition at the end, whatever it says. A status that stays keeps its time.
fn renew_condition(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(current) = condition(status, &new.type_).filter(|old| old.status == new.status) {
        new.last_transition_time
            .clone_from(&current.last_transition_time);
    }
    remove_condition(status, &new.type_.clone());
    status.conditions.get_or_insert_default().push(new);
}

pub(crate) fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Whether a revision was taken back, and no other has been wanted since. Until then the progress of the rollout is what it
/// was when it failed, so that whoever waits for the rollout learns of its end.
pub(crate) fn is_rolled_back(status: &DeploymentStatus) -> bool {
    condition(status, ROLLED_BACK).is_some_and(|condition| condition.status == "True")
}

/// Notes that a revision is taken back.
pub(crate) fn note_rollback(
    status: &mut DeploymentStatus,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    for (type_, value, reason) in [
        (ROLLED_BACK, "True", reason),
        (PROGRESSING, "False", TIMED_OUT),
    ] {
        let new = new_condition(type_, value, reason, message.to_owned(), now);
        remove_condition(status, type_);
        status.conditions.get_or_insert_default().push(new);
    }
}

/// Forgets a rollback: the next rollout begins anew.
pub(crate) fn forget_rollback(status: &mut DeploymentStatus) {
    if is_rolled_back(status) {
        remove_condition(status, ROLLED_BACK);
        remove_condition(status, PROGRESSING);
    }
}

/// Notes which annotations are malformed; whether that is news.
pub(crate) fn note_faults(
    status: &mut DeploymentStatus,
    faults: &[String],
    now: Timestamp,
) -> bool {
    if faults.is_empty() {
        remove_condition(status, INVALID_ANNOTATIONS);
        return false;
    }
    let message = faults.join("; ");
    let known = condition(status, INVALID_ANNOTATIONS);
    if known.is_some_and(|known| known.message.as_ref() == Some(&message)) {
        return false;
    }
    remove_condition(status, INVALID_ANNOTATIONS);
    let new = new_condition(
        INVALID_ANNOTATIONS,
        "True",
        INVALID_ANNOTATION,
        message,
        now,
    );
    status.conditions.get_or_insert_default().push(new);
    true
}

/// Notes that a deployment was paused or resumed, so that a pause does not count against the deadline.
pub(crate) fn note_pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    if reason == Some(TIMED_OUT) {
        return;
    }
    let was_paused = reason == Some(PAUSED);
    let is_paused = is_paused(deployment);
    let condition = match (is_paused, was_paused) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return,
    };
    let (reason, message) = condition;
    set_condition(
        status,
        new_condition(PROGRESSING, "Unknown", reason, message.to_owned(), now),
    );
}

/// `spec.paused`.
pub(crate) fn is_paused(deployment: &Deployment) -> bool {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.paused).unwrap_or(false)
}

/// Counts what the sets report, and whether that is enough. Everything else is taken over from `status`.
pub(crate) fn counted(
    deployment: &Deployment,
    status: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    fn reported(set: &ReplicaSet) -> i32 {
        set.status.as_ref().map_or(0, |status| status.replicas)
    }
    // A set that nobody has looked at yet has no pods; one whose pods on their way out somebody does not count leaves their
    // number open.
    fn terminating(set: &ReplicaSet) -> Option<i32> {
        let Some(status) = &set.status else {
            return Some(0);
        };
        let seen = status.observed_generation.unwrap_or(0) > 0;
        status.terminating_replicas.or((!seen).then_some(0))
    }
    let ready = |set: &&ReplicaSet| {
        let status = set.status.as_ref();
        status.and_then(|status| status.ready_replicas).unwrap_or(0)
    };
    let available = sum(all.iter().map(|set| available(set)));
    let mut counted = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(all.iter().map(|set| reported(set)))),
        updated_replicas: nonzero(new.map_or(0, reported)),
        ready_replicas: nonzero(sum(all.iter().map(ready))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero(total(all.iter().copied()).saturating_sub(available).max(0)),
        terminating_replicas: all
            .iter()
            .map(|set| terminating(set))
            .collect::<Option<Vec<_>>>()
            .map(sum),
        collision_count: status.collision_count,
        conditions: status.conditions.clone(),
    };
    let enough = available >= wanted(deployment).saturating_sub(max_unavailable(deployment));
    let condition = if enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    let (value, reason, message) = condition;
    set_condition(
        &mut counted,
        new_condition(AVAILABLE, value, reason, message.to_owned(), now),
    );
    counted
}

/// Whether every wanted pod is of the current template and available, and no other is left.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = wanted(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old_pods = |status: &DeploymentStatus| {
        let updated = status.updated_replicas.unwrap_or(0);
        status.replicas.unwrap_or(0).saturating_sub(updated)
    };
    after.updated_replicas > before.updated_replicas
        || old_pods(after) < old_pods(before)
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

/// The status during a rollout: [`counted`], and how the rollout goes; with what a step waits for that holds as it should, and
/// for which the rollout therefore stands still.
pub(crate) fn of_rollout(
    deployment: &Deployment,
    before: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    holds: Option<&str>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counted(deployment, before, new, all, now);
    let current = condition(before, PROGRESSING).cloned();
    if is_rolled_back(before) {
        // It stays as it was when the revision failed.
    } else if let Some(words) = holds {
        let same = current.is_some_and(|current| {
            current.reason.as_deref() == Some(CANARY_STEP)
                && current.message.as_deref() == Some(words)
        });
        if !same {
            let words = words.to_owned();
            let condition = new_condition(PROGRESSING, "True", CANARY_STEP, words, now);
            renew_condition(&mut status, condition);
        }
    } else if deadline(deployment).is_none() {
        remove_condition(&mut status, PROGRESSING);
    } else if !(status.replicas == status.updated_replicas
        && current
            .as_ref()
            .is_some_and(|current| current.reason.as_deref() == Some(NEW_SET_AVAILABLE)))
    {
        progress(deployment, before, &mut status, new, current, now);
    }
    match replica_failure(new, all) {
        Some(failure) => set_condition(&mut status, failure),
        None => remove_condition(&mut status, REPLICA_FAILURE),
    }
    status
}

fn progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    current: Option<DeploymentCondition>,
    now: Timestamp,
) {
    let subject = match new {
        Some(set) => format!(
            "ReplicaSet {:?}",
            set.metadata.name.as_deref().unwrap_or_default()
        ),
        None => format!(
            "Deployment {:?}",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    // What comes after a step has all of the deadline.
    let stood = current.is_some_and(|current| current.reason.as_deref() == Some(CANARY_STEP));
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(
            status,
            new_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now),
        );
    } else if has_progressed(before, status) || stood {
        let message = format!("{subject} is progressing.");
        let condition = new_condition(PROGRESSING, "True", SET_UPDATED, message, now);
        renew_condition(status, condition);
    } else if is_overdue(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(
            status,
            new_condition(PROGRESSING, "False", TIMED_OUT, message, now),
        );
    }
}

/// How long the rollout may still take without progress; none when nothing is awaited.
fn time_left(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Option<Duration>> {
    let deadline = deadline(deployment)?;
    let condition = condition(status, PROGRESSING)?;
    if matches!(
        condition.reason.as_deref(),
        Some(NEW_SET_AVAILABLE | PAUSED | CANARY_STEP)
    ) {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    Some(left(since, deadline, now))
}

/// What is left of a time that began then; none when it is over.
pub(crate) fn left(since: Timestamp, of: Duration, now: Timestamp) -> Option<Duration> {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    of.checked_sub(passed).filter(|left| !left.is_zero())
}

fn is_overdue(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    reason == Some(TIMED_OUT) || time_left(deployment, status, now) == Some(None)
}

/// When to look again whether the deadline has passed.
pub(crate) fn wake(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    if is_complete(deployment, status) || reason == Some(TIMED_OUT) || is_paused(deployment) {
        return None;
    }
    let left = time_left(deployment, status, now)?;
    // One that passed in this very pass is looked at once more, and not at once: something else keeps it from being told.
    Some(left.unwrap_or(Duration::from_secs(1)))
}

fn replica_failure(new: Option<&ReplicaSet>, all: &[&ReplicaSet]) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let condition = conditions
            .iter()
            .find(|condition| condition.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_update_time: condition.last_transition_time.clone(),
            last_transition_time: condition.last_transition_time.clone(),
        })
    };
    new.and_then(failure)
        .or_else(|| all.iter().find_map(|set| failure(set)))
}
