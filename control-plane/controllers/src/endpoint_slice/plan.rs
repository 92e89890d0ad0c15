//! The pure part: from a service and its pods to the slices as they should be.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::claim::controller_reference;
use crate::pods::{is_finished, is_ready};
use crate::selection::SERVICE_NAME;

pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// A slice holds at most this many endpoints, so that one change moves little.
const PER_SLICE: usize = 100;

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<EndpointSlice>,
}

/// The ports of a slice, by name.
type Ports = Vec<EndpointPort>;

/// Compares the slices there are with the endpoints there should be. `zones` maps nodes to their zones;
/// `last_change` is when the latest cause of a change occurred, when known.
pub(crate) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    zones: &BTreeMap<String, String>,
    existing: &[Arc<EndpointSlice>],
    last_change: Option<&str>,
) -> Plan {
    let mut plan = Plan::default();
    let families = families(service);
    for slice in existing {
        if !families.contains(&slice.address_type.as_str()) {
            plan.delete.push((**slice).clone());
        }
    }
    for family in families {
        let mut wanted: BTreeMap<String, (Ports, Vec<Endpoint>)> = BTreeMap::new();
        for pod in pods {
            if let Some(endpoint) = endpoint(service, pod, zones, family) {
                let ports = ports(service, pod);
                wanted
                    .entry(ports_key(&ports))
                    .or_insert_with(|| (ports, Vec::new()))
                    .1
                    .push(endpoint);
            }
        }
        let slices: Vec<_> = existing
            .iter()
            .filter(|slice| slice.address_type == family)
            .collect();
        family_plan(service, family, wanted, &slices, last_change, &mut plan);
    }
    plan
}

fn family_plan(
    service: &Service,
    family: &str,
    mut wanted: BTreeMap<String, (Ports, Vec<Endpoint>)>,
    existing: &[&Arc<EndpointSlice>],
    last_change: Option<&str>,
    plan: &mut Plan,
) {
    if wanted.is_empty() {
        // A service without endpoints has one empty slice, to say that this is known.
        wanted.insert(String::new(), (Vec::new(), Vec::new()));
    }
    let mut groups: BTreeMap<String, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    let mut spare = Vec::new();
    for slice in existing {
        let key = ports_key(slice.ports.as_deref().unwrap_or_default());
        if wanted.contains_key(&key) {
            groups.entry(key).or_default().push(slice);
        } else {
            spare.push(*slice);
        }
    }
    for (key, (ports, endpoints)) in wanted {
        let mut slices = groups.remove(&key).unwrap_or_default();
        if slices.is_empty()
            && let Some(slice) = spare.pop()
        {
            // Rewritten rather than replaced: watchers see one change, and no moment without endpoints.
            slices.push(slice);
        }
        let contents = distribute(&endpoints, &slices);
        let any = contents.iter().any(|endpoints| !endpoints.is_empty());
        for (at, endpoints) in contents.into_iter().enumerate() {
            let known = slices.get(at).copied();
            if endpoints.is_empty() && (any || at > 0) {
                plan.delete.extend(known.map(|slice| (**slice).clone()));
                continue;
            }
            let mut slice =
                known.map_or_else(|| new_slice(service, family), |slice| (**slice).clone());
            slice.endpoints = Some(endpoints).filter(|endpoints| !endpoints.is_empty());
            slice.ports = Some(ports.clone()).filter(|ports| !ports.is_empty());
            slice.metadata.labels = Some(labels(service, &slice.metadata));
            match known {
                Some(known) if **known == slice => {}
                Some(_) => {
                    note_change(&mut slice, last_change);
                    plan.update.push(slice);
                }
                None => {
                    note_change(&mut slice, last_change);
                    plan.create.push(slice);
                }
            }
        }
    }
    plan.delete
        .extend(spare.into_iter().map(|slice| (**slice).clone()));
}

/// Spreads endpoints over slices: each stays in the slice that has it, the others fill the gaps in order.
/// The result has at least one part; those beyond `slices` are new.
fn distribute(endpoints: &[Endpoint], slices: &[&Arc<EndpointSlice>]) -> Vec<Vec<Endpoint>> {
    let mut home: HashMap<&str, usize> = HashMap::new();
    for (at, slice) in slices.iter().enumerate() {
        for endpoint in slice.endpoints.iter().flatten() {
            home.insert(identity(endpoint), at);
        }
    }
    let mut parts: Vec<Vec<Endpoint>> = vec![Vec::new(); slices.len().max(1)];
    let mut homeless = Vec::new();
    for endpoint in endpoints {
        match home.get(identity(endpoint)) {
            Some(at) => parts[*at].push(endpoint.clone()),
            None => homeless.push(endpoint.clone()),
        }
    }
    // The order in a slice stays, so that an unchanged slice is equal to itself.
    for (part, slice) in parts.iter_mut().zip(slices) {
        let order: HashMap<&str, usize> = slice
            .endpoints
            .iter()
            .flatten()
            .enumerate()
            .map(|(at, endpoint)| (identity(endpoint), at))
            .collect();
        part.sort_by_key(|endpoint| order.get(identity(endpoint)).copied());
    }
    let mut homeless = homeless.into_iter();
    let mut at = 0;
    while homeless.len() > 0 {
        if at == parts.len() {
            parts.push(Vec::new());
        }
        let room = PER_SLICE.saturating_sub(parts[at].len());
        parts[at].extend(homeless.by_ref().take(room));
        at += 1;
    }
    parts
}

