//! A pod as a row of a table, with the STATUS that people read first.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::kinds::table::{self, Printer};

/// What a container's state says, when it says more than that the container runs.
fn state_reason(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let given = |reason: Option<&String>| reason.filter(|reason| !reason.is_empty()).cloned();
    if let Some(reason) = state
        .waiting
        .as_ref()
        .and_then(|waiting| given(waiting.reason.as_ref()))
    {
        return Some(reason);
    }
    let ended = state.terminated.as_ref()?;
    given(ended.reason.as_ref()).or_else(|| {
        Some(match ended.signal.filter(|signal| *signal != 0) {
            Some(signal) => format!("Signal:{signal}"),
            None => format!("ExitCode:{}", ended.exit_code),
        })
    })
}

/// Restarts of containers, and when the last of them was.
#[derive(Clone, Copy, Default)]
struct Restarts<'a> {
    /// Each container's may be as large as its type allows.
    count: i64,
    last: Option<&'a Time>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a ContainerStatus) {
        self.count += i64::from(status.restart_count);
        let before = status.last_state.as_ref();
        let ended = before.and_then(|state| state.terminated.as_ref());
        let at = ended.and_then(|ended| ended.finished_at.as_ref());
        // The first of equals, as who compares with "before" would find.
        if let Some(at) = at
            && self
                .last
                .is_none_or(|last| last.0.as_nanosecond() < at.0.as_nanosecond())
        {
            self.last = Some(at);
        }
    }
}

/// What the containers of a pod come to: the STATUS column, how many are ready, and their restarts.
struct Summary<'a> {
    text: String,
    ready: usize,
    restarts: Restarts<'a>,
}

/// How far the init containers are. Sidecars count like containers that stay: one that has started is no obstacle.
struct Initialisation<'a> {
    /// The STATUS column, while one is not through.
    obstacle: Option<String>,
    ready: usize,
    restarts: Restarts<'a>,
    sidecar_restarts: Restarts<'a>,
}

fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

fn initialisation<'a>(spec: &PodSpec, status: &'a PodStatus) -> Initialisation<'a> {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let sidecars: HashSet<&str> = inits
        .iter()
        .filter(|init| is_sidecar(init))
        .map(|init| init.name.as_str())
        .collect();
    let mut found = Initialisation {
        obstacle: None,
        ready: 0,
        restarts: Restarts::default(),
        sidecar_restarts: Restarts::default(),
    };
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        let is_sidecar = sidecars.contains(container.name.as_str());
        found.restarts.add(container);
        if is_sidecar {
            found.sidecar_restarts.add(container);
        }
        let state = container.state.as_ref();
        let ended = state.and_then(|state| state.terminated.as_ref());
        if ended.is_some_and(|ended| ended.exit_code == 0) {
            continue;
        }
        if is_sidecar && container.started == Some(true) {
            found.ready += usize::from(container.ready);
            continue;
        }
        found.obstacle = Some(match state_reason(container) {
            Some(reason) if ended.is_some() || reason != "PodInitializing" => {
                format!("Init:{reason}")
            }
            _ => format!("Init:{index}/{}", inits.len()),
        });
        break;
    }
    found
}

fn is_true(status: &PodStatus, wanted: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == wanted && condition.status == "True")
}

fn summary<'a>(pod: &Pod, spec: &PodSpec, status: &'a PodStatus) -> Summary<'a> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let reason = status.reason.as_deref().filter(|reason| !reason.is_empty());
    let gated = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    });
    let mut text = match gated {
        true => "SchedulingGated",
        false => reason.unwrap_or(phase),
    }
    .to_owned();
    let init = initialisation(spec, status);
    let (mut ready, mut restarts) = (init.ready, init.restarts);
    // A sidecar that crashes later says nothing of the pod, which has been initialised once.
    let obstacle = init.obstacle.filter(|_| !is_true(status, "Initialized"));
    let initialising = obstacle.is_some();
    if let Some(obstacle) = obstacle {
        text = obstacle;
    }
    if !initialising {
        restarts = init.sidecar_restarts;
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            restarts.add(container);
            let state = container.state.as_ref();
            match state_reason(container) {
                Some(reason) => text = reason,
                None if container.ready && state.is_some_and(|state| state.running.is_some()) => {
                    running = true;
                    ready += 1;
                }
                None => {}
            }
        }
        if text == "Completed" && running {
            text = match is_true(status, "Ready") {
                true => "Running",
                false => "NotReady",
            }
            .to_owned();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if reason == Some("NodeLost") {
            text = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            text = "Terminating".to_owned();
        }
    }
    Summary {
        text,
        ready,
        restarts,
    }
}

