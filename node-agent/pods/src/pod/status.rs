//! A pod's status as a kubelet writes it: a pure function of what the worker knows.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::conditions;
use super::phase;
use super::record::{Ended, PodEnd, Record, Role, Stage};
use super::resize::Progress;

/// The reason of a pod that had to go.
pub(crate) const EVICTED: &str = "Evicted";
/// Kubernetes' reason for an end that nobody saw.
pub(crate) const LOST: &str = "ContainerStatusUnknown";
/// What is said with it.
pub(crate) const LOST_MESSAGE: &str =
    "The container could not be located when the pod was terminated";
/// Bytes of termination messages that a pod's containers share.
const MESSAGES: usize = 12 * 1024;

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
    pub(crate) resize: &'a Progress,
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
    let (mut inits, mut mains) = (of(&[Role::Init, Role::Sidecar]), of(&[Role::Main]));
    let phase = phase(view);
    let conditions = conditions(view, phase, &inits, &mains);
    if view.end.is_some_and(|end| !end.is_rejection()) {
        settle(view, &mut inits, &mut mains);
    }
    // A kubelet tells them by name.
    mains.sort_by(|one, other| one.name.cmp(&other.name));
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
        phase: Some(phase.to_owned()),
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

/// The phase; it never moves backwards, whatever is found on the node. A pod is over only when nothing of it runs any more,
/// even if its containers have decided how it will end.
fn phase<'a>(view: &View<'a>) -> &'a str {
    let before = view.previous.phase.as_deref().unwrap_or("Pending");
    let now = match view.end {
        Some(end) if end.failed => "Failed",
        Some(_) => "Succeeded",
        None => match phase::of_containers(view.records) {
            "Failed" | "Succeeded" => before,
            phase => phase,
        },
    };
    if rank(now) < rank(before) || (rank(before) == 2 && now != before) {
        before
    } else {
        now
    }
}

/// What is said of a container that has not run to an end, and never will, since the pod is over: that it is lost, as a kubelet
/// says. Init containers that nobody got to still wait, and so do all others of a pod that was not initialised.
fn settle(view: &View<'_>, inits: &mut [ContainerStatus], mains: &mut [ContainerStatus]) {
    fn waits(status: &ContainerStatus) -> bool {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.waiting.is_some())
    }
    fn lose(status: &mut ContainerStatus) {
        if waits(status) {
            let lost = ContainerStateTerminated {
                exit_code: 137,
                reason: Some(LOST.to_owned()),
                message: Some(LOST_MESSAGE.to_owned()),
                ..ContainerStateTerminated::default()
            };
            status.state = Some(ContainerState {
                terminated: Some(lost),
                ..ContainerState::default()
            });
        }
    }
    if inits.is_empty() || view.initialised || phase::has_begun(view.records) {
        mains.iter_mut().for_each(lose);
    }
    // The first is taken as tried.
    let tried = inits.iter().rposition(|status| !waits(status)).unwrap_or(0);
    inits.iter_mut().take(tried + 1).for_each(lose);
}

/// As much of a termination message as there is room for.
fn shortened(view: &View<'_>, message: &str) -> Option<String> {
    let mut end = (MESSAGES / view.records.len().max(1)).min(message.len());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Some(message[..end].to_owned()).filter(|message| !message.is_empty())
}

fn terminated(view: &View<'_>, record: &Record, ended: &Ended) -> ContainerState {
    let exit = &ended.exit;
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(view.uid, &record.name, ended.attempt)),
            exit_code: exit.code,
            signal: None,
            reason: Some(ended.reason.clone()),
            message: shortened(view, &exit.message),
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

/// How a container ended of which this node has forgotten everything.
fn forgotten<'a>(view: &View<'a>, record: &Record) -> Option<&'a ContainerStatus> {
    let previous = view.previous;
    let inits = previous.init_container_statuses.iter().flatten();
    let mut all = inits.chain(previous.container_statuses.iter().flatten());
    let known = all.find(|status| status.name == record.name);
    known.filter(|status| {
        let state = status.state.as_ref();
        record.attempt.is_none() && state.is_some_and(|state| state.terminated.is_some())
    })
}

