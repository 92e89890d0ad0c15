//! `namespaces/finalize`: takes finalizers off a namespace's spec, and with the last one the namespace.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::names;
use gantry_api::status::StatusError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body;
use super::update::check_name;
use super::write::{Write, check_identity, swap};
use crate::context::{Context, Operation, meta};
use crate::response::Answer;

pub(crate) async fn finalize(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("UpdateOptions")?;
    let kind = context.resource.kind.as_ref();
    let sent = body::object(context, kind, options.validation).await?;
    let wanted = sent.object;
    check_name(context, meta(&wanted, "name"))?;
    let finalizers = Option::<Vec<String>>::deserialize(&wanted["spec"]["finalizers"]);
    let finalizers = finalizers.map_err(|error| StatusError::bad_request(error.to_string()))?;
    let finalizers = finalizers.unwrap_or_default();
    let write = Write::own(Operation::Update, options.dry_run);
    let written = swap(context, write, None, |current| {
        check_identity(context, write, &wanted, current)?;
        check_finalizers(context, &finalizers)?;
        let mut namespace = current.clone();
        *namespace.member(&["spec", "finalizers"]) = json!(finalizers);
        if finalizers.is_empty()
            && let Some(spec) = namespace.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.remove("finalizers");
        }
        Ok(namespace)
    });
    let answer = written.await.map(|written| written.answer());
    Ok(Answer::of(answer).with_warnings(sent.warnings))
}

fn check_finalizers(context: &Context<'_>, finalizers: &[String]) -> Result<(), StatusError> {
    let mut errors = ErrorList::default();
    let path = Path::new("spec").child("finalizers");
    for finalizer in finalizers {
        for message in names::qualified_name(finalizer) {
            errors.invalid(&path, finalizer, &message);
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(StatusError::invalid(
            context.resource.info(),
            context.name(),
            errors,
        )),
    }
}
