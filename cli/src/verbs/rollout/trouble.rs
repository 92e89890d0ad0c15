//! What keeps a pod from serving, as its status tells. Texts are strangers', and made harmless here.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;

use crate::output::one_line;

/// A pod that is not ready is not in trouble for so long: it has just begun.
const STARTING: Duration = Duration::from_secs(5);
const CRASHING: &str = "CrashLoopBackOff";
/// Reasons for waiting that every container has for a while.
const USUAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// Reasons for waiting that are about an image.
const OF_IMAGES: [&str; 6] = [
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
];

/// What sort of trouble it is, which says what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sort {
    /// It has no node.
    Unscheduled,
    /// There is no such image, or it may not be had.
    Image,
    /// A container cannot be made, such as for a ConfigMap that is missing.
    Creation,
    /// A container ends, over and over.
    Crash,
    /// The pod has failed as a whole.
    Failed,
    /// It runs, and its probes say that it is not ready.
    Unready,
    /// It takes long to begin.
    Slow,
}

/// Why a pod does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) sort: Sort,
    /// The container's name, where it is about one.
    pub(crate) container: Option<String>,
    /// One word, Kubernetes' where it has one.
    pub(crate) reason: String,
    /// What is known beyond the reason; may be empty.
    pub(crate) message: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)?;
        match self.message.is_empty() {
            true => Ok(()),
            false => write!(formatter, ": {}", self.message),
        }
    }
}

impl Trouble {
    fn new(sort: Sort, reason: &str, message: &str) -> Self {
        Self {
            sort,
            container: None,
            reason: one_line(reason),
            message: one_line(message),
        }
    }

    fn of(self, container: &ContainerStatus) -> Self {
        Self {
            container: Some(one_line(&container.name)),
            ..self
        }
    }
}

/// What keeps the pod from serving. A pod on its way out is in no trouble, nor is one that has only just begun.
pub(crate) fn trouble(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if status.phase.as_deref() == Some("Failed") {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        let message = status.message.as_deref().unwrap_or_default();
        return Some(Trouble::new(Sort::Failed, reason, message));
    }
    if let Some(unscheduled) =
        condition(pod, "PodScheduled").filter(|known| known.status == "False")
    {
        let reason = unscheduled.reason.as_deref().unwrap_or("Unschedulable");
        let message = unscheduled.message.as_deref().unwrap_or_default();
        return Some(Trouble::new(Sort::Unscheduled, reason, message));
    }
    let first = status.init_container_statuses.iter().flatten();
    let mut containers = first.chain(status.container_statuses.iter().flatten());
    containers
        .clone()
        .find_map(of_container)
        .or_else(|| late(pod, &mut containers, now))
}

/// A container that cannot be started, or does not go on.
fn of_container(container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    if let Some(ended) = state
        .terminated
        .as_ref()
        .filter(|ended| ended.exit_code != 0)
    {
        let reason = ended.reason.as_deref().unwrap_or("Error");
        return Some(Trouble::new(Sort::Crash, reason, &last_words(ended)).of(container));
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let message = waiting.message.as_deref().unwrap_or_default();
    let trouble = match reason {
        _ if USUAL.contains(&reason) => return None,
        CRASHING => {
            let last = container.last_state.as_ref();
            let last = last.and_then(|last| last.terminated.as_ref());
            let words = [Some(message.to_owned()), last.map(last_words)];
            let words: Vec<String> = words
                .into_iter()
                .flatten()
                .filter(|one| !one.is_empty())
                .collect();
            Trouble::new(Sort::Crash, reason, &words.join("; "))
        }
        _ if OF_IMAGES.contains(&reason) => Trouble::new(Sort::Image, reason, message),
        _ => Trouble::new(Sort::Creation, reason, message),
    };
    Some(trouble.of(container))
}

fn last_words(ended: &ContainerStateTerminated) -> String {
    let message = ended.message.as_deref().unwrap_or_default().trim();
    match message.is_empty() {
        true => format!("last ended with exit code {}", ended.exit_code),
        false => format!("last ended with exit code {}: {message}", ended.exit_code),
    }
}

/// A pod that should be ready by now.
fn late<'a>(
    pod: &Pod,
    containers: &mut impl Iterator<Item = &'a ContainerStatus>,
    now: Timestamp,
) -> Option<Trouble> {
    let ready = condition(pod, "Ready");
    if ready.is_some_and(|ready| ready.status == "True") {
        return None;
    }
    let since = ready.and_then(|ready| ready.last_transition_time.as_ref());
    let since = since.or(pod.metadata.creation_timestamp.as_ref())?;
    if Duration::try_from(now.duration_since(since.0)).unwrap_or_default() < STARTING {
        return None;
    }
    let waiting = containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(Trouble::new(Sort::Slow, reason, message).of(container))
    });
    waiting.or_else(|| {
        let reason = ready.and_then(|ready| ready.reason.as_deref());
        let message = ready.and_then(|ready| ready.message.as_deref());
        let (reason, message) = (reason.unwrap_or("NotReady"), message.unwrap_or_default());
        let sort = match pod.status.as_ref()?.phase.as_deref() {
            Some("Running") => Sort::Unready,
            _ => Sort::Slow,
        };
        Some(Trouble::new(sort, reason, message))
    })
}

/// The pod's condition of that type.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|known| known.type_ == type_)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().expect("a time")
    }

    fn of(status: Value) -> Option<Trouble> {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status});
        trouble(&serde_json::from_value(pod).expect("a pod"), now())
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
            "lastState": {"terminated": {"exitCode": 2, "message": "no\u{1b}[2J\nmore"}},
        }]})
    }

    #[test]
    fn what_is_wrong_is_told_by_sort_reason_and_message() {
        let unready = |status: &str, since: &str| {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since,
                "reason": "ContainersNotReady", "message": "containers with unready status: [c]"}]})
        };
        let unscheduled = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
        let ended = json!({"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]});
        let earlier = "2026-01-01T00:00:30Z";
        for (status, sort, shown) in [
            (
                unscheduled,
                Sort::Unscheduled,
                "Unschedulable: 0/2 nodes are available",
            ),
            (
                waiting("ImagePullBackOff", "back-off"),
                Sort::Image,
                "ImagePullBackOff: back-off",
            ),
            (
                waiting("CreateContainerConfigError", ""),
                Sort::Creation,
                "CreateContainerConfigError",
            ),
            (
                waiting("CrashLoopBackOff", "back-off 10s"),
                Sort::Crash,
                "CrashLoopBackOff: back-off 10s; last ended with exit code 2: no^[[2J more",
            ),
            (
                waiting("ContainerCreating", ""),
                Sort::Slow,
                "ContainerCreating",
            ),
            (ended, Sort::Crash, "Error: last ended with exit code 1"),
            (
                unready("False", earlier),
                Sort::Unready,
                "ContainersNotReady: containers with unready status: [c]",
            ),
            (json!({"phase": "Pending"}), Sort::Slow, "NotReady"),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}),
                Sort::Failed,
                "Evicted: disk",
            ),
        ] {
            let found = of(status).expect(shown);
            assert_eq!((found.sort, found.to_string().as_str()), (sort, shown));
        }
        assert_eq!(of(unready("True", earlier)), None);
        assert_eq!(
            of(unready("False", "2026-01-01T00:00:58Z")),
            None,
            "it has just begun"
        );
    }

    #[test]
    fn who_leaves_is_in_no_trouble() {
        let pod = json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:59Z"},
            "status": waiting("ImagePullBackOff", ""),
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        assert_eq!(trouble(&pod, now()), None);
    }
}