/// What makes an endpoint the same one as before.
fn identity(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default()
}

fn note_change(slice: &mut EndpointSlice, last_change: Option<&str>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match last_change {
        Some(time) => {
            annotations.insert(LAST_CHANGE.to_owned(), time.to_owned());
        }
        None => {
            annotations.remove(LAST_CHANGE);
        }
    }
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}

fn new_slice(service: &Service, family: &str) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        address_type: family.to_owned(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        ..EndpointSlice::default()
    }
}

/// The service's labels and those that mark the slice as its own.
fn labels(service: &Service, slice: &ObjectMeta) -> BTreeMap<String, String> {
    let own = [SERVICE_NAME, MANAGED_BY, HEADLESS];
    let mut labels: BTreeMap<String, String> = service
        .metadata
        .labels
        .iter()
        .flatten()
        .filter(|(key, _)| !own.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // Other components may have marked the slice with labels of their own domain.
    for (key, value) in slice.labels.iter().flatten() {
        if key.starts_with("endpointslice.kubernetes.io/") {
            labels.insert(key.clone(), value.clone());
        }
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn is_headless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Who keeps the slice.
pub(crate) fn manager(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(MANAGED_BY).map(String::as_str)
}

/// The address families of a service, the first one being that of its older forms.
pub(crate) fn families(service: &Service) -> Vec<&str> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_deref());
    match families {
        Some(families) if !families.is_empty() => families.iter().map(String::as_str).collect(),
        _ => vec!["IPv4"],
    }
}

/// The pod's address in a family.
pub(crate) fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    all.chain(&status.pod_ip)
        .find(|ip| {
            let parsed: Option<IpAddr> = ip.parse().ok();
            parsed.is_some_and(|ip| ip.is_ipv6() == (family == "IPv6"))
        })
        .cloned()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    zones: &BTreeMap<String, String>,
    family: &str,
) -> Option<Endpoint> {
    if is_finished(pod) {
        return None;
    }
    let address = address(pod, family)?;
    let publish = service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.clone();
    let named = spec.hostname.clone().filter(|hostname| {
        !hostname.is_empty()
            && spec.subdomain == service.metadata.name
            && pod.metadata.namespace == service.metadata.namespace
    });
    let zone = node.as_ref().and_then(|node| zones.get(node)).cloned();
    Some(Endpoint {
        addresses: vec![address],
        hints: hints(service, zone.as_ref(), node.as_ref()),
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: named,
        zone,
        node_name: node,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// From where the endpoint is to be preferred, when the service wants short ways.
fn hints(service: &Service, zone: Option<&String>, node: Option<&String>) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let (near, same_node) = match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => (true, false),
        "PreferSameNode" => (true, true),
        _ => (false, false),
    };
    let for_zones = zone.filter(|_| near).map(|name| {
        let name = name.clone();
        vec![ForZone { name }]
    });
    let for_nodes = node.filter(|_| same_node).map(|name| {
        let name = name.clone();
        vec![ForNode { name }]
    });
    let any = for_zones.is_some() || for_nodes.is_some();
    any.then_some(EndpointHints {
        for_nodes,
        for_zones,
    })
}

/// The number behind a service's target port in one pod; none when the pod has no port of that name.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol =
                |protocol: Option<&String>| protocol.map_or("TCP", String::as_str).to_owned();
            let spec = pod.spec.as_ref()?;
            let restartable = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let found = |candidate: &&ContainerPort| {
                candidate.name.as_ref() == Some(name)
                    && protocol(candidate.protocol.as_ref()) == protocol(port.protocol.as_ref())
            };
            spec.containers
                .iter()
                .chain(restartable)
                .flat_map(|container| container.ports.iter().flatten())
                .find(found)
                .map(|found| found.container_port)
        }
    }
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let wanted = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Ports = wanted
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort_by(|left, right| left.name.cmp(&right.name));
    ports
}

/// Ports as a text that is the same for the same ports, in whatever order.
pub(crate) fn ports_key(ports: &[EndpointPort]) -> String {
    let mut parts: Vec<String> = ports
        .iter()
        .map(|port| {
            format!(
                "{}|{}|{}|{}",
                port.name.as_deref().unwrap_or_default(),
                port.protocol.as_deref().unwrap_or_default(),
                port.port.unwrap_or_default(),
                port.app_protocol.as_deref().unwrap_or_default()
            )
        })
        .collect();
    parts.sort();
    parts.join(",")
}

#[cfg(test)]
mod tests;
