//! What comes of workloads whose pods are equal: Deployments, ReplicaSets and ReplicationControllers.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Endpoints, Event, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

const SET: &str = "web-59f8748c69";

pub(super) fn deployment(replicas: i32, scheduler: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "x"}},
            "template": {
                "metadata": {"labels": {"app": "x"}},
                "spec": {"schedulerName": scheduler, "containers": [{"name": "c", "image": "nginx:1"}]},
            },
        },
    })
}

pub(super) fn complete(replicas: i32) -> impl Fn(Option<&Deployment>) -> bool + Clone {
    move |deployment: Option<&Deployment>| {
        let Some(deployment) = deployment else {
            return false;
        };
        let status = deployment.status.clone().unwrap_or_default();
        status.observed_generation == deployment.metadata.generation
            && status.replicas.unwrap_or(0) == replicas
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.available_replicas.unwrap_or(0) == replicas
            && status.unavailable_replicas.is_none()
    }
}

pub(crate) async fn set_image(api: &Api<Deployment>, image: &str) {
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    let patch = Patch::Strategic(patch);
    api.patch("web", &PatchParams::default(), &patch)
        .await
        .expect("another image");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_has_the_set_and_the_pods_that_kubernetes_would_make() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, deployment(2, "none")).await;
    wait(
        &deployments,
        "web",
        "two pods are told of",
        |deployment: Option<&Deployment>| {
            let status = deployment
                .and_then(|deployment| deployment.status.clone())
                .unwrap_or_default();
            status.replicas == Some(2) && status.conditions.is_some_and(|all| all.len() == 2)
        },
    )
    .await;
    let web = deployments.get("web").await.expect("the deployment");
    let status = web.status.unwrap_or_default();
    assert_eq!(status.updated_replicas, Some(2));
    assert_eq!(status.unavailable_replicas, Some(2));
    assert_eq!(status.terminating_replicas, Some(0));
    let annotations = web.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "1");
    assert_eq!(
        web.metadata.generation,
        Some(1),
        "the revision is no change of the spec"
    );
    let told: Vec<_> = status
        .conditions
        .iter()
        .flatten()
        .map(|condition| {
            (
                condition.type_.clone(),
                condition.reason.clone().unwrap_or_default(),
            )
        })
        .collect();
    let pair = |type_: &str, reason: &str| (type_.to_owned(), reason.to_owned());
    assert_eq!(
        told,
        [
            pair("Available", "MinimumReplicasUnavailable"),
            pair("Progressing", "ReplicaSetUpdated")
        ]
    );
    let sets: Vec<ReplicaSet> = cluster.list("ns").await;
    assert_eq!(sets.len(), 1);
    assert_eq!(sets[0].metadata.name.as_deref(), Some(SET));
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(pods.len(), 2);
    for pod in pods {
        assert_eq!(
            pod.metadata.generate_name.as_deref(),
            Some("web-59f8748c69-")
        );
        let owners = pod.metadata.owner_references.unwrap_or_default();
        assert_eq!((owners.len(), owners[0].name.as_str()), (1, SET));
    }
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        let messages: Vec<_> = events
            .iter()
            .filter_map(|event| event.message.as_deref())
            .collect();
        messages == ["Scaled up replica set web-59f8748c69 from 0 to 2"]
    };
    wait_list(
        &events,
        "involvedObject.kind=Deployment",
        "one event tells of it",
        told,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roll_out_scale_roll_back_and_delete() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let services: Api<Service> = cluster.api("ns");
    create(
        &services,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {
            "selector": {"app": "x"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    )
    .await;
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, deployment(3, "default-scheduler")).await;
    wait(&deployments, "web", "it is complete", complete(3)).await;
    set_image(&deployments, "nginx:2").await;
    wait(&deployments, "web", "the update is complete", complete(3)).await;
    let patch = Patch::Merge(json!({"spec": {"replicas": 6}}));
    deployments
        .patch("web", &PatchParams::default(), &patch)
        .await
        .expect("scaled");
    wait(&deployments, "web", "six are available", complete(6)).await;
    set_image(&deployments, "nginx:1").await;
    wait(&deployments, "web", "the rollback is complete", complete(6)).await;
    let sets: Vec<ReplicaSet> = cluster.list("ns").await;
    assert_eq!(sets.len(), 2);
    let size = |set: &&ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas) == Some(6);
    let set = sets.iter().find(size).expect("the first set").clone();
    let annotations = set.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(
        annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
    let slices: Vec<EndpointSlice> = cluster.list("ns").await;
    assert_eq!(slices.len(), 1);
    let slices_api: Api<EndpointSlice> = cluster.api("ns");
    let name = slices[0].metadata.name.clone().expect("a name");
    wait(
        &slices_api,
        &name,
        "six endpoints are ready",
        |slice: Option<&EndpointSlice>| {
            // Pods of the other template may still be on their way out, and then are endpoints, too.
            let endpoints = slice
                .and_then(|slice| slice.endpoints.clone())
                .unwrap_or_default();
            let ready = endpoints.iter().all(|endpoint| {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                conditions.ready == Some(true)
            });
            endpoints.len() == 6 && ready
        },
    )
    .await;
    let addresses: BTreeSet<_> = slices_api
        .get(&name)
        .await
        .expect("the slice")
        .endpoints
        .into_iter()
        .flatten()
        .flat_map(|endpoint| endpoint.addresses)
        .collect();
    assert_eq!(addresses.len(), 6);
    let endpoints: Api<Endpoints> = cluster.api("ns");
    wait(
        &endpoints,
        "s",
        "the older form tells the same",
        |endpoints: Option<&Endpoints>| {
            let subsets = endpoints
                .and_then(|endpoints| endpoints.subsets.clone())
                .unwrap_or_default();
            subsets.len() == 1
                && subsets[0]
                    .addresses
                    .as_ref()
                    .is_some_and(|all| all.len() == 6)
        },
    )
    .await;
    // In the foreground: when the deployment is gone, so is all it owned.
    deployments
        .delete("web", &DeleteParams::foreground())
        .await
        .expect("deleted");
    gone(&deployments, "web").await;
    assert_eq!(cluster.list::<ReplicaSet>("ns").await.len(), 0);
    assert_eq!(cluster.list::<Pod>("ns").await.len(), 0);
}

/// A set of pods that are selected by `app: x`.
fn set(version: &str, kind: &str, replicas: i32, scheduler: &str) -> Value {
    let labels = json!({"app": "x"});
    let selector = match kind {
        "ReplicationController" => labels.clone(),
        _ => json!({"matchLabels": labels}),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "set"}, "spec": {
        "replicas": replicas, "selector": selector,
        "template": {"metadata": {"labels": labels},
            "spec": {"schedulerName": scheduler, "containers": [{"name": "c", "image": "nginx:1"}]}}}})
}

