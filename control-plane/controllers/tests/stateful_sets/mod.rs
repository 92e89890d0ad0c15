//! What comes of stateful sets: pods with names and claims, updates in order and back, pods left and taken up again.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

/// The name that Kubernetes gives the revision of the set's first template.
const FIRST: &str = "db-6b7b7776b8";
const SECOND: &str = "db-869c56c74c";

fn set(spec: Value) -> Value {
    let container = json!({"name": "c", "image": "nginx:1"});
    let mut whole = json!({
        "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "x"}},
        "template": {
            "metadata": {"labels": {"app": "x"}}, "spec": {"schedulerName": "none", "containers": [container]},
        },
    });
    for (key, value) in spec.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": whole})
}

/// The same on nodes that run it.
fn running(replicas: i32) -> Value {
    let mut set = set(json!({"replicas": replicas}));
    set["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
    set
}

async fn running_cluster() -> Cluster {
    let cluster = Cluster::start().await.with_scheduler();
    let cluster = cluster.with_node("node-1", "8").await;
    cluster.namespace("ns").await;
    cluster
}

fn complete(replicas: i32) -> impl Fn(Option<&StatefulSet>) -> bool + Clone {
    move |set: Option<&StatefulSet>| {
        let Some(set) = set else { return false };
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && status.replicas == replicas
            && status.available_replicas == Some(replicas)
            && status.updated_replicas == Some(replicas)
            && status.current_revision == status.update_revision
    }
}

fn names(pods: &[Pod]) -> Vec<String> {
    let names = pods.iter().filter_map(|pod| pod.metadata.name.clone());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pod_comes_with_its_claim_and_the_next_when_it_is_ready() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let sets: Api<StatefulSet> = cluster.api("ns");
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "storageClassName": "none", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    create(&sets, set(json!({"volumeClaimTemplates": [claim]}))).await;
    let status = |expected: Value| {
        move |set: Option<&StatefulSet>| {
            let status = set.and_then(|set| set.status.as_ref());
            status.is_some_and(|status| {
                serde_json::to_value(status).is_ok_and(|told| told == expected)
            })
        }
    };
    let first = status(json!({
        "observedGeneration": 1, "replicas": 1, "currentReplicas": 1, "updatedReplicas": 1, "currentRevision": FIRST,
        "updateRevision": FIRST, "collisionCount": 0, "availableReplicas": 0,
    }));
    wait(&sets, "db", "it has its first pod", first).await;
    let pods: Api<Pod> = cluster.api("ns");
    let pod = pods.get("db-0").await.expect("the pod");
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("db-"));
    let labels = serde_json::to_value(&pod.metadata.labels).expect("JSON");
    assert_eq!(
        labels,
        json!({
            "app": "x", "apps.kubernetes.io/pod-index": "0", "controller-revision-hash": FIRST,
            "statefulset.kubernetes.io/pod-name": "db-0",
        })
    );
    let spec = pod.spec.expect("a spec");
    assert_eq!(
        (spec.hostname.as_deref(), spec.subdomain.as_deref()),
        (Some("db-0"), Some("db"))
    );
    let volumes = spec.volumes.unwrap_or_default();
    let mounted = volumes[0]
        .persistent_volume_claim
        .as_ref()
        .expect("a claim");
    assert_eq!(mounted.claim_name, "data-db-0");
    let claims: Vec<PersistentVolumeClaim> = cluster.list("ns").await;
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].metadata.owner_references, None);
    let labels = claims[0].metadata.labels.clone().expect("labels");
    assert_eq!(labels["app"], "x");
    let revisions: Vec<ControllerRevision> = cluster.list("ns").await;
    assert_eq!(revisions.len(), 1);
    assert_eq!(revisions[0].metadata.name.as_deref(), Some(FIRST));
    assert_eq!(revisions[0].revision, 1);
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let patch = Patch::Strategic(running);
    let patched = pods
        .patch_status("db-0", &PatchParams::default(), &patch)
        .await;
    patched.expect("it is ready");
    let second = status(json!({
        "observedGeneration": 1, "replicas": 2, "readyReplicas": 1, "currentReplicas": 2, "updatedReplicas": 2,
        "currentRevision": FIRST, "updateRevision": FIRST, "collisionCount": 0, "availableReplicas": 1,
    }));
    wait(&sets, "db", "it has its second pod", second).await;
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        let mut told: Vec<_> = events
            .iter()
            .filter_map(|event| event.message.as_deref())
            .collect();
        told.sort_unstable();
        told == [
            "create Claim data-db-0 Pod db-0 in StatefulSet db success",
            "create Claim data-db-1 Pod db-1 in StatefulSet db success",
            "create Pod db-0 in StatefulSet db successful",
            "create Pod db-1 in StatefulSet db successful",
        ]
    };
    wait_list(
        &events,
        "reason=SuccessfulCreate,involvedObject.kind=StatefulSet",
        "it is told",
        told,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_updated_rolled_back_scaled_and_deleted() {
    let cluster = running_cluster().await;
    let sets: Api<StatefulSet> = cluster.api("ns");
    create(&sets, running(3)).await;
    wait(&sets, "db", "it is complete", complete(3)).await;
    let status = sets
        .get("db")
        .await
        .expect("the set")
        .status
        .expect("a status");
    let first = status.current_revision.expect("a revision");
    let container = json!({"name": "c", "image": "nginx:2"});
    let patch =
        Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [container]}}}}));
    let patched = sets.patch("db", &PatchParams::default(), &patch).await;
    patched.expect("another image");
    wait(&sets, "db", "the update is complete", complete(3)).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(names(&pods), ["db-0", "db-1", "db-2"]);
    for pod in &pods {
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!(spec.containers[0].image.as_deref(), Some("nginx:2"));
    }
    // As `kubectl rollout undo` does.
    let revisions: Api<ControllerRevision> = cluster.api("ns");
    let before = revisions.get(&first).await.expect("it is kept");
    let data = before.data.expect("data").0;
    let patched = sets
        .patch("db", &PatchParams::default(), &Patch::Strategic(data))
        .await;
    patched.expect("the template of before");
    let back = {
        let (complete, first) = (complete(3), first.clone());
        move |set: Option<&StatefulSet>| {
            let status = set.and_then(|set| set.status.as_ref());
            complete(set)
                && status.is_some_and(|status| status.current_revision.as_ref() == Some(&first))
        }
    };
    wait(&sets, "db", "the rollback is complete", back).await;
    let known: Vec<ControllerRevision> = cluster.list("ns").await;
    let mut numbers: Vec<_> = known.iter().map(|revision| revision.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "the first has become the latest");
    let patch = Patch::Merge(json!({"spec": {"replicas": 1}}));
    let patched = sets.patch("db", &PatchParams::default(), &patch).await;
    patched.expect("scaled");
    wait(&sets, "db", "one is left", complete(1)).await;
    assert_eq!(names(&cluster.list("ns").await), ["db-0"]);
    sets.delete("db", &DeleteParams::foreground())
        .await
        .expect("deleted");
    gone(&sets, "db").await;
    assert_eq!(cluster.list::<Pod>("ns").await.len(), 0);
    assert_eq!(cluster.list::<ControllerRevision>("ns").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_were_left_are_taken_up_again() {
    let cluster = running_cluster().await;
    let sets: Api<StatefulSet> = cluster.api("ns");
    create(&sets, running(2)).await;
    wait(&sets, "db", "it is complete", complete(2)).await;
    let uids = |pods: &[Pod]| -> Vec<_> {
        let uids = pods.iter().filter_map(|pod| pod.metadata.uid.clone());
        uids.collect()
    };
    let before = uids(&cluster.list("ns").await);
    sets.delete("db", &DeleteParams::orphan())
        .await
        .expect("deleted");
    gone(&sets, "db").await;
    let again = create(&sets, running(2)).await;
    wait(&sets, "db", "it has its pods again", complete(2)).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_waited_for_and_a_revisions_is_avoided() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let revisions: Api<ControllerRevision> = cluster.api("ns");
    for name in [FIRST, SECOND] {
        let other = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name},
            "data": {"what": "else"}, "revision": 1});
        create(&revisions, other).await;
    }
    let pods: Api<Pod> = cluster.api("ns");
    let stranger = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0"}, "spec": {
        "schedulerName": "none", "containers": [{"name": "c", "image": "i"}]}});
    let stranger = create(&pods, stranger).await;
    let sets: Api<StatefulSet> = cluster.api("ns");
    create(&sets, set(json!({}))).await;
    let told = |replicas: i32| {
        move |set: Option<&StatefulSet>| {
            let status = set.and_then(|set| set.status.as_ref());
            status.is_some_and(|status| {
                status.collision_count == Some(1)
                    && status.replicas == replicas
                    && status.update_revision.is_some()
            })
        }
    };
    wait(&sets, "db", "it has another revision, and no pod", told(0)).await;
    let pod = pods.get("db-0").await.expect("it stays");
    assert_eq!(pod.metadata.uid, stranger.metadata.uid);
    pods.delete("db-0", &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");
    wait(&sets, "db", "it has its pod", told(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_go_with_the_set_where_it_says_so() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let sets: Api<StatefulSet> = cluster.api("ns");
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "storageClassName": "none", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let spec = json!({
        "volumeClaimTemplates": [claim], "replicas": 1,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
    });
    let made = create(&sets, set(spec)).await;
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    let uid = made.metadata.uid;
    let owned = move |claim: Option<&PersistentVolumeClaim>| {
        let owners = claim.and_then(|claim| claim.metadata.owner_references.clone());
        owners.is_some_and(|owners| Some(&owners[0].uid) == uid.as_ref())
    };
    wait(&claims, "data-db-0", "it is the set's", owned).await;
    let pods: Api<Pod> = cluster.api("ns");
    wait(&pods, "db-0", "it is there", |pod: Option<&Pod>| {
        pod.is_some()
    })
    .await;
    let patch = Patch::Merge(
        json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}}}),
    );
    let patched = sets.patch("db", &PatchParams::default(), &patch).await;
    patched.expect("another policy");
    let free = |claim: Option<&PersistentVolumeClaim>| {
        claim.is_some_and(|claim| {
            claim
                .metadata
                .owner_references
                .clone()
                .unwrap_or_default()
                .is_empty()
        })
    };
    wait(&claims, "data-db-0", "it is nobody's", free).await;
    let patch = Patch::Merge(
        json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}}),
    );
    let patched = sets.patch("db", &PatchParams::default(), &patch).await;
    patched.expect("the first policy");
    let taken = move |claim: Option<&PersistentVolumeClaim>| claim.is_some() && !free(claim);
    wait(&claims, "data-db-0", "it is the set's again", taken).await;
    sets.delete("db", &DeleteParams::foreground())
        .await
        .expect("deleted");
    gone(&sets, "db").await;
    gone(&claims, "data-db-0").await;
}