fn or_none(text: Option<&String>) -> &str {
    text.filter(|text| !text.is_empty())
        .map_or("<none>", String::as_str)
}

/// How many containers are ready, the STATUS, and the restarts.
fn summary_cells(object: &Pod, now: i64) -> [Value; 3] {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = object.spec.as_ref().unwrap_or(&no_spec);
    let status = object.status.as_ref().unwrap_or(&no_status);
    let Summary {
        text,
        ready,
        restarts,
    } = summary(object, spec, status);
    let inits = spec.init_containers.iter().flatten();
    let total = spec.containers.len() + inits.filter(|init| is_sidecar(init)).count();
    let restarts = match restarts.last {
        Some(last) if restarts.count != 0 => {
            format!("{} ({} ago)", restarts.count, table::since(Some(last), now))
        }
        _ => restarts.count.to_string(),
    };
    [
        json!(format!("{ready}/{total}")),
        json!(text),
        json!(restarts),
    ]
}

/// How many of a pod's readiness gates are passed.
fn gates(object: &Pod) -> String {
    let spec = object.spec.as_ref();
    let gates = spec.and_then(|spec| spec.readiness_gates.as_deref());
    let gates = gates.unwrap_or_default();
    let status = object.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let conditions = conditions.into_iter().flatten();
    let true_ones: HashSet<&str> = conditions
        .filter(|condition| condition.status == "True")
        .map(|condition| &*condition.type_)
        .collect();
    let passed = gates
        .iter()
        .filter(|gate| true_ones.contains(&*gate.condition_type));
    match gates.len() {
        0 => "<none>".to_owned(),
        total => format!("{}/{total}", passed.count()),
    }
}

