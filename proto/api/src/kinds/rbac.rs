//! Roles and their bindings: who may do what. The kinds, and what their rules mean ([`rules`]).

pub mod aggregation;
pub mod cluster_role;
pub mod cluster_role_binding;
pub mod role;
pub mod role_binding;
pub mod rules;

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{references, table};
use crate::field::{ErrorList, Path};
use crate::kind::Column;
use crate::names;

/// The API group of all four kinds.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// What roles are called in references.
pub const ROLE: &str = "Role";
/// See [`ROLE`].
pub const CLUSTER_ROLE: &str = "ClusterRole";
/// What a subject may be.
pub const SERVICE_ACCOUNT: &str = "ServiceAccount";
/// See [`SERVICE_ACCOUNT`].
pub const USER: &str = "User";
/// See [`SERVICE_ACCOUNT`].
pub const USERS_GROUP: &str = "Group";

/// Names of roles and bindings may be anything that is one segment of a path: `system:node`.
fn name_rule(name: &str) -> Vec<String> {
    names::path_segment(name)
}

fn is_empty(list: Option<&[String]>) -> bool {
    list.is_none_or(<[String]>::is_empty)
}

/// The rules of a role; those of a namespace say nothing of paths.
fn validate_rules(rules: Option<&[PolicyRule]>, namespaced: bool, errors: &mut ErrorList) {
    for (index, rule) in rules.unwrap_or_default().iter().enumerate() {
        if errors.is_full() {
            return;
        }
        validate_rule(rule, namespaced, &Path::new("rules").index(index), errors);
    }
}

fn validate_rule(rule: &PolicyRule, namespaced: bool, path: &Path, errors: &mut ErrorList) {
    if rule.verbs.is_empty() {
        let detail = "verbs must contain at least one value";
        errors.required(&path.child("verbs"), detail);
    }
    let (groups, resources) = (rule.api_groups.as_deref(), rule.resources.as_deref());
    if let Some(urls) = rule.non_resource_urls.as_ref()
        && !urls.is_empty()
    {
        let path = path.child("nonResourceURLs");
        if namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            errors.invalid(&path, urls, detail);
        }
        let names = rule.resource_names.as_deref();
        if ![groups, resources, names].into_iter().all(is_empty) {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.invalid(&path, urls, detail);
        }
        return;
    }
    if is_empty(groups) {
        let detail = "resource rules must supply at least one api group";
        errors.required(&path.child("apiGroups"), detail);
    }
    if is_empty(resources) {
        let detail = "resource rules must supply at least one resource";
        errors.required(&path.child("resources"), detail);
    }
}

/// Fills the groups that a binding leaves out.
fn default_binding(role: &mut RoleRef, subjects: Option<&mut Vec<Subject>>) {
    let fill = |group: &mut Option<String>| {
        if group.as_deref().is_none_or(str::is_empty) {
            *group = Some(GROUP.to_owned());
        }
    };
    fill(&mut role.api_group);
    for subject in subjects.into_iter().flatten() {
        if [USER, USERS_GROUP].contains(&subject.kind.as_str()) {
            fill(&mut subject.api_group);
        }
    }
}

/// Checks a binding: what it refers to is one of `kinds`, and an account without a namespace is of the binding's own.
fn validate_binding(
    role: &RoleRef,
    kinds: &[&str],
    subjects: Option<&[Subject]>,
    namespaced: bool,
    errors: &mut ErrorList,
) {
    let path = Path::new("roleRef");
    let group = role.api_group.as_deref().unwrap_or_default();
    if group != GROUP {
        errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.not_supported(&path.child("kind"), &role.kind, kinds);
    }
    match role.name.as_str() {
        "" => errors.required(&path.child("name"), ""),
        name => references::check_segment(name, &path.child("name"), errors),
    }
    for (index, subject) in subjects.unwrap_or_default().iter().enumerate() {
        if errors.is_full() {
            return;
        }
        let path = Path::new("subjects").index(index);
        validate_subject(subject, namespaced, &path, errors);
    }
}

fn validate_subject(subject: &Subject, namespaced: bool, path: &Path, errors: &mut ErrorList) {
    if subject.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    let group = subject.api_group.as_deref().unwrap_or_default();
    let group_path = path.child("apiGroup");
    match subject.kind.as_str() {
        SERVICE_ACCOUNT => {
            let name = subject.name.as_str();
            if !name.is_empty()
                && let Some(detail) = names::is_dns1123_subdomain(name)
            {
                errors.invalid(&path.child("name"), name, &detail);
            }
            if !group.is_empty() {
                errors.not_supported(&group_path, group, &[""]);
            }
            if !namespaced && subject.namespace.as_deref().is_none_or(str::is_empty) {
                errors.required(&path.child("namespace"), "");
            }
        }
        USER | USERS_GROUP => {
            if group != GROUP {
                errors.not_supported(&group_path, group, &[GROUP]);
            }
        }
        other => {
            let kinds = [SERVICE_ACCOUNT, USER, USERS_GROUP];
            errors.not_supported(&path.child("kind"), other, &kinds);
        }
    }
}

/// A binding is for one role for as long as it lives: who may change its subjects must not choose another.
fn validate_role_stays(new: &RoleRef, old: &RoleRef, errors: &mut ErrorList) {
    if new != old {
        // As Kubernetes writes a type that has no names for JSON.
        let value = json!({
            "APIGroup": new.api_group.as_deref().unwrap_or_default(),
            "Kind": new.kind,
            "Name": new.name,
        });
        errors.invalid(&Path::new("roleRef"), value, "cannot change roleRef");
    }
}

/// The columns of a role.
fn role_columns() -> Vec<Column> {
    let created = table::field_doc::<ObjectMeta>("creationTimestamp");
    vec![
        table::name_column(),
        table::column("Created At", "date", created, 0),
    ]
}

/// The row of a role.
fn role_row(metadata: &ObjectMeta) -> Vec<Value> {
    let created = metadata.creation_timestamp.as_ref();
    let created = created.map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    vec![
        table::name_cell(metadata),
        json!(created.unwrap_or_default()),
    ]
}

/// The columns of a binding, whose kind begins with a small letter here.
fn binding_columns(role: String, kind: &str) -> Vec<Column> {
    let wide = |name| table::column(name, "string", format!("{name} in the {kind}"), 1);
    vec![
        table::name_column(),
        table::column("Role", "string", role, 0),
        table::age_column(),
        wide("Users"),
        wide("Groups"),
        wide("ServiceAccounts"),
    ]
}

/// The row of a binding. `now` is nanoseconds since the epoch.
fn binding_row(
    metadata: &ObjectMeta,
    role: &RoleRef,
    subjects: Option<&[Subject]>,
    now: i64,
) -> Vec<Value> {
    let subjects = subjects.unwrap_or_default();
    let named = |kind: &str| {
        let names =
            subjects
                .iter()
                .filter(|subject| subject.kind == kind)
                .map(|subject| match kind {
                    SERVICE_ACCOUNT => {
                        let namespace = subject.namespace.as_deref().unwrap_or_default();
                        format!("{namespace}/{}", subject.name)
                    }
                    _ => subject.name.clone(),
                });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        table::name_cell(metadata),
        json!(format!("{}/{}", role.kind, role.name)),
        table::age_cell(metadata, now),
        named(USER),
        named(USERS_GROUP),
        named(SERVICE_ACCOUNT),
    ]
}

#[cfg(test)]
mod tests;
