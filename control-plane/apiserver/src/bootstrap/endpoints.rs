//! Where pods reach the API: the EndpointSlice and the Endpoints of the Service `kubernetes`.

use std::net::{IpAddr, SocketAddr};

use gantry_api::json::Members;
use gantry_api::status::StatusError;
use http::Method;
use serde_json::{Value, json};

use super::{call, create, read};
use crate::server::ApiServer;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const OWN_ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// Says in both forms where pods reach the API. The servers of a cluster share one port; one that listens elsewhere than
/// the first is left out.
pub(super) async fn publish(server: &ApiServer, servers: &[SocketAddr]) -> Result<(), StatusError> {
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
    // What a slice has addresses of cannot be changed.
    let known = read(server, SLICE).await?;
    if known.is_some_and(|known| known["addressType"] != slice["addressType"]) {
        call(server, Method::DELETE, SLICE, &json!({})).await?;
    }
    keep(server, SLICES, SLICE, &slice, &["endpoints", "ports"]).await?;
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
    keep(server, ENDPOINTS, OWN_ENDPOINTS, &endpoints, &["subsets"]).await
}

/// Creates the object, or sets right those of its fields, and its labels. What else somebody gave it stays.
async fn keep(
    server: &ApiServer,
    collection: &str,
    path: &str,
    wanted: &Value,
    fields: &[&str],
) -> Result<(), StatusError> {
    let Some(known) = read(server, path).await? else {
        return create(server, collection, wanted).await;
    };
    let mended = mended(&known, wanted, fields);
    if mended == known {
        return Ok(());
    }
    call(server, Method::PUT, path, &mended).await
}

fn mended(known: &Value, wanted: &Value, fields: &[&str]) -> Value {
    let mut mended = known.clone();
    for field in fields {
        *mended.member(&[*field]) = wanted[*field].clone();
    }
    let labels = wanted["metadata"]["labels"].as_object();
    for (label, value) in labels.into_iter().flatten() {
        *mended.member(&["metadata", "labels", label.as_str()]) = value.clone();
    }
    mended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_beside_stays_and_what_is_wrong_goes() {
        let wanted = json!({
            "metadata": {"name": "kubernetes", "labels": {"a": "b"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}],
        });
        let known = json!({
            "metadata": {"name": "kubernetes", "uid": "u", "labels": {"a": "spoiled", "mine": "c"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.2"}]}],
        });
        let expected = json!({
            "metadata": {"name": "kubernetes", "uid": "u", "labels": {"a": "b", "mine": "c"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}],
        });
        let found = mended(&known, &wanted, &["subsets"]);
        assert_eq!(found, expected);
        assert_eq!(mended(&found, &wanted, &["subsets"]), found);
    }
}
