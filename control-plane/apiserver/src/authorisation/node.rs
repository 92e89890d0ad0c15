//! What a node may do: read what the pods bound to it name, write of itself and of them, and what every node may do
//! ([`crate::bootstrap::policy::node_rules`]). Whatever cannot be told from a request alone is left to
//! [`crate::admission::node_restriction`].

mod graph;

use std::sync::atomic::{AtomicU64, Ordering};

use gantry_store::{Key, Revision, Store, Table, TableSnapshot};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde_json::Value;

use crate::bootstrap::policy::node_rules;
use crate::identity::Identity;
use crate::node_keys::NODES_GROUP;
use crate::tables::table;

use super::attributes::{Attributes, Authorizer, Decision, Target};
use super::rbac;
pub(crate) use graph::MIRROR;
use graph::{Graph, Thing};

/// Where nodes say that they live.
const LEASES: &str = "kube-node-lease";

/// The node that a user is; empty for one whose name says none.
pub(crate) fn node_name(user: &Identity) -> Option<&str> {
    let name = user.user.strip_prefix("system:node:")?;
    user.is_in(NODES_GROUP).then_some(name)
}

/// Whether a node lists or watches the pods bound to it, which it selects by their node.
pub(crate) fn selects_own_pods(attributes: &Attributes<'_>, selected: Option<&str>) -> bool {
    let Target::Resource {
        group: "",
        resource: "pods",
        subresource: "",
        ..
    } = attributes.target
    else {
        return false;
    };
    let node = node_name(attributes.user).filter(|node| !node.is_empty());
    ["list", "watch"].contains(&attributes.verb) && node.is_some() && node == selected
}

/// See the module.
pub(super) struct NodeAuthorizer {
    store: Store,
    pods: Table,
    /// The graph has everything up to this revision.
    seen: AtomicU64,
    followed: RwLock<Followed>,
}

/// Begun when the first node asks: the nodes of this cluster have links instead.
#[derive(Default)]
struct Followed {
    pods: TableSnapshot,
    graph: Graph,
}

/// Why something is not allowed.
type Refusal = String;

/// A resource that a node asks for.
struct Asked<'a> {
    node: &'a str,
    verb: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Asked<'_> {
    fn has_verb(&self, verbs: &[&str]) -> bool {
        verbs.contains(&self.verb)
    }
}

fn refuse<T>(why: &str) -> Result<T, Refusal> {
    Err(why.to_owned())
}

