//! Namespaces: nothing is created in one that is missing or on its way out, and the cluster's own are kept.

use async_trait::async_trait;
use gantry_api::kind::{Draft, Kind};
use gantry_api::kinds::namespace::NamespaceKind;
use gantry_api::status::{Cause, Details, StatusError};

use super::plugin::{Attributes, Operation, Plugin, shown_name};
use crate::context::Context;
use crate::tables::namespace_key;

/// Namespaces that the cluster cannot do without.
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        match attributes.operation {
            Operation::Create => attributes.context.namespace().is_some(),
            Operation::Update => false,
            Operation::Delete => attributes.writes("", "Namespace"),
        }
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        may_be_made(attributes.context, shown_name(draft.metadata()))
    }

    fn below(&self, attributes: &Attributes<'_>) -> Result<(), StatusError> {
        may_be_made(attributes.context, attributes.context.name())
    }

    fn delete(&self, attributes: &Attributes<'_>) -> Result<(), StatusError> {
        let name = attributes.context.name();
        match PROTECTED.contains(&name) {
            true => Err(StatusError::forbidden(
                attributes.info(),
                name,
                "this namespace may not be deleted",
            )),
            false => Ok(()),
        }
    }
}

/// Whether something of a name may be created in the request's namespace.
fn may_be_made(context: &Context<'_>, name: &str) -> Result<(), StatusError> {
    let namespace = context.namespace().unwrap_or_default();
    let Some(entry) = context.api.store.get(&namespace_key(namespace)) else {
        return Err(StatusError::not_found(
            &NamespaceKind::INFO.into(),
            namespace,
        ));
    };
    let mut fields = entry.index.fields.iter();
    match fields.any(|(field, value)| field == "status.phase" && value == "Terminating") {
        true => Err(refused(context, namespace, name)),
        false => Ok(()),
    }
}

fn refused(context: &Context<'_>, namespace: &str, name: &str) -> StatusError {
    let error = StatusError::forbidden(
        context.resource.info(),
        name,
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
    StatusError::new(403, "Forbidden", error.message(), Some(details))
}
