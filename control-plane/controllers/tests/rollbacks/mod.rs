//! Revisions that take themselves back, on a whole control plane.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{CRASHING, Cluster, create, wait, wait_list};
use crate::workloads::{complete, deployment, set_image};

pub(crate) fn image(deployment: &Deployment) -> Option<&str> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.first()?.image.as_deref()
}

pub(crate) fn condition<'a>(deployment: &'a Deployment, type_: &str) -> Option<(&'a str, &'a str)> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == type_)?;
    Some((
        found.status.as_str(),
        found.reason.as_deref().unwrap_or_default(),
    ))
}

pub(crate) fn annotated(mut object: Value, annotations: Value) -> Value {
    object["metadata"]["annotations"] = annotations;
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_revision_takes_itself_back_and_no_pod_that_works_goes() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let web = annotated(
        deployment(3, "default-scheduler"),
        json!({"gantry.dev/auto-rollback": "true"}),
    );
    create(&deployments, web).await;
    let healthy = |deployment: Option<&Deployment>| {
        let annotations =
            deployment.and_then(|deployment| deployment.metadata.annotations.as_ref());
        annotations.is_some_and(|all| all.contains_key("gantry.dev/healthy-template"))
    };
    wait(&deployments, "web", "it is complete", complete(3)).await;
    wait(&deployments, "web", "that is remembered", healthy).await;
    let before: Vec<Pod> = cluster.list("ns").await;
    set_image(&deployments, CRASHING).await;
    let is_back = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            image(deployment) == Some("nginx:1")
                && condition(deployment, "RolledBack") == Some(("True", "CrashLoopBackOff"))
        })
    };
    wait(&deployments, "web", "it is back", is_back).await;
    wait(&deployments, "web", "it is complete again", complete(3)).await;
    let web = deployments.get("web").await.expect("the deployment");
    assert_eq!(
        condition(&web, "Progressing"),
        Some(("False", "ProgressDeadlineExceeded")),
        "whoever waits for the rollout learns that it failed"
    );
    let after: Vec<Pod> = cluster.list("ns").await;
    for pod in &before {
        let still = after
            .iter()
            .any(|other| other.metadata.uid == pod.metadata.uid);
        assert!(still, "{:?} was healthy, and is gone", pod.metadata.name);
    }
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        events.iter().any(|event| {
            let message = event.message.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("RolledBack")
                && event.type_.as_deref() == Some("Warning")
                && message.starts_with("Revision 2 failed and was taken back to revision 1: pod web-")
                && message.ends_with("container c: CrashLoopBackOff: back-off 10s; last ended with exit code 1 (Error): no database")
        })
    };
    wait_list(
        &events,
        "involvedObject.kind=Deployment",
        "it is told",
        told,
    )
    .await;
    // The same template is wanted again, and not tried.
    let sets: Vec<ReplicaSet> = cluster.list("ns").await;
    let generation = web.metadata.generation;
    set_image(&deployments, CRASHING).await;
    let is_refused = move |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            // Once for what was wanted, and once for what became of it.
            let passed = deployment.metadata.generation >= generation.map(|number| number + 2);
            passed && image(deployment) == Some("nginx:1")
        })
    };
    wait(&deployments, "web", "it is not tried again", is_refused).await;
    let now: Vec<ReplicaSet> = cluster.list("ns").await;
    assert_eq!(now.len(), sets.len());
    // Another one is.
    set_image(&deployments, "nginx:2").await;
    let is_over = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            condition(deployment, "RolledBack").is_none()
                && condition(deployment, "Progressing") == Some(("True", "NewReplicaSetAvailable"))
        })
    };
    wait(&deployments, "web", "another one is rolled out", is_over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_speaks_for_its_deployments_and_a_malformed_word_is_told() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let web = annotated(
        deployment(1, "default-scheduler"),
        json!({"gantry.dev/keep-warm": "for a while"}),
    );
    create(&deployments, web).await;
    let is_told = |deployment: Option<&Deployment>| {
        let told = deployment.and_then(|deployment| condition(deployment, "InvalidAnnotations"));
        told == Some(("True", "InvalidAnnotation"))
    };
    wait(&deployments, "web", "it is told", is_told).await;
    wait(
        &deployments,
        "web",
        "it is rolled out all the same",
        complete(1),
    )
    .await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let patch =
        Patch::Merge(json!({"metadata": {"annotations": {"gantry.dev/auto-rollback": "true"}}}));
    namespaces
        .patch("ns", &PatchParams::default(), &patch)
        .await
        .expect("the namespace's word");
    let heeded = |deployment: Option<&Deployment>| {
        let annotations =
            deployment.and_then(|deployment| deployment.metadata.annotations.as_ref());
        annotations.is_some_and(|all| all.contains_key("gantry.dev/healthy-template"))
    };
    wait(&deployments, "web", "the namespace is heeded", heeded).await;
    set_image(&deployments, CRASHING).await;
    let is_back = |deployment: Option<&Deployment>| {
        deployment.is_some_and(|deployment| {
            let rolled_back = condition(deployment, "RolledBack");
            rolled_back.is_some() && image(deployment) == Some("nginx:1")
        })
    };
    wait(&deployments, "web", "it is back", is_back).await;
}
