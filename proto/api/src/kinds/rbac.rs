//! Roles and their bindings: who may do what. The kinds, and what their rules mean ([`rules`]).

pub mod aggregation;
pub mod cluster_role;
pub mod cluster_role_binding;
pub mod role;
pub mod role_binding;
pub mod rules;

use k8s_openapi::Metadata;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::references;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
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
            if !name.is_empty() {
                let details = names::dns1123_subdomain(name);
                errors.invalid_each(&path.child("name"), name, details);
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

/// A binding's role and subjects.
type Bound<'a> = (&'a RoleRef, Option<&'a [Subject]>);

/// The table of a kind of bindings, whose name begins with a small letter here. `role` documents its role.
fn printer<T: Metadata<Ty = ObjectMeta> + 'static>(
    role: &str,
    kind: &str,
    bound: for<'a> fn(&'a T) -> Bound<'a>,
) -> Printer<T> {
    // In the words of the version that Kubernetes' tables are made of.
    let role = role.trim_end_matches(" This field is immutable.");
    let wide = |name| table::column(name, "string", format!("{name} in the {kind}"), 1);
    let subjects = [wide("Users"), wide("Groups"), wide("ServiceAccounts")];
    Printer::<T>::named()
        .column(table::column("Role", "string", role, 0), move |object| {
            let (role, _) = bound(object);
            json!(format!("{}/{}", role.kind, role.name))
        })
        .age()
        .columns(subjects, move |object, _| {
            let (_, subjects) = bound(object);
            let subjects = subjects.unwrap_or_default();
            [USER, USERS_GROUP, SERVICE_ACCOUNT].map(|kind| named(subjects, kind))
        })
}

/// The names of the subjects of a kind, accounts with their namespaces.
fn named(subjects: &[Subject], kind: &str) -> Value {
    let of_kind = subjects.iter().filter(|subject| subject.kind == kind);
    let names = of_kind.map(|subject| match kind {
        SERVICE_ACCOUNT => {
            let namespace = subject.namespace.as_deref().unwrap_or_default();
            format!("{namespace}/{}", subject.name)
        }
        _ => subject.name.clone(),
    });
    json!(names.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests;
