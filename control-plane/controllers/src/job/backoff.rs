//! How long a job waits, after pods have failed, until it makes new ones.

use std::time::Duration;

use gantry_informer::queue::Backoff;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(10),
    longest: Duration::from_secs(600),
};

/// When a pod ended, as far as can be told.
pub(crate) fn ended_at(pod: &Pod) -> Timestamp {
    let metadata = &pod.metadata;
    let deleted = metadata.deletion_timestamp.as_ref().map(|time| {
        let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
        let grace = SignedDuration::from_secs(grace);
        time.0.checked_sub(grace).unwrap_or(time.0)
    });
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    containers_ended(pod)
        .or_else(|| unready_since(pod))
        .or(deleted)
        .or(created)
        .unwrap_or(Timestamp::MIN)
}

/// When the last of its containers ended, once all have.
fn containers_ended(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends = containers.iter().map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        ended.finished_at.as_ref().map(|time| time.0)
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready")?;
    let since = ready.last_transition_time.as_ref();
    since.filter(|_| ready.status == "False").map(|time| time.0)
}

/// How many pods have failed since one succeeded, and when the last of them did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) count: u32,
    pub(crate) last: Option<Timestamp>,
}

impl Failures {
    /// With what has ended since: when pods succeeded, and when others failed.
    pub(crate) fn and(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        let success = succeeded.iter().max();
        let before = if success.is_some() {
            Self::default()
        } else {
            self
        };
        let since = failed
            .iter()
            .filter(|time| success.is_none_or(|success| *time > success));
        since.fold(before, |all, time| Self {
            count: all.count.saturating_add(1),
            last: all.last.max(Some(*time)),
        })
    }

    /// How long it is until the next pods may be made, if not now.
    pub(crate) fn left(self, now: Timestamp) -> Option<Duration> {
        let last = self.last.filter(|_| self.count > 0)?;
        let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
        let left = BACKOFF.after(self.count).checked_sub(passed)?;
        Some(left).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn waits_double_from_failure_to_failure_and_end_with_a_success() {
        let mut failures = Failures::default();
        assert_eq!(failures.left(at(0)), None);
        for (second, left) in [(0, 10), (100, 20), (200, 40), (300, 80)] {
            failures = failures.and(&[], &[at(second)]);
            assert_eq!(failures.left(at(second)), Some(Duration::from_secs(left)));
            assert_eq!(
                failures.left(at(second + 3)),
                Some(Duration::from_secs(left - 3))
            );
        }
        assert_eq!(failures.left(at(380)), None);
        let many = failures.and(&[], &[at(400); 200]);
        assert_eq!(many.left(at(400)), Some(Duration::from_secs(600)));
        let since = many.and(&[at(450), at(430)], &[at(440), at(460)]);
        assert_eq!(
            since,
            Failures {
                count: 1,
                last: Some(at(460))
            }
        );
        assert_eq!(many.and(&[at(450)], &[at(450)]), Failures::default());
    }

    #[test]
    fn the_end_of_a_pod_is_told_by_the_best_that_is_known() {
        let pod = |metadata: Value, status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": metadata, "status": status})).expect("a pod")
        };
        let metadata = json!({"creationTimestamp": "1970-01-01T00:00:05Z"});
        let deleted = json!({"creationTimestamp": "1970-01-01T00:00:05Z",
            "deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30});
        let container = |state: Value| json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let ended = |second: &str| {
            let time = format!("1970-01-01T00:00:{second}Z");
            container(json!({"terminated": {"exitCode": 1, "finishedAt": time}}))
        };
        let unready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:20Z"}]);
        for (metadata, status, expected) in [
            (
                &metadata,
                json!({"containerStatuses": [ended("11"), ended("12")], "conditions": unready}),
                12,
            ),
            (
                &metadata,
                json!({"containerStatuses": [ended("11"), container(json!({}))], "conditions": unready}),
                20,
            ),
            (&deleted, json!({}), 30),
            (&metadata, json!({}), 5),
        ] {
            assert_eq!(
                ended_at(&pod(metadata.clone(), status.clone())),
                at(expected),
                "{status}"
            );
        }
    }
}