fn container(view: &View<'_>, record: &Record) -> ContainerStatus {
    if let Some(known) = forgotten(view, record) {
        return known.clone();
    }
    let spec = view.pod.spec.as_ref();
    let written = spec
        .and_then(|spec| super::record::containers(spec).find(|(_, own)| own.name == record.name));
    let initialises = view.records.iter().any(|other| other.role != Role::Main);
    let state = match &record.stage {
        Stage::Waiting { reason, message } | Stage::Starting { reason, message } => {
            match (&record.last, reason.as_str()) {
                // Nothing is known yet of its next run, or there will be none.
                (Some(last), reason) if reason.is_empty() || view.end.is_some() => {
                    terminated(view, record, last)
                }
                (None, "") if initialises => waiting("PodInitializing", message),
                (None, "") => waiting("ContainerCreating", message),
                (_, reason) => waiting(reason, message),
            }
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
    let given = written.and_then(|(_, container)| container.resources.clone());
    let runs = matches!(record.stage, Stage::Running { .. });
    let applied = record.resources.clone().filter(|_| runs);
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
        allocated_resources: given
            .as_ref()
            .and_then(|resources| resources.requests.clone()),
        resources: applied.or(given),
        volume_mounts: written.and_then(|(_, container)| mounts(container)),
        ..ContainerStatus::default()
    }
}

/// What became of a container's mounts: what is mounted below one is never made read-only with it.
fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.iter().flatten();
    let mounts = mounts.map(|mount| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    let mounts: Vec<VolumeMountStatus> = mounts.collect();
    Some(mounts).filter(|mounts| !mounts.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::tests::{ended, idle, record, running, starting};
    use super::super::restart::{RestartPolicy, Restarts};
    use super::*;

    fn exit(code: i32) -> Ended {
        let Stage::Ended(exit) = ended(code) else {
            unreachable!("it ended");
        };
        exit
    }

    fn over(failed: bool) -> PodEnd {
        PodEnd {
            failed,
            reason: None,
            message: None,
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
            "spec": {"initContainers": [{"name": "i", "image": "init"}], "containers": [
                {"name": "a", "image": "img", "volumeMounts": [{"name": "v", "mountPath": "/v"},
                    {"name": "w", "mountPath": "/w", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}]}
        }))
        .unwrap();
        let previous: PodStatus = serde_json::from_value(previous).unwrap();
        let resize = Progress::default();
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
            resize: &resize,
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
            status["containerStatuses"][0]["volumeMounts"],
            json!([{"name": "v", "mountPath": "/v"},
                {"name": "w", "mountPath": "/w", "readOnly": true, "recursiveReadOnly": "Disabled"}])
        );
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
        let done = over(false);
        let ended = [record("a", Role::Main, Stage::Ended(exit(0)))];
        let status = compute(&ended, true, Some(&done), json!({"phase": "Running"}));
        assert_eq!(status["phase"], "Succeeded");
        assert_eq!(of(&status, "Ready")["reason"], "PodCompleted");
        assert_eq!(
            compute(&ended, true, Some(&done), json!({"phase": "Failed"}))["phase"],
            "Failed"
        );
    }

    /// What a container waits for, or how it ended.
    fn reasons(statuses: &Value) -> Vec<String> {
        let reason = |status: &Value| {
            let state = &status["state"];
            let known = state["waiting"]["reason"].as_str();
            let known = known.or_else(|| state["terminated"]["reason"].as_str());
            known.unwrap_or("running").to_owned()
        };
        let all = statuses.as_array().into_iter().flatten();
        all.map(reason).collect()
    }

    #[test]
    fn containers_of_a_pod_with_init_containers_wait_for_the_pod() {
        for stage in [idle(), starting()] {
            let alone = [record("a", Role::Main, stage.clone())];
            let status = compute(&alone, false, None, json!({}));
            assert_eq!(reasons(&status["containerStatuses"]), ["ContainerCreating"]);
            for initialised in [false, true] {
                let records = [
                    record("i", Role::Init, stage.clone()),
                    record("a", Role::Main, stage.clone()),
                ];
                let status = compute(&records, initialised, None, json!({}));
                for statuses in ["initContainerStatuses", "containerStatuses"] {
                    assert_eq!(reasons(&status[statuses]), ["PodInitializing"], "{stage:?}");
                }
            }
        }
    }

    #[test]
    fn an_init_container_that_fails_for_good_fails_the_pod() {
        let mut records = [
            record("i", Role::Init, ended(1)),
            record("j", Role::Init, idle()),
            record("a", Role::Main, idle()),
        ];
        for record in &mut records {
            record.restarts = Restarts::by(RestartPolicy::Never);
        }
        let before = compute(&records, false, None, json!({}));
        assert_eq!(before["phase"], "Pending", "until everything has stopped");
        let status = compute(&records, false, Some(&over(true)), json!({}));
        assert_eq!(status["phase"], "Failed");
        let of_inits = reasons(&status["initContainerStatuses"]);
        assert_eq!(of_inits, ["Error", "PodInitializing"]);
        assert_eq!(reasons(&status["containerStatuses"]), ["PodInitializing"]);
        let initialized = of(&status, "Initialized");
        assert_eq!(initialized["status"], "False");
        assert_eq!(initialized["reason"], "ContainersNotInitialized");
        assert_eq!(
            initialized["message"],
            "containers with incomplete status: [i j]"
        );
        for name in ["Ready", "ContainersReady"] {
            assert_eq!(of(&status, name)["reason"], "PodFailed");
        }
    }

    #[test]
    fn what_never_ran_of_a_pod_that_is_over_is_lost() {
        let mut crashing = record("b", Role::Main, starting());
        crashing.last = Some(exit(1));
        let records = [record("a", Role::Main, idle()), crashing];
        let status = compute(&records, true, Some(&over(true)), json!({}));
        let of_mains = reasons(&status["containerStatuses"]);
        assert_eq!(of_mains, ["ContainerStatusUnknown", "Error"]);
        let rejected = PodEnd::rejected("AppArmor", "no");
        let status = compute(&records[..1], false, Some(&rejected), json!({}));
        assert_eq!(reasons(&status["containerStatuses"]), ["ContainerCreating"]);
        let early = [
            record("i", Role::Init, idle()),
            record("j", Role::Init, idle()),
            record("a", Role::Main, idle()),
        ];
        let status = compute(&early, false, Some(&over(true)), json!({}));
        let of_inits = reasons(&status["initContainerStatuses"]);
        assert_eq!(of_inits, ["ContainerStatusUnknown", "PodInitializing"]);
        assert_eq!(reasons(&status["containerStatuses"]), ["PodInitializing"]);
    }

    #[test]
    fn what_the_node_has_forgotten_stays_as_it_was() {
        let records = [record("a", Role::Main, ended(0))];
        let told = compute(&records, true, Some(&over(false)), json!({}));
        let idle = [record("a", Role::Main, idle())];
        let later = compute(&idle, false, Some(&over(false)), told.clone());
        assert_eq!(later["containerStatuses"], told["containerStatuses"]);
    }

    #[test]
    fn a_sidecar_that_crashes_leaves_the_pod_initialised_and_running() {
        let mut sidecar = record(
            "s",
            Role::Sidecar,
            Stage::Waiting {
                reason: "CrashLoopBackOff".into(),
                message: String::new(),
            },
        );
        sidecar.last = Some(exit(1));
        let main = || record("a", Role::Main, running(true));
        let status = compute(&[sidecar, main()], true, None, json!({}));
        assert_eq!(status["phase"], "Running");
        assert_eq!(of(&status, "Initialized")["status"], "True");
        assert_eq!(
            of(&status, "Ready")["message"],
            "containers with unready status: [s]"
        );
        let killed = record("s", Role::Sidecar, ended(137));
        let done = [killed, record("a", Role::Main, ended(0))];
        let status = compute(&done, true, Some(&over(false)), json!({}));
        assert_eq!(status["phase"], "Succeeded");
        assert_eq!(of(&status, "Initialized")["reason"], "PodCompleted");
    }

    #[test]
    fn containers_are_told_by_name_and_share_the_room_for_messages() {
        let mut long = exit(1);
        long.exit.message = "ä".repeat(4096);
        let records = [
            record("b", Role::Main, Stage::Ended(long.clone())),
            record("c", Role::Main, Stage::Ended(long.clone())),
            record("a", Role::Main, Stage::Ended(long)),
        ];
        let status = compute(&records, true, None, json!({}));
        let mains = status["containerStatuses"].as_array().unwrap();
        let names: Vec<&str> = mains
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
        let message = mains[0]["state"]["terminated"]["message"].as_str();
        assert_eq!(message.map(str::len), Some(4096));
    }
}
