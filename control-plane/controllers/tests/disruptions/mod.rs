//! What comes of budgets of disruptions: what they say of their pods, and who may be evicted by it.

use std::time::Duration;

use gantry_controllers::ControllersConfig;
use gantry_informer::Clock;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, EvictParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};
use crate::workloads::{complete, deployment};

fn budget(name: &str, spec: Value) -> Value {
    let mut whole = json!({"selector": {"matchLabels": {"app": "x"}}});
    for (field, value) in spec.as_object().expect("an object") {
        whole[field] = value.clone();
    }
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": whole,
    })
}

/// Expected, desired and healthy pods, and how many may go.
fn says(numbers: [i32; 4]) -> impl Fn(Option<&PodDisruptionBudget>) -> bool + Clone {
    move |budget: Option<&PodDisruptionBudget>| {
        let Some(budget) = budget else { return false };
        let status = budget.status.clone().unwrap_or_default();
        let told = [
            status.expected_pods,
            status.desired_healthy,
            status.current_healthy,
            status.disruptions_allowed,
        ];
        told == numbers.map(Some) && status.observed_generation == budget.metadata.generation
    }
}

fn has_failed(why: &'static str) -> impl Fn(Option<&PodDisruptionBudget>) -> bool + Clone {
    move |budget: Option<&PodDisruptionBudget>| {
        let status = budget.and_then(|budget| budget.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            condition.reason == "SyncFailed"
                && condition.status == "False"
                && condition.message == why
        })
    }
}

async fn wait_event(cluster: &Cluster, about: &str, reason: &'static str) {
    let events: Api<Event> = cluster.api("ns");
    let fields = format!("involvedObject.name={about},reason={reason}");
    wait_list(&events, &fields, reason, |events: &[Event]| {
        !events.is_empty()
    })
    .await;
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await.with_scheduler();
    let cluster = cluster.with_node("node-1", "8").await;
    let cluster = cluster.with_node("node-2", "8").await;
    cluster.namespace("ns").await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_evicted_one_after_the_other_as_others_take_their_places() {
    let cluster = cluster().await;
    let (deployments, budgets): (Api<Deployment>, Api<PodDisruptionBudget>) =
        (cluster.api("ns"), cluster.api("ns"));
    create(&deployments, deployment(3, "default-scheduler")).await;
    wait(&deployments, "web", "it runs", complete(3)).await;
    create(&budgets, budget("b", json!({"minAvailable": 2}))).await;
    let pods: Api<Pod> = cluster.api("ns");
    for pod in cluster.list::<Pod>("ns").await {
        let name = pod.metadata.name.expect("a name");
        wait(&budgets, "b", "one may go", says([3, 2, 3, 1])).await;
        let evicted = pods.evict(&name, &EvictParams::default()).await;
        evicted.expect("it may go");
        gone(&pods, &name).await;
    }
    wait(&budgets, "b", "all are there", says([3, 2, 3, 1])).await;
    wait(&deployments, "web", "it runs", complete(3)).await;
    // And none goes where all are needed.
    let all = Patch::Merge(json!({"spec": {"minAvailable": 3}}));
    let patched = budgets.patch("b", &PatchParams::default(), &all).await;
    patched.expect("it asks for all");
    wait(&budgets, "b", "none may go", says([3, 3, 3, 0])).await;
    let pod = cluster.list::<Pod>("ns").await.remove(0);
    let name = pod.metadata.name.expect("a name");
    let refused = pods.evict(&name, &EvictParams::default()).await;
    match refused {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, &*status.reason), (429, "TooManyRequests"))
        }
        other => panic!("it is not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_of_what_the_owner_wants() {
    let cluster = cluster().await;
    let (deployments, budgets): (Api<Deployment>, Api<PodDisruptionBudget>) =
        (cluster.api("ns"), cluster.api("ns"));
    create(&budgets, budget("most", json!({"maxUnavailable": "50%"}))).await;
    wait(&budgets, "most", "there is none", says([0, 0, 0, 0])).await;
    wait_event(&cluster, "most", "NoPods").await;
    create(&deployments, deployment(3, "default-scheduler")).await;
    wait(&budgets, "most", "half may go", says([3, 1, 3, 2])).await;
    let scaled = Patch::Merge(json!({"spec": {"replicas": 6}}));
    let patched = deployments
        .patch("web", &PatchParams::default(), &scaled)
        .await;
    patched.expect("scaled");
    wait(&budgets, "most", "half of more may go", says([6, 3, 6, 3])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_lets_nobody_go_and_is_told() {
    let cluster = cluster().await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (cluster.api("ns"), cluster.api("ns"));
    let budgets: Api<PodDisruptionBudget> = cluster.api("ns");
    let template = json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1"}]},
    });
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": template}});
    create(&jobs, job).await;
    create(&budgets, budget("share", json!({"minAvailable": "50%"}))).await;
    let why = "jobs.batch does not implement the scale subresource";
    wait(&budgets, "share", "it has failed", has_failed(why)).await;
    wait_event(&cluster, "share", "CalculateExpectedPodCountFailed").await;
    // A number needs no owner; of pods without one, that is told.
    let alone = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "labels": {"app": "y"}},
        "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    create(&pods, alone).await;
    let of_y = json!({"matchLabels": {"app": "y"}});
    let share = json!({"minAvailable": "50%", "selector": of_y});
    create(&budgets, budget("unmanaged", share)).await;
    wait(
        &budgets,
        "unmanaged",
        "nobody wants any",
        says([0, 0, 1, 0]),
    )
    .await;
    wait_event(&cluster, "unmanaged", "UnmanagedPods").await;
    let number = json!({"minAvailable": 0, "selector": of_y});
    create(&budgets, budget("number", number)).await;
    wait(&budgets, "number", "it may go", says([1, 0, 1, 1])).await;
    let labelled = Patch::Merge(json!({"metadata": {"labels": {"z": "z"}}}));
    let patched = pods
        .patch("alone", &PatchParams::default(), &labelled)
        .await;
    patched.expect("labelled");
    wait_event(&cluster, "alone", "MultiplePodDisruptionBudgets").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disruption_that_did_not_come_is_taken_back() {
    // Two minutes have passed as soon as anything is looked at.
    let later = || {
        let now = Timestamp::now();
        now.checked_add(Duration::from_secs(180)).unwrap_or(now)
    };
    let config = ControllersConfig {
        clock: Clock::new(later),
        ..ControllersConfig::new("PEM")
    };
    let cluster = Cluster::start_with(config).await;
    let cluster = cluster.with_node("node-1", "8").await;
    cluster.namespace("ns").await;
    let pods: Api<Pod> = cluster.api("ns");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeName": "node-1", "containers": [{"name": "c", "image": "x:1"}]}});
    create(&pods, pod).await;
    wait(&pods, "p", "it runs", |pod: Option<&Pod>| {
        let phase = pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref());
        phase == Some("Running")
    })
    .await;
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let told = Patch::Strategic(json!({"status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "m",
        "lastTransitionTime": now,
    }]}}));
    let patched = pods.patch_status("p", &PatchParams::default(), &told).await;
    patched.expect("it is told");
    wait(&pods, "p", "it says so no longer", |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "False"
                && condition.reason.is_none()
                && condition.message.is_none()
        })
    })
    .await;
}