impl NodeAuthorizer {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            pods: table("", "pods"),
            seen: AtomicU64::new(0),
            followed: RwLock::default(),
        }
    }

    /// The graph as of now; it costs the pods that have changed since a node last asked.
    fn current(&self) -> RwLockReadGuard<'_, Followed> {
        let revision = self.store.revision();
        let followed = self.followed.read();
        if self.seen.load(Ordering::Acquire) >= revision.0 {
            return followed;
        }
        drop(followed);
        let mut followed = self.followed.write();
        let Followed { pods, graph } = &mut *followed;
        let now = self.store.snapshot(&self.pods);
        for ((namespace, name), entry) in now.changes_since(pods) {
            // Only its kind's own code has written it.
            let pod = entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).ok());
            graph.set(namespace, name, pod.as_ref());
        }
        *pods = now;
        self.saw(revision);
        RwLockWriteGuard::downgrade(followed)
    }

    fn saw(&self, revision: Revision) {
        self.seen.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// Allows what a pod of the node names.
    fn named(&self, asked: &Asked<'_>, thing: Thing) -> Result<(), Refusal> {
        if asked.name.is_empty() {
            return refuse("No Object name found");
        }
        self.related(asked, self.has(asked, thing))
    }

    fn has(&self, asked: &Asked<'_>, thing: Thing) -> bool {
        let followed = self.current();
        let graph = &followed.graph;
        graph.has(asked.node, thing, asked.namespace, asked.name)
    }

    fn related(&self, asked: &Asked<'_>, known: bool) -> Result<(), Refusal> {
        match known {
            true => Ok(()),
            false => Err(format!(
                "no relationship found between node '{}' and this object",
                asked.node
            )),
        }
    }

    fn object(&self, group: &str, plural: &str, name: &str) -> Option<Value> {
        let entry = self.store.get(&Key {
            table: table(group, plural),
            namespace: "".into(),
            name: name.into(),
        })?;
        serde_json::from_slice(&entry.value).ok()
    }

    /// Reads of one object, that something of the node leads to.
    fn get(&self, asked: &Asked<'_>, known: impl FnOnce() -> bool) -> Result<(), Refusal> {
        if asked.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !asked.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        if asked.name.is_empty() {
            return refuse("No Object name found");
        }
        self.related(asked, known())
    }

    fn get_named(&self, asked: &Asked<'_>, thing: Thing) -> Result<(), Refusal> {
        self.get(asked, || self.has(asked, thing))
    }

    /// Reads of a Secret or ConfigMap, alone or as a list of one.
    fn read(&self, asked: &Asked<'_>, thing: Thing) -> Result<(), Refusal> {
        if !asked.has_verb(&["get", "list", "watch"]) {
            return refuse("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if asked.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.named(asked, thing)
    }

    fn account(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        match (asked.verb, asked.subresource) {
            ("get", "") => self.named(asked, Thing::ServiceAccount),
            ("create", "token") if !asked.name.is_empty() => {
                self.named(asked, Thing::ServiceAccount)
            }
            ("create", _) if !asked.name.is_empty() => {
                refuse("can only create token subresource of serviceaccount")
            }
            _ => refuse("can only create tokens for individual service accounts"),
        }
    }

    fn claim(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if asked.subresource != "status" {
            return self.get_named(asked, Thing::Claim);
        }
        match asked.has_verb(&["update", "patch"]) {
            true => self.named(asked, Thing::Claim),
            // Kubernetes' words, though it allows no get either.
            false => refuse("can only get/update/patch this type"),
        }
    }

    /// A volume is a node's by the claim that it is bound to.
    fn volume(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        self.get(asked, || {
            let volume = self.object("", "persistentvolumes", asked.name);
            volume.is_some_and(|volume| {
                let claim = &volume["spec"]["claimRef"];
                let namespace = claim["namespace"].as_str().unwrap_or_default();
                let name = claim["name"].as_str().unwrap_or_default();
                let followed = self.current();
                followed
                    .graph
                    .has(asked.node, Thing::Claim, namespace, name)
            })
        })
    }

    fn attachment(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        self.get(asked, || {
            let attachment = self.object("storage.k8s.io", "volumeattachments", asked.name);
            attachment.is_some_and(|attachment| attachment["spec"]["nodeName"] == asked.node)
        })
    }

    fn lease(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if !asked.has_verb(&["get", "create", "update", "patch", "delete"]) {
            return refuse("can only get, create, update, patch, or delete a node lease");
        }
        if asked.namespace != LEASES {
            return Err(format!(
                "can only access leases in the {LEASES:?} system namespace"
            ));
        }
        match asked.verb == "create" || asked.name == asked.node {
            true => Ok(()),
            false => refuse("can only access node lease with the same name as the requesting node"),
        }
    }

    fn csi_node(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if !asked.has_verb(&["get", "create", "update", "patch", "delete"]) {
            return refuse("can only get, create, update, patch, or delete a CSINode");
        }
        if !asked.subresource.is_empty() {
            return refuse("cannot authorize CSINode subresources");
        }
        match asked.verb == "create" || asked.name == asked.node {
            true => Ok(()),
            false => refuse("can only access CSINode with the same name as the requesting node"),
        }
    }

    /// Nodes: only its own is read; whether it is its own that is written is told by admission.
    fn node(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        match (asked.subresource, asked.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") if asked.name == asked.node => Ok(()),
            ("", "get" | "list" | "watch") if asked.name.is_empty() => Err(format!(
                "node '{}' cannot read all nodes, only its own Node object",
                asked.node
            )),
            ("", "get" | "list" | "watch") => Err(format!(
                "node '{}' cannot read '{}', only its own Node object",
                asked.node, asked.name
            )),
            _ => refuse(""),
        }
    }

    /// Pods: only those bound to it are read; whether those that are written are is told by admission.
    fn pod(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        match (asked.subresource, asked.verb) {
            ("", "get") => self.named(asked, Thing::Pod),
            // One of a name, whether or not its node is selected too.
            ("", "list" | "watch") if !asked.name.is_empty() => self.named(asked, Thing::Pod),
            ("", "list" | "watch") => {
                refuse("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            _ => refuse(""),
        }
    }

    /// What is particular to a node; none for what every node may or may not do.
    fn particular(&self, node: &str, attributes: &Attributes<'_>) -> Option<Result<(), Refusal>> {
        let Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } = attributes.target
        else {
            return None;
        };
        let asked = Asked {
            node,
            verb: attributes.verb,
            subresource,
            namespace,
            name,
        };
        Some(match (group, resource) {
            ("", "secrets") => self.read(&asked, Thing::Secret),
            ("", "configmaps") => self.read(&asked, Thing::ConfigMap),
            ("", "serviceaccounts") => self.account(&asked),
            ("", "persistentvolumeclaims") => self.claim(&asked),
            ("", "persistentvolumes") => self.volume(&asked),
            ("", "nodes") => self.node(&asked),
            ("", "pods") => self.pod(&asked),
            ("resource.k8s.io", "resourceclaims") => self.get_named(&asked, Thing::ResourceClaim),
            ("storage.k8s.io", "volumeattachments") => self.attachment(&asked),
            ("storage.k8s.io", "csinodes") => self.csi_node(&asked),
            ("coordination.k8s.io", "leases") => self.lease(&asked),
            _ => return None,
        })
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let Some(node) = node_name(attributes.user) else {
            return Decision::NoOpinion(String::new());
        };
        if node.is_empty() {
            let user = &attributes.user.user;
            return Decision::NoOpinion(format!("unknown node for user {user:?}"));
        }
        match self.particular(node, attributes) {
            Some(Ok(())) => Decision::Allow,
            Some(Err(why)) => Decision::NoOpinion(why),
            None => match node_rules()
                .iter()
                .any(|rule| rbac::allows(rule, attributes))
            {
                true => Decision::Allow,
                false => Decision::NoOpinion(String::new()),
            },
        }
    }
}

#[cfg(test)]
mod tests;
