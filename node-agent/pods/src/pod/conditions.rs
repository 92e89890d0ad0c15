//! A pod's conditions as a kubelet generates them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::record::{Record, Role};
use super::status::{EVICTED, View};

/// How controllers know that a pod's end is not its own fault.
const DISRUPTION: &str = "DisruptionTarget";

/// That all containers are being stopped to begin anew; only of pods that can ask for it.
const RESTARTING: &str = "AllContainersRestarting";

/// That the pod asks for something that its node has not for it, and that it has not all yet of what it was given.
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

const OWN: [&str; 8] = [
    RESTARTING,
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn yes() -> Verdict {
    Verdict {
        status: true,
        reason: None,
        message: None,
    }
}

fn no(reason: &'static str, message: Option<String>) -> Verdict {
    Verdict {
        status: false,
        reason: Some(reason),
        message,
    }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

/// Whether the containers are ready: those that stay, and sidecars.
fn containers_ready(phase: &str, staying: &[&ContainerStatus]) -> Verdict {
    let unready = staying.iter().filter(|status| !status.ready);
    let unready: Vec<&str> = unready.map(|status| status.name.as_str()).collect();
    match phase {
        "Succeeded" => no("PodCompleted", None),
        "Failed" => no("PodFailed", None),
        _ if unready.is_empty() => yes(),
        _ => {
            let message = format!("containers with unready status: {}", list(&unready));
            no("ContainersNotReady", Some(message))
        }
    }
}

/// Why readiness gates keep a pod whose containers are ready from being so.
fn closed_gates(view: &View<'_>) -> Vec<String> {
    let spec = view.pod.spec.as_ref();
    let gates = spec.and_then(|spec| spec.readiness_gates.as_deref());
    let said = view.pod.status.as_ref();
    let said = said.and_then(|status| status.conditions.as_deref());
    let told = gates.unwrap_or_default().iter().filter_map(|gate| {
        let wanted = &gate.condition_type;
        let mut conditions = said.unwrap_or_default().iter();
        match conditions.find(|condition| condition.type_ == *wanted) {
            Some(condition) if condition.status == "True" => None,
            Some(condition) => Some(format!(
                "the status of pod readiness gate \"{wanted}\" is not \"True\", but {}",
                condition.status
            )),
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{wanted}\" does not exist."
            )),
        }
    });
    told.collect()
}

/// Whether all containers are being stopped to begin anew.
fn restarting(view: &View<'_>, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => no("PodCompleted", None),
        "Failed" => no("PodFailed", None),
        _ if view.records.iter().any(Record::restarts_all) => Verdict {
            status: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        _ => Verdict {
            status: false,
            ..yes()
        },
    }
}

/// What is told of a resize until it is done.
fn resizing(view: &View<'_>) -> impl Iterator<Item = (&'static str, Verdict)> {
    let progress = Some(view.resize).filter(|_| view.end.is_none());
    let pending = progress.and_then(|progress| progress.pending.as_ref());
    let pending = pending.map(|refusal| Verdict {
        status: true,
        reason: Some(refusal.reason),
        message: Some(refusal.message.clone()),
    });
    let under_way = progress.filter(|progress| progress.is_under_way);
    let under_way = under_way.map(|progress| Verdict {
        status: true,
        reason: progress.error.as_ref().map(|_| "Error"),
        message: progress.error.clone(),
    });
    let pending = pending.map(|verdict| (RESIZE_PENDING, verdict));
    let under_way = under_way.map(|verdict| (RESIZE_IN_PROGRESS, verdict));
    pending.into_iter().chain(under_way)
}

/// Whether the pod is initialised: its init containers are through, or a container that stays has begun. Once it is, that is not
/// taken back, whatever its sidecars do and even if its init containers run again.
fn initialized(
    view: &View<'_>,
    phase: &str,
    incomplete: &[&str],
    mains: &[ContainerStatus],
) -> Verdict {
    let mut before = view.previous.conditions.iter().flatten();
    let was = before.any(|before| before.type_ == "Initialized" && before.status == "True");
    let has_begun = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    if phase == "Succeeded" {
        Verdict {
            reason: Some("PodCompleted"),
            ..yes()
        }
    } else if was || incomplete.is_empty() || mains.iter().any(has_begun) {
        yes()
    } else {
        let message = format!("containers with incomplete status: {}", list(incomplete));
        no("ContainersNotInitialized", Some(message))
    }
}

/// The conditions of a pod in this phase. Statuses are in the order of the specification.
pub(super) fn conditions(
    view: &View<'_>,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let is_sidecar = |status: &&ContainerStatus| {
        view.records
            .iter()
            .any(|record| record.name == status.name && record.role == Role::Sidecar)
    };
    let staying: Vec<&ContainerStatus> = inits.iter().filter(is_sidecar).chain(mains).collect();
    let containers_ready = containers_ready(phase, &staying);
    let closed = closed_gates(view);
    let ready = match (containers_ready.status, closed.is_empty()) {
        (true, false) => no("ReadinessGatesNotReady", Some(closed.join(", "))),
        (status, _) => Verdict {
            status,
            reason: containers_ready.reason,
            message: containers_ready.message.clone(),
        },
    };
    let incomplete: Vec<&str> = inits
        .iter()
        .filter(|status| match is_sidecar(status) {
            true => status.started != Some(true),
            false => !status.ready,
        })
        .map(|status| status.name.as_str())
        .collect();
    let initialized = initialized(view, phase, &incomplete, mains);
    let sandbox = Verdict {
        status: view.sandbox_ready,
        reason: None,
        message: None,
    };
    let ours = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", yes()),
    ];
    let evicted = view
        .end
        .filter(|end| end.reason.as_deref() == Some(EVICTED))
        .map(|end| Verdict {
            status: true,
            reason: Some("TerminationByKubelet"),
            message: end.message.clone(),
        });
    let is_evicted = evicted.is_some();
    let may_restart = view.records.iter().any(|record| record.restarts.ever_all());
    let restarting = may_restart.then(|| (RESTARTING, restarting(view, phase)));
    let mut result: Vec<PodCondition> = ours
        .into_iter()
        .chain(restarting)
        .chain(resizing(view))
        .chain(evicted.map(|verdict| (DISRUPTION, verdict)))
        .map(|(name, verdict)| condition(view, name, verdict))
        .collect();
    let foreign = view.previous.conditions.iter().flatten();
    result.extend(
        foreign
            .filter(|theirs| !OWN.contains(&theirs.type_.as_str()))
            .filter(|theirs| !(is_evicted && theirs.type_ == DISRUPTION))
            .cloned(),
    );
    result
}

fn condition(view: &View<'_>, name: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let before = view
        .previous
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == name);
    let since = before
        .filter(|before| before.status == status)
        .and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: since
            .or_else(|| Timestamp::from_second(view.now.as_second()).ok().map(Time)),
        observed_generation: view.pod.metadata.generation,
        ..PodCondition::default()
    }
}
