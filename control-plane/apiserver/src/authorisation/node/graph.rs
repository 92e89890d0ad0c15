//! What the pods of each node name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

/// Marks a pod that shows what a node runs by itself.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Beside pods themselves: what they name in their own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    Pod,
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    ResourceClaim,
}

type Named = (Thing, String);

/// See the module.
#[derive(Default)]
pub(super) struct Graph {
    pods: HashMap<(Arc<str>, Arc<str>), Held>,
    /// By node and namespace, how many pods name something.
    nodes: HashMap<String, HashMap<Arc<str>, HashMap<Named, usize>>>,
}

struct Held {
    node: String,
    named: HashSet<Named>,
}

impl Graph {
    /// Takes over a pod, or forgets one that is gone.
    pub(super) fn set(&mut self, namespace: &Arc<str>, name: &Arc<str>, pod: Option<&Value>) {
        self.forget(namespace, name);
        let node = pod.and_then(|pod| pod["spec"]["nodeName"].as_str());
        let (Some(pod), Some(node)) = (pod, node.filter(|node| !node.is_empty())) else {
            return;
        };
        // A node writes mirror pods itself: one that names something gives it nothing.
        let is_mirror = !pod["metadata"]["annotations"][MIRROR].is_null();
        let mut named = match is_mirror {
            true => HashSet::new(),
            false => named(pod),
        };
        named.insert((Thing::Pod, name.to_string()));
        let counts = self.nodes.entry(node.to_owned()).or_default();
        let counts = counts.entry(namespace.clone()).or_default();
        for one in &named {
            *counts.entry(one.clone()).or_default() += 1;
        }
        let held = Held {
            node: node.to_owned(),
            named,
        };
        self.pods.insert((namespace.clone(), name.clone()), held);
    }

    fn forget(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let Some(held) = self.pods.remove(&(namespace.clone(), name.clone())) else {
            return;
        };
        let Some(namespaces) = self.nodes.get_mut(&held.node) else {
            return;
        };
        let Some(counts) = namespaces.get_mut(namespace) else {
            return;
        };
        for one in &held.named {
            match counts.get_mut(one) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    counts.remove(one);
                }
            }
        }
        if counts.is_empty() {
            namespaces.remove(namespace);
        }
        if namespaces.is_empty() {
            self.nodes.remove(&held.node);
        }
    }

    /// Whether a pod of a node names something.
    pub(super) fn has(&self, node: &str, thing: Thing, namespace: &str, name: &str) -> bool {
        let counts = self.nodes.get(node).and_then(|of| of.get(namespace));
        counts.is_some_and(|counts| counts.contains_key(&(thing, name.to_owned())))
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Where a volume's driver finds its credentials.
const CREDENTIALS: &[(&str, &str)] = &[
    ("azureFile", "secretName"),
    ("cephfs", "secretRef"),
    ("csi", "nodePublishSecretRef"),
    ("flexVolume", "secretRef"),
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
];

/// Everything that a pod names.
fn named(pod: &Value) -> HashSet<Named> {
    let (spec, mut found) = (&pod["spec"], HashSet::new());
    let own = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut add = |thing: Thing, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert((thing, name.to_owned()));
        }
    };
    add(Thing::ServiceAccount, &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        add(Thing::Secret, &secret["name"]);
    }
    for volume in items(&spec["volumes"]) {
        add(Thing::ConfigMap, &volume["configMap"]["name"]);
        add(Thing::Secret, &volume["secret"]["secretName"]);
        add(Thing::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let volume = volume["name"].as_str().unwrap_or_default();
            add(Thing::Claim, &Value::from(format!("{own}-{volume}")));
        }
        for source in items(&volume["projected"]["sources"]) {
            add(Thing::ConfigMap, &source["configMap"]["name"]);
            add(Thing::Secret, &source["secret"]["name"]);
        }
        for (driver, field) in CREDENTIALS {
            let credentials = &volume[driver][field];
            add(Thing::Secret, credentials);
            add(Thing::Secret, &credentials["name"]);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            for source in items(&container["envFrom"]) {
                add(Thing::ConfigMap, &source["configMapRef"]["name"]);
                add(Thing::Secret, &source["secretRef"]["name"]);
            }
            for variable in items(&container["env"]) {
                let source = &variable["valueFrom"];
                add(Thing::ConfigMap, &source["configMapKeyRef"]["name"]);
                add(Thing::Secret, &source["secretKeyRef"]["name"]);
            }
        }
    }
    for claim in items(&spec["resourceClaims"]) {
        add(Thing::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"]["resourceClaimStatuses"]) {
        add(Thing::ResourceClaim, &claim["resourceClaimName"]);
    }
    found
}
