//! What this node should run and what its pods refer to: the objects received over the link, by kind.
//!
//! The link sends everything, then `Synced`; what was known and not sent again is gone. Until then, the objects of the
//! checkpoint (see [`crate::checkpoint`]) stand, so that pods continue while no server answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use gantry_network::ServiceName;
use gantry_pods::traits::Objects as PodObjects;
use gantry_rpc::node::{ObjectChange, Resource};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;

use crate::ready_endpoints::ReadyEndpoints;
use crate::services::{ServiceObjects, service_of};

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
    /// The names of a service's slices.
    slices: BTreeMap<ServiceName, BTreeSet<String>>,
    /// Services that are different, or have different slices, since they were last taken.
    /// With when the first change arrived, where it is one and not a part of everything.
    changed_services: BTreeMap<ServiceName, Option<Instant>>,
    /// Services were taken once, all of them: from then on, what changed is enough.
    services_taken: bool,
    /// What is known was everything at some time, and every object is as it was then or newer.
    all_known: bool,
    /// Seen since the link was opened.
    sent: BTreeSet<(i32, ObjectKey)>,
    /// Everything is being sent anew.
    receiving: bool,
    /// Every Service and EndpointSlice up to this one is known.
    service_revision: u64,
    synced: bool,
}

/// What kube-proxy's change trackers tell: services that are different from what they were when they were last taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceUpdates {
    /// These are all there are.
    pub(crate) complete: bool,
    pub(crate) services: BTreeMap<ServiceName, ServiceObjects>,
    /// Every Service and EndpointSlice up to this revision is reflected.
    pub(crate) revision: u64,
    /// When the first change of each service arrived.
    pub(crate) arrived: BTreeMap<ServiceName, Instant>,
}

/// What a kubelet's pod config and object caches and kube-proxy's listers are together; cheap to share.
#[derive(Default)]
pub struct Desired {
    objects: RwLock<Objects>,
    ready: Arc<ReadyEndpoints>,
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
    let object: Arc<T> = read(kind, &key, change)?;
    let kept = Kept {
        object: object.clone(),
        json: change.object.clone(),
    };
    table.insert(key, kept);
    Ok(Some(object))
}

/// What an object was and what it is now; `None` when both are the same.
type Exchanged<T> = Option<(Option<Arc<T>>, Option<Arc<T>>)>;

/// As [`put`], for objects of which it matters what they were.
fn exchange<T: DeserializeOwned>(
    table: &mut Table<T>,
    kind: &'static str,
    key: ObjectKey,
    change: &ObjectChange,
) -> Result<Exchanged<T>, Unreadable> {
    let before = table.get(&key);
    if change.deleted {
        let before = table.remove(&key).map(|kept| kept.object);
        return Ok(before.map(|before| (Some(before), None)));
    }
    if before.is_some_and(|kept| kept.json == change.object) {
        return Ok(None);
    }
    let before = before.map(|kept| kept.object.clone());
    let after = put(table, kind, key, change)?;
    Ok(Some((before, after)))
}

fn read<T: DeserializeOwned>(
    kind: &'static str,
    key: &ObjectKey,
    change: &ObjectChange,
) -> Result<Arc<T>, Unreadable> {
    serde_json::from_slice(&change.object)
        .map(Arc::new)
        .map_err(|source| Unreadable {
            resource: kind,
            namespace: key.0.clone(),
            name: key.1.clone(),
            source,
        })
}

impl Objects {
    /// Whether services are known though no server has said anything yet.
    fn is_checkpoint(&self) -> bool {
        !self.receiving && !self.changed_services.is_empty()
    }

    fn service_changed(&mut self, (namespace, name): ObjectKey) {
        self.changed(ServiceName { namespace, name });
    }

    fn changed(&mut self, service: ServiceName) {
        let arrived = (self.synced && !self.receiving).then(Instant::now);
        let first = self.changed_services.entry(service).or_default();
        *first = first.or(arrived);
    }

    /// Keeps the index of slices, and says whose slices have changed.
    fn slice_changed(
        &mut self,
        name: &str,
        before: Option<&EndpointSlice>,
        after: Option<&EndpointSlice>,
    ) {
        if let Some(service) = before.and_then(service_of) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.changed(service);
        }
        if let Some(service) = after.and_then(service_of) {
            let slices = self.slices.entry(service.clone()).or_default();
            slices.insert(name.to_owned());
            self.changed(service);
        }
    }

    fn service_objects(&self, service: &ServiceName) -> ServiceObjects {
        let key = |name: &str| (service.namespace.clone(), name.to_owned());
        let slices = self.slices.get(service).into_iter().flatten();
        ServiceObjects {
            service: self
                .services
                .get(&key(&service.name))
                .map(|kept| kept.object.clone()),
            slices: slices
                .filter_map(|name| self.endpoint_slices.get(&key(name)))
                .map(|kept| kept.object.clone())
                .collect(),
        }
    }
}

/// The changes of a link come in the order of their revisions, but for those before `Synced`.
fn received(objects: &mut Objects, revision: u64) {
    if !objects.receiving {
        objects.service_revision = objects.service_revision.max(revision);
    }
}

