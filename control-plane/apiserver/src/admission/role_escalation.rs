//! Roles and bindings: nobody gives what they do not have ([`crate::authorisation::escalation`]). They are told so before what
//! they have written is checked, as by Kubernetes.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::kinds::rbac::GROUP;
use gantry_api::status::StatusError;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde_json::Value;

use super::plugin::{Attributes, Operation, Plugin};
use crate::authorisation::escalation::{check_binding, check_role};

pub(super) struct RoleEscalation;

#[async_trait]
impl Plugin for RoleEscalation {
    fn name(&self) -> &'static str {
        "RoleEscalation"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation != Operation::Delete && attributes.info().group == GROUP
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let context = attributes.context;
        let (new, old) = (draft.value()?, current(attributes, draft)?);
        let is_role = draft.typed::<Role>().is_some() || draft.typed::<ClusterRole>().is_some();
        match is_role {
            true => check_role(context, &new, old.as_ref()),
            false => check_binding(context, &new, old.as_ref()),
        }
    }
}

/// What is replaced, in the form of what replaces it.
fn current(attributes: &Attributes<'_>, draft: &dyn Draft) -> Result<Option<Value>, StatusError> {
    if let Some(role) = draft.typed_old::<Role>() {
        written(attributes, role)
    } else if let Some(role) = draft.typed_old::<ClusterRole>() {
        written(attributes, role)
    } else if let Some(binding) = draft.typed_old::<RoleBinding>() {
        written(attributes, binding)
    } else if let Some(binding) = draft.typed_old::<ClusterRoleBinding>() {
        written(attributes, binding)
    } else {
        Ok(None)
    }
}

fn written(
    attributes: &Attributes<'_>,
    object: &impl Serialize,
) -> Result<Option<Value>, StatusError> {
    let value = serde_json::to_value(object);
    let mut value = value.map_err(|error| StatusError::internal(error.to_string()))?;
    attributes
        .context
        .resource
        .kind
        .schema()
        .complete(&mut value);
    Ok(Some(value))
}
