//! What the node says of itself, described anew in a period and kept for the next connection.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_cri::image::Images;
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::AgentConfig;
use crate::node::{Description, Machine, describe};
use crate::pressure::{Condition, Pressures, Sample};
use crate::reports::{Reports, Severity};

/// Between looks at memory, disk and processes, as a kubelet's.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);

/// Between reports while nothing changes, as a kubelet's.
pub(crate) const REPORT: Duration = Duration::from_secs(5 * 60);

/// A kubelet's node status: the Node as it was described last.
pub(crate) struct NodeStatus {
    config: AgentConfig,
    machine: Machine,
    images: Arc<dyn Images>,
    reports: Arc<Reports>,
    /// How the machine is looked at; a test's machine is as the test says.
    measure: fn(&Path) -> std::io::Result<Sample>,
    state: Mutex<State>,
    /// What others have found out, by the condition's type.
    findings: Mutex<BTreeMap<&'static str, Condition>>,
    found: Notify,
}

#[derive(Default)]
struct State {
    described: Option<Value>,
    pressures: Pressures,
    network: Network,
}

/// Whether pods can be here, as far as the network is concerned.
#[derive(Debug, Default, PartialEq, Eq)]
enum Network {
    #[default]
    NotYet,
    Ready,
    /// In these words.
    Broken(String),
}

impl Network {
    fn trouble(&self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::NotYet => Some(
                "the node's network is not set up yet; should it stay so, the agent's log says why"
                    .to_owned(),
            ),
            Self::Broken(words) => Some(format!("the node's network is broken: {words}")),
        }
    }
}

/// What of a description is worth telling the server at once: images, and conditions without their heartbeat.
fn news(node: &Value) -> (&Value, Vec<[&Value; 3]>) {
    let conditions = node["status"]["conditions"].as_array();
    let conditions = conditions
        .into_iter()
        .flatten()
        .map(|condition| ["type", "status", "message"].map(|field| &condition[field]));
    (&node["status"]["images"], conditions.collect())
}

impl NodeStatus {
    pub(crate) fn new(
        config: AgentConfig,
        machine: Machine,
        images: Arc<dyn Images>,
        reports: Arc<Reports>,
    ) -> Self {
        Self {
            config,
            machine,
            images,
            reports,
            measure: Sample::take,
            state: Mutex::default(),
            findings: Mutex::default(),
            found: Notify::new(),
        }
    }

    /// Takes a condition over that is good when it holds, or that there is nothing to say of this type any more. Trouble,
    /// and its end, are Events as well.
    pub(crate) fn find(&self, kind: &'static str, condition: Option<Condition>) {
        let mut findings = self.findings.lock();
        let before = match &condition {
            Some(condition) => findings.insert(kind, condition.clone()),
            None => findings.remove(kind),
        };
        drop(findings);
        if before == condition {
            return;
        }
        match condition {
            Some(bad) if !bad.holds => {
                tracing::warn!(reason = bad.reason, "{}", bad.message);
                self.reports
                    .node_event(Severity::Warning, bad.reason, &bad.message);
            }
            Some(good) if before.is_some() => {
                tracing::info!(reason = good.reason, "{}", good.message);
                self.reports
                    .node_event(Severity::Normal, good.reason, &good.message);
            }
            _ => {}
        }
        self.found.notify_one();
    }

    /// The node's network is there: from now on the node is Ready.
    pub(crate) fn network_is_ready(&self) {
        self.network_is(Network::Ready);
    }

    /// Pods are cut off, and why: until [`NodeStatus::network_is_ready`] the node is not Ready.
    pub(crate) fn network_is_broken(&self, words: &str) {
        self.network_is(Network::Broken(words.to_owned()));
    }

    fn network_is(&self, network: Network) {
        let mut state = self.state.lock();
        if state.network != network {
            if let Some(trouble) = network.trouble() {
                tracing::error!("{trouble}");
            }
            state.network = network;
            self.found.notify_one();
        }
    }

