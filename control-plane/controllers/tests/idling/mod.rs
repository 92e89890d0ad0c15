//! What comes of Deployments that nobody connects to, and of those that somebody wants again.

use std::sync::Arc;
use std::time::Duration;

use gantry_controllers::ControllersConfig;
use gantry_controllers::demand::fake::FakeDemand;
use gantry_controllers::demand::{Connections, Wanted};
use gantry_controllers::figures::fake::FakeFigures;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, wait, wait_list};
use super::workloads::{complete, deployment};

const MARK: &str = "gantry.dev/wakes";
const REMEMBERED: &str = "gantry.dev/idle-replicas";

struct World {
    cluster: Cluster,
    demand: Arc<FakeDemand>,
    figures: Arc<FakeFigures>,
    deployments: Api<Deployment>,
    services: Api<Service>,
}

impl World {
    /// A Deployment of two pods behind a Service.
    async fn new(annotations: Value) -> Self {
        let (demand, figures) = (
            Arc::new(FakeDemand::default()),
            Arc::new(FakeFigures::default()),
        );
        let config = ControllersConfig {
            demand: demand.clone(),
            figures: figures.clone(),
            ..ControllersConfig::new("PEM")
        };
        let cluster = Cluster::start_with(config).await.with_scheduler();
        let cluster = cluster.with_node("n", "4").await;
        cluster.namespace("ns").await;
        let world = Self {
            deployments: cluster.api("ns"),
            services: cluster.api("ns"),
            cluster,
            demand,
            figures,
        };
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
            "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}});
        create(&world.services, service).await;
        let mut web = deployment(2, "default-scheduler");
        if let Some(Value::Object(metadata)) = web.get_mut("metadata") {
            metadata.insert("annotations".to_owned(), annotations);
        }
        create(&world.deployments, web).await;
        wait(&world.deployments, "web", "two pods run", complete(2)).await;
        world
    }

    fn want(&self, node: &str, service: &str) {
        self.demand.want(Wanted {
            namespace: "ns",
            service,
            node,
        });
    }

    async fn is_marked(&self, with: Option<&'static str>) {
        let marked = move |service: Option<&Service>| {
            let annotations = service.and_then(|service| service.metadata.annotations.as_ref());
            let mark = annotations.and_then(|annotations| annotations.get(MARK));
            mark.map(String::as_str) == with
        };
        wait(&self.services, "front", "it is marked", marked).await;
    }

    async fn scale(&self, replicas: i32) {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let patched = self
            .deployments
            .patch("web", &PatchParams::default(), &patch)
            .await;
        patched.expect("scaled");
    }

    async fn is_told(&self, reason: &str, message: &'static str) {
        let events: Api<Event> = self.cluster.api("ns");
        let fields = format!("reason={reason}");
        wait_list(&events, &fields, message, |events: &[Event]| {
            let messages = events.iter();
            let mut messages = messages.filter_map(|event| event.message.as_deref());
            messages.any(|told| told == message)
        })
        .await;
    }
}

/// Whether so many replicas are wanted, and so many remembered.
fn wants(
    replicas: i32,
    remembered: Option<&'static str>,
) -> impl Fn(Option<&Deployment>) -> bool + Clone {
    move |deployment: Option<&Deployment>| {
        let Some(deployment) = deployment else {
            return false;
        };
        let annotations = deployment.metadata.annotations.as_ref();
        let known = annotations.and_then(|annotations| annotations.get(REMEMBERED));
        let spec = deployment.spec.as_ref();
        spec.and_then(|spec| spec.replicas) == Some(replicas)
            && known.map(String::as_str) == remembered
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_without_connections_goes_and_comes_back_when_it_is_wanted() {
    let world = World::new(json!({"gantry.dev/idle-after": "10s"})).await;
    world.is_marked(Some("web")).await;
    world.demand.say_of_others(Connections::default());
    let idle = wants(0, Some("2"));
    wait(&world.deployments, "web", "it idles", idle).await;
    world
        .is_told("Idled", "Scaled down from 2 to 0: no connection for 10s")
        .await;
    wait(&world.deployments, "web", "no pods are left", complete(0)).await;
    world.is_marked(Some("web")).await;
    let idled = world.deployments.get("web").await.expect("it is there");
    // Nobody can want what is not there, or is of others.
    for service in ["web", "none", "front,web", "", ".."] {
        world.want("evil", service);
    }
    for node in ["one", "two", "three"] {
        world.want(node, "front");
        world.want(node, "front");
    }
    wait(&world.deployments, "web", "it is back", wants(2, None)).await;
    wait(&world.deployments, "web", "two pods run", complete(2)).await;
    world
        .is_told(
            "Woken",
            "Scaled up from 0 to 2: node one holds connections to Service front",
        )
        .await;
    let woken = world.deployments.get("web").await.expect("it is there");
    let generations = [&idled, &woken].map(|of| of.metadata.generation.expect("a generation"));
    assert_eq!(
        generations[1],
        generations[0] + 1,
        "one write, whoever asks"
    );
    // Who scales to zero means it, and its clients are told at once that nothing is there.
    world.scale(0).await;
    world.is_marked(None).await;
    world.scale(1).await;
    world.is_marked(Some("web")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_scaled_up_or_not_to_idle_any_more_is_itself_again() {
    let world = World::new(json!({"gantry.dev/idle-after": "10s"})).await;
    world.demand.say_of_others(Connections::default());
    let idle = wants(0, Some("2"));
    wait(&world.deployments, "web", "it idles", idle.clone()).await;
    world.scale(1).await;
    let forgotten = wants(1, None);
    wait(&world.deployments, "web", "it is as it was told", forgotten).await;
    let idle = wants(0, Some("1"));
    wait(&world.deployments, "web", "it idles again", idle).await;
    let patch = json!({"metadata": {"annotations": {"gantry.dev/idle-after": null}}});
    let patch = Patch::Merge(patch);
    let patched = world
        .deployments
        .patch("web", &PatchParams::default(), &patch)
        .await;
    patched.expect("changed");
    wait(&world.deployments, "web", "it is back", wants(1, None)).await;
    world.is_marked(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_autoscaler_scaled_to_zero_is_woken_without_waiting_for_it() {
    let world = World::new(json!({})).await;
    world.figures.say_external("queue", vec![0]);
    let autoscalers: Api<HorizontalPodAutoscaler> = world.cluster.api("ns");
    let target = json!({"type": "AverageValue", "averageValue": "10"});
    let metric =
        json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": target}});
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "annotations": {"gantry.dev/sync-period": "1h"}},
        "spec": {
            "minReplicas": 0, "maxReplicas": 10, "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    });
    create(&autoscalers, autoscaler).await;
    world.is_marked(Some("web")).await;
    let zero = wants(0, None);
    wait(&world.deployments, "web", "it is scaled to zero", zero).await;
    let told = |autoscaler: Option<&HorizontalPodAutoscaler>| {
        let status = autoscaler.and_then(|autoscaler| autoscaler.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| one.type_ == "ScaledToZero" && one.status == "True")
    };
    wait(&autoscalers, "web", "it says so", told).await;
    // The controllers hear of it a moment after us; nodes say it again and again.
    let waking = async {
        let mut again = tokio::time::interval(Duration::from_millis(50));
        loop {
            again.tick().await;
            world.want("one", "front");
        }
    };
    tokio::select! {
        () = waking => {}
        () = wait(&world.deployments, "web", "it is back", wants(1, None)) => {}
    }
    world
        .is_told(
            "Woken",
            "Scaled up from 0 to 1: node one holds connections to Service front",
        )
        .await;
}
