//! What this node has to say: kept until the link takes it, and said again after a reconnect.
//!
//! Statuses are level-triggered: only the latest of each pod is kept, so that a burst becomes one message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gantry_base::json::Members;
use gantry_cri::ServiceName;
use gantry_pods::traits::PodReports;
pub use gantry_pods::traits::Severity;
use gantry_rpc::node::{
    AgentMessage, AwaitServices, EventRecord, NodeStatus, PodStatus, PodStatuses, PodTerminated,
    ServicesProgrammed, Wake, agent_message,
};
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};

/// Events kept while no server answers; the oldest go first.
const MAX_EVENTS: usize = 512;

#[derive(Default)]
struct Pending {
    latest: BTreeMap<String, PodStatus>,
    changed: Vec<String>,
    terminated: BTreeMap<String, PodTerminated>,
    newly_terminated: Vec<String>,
    events: VecDeque<bytes::Bytes>,
    programmed: u64,
    newly_programmed: bool,
    /// Revisions at which pods wait for all nodes, and those of them that the server has not been asked about.
    awaited: BTreeSet<u64>,
    newly_awaited: BTreeSet<u64>,
    node_status: Option<bytes::Bytes>,
    /// Services that are wanted, by namespace and name.
    wanted: BTreeSet<(String, String)>,
}

/// Collects reports for the link.
pub struct Reports {
    node: String,
    pending: Mutex<Pending>,
    wake: Notify,
    /// A service is wanted.
    wanted: Notify,
    /// The newest revision that every node's rules reflect, as far as this node was told.
    everywhere: watch::Sender<u64>,
}

