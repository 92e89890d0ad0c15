//! Rollouts that go step by step, on a whole control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_controllers::ControllersConfig;
use gantry_controllers::figures::PodValue;
use gantry_controllers::figures::fake::FakeFigures;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::common::{Cluster, create, wait, wait_list};
use crate::rollbacks::{annotated, condition, image};
use crate::workloads::{complete, deployment, set_image};

/// Whether the condition of the rollout's progress says so.
fn says(words: &'static str) -> impl Fn(Option<&Deployment>) -> bool + Clone {
    move |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        let mut conditions = status
            .into_iter()
            .flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|condition| {
            let message = condition.message.as_deref().unwrap_or_default();
            condition.reason.as_deref() == Some("CanaryStep") && message.contains(words)
        })
    }
}

/// How many pods there are of each image.
async fn images(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for pod in cluster.list::<Pod>("ns").await {
        let spec = pod.spec.expect("a spec");
        let image = spec.containers[0].image.clone().expect("an image");
        *count.entry(image).or_default() += 1;
    }
    count
}

async fn marks(cluster: &Cluster) -> Vec<String> {
    let sets: Vec<ReplicaSet> = cluster.list("ns").await;
    let marks = sets.into_iter().filter_map(|set| {
        let annotations = set.metadata.annotations?;
        annotations.get("gantry.dev/canary-step").cloned()
    });
    marks.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_on_by_time_and_by_hand_whoever_leads() {
    let cluster = Cluster::start().await.with_scheduler();
    let mut cluster = cluster.with_node("node-1", "8").await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let steps = json!({"gantry.dev/canary": "25%,1s;50%,pause;75%,0s"});
    let web = annotated(deployment(4, "default-scheduler"), steps);
    create(&deployments, web).await;
    wait(&deployments, "web", "it is complete", complete(4)).await;
    set_image(&deployments, "nginx:2").await;
    let first = says("step 1 of 3: 25% for 1s, until ");
    wait(&deployments, "web", "it is at its first step", first).await;
    let second = says("step 2 of 3: 50% until it is promoted; 2 of 4 pods are new");
    wait(&deployments, "web", "it is at its second", second).await;
    let half = [("nginx:1".to_owned(), 2), ("nginx:2".to_owned(), 2)];
    let pods: Api<Pod> = cluster.api("ns");
    // Those that go are on their way.
    wait_list(&pods, "", "four pods are left", |pods| pods.len() == 4).await;
    assert_eq!(images(&cluster).await, half.into());
    let before = marks(&cluster).await;
    assert_eq!(before.len(), 1);
    assert!(
        before[0].starts_with("revision=2 step=2 since="),
        "{before:?}"
    );
    // Who leads now goes on from there. That it has looked is to be seen by what it writes.
    cluster.lead(ControllersConfig::new("PEM"));
    let patch = json!({"spec": {"progressDeadlineSeconds": 60}});
    deployments
        .patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .expect("a change");
    let seen = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            let status = deployment.status.as_ref();
            let observed = status.and_then(|status| status.observed_generation);
            observed == deployment.metadata.generation
        })
    };
    wait(&deployments, "web", "the other one has seen it", seen).await;
    assert_eq!(marks(&cluster).await, before);
    let go_on = json!({"metadata": {"annotations": {"gantry.dev/canary-continue": "2"}}});
    deployments
        .patch("web", &PatchParams::default(), &Patch::Merge(go_on))
        .await
        .expect("it is promoted");
    wait(&deployments, "web", "all pods are new", complete(4)).await;
    assert_eq!(marks(&cluster).await, ["done"]);
    let web = deployments.get("web").await.expect("the deployment");
    let annotations = web.metadata.annotations.clone().unwrap_or_default();
    assert!(!annotations.contains_key("gantry.dev/canary-continue"));
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        let all = [
            "Revision 2 begins step 1 of 3: 25% for 1s",
            "Revision 2 begins step 2 of 3: 50% until it is promoted",
            "Revision 2 begins step 3 of 3: 75% for 0s",
            "Revision 2 is through its 3 steps",
        ];
        all.iter().all(|words| {
            let mut events = events.iter();
            events.any(|event| event.message.as_deref() == Some(words))
        })
    };
    wait_list(&events, "reason=CanaryStep", "each step is told", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_out_of_bounds_takes_the_revision_back() {
    let figures = Arc::new(FakeFigures::default());
    let config = ControllersConfig {
        figures: figures.clone(),
        ..ControllersConfig::new("PEM")
    };
    let cluster = Cluster::start_with(config).await.with_scheduler();
    let cluster = cluster.with_node("node-1", "8").await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let annotations = json!({
        "gantry.dev/canary": "1,0s",
        "gantry.dev/canary-metric": "errors_per_second<0.5",
        "gantry.dev/auto-rollback": "true",
        "gantry.dev/rollback-after": "1s",
    });
    let web = annotated(deployment(3, "default-scheduler"), annotations);
    create(&deployments, web).await;
    wait(&deployments, "web", "it is complete", complete(3)).await;
    let before: Vec<Pod> = cluster.list("ns").await;
    set_image(&deployments, "nginx:2").await;
    let unknown = says("waits for errors_per_second<500m, of which there are no figures: ");
    wait(&deployments, "web", "nothing is known", unknown).await;
    let mut values = Vec::new();
    for pod in cluster.list::<Pod>("ns").await {
        values.push(PodValue {
            pod: pod.metadata.name.expect("a name"),
            millis: 2500,
            at: Timestamp::now(),
            window: Duration::from_secs(1),
        });
    }
    figures.say_of_pods("errors_per_second", values);
    let is_back = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            image(deployment) == Some("nginx:1")
                && condition(deployment, "RolledBack") == Some(("True", "CanaryMetric"))
        })
    };
    wait(&deployments, "web", "it is back", is_back).await;
    wait(&deployments, "web", "it is complete again", complete(3)).await;
    let after: Vec<Pod> = cluster.list("ns").await;
    let stayed = before.iter().filter(|pod| {
        let mut after = after.iter();
        after.any(|other| other.metadata.uid == pod.metadata.uid)
    });
    // One has made room for the new one.
    assert!(stayed.count() >= 2, "{after:#?}");
    let events: Api<Event> = cluster.api("ns");
    let words = "Revision 2 failed and was taken back to revision 1: the average of errors_per_second over 1 of its pods is 2500m, not <500m, for 1s";
    wait_list(&events, "reason=RolledBack", "it is told", |events| {
        events
            .iter()
            .any(|event| event.message.as_deref() == Some(words))
    })
    .await;
}
