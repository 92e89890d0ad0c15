//! What roles allow, by an index over the four tables that is brought up to date when it is asked.

mod index;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_api::field::aggregate;
use gantry_api::kinds::rbac::rules::{self, ResourceRequest};
use gantry_api::kinds::rbac::{CLUSTER_ROLE, GROUP};
use gantry_api::status::{Details, StatusError};
use gantry_store::{Revision, Store, Table, TableSnapshot};
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::identity::Identity;
use crate::tables::table;

use super::attributes::{Attributes, Authorizer, Decision, Target};
use index::{Index, RoleName};

/// Bindings to roles that are not there, of which a refusal tells.
const MAX_TOLD: usize = 8;
/// Texts of rules that are looked at for one decision. Whoever may write roles can bind themselves any number of rules, and
/// every request of theirs would look at all of them.
const MAX_LOOKED_AT: usize = 250_000;
/// The same, of rules that are copied for who asks for all of a user's.
const MAX_COPIED: usize = 100_000;
/// What is told where there are more.
const TOO_MANY: &str = "more rules are bound to the user than are looked at";

/// See the module.
pub(crate) struct Rbac {
    store: Store,
    tables: [Table; 4],
    /// The index has everything up to this revision.
    seen: AtomicU64,
    followed: RwLock<Followed>,
}

#[derive(Default)]
struct Followed {
    /// The tables as they are in the index.
    snapshots: [TableSnapshot; 4],
    index: Index,
}

impl Rbac {
    pub(crate) fn new(store: Store) -> Self {
        let plurals = [
            "roles",
            "clusterroles",
            "rolebindings",
            "clusterrolebindings",
        ];
        Self {
            store,
            tables: plurals.map(|plural| table(GROUP, plural)),
            seen: AtomicU64::new(0),
            followed: RwLock::default(),
        }
    }

