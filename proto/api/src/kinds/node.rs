//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::table;
use crate::kind::{Column, Kind, ResourceInfo};

/// See [`Node`].
pub struct NodeKind;

impl Kind for NodeKind {
    type Object = Node;

    const INFO: ResourceInfo = ResourceInfo {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const FIELD_LABELS: &'static [&'static str] = &["spec.unschedulable"];

    fn default(object: &mut Node) {
        object.spec.get_or_insert_default();
        let status = object.status.get_or_insert_default();
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn prepare_create(_object: &mut Node) {}

    fn prepare_update(new: &mut Node, old: &Node) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(new: &mut Node, old: &Node) {
        new.spec.clone_from(&old.spec);
    }

    fn selectable_fields(object: &Node) -> Vec<(&'static str, String)> {
        let cordoned = object
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or(false);
        vec![("spec.unschedulable", cordoned.to_string())]
    }

    fn columns() -> Vec<Column> {
        let text = |name, description: &str, priority| {
            table::column(name, "string", description.to_owned(), priority)
        };
        vec![
            table::name_column(),
            text("Status", "The status of the node", 0),
            text("Roles", "The roles of the node", 0),
            table::age_column(),
            text("Version", "Kubelet Version reported by the node.", 0),
            text("Internal-IP", "List of addresses reachable to the node.", 1),
            text("External-IP", "List of addresses reachable to the node.", 1),
            text(
                "OS-Image",
                "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
                1,
            ),
            text(
                "Kernel-Version",
                "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
                1,
            ),
            text(
                "Container-Runtime",
                "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
                1,
            ),
        ]
    }

    fn row(object: &Node, now: i64) -> Vec<Value> {
        let status = object.status.as_ref();
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition.type_ == "Ready")
            });
        let mut state = match ready.map(|condition| condition.status.as_str()) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if object.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
            state.push_str(",SchedulingDisabled");
        }
        let roles: Vec<&str> = object
            .metadata
            .labels
            .iter()
            .flatten()
            .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
            .collect();
        let or = |text: &str, other: &str| {
            if text.is_empty() {
                other.to_owned()
            } else {
                text.to_owned()
            }
        };
        let address = |kind: &str| {
            let addresses = status.and_then(|status| status.addresses.as_ref());
            let found = addresses
                .into_iter()
                .flatten()
                .find(|address| address.type_ == kind);
            found.map_or("<none>".to_owned(), |address| address.address.clone())
        };
        let info = status.and_then(|status| status.node_info.as_ref());
        let of =
            |text: Option<&String>| or(text.map(String::as_str).unwrap_or_default(), "<unknown>");
        vec![
            table::name_cell(&object.metadata),
            json!(state),
            json!(or(&roles.join(","), "<none>")),
            table::age_cell(&object.metadata, now),
            json!(
                info.map(|info| info.kubelet_version.clone())
                    .unwrap_or_default()
            ),
            json!(address("InternalIP")),
            json!(address("ExternalIP")),
            json!(of(info.map(|info| &info.os_image))),
            json!(of(info.map(|info| &info.kernel_version))),
            json!(of(info.map(|info| &info.container_runtime_version))),
        ]
    }
}
