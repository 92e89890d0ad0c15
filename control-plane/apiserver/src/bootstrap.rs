//! What every cluster has from its first moment: its namespaces, their default service account, and the Service by
//! which pods find the API.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use gantry_api::status::StatusError;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::identity::Identity;
use crate::server::ApiServer;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing. The servers' addresses are kept up to date in the API's own EndpointSlice.
pub(crate) async fn run(server: &ApiServer, servers: &[SocketAddr]) -> Result<(), StatusError> {
    for namespace in NAMESPACES {
        create(
            server,
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        )
        .await?;
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        create(
            server,
            &accounts,
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await?;
    }
    let port = servers.first().map_or(6443, SocketAddr::port);
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
    // Pods could not reach a server that has no other address than loopback.
    let addresses: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
    let reachable = addresses.iter().filter(|address| !address.is_loopback());
    let endpoints: Vec<Value> = reachable
        .map(|address| json!({"addresses": [address.to_string()], "conditions": {"ready": true}}))
        .collect();
    if endpoints.is_empty() {
        return Ok(());
    }
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    create(server, slices, &slice).await?;
    call(server, Method::PUT, &format!("{slices}/kubernetes"), &slice).await?;
    Ok(())
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
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Body::from(object.to_string()))
        .map_err(|error| StatusError::internal(error.to_string()))?;
    let system = Identity::new("system:apiserver", &["system:masters"]);
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
