//! The `scale` subresource of kinds that have replicas.

use std::collections::BTreeMap;

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::kind::WriteScope;
use gantry_api::patch::{self, PatchType};
use gantry_api::status::StatusError;
use http::Method;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::body;
use super::get::check_options;
use super::update::check_name;
use super::write::{Write, must_be, swap};
use crate::codec;
use crate::context::{Context, meta};
use crate::response::Answer;

/// Reads the Scale of an object.
pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    check_options(context)?;
    let entry = context.current()?;
    let object = codec::decode_for_client(context.resource, &entry)?;
    Ok(Answer::value(&scale_of(&object)))
}

/// Changes the replicas of an object.
pub(crate) async fn scale(context: &Context<'_>, method: &Method) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let options = context.write_options(match *method {
        Method::PATCH => "PatchOptions",
        _ => "UpdateOptions",
    })?;
    let sent = match *method {
        Method::PATCH => None,
        _ => Some(body::object(context, &**body::SCALE, options.validation).await?),
    };
    let (sent, warnings) = match sent {
        Some(decoded) => (Some(decoded.object), decoded.warnings),
        None => (None, Vec::new()),
    };
    if let Some(scale) = &sent {
        check_name(context, meta(scale, "name"))?;
    }
    let replicas = |current: &Value| -> Result<Value, StatusError> {
        let scale = scale_of(current);
        let wanted: Value = if let Some(scale) = &sent {
            scale.clone()
        } else {
            let media_type = context.content_type().split(';').next().unwrap_or_default();
            let patch_type = PatchType::from_content_type(media_type)
                .ok_or_else(StatusError::unsupported_patch)?;
            // A Scale has no lists: a strategic merge is a merge.
            let patch_type = match patch_type {
                PatchType::Strategic => PatchType::Merge,
                other => other,
            };
            let kind = context.resource.kind.as_ref();
            patch::apply(kind, patch_type, &scale, &context.body)?.object
        };
        let (kind, version) = (&wanted["kind"], &wanted["apiVersion"]);
        if let (Some(kind), Some(version)) = (kind.as_str(), version.as_str())
            && (kind, version) != ("Scale", "autoscaling/v1")
        {
            let version = version.rsplit('/').next().unwrap_or_default();
            return Err(StatusError::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a Scale: converting ({version}.{kind}) to (autoscaling.Scale): unknown conversion"
            )));
        }
        let parsed: Scale = serde_json::from_value(wanted.clone()).map_err(|error| {
            StatusError::bad_request(format!(
                "Scale in version \"v1\" cannot be handled as a Scale: {error}"
            ))
        })?;
        let metadata = parsed.metadata;
        let namespace = metadata.namespace.unwrap_or_default();
        if !namespace.is_empty() && Some(namespace.as_str()) != context.namespace() {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        check_name(context, metadata.name.as_deref().unwrap_or_default())?;
        if method == Method::PUT {
            let uid = metadata.uid.unwrap_or_default();
            must_be(context, current, "uid", &uid)?;
        }
        let replicas = parsed.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        if replicas < 0 {
            let mut errors = ErrorList::default();
            errors.invalid(
                &Path::new("spec").child("replicas"),
                replicas,
                gantry_api::names::NOT_NEGATIVE,
            );
            return Err(StatusError::invalid_kind(
                "autoscaling",
                "Scale",
                context.name(),
                errors,
            ));
        }
        let asked = metadata.resource_version.unwrap_or_default();
        if !asked.is_empty() && asked != meta(current, "resourceVersion") {
            return Err(StatusError::stale(info, context.name()));
        }
        Ok(json!(replicas))
    };
    let write = Write::update(WriteScope::Main, options.dry_run);
    let written = swap(context, write, None, |current| {
        let mut object = current.clone();
        *object.member(&["spec", "replicas"]) = replicas(current)?;
        Ok(object)
    })
    .await;
    let answer = written.map(|written| {
        let mut object = written.object;
        *object.member(&["metadata", "resourceVersion"]) = json!(written.revision.to_string());
        Answer::value(&scale_of(&object))
    });
    Ok(Answer::of(answer).with_warnings(warnings))
}

/// What an object selects its pods by: labels alone, where it is a ReplicationController.
fn selector_of(object: &Value) -> Option<LabelSelector> {
    let selector = &object["spec"]["selector"];
    let labels: Option<BTreeMap<String, String>> = serde_json::from_value(selector.clone()).ok();
    match labels {
        None => serde_json::from_value(selector.clone()).ok(),
        labels => Some(LabelSelector {
            match_labels: labels,
            ..LabelSelector::default()
        }),
    }
}

/// A Scale as it stands for an object.
fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if !object["metadata"][field].is_null() {
            metadata[field] = object["metadata"][field].clone();
        }
    }
    let mut spec = json!({});
    if let Some(replicas) = object["spec"]["replicas"]
        .as_i64()
        .filter(|replicas| *replicas != 0)
    {
        *spec.member(&["replicas"]) = json!(replicas);
    }
    let selector = selector_of(object);
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let text = gantry_api::selector::LabelSelector::from_api(selector.as_ref()).to_string();
    if !text.is_empty() {
        *status.member(&["selector"]) = json!(text);
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}
