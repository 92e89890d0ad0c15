//! The half of Kubernetes' node lifecycle controller that watches over heartbeats: gives up nodes that have fallen silent.
//! Their conditions become Unknown, from which the controllers draw the taints and the withdrawal of their pods' endpoints. A
//! node that comes back opens a new link and says anew how it and its pods are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use gantry_base::json::Members;
use gantry_base::paths;
use gantry_informer::chain;
use http::Method;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::metrics::METRICS;
use crate::requests::call;

/// A node that has closed its link may come back within this long.
const RECONNECT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(500);

/// Watches links until told to stop. `grace` is for how long a node may be silent.
pub async fn run(client: kube::Client, hub: Arc<Hub>, grace: Duration, stop: CancellationToken) {
    let mut changes = hub.changes();
    let mut ticks = tokio::time::interval(LOOK);
    let mut health = NodeHealth::new(grace);
    let mut known: Option<Vec<String>> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let silence = hub.silence();
        // Nothing to ask the API for while the nodes that were heard last time still are.
        let calm = health.is_calm() && silence.values().all(|age| *age < grace);
        let names: Vec<String> = silence.keys().cloned().collect();
        if calm && known.as_ref() == Some(&names) {
            continue;
        }
        match look(&client, &hub, &silence, &mut health).await {
            Ok(()) => known = Some(names),
            Err(error) => tracing::warn!(error = chain(&*error), "looking after nodes"),
        }
    }
}

async fn look(
    client: &kube::Client,
    hub: &Hub,
    silence: &BTreeMap<String, Duration>,
    health: &mut NodeHealth,
) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let now = Instant::now();
    let mut routing = Vec::new();
    let mut lost = Vec::new();
    let names: Vec<String> = nodes
        .iter()
        .filter_map(|node| node.metadata.name.clone())
        .collect();
    health.only(&names);
    for (node, name) in nodes.iter().zip(&names) {
        match health.is_lost(name, silence.get(name).copied(), now) {
            false => routing.push(name.clone()),
            true if is_unknown(node) => {}
            true => lost.push(name),
        }
    }
    hub.expect(routing);
    for name in lost {
        tracing::warn!(node = name, "the node is silent: it is given up");
        METRICS.nodes_lost.inc();
        // Should it be heard again, it has to say everything anew.
        hub.disconnect(name);
        mark_unknown(client, name).await?;
    }
    Ok(())
}

/// What the node lifecycle controller keeps as nodes' health: since when they have not been linked.
struct NodeHealth {
    grace: Duration,
    absent: BTreeMap<String, Instant>,
    /// Those that have been linked to this server: they know where to come back to.
    seen: BTreeSet<String>,
}

impl NodeHealth {
    fn new(grace: Duration) -> Self {
        Self {
            grace,
            absent: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    fn is_calm(&self) -> bool {
        self.absent.is_empty()
    }

    /// Forgets nodes that are no more.
    fn only(&mut self, names: &[String]) {
        self.absent.retain(|name, _| names.contains(name));
        self.seen.retain(|name| names.contains(name));
    }

    /// Whether a node is to be given up, by how long its link has been silent; `None` without a link.
    fn is_lost(&mut self, name: &str, silence: Option<Duration>, now: Instant) -> bool {
        if let Some(silence) = silence {
            self.absent.remove(name);
            self.seen.insert(name.to_owned());
            return silence >= self.grace;
        }
        let since = *self.absent.entry(name.to_owned()).or_insert(now);
        // One that was linked to an earlier leader may still be waiting for that one's answer.
        let limit = match self.seen.contains(name) {
            true => RECONNECT.min(self.grace),
            false => self.grace,
        };
        now.duration_since(since) >= limit
    }
}

fn is_unknown(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
}

async fn mark_unknown(client: &kube::Client, name: &str) -> Result<()> {
    let path = paths::node(name, &[]);
    let request = http::Request::get(&path).body(Vec::new())?;
    let mut node: Value = client.request(request).await?;
    let now = gantry_base::time::seconds(
        i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0),
    );
    let conditions = node.pointer_mut("/status/conditions");
    for condition in conditions
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if condition["status"] != "Unknown" {
            *condition.member(&["status"]) = json!("Unknown");
            *condition.member(&["reason"]) = json!("NodeStatusUnknown");
            *condition.member(&["message"]) = json!("Kubelet stopped posting node status.");
            *condition.member(&["lastTransitionTime"]) = json!(now);
        }
    }
    call(client, Method::PUT, &paths::node(name, &["status"]), &node).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn a_closed_link_has_three_seconds_and_a_silent_one_the_grace_period() {
        let mut health = NodeHealth::new(GRACE);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let silent = |seconds| Some(Duration::from_secs(seconds));
        assert!(!health.is_lost("a", silent(9), after(0)));
        assert!(health.is_lost("a", silent(10), after(1)));
        assert!(!health.is_lost("a", silent(0), after(2)));
        assert!(!health.is_lost("a", None, after(3)));
        assert!(!health.is_calm());
        assert!(!health.is_lost("a", None, after(5)));
        assert!(health.is_lost("a", None, after(6)));
        assert!(!health.is_lost("a", silent(0), after(7)));
        assert!(health.is_calm());
    }

    #[test]
    fn a_node_of_an_earlier_leader_has_the_whole_grace_period() {
        let mut health = NodeHealth::new(GRACE);
        let start = Instant::now();
        assert!(!health.is_lost("a", None, start));
        assert!(!health.is_lost("a", None, start + Duration::from_secs(9)));
        assert!(health.is_lost("a", None, start + GRACE));
        health.only(&[]);
        assert!(health.is_calm());
    }
}
