//! What nodes report, written through the API: registration, pod statuses, finished pods, events.
//!
//! Statuses are level-triggered: only the latest of each pod is kept while a write is under way, so that a burst
//! costs one write per pod and never grows. A node's word counts only for pods bound to it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use gantry_rpc::node::{PodStatus, PodTerminated, agent_message};
use http::{Method, Request};
use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::pod_cidr::PodCidrs;
use super::super::recorder::Recorder;

/// Pods of one node written at once.
const CONCURRENT_WRITES: usize = 16;
/// Between attempts at writes that the servers could not take.
const AGAIN: Duration = Duration::from_secs(1);
/// Attempts at a write that others keep conflicting with.
const ATTEMPTS: usize = 8;

/// What is to be written about one pod.
#[derive(Clone, Debug, Default)]
struct Pending {
    uid: String,
    status: Option<Vec<u8>>,
    terminated: bool,
}

type PodKey = (String, String);

/// One node's queue.
#[derive(Default)]
struct Queue {
    pods: Mutex<BTreeMap<PodKey, Pending>>,
    wake: Notify,
}

/// Writes reports; shared by all links.
pub(crate) struct Reports {
    client: kube::Client,
    pod_cidrs: PodCidrs,
    recorder: Recorder,
    queues: Mutex<BTreeMap<String, Arc<Queue>>>,
}

impl Reports {
    pub(crate) fn new(client: kube::Client, pod_cidrs: PodCidrs) -> Self {
        Self {
            recorder: Recorder::new(client.clone()),
            client,
            pod_cidrs,
            queues: Mutex::default(),
        }
    }

    /// Takes a message of a node; never waits.
    pub(crate) fn take(&self, node: &str, message: agent_message::Message) {
        match message {
            agent_message::Message::PodStatuses(statuses) => {
                let queue = self.queue(node);
                let mut pods = queue.pods.lock();
                for PodStatus {
                    namespace,
                    name,
                    uid,
                    status,
                } in statuses.statuses
                {
                    let pending = pods.entry((namespace, name)).or_default();
                    if pending.uid != uid {
                        *pending = Pending {
                            uid,
                            ..Pending::default()
                        };
                    }
                    pending.status = Some(status.to_vec());
                }
                drop(pods);
                queue.wake.notify_one();
            }
            agent_message::Message::PodTerminated(PodTerminated {
                namespace,
                name,
                uid,
            }) => {
                let queue = self.queue(node);
                let mut pods = queue.pods.lock();
                let pending = pods.entry((namespace, name)).or_default();
                if pending.uid != uid {
                    *pending = Pending {
                        uid,
                        ..Pending::default()
                    };
                }
                pending.terminated = true;
                drop(pods);
                queue.wake.notify_one();
            }
            agent_message::Message::Event(record) => match serde_json::from_slice(&record.event) {
                Ok(event) => self.recorder.record(event),
                Err(error) => {
                    tracing::warn!(node, %error, "the node sent an event that is not JSON")
                }
            },
            agent_message::Message::NodeStatus(status) => {
                let (client, node) = (self.client.clone(), node.to_owned());
                tokio::spawn(async move {
                    if let Err(error) = write_node_status(&client, &node, &status.status).await {
                        tracing::warn!(
                            node,
                            error = format!("{error:#}"),
                            "writing the node's status"
                        );
                    }
                });
            }
            agent_message::Message::Hello(_)
            | agent_message::Message::Heartbeat(_)
            | agent_message::Message::ServicesProgrammed(_)
            | agent_message::Message::AwaitServices(_) => {}
        }
    }

    fn queue(&self, node: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(node) {
            return queue.clone();
        }
        let queue = Arc::new(Queue::default());
        queues.insert(node.to_owned(), queue.clone());
        tokio::spawn(write_pods(
            self.client.clone(),
            node.to_owned(),
            queue.clone(),
        ));
        queue
    }

