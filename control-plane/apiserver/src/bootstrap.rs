//! What every cluster has from its first moment: the keys that sign tokens, its namespaces, their default service account,
//! its roles and classes of priority, the Service by which pods find the API, and the range that services get their addresses from.

mod endpoints;
pub(crate) mod policy;
mod roles;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use axum::body::Body;
use gantry_api::kinds::priority_class::{self, SystemClass};
use gantry_api::paths;
use gantry_api::status::StatusError;
use gantry_store::Key;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::identity::Identity;
use crate::server::ApiServer;
use crate::tables::{namespace_key, table};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

impl ApiServer {
    /// Creates the objects every cluster has, where they are missing. Servers listen on `port`.
    pub async fn bootstrap(&self, port: u16) -> Result<(), StatusError> {
        run(self, port).await
    }

    /// Brings back what every cluster has and somebody deleted, and says where pods reach the API: the endpoints of the
    /// Service `kubernetes`. Costs next to nothing where all is as it should be.
    pub async fn restore(&self, servers: &[SocketAddr]) -> Result<(), StatusError> {
        restore(self, servers).await
    }

    /// The objects that [`ApiServer::restore`] looks after, for those who watch them.
    pub fn own_objects() -> Vec<Key> {
        own_objects()
    }
}

/// Creates what is missing. Invalid when services have addresses of another range than this server gives.
async fn run(server: &ApiServer, port: u16) -> Result<(), StatusError> {
    server.found_token_keys().await?;
    for namespace in NAMESPACES {
        create_namespace(server, namespace).await?;
        let accounts = paths::namespaced(namespace, &["serviceaccounts"]);
        create(
            server,
            &accounts,
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await?;
    }
    roles::reconcile(server.api()).await?;
    for class in &priority_class::SYSTEM {
        create_priority_class(server, class).await?;
    }
    create_service(server, port).await?;
    let range = create_range(server).await?;
    // A cluster of before may have got a second family. Nothing else of the range can change: that is refused as invalid.
    let path = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let same = json!({"spec": range["spec"]});
    call(server, Method::PATCH, path, &same).await
}

/// What [`restore`] looks after, where the store has it.
fn own_objects() -> Vec<Key> {
    let mut own: Vec<Key> = NAMESPACES.iter().map(|name| namespace_key(name)).collect();
    own.extend(priority_class::SYSTEM.iter().map(priority_class_key));
    own.extend([
        service_key(),
        range_key(),
        key("", "endpoints", "default", "kubernetes"),
        key(
            "discovery.k8s.io",
            "endpointslices",
            "default",
            "kubernetes",
        ),
    ]);
    own
}

fn key(group: &str, plural: &str, namespace: &str, name: &str) -> Key {
    Key {
        table: table(group, plural),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn service_key() -> Key {
    key("", "services", "default", "kubernetes")
}

fn priority_class_key(class: &SystemClass) -> Key {
    key(
        priority_class::GROUP,
        priority_class::PLURAL,
        "",
        class.name,
    )
}

fn range_key() -> Key {
    key("networking.k8s.io", "servicecidrs", "", "kubernetes")
}

/// Brings back what somebody deleted of what every cluster has, and says where pods reach the API, whatever somebody said
/// there. A namespace's own account and certificates are its controller's.
///
/// What cannot be helped now holds up nothing else: the first failure is returned when all was tried.
async fn restore(server: &ApiServer, servers: &[SocketAddr]) -> Result<(), StatusError> {
    let mut outcomes = Vec::new();
    for namespace in NAMESPACES {
        if !server.has(&namespace_key(namespace)) {
            outcomes.push(create_namespace(server, namespace).await);
        }
    }
    for class in &priority_class::SYSTEM {
        if !server.has(&priority_class_key(class)) {
            outcomes.push(create_priority_class(server, class).await);
        }
    }
    if let Some(address) = servers.first()
        && !server.has(&service_key())
    {
        outcomes.push(create_service(server, address.port()).await);
    }
    if !server.has(&range_key()) {
        outcomes.push(create_range(server).await.map(drop));
    }
    outcomes.push(endpoints::publish(server, servers).await);
    outcomes.into_iter().collect()
}

async fn create_namespace(server: &ApiServer, name: &str) -> Result<(), StatusError> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    create(server, "/api/v1/namespaces", &namespace).await
}

async fn create_priority_class(server: &ApiServer, class: &SystemClass) -> Result<(), StatusError> {
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": class.name},
        "value": class.value,
        "description": class.description,
    });
    create(server, "/apis/scheduling.k8s.io/v1/priorityclasses", &class).await
}

/// The Service of the API. No other can have its address meanwhile.
async fn create_service(server: &ApiServer, port: u16) -> Result<(), StatusError> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": server.first_service_address().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    create(server, "/api/v1/namespaces/default/services", &service).await
}

/// The range that services get their addresses from, as it is to be.
async fn create_range(server: &ApiServer) -> Result<Value, StatusError> {
    let range = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": server.service_cidrs()},
    });
    create(server, "/apis/networking.k8s.io/v1/servicecidrs", &range).await?;
    Ok(range)
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

/// The object at a path; none when it is not there.
async fn read(server: &ApiServer, path: &str) -> Result<Option<Value>, StatusError> {
    match request(server, Method::GET, path, Body::empty()).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.code() == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

async fn call(
    server: &ApiServer,
    method: Method,
    path: &str,
    object: &Value,
) -> Result<(), StatusError> {
    let body = Body::from(object.to_string());
    request(server, method, path, body).await.map(drop)
}

async fn request(
    server: &ApiServer,
    method: Method,
    path: &str,
    body: Body,
) -> Result<Value, StatusError> {
    let content_type = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body)
        .map_err(|error| StatusError::internal(error.to_string()))?;
    let system = Identity::of_system("system:apiserver");
    let response = match server.local_service(system).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let code = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if code.is_success() {
        return Ok(answer);
    }
    let message = answer["message"]
        .as_str()
        .unwrap_or("no message")
        .to_owned();
    Err(match code {
        StatusCode::CONFLICT => StatusError::new(409, "AlreadyExists", message, None),
        code => StatusError::new(code.as_u16(), "Invalid", format!("{path}: {message}"), None),
    })
}
