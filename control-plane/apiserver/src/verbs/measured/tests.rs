use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use gantry_store::Store;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::streams::NoNodes;
use crate::usage::UsageSource;
use crate::{ApiServer, ApiServerConfig, Identity};

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
const EVERYWHERE: &str = "/apis/metrics.k8s.io/v1beta1/pods";
const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// Figures of two pods of the cluster, and of one that is not there.
struct Told;

fn used(namespace: &str, name: &str) -> Used {
    Used {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        unix_nanos: 1_767_323_045_000_000_000,
        window: Duration::from_secs(5),
        parts: vec![PartUsage {
            name: "c".to_owned(),
            cpu_nanocores: 1_500_000_001,
            memory_bytes: 64 << 20,
        }],
    }
}

#[async_trait]
impl UsageSource for Told {
    async fn used(&self, of: UsageOf<'_>) -> Result<Vec<Used>, String> {
        let all = match of {
            UsageOf::Nodes(Some("lost")) => return Err("it is dark".to_owned()),
            UsageOf::Nodes(_) => vec![used("", "gone"), used("", "one")],
            UsageOf::Pods { namespace, .. } => ["db", "ghost", "web"]
                .map(|name| used("default", name))
                .into_iter()
                .filter(|used| namespace.is_none_or(|namespace| used.namespace == namespace))
                .collect(),
        };
        Ok(all)
    }
}

struct Cluster(ApiServer);

impl Cluster {
    async fn new() -> Self {
        let config = ApiServerConfig {
            usage: Some(Arc::new(Told)),
            ..ApiServerConfig::default()
        };
        let server = ApiServer::new(config, Store::ephemeral(), Arc::new(NoNodes));
        server.bootstrap(6443).await.expect("bootstrapped");
        let cluster = Self(server);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}});
        cluster.create("/api/v1/nodes", node).await;
        for name in ["db", "idle", "web"] {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": name, "tier": "all"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            });
            cluster.create("/api/v1/namespaces/default/pods", pod).await;
        }
        cluster
    }

    async fn create(&self, path: &str, object: Value) {
        let (status, answer) = self.send(Method::POST, path, "", object).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, "", Value::Null).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        if !accept.is_empty() {
            request = request.header(header::ACCEPT, accept);
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let service = self
            .0
            .local_service(Identity::new("admin", &["system:masters"]));
        let Ok(response) = service
            .oneshot(request.body(body).expect("a request"))
            .await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body");
        let body = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        (status, body)
    }

    async fn names(&self, path: &str) -> Vec<String> {
        let (status, list) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {list}");
        let items = list["items"].as_array().expect("items").iter();
        let names = items.map(|item| item["metadata"]["name"].as_str().unwrap_or_default());
        names.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn figures_are_told_of_what_is_in_the_store() {
    let cluster = Cluster::new().await;
    let (status, list) = cluster.get(PODS).await;
    assert_eq!(status, StatusCode::OK, "{list}");
    assert_eq!(
        (&list["kind"], &list["apiVersion"], &list["metadata"]),
        (
            &json!("PodMetricsList"),
            &json!("metrics.k8s.io/v1beta1"),
            &json!({})
        )
    );
    let expected = json!({
        "metadata": {
            "name": "db", "namespace": "default", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "db", "tier": "all"},
        },
        "timestamp": "2026-01-02T03:04:05Z",
        "window": "5s",
        "containers": [{"name": "c", "usage": {"cpu": "1500000001n", "memory": "64Mi"}}],
    });
    assert_eq!(list["items"][0], expected);
    for path in [PODS, EVERYWHERE] {
        assert_eq!(cluster.names(path).await, ["db", "web"]);
        for (query, names) in [
            ("labelSelector=app%3Dweb", &["web"][..]),
            ("labelSelector=app%21%3Dweb", &["db"][..]),
            ("labelSelector=tier%3Dnone", &[][..]),
            ("fieldSelector=metadata.name%3Ddb", &["db"][..]),
            ("fieldSelector=metadata.namespace%21%3Ddefault", &[][..]),
        ] {
            assert_eq!(cluster.names(&format!("{path}?{query}")).await, names);
        }
    }
    let other = PODS.replace("default", "kube-system");
    assert_eq!(cluster.names(&other).await, [""; 0]);
    assert_eq!(cluster.names(NODES).await, ["one"]);
    let (_, node) = cluster.get(&format!("{NODES}/one")).await;
    assert_eq!(node["kind"], "NodeMetrics");
    assert_eq!(node["usage"]["memory"], "64Mi");
    let (_, pod) = cluster.get(&format!("{PODS}/web")).await;
    assert_eq!(
        (&pod["kind"], &pod["window"]),
        (&json!("PodMetrics"), &json!("5s"))
    );
}

