//! A pod's status as a kubelet writes it: a pure function of what the worker knows.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::record::{Ended, PodEnd, Record, Role, Stage};

/// What the status is made from.
pub(crate) struct View<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) uid: &'a str,
    pub(crate) records: &'a [Record],
    /// The sandbox and the network are there.
    pub(crate) sandbox_ready: bool,
    pub(crate) initialised: bool,
    pub(crate) end: Option<&'a PodEnd>,
    /// None before the pod has a network.
    pub(crate) pod_ips: &'a [IpAddr],
    pub(crate) host_ips: &'a [IpAddr],
    /// Nanoseconds since the epoch.
    pub(crate) started_at: i64,
    /// What was last reported: transition times and the phase come from it.
    pub(crate) previous: &'a PodStatus,
    pub(crate) now: Timestamp,
}

fn time(nanos: i64) -> Option<Time> {
    let whole_seconds = nanos.div_euclid(1_000_000_000);
    Timestamp::from_second(whole_seconds).ok().map(Time)
}

/// The id of an attempt as `containerID` shows it.
pub(crate) fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("gantry://{uid}-{name}-{attempt}")
}

/// The status.
pub(crate) fn status(view: &View<'_>) -> PodStatus {
    let spec = view.pod.spec.as_ref();
    let of = |roles: &[Role]| -> Vec<ContainerStatus> {
        let chosen = view
            .records
            .iter()
            .filter(|record| roles.contains(&record.role));
        chosen.map(|record| container(view, record)).collect()
    };
    let (inits, mains) = (of(&[Role::Init, Role::Sidecar]), of(&[Role::Main]));
    let conditions = conditions(view, &inits, &mains);
    let previous = view.previous;
    let pod_ips = match view.pod_ips {
        [] => previous.pod_ips.clone(),
        ips => Some(ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
    };
    let host_ips: Vec<HostIP> = view
        .host_ips
        .iter()
        .map(|ip| HostIP { ip: ip.to_string() })
        .collect();
    PodStatus {
        phase: Some(phase(view).to_owned()),
        conditions: Some(conditions),
        reason: view.end.and_then(|end| end.reason.clone()),
        message: view.end.and_then(|end| end.message.clone()),
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: Some(host_ips),
        pod_ip: pod_ips.iter().flatten().next().map(|pod| pod.ip.clone()),
        pod_ips,
        start_time: time(view.started_at),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(mains),
        observed_generation: view.pod.metadata.generation,
        qos_class: spec.map(|spec| format!("{:?}", crate::limits::qos_class(spec))),
        nominated_node_name: previous.nominated_node_name.clone(),
        ephemeral_container_statuses: previous.ephemeral_container_statuses.clone(),
        resize: previous.resize.clone(),
        ..PodStatus::default()
    }
}

fn rank(phase: &str) -> u8 {
    match phase {
        "Running" => 1,
        "Succeeded" | "Failed" => 2,
        _ => 0,
    }
}

/// The phase; it never moves backwards, whatever is found on the node.
fn phase<'a>(view: &View<'a>) -> &'a str {
    let before = view.previous.phase.as_deref().unwrap_or("Pending");
    let mains = || {
        view.records
            .iter()
            .filter(|record| record.role == Role::Main)
    };
    let never_ran = |record: &Record| {
        !matches!(record.stage, Stage::Running { .. } | Stage::Ended(_)) && record.last.is_none()
    };
    let now = match view.end {
        Some(end) if end.failed => "Failed",
        Some(_) => "Succeeded",
        None if !view.initialised || mains().any(never_ran) => "Pending",
        None => "Running",
    };
    if rank(now) < rank(before) || (rank(before) == 2 && now != before) {
        before
    } else {
        now
    }
}

fn terminated(view: &View<'_>, record: &Record, ended: &Ended) -> ContainerState {
    let exit = &ended.exit;
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(view.uid, &record.name, ended.attempt)),
            exit_code: exit.code,
            signal: None,
            reason: Some(ended.reason.clone()),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            started_at: time(exit.started_at),
            finished_at: time(exit.finished_at),
        }),
        ..ContainerState::default()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()).filter(|message| !message.is_empty()),
        }),
        ..ContainerState::default()
    }
}

