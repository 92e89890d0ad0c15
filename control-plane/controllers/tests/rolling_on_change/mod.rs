//! Workloads that roll when what they are configured by changes, on a whole control plane.

use gantry_controllers::ControllersConfig;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{Cluster, create, wait, wait_list};

const ASKS: &str = "gantry.dev/roll-on-change";

/// A workload whose pods name a ConfigMap and a Secret.
fn workload(kind: &str, name: &str) -> Value {
    let container = json!({
        "name": "c", "image": "nginx:1",
        "envFrom": [{"configMapRef": {"name": "settings"}}],
    });
    json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {ASKS: "true"}},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [container],
                    "volumes": [{"name": "key", "secret": {"secretName": "key", "optional": true}}],
                },
            },
        },
    })
}

async fn patch<K>(api: &Api<K>, name: &str, change: Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let patch = Patch::Merge(change);
    let patched = api.patch(name, &PatchParams::default(), &patch).await;
    patched.expect("changed");
}

/// What its template says that it was rolled for, and what the workload itself.
fn said(deployment: Option<&Deployment>) -> (Option<String>, Option<String>) {
    let Some(deployment) = deployment else {
        return (None, None);
    };
    let spec = deployment.spec.as_ref().expect("a spec");
    let template = spec.template.metadata.as_ref();
    let of = |annotations: Option<&std::collections::BTreeMap<String, String>>, name: &str| {
        annotations.and_then(|annotations| annotations.get(name).cloned())
    };
    (
        of(
            template.and_then(|metadata| metadata.annotations.as_ref()),
            "gantry.dev/configuration",
        ),
        of(
            deployment.metadata.annotations.as_ref(),
            "gantry.dev/rolled-for",
        ),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_rolls_when_what_its_pods_name_changes_and_only_then() {
    let mut cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let maps: Api<ConfigMap> = cluster.api("ns");
    let secrets: Api<Secret> = cluster.api("ns");
    let deployments: Api<Deployment> = cluster.api("ns");
    let sets: Api<StatefulSet> = cluster.api("ns");
    create(&deployments, workload("Deployment", "web")).await;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": "a"},
    });
    create(&maps, settings).await;
    create(&sets, workload("StatefulSet", "db")).await;
    let is_noted = |deployment: Option<&Deployment>| matches!(said(deployment), (None, Some(_)));
    wait(&deployments, "web", "what there is to be noted", is_noted).await;
    let is_noted = |set: Option<&StatefulSet>| {
        let annotations = set.and_then(|set| set.metadata.annotations.as_ref());
        annotations.is_some_and(|all| all.contains_key("gantry.dev/rolled-for"))
    };
    wait(&sets, "db", "what there is to be noted", is_noted).await;
    let first = said(deployments.get_opt("web").await.expect("known").as_ref()).1;

    patch(&maps, "settings", json!({"data": {"mode": "b"}})).await;
    let is_rolled = |before: Option<String>| {
        move |deployment: Option<&Deployment>| {
            let (template, own) = said(deployment);
            template.is_some() && template == own && own != before
        }
    };
    wait(&deployments, "web", "it rolls", is_rolled(first)).await;
    let rolled = |set: Option<&StatefulSet>| {
        let spec = set.and_then(|set| set.spec.as_ref());
        let template = spec.and_then(|spec| spec.template.metadata.as_ref());
        let annotations = template.and_then(|metadata| metadata.annotations.as_ref());
        annotations.is_some_and(|all| all.contains_key("gantry.dev/configuration"))
    };
    wait(&sets, "db", "the other rolls as well", rolled).await;
    let events: Api<Event> = cluster.api("ns");
    let is_told = |events: &[Event]| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("RolledOnChange")
                && event.message.as_deref() == Some("ConfigMap settings has changed")
        })
    };
    wait_list(&events, "", "it is told", is_told).await;

    // Another label changes nothing that pods could see: it is noted, and a Secret that comes rolls them.
    let second = said(deployments.get_opt("web").await.expect("known").as_ref());
    patch(
        &maps,
        "settings",
        json!({"metadata": {"labels": {"team": "a"}}}),
    )
    .await;
    let (template, own) = second.clone();
    let only_noted = move |deployment: Option<&Deployment>| {
        let now = said(deployment);
        now.0 == template && now.1 != own
    };
    wait(&deployments, "web", "a label to be noted", only_noted).await;
    let before = said(deployments.get_opt("web").await.expect("known").as_ref()).1;
    let key = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "x"},
    });
    create(&secrets, key).await;
    wait(
        &deployments,
        "web",
        "it rolls for a Secret",
        is_rolled(before),
    )
    .await;

    // Whoever leads next sees what has changed meanwhile.
    let before = said(deployments.get_opt("web").await.expect("known").as_ref()).1;
    cluster.lead(ControllersConfig::new("PEM"));
    patch(&secrets, "key", json!({"stringData": {"key": "y"}})).await;
    wait(&deployments, "web", "it rolls again", is_rolled(before)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_that_says_neither_yes_nor_no_is_told() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let deployments: Api<Deployment> = cluster.api("ns");
    let mut web = workload("Deployment", "web");
    if let Some(annotations) = web.pointer_mut("/metadata/annotations") {
        *annotations = json!({ASKS: "always"});
    }
    create(&deployments, web).await;
    let events: Api<Event> = cluster.api("ns");
    let is_told = |events: &[Event]| {
        events.iter().any(|event| {
            let message = event.message.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("InvalidAnnotation") && message.contains("\"always\"")
        })
    };
    wait_list(&events, "", "it is told", is_told).await;
}
