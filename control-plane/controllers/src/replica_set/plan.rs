//! The pure part: how many pods to create or which to delete, and what the status says.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::selector::LabelSelector;
use gantry_informer::clock::seconds;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::{Replicas, rank};
use crate::pod_control::{BURST, Failure};
use crate::pods::{Availability, availability, from_template, is_ready};

/// How to come to the wanted number of pods.
#[derive(Debug)]
pub(crate) enum Change {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares what is wanted with the active pods.
pub(crate) fn change<K: Replicas>(
    set: &K,
    active: &[Arc<Pod>],
    related: &[Arc<Pod>],
    now: Timestamp,
) -> Change {
    if set.meta().deletion_timestamp.is_some() {
        return Change::Nothing;
    }
    let wanted = wanted(set);
    match active.len() {
        have if have < wanted => Change::Create((wanted - have).min(BURST)),
        have if have > wanted => Change::Delete(rank::victims(
            active,
            related,
            (have - wanted).min(BURST),
            now,
        )),
        _ => Change::Nothing,
    }
}

/// How many pods there are to be.
fn wanted<K: Replicas>(set: &K) -> usize {
    usize::try_from(set.replicas().unwrap_or(1)).unwrap_or(0)
}

/// A pod from the set's template.
pub(crate) fn pod_of<K: Replicas>(set: &K) -> Pod {
    from_template(set, set.template().cloned().unwrap_or_default())
}

/// The status, and after what time a ready pod becomes available without any event telling so.
pub(crate) fn status<K: Replicas>(
    set: &K,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let template_labels = set
        .template()
        .and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let fully_labelled = template_labels.map(LabelSelector::from_map);
    let fully_labelled = fully_labelled.unwrap_or_default();
    let min_ready_seconds = set.min_ready_seconds().unwrap_or(0);
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    let mut wake: Option<Duration> = None;
    for pod in active {
        labelled += i32::from(fully_labelled.matches_map(pod.metadata.labels.as_ref()));
        ready += i32::from(is_ready(pod));
        match availability(pod, min_ready_seconds, now) {
            Availability::Available => available += 1,
            Availability::In(left) => wake = Some(wake.map_or(left, |wake| wake.min(left))),
            Availability::No => {}
        }
    }
    let old = set.status().unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: nonzero(labelled),
        ready_replicas: nonzero(ready),
        available_replicas: nonzero(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.meta().generation,
        conditions: conditions(old.conditions, failure, now),
    };
    (status, wake)
}

/// Kubernetes leaves zero counts out.
pub(crate) fn nonzero(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, known) {
        (Some(failure), None) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(seconds(now)),
        }),
        (None, Some(at)) => {
            conditions.remove(at);
        }
        // The first failure stays until it is over: its message names a pod, and would change at each attempt.
        (Some(_), Some(_)) | (None, None) => {}
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
    use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerSpec};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_failure_is_told_once_and_withdrawn_when_over() {
        let now = Timestamp::UNIX_EPOCH;
        let failure = |message: &str| Failure {
            reason: "FailedCreate",
            message: message.to_owned(),
        };
        let first = conditions(None, Some(&failure("a")), now);
        let second = conditions(first.clone(), Some(&failure("b")), now);
        assert_eq!(first, second);
        assert_eq!(
            first.as_ref().and_then(|all| all[0].message.as_deref()),
            Some("a")
        );
        assert_eq!(conditions(second, None, now), None);
    }

    fn passes<K: Replicas>(set: &K, from: usize, target: usize) -> Result<(), TestCaseError> {
        let pod = Arc::new(pod_of(set));
        let mut pods = vec![pod.clone(); from];
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..3 {
            match change(set, &pods, &[], now) {
                Change::Nothing => {}
                Change::Create(count) => {
                    prop_assert!(count <= BURST && pods.len() + count <= target);
                    pods.extend(vec![pod.clone(); count]);
                }
                Change::Delete(victims) => {
                    prop_assert!(victims.len() <= BURST && pods.len() - victims.len() >= target);
                    pods.truncate(pods.len() - victims.len());
                }
            }
        }
        prop_assert_eq!(pods.len(), target);
        prop_assert!(matches!(change(set, &pods, &[], now), Change::Nothing));
        Ok(())
    }

    proptest! {
        /// Pass by pass there are as many pods as are wanted, never more at once than a burst; then nothing is done.
        #[test]
        fn passes_come_to_the_wanted_number_and_rest(from in 0..1200usize, wanted in 0..1200i32) {
            let target = usize::try_from(wanted).unwrap_or(0);
            let spec = ReplicaSetSpec {
                replicas: Some(wanted),
                ..ReplicaSetSpec::default()
            };
            let set = ReplicaSet {
                spec: Some(spec),
                ..ReplicaSet::default()
            };
            passes(&set, from, target)?;
            let spec = ReplicationControllerSpec {
                replicas: Some(wanted),
                ..ReplicationControllerSpec::default()
            };
            let controller = ReplicationController {
                spec: Some(spec),
                ..ReplicationController::default()
            };
            passes(&controller, from, target)?;
        }
    }
}
