//! What nodes report, written through the API: registration, pod statuses, finished pods, events.
//!
//! - A node's word counts only for itself and for pods bound to it: whatever it says is read as a type ([`said`]), judged by
//!   what the store knows ([`Owned`]), and once more by the object that is written.
//! - Statuses are level-triggered: only the latest of each pod is kept while a write is under way, so that a burst costs one
//!   write per pod and never grows. They go with the link: of a node that has left nothing remains.
//! - What an older link of a node said never replaces what a later one says ([`LinkReports::is_current`]), and writes carry
//!   the leader's term: neither does what an earlier leader was told.
//! - What is written is told to everybody who watches: how much of that a node may cause is in [`allowance`], and what waits
//!   for it in [`queue`].

mod allowance;
mod queue;
mod registration;
mod scraped;
mod usage;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use gantry_apiserver::Clock;
use gantry_base::json::Members;
use gantry_base::paths;
use gantry_informer::{Recorder, chain};
use gantry_members::Roster;
use gantry_rpc::node::{PodStatus, Wake, agent_message};
use gantry_store::{Entry, Key, Store, Table};
use gantry_tasks::caught;
use gantry_usage::{Figures, ServiceName};
use http::Method;
use k8s_openapi::api::core::v1 as core;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::allowance::Allowances;
pub(super) use self::allowance::{Allowance, Rate};
use self::queue::{Pending, Queue};
use super::addresses::AddressBook;
use super::restrictions::{Holder, check_pod_addresses, keep_own_addresses};
use super::said::{self, NodeName, PodRef, Refused, Subject};
use crate::cluster::ClusterFacts;
use crate::metrics::METRICS;
use crate::pod_cidr::PodCidrs;
use crate::requests::{call, code, get, is_conflict};

/// Pods of one node written at once.
const CONCURRENT_WRITES: usize = 16;
/// Attempts at a write that others keep conflicting with.
const ATTEMPTS: usize = 8;
/// Statuses of one message that are taken before others have their turn.
const TURN: usize = 64;
/// Between attempts at what could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// What all links share.
pub(crate) struct Reports {
    pub(crate) store: Store,
    pub(crate) roster: Roster,
    pub(crate) facts: ClusterFacts,
    pub(crate) pod_cidrs: PodCidrs,
    pub(crate) recorder: Recorder,
    /// What nodes and pods use.
    figures: Arc<Figures>,
    clock: Clock,
    addresses: AddressBook,
    /// The latest link of each node that has one: its number, and where it comes from.
    links: Mutex<BTreeMap<NodeName, (u64, IpAddr)>>,
    numbers: AtomicU64,
    /// Of the nodes that have a link, or have said much a moment ago.
    allowances: Mutex<BTreeMap<NodeName, Arc<Allowances>>>,
}

/// The reports of one link.
pub(crate) struct LinkReports {
    shared: Arc<Reports>,
    node: NodeName,
    number: u64,
    dials_from: IpAddr,
    /// Fenced by the term in which the link was opened.
    client: kube::Client,
    queue: Mutex<Queue>,
    wake: Notify,
    allowances: Arc<Allowances>,
    /// The pods that there are figures of.
    known_pods: Mutex<usage::Known>,
    /// The pods that have answered.
    scraped_pods: Mutex<usage::Known>,
}

/// Whose a pod is that a node speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owned {
    Yes,
    /// There is no such pod, or another one of its name.
    Gone,
    No,
}

impl Reports {
    pub(crate) fn new(
        store: Store,
        roster: Roster,
        facts: ClusterFacts,
        pod_cidrs: PodCidrs,
        recorder: Recorder,
        figures: Arc<Figures>,
    ) -> Self {
        Self {
            addresses: AddressBook::new(store.clone()),
            figures,
            clock: Clock::system(),
            store,
            roster,
            facts,
            pod_cidrs,
            recorder,
            links: Mutex::default(),
            numbers: AtomicU64::new(0),
            allowances: Mutex::default(),
        }
    }

