//! What comes of claims and volumes.

use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

fn volume(name: &str, storage: &str, policy: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": storage}, "hostPath": {"path": "/x"},
        "persistentVolumeReclaimPolicy": policy}})
}

fn claim(name: &str, storage: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}})
}

async fn volume_is(volumes: &Api<PersistentVolume>, name: &str, phase: &'static str) {
    wait(
        volumes,
        name,
        phase,
        move |volume: Option<&PersistentVolume>| {
            let status = volume.and_then(|volume| volume.status.as_ref());
            status.and_then(|status| status.phase.as_deref()) == Some(phase)
        },
    )
    .await;
}

async fn claim_is(claims: &Api<PersistentVolumeClaim>, name: &str, phase: &'static str) {
    wait(
        claims,
        name,
        phase,
        move |claim: Option<&PersistentVolumeClaim>| {
            let status = claim.and_then(|claim| claim.status.as_ref());
            status.and_then(|status| status.phase.as_deref()) == Some(phase)
        },
    )
    .await;
}

async fn told(events: &Api<Event>, about: &str, reason: &str, message: &str) {
    let fields = format!("involvedObject.name={about}");
    wait_list(events, &fields, message, |events: &[Event]| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some(reason)
                && event.message.as_deref() == Some(message)
                && event.reporting_component.as_deref() == Some("persistentvolume-controller")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_smallest_volume_that_will_do_and_its_end_releases_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    for (name, storage) in [("large", "5Gi"), ("right", "2Gi"), ("small", "1Gi")] {
        create(&volumes, volume(name, storage, "Delete")).await;
        volume_is(&volumes, name, "Available").await;
    }
    create(&claims, claim("data", "1536Mi")).await;
    claim_is(&claims, "data", "Bound").await;
    volume_is(&volumes, "right", "Bound").await;
    let data = claims.get("data").await.expect("the claim");
    let spec = data.spec.expect("a spec");
    assert_eq!(spec.volume_name.as_deref(), Some("right"));
    let capacity = data.status.and_then(|status| status.capacity);
    assert_eq!(capacity.expect("a capacity")["storage"].0, "2Gi");
    // Another that asks for the same gets the next.
    create(&claims, claim("more", "1536Mi")).await;
    claim_is(&claims, "more", "Bound").await;
    volume_is(&volumes, "large", "Bound").await;
    let deleted = claims.delete("data", &DeleteParams::default()).await;
    deleted.expect("deleted");
    gone(&claims, "data").await;
    volume_is(&volumes, "right", "Failed").await;
    let events: Api<Event> = cluster.api("default");
    let why = "error getting deleter volume plugin for volume \"right\": no deletable volume plugin matched";
    told(&events, "right", "VolumeFailedDelete", why).await;
    // Somebody has seen to it, and gives it back.
    let free = Patch::Merge(json!({"spec": {"claimRef": null}}));
    let freed = volumes.patch("right", &PatchParams::default(), &free).await;
    freed.expect("freed");
    volume_is(&volumes, "right", "Available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_is_told_so_and_gets_a_volume_that_comes() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    let events: Api<Event> = cluster.api("ns");
    create(&claims, claim("a", "1Gi")).await;
    let none = "no persistent volumes available for this claim and no storage class is set";
    told(&events, "a", "FailedBinding", none).await;
    create(&claims, claim("b", "1Gi")).await;
    told(&events, "b", "FailedBinding", none).await;
    for name in ["one", "other"] {
        create(&volumes, volume(name, "1Gi", "Retain")).await;
        volume_is(&volumes, name, "Bound").await;
    }
    claim_is(&claims, "a", "Bound").await;
    claim_is(&claims, "b", "Bound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_claims_that_name_each_other_come_together_and_are_lost_to_each_other() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    let events: Api<Event> = cluster.api("ns");
    // The volume names the claim, which another would suit better.
    let mut reserved = volume("reserved", "9Gi", "Retain");
    reserved["spec"]["claimRef"] = json!({"namespace": "ns", "name": "chosen"});
    create(&volumes, reserved).await;
    create(&volumes, volume("free", "1Gi", "Retain")).await;
    volume_is(&volumes, "reserved", "Available").await;
    volume_is(&volumes, "free", "Available").await;
    create(&claims, claim("chosen", "1Gi")).await;
    claim_is(&claims, "chosen", "Bound").await;
    volume_is(&volumes, "reserved", "Bound").await;
    let reserved = volumes.get("reserved").await.expect("the volume");
    assert_eq!(reserved.metadata.annotations, None, "we did not choose it");
    // The claim names the volume, which is too small at first, and then does not exist at all.
    let mut choosy = claim("choosy", "2Gi");
    choosy["spec"]["volumeName"] = json!("free");
    create(&claims, choosy).await;
    let small = "Cannot bind to requested volume \"free\": requested PV is too small";
    told(&events, "choosy", "VolumeMismatch", small).await;
    let larger = Patch::Merge(json!({"spec": {"capacity": {"storage": "2Gi"}}}));
    let grown = volumes
        .patch("free", &PatchParams::default(), &larger)
        .await;
    grown.expect("grown");
    claim_is(&claims, "choosy", "Bound").await;
    // Whoever takes the finalizer off means it.
    let deleted = volumes.delete("free", &DeleteParams::default()).await;
    deleted.expect("marked");
    let unprotected = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let patched = volumes
        .patch("free", &PatchParams::default(), &unprotected)
        .await;
    patched.expect("let go");
    claim_is(&claims, "choosy", "Lost").await;
    let lost = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    told(&events, "choosy", "ClaimLost", lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_attributes_stays_while_a_claim_names_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let classes: Api<VolumeAttributesClass> = Api::all(cluster.client.clone());
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass",
        "metadata": {"name": "fast"}, "driverName": "d.example", "parameters": {"a": "b"}});
    create(&classes, class).await;
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    let mut named = claim("data", "1Gi");
    if let Some(spec) = named.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("volumeAttributesClassName".to_owned(), json!("fast"));
    }
    create(&claims, named).await;
    let none = "no persistent volumes available for this claim and no storage class is set";
    let events: Api<Event> = cluster.api("ns");
    told(&events, "data", "FailedBinding", none).await;
    let parameters = DeleteParams::default();
    classes
        .delete("fast", &parameters)
        .await
        .expect("told to go");
    let leaving = classes.get("fast").await.expect("it is there");
    assert!(leaving.metadata.deletion_timestamp.is_some());
    claims.delete("data", &parameters).await.expect("deleted");
    gone(&claims, "data").await;
    gone(&classes, "fast").await;
}