impl Reports {
    /// Reports of the node of this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pending: Mutex::default(),
            wake: Notify::new(),
            wanted: Notify::new(),
            everywhere: watch::Sender::new(0),
        }
    }

    /// The latest status of a pod, as JSON.
    pub fn pod_status(&self, pod: &Pod, status: Vec<u8>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let report = PodStatus {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
            status: status.into(),
        };
        let mut pending = self.pending.lock();
        pending.latest.insert(uid.clone(), report);
        if !pending.changed.contains(&uid) {
            pending.changed.push(uid);
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Everything of a deleted pod is gone from this node.
    pub fn pod_terminated(&self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let report = PodTerminated {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
        };
        let mut pending = self.pending.lock();
        pending.terminated.insert(uid.clone(), report);
        pending.newly_terminated.push(uid);
        drop(pending);
        self.wake.notify_one();
    }

    /// The pod no longer exists: nothing more is said about it.
    pub fn forget(&self, uid: &str) {
        let mut pending = self.pending.lock();
        pending.latest.remove(uid);
        pending.terminated.remove(uid);
        pending.changed.retain(|known| known != uid);
        pending.newly_terminated.retain(|known| known != uid);
    }

    /// An Event about a pod, or about one of its containers.
    pub fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        let is_init = |name: &str| {
            let inits = pod
                .spec
                .iter()
                .flat_map(|spec| spec.init_containers.iter().flatten());
            inits.into_iter().any(|init| init.name == name)
        };
        let field = container.map(|name| {
            format!(
                "spec.{}{{{name}}}",
                if is_init(name) {
                    "initContainers"
                } else {
                    "containers"
                }
            )
        });
        let mut object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "namespace": pod.metadata.namespace, "name": pod.metadata.name,
            "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
        });
        if let Some(field) = field {
            *object.member(&["fieldPath"]) = json!(field);
        }
        self.push_event("kubelet", object, severity, reason, message);
        let level = format!("{severity:?}");
        tracing::info!(
            pod = pod.metadata.name,
            container,
            level,
            reason,
            message,
            "event"
        );
    }

    /// An Event about this node.
    pub fn node_event(&self, severity: Severity, reason: &str, message: &str) {
        let object =
            json!({"kind": "Node", "apiVersion": "v1", "name": self.node, "uid": self.node});
        self.push_event("kubelet", object, severity, reason, message);
    }

    /// An Event about what this node makes of a service.
    pub fn service_event(
        &self,
        service: &Service,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        let metadata = &service.metadata;
        let object = json!({
            "kind": "Service", "apiVersion": "v1",
            "namespace": metadata.namespace, "name": metadata.name,
            "uid": metadata.uid, "resourceVersion": metadata.resource_version,
        });
        self.push_event("kube-proxy", object, severity, reason, message);
        let level = format!("{severity:?}");
        tracing::info!(
            namespace = metadata.namespace,
            service = metadata.name,
            level,
            reason,
            message,
            "event"
        );
    }

    fn push_event(
        &self,
        component: &str,
        object: serde_json::Value,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "involvedObject": object,
            "type": match severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
            "reason": reason, "message": message,
            "source": {"component": component, "host": self.node},
            "reportingComponent": component, "reportingInstance": self.node,
        });
        let mut pending = self.pending.lock();
        if pending.events.len() == MAX_EVENTS {
            pending.events.pop_front();
        }
        pending.events.push_back(event.to_string().into());
        drop(pending);
        self.wake.notify_one();
    }

    /// The kernel's rules reflect everything up to this revision.
    pub fn services_programmed(&self, revision: u64) {
        let mut pending = self.pending.lock();
        pending.programmed = revision;
        pending.newly_programmed = true;
        drop(pending);
        self.wake.notify_one();
    }

    /// Returns when the rules of every node of the cluster reflect a revision; for ever waits who asks while no server
    /// answers.
    pub async fn programmed_everywhere(&self, revision: u64) {
        let mut everywhere = self.everywhere.subscribe();
        if *everywhere.borrow() >= revision {
            return;
        }
        {
            let mut pending = self.pending.lock();
            if pending.awaited.insert(revision) {
                pending.newly_awaited.insert(revision);
            }
        }
        self.wake.notify_one();
        // The sender lives as long as this.
        everywhere.wait_for(|told| *told >= revision).await.ok();
    }

    /// The server says that the rules of every node reflect a revision.
    pub fn services_everywhere(&self, revision: u64) {
        let mut pending = self.pending.lock();
        pending.awaited = pending.awaited.split_off(&revision.saturating_add(1));
        pending.newly_awaited.retain(|awaited| *awaited > revision);
        drop(pending);
        self.everywhere
            .send_modify(|told| *told = (*told).max(revision));
    }

    /// The node's status, as JSON.
    pub fn node_status(&self, status: Vec<u8>) {
        self.pending.lock().node_status = Some(status.into());
        self.wake.notify_one();
    }

    /// A service that nothing serves is wanted. Said before anything else, and not kept for a later link: what still wants it
    /// says so again.
    pub fn service_wanted(&self, service: &ServiceName) {
        let name = (service.namespace.clone(), service.name.clone());
        self.pending.lock().wanted.insert(name);
        self.wanted.notify_one();
    }

    /// Waits for a service to be wanted.
    pub async fn next_wanted(&self) -> AgentMessage {
        loop {
            let wanted = self.pending.lock().wanted.pop_first();
            if let Some((namespace, service)) = wanted {
                let wake = agent_message::Message::Wake(Wake { namespace, service });
                return AgentMessage {
                    message: Some(wake),
                };
            }
            self.wanted.notified().await;
        }
    }

    /// A new link: the server may have missed anything that is not an Event.
    pub fn link_opened(&self) {
        let mut pending = self.pending.lock();
        pending.changed = pending.latest.keys().cloned().collect();
        pending.newly_terminated = pending.terminated.keys().cloned().collect();
        pending.newly_awaited = pending.awaited.clone();
        pending.newly_programmed = pending.programmed > 0;
        pending.wanted.clear();
        drop(pending);
        self.wake.notify_one();
    }

    /// Waits for something to say and takes all of it.
    pub async fn next(&self) -> Vec<AgentMessage> {
        loop {
            let messages = self.take();
            if !messages.is_empty() {
                return messages;
            }
            self.wake.notified().await;
        }
    }

    fn take(&self) -> Vec<AgentMessage> {
        let mut guard = self.pending.lock();
        let pending = &mut *guard;
        let mut messages = Vec::new();
        let changed = std::mem::take(&mut pending.changed);
        let statuses: Vec<_> = changed
            .iter()
            .filter_map(|uid| pending.latest.get(uid).cloned())
            .collect();
        // The last status goes before the word that the pod is gone.
        if !statuses.is_empty() {
            messages.push(agent_message::Message::PodStatuses(PodStatuses {
                statuses,
            }));
        }
        let gone = std::mem::take(&mut pending.newly_terminated);
        messages.extend(
            gone.iter()
                .filter_map(|uid| pending.terminated.get(uid).cloned())
                .map(agent_message::Message::PodTerminated),
        );
        messages.extend(
            pending
                .events
                .drain(..)
                .map(|event| agent_message::Message::Event(EventRecord { event })),
        );
        if std::mem::take(&mut pending.newly_programmed) {
            let revision = pending.programmed;
            messages.push(agent_message::Message::ServicesProgrammed(
                ServicesProgrammed { revision },
            ));
        }
        // After what this node has programmed itself.
        messages.extend(
            std::mem::take(&mut pending.newly_awaited)
                .into_iter()
                .map(|revision| agent_message::Message::AwaitServices(AwaitServices { revision })),
        );
        if let Some(status) = pending.node_status.take() {
            messages.push(agent_message::Message::NodeStatus(NodeStatus { status }));
        }
        messages
            .into_iter()
            .map(|message| AgentMessage {
                message: Some(message),
            })
            .collect()
    }
}

