//! The other nodes, and the overlay that leads to their pods.
//!
//! A Node is written often, for its heartbeat and its images; the overlay hears only of what it is made from, which is
//! where a node is and which addresses its pods have.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::network::NetworkError;
use gantry_cri::words;
use gantry_network::{Overlay, PeerNode};
use k8s_openapi::api::core::v1::Node;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::desired::Desired;
use crate::metrics::METRICS;
use crate::reports::{Reports, Severity};

/// Between attempts at what could not be programmed.
const RETRY: Duration = Duration::from_secs(5);
/// Between looks at the kernel's entries, which other programs may have changed.
const LOOK_AROUND: Duration = Duration::from_secs(60);

/// The nodes of the cluster but this one, as far as they say where they are: one that has just registered may lack an
/// address or a range of pods for a moment.
pub(crate) fn peers(nodes: &[Arc<Node>], own_name: &str) -> Vec<PeerNode> {
    nodes
        .iter()
        .filter_map(|node| peer(node, own_name))
        .collect()
}

fn peer(node: &Node, own_name: &str) -> Option<PeerNode> {
    let name = node.metadata.name.clone()?;
    if name == own_name {
        return None;
    }
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let mut internal = addresses
        .iter()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok());
    let address: IpAddr = internal.next()?;
    let spec = node.spec.as_ref()?;
    let ranges = match spec.pod_cidrs.as_deref() {
        Some(ranges) if !ranges.is_empty() => ranges,
        _ => spec.pod_cidr.as_slice(),
    };
    let pod_cidrs: Vec<_> = ranges
        .iter()
        .filter_map(|range| range.parse().ok())
        .collect();
    (!pod_cidrs.is_empty()).then_some(PeerNode {
        name,
        address,
        pod_cidrs,
    })
}

/// Keeps the overlay as the nodes are, and puts back at once what was `flushed`. Runs until it is dropped.
pub(crate) async fn keep(
    own_name: String,
    desired: Arc<Desired>,
    reports: Arc<Reports>,
    overlay: Arc<dyn Overlay>,
    changed: Arc<Notify>,
    mut flushed: watch::Receiver<()>,
) {
    let known = peers(&desired.nodes(), &own_name);
    let mut keeper = Keeper {
        own_name,
        desired,
        reports,
        overlay,
        programmed: None,
        complaint: None,
    };
    // While no server has spoken, the checkpoint says which nodes there are; without one, what is in the kernel stays.
    if !known.is_empty() {
        changed.notify_one();
    }
    let mut ticks = interval(LOOK_AROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = changed.notified() => keeper.follow().await,
            _ = ticks.tick() => keeper.reassert().await,
            Ok(()) = flushed.changed() => keeper.reassert().await,
        };
        if !done {
            tokio::select! {
                () = sleep(RETRY) => {}
                () = changed.notified() => {}
            }
            changed.notify_one();
        }
    }
}

struct Keeper {
    own_name: String,
    desired: Arc<Desired>,
    reports: Arc<Reports>,
    overlay: Arc<dyn Overlay>,
    /// The peers of the last sync that went well.
    programmed: Option<Vec<PeerNode>>,
    /// What was last said to be wrong.
    complaint: Option<String>,
}

impl Keeper {
    /// Programs the peers if they have changed; whether all is well.
    async fn follow(&mut self) -> bool {
        let peers = peers(&self.desired.nodes(), &self.own_name);
        if self.programmed.as_ref() == Some(&peers) {
            return true;
        }
        METRICS
            .peers
            .set(i64::try_from(peers.len()).unwrap_or(i64::MAX));
        let synced = self.overlay.sync(peers.clone()).await;
        self.programmed = synced.is_ok().then_some(peers);
        self.heard(synced)
    }

    async fn reassert(&mut self) -> bool {
        let reasserted = self.overlay.reassert().await;
        self.heard(reasserted)
    }

