//! What every cluster has from its first moment: the keys that sign tokens, its namespaces, their default service account,
//! its roles, the Service by which pods find the API, and the range that services get their addresses from.

pub(crate) mod policy;
mod roles;

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use gantry_api::paths;
use gantry_api::status::StatusError;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::identity::Identity;
use crate::server::ApiServer;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing. Invalid when services have addresses of another range than this server gives.
pub(crate) async fn run(server: &ApiServer, port: u16) -> Result<(), StatusError> {
    server.found_token_keys().await?;
    for namespace in NAMESPACES {
        create(
            server,
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        )
        .await?;
        let accounts = paths::namespaced(namespace, &["serviceaccounts"]);
        create(
            server,
            &accounts,
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await?;
    }
    roles::reconcile(server.api()).await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": server.first_service_address().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    create(server, "/api/v1/namespaces/default/services", &service).await?;
    let range = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": server.service_cidrs()},
    });
    let collection = "/apis/networking.k8s.io/v1/servicecidrs";
    create(server, collection, &range).await?;
    // A cluster of before may have got a second family. Nothing else of the range can change: that is refused as invalid.
    let path = format!("{collection}/kubernetes");
    let same = json!({"spec": range["spec"]});
    call(server, Method::PATCH, &path, &same).await
}

/// Says in the API's own Endpoints and EndpointSlice where pods reach it. The servers of a cluster share one port; one
/// that listens elsewhere than the first is left out.
pub(crate) async fn publish(server: &ApiServer, servers: &[SocketAddr]) -> Result<(), StatusError> {
    // Pods could not reach a server that has no other address than loopback.
    let reachable = servers.iter().filter(|address| !address.ip().is_loopback());
    let Some(port) = reachable.clone().next().map(SocketAddr::port) else {
        return Ok(());
    };
    let addresses: Vec<IpAddr> = reachable
        .filter(|address| address.port() == port)
        .map(SocketAddr::ip)
        .collect();
    let ready = |address: &IpAddr| json!({"addresses": [address.to_string()], "conditions": {"ready": true}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(ready).collect::<Vec<Value>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    put(
        server,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        &slice,
    )
    .await?;
    let listed = |address: &IpAddr| json!({"ip": address.to_string()});
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": addresses.iter().map(listed).collect::<Vec<Value>>(),
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    });
    put(server, "/api/v1/namespaces/default/endpoints", &endpoints).await
}

/// Creates an object named `kubernetes`, or replaces it.
async fn put(server: &ApiServer, collection: &str, object: &Value) -> Result<(), StatusError> {
    create(server, collection, object).await?;
    call(
        server,
        Method::PUT,
        &format!("{collection}/kubernetes"),
        object,
    )
    .await
}

async fn create(server: &ApiServer, path: &str, object: &Value) -> Result<(), StatusError> {
    match call(server, Method::POST, path, object).await {
        Err(error) if error.code() == 409 => Ok(()),
        // An address that an earlier run gave to the same Service.
        Err(error) if error.code() == 422 && error.message().contains("already allocated") => {
            Ok(())
        }
        other => other,
    }
}

async fn call(
    server: &ApiServer,
    method: Method,
    path: &str,
    object: &Value,
) -> Result<(), StatusError> {
    let content_type = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(Body::from(object.to_string()))
        .map_err(|error| StatusError::internal(error.to_string()))?;
    let system = Identity::of_system("system:apiserver");
    let response = match server.local_service(system).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if response.status().is_success() {
        return Ok(());
    }
    let code = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = status["message"]
        .as_str()
        .unwrap_or("no message")
        .to_owned();
    Err(match code {
        StatusCode::CONFLICT => StatusError::new(409, "AlreadyExists", message, None),
        code => StatusError::new(code.as_u16(), "Invalid", format!("{path}: {message}"), None),
    })
}
