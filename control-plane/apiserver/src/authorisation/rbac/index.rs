//! Roles by name, and bindings by whom they are for: what a user may do is found without looking at anybody else's.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use gantry_api::kinds::rbac::{CLUSTER_ROLE, ROLE, SERVICE_ACCOUNT, USERS_GROUP};
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use serde::Deserialize;

use crate::identity::{Identity, service_account_user};

/// A role that a binding refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RoleName {
    /// Whether it is a cluster role; else one of the binding's namespace.
    pub(super) cluster: bool,
    pub(super) name: String,
}

/// Roles that somebody is given, and by what: the name of a binding, and how reasons describe the subject it names.
type Grants = BTreeMap<RoleName, BTreeMap<String, String>>;

/// The bindings of a namespace, or those that hold everywhere.
#[derive(Default)]
struct Scope {
    users: HashMap<String, Grants>,
    groups: HashMap<String, Grants>,
}

impl Scope {
    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

/// What a binding put into the index.
struct Held {
    role: RoleName,
    users: Vec<String>,
    groups: Vec<String>,
}

/// The rules of the roles of a namespace, by name.
type Roles = HashMap<Arc<str>, Arc<[PolicyRule]>>;

/// What is shown a role that a user is given, and says whether to go on.
pub(super) type Show<'a> = dyn FnMut(&Grant<'_>, Option<&[PolicyRule]>) -> ControlFlow<()> + 'a;

/// See the module. What holds everywhere is in the namespace without a name.
#[derive(Default)]
pub(super) struct Index {
    roles: HashMap<Arc<str>, Roles>,
    scopes: HashMap<Arc<str>, Scope>,
    held: HashMap<(Arc<str>, Arc<str>), Held>,
}

/// A role that somebody is given.
pub(super) struct Grant<'a> {
    namespace: &'a str,
    pub(super) role: &'a RoleName,
    bindings: &'a BTreeMap<String, String>,
}

impl fmt::Display for Grant<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((binding, subject)) = self.bindings.first_key_value() else {
            return Ok(());
        };
        let kind = if self.role.cluster {
            CLUSTER_ROLE
        } else {
            ROLE
        };
        let role = &self.role.name;
        match self.namespace {
            "" => write!(
                formatter,
                "ClusterRoleBinding {binding:?} of {kind} {role:?} to {subject}"
            ),
            namespace => {
                let binding = format!("{binding}/{namespace}");
                write!(
                    formatter,
                    "RoleBinding {binding:?} of {kind} {role:?} to {subject}"
                )
            }
        }
    }
}

/// What the index needs of a stored role.
#[derive(Deserialize)]
struct StoredRole {
    #[serde(default)]
    rules: Option<Vec<PolicyRule>>,
}

/// What the index needs of a stored binding.
#[derive(Deserialize)]
struct StoredBinding {
    #[serde(rename = "roleRef")]
    role: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

/// Reads what only the kinds' own code has written.
fn read<'de, T: Deserialize<'de>>(value: &'de [u8], name: &str) -> Option<T> {
    match serde_json::from_slice(value) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(name, %error, "a role or binding cannot be read: it allows nothing");
            None
        }
    }
}

/// The namespace of an account: that of the binding where none is named.
fn namespace_of<'a>(subject: &'a Subject, binding: &'a str) -> &'a str {
    let own = subject.namespace.as_deref();
    own.filter(|own| !own.is_empty()).unwrap_or(binding)
}

/// A subject as reasons describe it.
fn described(subject: &Subject, binding: &str) -> String {
    match subject.kind.as_str() {
        SERVICE_ACCOUNT => {
            let name = format!("{}/{}", subject.name, namespace_of(subject, binding));
            format!("{SERVICE_ACCOUNT} {name:?}")
        }
        kind => format!("{kind} {:?}", subject.name),
    }
}

