//! What a set's status says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::identity::revision_of;
use super::plan::{is_healthy, is_rolling};
use crate::pods::{Availability, availability, phase};
use crate::replica_set::nonzero;

/// Names of the revisions that a set is of and becomes, and how many names were taken when they were made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Revisions<'a> {
    pub(crate) current: &'a str,
    pub(crate) update: &'a str,
    pub(crate) collisions: i32,
}

/// The status, and after what time a ready pod becomes available without any event telling so.
pub(crate) fn status(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    revisions: Revisions<'_>,
    now: Timestamp,
) -> (StatefulSetStatus, Option<Duration>) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let (mut replicas, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    let mut wake: Option<Duration> = None;
    for pod in pods {
        let is_created = !phase(pod).is_empty();
        replicas += i32::from(is_created);
        if is_healthy(pod) {
            ready += 1;
            match availability(pod, min_ready, now) {
                Availability::Available => available += 1,
                Availability::In(left) => wake = Some(wake.map_or(left, |wake| wake.min(left))),
                Availability::No => {}
            }
        }
        if is_created && pod.metadata.deletion_timestamp.is_none() {
            let revision = revision_of(pod);
            current += i32::from(revision == Some(revisions.current));
            updated += i32::from(revision == Some(revisions.update));
        }
    }
    let mut now_of = revisions.current;
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    if is_rolling(set) && [updated, ready, replicas] == [wanted; 3] {
        current = updated;
        now_of = revisions.update;
    }
    let before = set.status.as_ref();
    let status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: nonzero(ready),
        available_replicas: Some(available),
        current_replicas: nonzero(current),
        updated_replicas: nonzero(updated),
        current_revision: Some(now_of.to_owned()),
        update_revision: Some(revisions.update.to_owned()),
        collision_count: Some(revisions.collisions),
        conditions: before.and_then(|before| before.conditions.clone()),
    };
    (status, wake)
}
