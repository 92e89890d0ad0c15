use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use gantry_store::Store;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::custom_metrics::ObjectMetric;
use crate::streams::NoNodes;
use crate::{ApiServer, ApiServerConfig, Identity};

const V2: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const V1: &str = "/apis/custom.metrics.k8s.io/v1beta1";

/// Pods have a metric by the length of their names, but for one; a service and a namespace have it too.
struct Told;

#[async_trait]
impl CustomMetrics for Told {
    async fn served(&self) -> Result<Vec<ServedMetric>, String> {
        let served = |resource: &str, namespaced| ServedMetric {
            resource: resource.to_owned(),
            namespaced,
            metric: "load".to_owned(),
        };
        Ok(vec![
            served("services", true),
            served("pods", true),
            served("namespaces", false),
            served("pods", true),
        ])
    }

    async fn values(&self, of: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
        match (of.metric, of.resource) {
            ("load", "pods" | "services" | "namespaces") => {}
            ("dark", _) => return Err(NoMetric::Unavailable("it is dark".to_owned())),
            _ => return Err(NoMetric::Unknown),
        }
        let named = of.objects.iter().rev().filter(|name| *name != "idle");
        let series = named.filter(|_| of.selector.matches(|_| None));
        Ok(series
            .map(|name| ObjectMetric {
                object: name.clone(),
                millis: 500 * i64::try_from(name.len()).unwrap_or_default(),
                unix_nanos: 1_767_323_045_000_000_000,
                window: Some(Duration::from_secs(3)),
            })
            .collect())
    }
}

struct Cluster(ApiServer);

impl Cluster {
    async fn new(source: Option<Arc<dyn CustomMetrics>>) -> Self {
        let config = ApiServerConfig {
            custom_metrics: source,
            ..ApiServerConfig::default()
        };
        let server = ApiServer::new(config, Store::ephemeral(), Arc::new(NoNodes));
        server.bootstrap(6443).await.expect("bootstrapped");
        let cluster = Self(server);
        for name in ["db", "idle", "web"] {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            });
            let path = "/api/v1/namespaces/default/pods";
            let (status, answer) = cluster.send(Method::POST, path, pod).await;
            assert_eq!(status, StatusCode::CREATED, "{answer}");
        }
        cluster
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, Value::Null).await
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.send_as("system:masters", method, path, body).await
    }

    async fn send_as(
        &self,
        group: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let identity = Identity::new("somebody", &[group]);
        let service = self.0.local_service(identity);
        let Ok(response) = service
            .oneshot(request.body(body).expect("a request"))
            .await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body");
        let body = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        (status, body)
    }
}

