//! Nobody gives what they do not have: who writes a role must hold all of its rules, or may `escalate`; who binds one must
//! hold what it allows, or may `bind` it.

use gantry_api::field::aggregate;
use gantry_api::json::Members;
use gantry_api::kinds::rbac::{CLUSTER_ROLE, GROUP, ROLE, rules};
use gantry_api::status::StatusError;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::{Context, meta};
use crate::identity::MASTERS;
use crate::response::cut;

use super::attributes::{Attributes, Authorizer, Decision, Target};

/// Characters of a refusal: it repeats what the role says.
const MAX_TOLD: usize = 16 << 10;

/// Refuses a Role or ClusterRole with rules that its writer does not hold. `current` is the one that it replaces.
pub(crate) fn check_role(
    context: &Context<'_>,
    role: &Value,
    current: Option<&Value>,
) -> Result<(), StatusError> {
    let info = context.resource.info();
    let namespace = context.namespace().unwrap_or_default();
    let requested = context.path.name.as_deref().unwrap_or_default();
    let harmless = current.is_some_and(|current| only_for_collection(role, current));
    if harmless || is_authorised(context, "escalate", &info.plural, namespace, requested) {
        return Ok(());
    }
    let name = meta(role, "name");
    let rules: Vec<PolicyRule> = field(role, "rules")?;
    confirm(context, name, &rules)?;
    let aggregates = |role: &Value| role["aggregationRule"].is_object();
    if !aggregates(role) && !current.is_some_and(aggregates) {
        return Ok(());
    }
    // It can gather anything, and keeps others from taking it back.
    let everything: Vec<PolicyRule> = field(&everything(), "rules")?;
    confirm(context, name, &everything).map_err(|_| {
        let detail = "must have cluster-admin privileges to use the aggregationRule";
        StatusError::forbidden(info, name, detail)
    })
}

/// Refuses a RoleBinding or ClusterRoleBinding to a role that allows what its writer may not do.
pub(crate) fn check_binding(
    context: &Context<'_>,
    binding: &Value,
    current: Option<&Value>,
) -> Result<(), StatusError> {
    let namespace = context.namespace().unwrap_or_default();
    let role: RoleRef = field(binding, "roleRef")?;
    // Validation, which comes next, says what is wrong with it.
    if ![ROLE, CLUSTER_ROLE].contains(&role.kind.as_str()) {
        return Ok(());
    }
    let plural = match role.kind == CLUSTER_ROLE {
        true => "clusterroles",
        false => "roles",
    };
    let harmless = current.is_some_and(|current| only_for_collection(binding, current));
    if harmless || is_authorised(context, "bind", plural, namespace, &role.name) {
        return Ok(());
    }
    let rules = context.api.authorisation.rbac.rules_of(&role, namespace)?;
    confirm(context, meta(binding, "name"), &rules)
}

/// Whether a user may do so whatever they hold themselves.
fn is_authorised(
    context: &Context<'_>,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> bool {
    let attributes = Attributes {
        user: context.identity,
        verb,
        target: Target::Resource {
            group: GROUP,
            version: "*",
            resource,
            subresource: "",
            namespace,
            name,
        },
    };
    context.identity.is_in(MASTERS)
        || context.api.authorisation.authorize(&attributes) == Decision::Allow
}

/// Refuses rules that the user does not hold.
fn confirm(context: &Context<'_>, name: &str, wanted: &[PolicyRule]) -> Result<(), StatusError> {
    let (user, info) = (context.identity, context.resource.info());
    let namespace = context.namespace().unwrap_or_default();
    let (owned, wrong) = context.api.authorisation.rbac.rules(user, namespace);
    let refuse = |detail: &str| Err(StatusError::forbidden(info, name, detail));
    let missing = match rules::missing(&owned, wanted) {
        Ok(missing) if missing.is_empty() => return Ok(()),
        Ok(missing) => missing,
        Err(error) => return refuse(&error.to_string()),
    };
    let groups: Vec<String> = user
        .groups
        .iter()
        .map(|group| format!("{group:?}"))
        .collect();
    let mut told = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.user,
        groups.join(" "),
        missing.join("\n")
    );
    if !wrong.is_empty() {
        told.push_str(&format!("; resolution errors: [{}]", aggregate(&wrong)));
    }
    refuse(cut(&told, MAX_TOLD))
}

/// A role that allows everything.
fn everything() -> Value {
    json!({"rules": [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]})
}

fn field<T: DeserializeOwned + Default>(object: &Value, name: &str) -> Result<T, StatusError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| StatusError::bad_request(format!("{name}: {error}"))),
    }
}

/// Whether a change is about nothing but owners and finalizers, which the garbage collector writes.
fn only_for_collection(new: &Value, current: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        for field in [
            "ownerReferences",
            "finalizers",
            "managedFields",
            "resourceVersion",
        ] {
            *object.member(&["metadata", field]) = Value::Null;
        }
        object
    };
    without(new) == without(current)
}

#[cfg(test)]
mod tests;
