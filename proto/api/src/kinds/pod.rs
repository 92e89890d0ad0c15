//! Pod: containers that run together on one node.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::{Value, json};

use super::{pod_spec, table};
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, ResourceInfo};
use crate::quantity::Quantity;

/// See [`Pod`].
pub struct PodKind;

fn qos(spec: &PodSpec) -> &'static str {
    let (mut any, mut all) = (false, true);
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let resources = container.resources.as_ref();
        let amount = |list: Option<&std::collections::BTreeMap<String, _>>,
                      name: &str|
         -> Option<Quantity> {
            let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity =
                list?.get(name)?;
            quantity.0.parse().ok()
        };
        for name in ["cpu", "memory"] {
            let request = amount(
                resources.and_then(|resources| resources.requests.as_ref()),
                name,
            );
            let limit = amount(
                resources.and_then(|resources| resources.limits.as_ref()),
                name,
            );
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What a container's state says, and whether it says more than the phase.
fn state_reason(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone().filter(|reason| !reason.is_empty());
    }
    let ended = state.terminated.as_ref()?;
    match ended.reason.as_deref() {
        Some(reason) if !reason.is_empty() => Some(reason.to_owned()),
        _ => match ended.signal.filter(|signal| *signal != 0) {
            Some(signal) => Some(format!("Signal:{signal}")),
            None => Some(format!("ExitCode:{}", ended.exit_code)),
        },
    }
}

/// The STATUS column.
fn status_text(pod: &Pod, status: &PodStatus) -> String {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut text = status
        .reason
        .clone()
        .or_else(|| status.phase.clone())
        .unwrap_or_default();
    let gated = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    });
    if gated {
        text = "SchedulingGated".to_owned();
    }
    let total = spec.init_containers.as_ref().map_or(0, Vec::len);
    let mut initialising = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        let ended = container
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        if ended.is_some_and(|ended| ended.exit_code == 0) || container.started == Some(true) {
            continue;
        }
        text = match (ended, state_reason(container)) {
            (Some(_), Some(reason)) => format!("Init:{reason}"),
            (None, Some(reason)) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{index}/{total}"),
        };
        initialising = true;
        break;
    }
    if !initialising {
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            match state_reason(container) {
                Some(reason) => text = reason,
                None => {
                    running |= container.ready
                        && container
                            .state
                            .as_ref()
                            .is_some_and(|state| state.running.is_some())
                }
            }
        }
        if text == "Completed" && running {
            let ready = status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            text = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        text = match status.reason.as_deref() {
            Some("NodeLost") => "Unknown".to_owned(),
            _ => "Terminating".to_owned(),
        };
    }
    text
}

impl Kind for PodKind {
    type Object = Pod;

    const INFO: ResourceInfo = ResourceInfo {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const FIELD_LABELS: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ];

    fn default(object: &mut Pod) {
        if let Some(spec) = &mut object.spec {
            pod_spec::default(spec);
            spec.enable_service_links.get_or_insert(true);
        }
    }

