//! A pod as a row of a table, with the STATUS that people read first.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::{Value, json};

use crate::kind::Column;
use crate::kinds::table;

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

/// See [`crate::kind::Kind::columns`].
pub(super) fn columns() -> Vec<Column> {
    let text =
        |name, description: String, priority| table::column(name, "string", description, priority);
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

/// See [`crate::kind::Kind::row`].
pub(super) fn row(object: &Pod, now: i64) -> Vec<Value> {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = object.spec.as_ref().unwrap_or(&no_spec);
    let status = object.status.as_ref().unwrap_or(&no_status);
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let ready = containers
        .iter()
        .filter(|container| container.ready)
        .count();
    // Each may be as large as its type allows.
    let restarts: i64 = containers
        .iter()
        .map(|container| i64::from(container.restart_count))
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
    let conditions = status.conditions.iter().flatten();
    let true_ones: HashSet<&str> = conditions
        .filter(|condition| condition.status == "True")
        .map(|condition| &*condition.type_)
        .collect();
    let passed = gates
        .iter()
        .filter(|gate| true_ones.contains(&*gate.condition_type));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_added_however_many_a_node_tells() {
        let status = json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": i32::MAX});
        let pod = json!({"status": {"containerStatuses": [status, status]}});
        let row = row(&serde_json::from_value(pod).unwrap(), 0);
        assert_eq!((&row[1], &row[3]), (&json!("2/0"), &json!("4294967294")));
    }
}
