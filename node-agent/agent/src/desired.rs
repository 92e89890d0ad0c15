//! What this node should run and what its pods refer to: the objects received over the link, by kind.
//!
//! The link sends everything, then `Synced`; what was known and not sent again is gone. Until then, the objects of the
//! checkpoint (see [`crate::checkpoint`]) stand, so that pods continue while no server answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_rpc::node::{ObjectChange, Resource};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;

/// Namespace (empty for cluster-wide kinds) and name.
pub type ObjectKey = (String, String);

/// What a change touched.
#[derive(Clone, Debug)]
pub enum Touched {
    /// A pod of this node is new or has changed.
    Pod(Arc<Pod>),
    /// A pod of this node no longer exists.
    PodGone(Arc<Pod>),
    /// A ConfigMap, Secret or ServiceAccount of this namespace.
    Reference(String),
    /// A Service or EndpointSlice.
    Service,
    /// A Node.
    Node,
    /// Nothing the agent acts on.
    Nothing,
}

/// An object that was sent but cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {resource} {namespace}/{name} sent by the server: {source}")]
pub struct Unreadable {
    resource: &'static str,
    namespace: String,
    name: String,
    source: serde_json::Error,
}

struct Kept<T> {
    object: Arc<T>,
    json: bytes::Bytes,
}

type Table<T> = BTreeMap<ObjectKey, Kept<T>>;

#[derive(Default)]
struct Objects {
    pods: Table<Pod>,
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
    service_accounts: Table<ServiceAccount>,
    services: Table<Service>,
    endpoint_slices: Table<EndpointSlice>,
    nodes: Table<Node>,
    /// Seen since the link was opened.
    sent: BTreeSet<(i32, ObjectKey)>,
    /// Of the newest Service or EndpointSlice.
    service_revision: u64,
    synced: bool,
}

/// The objects; cheap to share.
#[derive(Default)]
pub struct Desired {
    objects: RwLock<Objects>,
}

fn put<T: DeserializeOwned>(
    table: &mut Table<T>,
    kind: &'static str,
    key: ObjectKey,
    change: &ObjectChange,
) -> Result<Option<Arc<T>>, Unreadable> {
    if change.deleted {
        return Ok(table.remove(&key).map(|kept| kept.object));
    }
    let object: Arc<T> = serde_json::from_slice(&change.object)
        .map(Arc::new)
        .map_err(|source| Unreadable {
            resource: kind,
            namespace: key.0.clone(),
            name: key.1.clone(),
            source,
        })?;
    table.insert(
        key,
        Kept {
            object: object.clone(),
            json: change.object.clone(),
        },
    );
    Ok(Some(object))
}

impl Desired {
    /// A new link: whatever is not sent until `Synced` is gone.
    pub fn link_opened(&self) {
        self.objects.write().sent.clear();
    }

    /// Applies one change.
    pub fn apply(&self, change: &ObjectChange) -> Result<Touched, Unreadable> {
        let key = (change.namespace.clone(), change.name.clone());
        let mut objects = self.objects.write();
        let objects = &mut *objects;
        objects.sent.insert((change.resource, key.clone()));
        Ok(match change.resource() {
            Resource::Pod => match (put(&mut objects.pods, "pod", key, change)?, change.deleted) {
                (Some(pod), false) => Touched::Pod(pod),
                (Some(pod), true) => Touched::PodGone(pod),
                (None, _) => Touched::Nothing,
            },
            Resource::ConfigMap => {
                put(&mut objects.config_maps, "config map", key, change)?;
                Touched::Reference(change.namespace.clone())
            }
            Resource::Secret => {
                put(&mut objects.secrets, "secret", key, change)?;
                Touched::Reference(change.namespace.clone())
            }
            Resource::ServiceAccount => {
                put(
                    &mut objects.service_accounts,
                    "service account",
                    key,
                    change,
                )?;
                Touched::Reference(change.namespace.clone())
            }
            Resource::Service => {
                put(&mut objects.services, "service", key, change)?;
                objects.service_revision = objects.service_revision.max(change.revision);
                Touched::Service
            }
            Resource::EndpointSlice => {
                put(&mut objects.endpoint_slices, "endpoint slice", key, change)?;
                objects.service_revision = objects.service_revision.max(change.revision);
                Touched::Service
            }
            Resource::Node => {
                put(&mut objects.nodes, "node", key, change)?;
                Touched::Node
            }
            Resource::Namespace | Resource::Unspecified => Touched::Nothing,
        })
    }