#[tokio::test]
async fn a_metric_of_one_object_or_of_all_that_are_selected() {
    let cluster = Cluster::new(Some(Arc::new(Told))).await;
    let (status, list) = cluster
        .get(&format!("{V2}/namespaces/default/pods/web/load"))
        .await;
    assert_eq!(status, StatusCode::OK, "{list}");
    let expected = json!({
        "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {},
        "items": [{
            "describedObject": {"kind": "Pod", "namespace": "default", "name": "web", "apiVersion": "v1"},
            "metric": {"name": "load", "selector": null},
            "timestamp": "2026-01-02T03:04:05Z", "windowSeconds": 3, "value": "1500m",
        }],
    });
    assert_eq!(list, expected);
    for version in [V1, V2] {
        for (query, names) in [
            ("", &["db", "web"][..]),
            ("?labelSelector=app%3Dweb", &["web"][..]),
            ("?labelSelector=app%21%3Dweb", &["db"][..]),
            ("?labelSelector=app%3Dnone", &[][..]),
            ("?metricLabelSelector=verb%3DGET", &[][..]),
        ] {
            for all in ["*", "%2A"] {
                let path = format!("{version}/namespaces/default/pods/{all}/load{query}");
                let (status, list) = cluster.get(&path).await;
                assert_eq!(status, StatusCode::OK, "{path}: {list}");
                let items = list["items"].as_array().expect("items").iter();
                let found: Vec<&str> = items
                    .filter_map(|item| item["describedObject"]["name"].as_str())
                    .collect();
                assert_eq!(found, names, "{path}");
            }
        }
    }
    for (path, kind, name) in [
        ("namespaces/default/services/front/load", "Service", "front"),
        ("namespaces/default/metrics/load", "Namespace", "default"),
        ("namespaces/default/load", "", ""),
    ] {
        let (status, list) = cluster.get(&format!("{V2}/{path}")).await;
        if kind.is_empty() {
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {list}");
            continue;
        }
        let of = &list["items"][0]["describedObject"];
        assert_eq!((&of["kind"], &of["name"]), (&json!(kind), &json!(name)));
    }
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_in_the_adapters_words() {
    let cluster = Cluster::new(Some(Arc::new(Told))).await;
    for (path, status, message) in [
        (
            "pods/*/hits",
            404,
            "the server could not find the metric hits for pods",
        ),
        (
            "pods/web/hits",
            404,
            "the server could not find the metric hits for pods",
        ),
        (
            "pods/idle/load",
            404,
            "the server could not find the metric load for pods idle",
        ),
        (
            "pods/web/load?metricLabelSelector=verb%3DGET",
            404,
            "the server could not find the metric load for pods web with selector verb=GET",
        ),
        (
            "deployments.apps/web/load",
            404,
            "the server could not find the metric load for deployments.apps",
        ),
        ("pods/web/dark", 503, "no metrics can be had: it is dark"),
        (
            "pods",
            404,
            "the server could not find the requested resource",
        ),
        (
            "pods/web",
            404,
            "the server could not find the requested resource",
        ),
        (
            "pods/web/load/more",
            404,
            "the server could not find the requested resource",
        ),
    ] {
        let (answered, answer) = cluster
            .get(&format!("{V2}/namespaces/default/{path}"))
            .await;
        assert_eq!(answered.as_u16(), status, "{path}: {answer}");
        assert_eq!(answer["message"], message, "{path}");
    }
    let load = format!("{V2}/namespaces/default/pods/web/load");
    for (method, path, status) in [
        (
            Method::GET,
            format!("{load}?metricLabelSelector=a%20in%20b"),
            400,
        ),
        (
            Method::GET,
            load.replace("/web/", "/*/") + "?labelSelector=a%20in%20b",
            400,
        ),
        (Method::GET, load.replace("v1beta2", "v1"), 404),
        (
            Method::GET,
            load.replace("/namespaces/", "/watch/namespaces/"),
            404,
        ),
        (Method::DELETE, load.clone(), 405),
        (Method::POST, load, 405),
    ] {
        let (answered, answer) = cluster.send(method, &path, Value::Null).await;
        assert_eq!(answered.as_u16(), status, "{path}: {answer}");
    }
}

#[tokio::test]
async fn discovery_tells_what_is_served_and_who_may_view_may_read_it() {
    let cluster = Cluster::new(Some(Arc::new(Told))).await;
    let (_, group) = cluster.get("/apis/custom.metrics.k8s.io").await;
    let preferred = &group["preferredVersion"]["groupVersion"];
    assert_eq!(preferred, "custom.metrics.k8s.io/v1beta2");
    assert_eq!(group["versions"].as_array().map(Vec::len), Some(2));
    for version in [V1, V2] {
        let (_, list) = cluster.get(version).await;
        let resource = |name: &str, namespaced: bool| {
            json!({
                "name": name, "singularName": "", "namespaced": namespaced,
                "kind": "MetricValueList", "verbs": ["get"],
            })
        };
        let expected = json!([
            resource("namespaces/load", false),
            resource("pods/load", true),
            resource("services/load", true),
        ]);
        assert_eq!(list["resources"], expected);
    }
    let (status, _) = cluster.get("/apis/custom.metrics.k8s.io/v1").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "loads"},
        "rules": [{"apiGroups": ["custom.metrics.k8s.io"], "resources": ["pods/load"], "verbs": ["get"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "loads"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "loads"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "readers"}],
    });
    for (plural, object) in [("roles", role), ("rolebindings", binding)] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/default/{plural}");
        let (status, answer) = cluster.send(Method::POST, &path, object).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }
    for (path, status) in [
        ("pods/web/load", StatusCode::OK),
        ("pods/*/load", StatusCode::OK),
        ("pods/web/hits", StatusCode::FORBIDDEN),
        ("services/web/load", StatusCode::FORBIDDEN),
        ("metrics/load", StatusCode::FORBIDDEN),
    ] {
        let path = format!("{V2}/namespaces/default/{path}");
        let (answered, answer) = cluster
            .send_as("readers", Method::GET, &path, Value::Null)
            .await;
        assert_eq!(answered, status, "{path}: {answer}");
    }
    // Without a source there is no such group.
    let without = Cluster::new(None).await;
    for path in ["/apis/custom.metrics.k8s.io", V2] {
        assert_eq!(without.get(path).await.0, StatusCode::NOT_FOUND);
    }
    let path = format!("{V2}/namespaces/default/pods/web/load");
    assert_eq!(without.get(&path).await.0, StatusCode::NOT_FOUND);
}
