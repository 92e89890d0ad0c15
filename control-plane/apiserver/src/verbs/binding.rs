//! `pods/binding`: the scheduler's decision.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::{Details, StatusError};
use http::StatusCode;
use k8s_openapi::api::core::v1::Binding;
use serde::Deserialize;
use serde_json::{Value, json};

use super::update::{store, success};
use crate::codec;
use crate::context::{ATTEMPTS, Context, meta};
use crate::response::Answer;

pub(crate) async fn bind(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let malformed = |error: serde_json::Error| {
        StatusError::bad_request(format!("the body is not a Binding: {error}"))
    };
    let binding: Value = serde_json::from_slice(&context.body).map_err(malformed)?;
    Binding::deserialize(&binding).map_err(malformed)?;
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let name = meta(&binding, "name");
    if !name.is_empty() && name != context.name() {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    let mut errors = ErrorList::default();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        errors.not_supported(
            &Path::new("target").child("kind"),
            kind,
            &["Node", "<empty>"],
        );
    } else if node.is_empty() {
        errors.required(&Path::new("target").child("name"), "");
    }
    if let Some(error) = errors.0.first() {
        return Err(StatusError::unclassified(format!(
            "{}: {}",
            error.path, error.message
        )));
    }
    for _ in 0..ATTEMPTS {
        let entry = context.current()?;
        let mut pod = codec::decode(info, &entry.value)?;
        let uid = meta(&binding, "uid");
        if !uid.is_empty() && uid != meta(&pod, "uid") {
            return Err(StatusError::precondition(
                info,
                context.name(),
                &format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta(&pod, "uid")
                ),
            ));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(refused(
                context,
                &format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    context.name()
                ),
            ));
        }
        let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !bound.is_empty() {
            return Err(refused(
                context,
                &format!(
                    "pod {} is already assigned to node \"{bound}\"",
                    context.name()
                ),
            ));
        }
        if pod["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty())
        {
            return Err(refused(
                context,
                &format!("pod {} has non-empty .spec.schedulingGates", context.name()),
            ));
        }
        *pod.member(&["spec", "nodeName"]) = json!(node);
        for (key, value) in binding["metadata"]["annotations"]
            .as_object()
            .into_iter()
            .flatten()
        {
            *pod.member(&["metadata", "annotations", key]) = value.clone();
        }
        set_scheduled(&mut pod, &context.api.clock.stamp());
        if context.dry_run()? {
            return Ok(success(StatusCode::CREATED));
        }
        if store(context, &entry, &pod).await?.is_some() {
            return Ok(success(StatusCode::CREATED));
        }
    }
    Err(StatusError::conflict(
        info,
        context.name(),
        "the pod keeps being modified; try again",
    ))
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