/// See [`crate::kind::Kind::printer`].
pub(super) fn printer() -> Printer<Pod> {
    let text =
        |name, description: &str, priority| table::column(name, "string", description, priority);
    let spec = |name, field| text(name, &table::field_doc::<PodSpec>(field), 1);
    let status = |name, field| text(name, &table::field_doc::<PodStatus>(field), 1);
    let summed = [
        text(
            "Ready",
            "The aggregate readiness state of this pod for accepting traffic.",
            0,
        ),
        text(
            "Status",
            "The aggregate status of the containers in this pod.",
            0,
        ),
        text(
            "Restarts",
            "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
            0,
        ),
    ];
    Printer::<Pod>::named()
        .columns(summed, summary_cells)
        .age()
        .column(status("IP", "podIP"), |object| {
            let status = object.status.as_ref();
            json!(or_none(status.and_then(|status| status.pod_ip.as_ref())))
        })
        .column(spec("Node", "nodeName"), |object| {
            let spec = object.spec.as_ref();
            json!(or_none(spec.and_then(|spec| spec.node_name.as_ref())))
        })
        .column(status("Nominated Node", "nominatedNodeName"), |object| {
            let status = object.status.as_ref();
            let nominated = status.and_then(|status| status.nominated_node_name.as_ref());
            json!(or_none(nominated))
        })
        .column(spec("Readiness Gates", "readinessGates"), |object| {
            json!(gates(object))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// READY, STATUS and RESTARTS.
    fn cells(pod: Value) -> [String; 3] {
        let row = printer().row(&serde_json::from_value(pod).unwrap(), 0);
        [1, 2, 3].map(|column| row[column].as_str().unwrap().to_owned())
    }

    fn running(name: &str, ready: bool) -> Value {
        json!({"name": name, "ready": ready, "started": true, "restartCount": 0, "image": "", "imageID": "",
            "state": {"running": {}}})
    }

    fn waiting(name: &str, reason: &str) -> Value {
        json!({"name": name, "ready": false, "started": false, "restartCount": 2, "image": "", "imageID": "",
            "state": {"waiting": {"reason": reason}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "1969-12-31T23:59:00Z"}}})
    }

    fn ended(name: &str, code: i32, reason: &str) -> Value {
        json!({"name": name, "ready": code == 0, "started": false, "restartCount": 1, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": code, "reason": reason}}})
    }

    /// A pod with a sidecar `s` after an init container `i`, and a container `m`.
    fn pod(phase: &str, initialized: &str, inits: Value, mains: Value) -> Value {
        let conditions = json!([{"type": "Initialized", "status": initialized}]);
        json!({"spec": {
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "m"}]},
            "status": {"phase": phase, "conditions": conditions,
                "initContainerStatuses": inits, "containerStatuses": mains}})
    }

    #[test]
    fn sidecars_count_as_containers() {
        let done = || ended("i", 0, "Completed");
        let main = || json!([running("m", true)]);
        for (what, pod, expected) in [
            (
                "all run; restarts are those of the sidecar and of the containers",
                pod(
                    "Running",
                    "True",
                    json!([done(), running("s", true)]),
                    main(),
                ),
                ["2/2", "Running", "0"],
            ),
            (
                "a sidecar that has started but is not ready",
                pod(
                    "Running",
                    "True",
                    json!([done(), running("s", false)]),
                    main(),
                ),
                ["1/2", "Running", "0"],
            ),
            (
                "a sidecar crashes while the container runs",
                pod(
                    "Running",
                    "True",
                    json!([done(), waiting("s", "CrashLoopBackOff")]),
                    main(),
                ),
                ["1/2", "Running", "2 (60s ago)"],
            ),
            (
                "the sidecar's end is not the pod's",
                pod(
                    "Succeeded",
                    "True",
                    json!([done(), ended("s", 137, "Error")]),
                    json!([ended("m", 0, "Completed")]),
                ),
                ["0/2", "Completed", "2"],
            ),
            (
                "it never started",
                pod(
                    "Pending",
                    "False",
                    json!([done(), waiting("s", "CrashLoopBackOff")]),
                    json!([waiting("m", "PodInitializing")]),
                ),
                ["0/2", "Init:CrashLoopBackOff", "3 (60s ago)"],
            ),
            (
                "the first init container has not begun",
                pod(
                    "Pending",
                    "False",
                    json!([
                        waiting("i", "PodInitializing"),
                        waiting("s", "PodInitializing")
                    ]),
                    json!([waiting("m", "PodInitializing")]),
                ),
                ["0/2", "Init:0/2", "2 (60s ago)"],
            ),
            (
                "an init container failed for good",
                pod(
                    "Failed",
                    "False",
                    json!([ended("i", 1, "Error"), waiting("s", "PodInitializing")]),
                    json!([waiting("m", "PodInitializing")]),
                ),
                ["0/2", "Init:Error", "1"],
            ),
        ] {
            assert_eq!(cells(pod), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_over_says_so_while_it_is_deleted() {
        let status = |phase: &str, reason: Option<&str>| {
            let mut pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": [{"name": "m"}]}, "status": {"phase": phase}});
            pod["status"]["reason"] = json!(reason);
            let [_, status, _] = cells(pod);
            status
        };
        assert_eq!(status("Running", None), "Terminating");
        assert_eq!(status("Succeeded", None), "Succeeded");
        assert_eq!(status("Failed", Some("Evicted")), "Evicted");
        assert_eq!(status("Running", Some("NodeLost")), "Unknown");
    }

    #[test]
    fn restarts_are_added_however_many_a_node_tells() {
        let status = json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": i32::MAX,
            "state": {"running": {}}});
        let pod = json!({"status": {"containerStatuses": [status, status]}});
        let row = printer().row(&serde_json::from_value(pod).unwrap(), 0);
        assert_eq!((&row[1], &row[3]), (&json!("2/0"), &json!("4294967294")));
    }
}
