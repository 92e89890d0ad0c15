//! Namespaces: nothing is created in one that is missing or on its way out, and the cluster's own are kept.

use gantry_api::kind::Kind;
use gantry_api::kinds::namespace::NamespaceKind;
use gantry_api::status::{Cause, Details, StatusError};
use serde_json::Value;

use crate::context::{Context, meta};
use crate::verbs::create::namespace_key;

/// Namespaces that the cluster cannot do without.
pub(crate) const PROTECTED: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) fn admit_content(context: &Context<'_>, object: &Value) -> Result<(), StatusError> {
    let Some(namespace) = context.namespace() else {
        return Ok(());
    };
    let Some(entry) = context.api.store.get(&namespace_key(namespace)) else {
        return Err(StatusError::not_found(&NamespaceKind::INFO, namespace));
    };
    let terminating = entry
        .index
        .fields
        .iter()
        .any(|(field, value)| field == "status.phase" && value == "Terminating");
    if !terminating {
        return Ok(());
    }
    let info = context.resource.info();
    let error = StatusError::forbidden(
        info,
        meta(object, "name"),
        &format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        ),
    );
    let details = Details {
        causes: vec![Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        }],
        ..error.details().cloned().unwrap_or_default()
    };
    Err(StatusError::new(
        403,
        "Forbidden",
        error.message(),
        Some(details),
    ))
}

pub(super) fn admit_deletion(context: &Context<'_>) -> Result<(), StatusError> {
    let info = context.resource.info();
    if info.kind == "Namespace" && PROTECTED.contains(&context.name()) {
        return Err(StatusError::forbidden(
            info,
            context.name(),
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}
