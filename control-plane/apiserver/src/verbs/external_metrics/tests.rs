use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use gantry_store::Store;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::external_metrics::ExternalMetric;
use crate::streams::NoNodes;
use crate::{ApiServer, ApiServerConfig, Identity};

const GROUP_PATH: &str = "/apis/external.metrics.k8s.io";

/// Each namespace has a metric `depth` of two queues, and one that nobody can tell.
struct Told;

#[async_trait]
impl ExternalMetrics for Told {
    async fn series(
        &self,
        namespace: &str,
        metric: &str,
    ) -> Result<Vec<ExternalMetric>, NoExternalMetric> {
        match metric {
            "depth" => {}
            "dark" => return Err(NoExternalMetric::Unavailable("it is dark".to_owned())),
            _ => {
                return Err(NoExternalMetric::Unknown(format!(
                    "no {metric} in {namespace}"
                )));
            }
        }
        let series = [("a", 1500), ("b", 2000)].map(|(queue, millis)| ExternalMetric {
            labels: [("queue".to_owned(), queue.to_owned())].into(),
            millis,
            unix_nanos: 1_767_323_045_000_000_000,
        });
        Ok(series.into())
    }
}

async fn server(source: Option<Arc<dyn ExternalMetrics>>) -> ApiServer {
    let config = ApiServerConfig {
        external_metrics: source,
        ..ApiServerConfig::default()
    };
    let server = ApiServer::new(config, Store::ephemeral(), Arc::new(NoNodes));
    server.bootstrap(6443).await.expect("bootstrapped");
    server
}

async fn send(server: &ApiServer, group: &str, method: Method, path: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method);
    let request = request.uri([GROUP_PATH, path].concat()).body(Body::empty());
    let identity = Identity::new("somebody", &[group]);
    let service = server.local_service(identity);
    let Ok(response) = service.oneshot(request.expect("a request")).await;
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body");
    (
        status,
        serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
    )
}

async fn get(server: &ApiServer, path: &str) -> (StatusCode, Value) {
    send(server, "system:masters", Method::GET, path).await
}

#[tokio::test]
async fn a_metric_has_the_series_that_are_selected() {
    let server = server(Some(Arc::new(Told))).await;
    let (status, list) = get(&server, "/v1beta1/namespaces/default/depth").await;
    assert_eq!((status, &list["kind"]), (StatusCode::OK, &json!(KIND)));
    let values: Vec<&Value> = (0..3).map(|at| &list["items"][at]["value"]).collect();
    assert_eq!(values, [&json!("1500m"), &json!("2"), &Value::Null]);
    let (_, list) = get(
        &server,
        "/v1beta1/namespaces/default/depth?labelSelector=queue%3Db",
    )
    .await;
    assert_eq!(list["items"][0]["metricLabels"]["queue"], "b");
    assert!(list["items"][1].is_null());
    let (status, _) = get(
        &server,
        "/v1beta1/namespaces/default/depth?labelSelector=%3D",
    )
    .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_there_is_not_is_told() {
    let server = server(Some(Arc::new(Told))).await;
    let base = "/v1beta1/namespaces/default";
    for (path, code, message) in [
        ("/other", 404, "no other in default"),
        ("/dark", 503, "it is dark"),
        ("/depth/name", 404, ""),
    ] {
        let (status, answer) = get(&server, &[base, path].concat()).await;
        assert_eq!(status.as_u16(), code, "{path}: {answer}");
        let said = answer["message"].as_str().unwrap_or_default();
        assert!(said.contains(message), "{path}: {said}");
    }
    let (status, _) = get(&server, "/v1beta1/depth").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let path = [base, "/depth"].concat();
    let (status, _) = send(&server, "system:masters", Method::POST, &path).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, _) = send(&server, "system:authenticated", Method::GET, &path).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_group_is_there_where_it_is_served() {
    let served = server(Some(Arc::new(Told))).await;
    let (status, list) = get(&served, "/v1beta1").await;
    assert_eq!(
        (status, &list["kind"]),
        (StatusCode::OK, &json!("APIResourceList"))
    );
    let (status, group) = get(&served, "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(group["preferredVersion"]["version"], "v1beta1");
    let bare = server(None).await;
    for path in ["", "/v1beta1", "/v1beta1/namespaces/default/depth"] {
        let (status, _) = get(&bare, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
}
