//! A node as a row of a table.

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::kinds::table::{self, Printer};

/// See [`crate::kind::Kind::printer`].
pub(super) fn printer() -> Printer<Node> {
    let text =
        |name, description: &str, priority| table::column(name, "string", description, priority);
    let state_and_roles = [
        text("Status", "The status of the node", 0),
        text("Roles", "The roles of the node", 0),
    ];
    let reported = [
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
    ];
    Printer::<Node>::named()
        .columns(state_and_roles, |object, _| {
            [json!(state(object)), json!(roles(object))]
        })
        .age()
        .columns(reported, |object, _| {
            let status = object.status.as_ref();
            let info = status.and_then(|status| status.node_info.as_ref());
            let version = info.map(|info| info.kubelet_version.as_str());
            [
                json!(version.unwrap_or_default()),
                json!(address(object, "InternalIP")),
                json!(address(object, "ExternalIP")),
                json!(or_unknown(info.map(|info| info.os_image.as_str()))),
                json!(or_unknown(info.map(|info| info.kernel_version.as_str()))),
                json!(or_unknown(
                    info.map(|info| info.container_runtime_version.as_str())
                )),
            ]
        })
}

fn or_unknown(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("<unknown>")
}

/// The STATUS that people read first.
fn state(object: &Node) -> String {
    let status = object.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready");
    let state = match ready.map(|condition| condition.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let spec = object.spec.as_ref();
    match spec.and_then(|spec| spec.unschedulable) {
        Some(true) => format!("{state},SchedulingDisabled"),
        _ => state.to_owned(),
    }
}

/// The roles that a node's labels name.
fn roles(object: &Node) -> String {
    let labels = object.metadata.labels.iter().flatten();
    let roles = labels.filter_map(|(key, value)| match key.as_str() {
        "kubernetes.io/role" => Some(value.as_str()),
        _ => key.strip_prefix("node-role.kubernetes.io/"),
    });
    let roles: Vec<&str> = roles.filter(|role| !role.is_empty()).collect();
    table::or_none(roles.join(","))
}

/// The first address of a type.
fn address<'a>(object: &'a Node, kind: &str) -> &'a str {
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let mut addresses = addresses.into_iter().flatten();
    let found = addresses.find(|address| address.type_ == kind);
    found.map_or("<none>", |address| address.address.as_str())
}
