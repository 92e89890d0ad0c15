//! Marks nodes that have fallen silent: their Ready condition becomes Unknown, and a taint keeps pods away. A node
//! that comes back reports its own status, and the taint goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use http::Method;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::node_link::{Hub, call};

/// A node is lost after this long without a message.
const SILENCE: Duration = Duration::from_secs(10);
/// A node that has closed its connection may come back within this long.
const RECONNECT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_secs(1);
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Watches connections until told to stop. Nodes that were connected to an earlier leader get the time to reconnect.
pub(crate) async fn run(client: kube::Client, hub: Arc<Hub>, stop: CancellationToken) {
    let mut changes = hub.changes();
    let mut ticks = tokio::time::interval(LOOK);
    let mut absent_since: BTreeMap<String, Instant> = BTreeMap::new();
    let mut known: Option<Vec<String>> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let silence = hub.silence();
        // Nothing to ask the API for while the nodes that were heard last time still are.
        let calm = absent_since.is_empty() && silence.values().all(|age| *age < SILENCE);
        let names: Vec<String> = silence.keys().cloned().collect();
        if calm && known.as_ref() == Some(&names) {
            continue;
        }
        known = Some(names);
        if let Err(error) = look(&client, &silence, &mut absent_since).await {
            tracing::warn!(error = format!("{error:#}"), "looking after nodes");
        }
    }
}

async fn look(
    client: &kube::Client,
    silence: &BTreeMap<String, Duration>,
    absent_since: &mut BTreeMap<String, Instant>,
) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    for node in nodes {
        let Some(name) = node.metadata.name.clone() else {
            continue;
        };
        let heard = silence.get(&name).is_some_and(|age| *age < SILENCE);
        let value = serde_json::to_value(&node)?;
        let tainted = taints(&value)
            .iter()
            .any(|taint| taint["key"] == UNREACHABLE);
        if heard {
            absent_since.remove(&name);
            if tainted {
                set_taints(client, &name, |taints| {
                    taints.retain(|taint| taint["key"] != UNREACHABLE)
                })
                .await?;
            }
            continue;
        }
        let since = *absent_since
            .entry(name.clone())
            .or_insert_with(Instant::now);
        if since.elapsed() < RECONNECT || tainted {
            continue;
        }
        tracing::warn!(node = name, "the node is silent: marked as lost");
        mark_unknown(client, &name).await?;
        let now = gantry_api::time::seconds(
            i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0),
        );
        set_taints(client, &name, |taints| {
            for effect in ["NoSchedule", "NoExecute"] {
                taints.push(json!({"key": UNREACHABLE, "effect": effect, "timeAdded": now}));
            }
        })
        .await?;
    }
    Ok(())
}

fn taints(node: &Value) -> Vec<Value> {
    node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

async fn set_taints(
    client: &kube::Client,
    name: &str,
    change: impl FnOnce(&mut Vec<Value>),
) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}");
    let mut node = read(client, &path).await?;
    let mut taints = taints(&node);
    change(&mut taints);
    node["spec"]["taints"] = Value::Array(taints);
    call(client, Method::PUT, &path, &node).await?;
    Ok(())
}

async fn mark_unknown(client: &kube::Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}");
    let mut node = read(client, &path).await?;
    let now = gantry_api::time::seconds(
        i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0),
    );
    for condition in node["status"]["conditions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if condition["status"] != "Unknown" {
            condition["status"] = json!("Unknown");
            condition["reason"] = json!("NodeStatusUnknown");
            condition["message"] = json!("Kubelet stopped posting node status.");
            condition["lastTransitionTime"] = json!(now);
        }
    }
    call(client, Method::PUT, &format!("{path}/status"), &node).await?;
    Ok(())
}

async fn read(client: &kube::Client, path: &str) -> Result<Value> {
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(client.request(request).await?)
}