impl PodReports for Reports {
    fn pod_status(&self, pod: &Pod, status: Vec<u8>) {
        Self::pod_status(self, pod, status);
    }

    fn pod_terminated(&self, pod: &Pod) {
        Self::pod_terminated(self, pod);
    }

    fn forget(&self, uid: &str) {
        Self::forget(self, uid);
    }

    fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        Self::event(self, pod, container, severity, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name}}))
            .unwrap()
    }

    #[tokio::test]
    async fn who_waits_for_all_nodes_asks_once_a_link_and_is_woken() {
        let reports = std::sync::Arc::new(Reports::new("n"));
        let waiting = tokio::spawn({
            let reports = reports.clone();
            async move { reports.programmed_everywhere(7).await }
        });
        let asked = |messages: Vec<AgentMessage>| match messages[..] {
            [
                AgentMessage {
                    message: Some(agent_message::Message::AwaitServices(AwaitServices { revision })),
                },
            ] => revision,
            _ => panic!("{messages:?}"),
        };
        assert_eq!(asked(reports.next().await), 7);
        reports.link_opened();
        assert_eq!(asked(reports.next().await), 7);
        reports.services_everywhere(6);
        assert!(!waiting.is_finished());
        reports.services_everywhere(8);
        waiting.await.unwrap();
        reports.programmed_everywhere(8).await;
        reports.link_opened();
        assert!(reports.take().is_empty());
    }

    #[tokio::test]
    async fn a_burst_is_one_message_and_a_new_link_hears_all_again() {
        let reports = Reports::new("n");
        reports.pod_status(&pod("a"), b"1".to_vec());
        reports.pod_status(&pod("a"), b"2".to_vec());
        reports.pod_status(&pod("b"), b"3".to_vec());
        reports.pod_terminated(&pod("b"));
        let messages = reports.next().await;
        assert_eq!(messages.len(), 2);
        let Some(agent_message::Message::PodStatuses(batch)) = &messages[0].message else {
            panic!("{messages:?}")
        };
        assert_eq!(batch.statuses.len(), 2);
        assert_eq!(&batch.statuses[0].status[..], b"2");
        reports.forget("b");
        reports.link_opened();
        let messages = reports.next().await;
        let Some(agent_message::Message::PodStatuses(batch)) = &messages[0].message else {
            panic!("{messages:?}")
        };
        assert_eq!((messages.len(), batch.statuses.len()), (1, 1));
    }
}
