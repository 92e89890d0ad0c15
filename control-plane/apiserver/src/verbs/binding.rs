//! `pods/binding`: the scheduler's decision.

use std::collections::BTreeMap;

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::meta::validate_maps;
use gantry_api::names;
use gantry_api::status::{Details, StatusError};
use http::StatusCode;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::write::{Write, success, swap};
use crate::context::{Context, Operation, meta};
use crate::response::Answer;

pub(crate) async fn bind(context: &Context<'_>) -> Result<Answer, StatusError> {
    let binding: Binding = context.request("Binding").await?;
    let node = binding.target.name.unwrap_or_default();
    let name = binding.metadata.name.unwrap_or_default();
    if !name.is_empty() && name != context.name() {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    let mut errors = ErrorList::default();
    let kind = binding.target.kind.unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        errors.not_supported(
            &Path::new("target").child("kind"),
            &kind,
            &["Node", "<empty>"],
        );
    } else if node.is_empty() {
        errors.required(&Path::new("target").child("name"), "");
    } else if let Some(detail) = names::is_dns1123_subdomain(&node) {
        errors.invalid(&Path::new("target").child("name"), &node, &detail);
    }
    if let Some(error) = errors.0.first() {
        return Err(StatusError::unclassified(format!(
            "{}: {}",
            error.path, error.message
        )));
    }
    let uid = binding.metadata.uid.unwrap_or_default();
    let write = Write::own(
        Operation::Update,
        context.write_options("CreateOptions")?.dry_run,
    );
    swap(context, write, None, |current| {
        may_be_bound(context, current, &uid)?;
        let mut pod = current.clone();
        *pod.member(&["spec", "nodeName"]) = json!(node);
        if let Some(annotations) = &binding.metadata.annotations {
            annotate(context, &mut pod, annotations)?;
        }
        set_scheduled(&mut pod, &context.api.clock.stamp());
        Ok(pod)
    })
    .await?;
    Ok(success(StatusCode::CREATED))
}

/// Refuses what has a node, must not get one yet, or is another pod than the client means.
fn may_be_bound(context: &Context<'_>, pod: &Value, uid: &str) -> Result<(), StatusError> {
    let name = context.name();
    if !uid.is_empty() && uid != meta(pod, "uid") {
        return Err(StatusError::precondition(
            context.resource.info(),
            name,
            &format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta(pod, "uid")
            ),
        ));
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(refused(context, &why));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{bound}\"");
        return Err(refused(context, &why));
    }
    let gates = pod["spec"]["schedulingGates"].as_array();
    if gates.is_some_and(|gates| !gates.is_empty()) {
        let why = format!("pod {name} has non-empty .spec.schedulingGates");
        return Err(refused(context, &why));
    }
    Ok(())
}

/// Adds annotations to a pod, which keeps to what any pod's annotations may be.
fn annotate(
    context: &Context<'_>,
    pod: &mut Value,
    annotations: &BTreeMap<String, String>,
) -> Result<(), StatusError> {
    for (key, value) in annotations {
        *pod.member(&["metadata", "annotations", key]) = json!(value);
    }
    let all = BTreeMap::deserialize(&pod["metadata"]["annotations"]);
    let metadata = ObjectMeta {
        annotations: all.ok(),
        ..ObjectMeta::default()
    };
    let mut errors = ErrorList::default();
    validate_maps(&metadata, &Path::new("metadata"), &mut errors);
    match errors.is_empty() {
        true => Ok(()),
        false => {
            let info = context.resource.info();
            Err(StatusError::invalid(info, context.name(), errors))
        }
    }
}

fn refused(context: &Context<'_>, why: &str) -> StatusError {
    let details = Details {
        name: context.name().to_owned(),
        kind: "pods/binding".to_owned(),
        ..Details::default()
    };
    let message = format!(
        "Operation cannot be fulfilled on pods/binding \"{}\": {why}",
        context.name()
    );
    StatusError::new(409, "Conflict", message, Some(details))
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions: Vec<Value> = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions.retain(|old| old["type"] != "PodScheduled");
    conditions.push(condition);
    *pod.member(&["status", "conditions"]) = Value::Array(conditions);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use http::{Request, header};
    use tower::ServiceExt;

    use super::*;
    use crate::streams::NoNodes;
    use crate::{ApiServer, ApiServerConfig, Identity};

    async fn post(server: &ApiServer, path: &str, body: Value) -> u16 {
        let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
        let request = Request::post(format!("/api/v1/namespaces/default/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .expect("a request");
        let Ok(response) = server.local_service(administrator).oneshot(request).await;
        response.status().as_u16()
    }

    #[tokio::test]
    async fn a_binding_brings_nothing_that_the_pod_could_not_be_updated_with() {
        let store = gantry_store::Store::ephemeral();
        let server = ApiServer::new(ApiServerConfig::default(), store, Arc::new(NoNodes));
        server.bootstrap(6443).await.expect("bootstrapped");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}
        });
        assert_eq!(post(&server, "pods", pod).await, 201);
        let bind = async |node: &str, annotations: Value| {
            let binding = json!({
                "metadata": {"name": "p", "annotations": annotations}, "target": {"kind": "Node", "name": node}
            });
            post(&server, "pods/p/binding", binding).await
        };
        assert_eq!(bind("n", json!({"a b": "c"})).await, 422);
        assert_eq!(bind("n", json!({"a": "x".repeat(300_000)})).await, 422);
        assert!(bind("not a node", json!({})).await >= 400);
        assert_eq!(bind("n", json!({"a": "b"})).await, 201);
    }
}