    /// What a node may still say. Forgets nodes that are gone and of which nothing is to be remembered: O(nodes).
    fn allowances(&self, node: &NodeName, now: Instant) -> Arc<Allowances> {
        let mut known = self.allowances.lock();
        known.retain(|_, one| Arc::strong_count(one) > 1 || !one.are_whole(now));
        let own = known.entry(node.clone());
        own.or_insert_with(|| Arc::new(Allowances::new())).clone()
    }

    /// The reports of a new link; those of an older link of the node count for nothing from now on.
    pub(crate) fn open(
        self: &Arc<Self>,
        node: NodeName,
        dials_from: IpAddr,
        client: kube::Client,
    ) -> LinkReports {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.links.lock().insert(node.clone(), (number, dials_from));
        LinkReports {
            shared: self.clone(),
            allowances: self.allowances(&node, Instant::now()),
            node,
            number,
            dials_from,
            client,
            queue: Mutex::default(),
            wake: Notify::new(),
            known_pods: Mutex::default(),
            scraped_pods: Mutex::default(),
        }
    }

    /// A node that has an address. One that is just registering is there too.
    fn holder(&self, node: &str) -> Holder {
        let links = self.links.lock();
        Holder {
            node: node.to_owned(),
            dials_from: links.get(node).map(|(_, from)| *from),
        }
    }

