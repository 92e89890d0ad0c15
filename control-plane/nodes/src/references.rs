//! What one node may see: the pods bound to it, and what those pods refer to.
//!
//! This is the node's authorisation as well as its bandwidth: an object that no pod of the node names never
//! travels to it.

use std::collections::{BTreeMap, BTreeSet};

use gantry_rpc::node::Resource;
use serde_json::Value;

/// An object a pod refers to, in the pod's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    /// ConfigMap, Secret or ServiceAccount.
    pub(crate) resource: Resource,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The references of all pods of one node, by the pods that hold them: what a kubelet's managers of Secrets and ConfigMaps
/// register.
#[derive(Debug, Default)]
pub(crate) struct PodReferences {
    by_pod: BTreeMap<(String, String), BTreeSet<Reference>>,
}

impl PodReferences {
    /// Records what a pod refers to and returns the references that no pod of this node had before.
    pub(crate) fn set(&mut self, namespace: &str, name: &str, pod: &Value) -> Vec<Reference> {
        let references = references(namespace, pod);
        let new = references
            .iter()
            .filter(|reference| !self.contains(reference))
            .cloned()
            .collect();
        self.by_pod
            .insert((namespace.to_owned(), name.to_owned()), references);
        new
    }

    /// Forgets a pod; false when this node did not have it.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> bool {
        self.by_pod
            .remove(&(namespace.to_owned(), name.to_owned()))
            .is_some()
    }

    /// Whether any pod of this node refers to an object.
    pub(crate) fn contains(&self, reference: &Reference) -> bool {
        self.by_pod.values().any(|set| set.contains(reference))
    }
}

/// Every ConfigMap, Secret and ServiceAccount that a pod's spec names.
fn references(namespace: &str, pod: &Value) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let spec = &pod["spec"];
    let mut add = |resource: Resource, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert(Reference {
                resource,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        }
    };
    add(Resource::ServiceAccount, &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        add(Resource::Secret, &secret["name"]);
    }
    for volume in items(&spec["volumes"]) {
        add(Resource::ConfigMap, &volume["configMap"]["name"]);
        add(Resource::Secret, &volume["secret"]["secretName"]);
        for source in items(&volume["projected"]["sources"]) {
            add(Resource::ConfigMap, &source["configMap"]["name"]);
            add(Resource::Secret, &source["secret"]["name"]);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            for source in items(&container["envFrom"]) {
                add(Resource::ConfigMap, &source["configMapRef"]["name"]);
                add(Resource::Secret, &source["secretRef"]["name"]);
            }
            for variable in items(&container["env"]) {
                let source = &variable["valueFrom"];
                add(Resource::ConfigMap, &source["configMapKeyRef"]["name"]);
                add(Resource::Secret, &source["secretKeyRef"]["name"]);
            }
        }
    }
    found
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(references: &[Reference]) -> Vec<(Resource, &str)> {
        references
            .iter()
            .map(|reference| (reference.resource, reference.name.as_str()))
            .collect()
    }

    #[test]
    fn a_pod_brings_what_its_spec_names_and_nothing_else() {
        let pod = json!({"spec": {
            "serviceAccountName": "default",
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "settings"}},
                {"name": "b", "secret": {"secretName": "tls"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            ],
            "containers": [{"name": "c", "env": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "password", "key": "k"}}},
            ]}],
        }});
        let mut held = PodReferences::default();
        let new = held.set("default", "web", &pod);
        assert_eq!(
            names(&new),
            [
                (Resource::ConfigMap, "kube-root-ca.crt"),
                (Resource::ConfigMap, "settings"),
                (Resource::Secret, "password"),
                (Resource::Secret, "registry"),
                (Resource::Secret, "tls"),
                (Resource::ServiceAccount, "default"),
            ]
        );
    }

    #[test]
    fn a_reference_lives_as_long_as_one_pod_has_it() {
        let pod = json!({"spec": {"serviceAccountName": "default"}});
        let reference = Reference {
            resource: Resource::ServiceAccount,
            namespace: "default".to_owned(),
            name: "default".to_owned(),
        };
        let mut held = PodReferences::default();
        assert_eq!(held.set("default", "one", &pod).len(), 1);
        assert!(held.set("default", "two", &pod).is_empty());
        assert!(held.remove("default", "one"));
        assert!(held.contains(&reference));
        assert!(held.remove("default", "two"));
        assert!(!held.contains(&reference));
        assert!(!held.remove("default", "two"));
    }
}
