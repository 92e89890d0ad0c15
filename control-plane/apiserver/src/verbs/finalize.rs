//! `namespaces/finalize`: takes finalizers off a namespace's spec, and with the last one the namespace.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::names;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::body;
use super::update::check_name;
use super::write::{Write, swap};
use crate::context::{Context, Operation, meta};
use crate::response::Answer;

pub(crate) async fn finalize(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let options = context.write_options("UpdateOptions")?;
    let kind = context.resource.kind.as_ref();
    let (wanted, warnings): (Namespace, _) = body::typed(context, kind, options.validation).await?;
    check_name(context, wanted.metadata.name.as_deref().unwrap_or_default())?;
    let asked = wanted.metadata.resource_version.unwrap_or_default();
    let finalizers = wanted
        .spec
        .and_then(|spec| spec.finalizers)
        .unwrap_or_default();
    check_finalizers(context, &finalizers)?;
    let write = Write::own(Operation::Update, options.dry_run);
    let written = swap(context, write, None, |current| {
        if !asked.is_empty() && asked != meta(current, "resourceVersion") {
            return Err(StatusError::stale(info, context.name()));
        }
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
    Ok(Answer::of(answer).with_warnings(warnings))
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
