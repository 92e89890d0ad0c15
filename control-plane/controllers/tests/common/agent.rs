//! The agent of a node: its pods are ready at once, and stop at once; but those of [`CRASHING`] crash.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Cluster, create};

/// The image of containers that crash.
pub(crate) const CRASHING: &str = "crash:1";

/// The agent.
pub(super) struct Agent {
    client: kube::Client,
    addresses_given: u32,
}

impl Agent {
    pub(super) fn new(client: kube::Client) -> Self {
        Self {
            client,
            addresses_given: 0,
        }
    }

    /// Runs the pods of the node.
    pub(super) async fn run(mut self, node: String, stop: CancellationToken) {
        let all: Api<Pod> = Api::all(self.client.clone());
        let fields = format!("spec.nodeName={node}");
        let work = async {
            loop {
                let parameters = WatchParams::default().fields(&fields);
                let mut events = all.watch(&parameters, "0").await.expect("a watch").boxed();
                while let Ok(Some(event)) = events.try_next().await {
                    let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                        continue;
                    };
                    self.tend(&pod).await;
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// Does what is left to do of the pod, unless that is older news by now: the pod may run already, or be another of that name.
    async fn tend(&mut self, pod: &Pod) {
        let namespace = pod.metadata.namespace.clone().expect("a namespace");
        let name = pod.metadata.name.clone().expect("a name");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let outcome = if pod.metadata.deletion_timestamp.is_some() {
            let parameters = DeleteParams::default().grace_period(0);
            let parameters = parameters.preconditions(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
            api.delete(&name, &parameters).await.map(drop)
        } else if phase == Some("Pending") {
            let ip = format!("10.244.0.{}", self.addresses_given + 1);
            let version = &pod.metadata.resource_version;
            let spec = pod.spec.as_ref();
            let image = spec.and_then(|spec| spec.containers.first()?.image.as_deref());
            let status = match image == Some(CRASHING) {
                true => crashed(),
                false => ready(&ip),
            };
            let status = json!({"metadata": {"resourceVersion": version}, "status": status});
            let patch = Patch::Strategic(status);
            api.patch_status(&name, &PatchParams::default(), &patch)
                .await
                .map(|_| self.addresses_given += 1)
        } else {
            Ok(())
        };
        match outcome {
            // It is gone, or newer news of it is on its way.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            other => other.expect("the agent's request"),
        }
    }
}

fn ready(ip: &str) -> Value {
    json!({
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    })
}

fn crashed() -> Value {
    json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [{
            "name": "c", "image": CRASHING, "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no database"}},
        }],
    })
}

fn bound(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": "node-1", "containers": [{"name": "c", "image": "x:1"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_told_of_again_before_it_runs_keeps_its_address() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let pods: Api<Pod> = cluster.api("ns");
    let pending = create(&pods, bound("p")).await;
    let mut agent = Agent::new(cluster.client.clone());
    agent.tend(&pending).await;
    // As when its status says that it is to make room before it says that it runs.
    agent.tend(&pending).await;
    agent.tend(&create(&pods, bound("q")).await).await;
    for (name, ip) in [("p", "10.244.0.1"), ("q", "10.244.0.2")] {
        let status = pods.get(name).await.expect("it is there").status;
        let status = status.expect("a status");
        assert_eq!(status.pod_ip.as_deref(), Some(ip));
        assert_eq!(status.pod_ips.map(|ips| ips.len()), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_a_pod_that_is_gone_is_not_about_another_of_its_name() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let pods: Api<Pod> = cluster.api("ns");
    let pending = create(&pods, bound("p")).await;
    let params = DeleteParams::default();
    let leaving = pods.delete("p", &params).await.expect("deleted");
    let leaving = leaving.left().expect("it leaves");
    let mut agent = Agent::new(cluster.client.clone());
    agent.tend(&leaving).await;
    let other = create(&pods, bound("p")).await;
    for news in [&pending, &leaving] {
        agent.tend(news).await;
    }
    let now = pods.get("p").await.expect("it is there");
    assert_eq!(now.metadata.uid, other.metadata.uid);
    let phase = now.status.and_then(|status| status.phase);
    assert_eq!(phase.as_deref(), Some("Pending"));
}
