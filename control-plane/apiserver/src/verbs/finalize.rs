//! `namespaces/finalize`: takes finalizers off a namespace's spec, and with the last one the namespace.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::names;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::update::check_name;
use super::write::{Write, swap};
use crate::context::{Context, Operation, meta};
use crate::response::Answer;

pub(crate) async fn finalize(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let dry_run = context.write_options("UpdateOptions")?.dry_run;
    let wanted: Namespace = context.request("Namespace").await?;
    let name = wanted.metadata.name.unwrap_or_default();
    check_name(context, &name)?;
    let asked = wanted.metadata.resource_version.unwrap_or_default();
    let finalizers = wanted
        .spec
        .and_then(|spec| spec.finalizers)
        .unwrap_or_default();
    check_finalizers(context, &finalizers)?;
    let write = Write::own(Operation::Update, dry_run);
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
    Ok(written.await?.answer())
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