    /// Says once what is wrong: in the log, and as an Event of the node.
    fn heard(&mut self, result: Result<(), NetworkError>) -> bool {
        let complaint = result.as_ref().err().map(|error| words(error));
        if complaint.is_some() {
            METRICS.overlay_failures.inc();
        }
        if let Some(complaint) = &complaint
            && self.complaint.as_ref() != Some(complaint)
        {
            tracing::warn!(
                error = complaint,
                "leading to the pods of other nodes; trying again"
            );
            let message = format!("Pods of other nodes may not be reached: {complaint}");
            self.reports
                .node_event(Severity::Warning, "OverlayFailed", &message);
        }
        self.complaint = complaint;
        result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use gantry_network::FakeOverlay;
    use gantry_rpc::node::Resource;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;
    use crate::desired::tests::change;

    fn node(name: &str, address: &str, ranges: &[&str]) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": address},
            ]},
        })
    }

    fn of(nodes: &[Value]) -> Vec<PeerNode> {
        let nodes: Vec<Arc<Node>> = nodes
            .iter()
            .map(|node| Arc::new(serde_json::from_value(node.clone()).unwrap()))
            .collect();
        peers(&nodes, "here")
    }

    #[test]
    fn peers_are_the_other_nodes_that_say_where_they_are() {
        let mut old = node("old", "192.0.2.4", &[]);
        old["spec"] = json!({"podCIDR": "10.244.4.0/24"});
        let found = of(&[
            node("here", "192.0.2.1", &["10.244.1.0/24"]),
            node("there", "192.0.2.2", &["10.244.2.0/24", "fd00:2::/64"]),
            node("new", "192.0.2.3", &[]),
            old,
            json!({"metadata": {"name": "silent"}, "spec": {"podCIDR": "10.244.5.0/24"}}),
            node("odd", "not an address", &["10.244.6.0/24"]),
        ]);
        let names: Vec<&str> = found.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["there", "old"]);
        assert_eq!(found[0].pod_cidrs.len(), 2);
        assert_eq!(found[0].address, IpAddr::from([192, 0, 2, 2]));
        assert_eq!(found[1].pod_cidrs, ["10.244.4.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_heartbeat_is_no_change() {
        let quiet = node("there", "192.0.2.2", &["10.244.2.0/24"]);
        let mut beating = quiet.clone();
        beating["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        beating["metadata"]["labels"] = json!({"zone": "a"});
        assert_eq!(of(&[quiet]), of(&[beating]));
    }

    /// Counts what it is asked, and refuses as long as it should.
    struct Counting {
        inner: FakeOverlay,
        syncs: std::sync::atomic::AtomicU32,
        refuse: std::sync::atomic::AtomicBool,
        asked: Notify,
    }

    #[async_trait::async_trait]
    impl Overlay for Counting {
        async fn sync(&self, peers: Vec<PeerNode>) -> Result<(), NetworkError> {
            use std::sync::atomic::Ordering::SeqCst;
            self.syncs.fetch_add(1, SeqCst);
            let answer = match self.refuse.load(SeqCst) {
                true => Err(NetworkError::Unsupported("no vxlan".into())),
                false => self.inner.sync(peers).await,
            };
            self.asked.notify_one();
            answer
        }
        async fn reassert(&self) -> Result<(), NetworkError> {
            self.inner.reassert().await
        }
        async fn routes(&self) -> Result<Vec<gantry_network::PodRoute>, NetworkError> {
            self.inner.routes().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_overlay_follows_the_nodes_and_failures_are_tried_again() {
        use std::sync::atomic::Ordering::SeqCst;
        const SOON: Duration = Duration::from_secs(600);
        let overlay = Arc::new(Counting {
            inner: FakeOverlay::new(
                "192.0.2.1".parse().unwrap(),
                "10.244.1.0/24".parse().unwrap(),
            ),
            syncs: 0.into(),
            refuse: true.into(),
            asked: Notify::new(),
        });
        let desired = Arc::new(Desired::default());
        let put = |object: &Value| {
            desired.apply(&change(Resource::Node, object)).unwrap();
        };
        put(&node("here", "192.0.2.1", &["10.244.1.0/24"]));
        let changed = Arc::new(Notify::new());
        let reports = Arc::new(Reports::new("here"));
        let keeping = tokio::spawn(keep(
            "here".into(),
            desired.clone(),
            reports,
            overlay.clone(),
            changed.clone(),
            watch::channel(()).1,
        ));
        tokio::task::yield_now().await;
        assert_eq!(
            overlay.syncs.load(SeqCst),
            0,
            "nobody has said which nodes there are"
        );

        let failures = METRICS.overlay_failures.get();
        put(&node("there", "192.0.2.2", &["10.244.2.0/24"]));
        changed.notify_one();
        for _ in 0..2 {
            timeout(SOON, overlay.asked.notified()).await.unwrap();
        }
        overlay.refuse.store(false, SeqCst);
        timeout(SOON, overlay.asked.notified()).await.unwrap();
        let routes = overlay.routes().await.unwrap();
        assert_eq!(routes.len(), 1);
        assert_eq!(overlay.syncs.load(SeqCst), 3);
        assert!(METRICS.overlay_failures.get() >= failures + 2);

        let mut beating = node("there", "192.0.2.2", &["10.244.2.0/24"]);
        beating["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        put(&beating);
        changed.notify_one();
        assert!(
            timeout(SOON, overlay.asked.notified()).await.is_err(),
            "a heartbeat programs nothing"
        );
        put(&node("there", "192.0.2.7", &["10.244.2.0/24"]));
        changed.notify_one();
        timeout(SOON, overlay.asked.notified()).await.unwrap();
        let routes = overlay.routes().await.unwrap();
        assert_eq!(routes[0].address, IpAddr::from([192, 0, 2, 7]));
        keeping.abort();
    }
}