fn container(view: &View<'_>, record: &Record) -> ContainerStatus {
    let spec = view.pod.spec.as_ref();
    let written = spec
        .and_then(|spec| super::record::containers(spec).find(|(_, own)| own.name == record.name));
    let has_inits = view.records.iter().any(|other| other.role != Role::Main);
    let default_reason = match record.role {
        Role::Main if has_inits && !view.initialised => "PodInitializing",
        Role::Init | Role::Sidecar if !is_next_init(view.records, record) => "PodInitializing",
        _ => "ContainerCreating",
    };
    let state = match &record.stage {
        // Nothing will start any more.
        Stage::Waiting { .. } | Stage::Starting { .. }
            if view.end.is_some() && record.last.is_some() =>
        {
            record
                .last
                .as_ref()
                .map(|last| terminated(view, record, last))
                .unwrap_or_default()
        }
        Stage::Waiting { reason, message } | Stage::Starting { reason, message } => {
            let reason = if reason.is_empty() {
                default_reason
            } else {
                reason
            };
            waiting(reason, message)
        }
        Stage::Running { since, .. } => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: time(*since),
            }),
            ..ContainerState::default()
        },
        Stage::Ended(ended) => terminated(view, record, ended),
    };
    let (started, ready) = match &record.stage {
        // An init container is ready when it is done.
        Stage::Running { started, ready, .. } => {
            (*started, *started && *ready && record.role != Role::Init)
        }
        Stage::Ended(ended) => (false, record.role == Role::Init && ended.succeeded()),
        _ => (false, false),
    };
    let last = record
        .last
        .as_ref()
        .filter(|_| state.terminated.is_none() || matches!(record.stage, Stage::Ended(_)));
    let resources = written.and_then(|(_, container)| container.resources.clone());
    ContainerStatus {
        name: record.name.clone(),
        image: match record.image.is_empty() {
            true => written
                .and_then(|(_, container)| container.image.clone())
                .unwrap_or_default(),
            false => record.image.clone(),
        },
        image_id: record.image_id.clone(),
        container_id: record
            .attempt
            .map(|attempt| container_id(view.uid, &record.name, attempt)),
        ready,
        started: Some(started),
        restart_count: record
            .attempt
            .map_or(0, |attempt| i32::try_from(attempt).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state: Some(
            last.map(|last| terminated(view, record, last))
                .unwrap_or_default(),
        ),
        allocated_resources: resources
            .as_ref()
            .and_then(|resources| resources.requests.clone()),
        resources,
        ..ContainerStatus::default()
    }
}

/// Whether all init containers before this one are through.
fn is_next_init(records: &[Record], record: &Record) -> bool {
    records
        .iter()
        .take_while(|other| other.name != record.name)
        .all(|other| match (other.role, &other.stage) {
            (Role::Init, Stage::Ended(ended)) => ended.succeeded(),
            (Role::Sidecar, Stage::Running { started, .. }) => *started,
            _ => false,
        })
}

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

fn conditions(
    view: &View<'_>,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let names = |names: Vec<&str>| names.join(" ");
    let is_sidecar = |name: &str| {
        view.records
            .iter()
            .any(|record| record.name == name && record.role == Role::Sidecar)
    };
    let over = view.end.map(|end| match end.failed {
        true => "PodFailed",
        false => "PodCompleted",
    });
    let unready: Vec<&str> = inits
        .iter()
        .filter(|status| is_sidecar(&status.name))
        .chain(mains)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    let containers_ready = match over {
        Some(reason) => no(reason, None),
        None if unready.is_empty() => yes(),
        None => no(
            "ContainersNotReady",
            Some(format!(
                "containers with unready status: [{}]",
                names(unready)
            )),
        ),
    };
    let gates = view
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten());
    let gate_status = |wanted: &str| {
        let all = view
            .pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        all.into_iter()
            .find(|condition| condition.type_ == wanted)
            .map(|condition| condition.status.clone())
    };
    let closed: Vec<String> = gates
        .filter_map(|gate| match gate_status(&gate.condition_type).as_deref() {
            Some("True") => None,
            Some(_) => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\"",
                gate.condition_type
            )),
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
        })
        .collect();
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
        .filter(|status| match is_sidecar(&status.name) {
            true => status.started != Some(true),
            false => !status.ready,
        })
        .map(|status| status.name.as_str())
        .collect();
    let initialized = match over {
        Some("PodCompleted") => Verdict {
            status: true,
            reason: Some("PodCompleted"),
            message: None,
        },
        _ if view.initialised || incomplete.is_empty() => yes(),
        _ => no(
            "ContainersNotInitialized",
            Some(format!(
                "containers with incomplete status: [{}]",
                names(incomplete)
            )),
        ),
    };
    let sandbox = Verdict {
        status: view.sandbox_ready,
        reason: None,
        message: None,
    };
    let scheduled = yes();
    let ours = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", scheduled),
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
    let mut result: Vec<PodCondition> = ours
        .into_iter()
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

/// The reason of a pod that had to go.
pub(crate) const EVICTED: &str = "Evicted";
/// How controllers know that a pod's end is not its own fault.
const DISRUPTION: &str = "DisruptionTarget";

const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

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

#[cfg(test)]
mod tests {
    use gantry_runtime::ContainerExit;
    use serde_json::{Value, json};

    use super::*;

    fn exit(code: i32) -> Ended {
        let second = 1_000_000_000;
        Ended::new(
            0,
            ContainerExit {
                code,
                signal: None,
                oom_killed: false,
                started_at: 10 * second,
                finished_at: 20 * second,
                message: String::new(),
            },
        )
    }