    fn entry(&self, table: &str, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.store.get(&Key {
            table: Table(table.into()),
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    fn get(&self, table: &str, namespace: &str, name: &str) -> Option<Value> {
        let entry = self.entry(table, namespace, name)?;
        serde_json::from_slice(&entry.value).ok()
    }
}

fn is_latest(links: &BTreeMap<NodeName, (u64, IpAddr)>, node: &NodeName, number: u64) -> bool {
    links.get(node).is_some_and(|(latest, _)| *latest == number)
}

impl Drop for LinkReports {
    fn drop(&mut self) {
        let mut links = self.shared.links.lock();
        if is_latest(&links, &self.node, self.number) {
            links.remove(&self.node);
        }
    }
}

impl LinkReports {
    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    /// Whether no later link of the node has been opened. Asked between the reading of an object and its replacement,
    /// which fails when anybody else has changed it meanwhile.
    fn is_current(&self) -> bool {
        is_latest(&self.shared.links.lock(), &self.node, self.number)
    }

    fn must_be_current(&self) -> Result<()> {
        match self.is_current() {
            true => Ok(()),
            false => bail!("the node has opened another link since"),
        }
    }

    /// Takes a message; waits for nothing, but lets others have their turn. What the node may not say is refused, with a
    /// line in the log.
    pub(crate) async fn take(&self, message: agent_message::Message) {
        let taken = match message {
            agent_message::Message::PodStatuses(statuses) => {
                self.take_statuses(&statuses.statuses).await
            }
            agent_message::Message::PodTerminated(terminated) => {
                said::pod_terminated(terminated).and_then(|pod| self.take_terminated(pod))
            }
            agent_message::Message::Event(event) => {
                said::event(&event).and_then(|(subject, event)| self.take_event(&subject, event))
            }
            agent_message::Message::Usage(usage) => self.take_usage(usage).await,
            agent_message::Message::Scraped(scraped) => self.take_scraped(scraped).await,
            agent_message::Message::NodeStatus(status) => {
                said::node_status(&status).map(|mut status| {
                    self.note(keep_own_addresses(self.node.as_str(), &mut status));
                    self.queue.lock().node = Some(Box::new(status));
                    self.wake.notify_one();
                })
            }
            agent_message::Message::Hello(_)
            | agent_message::Message::Heartbeat(_)
            | agent_message::Message::ServicesProgrammed(_)
            | agent_message::Message::AwaitServices(_)
            | agent_message::Message::Wake(_) => Ok(()),
        };
        self.note(taken);
    }

    /// The Service that the node says is wanted, unless it says so more often than there can be news of it.
    pub(crate) fn wanted(&self, said: Wake) -> Option<ServiceName> {
        if !self.allowances.wakes.lock().take(Instant::now()) {
            return None;
        }
        let service = said::wake(said);
        let service = service.map_err(|refused| self.note(Err(refused))).ok()?;
        METRICS.wakes.inc();
        Some(service)
    }

    async fn take_statuses(&self, statuses: &[PodStatus]) -> Result<(), Refused> {
        said::check_statuses(statuses.len())?;
        for (at, said) in statuses.iter().enumerate() {
            let taken = said::pod_status(said);
            self.note(taken.and_then(|(pod, status)| self.take_status(pod, status)));
            if (at + 1) % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    fn note(&self, taken: Result<(), Refused>) {
        let Err(refused) = taken else { return };
        METRICS.reports_refused.inc();
        if self.allowances.lines.lock().take(Instant::now()) {
            tracing::warn!(node = %self.node, %refused, "a node said what it may not");
        }
    }

    /// Whose a pod is, by the store. It has every pod that the node was told of.
    fn owner(&self, pod: &PodRef) -> Owned {
        #[derive(Deserialize)]
        struct StoredPod {
            metadata: StoredMeta,
            #[serde(default)]
            spec: StoredSpec,
        }
        #[derive(Deserialize)]
        struct StoredMeta {
            uid: String,
        }
        #[derive(Default, Deserialize)]
        struct StoredSpec {
            #[serde(default, rename = "nodeName")]
            node_name: String,
        }
        let found = self.shared.entry("core/pods", pod.namespace(), pod.name());
        let known = found.and_then(|found| serde_json::from_slice::<StoredPod>(&found.value).ok());
        match known {
            Some(known) if known.spec.node_name == self.node.as_str() => {
                match known.metadata.uid == pod.uid() {
                    true => Owned::Yes,
                    false => Owned::Gone,
                }
            }
            Some(known) if known.metadata.uid == pod.uid() => Owned::No,
            // Perhaps a successor of the one that is meant.
            _ => Owned::Gone,
        }
    }

    fn must_own(&self, pod: &PodRef) -> Result<bool, Refused> {
        match self.owner(pod) {
            Owned::Yes => Ok(true),
            Owned::Gone => Ok(false),
            Owned::No => Err(Refused::NotItsOwn(format!(
                "the pod {}/{} is not bound to this node",
                pod.namespace(),
                pod.name()
            ))),
        }
    }

    fn take_status(&self, pod: PodRef, status: &[u8]) -> Result<(), Refused> {
        if self.must_own(&pod)? {
            self.queue.lock().say_status(pod, status)?;
            self.wake.notify_one();
        }
        Ok(())
    }

    fn take_terminated(&self, pod: PodRef) -> Result<(), Refused> {
        if self.must_own(&pod)? {
            self.queue.lock().say_terminated(pod);
            self.wake.notify_one();
        }
        Ok(())
    }

    fn take_event(&self, subject: &Subject, event: core::Event) -> Result<(), Refused> {
        let is_its_own = match subject {
            Subject::Node(node) => *node == self.node,
            Subject::Pod(pod) => self.owner(pod) == Owned::Yes,
            Subject::Service {
                namespace,
                name,
                uid,
            } => {
                let service = self.shared.get("core/services", namespace, name);
                service.is_some_and(|service| service["metadata"]["uid"] == uid.as_str())
            }
        };
        if !is_its_own {
            return Err(Refused::NotItsOwn(format!(
                "an Event about {subject:?}, which is not this node's"
            )));
        }
        if !self.allowances.events.lock().take(Instant::now()) {
            tracing::debug!(node = %self.node, "too many events of one node: one was dropped");
            return Ok(());
        }
        let component = event.source.as_ref();
        let component = component.and_then(|source| source.component.as_deref());
        let component = component
            .filter(|component| ["kubelet", "kube-proxy"].contains(component))
            .unwrap_or("kubelet");
        // Where it comes from is not the node's to say, nor anything that is left out here.
        let (component, node) = (component.to_owned(), self.node.as_str().to_owned());
        let is_warning = event.type_.as_deref() == Some("Warning");
        self.shared.recorder.record(core::Event {
            involved_object: event.involved_object,
            type_: Some(if is_warning { "Warning" } else { "Normal" }.to_owned()),
            reason: event.reason,
            message: event.message,
            source: Some(core::EventSource {
                component: Some(component.clone()),
                host: Some(node.clone()),
            }),
            reporting_component: Some(component),
            reporting_instance: Some(node),
            ..core::Event::default()
        });
        Ok(())
    }

    /// Writes reports until the link has ended, and then what is left of them.
    pub(crate) async fn write(&self, ended: CancellationToken) {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = ended.cancelled() => {
                    self.write_all().await;
                    return;
                }
            }
            if !self.write_all().await {
                ended.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                self.wake.notify_one();
            }
        }
    }

    /// Writes what waits, as far as it is allowed by now. False when something is to be tried again.
    async fn write_all(&self) -> bool {
        if !self.is_current() {
            // The node says it again on its new link.
            *self.queue.lock() = Queue::default();
            return true;
        }
        let (node, due, mut done) = self.due(Instant::now());
        if let Some(status) = node {
            let written = self.write_latest(&status).await;
            if !written {
                self.queue.lock().node.get_or_insert(status);
            }
            done &= written;
        }
        let failed = futures::stream::iter(due)
            .map(|(pod, pending)| async move {
                let written = caught(self.write_pod(&pod, &pending)).await;
                let what = format!("the status of {}/{}", pod.namespace(), pod.name());
                self.is_over(&what, written).then_some((pod, pending))
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        done &= failed.is_empty();
        self.queue.lock().put_back(failed);
        done
    }

    /// Takes out of the queue what may be written now; whether that is all of it.
    fn due(&self, now: Instant) -> (Option<Box<core::NodeStatus>>, Vec<(PodRef, Pending)>, bool) {
        let mut queue = self.queue.lock();
        let mut allowed = self.allowances.pods.lock();
        let due = queue.take_due(|pod, pending| allowed.take(self.weight(pod, pending), now));
        (queue.node.take(), due, queue.pods.is_empty())
    }

    /// About as many bytes as a write makes wait for everybody who watches pods: the pod before it and after it.
    fn weight(&self, pod: &PodRef, pending: &Pending) -> usize {
        let stored = self.shared.entry("core/pods", pod.namespace(), pod.name());
        let stored = stored.map_or(0, |entry| entry.value.len());
        2 * stored + pending.status.as_ref().map_or(0, Bytes::len)
    }

    /// Writes the node's status, when that is its turn. False when it is to be tried again.
    async fn write_latest(&self, status: &core::NodeStatus) -> bool {
        if !self.allowances.statuses.lock().take(Instant::now()) {
            return false;
        }
        let written = caught(self.write_node_status(status)).await;
        !self.is_over("the node's status", written)
    }

    /// Tells of a write that failed; whether it is worth another attempt.
    fn is_over(&self, what: &str, written: Result<Result<()>, gantry_tasks::Panicked>) -> bool {
        let (error, again) = match written {
            Ok(Ok(())) => return false,
            Ok(Err(error)) => {
                if let Some(refused) = error.downcast_ref::<Refused>() {
                    self.note(Err(refused.clone()));
                    return false;
                }
                let api = error.downcast_ref::<kube::Error>().and_then(code);
                // Who is told that it may not will be told so again.
                let again = self.is_current() && api.is_none_or(|code| code >= 500 || code == 429);
                (chain(&*error), again)
            }
            Err(panicked) => (panicked.to_string(), false),
        };
        match self.is_current() {
            true => tracing::warn!(node = %self.node, error, "writing {what}"),
            // The node says it again on its new link.
            false => tracing::debug!(node = %self.node, error, "writing {what}"),
        }
        again
    }

    async fn write_pod(&self, pod: &PodRef, pending: &Pending) -> Result<()> {
        if let Some(status) = &pending.status {
            self.write_status(pod, status).await?;
        }
        if pending.terminated {
            self.remove(pod).await?;
        }
        Ok(())
    }

    /// The pod as it is now, if it is still the one that the node speaks of and the node's own.
    async fn own_pod(&self, pod: &PodRef) -> Result<Option<Value>> {
        let path = paths::namespaced(pod.namespace(), &["pods", pod.name()]);
        let Some(object) = get(&self.client, &path).await? else {
            return Ok(None);
        };
        if object["metadata"]["uid"] != pod.uid() {
            return Ok(None);
        }
        if object["spec"]["nodeName"] != self.node.as_str() {
            let bound = Refused::NotItsOwn(format!(
                "the pod {}/{} is not bound to this node",
                pod.namespace(),
                pod.name()
            ));
            return Err(bound.into());
        }
        self.must_be_current()?;
        Ok(Some(object))
    }

    async fn write_status(&self, pod: &PodRef, said: &[u8]) -> Result<()> {
        let path = paths::namespaced(pod.namespace(), &["pods", pod.name(), "status"]);
        let status = &said::read_pod_status(said)?;
        let reported = serde_json::to_value(status)?;
        for _ in 0..ATTEMPTS {
            let Some(mut object) = self.own_pod(pod).await? else {
                return Ok(());
            };
            let node = self.shared.get("core/nodes", "", self.node.as_str());
            let node: core::Node = serde_json::from_value(node.unwrap_or_default())
                .context("the Node is gone: its pods cannot be told of")?;
            let host_network = object["spec"]["hostNetwork"] == true;
            check_pod_addresses(host_network, status, &node)?;
            let merged = merge_status(&object["status"], &reported);
            // Those that the node no longer repeats stay, as others' do: they are not to pile up.
            said::check_conditions(conditions(&merged).count())?;
            if merged == object["status"] {
                return Ok(());
            }
            *object.member(&["status"]) = merged;
            match call(&self.client, Method::PUT, &path, &object).await {
                Ok(_) => return Ok(()),
                Err(error) if code(&error) == Some(404) => return Ok(()),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("others keep changing the pod")
    }

    /// Removes a pod that is being deleted, now that nothing of it runs.
    async fn remove(&self, pod: &PodRef) -> Result<()> {
        let Some(object) = self.own_pod(pod).await? else {
            return Ok(());
        };
        if object["metadata"]["deletionTimestamp"].is_null() {
            let alive = Refused::NotItsOwn(format!(
                "the pod {}/{} is not being deleted",
                pod.namespace(),
                pod.name()
            ));
            return Err(alive.into());
        }
        let path = paths::namespaced(pod.namespace(), &["pods", pod.name()]);
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod.uid()},
        });
        match call(&self.client, Method::DELETE, &path, &options).await {
            Ok(_) => Ok(()),
            // Gone already, or another pod of the same name.
            Err(error) if code(&error) == Some(404) || is_conflict(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Conditions that nodes alone tell, and only while they hold.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The node's status with the conditions and fields that others own kept: the scheduler's PodScheduled, readiness
/// gates, and the quality-of-service class.
fn merge_status(current: &Value, reported: &Value) -> Value {
    let mut merged = reported.clone();
    for field in ["qosClass", "resize"] {
        if merged[field].is_null() && !current[field].is_null() {
            *merged.member(&[field]) = current[field].clone();
        }
    }
    for field in ["nominatedNodeName", "resourceClaimStatuses"] {
        if let Some(members) = merged.as_object_mut() {
            members.remove(field);
        }
        if !current[field].is_null() {
            *merged.member(&[field]) = current[field].clone();
        }
    }
    let types: HashSet<Option<&str>> = conditions(reported).map(type_of).collect();
    let is_passing = |of: Option<&str>| of.is_some_and(|of| PASSING.contains(&of));
    let foreign = conditions(current).filter(|condition| {
        let of = type_of(condition);
        !types.contains(&of) && !is_passing(of)
    });
    let all: Vec<Value> = conditions(reported).chain(foreign).cloned().collect();
    if !all.is_empty() {
        *merged.member(&["conditions"]) = Value::Array(all);
    }
    merged
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status["conditions"].as_array().into_iter().flatten()
}

fn type_of(condition: &Value) -> Option<&str> {
    condition["type"].as_str()
}

#[cfg(test)]
mod tests;