/// The set that controls a pod, as `Kind/name`.
fn owner(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(format!("{}/{}", owner.kind, owner.name))
}

async fn adopts_and_releases<K>(version: &str, replicas: fn(&K) -> Option<i32>)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + 'static,
{
    let kind = K::kind(&());
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let pods: Api<Pod> = cluster.api("ns");
    create(
        &pods,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orphan", "labels": {"app": "x"}},
            "spec": {"schedulerName": "none", "containers": [{"name": "c", "image": "nginx:1"}]}}),
    )
    .await;
    let sets: Api<K> = cluster.api("ns");
    create(&sets, set(version, &kind, 1, "none")).await;
    let wanted = format!("{kind}/set");
    let owned = move |pod: Option<&Pod>| pod.and_then(owner).as_deref() == Some(&*wanted);
    wait(&pods, "orphan", "it is adopted", owned).await;
    wait(&sets, "set", "it has its pod", move |set: Option<&K>| {
        set.and_then(replicas) == Some(1)
    })
    .await;
    let all: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(all.len(), 1, "no other was made");
    let patch = Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}));
    pods.patch("orphan", &PatchParams::default(), &patch)
        .await
        .expect("relabelled");
    let released = |pod: Option<&Pod>| pod.is_some_and(|pod| owner(pod).is_none());
    wait(&pods, "orphan", "it is released", released).await;
    let replaced = |pods: &[Pod]| {
        let named = |pod: &&Pod| {
            let labels = pod.metadata.labels.as_ref();
            let app = labels.and_then(|labels| labels.get("app"));
            app.map(String::as_str) == Some("x")
        };
        pods.iter().filter(named).count() == 1
    };
    wait_list(&pods, "", "another is made in its place", replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_adopts_and_releases_by_labels() {
    adopts_and_releases::<ReplicaSet>("apps/v1", |set| Some(set.status.as_ref()?.replicas)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_adopts_and_releases_by_labels() {
    let replicas = |set: &ReplicationController| Some(set.status.as_ref()?.replicas);
    adopts_and_releases::<ReplicationController>("v1", replicas).await;
}

/// A replication controller with so many pods, which all run.
fn runs(replicas: i32) -> impl Fn(Option<&ReplicationController>) -> bool + Clone {
    move |set: Option<&ReplicationController>| {
        let Some(set) = set else {
            return false;
        };
        let status = set.status.clone().unwrap_or_default();
        let counts = [
            status.fully_labeled_replicas,
            status.ready_replicas,
            status.available_replicas,
        ];
        status.observed_generation == set.metadata.generation
            && status.replicas == replicas
            && counts == [Some(replicas); 3]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_makes_pods_and_is_scaled_by_its_scale() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let sets: Api<ReplicationController> = cluster.api("ns");
    let spec = set("v1", "ReplicationController", 2, "default-scheduler");
    create(&sets, spec).await;
    wait(&sets, "set", "two run", runs(2)).await;
    for pod in cluster.list::<Pod>("ns").await {
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("set-"));
        let owners = pod.metadata.owner_references.unwrap_or_default();
        let [owner] = owners.as_slice() else {
            panic!("{owners:?}");
        };
        assert_eq!(owner.api_version, "v1");
        assert_eq!(
            (&*owner.kind, &*owner.name),
            ("ReplicationController", "set")
        );
        let flags = (owner.controller, owner.block_owner_deletion);
        assert_eq!(flags, (Some(true), Some(true)));
    }
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        let made = events.iter().filter(|event| {
            let source = event.source.as_ref();
            let component = source.and_then(|source| source.component.as_deref());
            component == Some("replication-controller")
                && event.reason.as_deref() == Some("SuccessfulCreate")
        });
        made.count() == 2
    };
    let about = "involvedObject.kind=ReplicationController";
    wait_list(&events, about, "each pod is told of", told).await;
    let scale = async |replicas: i32| {
        let mut scale = sets.get_scale("set").await.expect("its scale");
        let status = scale.status.clone().expect("a status");
        assert_eq!(status.selector.as_deref(), Some("app=x"));
        scale.spec.get_or_insert_default().replicas = Some(replicas);
        let parameters = PostParams::default();
        let written = sets.replace_scale("set", &parameters, &scale).await;
        written.expect("scaled");
    };
    scale(1).await;
    wait(&sets, "set", "one runs", runs(1)).await;
    scale(3).await;
    wait(&sets, "set", "three run", runs(3)).await;
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("ns");
    create(
        &autoscalers,
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"}, "spec": {
            "scaleTargetRef": {"apiVersion": "v1", "kind": "ReplicationController", "name": "set"},
            "minReplicas": 4, "maxReplicas": 5}}),
    )
    .await;
    wait(&sets, "set", "four run, which are the least", runs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_replication_controller_go_with_it_or_stay_for_the_next() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let sets: Api<ReplicationController> = cluster.api("ns");
    let pods: Api<Pod> = cluster.api("ns");
    let spec = || set("v1", "ReplicationController", 2, "none");
    let told = |set: Option<&ReplicationController>| {
        let status = set.and_then(|set| set.status.as_ref());
        status.is_some_and(|status| status.replicas == 2)
    };
    create(&sets, spec()).await;
    wait(&sets, "set", "it has its pods", told).await;
    let uids = async || -> BTreeSet<Option<String>> {
        let all = cluster.list::<Pod>("ns").await.into_iter();
        all.map(|pod| pod.metadata.uid).collect()
    };
    let before = uids().await;
    assert_eq!(before.len(), 2);
    // Whoever does not say otherwise keeps the pods of this kind alone.
    sets.delete("set", &DeleteParams::default())
        .await
        .expect("deleted");
    gone(&sets, "set").await;
    let free = |pods: &[Pod]| pods.len() == 2 && pods.iter().all(|pod| owner(pod).is_none());
    wait_list(&pods, "", "they are nobody's", free).await;
    create(&sets, spec()).await;
    wait(&sets, "set", "it has them again", told).await;
    assert_eq!(uids().await, before, "they are those that were");
    sets.delete("set", &DeleteParams::background())
        .await
        .expect("deleted");
    wait_list(&pods, "", "they go", |pods| pods.is_empty()).await;
}