    /// The index as of now. Only a change of a role or binding is waited for, and it costs what has changed.
    fn current(&self) -> RwLockReadGuard<'_, Followed> {
        let revision = self.store.revision();
        let followed = self.followed.read();
        if self.seen.load(Ordering::Acquire) >= revision.0 {
            return followed;
        }
        if !self.has_changed(&followed) {
            self.saw(revision);
            return followed;
        }
        drop(followed);
        let mut followed = self.followed.write();
        self.follow(&mut followed);
        self.saw(revision);
        RwLockWriteGuard::downgrade(followed)
    }

    fn saw(&self, revision: Revision) {
        self.seen.fetch_max(revision.0, Ordering::AcqRel);
    }

    fn has_changed(&self, followed: &Followed) -> bool {
        let mut pairs = self.tables.iter().zip(&followed.snapshots);
        let changed = |(table, earlier): (&Table, &TableSnapshot)| {
            let now = self.store.snapshot(table);
            now.changes_since(earlier).next().is_some()
        };
        pairs.any(changed)
    }

    fn follow(&self, followed: &mut Followed) {
        let Followed { snapshots, index } = followed;
        let now = self.tables.each_ref();
        let now = now.map(|table| self.store.snapshot(table));
        for (position, (new, old)) in now.into_iter().zip(snapshots).enumerate() {
            for ((namespace, name), entry) in new.changes_since(old) {
                let value = entry.map(|entry| &entry.value[..]);
                match position {
                    0 | 1 => index.set_role(namespace, name, value),
                    _ => index.set_binding(namespace, name, value),
                }
            }
            *old = new;
        }
    }

    /// Everything that roles allow a user in a namespace, and what is wrong with some of them. It is not everything where that
    /// is too much, which [`is_whole`] tells.
    pub(crate) fn rules(&self, user: &Identity, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let followed = self.current();
        let (mut found, mut wrong, mut left) = (Vec::new(), Vec::new(), MAX_COPIED);
        followed.index.visit(user, namespace, &mut |grant, rules| {
            let Some(rules) = rules else {
                tell(&mut wrong, grant.role);
                return ControlFlow::Continue(());
            };
            for rule in rules {
                let Some(rest) = left.checked_sub(rules::size(rule)) else {
                    wrong.push(TOO_MANY.to_owned());
                    return ControlFlow::Break(());
                };
                left = rest;
                found.push(rule.clone());
            }
            ControlFlow::Continue(())
        });
        (found, wrong)
    }

    /// The rules of the role that a binding in a namespace refers to; 404 when there is none.
    pub(crate) fn rules_of(
        &self,
        role: &RoleRef,
        namespace: &str,
    ) -> Result<Vec<PolicyRule>, StatusError> {
        let followed = self.current();
        let cluster = role.kind == CLUSTER_ROLE;
        let namespace = if cluster { "" } else { namespace };
        let rules = followed.index.rules(namespace, &role.name);
        rules.map(<[PolicyRule]>::to_vec).ok_or_else(|| {
            let resource = if cluster { "clusterrole" } else { "role" };
            let details = Details {
                name: role.name.clone(),
                group: GROUP.to_owned(),
                kind: resource.to_owned(),
                ..Details::default()
            };
            let message = format!("{resource}.{GROUP} \"{}\" not found", role.name);
            StatusError::new(404, "NotFound", message, Some(details))
        })
    }

    /// Why a user is allowed something: the first grant that does.
    fn allowed_by(&self, attributes: &Attributes<'_>) -> Result<String, Vec<String>> {
        let followed = self.current();
        let (mut by, mut wrong, mut left) = (None, Vec::new(), MAX_LOOKED_AT);
        let namespace = match attributes.target {
            Target::Resource { namespace, .. } => namespace,
            Target::Path(_) => "",
        };
        followed
            .index
            .visit(attributes.user, namespace, &mut |grant, rules| {
                let Some(rules) = rules else {
                    tell(&mut wrong, grant.role);
                    return ControlFlow::Continue(());
                };
                for rule in rules {
                    let Some(rest) = left.checked_sub(rules::size(rule)) else {
                        wrong.push(TOO_MANY.to_owned());
                        return ControlFlow::Break(());
                    };
                    left = rest;
                    if allows(rule, attributes) {
                        by = Some(grant.to_string());
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            });
        by.ok_or(wrong)
    }
}

/// Whether the rules of [`Rbac::rules`] are all that there are, by what was wrong with them.
pub(crate) fn is_whole(wrong: &[String]) -> bool {
    wrong.iter().all(|one| one != TOO_MANY)
}

/// Notes that a role is bound and not there.
fn tell(wrong: &mut Vec<String>, role: &RoleName) {
    let kind = if role.cluster { "clusterrole" } else { "role" };
    let told = format!("{kind}.{GROUP} \"{}\" not found", role.name);
    if wrong.len() < MAX_TOLD && !wrong.contains(&told) {
        wrong.push(told);
    }
}

/// Whether a rule allows what is asked.
pub(crate) fn allows(rule: &PolicyRule, attributes: &Attributes<'_>) -> bool {
    match attributes.target {
        Target::Path(path) => rules::allows_path(rule, attributes.verb, path),
        Target::Resource {
            group,
            resource,
            subresource,
            name,
            ..
        } => {
            let request = ResourceRequest {
                verb: attributes.verb,
                group,
                resource,
                subresource,
                name,
            };
            rules::allows(rule, &request)
        }
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        match self.allowed_by(attributes) {
            Ok(_) => Decision::Allow,
            Err(wrong) if wrong.is_empty() => Decision::NoOpinion(String::new()),
            Err(wrong) => Decision::NoOpinion(format!("RBAC: {}", aggregate(&wrong))),
        }
    }

    fn reason(&self, attributes: &Attributes<'_>) -> String {
        let by = self.allowed_by(attributes).ok();
        by.map(|by| format!("RBAC: allowed by {by}"))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