    fn prepare_create(object: &mut Pod) {
        let qos = object.spec.as_ref().map(qos).unwrap_or("BestEffort");
        object.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos.to_owned()),
            ..PodStatus::default()
        });
    }

    fn validate(object: &Pod, errors: &mut ErrorList) {
        pod_spec::validate(object.spec.as_ref(), &Path::new("spec"), errors);
    }

    fn prepare_update(new: &mut Pod, old: &Pod) {
        new.status.clone_from(&old.status);
        let changed = new.spec != old.spec;
        new.metadata.generation = old
            .metadata
            .generation
            .map(|generation| generation + i64::from(changed));
    }

    fn validate_update(new: &Pod, old: &Pod, errors: &mut ErrorList) {
        // Images may change, and little else.
        let (Some(mut spec), Some(before)) = (new.spec.clone(), old.spec.as_ref()) else {
            return;
        };
        let same_shape = spec.containers.len() == before.containers.len()
            && spec.init_containers.as_ref().map(Vec::len)
                == before.init_containers.as_ref().map(Vec::len);
        if same_shape {
            for (container, old) in spec.containers.iter_mut().zip(&before.containers) {
                container.image.clone_from(&old.image);
            }
            for (container, old) in spec
                .init_containers
                .iter_mut()
                .flatten()
                .zip(before.init_containers.iter().flatten())
            {
                container.image.clone_from(&old.image);
            }
        }
        spec.active_deadline_seconds = before.active_deadline_seconds;
        spec.termination_grace_period_seconds = before.termination_grace_period_seconds;
        spec.tolerations.clone_from(&before.tolerations);
        spec.scheduling_gates.clone_from(&before.scheduling_gates);
        if spec != *before {
            errors.forbidden(
                &Path::new("spec"),
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            );
        }
    }

    fn prepare_status_update(new: &mut Pod, old: &Pod) {
        new.spec.clone_from(&old.spec);
        let qos = old
            .status
            .as_ref()
            .and_then(|status| status.qos_class.clone());
        let status = new.status.get_or_insert_default();
        if status.qos_class.is_none() {
            status.qos_class = qos;
        }
    }

    fn selectable_fields(object: &Pod) -> Vec<(&'static str, String)> {
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        vec![
            (
                "spec.nodeName",
                text(spec.and_then(|spec| spec.node_name.as_ref())),
            ),
            (
                "spec.restartPolicy",
                text(spec.and_then(|spec| spec.restart_policy.as_ref())),
            ),
            (
                "spec.schedulerName",
                text(spec.and_then(|spec| spec.scheduler_name.as_ref())),
            ),
            (
                "spec.serviceAccountName",
                text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            ),
            (
                "spec.hostNetwork",
                spec.and_then(|spec| spec.host_network)
                    .unwrap_or(false)
                    .to_string(),
            ),
            (
                "status.phase",
                text(status.and_then(|status| status.phase.as_ref())),
            ),
            (
                "status.podIP",
                text(status.and_then(|status| status.pod_ip.as_ref())),
            ),
            (
                "status.podIPs",
                text(status.and_then(|status| status.pod_ip.as_ref())),
            ),
            (
                "status.nominatedNodeName",
                text(status.and_then(|status| status.nominated_node_name.as_ref())),
            ),
        ]
    }

    fn columns() -> Vec<Column> {
        let text = |name, description: String, priority| {
            table::column(name, "string", description, priority)
        };
        let status = |field: &str| table::field_doc::<PodStatus>(field);
        vec![
            table::name_column(),
            text("Ready", "The aggregate readiness state of this pod for accepting traffic.".to_owned(), 0),
            text("Status", "The aggregate status of the containers in this pod.".to_owned(), 0),
            text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.".to_owned(), 0),
            table::age_column(),
            text("IP", status("podIP"), 1),
            text("Node", table::field_doc::<PodSpec>("nodeName"), 1),
            text("Nominated Node", status("nominatedNodeName"), 1),
            text("Readiness Gates", table::field_doc::<PodSpec>("readinessGates"), 1),
        ]
    }

    fn row(object: &Pod, now: i64) -> Vec<Value> {
        let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
        let spec = object.spec.as_ref().unwrap_or(&no_spec);
        let status = object.status.as_ref().unwrap_or(&no_status);
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let ready = containers
            .iter()
            .filter(|container| container.ready)
            .count();
        let restarts: i32 = containers
            .iter()
            .map(|container| container.restart_count)
            .sum();
        let last = containers
            .iter()
            .filter_map(|container| {
                container
                    .last_state
                    .as_ref()?
                    .terminated
                    .as_ref()?
                    .finished_at
                    .as_ref()
            })
            .max_by_key(|time| time.0.as_nanosecond());
        let restarts = match last {
            Some(last) if restarts > 0 => {
                format!("{restarts} ({} ago)", table::since(Some(last), now))
            }
            _ => restarts.to_string(),
        };
        let or_none = |text: Option<&String>| {
            text.filter(|text| !text.is_empty())
                .map_or("<none>", String::as_str)
                .to_owned()
        };
        let gates = spec.readiness_gates.as_deref().unwrap_or_default();
        let passed = gates.iter().filter(|gate| {
            status.conditions.iter().flatten().any(|condition| {
                condition.type_ == gate.condition_type && condition.status == "True"
            })
        });
        let gates = match gates.len() {
            0 => "<none>".to_owned(),
            total => format!("{}/{total}", passed.count()),
        };
        vec![
            table::name_cell(&object.metadata),
            json!(format!("{ready}/{}", spec.containers.len())),
            json!(status_text(object, status)),
            json!(restarts),
            table::age_cell(&object.metadata, now),
            json!(or_none(status.pod_ip.as_ref())),
            json!(or_none(spec.node_name.as_ref())),
            json!(or_none(status.nominated_node_name.as_ref())),
            json!(gates),
        ]
    }
}