    /// Something changes faster than the node is looked at.
    pub(crate) fn look_again(&self) {
        self.found.notify_one();
    }

    /// Returns when there is something new to describe.
    pub(crate) async fn found(&self) {
        self.found.notified().await;
    }

    /// Describes the node anew; whether anything but the heartbeat's time has changed.
    pub(crate) async fn refresh(&self) -> bool {
        let images = self.images.list().await.unwrap_or_else(|error| {
            tracing::warn!(error = gantry_cri::words(&error), "listing images");
            Vec::new()
        });
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let findings: Vec<Condition> = self.findings.lock().values().cloned().collect();
        let mut state = self.state.lock();
        match (self.measure)(&self.config.data_dir) {
            Ok(sample) => {
                let before = state.pressures.conditions();
                state.pressures.observe(&sample, Instant::now());
                for (before, after) in before.iter().zip(state.pressures.conditions()) {
                    if before.holds != after.holds {
                        tracing::info!(reason = after.reason, ?sample, "the node's condition");
                        self.say(&after);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "measuring the node"),
        }
        let earlier: Option<NodeObject> = state
            .described
            .as_ref()
            .and_then(|value| serde_json::from_value(value.clone()).ok());
        let next = describe(&Description {
            name: &self.config.node_name,
            addresses: &self.config.addresses(),
            labels: &self.config.labels,
            taints: &self.config.taints,
            machine: self.machine,
            pods: self.config.max_pods,
            pressures: state.pressures.conditions(),
            network_trouble: state.network.trouble().as_deref(),
            findings: &findings,
            images: &images,
            now: &now,
            earlier: earlier.as_ref(),
        });
        let changed = state
            .described
            .as_ref()
            .is_none_or(|before| news(before) != news(&next));
        state.described = Some(next);
        changed
    }

    /// The Event of a condition that has changed, as a kubelet words it.
    fn say(&self, condition: &Condition) {
        let reason = condition.reason.replacen("Kubelet", "Node", 1);
        let message = format!("Node {} status is now: {reason}", self.config.node_name);
        self.reports.node_event(Severity::Normal, &reason, &message);
    }

    fn part(&self, part: impl FnOnce(&Value) -> &Value) -> Option<Value> {
        self.state.lock().described.as_ref().map(part).cloned()
    }

    /// The Node object; empty before the first description.
    pub(crate) fn json(&self) -> Bytes {
        let node = self.part(|node| node);
        node.map(|node| node.to_string().into()).unwrap_or_default()
    }

    /// The Node object's status; empty before the first description.
    pub(crate) fn status(&self) -> Vec<u8> {
        let status = self.part(|node| &node["status"]);
        status
            .map(|status| status.to_string().into_bytes())
            .unwrap_or_default()
    }

    /// What pods may have of the node.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.part(|node| &node["status"]["allocatable"])
            .and_then(|value| serde_json::from_value(value).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use gantry_cri::image::{FakeImages, ImageConfig};
    use gantry_rpc::node::agent_message;

    use super::*;
    use crate::pressure::tests::ample;

    #[tokio::test]
    async fn only_news_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let images = Arc::new(FakeImages::new(directory.path()));
        images.offer("web:1", ImageConfig::default());
        let mut config = AgentConfig::in_directory(directory.path());
        config.max_pods = 3;
        let machine = Machine::here(Path::new("/"));
        let reports = Arc::new(Reports::new("n"));
        let mut node_status = NodeStatus::new(config, machine, images.clone(), reports.clone());
        node_status.measure = |_| Ok(ample());
        assert!(node_status.json().is_empty());
        assert!(node_status.refresh().await);
        assert!(!node_status.refresh().await);
        images.pull("web:1", None, None).await.unwrap();
        assert!(node_status.refresh().await);
        assert_eq!(node_status.allocatable()["pods"].0, "3");
        let node: NodeObject = serde_json::from_slice(&node_status.json()).unwrap();
        let status: Value = serde_json::from_slice(&node_status.status()).unwrap();
        assert_eq!(
            serde_json::to_value(node.status).unwrap()["nodeInfo"],
            status["nodeInfo"]
        );
        let mut short = Pressures::default();
        short.observe(&Sample::default(), Instant::now());
        node_status.say(&short.conditions()[0]);
        let messages = reports.next().await;
        let Some(agent_message::Message::Event(record)) = &messages[0].message else {
            panic!("an event");
        };
        let event: Value = serde_json::from_slice(&record.event).unwrap();
        assert_eq!(event["reason"], "NodeHasInsufficientMemory");
    }

    #[tokio::test]
    async fn findings_are_conditions_and_trouble_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let images = Arc::new(FakeImages::new(directory.path()));
        let reports = Arc::new(Reports::new("n"));
        let config = AgentConfig::in_directory(directory.path());
        let machine = Machine::here(Path::new("/"));
        let mut node_status = NodeStatus::new(config, machine, images, reports.clone());
        node_status.measure = |_| Ok(ample());
        let condition = |holds, message: &'static str| Condition {
            kind: "PeersReachable",
            holds,
            reason: if holds {
                "AllPeersAnswer"
            } else {
                "PeersUnreachable"
            },
            message: message.into(),
        };
        let told = async || -> Vec<(Value, Value)> {
            let messages = reports.next().await;
            let events = messages
                .iter()
                .filter_map(|message| match &message.message {
                    Some(agent_message::Message::Event(record)) => {
                        serde_json::from_slice::<Value>(&record.event).ok()
                    }
                    _ => None,
                });
            events
                .map(|event| (event["type"].clone(), event["message"].clone()))
                .collect()
        };
        let ready = || {
            let status: Value = serde_json::from_slice(&node_status.status()).unwrap();
            status["conditions"].as_array().unwrap().last().cloned()
        };
        node_status.refresh().await;
        assert_eq!(ready().unwrap()["reason"], "KubeletNotReady");
        node_status.network_is_ready();
        node_status.found().await;
        assert!(node_status.refresh().await, "that it is Ready is news");
        assert_eq!(ready().unwrap()["status"], "True");
        node_status.network_is_broken("the bridge is gone");
        assert!(node_status.refresh().await);
        let broken = ready().unwrap();
        assert_eq!(
            (&broken["status"], &broken["message"]),
            (
                &"False".into(),
                &"the node's network is broken: the bridge is gone".into()
            )
        );
        node_status.network_is_ready();
        assert!(node_status.refresh().await);
        let find = |condition| node_status.find("PeersReachable", condition);
        find(Some(condition(true, "all answer")));
        node_status.found().await;
        assert!(node_status.refresh().await);
        for _ in 0..2 {
            find(Some(condition(false, "no answer from a")));
        }
        assert!(node_status.refresh().await);
        find(Some(condition(false, "no answer from b")));
        assert!(node_status.refresh().await, "another message is news too");
        find(Some(condition(true, "all answer")));
        let said = ["no answer from a", "no answer from b", "all answer"];
        let types = ["Warning", "Warning", "Normal"];
        let expected: Vec<(Value, Value)> = types
            .into_iter()
            .zip(said)
            .map(|(kind, said)| (kind.into(), said.into()))
            .collect();
        assert_eq!(told().await, expected);

        assert!(node_status.refresh().await);
        find(None);
        assert!(node_status.refresh().await);
        let status: Value = serde_json::from_slice(&node_status.status()).unwrap();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let node = |beat: &str, status: &str| {
            serde_json::json!({"status": {"images": [], "conditions": [
                {"type": "DiskPressure", "status": status, "lastHeartbeatTime": beat},
            ]}})
        };
        assert_eq!(news(&node("1", "False")), news(&node("2", "False")));
        assert_ne!(news(&node("1", "False")), news(&node("1", "True")));
    }
}
