//! What tests through the whole API share: a server with what every cluster has, and requests to it.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::streams::NoNodes;
use crate::{ApiServer, ApiServerConfig, Identity};

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE: &str = "application/merge-patch+json";

/// A server without nodes.
pub(crate) async fn server() -> ApiServer {
    server_of(ApiServerConfig::default()).await
}

pub(crate) async fn server_of(config: ApiServerConfig) -> ApiServer {
    let store = gantry_store::Store::ephemeral();
    let server = ApiServer::new(config, store, Arc::new(NoNodes));
    server.bootstrap(6443).await.expect("bootstrapped");
    server
}

/// What the administrator's request is answered. `sort` is the body's media type.
pub(crate) async fn ask(
    server: &ApiServer,
    method: Method,
    uri: &str,
    sort: &str,
    body: impl Into<Body>,
) -> Response<Body> {
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, sort)
        .body(body.into())
        .expect("a request");
    let Ok(response) = server.local_service(administrator).oneshot(request).await;
    response
}

/// Status and body of an answer in JSON to a request in JSON. A patch is a merge; null is no body.
pub(crate) async fn send(
    server: &ApiServer,
    method: Method,
    uri: &str,
    body: Value,
) -> (u16, Value) {
    let sort = match method {
        Method::PATCH => MERGE,
        _ => JSON,
    };
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let response = ask(server, method, uri, sort, body).await;
    let status = response.status().as_u16();
    (status, told(response).await)
}

/// The JSON of an answer.
pub(crate) async fn told(response: Response<Body>) -> Value {
    let body = response.into_body().collect().await.expect("a body");
    serde_json::from_slice(&body.to_bytes()).expect("JSON")
}
