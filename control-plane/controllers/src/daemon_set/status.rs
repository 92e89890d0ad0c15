//! What a set's status says.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::jiff::Timestamp;

use super::placement::{Place, Spots};
use super::pod::{Version, is_leaving};
use crate::pods::{Availability, availability, is_ready};
use crate::replica_set::nonzero;

/// The status, and after what time a ready pod becomes available without any event telling so. Of a node's pods the first
/// counts.
pub(crate) fn status(
    set: &DaemonSet,
    spots: &Spots<'_>,
    version: &Version,
    now: Timestamp,
) -> (DaemonSetStatus, Option<Duration>) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let before = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    let mut wake: Option<Duration> = None;
    for spot in spots.values() {
        for pod in spot.pods.iter().filter(|pod| !is_leaving(pod)) {
            if let Availability::In(left) = availability(pod, min_ready, now) {
                wake = Some(wake.map_or(left, |wake| wake.min(left)));
            }
        }
        let first = spot.pods.first();
        match spot.place {
            Some(Place::Wanted) => status.desired_number_scheduled += 1,
            Some(_) => {
                status.number_misscheduled += i32::from(first.is_some());
                continue;
            }
            None => continue,
        }
        let Some(pod) = first else {
            continue;
        };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(is_ready(pod));
        let is_available = availability(pod, min_ready, now) == Availability::Available;
        available += i32::from(is_available);
        updated += i32::from(version.is_of(pod));
    }
    status.updated_number_scheduled = nonzero(updated);
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    (status, wake)
}
