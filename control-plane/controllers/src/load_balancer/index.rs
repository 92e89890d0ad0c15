//! How the cache of services finds those that are balanced here.

use k8s_openapi::api::core::v1::{Service, ServicePort};

use super::plan::{balances, serves};

/// Index of services: those balanced here, all under [`ALL`].
pub(crate) const BALANCED: &str = "balanced";
/// Index of services: the ports of those balanced here, `80/TCP`.
pub(crate) const BALANCED_PORT: &str = "balanced port";
pub(super) const ALL: &str = "";

pub(crate) fn balanced(service: &Service) -> Vec<String> {
    let told = balances(service) || serves(service);
    told.then(|| ALL.to_owned()).into_iter().collect()
}

pub(crate) fn balanced_ports(service: &Service) -> Vec<String> {
    match balances(service) {
        true => ports(service).map(port_text).collect(),
        false => Vec::new(),
    }
}

pub(super) fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let spec = service.spec.iter();
    spec.flat_map(|spec| spec.ports.iter().flatten())
}

fn port_text(port: &ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    format!("{}/{protocol}", port.port)
}
