//! Pod: containers that run together on one node.

mod annotations;
mod resize;
mod row;
mod status;
mod update;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodIP, PodSpec, PodStatus};
use serde_json::Value;

use super::table::Printer;
use super::{pod_spec, workload};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, Parts, StaticInfo};
use crate::parts;

/// See [`Pod`].
pub struct PodKind;

/// Why a pod with gates has no node.
fn scheduling_gated() -> PodCondition {
    PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("SchedulingGated".to_owned()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
        ..PodCondition::default()
    }
}

/// Takes away what nothing here provides, as a cluster does that has not enabled it.
fn drop_disabled(spec: &mut PodSpec) {
    spec.scheduling_group = None;
    for volume in spec.volumes.iter_mut().flatten() {
        let projected = volume.projected.iter_mut();
        for source in projected.flat_map(|projected| projected.sources.iter_mut().flatten()) {
            source.cluster_trust_bundle = None;
            source.pod_certificate = None;
        }
    }
}

/// Sees to it that `podIP` is the first of `podIPs`, whoever writes only one of them; where they differ, it is the only one.
fn agree_on_addresses(status: &mut PodStatus) {
    let alone = status.pod_ip.clone().filter(|ip| !ip.is_empty());
    let first = status.pod_ips.as_ref().and_then(|ips| ips.first());
    let first = first.map(|first| first.ip.clone());
    match (alone, first) {
        (Some(ip), first) if first.as_ref() != Some(&ip) => {
            status.pod_ips = Some(vec![PodIP { ip }])
        }
        (None, Some(first)) => status.pod_ip = Some(first),
        _ => {}
    }
}

impl Kind for PodKind {
    type Object = Pod;

    const INFO: StaticInfo = StaticInfo {
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

    const PARTS: Parts<Pod> = parts!(Pod: spec, status);

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
        let spec = object.spec.get_or_insert_default();
        pod_spec::default(spec);
        pod_spec::default_for_pod(spec);
        spec.enable_service_links.get_or_insert(true);
        if let Some(status) = &mut object.status {
            agree_on_addresses(status);
        }
    }

    fn prepare_create(object: &mut Pod) {
        annotations::adopt_app_armor(object);
        if let Some(spec) = &mut object.spec {
            pod_spec::merge_labels(spec, object.metadata.labels.as_ref());
            drop_disabled(spec);
        }
        let qos = object
            .spec
            .as_ref()
            .map_or("BestEffort", pod_spec::qos_class);
        let gates = object
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduling_gates.as_ref());
        let gated = gates.is_some_and(|gates| !gates.is_empty());
        object.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos.to_owned()),
            conditions: gated.then(|| vec![scheduling_gated()]),
            ..PodStatus::default()
        });
    }

    fn validate(object: &Pod, errors: &mut ErrorList) {
        annotations::validate(object, errors);
        let path = Path::new("spec");
        let spec = object.spec.as_ref();
        let name = object.metadata.name.as_deref();
        pod_spec::validate_for_pod(spec, name, &path, errors);
        let Some(spec) = spec else {
            return;
        };
        if spec
            .ephemeral_containers
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            errors.forbidden(
                &path.child("ephemeralContainers"),
                "cannot be set on create",
            );
        }
        let gated = spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty());
        if gated && spec.node_name.as_ref().is_some_and(|name| !name.is_empty()) {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden(&path.child("nodeName"), detail);
        }
        let annotations = object.metadata.annotations.as_ref();
        pod_spec::validate_matches(annotations, spec, &path, errors);
    }

    fn validate_update(new: &Pod, old: &Pod, errors: &mut ErrorList) {
        update::validate(new, old, errors);
    }

    fn prepare_status_update(new: &mut Pod, old: &Pod) {
        let qos = old
            .status
            .as_ref()
            .and_then(|status| status.qos_class.clone());
        new.status.get_or_insert_default().qos_class = qos;
    }

    fn validate_status_update(new: &Pod, old: &Pod, errors: &mut ErrorList) {
        status::validate(new, old, errors);
    }

    fn prepare_part(_name: &str, new: &mut Pod, old: &Pod) {
        resize::prepare(new, old);
    }

    fn validate_part(_name: &str, new: &Pod, old: &Pod, errors: &mut ErrorList) {
        resize::validate(new, old, errors);
    }

    fn warnings(new: &Pod, old: Option<&Pod>) -> Vec<String> {
        // Who updates a pod is a program, which reads no warnings.
        if old.is_some() {
            return Vec::new();
        }
        let mut warnings = annotations::warnings(new);
        let metadata = &new.metadata;
        warnings.extend(workload::name_warning(metadata, "the Pod's hostname"));
        if let Some(spec) = &new.spec {
            let path = Path::default();
            warnings.extend(pod_spec::warnings(metadata, spec, false, &path));
        }
        warnings
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

    fn printer() -> Printer<Pod> {
        row::printer()
    }

    fn completed(object: &Value) -> Option<(&'static str, &'static str)> {
        match object["status"]["phase"].as_str()? {
            "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
            "Failed" => Some(("Failed", "The pod failed.")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_told_alone_and_as_the_first_of_all() {
        let made = |status: Value| {
            let mut pod: Pod = serde_json::from_value(json!({"status": status})).unwrap();
            PodKind::default(&mut pod);
            let status = serde_json::to_value(pod.status.unwrap()).unwrap();
            (status["podIP"].clone(), status["podIPs"].clone())
        };
        let both = || json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        let one = || json!([{"ip": "10.0.0.2"}]);
        for (written, alone, all) in [
            (json!({}), Value::Null, Value::Null),
            (json!({"podIP": "10.0.0.2"}), json!("10.0.0.2"), one()),
            (json!({"podIPs": both()}), json!("10.0.0.1"), both()),
            (
                json!({"podIP": "10.0.0.1", "podIPs": both()}),
                json!("10.0.0.1"),
                both(),
            ),
            (
                json!({"podIP": "10.0.0.2", "podIPs": both()}),
                json!("10.0.0.2"),
                one(),
            ),
        ] {
            assert_eq!(made(written.clone()), (alone, all), "{written}");
        }
    }
}
