//! What comes of daemon sets: a pod on each node that they fit, updates and back, pods that fail, and pods left and taken up.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

fn set() -> Value {
    let labels = json!({"app": "x"});
    let pod = json!({"containers": [{"name": "c", "image": "nginx:1"}]});
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})
}

async fn cluster(nodes: &[&str]) -> Cluster {
    let mut cluster = Cluster::start().await.with_scheduler();
    for node in nodes {
        cluster = cluster.with_node(node, "8").await;
    }
    cluster.namespace("ns").await;
    cluster
}

/// Whether so many nodes have an available pod of the current template, and so many others one that they should not have.
fn complete(nodes: i32, others: i32) -> impl Fn(Option<&DaemonSet>) -> bool + Clone {
    move |set: Option<&DaemonSet>| {
        let Some(set) = set else { return false };
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && status.desired_number_scheduled == nodes
            && status.current_number_scheduled == nodes
            && status.number_ready == nodes
            && status.number_available == Some(nodes)
            && status.updated_number_scheduled == Some(nodes)
            && status.number_unavailable.is_none()
            && status.number_misscheduled == others
    }
}

async fn taint(cluster: &Cluster, node: &str, effect: Option<&str>) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taints: Vec<Value> = effect
        .map(|effect| json!({"key": "dedicated", "effect": effect}))
        .into_iter()
        .collect();
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    let patched = nodes.patch(node, &PatchParams::default(), &patch).await;
    patched.expect("the node's taints");
}

fn nodes_of(pods: &[Pod]) -> Vec<String> {
    let nodes = pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
    let mut nodes: Vec<String> = nodes.collect();
    nodes.sort();
    nodes
}