#[tokio::test]
async fn what_cannot_be_had_is_refused() {
    let cluster = Cluster::new().await;
    for (name, why) in [
        ("ghost", "figures of no pod"),
        ("idle", "a pod without figures"),
        ("nobody", "neither"),
    ] {
        let (status, answer) = cluster.get(&format!("{PODS}/{name}")).await;
        let message = format!("podmetrics.metrics.k8s.io \"default/{name}\" not found");
        assert_eq!(status, StatusCode::NOT_FOUND, "{why}");
        assert_eq!(answer["message"], message);
    }
    let (status, answer) = cluster.get(&format!("{NODES}/gone")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let message = "nodemetrics.metrics.k8s.io \"gone\" not found";
    assert_eq!(answer["message"], message);
    for (method, path, status) in [
        (Method::GET, format!("{PODS}?watch=1"), 405),
        (Method::GET, format!("{PODS}?labelSelector=a%20in%20b"), 400),
        (Method::GET, format!("{PODS}?fieldSelector=spec.x%3Dy"), 400),
        (Method::GET, format!("{PODS}/web/status"), 404),
        (Method::GET, format!("{EVERYWHERE}/web"), 404),
        (Method::GET, format!("{NODES}/lost"), 503),
        (Method::POST, PODS.to_owned(), 405),
        (Method::DELETE, format!("{PODS}/web"), 405),
        (Method::DELETE, PODS.to_owned(), 405),
        (Method::PATCH, format!("{NODES}/one"), 405),
    ] {
        let (answered, answer) = cluster.send(method, &path, "", Value::Null).await;
        assert_eq!(answered.as_u16(), status, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_table_has_the_metrics_servers_columns() {
    let cluster = Cluster::new().await;
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for path in [PODS.to_owned(), format!("{PODS}/db")] {
        let (status, table) = cluster.send(Method::GET, &path, table, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{table}");
        let columns = table["columnDefinitions"].as_array().expect("columns");
        let names = columns.iter().map(|column| column["name"].clone());
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["Name", "cpu", "memory", "Window"]
        );
        let row = &table["rows"][0];
        assert_eq!(row["cells"], json!(["db", "1500000001n", "64Mi", "5s"]));
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    }
    let (_, yaml) = cluster
        .send(Method::GET, PODS, "application/yaml", Value::Null)
        .await;
    assert_eq!(yaml, Value::Null, "it is no JSON");
}

#[tokio::test]
async fn who_may_view_may_read_them_and_discovery_tells_of_them() {
    let cluster = Cluster::new().await;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader";
    let (status, role) = cluster.get(path).await;
    assert_eq!(status, StatusCode::OK, "{role}");
    let expected = json!([{
        "apiGroups": ["metrics.k8s.io"], "resources": ["nodes", "pods"],
        "verbs": ["get", "list", "watch"],
    }]);
    assert_eq!(role["rules"], expected);
    for gathered in ["view", "edit", "admin"] {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{gathered}");
        assert_eq!(role["metadata"]["labels"][label], "true");
    }
    let (_, resources) = cluster.get("/apis/metrics.k8s.io/v1beta1").await;
    let expected = json!([
        {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]},
        {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
    ]);
    assert_eq!(resources["resources"], expected);
    let (_, document) = cluster.get("/openapi/v3/apis/metrics.k8s.io/v1beta1").await;
    let schemas = &document["components"]["schemas"];
    assert!(!schemas["io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetricsList"].is_null());
    // Without figures there is no such group.
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let without = Cluster(server);
    let (status, _) = without.get("/apis/metrics.k8s.io").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = without.get(path).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
