//! `namespaces/finalize`: takes finalizers off a namespace's spec, and with the last one the namespace.

use gantry_api::decode::decode;
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use serde_json::Value;

use super::update::store;
use crate::codec;
use crate::context::{ATTEMPTS, Context, meta};
use crate::response::Answer;

pub(crate) async fn finalize(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let wanted = decode(
        &context.body,
        context.content_type(),
        context.resource.kind.as_ref(),
        context.field_validation()?,
    )?
    .object;
    let name = meta(&wanted, "name");
    if !name.is_empty() && name != context.name() {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            context.name()
        )));
    }
    let dry_run = context.dry_run()?;
    let asked = meta(&wanted, "resourceVersion");
    for _ in 0..ATTEMPTS {
        let entry = context.current()?;
        if !asked.is_empty() && asked != entry.modify_revision.to_string() {
            return Err(StatusError::stale(info, context.name()));
        }
        let mut namespace = codec::decode(info, &entry.value)?;
        let before = namespace.clone();
        *namespace.member(&["spec", "finalizers"]) = wanted["spec"]["finalizers"].clone();
        if wanted["spec"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
            && let Some(spec) = namespace.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.remove("finalizers");
        }
        if namespace == before {
            return Ok(Answer::object(info, &entry.value, entry.modify_revision));
        }
        if dry_run {
            let value = codec::encode(&namespace)?;
            return Ok(Answer::object(info, &value, entry.modify_revision));
        }
        if let Some((value, revision)) = store(context, &entry, &namespace).await? {
            return Ok(Answer::object(info, &value, revision));
        }
    }
    Err(StatusError::conflict(
        info,
        context.name(),
        "the namespace keeps being modified; try again",
    ))
}