fn uids(pods: &[Pod]) -> BTreeSet<String> {
    let uids = pods.iter().filter_map(|pod| pod.metadata.uid.clone());
    uids.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_that_will_have_it_gets_a_pod() {
    let mut cluster = cluster(&["node-1", "node-2", "node-3"]).await;
    taint(&cluster, "node-3", Some("NoSchedule")).await;
    let sets: Api<DaemonSet> = cluster.api("ns");
    create(&sets, set()).await;
    wait(&sets, "agent", "two nodes have it", complete(2, 0)).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(nodes_of(&pods), ["node-1", "node-2"]);
    let revisions: Vec<ControllerRevision> = cluster.list("ns").await;
    assert_eq!(revisions.len(), 1);
    let revision = revisions[0].metadata.clone();
    let hash = revision.labels.expect("labels")["controller-revision-hash"].clone();
    assert_eq!(revision.name, Some(format!("agent-{hash}")));
    for pod in &pods {
        let labels = serde_json::to_value(&pod.metadata.labels).expect("JSON");
        assert_eq!(
            labels,
            json!({"app": "x", "controller-revision-hash": hash, "pod-template-generation": "1"})
        );
        let owners = pod.metadata.owner_references.clone().expect("an owner");
        assert_eq!(owners[0].kind, "DaemonSet");
    }
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        let mut reasons = events.iter().filter_map(|event| event.reason.as_deref());
        reasons.any(|reason| reason == "SuccessfulCreate")
    };
    let fields = "involvedObject.kind=DaemonSet";
    wait_list(&events, fields, "events tell of it", told).await;
    taint(&cluster, "node-3", None).await;
    wait(&sets, "agent", "three nodes have it", complete(3, 0)).await;
    // A node that takes no more pods keeps the one that it has, unless it sends it away.
    taint(&cluster, "node-3", Some("NoSchedule")).await;
    wait(&sets, "agent", "a pod is spared", complete(2, 1)).await;
    taint(&cluster, "node-3", Some("NoExecute")).await;
    wait(&sets, "agent", "it is driven off", complete(2, 0)).await;
    let pods: Api<Pod> = cluster.api("ns");
    let left = |pods: &[Pod]| nodes_of(pods) == ["node-1", "node-2"];
    wait_list(&pods, "", "two are left", left).await;
    cluster = cluster.with_node("node-4", "8").await;
    wait(&sets, "agent", "a new node has it", complete(3, 0)).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(nodes_of(&pods), ["node-1", "node-2", "node-4"]);
    sets.delete("agent", &DeleteParams::foreground())
        .await
        .expect("deleted");
    gone(&sets, "agent").await;
    assert_eq!(cluster.list::<Pod>("ns").await.len(), 0);
    assert_eq!(cluster.list::<ControllerRevision>("ns").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_template_is_rolled_out_and_back() {
    for strategy in [
        json!({"maxUnavailable": 1}),
        json!({"maxUnavailable": 0, "maxSurge": "50%"}),
    ] {
        let cluster = cluster(&["node-1", "node-2", "node-3"]).await;
        let sets: Api<DaemonSet> = cluster.api("ns");
        let mut set = set();
        set["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": strategy});
        create(&sets, set).await;
        wait(&sets, "agent", "it is complete", complete(3, 0)).await;
        let first: Vec<ControllerRevision> = cluster.list("ns").await;
        let container = json!({"name": "c", "image": "nginx:2"});
        let patch =
            Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [container]}}}}));
        let patched = sets.patch("agent", &PatchParams::default(), &patch).await;
        patched.expect("another image");
        wait(&sets, "agent", "the update is complete", complete(3, 0)).await;
        let pods: Vec<Pod> = cluster.list("ns").await;
        assert_eq!(nodes_of(&pods), ["node-1", "node-2", "node-3"]);
        for pod in &pods {
            let spec = pod.spec.as_ref().expect("a spec");
            assert_eq!(spec.containers[0].image.as_deref(), Some("nginx:2"));
        }
        // As `kubectl rollout undo` does.
        let data = first[0].data.clone().expect("data").0;
        let patched = sets
            .patch("agent", &PatchParams::default(), &Patch::Strategic(data))
            .await;
        patched.expect("the template of before");
        wait(&sets, "agent", "the rollback is complete", complete(3, 0)).await;
        let labels = first[0].metadata.labels.clone().expect("labels");
        for pod in cluster.list::<Pod>("ns").await {
            let own = pod.metadata.labels.expect("labels");
            let hash = "controller-revision-hash";
            assert_eq!(own[hash], labels[hash]);
        }
        let known: Vec<ControllerRevision> = cluster.list("ns").await;
        let mut numbers: Vec<_> = known.iter().map(|revision| revision.revision).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [2, 3], "the first has become the latest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_failed_is_made_anew() {
    let cluster = cluster(&["node-1"]).await;
    let sets: Api<DaemonSet> = cluster.api("ns");
    create(&sets, set()).await;
    wait(&sets, "agent", "it is complete", complete(1, 0)).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    let name = pods[0].metadata.name.clone().expect("a name");
    let api: Api<Pod> = cluster.api("ns");
    let failed = Patch::Strategic(
        json!({"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    let patched = api
        .patch_status(&name, &PatchParams::default(), &failed)
        .await;
    patched.expect("it failed");
    gone(&api, &name).await;
    wait(&sets, "agent", "there is another", complete(1, 0)).await;
    let events: Api<Event> = cluster.api("ns");
    let message = format!("Found failed daemon pod ns/{name} on node node-1, will try to kill it");
    let told = move |events: &[Event]| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("FailedDaemonPod")
                && event.message.as_ref() == Some(&message)
        })
    };
    let fields = "involvedObject.kind=DaemonSet";
    wait_list(&events, fields, "an event tells of it", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_were_left_are_taken_up_again_as_they_are() {
    let cluster = cluster(&["node-1", "node-2"]).await;
    let sets: Api<DaemonSet> = cluster.api("ns");
    create(&sets, set()).await;
    wait(&sets, "agent", "it is complete", complete(2, 0)).await;
    let before = uids(&cluster.list("ns").await);
    sets.delete("agent", &DeleteParams::orphan())
        .await
        .expect("deleted");
    gone(&sets, "agent").await;
    let again = create(&sets, set()).await;
    wait(&sets, "agent", "it has its pods again", complete(2, 0)).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(uids(&pods), before, "none was made anew");
    let revisions: Vec<ControllerRevision> = cluster.list("ns").await;
    assert_eq!(revisions.len(), 1, "nor was the revision");
    let metadata = pods.iter().map(|pod| &pod.metadata);
    for metadata in metadata.chain(revisions.iter().map(|revision| &revision.metadata)) {
        let owners = metadata.owner_references.clone().unwrap_or_default();
        assert_eq!(Some(&owners[0].uid), again.metadata.uid.as_ref());
    }
}
