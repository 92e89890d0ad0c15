//! Quotas: charged by the API server, counted by their controller.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::common::{Cluster, create, wait};

fn quota(name: &str, hard: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "schedulerName": "none", "containers": [{"name": "c", "image": "x:1"}]}})
}

/// Waits until this is used of a quota.
async fn is_used(quotas: &Api<ResourceQuota>, name: &str, used: Value) {
    let what = format!("{used} is used");
    wait(quotas, name, &what, move |quota: Option<&ResourceQuota>| {
        let status = quota.and_then(|quota| quota.status.as_ref());
        status.is_some_and(|status| json!(status.used) == used)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_counted_and_what_goes_makes_room() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let (quotas, pods): (Api<ResourceQuota>, Api<Pod>) = (cluster.api("ns"), cluster.api("ns"));
    create(&pods, pod("before")).await;
    let hard = json!({"pods": "2", "count/pods": "5", "count/deployments.apps": "1", "services": "1", "services.nodeports": "0"});
    create(&quotas, quota("q", hard)).await;
    let used = |pods: &str, all: &str, deployments: &str, services: &str| {
        json!({"pods": pods, "count/pods": all, "count/deployments.apps": deployments, "services": services,
            "services.nodeports": "0"})
    };
    is_used(&quotas, "q", used("1", "1", "0", "0")).await;
    create(&pods, pod("second")).await;
    let third: Pod = serde_json::from_value(pod("third")).expect("a pod");
    let refused = pods.create(&PostParams::default(), &third).await;
    let refused = refused.expect_err("there is no room").to_string();
    let why = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2";
    assert!(refused.contains(why), "{refused}");
    // One that is through has its place no more, and is still there.
    let failed = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let patched = pods
        .patch_status("before", &PatchParams::default(), &failed)
        .await;
    patched.expect("it failed");
    is_used(&quotas, "q", used("1", "2", "0", "0")).await;
    let gone = DeleteParams::default().grace_period(0);
    pods.delete("second", &gone).await.expect("deleted");
    is_used(&quotas, "q", used("0", "1", "0", "0")).await;
    // Kinds of which nobody knows more than that they are there.
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, crate::workloads::deployment(0, "none")).await;
    is_used(&quotas, "q", used("0", "1", "1", "0")).await;
    deployments
        .delete("web", &DeleteParams::default())
        .await
        .expect("deleted");
    let services: Api<Service> = cluster.api("ns");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {
        "ports": [{"port": 1}]}});
    create(&services, service).await;
    is_used(&quotas, "q", used("0", "1", "0", "1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_says_that_a_quota_holds_it_up_and_goes_on_when_there_is_room() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let quotas: Api<ResourceQuota> = cluster.api("ns");
    create(&quotas, quota("q", json!({"pods": "1"}))).await;
    is_used(&quotas, "q", json!({"pods": "0"})).await;
    let deployments: Api<Deployment> = cluster.api("ns");
    create(&deployments, crate::workloads::deployment(2, "none")).await;
    let refused = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            let message = condition.message.as_deref().unwrap_or_default();
            condition.type_ == "ReplicaFailure" && message.contains("exceeded quota: q")
        })
    };
    wait(&deployments, "web", "it is refused a pod", refused).await;
    let wider = Patch::Merge(json!({"spec": {"hard": {"pods": "2"}}}));
    quotas
        .patch("q", &PatchParams::default(), &wider)
        .await
        .expect("widened");
    is_used(&quotas, "q", json!({"pods": "2"})).await;
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(pods.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_what_is_there_however_many_write_meanwhile() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let (quotas, maps): (Api<ResourceQuota>, Api<ConfigMap>) =
        (cluster.api("ns"), cluster.api("ns"));
    let map = |number: usize| -> ConfigMap {
        let map = json!({"metadata": {"name": format!("m-{number}")}});
        serde_json::from_value(map).expect("a map")
    };
    // Some come before the quota is counted, others while it is, or after.
    let parameters = PostParams::default();
    let before = (0..20).map(|number| {
        let (maps, map, parameters) = (&maps, map(number), &parameters);
        async move { maps.create(parameters, &map).await.is_ok() }
    });
    let begun = create(&quotas, quota("q", json!({"configmaps": "31"})));
    let (made, _) = tokio::join!(futures::future::join_all(before), begun);
    assert!(made.into_iter().all(|made| made));
    // With the certificates that every namespace has.
    is_used(&quotas, "q", json!({"configmaps": "21"})).await;
    let after = (20..40).map(|number| {
        let (maps, map, parameters) = (&maps, map(number), &parameters);
        async move { maps.create(parameters, &map).await.is_ok() }
    });
    let made = futures::future::join_all(after).await;
    assert_eq!(made.into_iter().filter(|made| *made).count(), 10);
    for number in 0..5 {
        let name = format!("m-{number}");
        let deleted = maps.delete(&name, &DeleteParams::default()).await;
        deleted.expect("deleted");
    }
    is_used(&quotas, "q", json!({"configmaps": "26"})).await;
}
