//! What comes of autoscalers: a Deployment that follows what its pods use, and what is told where nothing can be done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_controllers::ControllersConfig;
use gantry_controllers::figures::fake::FakeFigures;
use gantry_controllers::figures::{Arrival, ContainerUsage, PodUsage};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use serde_json::{Value, json};

use super::common::{Cluster, create, wait, wait_list};
use super::workloads::{complete, deployment};

fn autoscaler(metric: Value) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 1, "maxReplicas": 10, "metrics": [metric],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    })
}

fn memory(target: &str) -> Value {
    let target = json!({"type": "AverageValue", "averageValue": target});
    json!({"type": "Resource", "resource": {"name": "memory", "target": target}})
}

/// Whether a condition is so, by its status and reason.
fn is(
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
) -> impl Fn(Option<&HorizontalPodAutoscaler>) -> bool + Clone {
    move |object: Option<&HorizontalPodAutoscaler>| {
        let status_of = object.and_then(|object| object.status.as_ref());
        let mut conditions = status_of
            .into_iter()
            .flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|condition| {
            condition.type_ == type_
                && condition.status == status
                && condition.reason.as_deref() == Some(reason)
        })
    }
}

/// Says of all pods how much memory they use, in MiB.
async fn say(figures: &FakeFigures, pods: &Api<Pod>, used: u64) {
    let listed = pods.list(&Default::default()).await.expect("a list");
    for pod in &listed.items {
        let usage = PodUsage {
            at: Timestamp::now(),
            window: Duration::from_secs(1),
            containers: vec![ContainerUsage {
                name: "c".to_owned(),
                cpu_nanocores: 1_000_000,
                working_set_bytes: used << 20,
            }],
        };
        figures.say_usage(pod.metadata.uid.as_deref().expect("a uid"), usage);
        figures.arrive(Arrival::Pod {
            namespace: "ns",
            name: pod.metadata.name.as_deref().expect("a name"),
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_follows_what_its_pods_use() {
    let figures = Arc::new(FakeFigures::default());
    let config = ControllersConfig {
        figures: figures.clone(),
        ..ControllersConfig::new("PEM")
    };
    let cluster = Cluster::start_with(config).await.with_scheduler();
    let cluster = cluster.with_node("n", "4").await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let pods: Api<Pod> = cluster.api("ns");
    create(&deployments, deployment(2, "default-scheduler")).await;
    wait(&deployments, "web", "two pods run", complete(2)).await;
    say(&figures, &pods, 200).await;
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("ns");
    create(&autoscalers, autoscaler(memory("100Mi"))).await;
    wait(&deployments, "web", "four pods run", complete(4)).await;
    let (events, wanted) = (
        cluster.api::<Event>("ns"),
        "New size: 4; reason: memory resource above target",
    );
    wait_list(
        &events,
        "reason=SuccessfulRescale",
        "it is told",
        |events| {
            events
                .iter()
                .any(|event| event.message.as_deref() == Some(wanted))
        },
    )
    .await;
    // Nothing is known of the new pods, and they may be all that was missing. Once they are known, they count.
    let begun = Instant::now();
    say(&figures, &pods, 150).await;
    wait(&deployments, "web", "six pods run", complete(6)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "by what has arrived, not by the clock"
    );
    let told = |object: Option<&HorizontalPodAutoscaler>| {
        let status = object.and_then(|object| object.status.as_ref());
        status.is_some_and(|status| {
            let current = json!(status.current_metrics);
            let value = current.pointer("/0/resource/current/averageValue");
            status.desired_replicas == 6 && value == Some(&json!("150Mi"))
        })
    };
    wait(&autoscalers, "web", "it says so", told).await;
    let active = is("ScalingActive", "True", "ValidMetricFound");
    wait(&autoscalers, "web", "it is active", active).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured_of_a_service_scales_what_is_not_behind_it() {
    let figures = Arc::new(FakeFigures::default());
    let config = ControllersConfig {
        figures: figures.clone(),
        ..ControllersConfig::new("PEM")
    };
    let cluster = Cluster::start_with(config).await.with_scheduler();
    let cluster = cluster.with_node("n", "4").await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, deployment(1, "default-scheduler")).await;
    wait(&deployments, "web", "a pod runs", complete(1)).await;
    let front = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
        "spec": {"selector": {"app": "front"}, "ports": [{"port": 80}]},
    });
    create(&cluster.api::<Service>("ns"), front).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "front-1", "labels": {"app": "front"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    create(&cluster.api::<Pod>("ns"), pod).await;
    figures.say_of_objects("connections", 10_000);
    let metric = json!({"type": "Object", "object": {
        "metric": {"name": "connections"},
        "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "front"},
        "target": {"type": "AverageValue", "averageValue": "10"},
    }});
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("ns");
    create(&autoscalers, autoscaler(metric)).await;
    let active = is("ScalingActive", "True", "ValidMetricFound");
    wait(&autoscalers, "web", "it is active", active).await;
    let begun = Instant::now();
    figures.say_of_objects("connections", 30_000);
    figures.arrive(Arrival::Pod {
        namespace: "ns",
        name: "front-1",
    });
    wait(&deployments, "web", "three pods run", complete(3)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "by what has arrived, not by the clock"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_told() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("ns");
    let mut object = autoscaler(memory("100Mi"));
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        let annotations = json!({"gantry.dev/sync-period": "soon"});
        metadata.insert("annotations".to_owned(), annotations);
    }
    create(&autoscalers, object).await;
    let missing = is("AbleToScale", "False", "FailedGetScale");
    wait(&autoscalers, "web", "there is no target", missing).await;
    let malformed = is("SyncPeriodValid", "False", "InvalidSyncPeriod");
    wait(&autoscalers, "web", "its period is none", malformed).await;
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, deployment(2, "default-scheduler")).await;
    let able = is("AbleToScale", "True", "SucceededGetScale");
    wait(&autoscalers, "web", "there is a target", able).await;
    let active = is("ScalingActive", "False", "FailedGetResourceMetric");
    wait(&autoscalers, "web", "nothing is measured", active).await;
    let events: Api<Event> = cluster.api("ns");
    let wanted = "failed to get memory usage: unable to get metrics for resource memory: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
    wait_list(
        &events,
        "reason=FailedGetResourceMetric",
        "it is told",
        |events| {
            events
                .iter()
                .any(|event| event.message.as_deref() == Some(wanted))
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_targets_name_asks_for_nothing_but_its_scale() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("ns");
    let mut object = autoscaler(memory("100Mi"));
    if let Some(target) = object.pointer_mut("/spec/scaleTargetRef") {
        *target = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "name": "?watch=1&timeoutSeconds=31536000&x="});
    }
    create(&autoscalers, object).await;
    let missing = is("AbleToScale", "False", "FailedGetScale");
    wait(&autoscalers, "web", "there is no such target", missing).await;
}
