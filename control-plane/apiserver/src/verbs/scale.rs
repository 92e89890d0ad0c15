//! The `scale` subresource of kinds that have replicas.

use std::collections::BTreeMap;

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::kind::WriteScope;
use gantry_api::status::StatusError;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::body;
use super::get::check_options;
use super::update::{check_name, patch_type, patched};
use super::write::{Write, Written, conflict_below, failed_precondition, must_be, swap};
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

/// Replaces the Scale of an object.
pub(crate) async fn update(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("UpdateOptions")?;
    let sent = body::object(context, &**body::SCALE, options.validation).await?;
    let scale = sent.object;
    check_name(context, meta(&scale, "name"))?;
    let write = Write::update(WriteScope::Main, options.dry_run);
    let written = swap(context, write, None, |current| {
        must_be(context, current, "uid", meta(&scale, "uid"))?;
        scaled(context, current, &scale)
    });
    Ok(answer(written.await, sent.warnings))
}

/// Patches the Scale of an object.
pub(crate) async fn patch(context: &Context<'_>) -> Result<Answer, StatusError> {
    let patch_type = patch_type(context)?;
    let options = context.write_options("PatchOptions")?;
    let mut warnings = Vec::new();
    let write = Write::update(WriteScope::Main, options.dry_run);
    let written = swap(context, write, None, |current| {
        let kind = &**body::SCALE;
        let scale = scale_of(current);
        let decoded = patched(context, kind, patch_type, &scale, options.validation)?;
        warnings = decoded.warnings;
        let object = scaled(context, current, &decoded.object)?;
        let (meant, found) = (meta(&decoded.object, "uid"), meta(current, "uid"));
        if !meant.is_empty() && meant != found {
            let why = failed_precondition("UID", meant, found);
            return Err(conflict_below(context, &why));
        }
        Ok(object)
    });
    let written = written.await;
    Ok(answer(written, warnings))
}

/// An object that has the replicas, and is of the revision, that a Scale says.
fn scaled(context: &Context<'_>, current: &Value, scale: &Value) -> Result<Value, StatusError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let mut errors = ErrorList::default();
        let path = Path::new("spec").child("replicas");
        errors.invalid(&path, replicas, gantry_api::names::NOT_NEGATIVE);
        let name = context.name();
        return Err(StatusError::invalid_kind(
            "autoscaling",
            "Scale",
            name,
            errors,
        ));
    }
    let mut object = current.clone();
    *object.member(&["spec", "replicas"]) = json!(replicas);
    let version = meta(scale, "resourceVersion");
    if !version.is_empty() {
        *object.member(&["metadata", "resourceVersion"]) = json!(version);
    }
    Ok(object)
}

fn answer(written: Result<Written, StatusError>, warnings: Vec<String>) -> Answer {
    let answer = written.map(|written| {
        let mut object = written.object;
        *object.member(&["metadata", "resourceVersion"]) = json!(written.revision.to_string());
        Answer::value(&scale_of(&object))
    });
    Answer::of(answer).with_warnings(warnings)
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
