//! `pods/binding`: the scheduler's decision.

use std::collections::BTreeMap;

use gantry_api::field::{ErrorList, Path, aggregate};
use gantry_api::json::Members;
use gantry_api::meta::validate_maps;
use gantry_api::names;
use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::write::{Write, conflict_below, must_be, success, swap};
use super::{body, pod_condition};
use crate::context::{Context, Operation};
use crate::response::Answer;

pub(crate) async fn bind(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let (binding, warnings): (Binding, _) =
        body::typed(context, &**body::BINDING, options.validation).await?;
    let answer = bind_as(context, binding, options.dry_run).await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

async fn bind_as(
    context: &Context<'_>,
    binding: Binding,
    dry_run: bool,
) -> Result<Answer, StatusError> {
    context.admit_below()?;
    let node = binding.target.name.unwrap_or_default();
    let metadata = binding.metadata;
    if metadata.name.as_deref().unwrap_or_default() != context.name() {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    check_target(binding.target.kind.as_deref().unwrap_or_default(), &node)?;
    let write = Write::own(Operation::Update, dry_run);
    swap(context, write, None, |current| {
        must_be(
            context,
            current,
            "uid",
            metadata.uid.as_deref().unwrap_or_default(),
        )?;
        let version = metadata.resource_version.as_deref().unwrap_or_default();
        must_be(context, current, "resourceVersion", version)?;
        may_be_bound(context, current)?;
        let mut pod = current.clone();
        *pod.member(&["spec", "nodeName"]) = json!(node);
        if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
            // Where the pod was expected is of no interest any more.
            status.remove("nominatedNodeName");
        }
        complete(context, &mut pod, &metadata)?;
        set_scheduled(&mut pod, &context.api.clock.stamp());
        Ok(pod)
    })
    .await?;
    Ok(success(StatusCode::CREATED))
}

/// Refuses to bind to what is no node.
fn check_target(kind: &str, node: &str) -> Result<(), StatusError> {
    let mut errors = ErrorList::default();
    let path = Path::new("target");
    if !kind.is_empty() && kind != "Node" {
        errors.not_supported(&path.child("kind"), kind, &["Node", "<empty>"]);
    }
    match node {
        "" => errors.required(&path.child("name"), ""),
        name => errors.invalid_each(&path.child("name"), name, names::dns1123_subdomain(name)),
    }
    match errors.is_empty() {
        true => Ok(()),
        // Kubernetes says no more of it than this.
        false => Err(StatusError::unclassified(aggregate(&errors.told()))),
    }
}

/// Refuses what has a node or must not get one yet.
fn may_be_bound(context: &Context<'_>, pod: &Value) -> Result<(), StatusError> {
    let name = context.name();
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(conflict_below(context, &why));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{bound}\"");
        return Err(conflict_below(context, &why));
    }
    let gates = pod["spec"]["schedulingGates"].as_array();
    if gates.is_some_and(|gates| !gates.is_empty()) {
        let why = format!("pod {name} has non-empty .spec.schedulingGates");
        return Err(conflict_below(context, &why));
    }
    Ok(())
}

/// Adds a binding's labels and annotations to a pod, which keeps to what any pod's may be.
fn complete(
    context: &Context<'_>,
    pod: &mut Value,
    binding: &ObjectMeta,
) -> Result<(), StatusError> {
    for (map, more) in [
        ("labels", &binding.labels),
        ("annotations", &binding.annotations),
    ] {
        for (key, value) in more.iter().flatten() {
            *pod.member(&["metadata", map, key]) = json!(value);
        }
    }
    let map = |name: &str| BTreeMap::deserialize(&pod["metadata"][name]).ok();
    let metadata = ObjectMeta {
        labels: map("labels"),
        annotations: map("annotations"),
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

/// Says that the pod has a node, in place of what was said of that before.
fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": null,
    });
    pod_condition::set(pod, condition, now);
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::ApiServer;
    use crate::testing::{self, send};

    async fn post(server: &ApiServer, path: &str, body: Value) -> u16 {
        let path = format!("/api/v1/namespaces/default/{path}");
        send(server, Method::POST, &path, body).await.0
    }

    #[tokio::test]
    async fn a_binding_brings_nothing_that_the_pod_could_not_be_updated_with() {
        let server = testing::server().await;
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
        // It says whom it binds, and is no other kind of object.
        let unnamed = json!({"target": {"kind": "Node", "name": "n"}});
        assert_eq!(post(&server, "pods/p/binding", unnamed).await, 400);
        let other = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        assert_eq!(post(&server, "pods/p/binding", other).await, 400);
        let elsewhere =
            json!({"metadata": {"name": "p", "namespace": "other"}, "target": {"name": "n"}});
        assert_eq!(post(&server, "pods/p/binding", elsewhere).await, 400);
        assert_eq!(bind("n", json!({"a b": "c"})).await, 422);
        assert_eq!(bind("n", json!({"a": "x".repeat(300_000)})).await, 422);
        assert!(bind("not a node", json!({})).await >= 400);
        assert_eq!(bind("n", json!({"a": "b"})).await, 201);
    }

    #[test]
    fn everything_wrong_with_a_target_is_told() {
        let said = |kind: &str, node: &str| {
            let refused = check_target(kind, node).expect_err("it is refused");
            refused.message().to_owned()
        };
        assert_eq!(said("Node", ""), "target.name: Required value");
        assert_eq!(
            said("Pod", ""),
            "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]"
        );
        assert!(check_target("", "node-1").is_ok());
    }

    #[test]
    fn the_condition_of_scheduling_keeps_its_place() {
        let others = json!({"type": "Other", "status": "True"});
        let waiting = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
        let mut pod = json!({"status": {"conditions": [waiting, others]}});
        set_scheduled(&mut pod, "now");
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "now",
        });
        assert_eq!(pod["status"]["conditions"], json!([scheduled, others]));
        set_scheduled(&mut pod, "later");
        assert_eq!(pod["status"]["conditions"][0], scheduled);
        let mut new = json!({"status": {}});
        set_scheduled(&mut new, "now");
        assert_eq!(new["status"]["conditions"], json!([scheduled]));
    }
}
