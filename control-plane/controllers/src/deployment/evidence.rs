//! What the pods of a revision show of it: that it works, that it does not, or that nothing can be said yet.
//!
//! What a pod's status says comes from a node and, where it repeats a container's last words, from the container: of every
//! text only the beginning is taken.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;

use super::policy::{FAILURES, Policy};
use crate::pods::{is_finished, is_ready, phase};

/// A container may fail to start for so long: an image that a registry does not give at once, a ConfigMap that is created a
/// moment after what needs it.
const START: Duration = Duration::from_secs(5);
/// A pod may find no node for so long: those before it may be on their way out.
const SCHEDULE: Duration = Duration::from_secs(10);
/// So much is taken of a text of somebody else's, in characters.
const SHOWN: usize = 400;

/// Reasons for waiting that no time mends.
const AT_ONCE: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Reasons for waiting that time may mend.
const AFTER_A_WHILE: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "CreatePodSandboxError",
    "RunContainerError",
];
const CRASHING: &str = "CrashLoopBackOff";
/// Why a pod ended that would have gone on elsewhere: the node's doing, not the template's.
const OF_THE_NODE: [&str; 7] = [
    "Evicted",
    "NodeLost",
    "NodeShutdown",
    "Preempting",
    "Shutdown",
    "Terminated",
    "Unknown",
];

/// Why a revision is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// A reason as conditions have them.
    pub(crate) reason: String,
    /// Names pod and container, and says what is known.
    pub(crate) message: String,
    /// The uid of the pod whose probe may have answered something.
    pub(crate) asks: Option<String>,
}

/// What is to be made of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong that time alone would make worse.
    Open,
    /// Something is wrong, and too much once this time has passed.
    Until(Duration),
    /// The revision does not work.
    Failed(Fault),
}

/// Whether a pod's state may be evidence against its revision.
pub(crate) fn is_troubled(pod: &Pod) -> bool {
    let is_bad = |status: &ContainerStatus| {
        status.restart_count > 0 || failures(status) > 0 || waits(status).is_some()
    };
    phase(pod) == "Failed" || unschedulable(pod).is_some() || containers(pod).any(is_bad)
}

/// When a container of the pod that had run before was last started.
pub(crate) fn started_anew(pod: &Pod) -> Option<Timestamp> {
    let again = containers(pod).filter(|status| status.restart_count > 0);
    let running = again.filter_map(|status| status.state.as_ref()?.running.as_ref());
    let times = running.filter_map(|running| running.started_at.as_ref());
    times.map(|time| time.0).max()
}

/// Judges the pods of one revision.
pub(crate) fn judge(policy: &Policy, pods: &[Arc<Pod>], now: Timestamp) -> Verdict {
    let mut pods: Vec<&Pod> = pods
        .iter()
        .map(|pod| &**pod)
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    pods.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    let mut soonest: Option<Duration> = None;
    for pod in &pods {
        for (fault, patience, since) in troubles(policy, pod) {
            let passed = since
                .map(|since| Duration::try_from(now.duration_since(since)).unwrap_or_default());
            match patience.checked_sub(passed.unwrap_or_default()) {
                Some(left) if !left.is_zero() => {
                    soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
                }
                _ => return Verdict::Failed(fault),
            }
        }
    }
    match too_many(policy, &pods) {
        Some(fault) => Verdict::Failed(fault),
        None => soonest.map_or(Verdict::Open, Verdict::Until),
    }
}

/// The pod that is not ready for the longest, and what it says of itself: for a revision that makes no progress.
pub(crate) fn laggard(reason: &str, pods: &[Arc<Pod>]) -> Option<Fault> {
    let waiting = pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none() && !is_finished(pod) && !is_ready(pod)
    });
    let pod = waiting.min_by_key(|pod| {
        (
            pod.metadata.creation_timestamp.clone(),
            pod.metadata.name.clone(),
        )
    })?;
    let unready = containers(pod).find(|status| !status.ready);
    let container = unready.map(|status| format!(", container {}", status.name));
    let state = unready
        .and_then(|status| waits(status).or_else(|| last_words(status)))
        .or_else(|| said(condition(pod, "Ready").or_else(|| condition(pod, "PodScheduled"))))
        .unwrap_or_else(|| "is not ready".to_owned());
    Some(Fault {
        reason: reason.to_owned(),
        message: format!(
            "pod {}{}: {state}",
            name(pod),
            container.unwrap_or_default()
        ),
        asks: pod.metadata.uid.clone(),
    })
}

/// The beginning of a text, in one line.
pub(crate) fn shown(text: &str) -> String {
    let line = text
        .trim()
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    line.take(SHOWN).collect()
}

