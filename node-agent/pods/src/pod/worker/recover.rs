//! What a later agent process knows of containers: the journal, joined with what still runs.

use gantry_cri::runtime::{ContainerExit, ContainerState, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};

use super::control::Control;
use crate::pod::record::{Ended, Notes, Record, Role, Stage, containers, now_nanos};
use crate::pod::restart::Restarts;
use crate::pod::status::{LOST, LOST_MESSAGE, container_id};

/// An attempt of which nobody knows how it ended.
pub(super) fn lost(attempt: u32) -> Ended {
    let exit = ContainerExit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_at: 0,
        finished_at: now_nanos(),
        message: LOST_MESSAGE.to_owned(),
    };
    Ended {
        attempt,
        exit,
        reason: LOST.to_owned(),
    }
}

/// Records from the journal and from what runs. An attempt that was begun and is nowhere to be found has ended: it is
/// never begun again.
pub(super) fn recover(
    pod: &Pod,
    notes: &Notes,
    found: Option<&SandboxStatus>,
    previous: &PodStatus,
) -> (Vec<Record>, Vec<Control>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let reported = |name: &str| {
        let all = previous
            .container_statuses
            .iter()
            .flatten()
            .chain(previous.init_container_statuses.iter().flatten());
        all.into_iter().find(|status| status.name == name).cloned()
    };
    let recover_one = |(role, container): (Role, &Container)| {
        let entry = notes
            .containers
            .get(&container.name)
            .cloned()
            .unwrap_or_default();
        let running = found.and_then(|sandbox| {
            let of_name = sandbox
                .containers
                .iter()
                .filter(|status| status.id.name == container.name);
            of_name.max_by_key(|status| status.id.attempt)
        });
        let attempt = entry.attempt.max(running.map(|status| status.id.attempt));
        let current = running.filter(|status| Some(status.id.attempt) == attempt);
        let stage = match (attempt, current.map(|status| &status.state), &entry.ended) {
            (None, ..) => Stage::idle(),
            (Some(attempt), Some(ContainerState::Running { started_at, .. }), _) => {
                let id = container_id(&uid, &container.name, attempt);
                let known = reported(&container.name)
                    .filter(|status| status.container_id.as_ref() == Some(&id));
                let is = |value: Option<bool>| value == Some(true);
                Stage::Running {
                    since: *started_at,
                    started: container.startup_probe.is_none()
                        || is(known.as_ref().and_then(|status| status.started)),
                    ready: container.readiness_probe.is_none()
                        || is(known.as_ref().map(|status| status.ready)),
                }
            }
            (Some(attempt), _, Some(ended)) if ended.attempt == attempt => {
                Stage::Ended(ended.clone())
            }
            (Some(attempt), Some(ContainerState::Exited(exit)), _) => {
                Stage::Ended(Ended::new(attempt, exit.clone()))
            }
            (Some(attempt), ..) => Stage::Ended(lost(attempt)),
        };
        // What went with the machine did not fail by itself: it starts at once when the machine is back.
        let failures = match &stage {
            Stage::Ended(ended) if ended.reason == LOST => 0,
            _ => attempt.unwrap_or(0),
        };
        let record = Record {
            name: container.name.clone(),
            role,
            restarts: Restarts::of(&spec, container),
            changed: false,
            stage,
            attempt,
            last: entry
                .last
                .or(entry.ended.filter(|ended| Some(ended.attempt) != attempt)),
            image: entry.image,
            image_id: entry.image_id,
            resources: entry.resources,
        };
        (record, Control::new(failures, entry.stop_signal))
    };
    containers(&spec).map(recover_one).unzip()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::pod::record::Entry;

    #[test]
    fn a_container_that_went_with_the_machine_starts_again_at_once() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u"}, "spec": {"containers": [{"name": "main"}]},
        }))
        .unwrap();
        let delay = |ended: Option<Ended>| {
            let entry = Entry {
                attempt: Some(6),
                ended,
                ..Entry::default()
            };
            let notes = Notes {
                containers: [("main".to_owned(), entry)].into(),
                ..Notes::default()
            };
            let (records, mut controls) = recover(&pod, &notes, None, &PodStatus::default());
            assert!(matches!(records[0].stage, Stage::Ended(_)));
            controls[0].restarts.restart_delay()
        };
        assert_eq!(delay(None), Duration::ZERO);
        let mut exit = lost(6).exit;
        exit.code = 1;
        assert_eq!(
            delay(Some(Ended::new(6, exit))),
            Duration::from_secs(300),
            "what failed by itself waits on"
        );
    }
}