    /// Creates or refreshes a Node from what its agent says, and returns its pod CIDRs.
    pub(crate) async fn register(&self, node: &str, reported: &[u8]) -> Result<Vec<IpNet>> {
        let reported: Value =
            serde_json::from_slice(reported).context("the Node object is not JSON")?;
        let path = format!("/api/v1/nodes/{node}");
        for _ in 0..ATTEMPTS {
            let existing = get(&self.client, &path).await?;
            let result = match existing {
                None => {
                    let cidrs = self.pod_cidrs.allocate(&self.client).await?;
                    let mut object = reported.clone();
                    object["apiVersion"] = json!("v1");
                    object["kind"] = json!("Node");
                    object["metadata"]["name"] = json!(node);
                    object["spec"] = json!({"podCIDR": cidrs.first(), "podCIDRs": cidrs});
                    if let Some(taints @ [_, ..]) =
                        reported["spec"]["taints"].as_array().map(Vec::as_slice)
                    {
                        object["spec"]["taints"] = json!(taints);
                    }
                    call(&self.client, Method::POST, "/api/v1/nodes", &object).await
                }
                Some(mut object) => {
                    for map in ["labels", "annotations"] {
                        for (key, value) in
                            reported["metadata"][map].as_object().into_iter().flatten()
                        {
                            object["metadata"][map][key] = value.clone();
                        }
                    }
                    if object["spec"]["podCIDR"].is_null() {
                        let cidrs = self.pod_cidrs.allocate(&self.client).await?;
                        object["spec"]["podCIDR"] = json!(cidrs.first());
                        object["spec"]["podCIDRs"] = json!(cidrs);
                    }
                    call(&self.client, Method::PUT, &path, &object).await
                }
            };
            match result {
                Ok(object) => {
                    write_node_status(
                        &self.client,
                        node,
                        reported["status"].to_string().as_bytes(),
                    )
                    .await?;
                    let blocks = object["spec"]["podCIDRs"].as_array();
                    let blocks = blocks.into_iter().flatten().filter_map(Value::as_str);
                    return Ok(blocks.filter_map(|block| block.parse().ok()).collect());
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("others keep changing the Node object")
    }
}

/// Writes a node's reports for as long as the server lives.
async fn write_pods(client: kube::Client, node: String, queue: Arc<Queue>) {
    loop {
        queue.wake.notified().await;
        let batch = std::mem::take(&mut *queue.pods.lock());
        let refused = Mutex::new(Vec::new());
        futures::stream::iter(batch)
            .for_each_concurrent(CONCURRENT_WRITES, |((namespace, name), pending)| {
                let (client, node, refused) = (&client, node.as_str(), &refused);
                async move {
                    if let Err(error) = write_pod(client, node, &namespace, &name, &pending).await {
                        let later = is_transient(&error);
                        tracing::warn!(
                            node,
                            namespace,
                            pod = name,
                            error = format!("{error:#}"),
                            "writing a pod's status"
                        );
                        if later {
                            refused.lock().push(((namespace, name), pending));
                        }
                    }
                }
            })
            .await;
        let refused = refused.into_inner();
        if refused.is_empty() {
            continue;
        }
        tokio::time::sleep(AGAIN).await;
        put_back(&mut queue.pods.lock(), refused);
        queue.wake.notify_one();
    }
}

/// What could not be written waits for another attempt, behind what the node has said since.
fn put_back(pods: &mut BTreeMap<PodKey, Pending>, refused: Vec<(PodKey, Pending)>) {
    for (key, before) in refused {
        match pods.entry(key) {
            Entry::Vacant(place) => drop(place.insert(before)),
            Entry::Occupied(mut newer) if newer.get().uid == before.uid => {
                let newer = newer.get_mut();
                newer.terminated |= before.terminated;
                newer.status = newer.status.take().or(before.status);
            }
            // Another pod of the same name: the one before is gone.
            Entry::Occupied(_) => {}
        }
    }
}

/// Whether the servers could not write it now, for reasons that pass: a full disk, too much to do, no leader.
fn is_transient(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref().and_then(code);
    refused.is_some_and(|code| [429, 503, 504, 507].contains(&code))
}

async fn write_pod(
    client: &kube::Client,
    node: &str,
    namespace: &str,
    name: &str,
    pending: &Pending,
) -> Result<()> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    if let Some(status) = &pending.status {
        let status: Value = serde_json::from_slice(status).context("the status is not JSON")?;
        write_status(client, node, &path, &pending.uid, &status).await?;
    }
    if pending.terminated {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": pending.uid},
        });
        match call(client, Method::DELETE, &path, &options).await {
            Ok(_) => {}
            // Gone already, or another pod of the same name.
            Err(error) if code(&error) == Some(404) || is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn write_status(
    client: &kube::Client,
    node: &str,
    path: &str,
    uid: &str,
    status: &Value,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let Some(mut pod) = get(client, path).await? else {
            return Ok(());
        };
        if pod["metadata"]["uid"] != uid {
            return Ok(());
        }
        if pod["spec"]["nodeName"] != node {
            bail!(
                "the pod is bound to node {}, not to this one",
                pod["spec"]["nodeName"]
            );
        }
        let merged = merge_status(&pod["status"], status);
        if merged == pod["status"] {
            return Ok(());
        }
        pod["status"] = merged;
        match call(client, Method::PUT, &format!("{path}/status"), &pod).await {
            Ok(_) => return Ok(()),
            Err(error) if code(&error) == Some(404) => return Ok(()),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("others keep changing the pod")
}

/// The node's status with the conditions and fields that others own kept: the scheduler's PodScheduled, readiness
/// gates, and the quality-of-service class.
fn merge_status(current: &Value, reported: &Value) -> Value {
    let mut merged = reported.clone();
    for field in ["qosClass", "nominatedNodeName", "resize"] {
        if merged[field].is_null() && !current[field].is_null() {
            merged[field] = current[field].clone();
        }
    }
    let known: Vec<Value> = merged["conditions"].as_array().cloned().unwrap_or_default();
    let foreign = current["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|condition| !known.iter().any(|ours| ours["type"] == condition["type"]));
    let all: Vec<Value> = known.iter().chain(foreign).cloned().collect();
    if !all.is_empty() {
        merged["conditions"] = Value::Array(all);
    }
    merged
}

async fn write_node_status(client: &kube::Client, node: &str, status: &[u8]) -> Result<()> {
    let status: Value = serde_json::from_slice(status).context("the status is not JSON")?;
    let path = format!("/api/v1/nodes/{node}");
    for _ in 0..ATTEMPTS {
        let Some(mut object) = get(client, &path).await? else {
            return Ok(());
        };
        object["status"] = status.clone();
        match call(client, Method::PUT, &format!("{path}/status"), &object).await {
            Ok(_) => return Ok(()),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("others keep changing the Node object")
}

/// One request with a JSON body.
pub(crate) async fn call(
    client: &kube::Client,
    method: Method,
    path: &str,
    body: &Value,
) -> kube::Result<Value> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// An object, or `None` when there is none of that name.
async fn get(client: &kube::Client, path: &str) -> kube::Result<Option<Value>> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    match client.request(request).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The HTTP status of a refusal.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_waits_behind_what_was_said_since() {
        let key = |name: &str| ("d".to_owned(), name.to_owned());
        let said = |uid: &str, status: &str, terminated| Pending {
            uid: uid.to_owned(),
            status: Some(status.into()).filter(|status: &Vec<u8>| !status.is_empty()),
            terminated,
        };
        let mut pods = BTreeMap::from([
            (key("newer"), said("1", "new", false)),
            (key("silent"), said("1", "", true)),
            (key("another"), said("2", "new", false)),
        ]);
        put_back(
            &mut pods,
            vec![
                (key("newer"), said("1", "old", true)),
                (key("silent"), said("1", "old", false)),
                (key("another"), said("1", "old", true)),
                (key("alone"), said("1", "old", false)),
            ],
        );
        let found = |name: &str| {
            let pending = &pods[&key(name)];
            (
                pending.status.clone().unwrap_or_default(),
                pending.terminated,
            )
        };
        assert_eq!(found("newer"), (b"new".to_vec(), true));
        assert_eq!(found("silent"), (b"old".to_vec(), true));
        assert_eq!(found("another"), (b"new".to_vec(), false));
        assert_eq!(found("alone"), (b"old".to_vec(), false));
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let current = json!({"qosClass": "Burstable", "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]});
        let reported =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(
            merge_status(&current, &reported),
            json!({"phase": "Running", "qosClass": "Burstable", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]})
        );
    }
}
