//! The effects: binds pods, and tells why they could not be scheduled.

use std::sync::Arc;

use gantry_base::paths;
use gantry_informer::clock::seconds;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::pod::PodInfo;

/// Binds the pod to the node.
pub(crate) async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> kube::Result<()> {
    let (namespace, name) = (&pod.key.namespace, &pod.key.name);
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"namespace": namespace, "name": name, "uid": pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri(paths::namespaced(namespace, &["pods", name, "binding"]))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await.map(drop)
}

/// Whether the pod's status says already what is to be told, with the node that it is expected on.
pub(crate) fn is_told(pod: &PodInfo, message: &str, nominated: Option<&Arc<str>>) -> bool {
    pod.nominated.as_ref() == nominated
        && pod.condition.as_ref().is_some_and(|condition| {
            condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
                && condition.message.as_deref() == Some(message)
                && condition.observed_generation == pod.generation
        })
}

/// Writes into the pod's status that it cannot be scheduled, and why; and where it is expected once others have left.
pub(crate) async fn tell(
    client: &kube::Client,
    pod: &PodInfo,
    message: &str,
    nominated: Option<&Arc<str>>,
    now: Timestamp,
) -> kube::Result<()> {
    let since = pod
        .condition
        .as_ref()
        .filter(|condition| condition.status == "False")
        .and_then(|condition| condition.last_transition_time.clone())
        .unwrap_or_else(|| seconds(now));
    let conditions = json!([{
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "observedGeneration": pod.generation,
        "lastTransitionTime": since,
    }]);
    let status = match pod.nominated.as_ref() == nominated {
        true => json!({"conditions": conditions}),
        false => json!({"conditions": conditions, "nominatedNodeName": nominated}),
    };
    let patch = json!({"status": status});
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let patch = Patch::Strategic(patch);
    api.patch_status(&pod.key.name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}