    fn record(name: &str, role: Role, stage: Stage) -> Record {
        let attempt = (!matches!(stage, Stage::Waiting { .. })).then_some(0);
        Record {
            name: name.into(),
            role,
            stage,
            attempt,
            last: None,
            image: String::new(),
            image_id: String::new(),
        }
    }

    fn running(ready: bool) -> Stage {
        Stage::Running {
            since: 5_000_000_000,
            started: true,
            ready,
        }
    }

    fn compute(
        records: &[Record],
        initialised: bool,
        end: Option<&PodEnd>,
        previous: Value,
    ) -> Value {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "generation": 3},
            "spec": {"initContainers": [{"name": "i", "image": "init"}], "containers": [{"name": "a", "image": "img"}]}
        }))
        .unwrap();
        let previous: PodStatus = serde_json::from_value(previous).unwrap();
        let view = View {
            pod: &pod,
            uid: "u",
            records,
            sandbox_ready: true,
            initialised,
            end,
            pod_ips: &["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            host_ips: &["192.0.2.1".parse().unwrap()],
            started_at: 1_000_000_000,
            previous: &previous,
            now: Timestamp::from_second(100).unwrap(),
        };
        serde_json::to_value(status(&view)).unwrap()
    }

    fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
        status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|condition| condition["type"] == name)
            .unwrap()
    }

    #[test]
    fn before_init_containers_are_through() {
        let records = [
            record("i", Role::Init, running(true)),
            record("a", Role::Main, Stage::idle()),
        ];
        let status = compute(&records, false, None, json!({}));
        assert_eq!(status["phase"], "Pending");
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"]["reason"],
            "PodInitializing"
        );
        assert_eq!(
            of(&status, "Initialized")["message"],
            "containers with incomplete status: [i]"
        );
        assert_eq!(
            of(&status, "Ready")["message"],
            "containers with unready status: [a]"
        );
        assert_eq!(status["containerStatuses"][0]["image"], "img");
        assert_eq!(status["qosClass"], "BestEffort");
    }

    #[test]
    fn running_and_ready() {
        let records = [
            record("i", Role::Init, Stage::Ended(exit(0))),
            record("a", Role::Main, running(true)),
        ];
        let earlier = json!({"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:50Z"},
            {"type": "Initialized", "status": "True", "lastTransitionTime": "1970-01-01T00:00:50Z"},
            {"type": "example.org/gate", "status": "True"}]});
        let status = compute(&records, true, None, earlier);
        assert_eq!(status["phase"], "Running");
        assert_eq!(
            of(&status, "Ready")["lastTransitionTime"],
            "1970-01-01T00:01:40Z"
        );
        assert_eq!(
            of(&status, "Initialized")["lastTransitionTime"],
            "1970-01-01T00:00:50Z"
        );
        assert_eq!(of(&status, "example.org/gate")["status"], "True");
        assert_eq!(status["initContainerStatuses"][0]["ready"], true);
        assert_eq!(
            status["containerStatuses"][0]["containerID"],
            "gantry://u-a-0"
        );
        assert_eq!(status["podIP"], "10.0.0.5");
        assert_eq!(
            status["podIPs"],
            json!([{"ip": "10.0.0.5"}, {"ip": "fd00::5"}])
        );
        assert_eq!(status["hostIPs"], json!([{"ip": "192.0.2.1"}]));
        assert_eq!(of(&status, "Ready")["observedGeneration"], 3);
    }

    #[test]
    fn a_restarting_container_keeps_its_last_state() {
        let mut main = record(
            "a",
            Role::Main,
            Stage::Waiting {
                reason: "CrashLoopBackOff".into(),
                message: "back-off 10s restarting failed container=a pod=p_d(u)".into(),
            },
        );
        main.attempt = Some(2);
        main.last = Some(exit(1));
        let status = compute(&[main], true, None, json!({"phase": "Running"}));
        let container = &status["containerStatuses"][0];
        assert_eq!(status["phase"], "Running");
        assert_eq!(
            (
                container["restartCount"].as_i64(),
                container["ready"].as_bool()
            ),
            (Some(2), Some(false))
        );
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(
            container["lastState"]["terminated"]["finishedAt"],
            "1970-01-01T00:00:20Z"
        );
    }

    #[test]
    fn the_phase_never_moves_backwards() {
        let idle = [record("a", Role::Main, Stage::idle())];
        assert_eq!(
            compute(&idle, false, None, json!({"phase": "Running"}))["phase"],
            "Running"
        );
        assert_eq!(
            compute(&idle, false, None, json!({"phase": "Failed"}))["phase"],
            "Failed"
        );
        let done = PodEnd {
            failed: false,
            reason: None,
            message: None,
        };
        let ended = [record("a", Role::Main, Stage::Ended(exit(0)))];
        let status = compute(&ended, true, Some(&done), json!({"phase": "Running"}));
        assert_eq!(status["phase"], "Succeeded");
        assert_eq!(of(&status, "Ready")["reason"], "PodCompleted");
        assert_eq!(
            compute(&ended, true, Some(&done), json!({"phase": "Failed"}))["phase"],
            "Failed"
        );
    }
}