fn arrivals(changed: BTreeMap<ServiceName, Option<Instant>>) -> BTreeMap<ServiceName, Instant> {
    let arrived = changed.into_iter();
    arrived
        .filter_map(|(service, arrived)| Some((service, arrived?)))
        .collect()
}

impl Desired {
    /// A new link: whatever is not sent until `Synced` is gone.
    pub fn link_opened(&self) {
        let mut objects = self.objects.write();
        objects.sent.clear();
        objects.all_known |= objects.is_checkpoint();
        objects.receiving = true;
        self.ready.receiving(true);
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
                let table = &mut objects.services;
                let exchanged = exchange(table, "service", key.clone(), change);
                if exchanged.as_ref().is_ok_and(Option::is_some) {
                    objects.service_changed(key);
                }
                received(objects, change.revision);
                exchanged.map(|_| Touched::Service)?
            }
            Resource::EndpointSlice => {
                let table = &mut objects.endpoint_slices;
                let exchanged = exchange(table, "endpoint slice", key, change);
                if let Ok(Some((before, after))) = &exchanged {
                    let (before, after) = (before.as_deref(), after.as_deref());
                    objects.slice_changed(&change.name, before, after);
                    self.ready.slice(before, after, change.revision);
                }
                received(objects, change.revision);
                exchanged.map(|_| Touched::Service)?
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
        ) -> Vec<(ObjectKey, Arc<T>)> {
            let gone: Vec<ObjectKey> = table
                .keys()
                .filter(|key| !sent.contains(&(resource.into(), (*key).clone())))
                .cloned()
                .collect();
            gone.into_iter()
                .filter_map(|key| Some((key.clone(), table.remove(&key)?.object)))
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
        for (key, _) in keep(&mut objects.services, Resource::Service, &sent) {
            objects.service_changed(key);
        }
        let slices = &mut objects.endpoint_slices;
        for ((_, name), slice) in keep(slices, Resource::EndpointSlice, &sent) {
            objects.slice_changed(&name, Some(&slice), None);
            // When it went is not known: no later than this.
            self.ready.slice(Some(&slice), None, revision);
        }
        keep(&mut objects.nodes, Resource::Node, &sent);
        objects.receiving = false;
        objects.all_known = true;
        objects.synced = true;
        received(objects, revision);
        self.ready.receiving(false);
        gone.into_iter().map(|(_, pod)| pod).collect()
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

    /// Whether there are services to program: those of a checkpoint, as long as no server has said anything.
    pub(crate) fn has_services(&self) -> bool {
        self.objects.read().is_checkpoint()
    }

    /// The services that have changed since the last call; all of them at the first. `None` as long as not all are
    /// known: rules of an earlier agent are better than half of them.
    pub(crate) fn take_services(&self) -> Option<ServiceUpdates> {
        let mut objects = self.objects.write();
        if !objects.services_taken {
            if !objects.all_known && !objects.is_checkpoint() {
                return None;
            }
            objects.services_taken = true;
            return Some(Self::everything(&mut objects));
        }
        let changed = std::mem::take(&mut objects.changed_services);
        let services = changed.keys().map(|name| {
            let objects = objects.service_objects(name);
            (name.clone(), objects)
        });
        Some(ServiceUpdates {
            complete: false,
            services: services.collect(),
            revision: objects.service_revision,
            arrived: arrivals(changed),
        })
    }

    /// Counts services as changed: what was not asked of their objects is different.
    pub(crate) fn program_again(&self, services: Vec<ServiceName>) {
        let mut objects = self.objects.write();
        for service in services {
            objects.changed_services.entry(service).or_default();
        }
    }

    /// All services; none of them counts as changed after that.
    pub(crate) fn all_services(&self) -> ServiceUpdates {
        Self::everything(&mut self.objects.write())
    }

    fn everything(objects: &mut Objects) -> ServiceUpdates {
        let arrived = arrivals(std::mem::take(&mut objects.changed_services));
        let names = objects.services.keys();
        let names = names.map(|(namespace, name)| ServiceName {
            namespace: namespace.clone(),
            name: name.clone(),
        });
        ServiceUpdates {
            complete: true,
            services: names
                .map(|name| {
                    let objects = objects.service_objects(&name);
                    (name, objects)
                })
                .collect(),
            revision: objects.service_revision,
            arrived,
        }
    }

    /// Which addresses services send to, as of what was received.
    pub(crate) fn ready_endpoints(&self) -> &Arc<ReadyEndpoints> {
        &self.ready
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

impl PodObjects for Desired {
    fn pods(&self) -> Vec<Arc<Pod>> {
        Self::pods(self)
    }

    fn is_synced(&self) -> bool {
        Self::is_synced(self)
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        Self::config_map(self, namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        Self::secret(self, namespace, name)
    }

    fn service_account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>> {
        Self::service_account(self, namespace, name)
    }

    fn services_of(&self, namespace: &str) -> Vec<Arc<Service>> {
        Self::services_of(self, namespace)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn change(resource: Resource, object: &Value) -> ObjectChange {
        change_at(7, resource, object)
    }

    pub(crate) fn change_at(revision: u64, resource: Resource, object: &Value) -> ObjectChange {
        ObjectChange {
            resource: resource.into(),
            deleted: false,
            revision,
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
        assert_eq!(desired.take_services().unwrap().revision, 12);
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