/// What keeps a pod from running, how long it may, and since when it does.
fn troubles(policy: &Policy, pod: &Pod) -> Vec<(Fault, Duration, Option<Timestamp>)> {
    let of_pod = |reason: &str, message: String| Fault {
        reason: reason.to_owned(),
        message,
        asks: None,
    };
    let mut found = Vec::new();
    if let Some(scheduled) = unschedulable(pod) {
        let words = said(Some(scheduled)).unwrap_or_default();
        let fault = of_pod("Unschedulable", format!("pod {}: {words}", name(pod)));
        let since = scheduled.last_transition_time.as_ref();
        found.push((fault, SCHEDULE, since.map(|since| since.0)));
    }
    for status in containers(pod) {
        let waiting = status
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        let Some(reason) = reason else {
            continue;
        };
        let is_looping = reason == CRASHING && policy.failures.is_none();
        let patience = if is_looping || AT_ONCE.contains(&reason) {
            Duration::ZERO
        } else if AFTER_A_WHILE.contains(&reason) {
            START
        } else {
            continue;
        };
        let mut words = waits(status).unwrap_or_default();
        if let Some(last) = last_words(status).filter(|_| reason == CRASHING) {
            words = format!("{words}; {last}");
        }
        let message = format!("pod {}, container {}: {words}", name(pod), status.name);
        let bound = condition(pod, "PodScheduled")
            .and_then(|scheduled| scheduled.last_transition_time.as_ref());
        let since = bound.or(pod.metadata.creation_timestamp.as_ref());
        found.push((
            of_pod(reason, message),
            patience,
            since.map(|since| since.0),
        ));
    }
    found
}

/// Whether the containers of all pods together have failed too often.
fn too_many(policy: &Policy, pods: &[&Pod]) -> Option<Fault> {
    let limit = policy.failures.unwrap_or(FAILURES);
    let mut total = 0_u32;
    let mut worst: Option<(u32, String)> = None;
    let mut count = |failed: u32, words: &dyn Fn() -> String| {
        total = total.saturating_add(failed);
        if failed > worst.as_ref().map_or(0, |(most, _)| *most) {
            worst = Some((failed, words()));
        }
    };
    for pod in pods {
        if let Some(refused) = refused(pod) {
            count(1, &|| format!("pod {}: {refused}", name(pod)));
        }
        // What ended with its pod was the node's doing.
        for status in containers(pod).filter(|_| !is_finished(pod)) {
            count(failures(status), &|| {
                let last = last_words(status).unwrap_or_else(|| "it was started anew".to_owned());
                format!("pod {}, container {}: {last}", name(pod), status.name)
            });
        }
    }
    let (_, words) = worst.filter(|_| total >= limit)?;
    Some(Fault {
        reason: "ContainerFailures".to_owned(),
        message: format!("{words} ({total} failures of its containers)"),
        asks: None,
    })
}

/// What a node says that does not run such a pod at all.
fn refused(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref().filter(|_| phase(pod) == "Failed")?;
    let reason = status
        .reason
        .as_deref()
        .filter(|reason| !OF_THE_NODE.contains(reason))?;
    let began = status
        .container_statuses
        .as_ref()
        .is_some_and(|all| !all.is_empty());
    let message = status.message.as_deref().unwrap_or_default();
    (!began).then(|| format!("{}: {}", shown(reason), shown(message)))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        let first = status.init_container_statuses.iter().flatten();
        first.chain(status.container_statuses.iter().flatten())
    })
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn unschedulable(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "PodScheduled").filter(|scheduled| {
        scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")
    })
}

fn said(condition: Option<&PodCondition>) -> Option<String> {
    let message = condition?
        .message
        .as_deref()
        .filter(|message| !message.is_empty())?;
    Some(shown(message))
}

/// How often a container has failed: each new start follows a failure, and the last one may not have been followed yet. Where
/// the last end is known to have been a success, starts follow successes.
fn failures(status: &ContainerStatus) -> u32 {
    let state = status.state.as_ref();
    let ended = state.and_then(|state| state.terminated.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref());
    let pending = ended.is_some_and(|ended| ended.exit_code != 0) || waiting == Some(CRASHING);
    let last = status.last_state.as_ref();
    let last = last.and_then(|last| last.terminated.as_ref());
    let succeeds = last.is_some_and(|last| last.exit_code == 0) && !pending;
    match succeeds {
        true => 0,
        false => u32::try_from(status.restart_count)
            .unwrap_or(0)
            .saturating_add(u32::from(pending)),
    }
}

/// What a container waits for, where that is no good sign.
fn waits(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if reason != CRASHING && !AT_ONCE.contains(&reason) && !AFTER_A_WHILE.contains(&reason) {
        return None;
    }
    Some(match waiting.message.as_deref() {
        Some(message) if !message.is_empty() => format!("{reason}: {}", shown(message)),
        _ => reason.to_owned(),
    })
}

/// How a container ended last.
fn last_words(status: &ContainerStatus) -> Option<String> {
    let states = [status.state.as_ref(), status.last_state.as_ref()];
    let ended = states
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())?;
    let mut words = format!("last ended with exit code {}", ended.exit_code);
    if let Some(reason) = ended.reason.as_deref().filter(|reason| !reason.is_empty()) {
        words = format!("{words} ({})", shown(reason));
    }
    if let Some(message) = ended
        .message
        .as_deref()
        .filter(|message| !message.is_empty())
    {
        words = format!("{words}: {}", shown(message));
    }
    Some(words)
}
