//! From Service and EndpointSlice objects to what the network programs: pure functions of one service each.

mod names;
mod rules;

use std::net::IpAddr;
use std::sync::Arc;

use gantry_network::{Protocol, ServiceName};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

pub(crate) use names::names;
pub(crate) use rules::{Place, health_check, rules};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A service and its slices.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceObjects {
    /// `None` when it is gone, which its slices may outlive for a moment.
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// The service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ServiceName> {
    let labels = slice.metadata.labels.as_ref()?;
    Some(ServiceName {
        namespace: slice.metadata.namespace.clone()?,
        name: labels.get(SERVICE_LABEL)?.clone(),
    })
}

/// The addresses that new connections are sent to by choice. Those that only serve for want of others are left out,
/// since nothing would ever take their place.
pub(crate) fn offered(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    let endpoints = slice.endpoints.iter().flatten();
    endpoints
        .filter(|endpoint| is_ready(endpoint))
        .flat_map(|endpoint| endpoint.addresses.iter())
        .filter_map(|address| address.parse().ok())
}

/// Slices say so also of endpoints that are not, where `publishNotReadyAddresses` asks for it.
fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// The ClusterIPs, one for each address family; none for a headless service or one of type ExternalName.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_ref();
    let mut ips: Vec<IpAddr> = first
        .into_iter()
        .chain(all)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

fn slice_port<'a>(
    slice: &'a EndpointSlice,
    name: &str,
    wanted: Protocol,
) -> Option<&'a EndpointPort> {
    let ports = slice.ports.iter().flatten();
    ports
        .filter(|port| protocol(port.protocol.as_deref()) == wanted)
        .find(|port| port.name.as_deref().unwrap_or_default() == name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A service `shop/web`.
    pub(super) fn service(spec: Value) -> ServiceObjects {
        let value = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        ServiceObjects {
            service: Some(serde_json::from_value(value).unwrap()),
            slices: Vec::new(),
        }
    }

    pub(super) fn cluster_ip() -> Value {
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    }

    impl ServiceObjects {
        /// With one more slice of these endpoints.
        pub(super) fn with(mut self, endpoints: Value) -> Self {
            let ipv6 = endpoints.to_string().contains("::");
            let value = json!({
                "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_LABEL: "web"}},
                "addressType": if ipv6 { "IPv6" } else { "IPv4" },
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints
            });
            self.slices.push(serde_json::from_value(value).unwrap());
            self
        }
    }
}