impl Index {
    /// Takes over a role, or forgets one that is gone.
    pub(super) fn set_role(&mut self, namespace: &Arc<str>, name: &Arc<str>, value: Option<&[u8]>) {
        if let Some(role) = value.and_then(|value| read::<StoredRole>(value, name)) {
            let of_namespace = self.roles.entry(namespace.clone()).or_default();
            of_namespace.insert(name.clone(), role.rules.unwrap_or_default().into());
            return;
        }
        if let Some(of_namespace) = self.roles.get_mut(namespace) {
            of_namespace.remove(name);
            if of_namespace.is_empty() {
                self.roles.remove(namespace);
            }
        }
    }

    /// Takes over a binding, or forgets one that is gone.
    pub(super) fn set_binding(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        value: Option<&[u8]>,
    ) {
        self.forget(namespace, name);
        let Some(binding) = value.and_then(|value| read::<StoredBinding>(value, name)) else {
            return;
        };
        let subjects = binding.subjects.unwrap_or_default();
        if subjects.is_empty() {
            return;
        }
        let mut held = Held {
            role: RoleName {
                cluster: binding.role.kind == CLUSTER_ROLE,
                name: binding.role.name,
            },
            users: Vec::new(),
            groups: Vec::new(),
        };
        let scope = self.scopes.entry(namespace.clone()).or_default();
        for subject in &subjects {
            let (map, list, who) = match subject.kind.as_str() {
                USERS_GROUP => (&mut scope.groups, &mut held.groups, subject.name.clone()),
                SERVICE_ACCOUNT => {
                    let user =
                        service_account_user(namespace_of(subject, namespace), &subject.name);
                    (&mut scope.users, &mut held.users, user)
                }
                _ => (&mut scope.users, &mut held.users, subject.name.clone()),
            };
            let grants = map.entry(who.clone()).or_default();
            let bindings = grants.entry(held.role.clone()).or_default();
            bindings
                .entry(name.to_string())
                .or_insert_with(|| described(subject, namespace));
            list.push(who);
        }
        self.held.insert((namespace.clone(), name.clone()), held);
    }

    /// Takes back what a binding gave.
    fn forget(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let Some(held) = self.held.remove(&(namespace.clone(), name.clone())) else {
            return;
        };
        let Some(scope) = self.scopes.get_mut(namespace) else {
            return;
        };
        let given = [
            (&mut scope.users, held.users),
            (&mut scope.groups, held.groups),
        ];
        for (map, subjects) in given {
            for subject in subjects {
                // A subject may be named twice.
                let Some(grants) = map.get_mut(&subject) else {
                    continue;
                };
                if let Some(bindings) = grants.get_mut(&held.role) {
                    bindings.remove(&**name);
                    if bindings.is_empty() {
                        grants.remove(&held.role);
                    }
                }
                if grants.is_empty() {
                    map.remove(&subject);
                }
            }
        }
        if scope.is_empty() {
            self.scopes.remove(namespace);
        }
    }

    /// The rules of a role.
    pub(super) fn rules(&self, namespace: &str, name: &str) -> Option<&[PolicyRule]> {
        let rules = self.roles.get(namespace)?.get(name);
        rules.map(|rules| &rules[..])
    }

    /// Shows every role that a user is given everywhere and in a namespace, with its rules, or none when it is not there.
    pub(super) fn visit(&self, user: &Identity, namespace: &str, show: &mut Show<'_>) {
        let namespaced = (!namespace.is_empty()).then_some(namespace);
        for space in std::iter::once("").chain(namespaced) {
            let Some(scope) = self.scopes.get(space) else {
                continue;
            };
            let groups = user.groups.iter();
            let by_group = groups.filter_map(|group| scope.groups.get(group));
            for grants in scope.users.get(&user.user).into_iter().chain(by_group) {
                for (role, bindings) in grants {
                    let rules = self.rules(if role.cluster { "" } else { space }, &role.name);
                    let grant = Grant {
                        namespace: space,
                        role,
                        bindings,
                    };
                    if show(&grant, rules).is_break() {
                        return;
                    }
                }
            }
        }
    }
}