    /// Everything up to `revision` has been sent: drops the rest and answers the pods that are gone.
    pub fn synced(&self, revision: u64) -> Vec<Arc<Pod>> {
        let mut guard = self.objects.write();
        let objects = &mut *guard;
        let sent = std::mem::take(&mut objects.sent);
        fn keep<T>(
            table: &mut Table<T>,
            resource: Resource,
            sent: &BTreeSet<(i32, ObjectKey)>,
        ) -> Vec<Arc<T>> {
            let gone: Vec<ObjectKey> = table
                .keys()
                .filter(|key| !sent.contains(&(resource.into(), (*key).clone())))
                .cloned()
                .collect();
            gone.iter()
                .filter_map(|key| table.remove(key))
                .map(|kept| kept.object)
                .collect()
        }
        let gone = keep(&mut objects.pods, Resource::Pod, &sent);
        keep(&mut objects.config_maps, Resource::ConfigMap, &sent);
        keep(&mut objects.secrets, Resource::Secret, &sent);
        keep(
            &mut objects.service_accounts,
            Resource::ServiceAccount,
            &sent,
        );
        keep(&mut objects.services, Resource::Service, &sent);
        keep(&mut objects.endpoint_slices, Resource::EndpointSlice, &sent);
        keep(&mut objects.nodes, Resource::Node, &sent);
        objects.service_revision = objects.service_revision.max(revision);
        objects.synced = true;
        gone
    }

    /// Whether a server has said everything at least once.
    pub fn is_synced(&self) -> bool {
        self.objects.read().synced
    }

    /// All pods of this node.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.objects
            .read()
            .pods
            .values()
            .map(|kept| kept.object.clone())
            .collect()
    }

    /// One pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.objects
            .read()
            .pods
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(|kept| kept.object.clone())
    }

    /// A ConfigMap.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.objects
            .read()
            .config_maps
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(|kept| kept.object.clone())
    }

    /// A Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.objects
            .read()
            .secrets
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(|kept| kept.object.clone())
    }

    /// A ServiceAccount.
    pub fn service_account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects
            .read()
            .service_accounts
            .get(&key)
            .map(|kept| kept.object.clone())
    }

    /// Services, EndpointSlices, and the revision they reflect.
    pub fn services(&self) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>, u64) {
        let objects = self.objects.read();
        (
            objects
                .services
                .values()
                .map(|kept| kept.object.clone())
                .collect(),
            objects
                .endpoint_slices
                .values()
                .map(|kept| kept.object.clone())
                .collect(),
            objects.service_revision,
        )
    }

    /// The services of one namespace.
    pub fn services_of(&self, namespace: &str) -> Vec<Arc<Service>> {
        let objects = self.objects.read();
        let in_namespace = objects
            .services
            .iter()
            .filter(|((own, _), _)| own == namespace);
        in_namespace.map(|(_, kept)| kept.object.clone()).collect()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.objects
            .read()
            .nodes
            .get(&(String::new(), name.to_owned()))
            .map(|kept| kept.object.clone())
    }

    /// All nodes of the cluster.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let objects = self.objects.read();
        objects
            .nodes
            .values()
            .map(|kept| kept.object.clone())
            .collect()
    }

    /// The JSON of everything, as it would be sent: what a checkpoint holds. Secrets are told apart by their kind.
    pub fn snapshot(&self) -> Vec<ObjectChange> {
        fn all<T>(table: &Table<T>, resource: Resource, into: &mut Vec<ObjectChange>) {
            into.extend(table.iter().map(|((namespace, name), kept)| ObjectChange {
                resource: resource.into(),
                deleted: false,
                revision: 0,
                namespace: namespace.clone(),
                name: name.clone(),
                object: kept.json.clone(),
            }));
        }
        let objects = self.objects.read();
        let mut changes = Vec::new();
        all(&objects.config_maps, Resource::ConfigMap, &mut changes);
        all(&objects.secrets, Resource::Secret, &mut changes);
        all(
            &objects.service_accounts,
            Resource::ServiceAccount,
            &mut changes,
        );
        all(&objects.services, Resource::Service, &mut changes);
        all(
            &objects.endpoint_slices,
            Resource::EndpointSlice,
            &mut changes,
        );
        all(&objects.nodes, Resource::Node, &mut changes);
        all(&objects.pods, Resource::Pod, &mut changes);
        changes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn change(resource: Resource, object: &Value) -> ObjectChange {
        ObjectChange {
            resource: resource.into(),
            deleted: false,
            revision: 7,
            namespace: object["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            name: object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            object: object.to_string().into(),
        }
    }

    #[test]
    fn what_is_not_sent_again_is_gone() {
        let desired = Desired::default();
        let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"containers": []}});
        desired.link_opened();
        for name in ["a", "b"] {
            desired.apply(&change(Resource::Pod, &pod(name))).unwrap();
        }
        assert!(desired.synced(9).is_empty());
        desired.link_opened();
        desired.apply(&change(Resource::Pod, &pod("b"))).unwrap();
        assert_eq!(desired.pods().len(), 2, "nothing goes before Synced");
        let gone = desired.synced(12);
        assert_eq!(gone[0].metadata.name.as_deref(), Some("a"));
        assert_eq!(desired.pods().len(), 1);
        assert_eq!(desired.services().2, 12);
    }

    #[test]
    fn a_deletion_answers_the_last_state() {
        let desired = Desired::default();
        let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"k": "dg=="}});
        desired.apply(&change(Resource::Secret, &secret)).unwrap();
        assert!(desired.secret("d", "s").is_some());
        let mut gone = change(Resource::Secret, &secret);
        gone.deleted = true;
        assert!(matches!(desired.apply(&gone), Ok(Touched::Reference(_))));
        assert!(desired.secret("d", "s").is_none());
    }
}
