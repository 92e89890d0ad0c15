//! An agent in memory, for tests of pod workers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::{NotIsolated, Objects, PodIsolation, PodReports, Severity, TrafficDrain};

/// The kinds that a test's node is told of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource {
    Pod,
    ConfigMap,
    Secret,
    Service,
}

/// What a server says of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    resource: Resource,
    object: Value,
    pub(crate) deleted: bool,
}

pub(crate) fn change(resource: Resource, object: &Value) -> Change {
    Change {
        resource,
        object: object.clone(),
        deleted: false,
    }
}

/// Namespace and name.
type Key = (String, String);
type Table<T> = BTreeMap<Key, Arc<T>>;

#[derive(Debug, Default)]
struct Tables {
    pods: Table<Pod>,
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
    services: Table<Service>,
    synced: bool,
}

/// The objects that a test has put here.
#[derive(Debug, Default)]
pub(crate) struct FakeObjects {
    tables: Mutex<Tables>,
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn put<T: DeserializeOwned>(table: &mut Table<T>, change: &Change) -> serde_json::Result<()> {
    let meta = &change.object["metadata"];
    let part = |name: &str| meta[name].as_str().unwrap_or_default();
    let key = key(part("namespace"), part("name"));
    match change.deleted {
        true => drop(table.remove(&key)),
        false => {
            let object = serde_json::from_value(change.object.clone())?;
            table.insert(key, Arc::new(object));
        }
    }
    Ok(())
}

impl FakeObjects {
    pub(crate) fn apply(&self, change: &Change) -> serde_json::Result<()> {
        let mut tables = self.tables.lock();
        match change.resource {
            Resource::Pod => put(&mut tables.pods, change),
            Resource::ConfigMap => put(&mut tables.config_maps, change),
            Resource::Secret => put(&mut tables.secrets, change),
            Resource::Service => put(&mut tables.services, change),
        }
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.tables.lock().pods.get(&key(namespace, name)).cloned()
    }

    /// The server has said everything.
    pub(crate) fn synced(&self) {
        self.tables.lock().synced = true;
    }
}

impl Objects for FakeObjects {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.tables.lock().pods.values().cloned().collect()
    }

    fn is_synced(&self) -> bool {
        self.tables.lock().synced
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        let tables = self.tables.lock();
        tables.config_maps.get(&key(namespace, name)).cloned()
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        let tables = self.tables.lock();
        tables.secrets.get(&key(namespace, name)).cloned()
    }

    fn service_account(&self, _: &str, _: &str) -> Option<Arc<ServiceAccount>> {
        None
    }

    fn services_of(&self, namespace: &str) -> Vec<Arc<Service>> {
        let tables = self.tables.lock();
        let services = tables.services.iter();
        let own = services.filter(|((own, _), _)| own == namespace);
        own.map(|(_, service)| service.clone()).collect()
    }
}

/// What was said of pods.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// The latest status of a pod.
    Status(Value),
    /// A pod is gone from this node.
    Terminated,
    /// `reason`, `message` and `type` of an Event.
    Event(Value),
}

#[derive(Debug, Default)]
struct Unsaid {
    /// By uid.
    statuses: BTreeMap<String, Value>,
    terminated: BTreeSet<String>,
    events: VecDeque<Value>,
}

/// Keeps what is said until a test asks, of each pod the latest status.
#[derive(Debug, Default)]
pub(crate) struct FakeReports {
    unsaid: Mutex<Unsaid>,
    wake: Notify,
}

impl FakeReports {
    /// Waits for something to be said and takes all of it: the last status before the word that the pod is gone.
    pub(crate) async fn next(&self) -> Vec<Said> {
        loop {
            let unsaid = std::mem::take(&mut *self.unsaid.lock());
            let statuses = unsaid.statuses.into_values().map(Said::Status);
            let terminated = unsaid.terminated.into_iter().map(|_| Said::Terminated);
            let events = unsaid.events.into_iter().map(Said::Event);
            let said: Vec<Said> = statuses.chain(terminated).chain(events).collect();
            if !said.is_empty() {
                return said;
            }
            self.wake.notified().await;
        }
    }

    fn say(&self, say: impl FnOnce(&mut Unsaid)) {
        say(&mut self.unsaid.lock());
        self.wake.notify_one();
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl PodReports for FakeReports {
    fn pod_status(&self, pod: &Pod, status: Vec<u8>) {
        let status = serde_json::from_slice(&status).expect("a status is JSON");
        self.say(|unsaid| {
            unsaid.statuses.insert(uid(pod), status);
        });
    }

    fn pod_terminated(&self, pod: &Pod) {
        self.say(|unsaid| {
            unsaid.terminated.insert(uid(pod));
        });
    }

    fn forget(&self, uid: &str) {
        let mut unsaid = self.unsaid.lock();
        unsaid.statuses.remove(uid);
        unsaid.terminated.remove(uid);
    }

    fn event(&self, _: &Pod, _: Option<&str>, severity: Severity, reason: &str, message: &str) {
        let kind = format!("{severity:?}");
        let event = json!({"type": kind, "reason": reason, "message": message});
        self.say(|unsaid| unsaid.events.push_back(event));
    }
}

/// Isolates pods at once, or refuses to.
#[derive(Debug, Default)]
pub(crate) struct FakeIsolation {
    isolated: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    refusal: Mutex<Option<String>>,
}

impl FakeIsolation {
    /// Refuses every pod with these words, or none any more.
    pub(crate) fn refuse(&self, words: Option<&str>) {
        *self.refusal.lock() = words.map(str::to_owned);
    }

    /// The addresses of the pods that are isolated, by uid.
    pub(crate) fn isolated(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.isolated.lock().clone()
    }
}

#[async_trait]
impl PodIsolation for FakeIsolation {
    async fn isolate(&self, uid: &str, addresses: Vec<IpAddr>) -> Result<(), NotIsolated> {
        self.isolated.lock().insert(uid.to_owned(), addresses);
        match self.refusal.lock().clone() {
            Some(words) => Err(NotIsolated(words)),
            None => Ok(()),
        }
    }

    fn forget(&self, uid: &str) {
        self.isolated.lock().remove(uid);
    }
}

/// Services send connections to the addresses that a test says.
#[derive(Debug)]
pub(crate) struct FakeDrain {
    offered: watch::Sender<BTreeSet<IpAddr>>,
}

impl Default for FakeDrain {
    fn default() -> Self {
        Self {
            offered: watch::Sender::new(BTreeSet::new()),
        }
    }
}

impl FakeDrain {
    pub(crate) fn offer(&self, address: IpAddr) {
        self.offered.send_modify(|offered| {
            offered.insert(address);
        });
    }

    pub(crate) fn withdraw(&self, address: IpAddr) {
        self.offered.send_modify(|offered| {
            offered.remove(&address);
        });
    }
}

#[async_trait]
impl TrafficDrain for FakeDrain {
    async fn drained(&self, addresses: &[IpAddr]) {
        let mut offered = self.offered.subscribe();
        let gone = |offered: &BTreeSet<IpAddr>| !addresses.iter().any(|one| offered.contains(one));
        // The sender is ours: it cannot be gone.
        offered.wait_for(gone).await.ok();
    }

    fn given_up(&self) {}
}
