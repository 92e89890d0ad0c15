//! From Service and EndpointSlice objects to service rules and to the cluster's names: pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use gantry_network::{DnsRecord, DnsTable, Endpoint, Protocol, ServiceName, ServicePort};
use k8s_openapi::api::core::v1::{Service, ServicePort as WrittenPort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Slices by the service they belong to.
type Slices<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

fn index(slices: &[Arc<EndpointSlice>]) -> Slices<'_> {
    let mut result = Slices::new();
    for slice in slices {
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_LABEL));
        if let (Some(namespace), Some(service)) = (slice.metadata.namespace.as_deref(), service) {
            result.entry((namespace, service)).or_default().push(slice);
        }
    }
    result
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

fn slices_of<'a>(slices: &'a Slices<'a>, service: &'a Service) -> &'a [&'a EndpointSlice] {
    let key = (
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default(),
    );
    slices.get(&key).map_or(&[], Vec::as_slice)
}

/// Ready endpoints; where there are none at all, those that still serve while they terminate.
fn serving<'a>(
    slices: &'a [&'a EndpointSlice],
    publish_not_ready: bool,
) -> Vec<(&'a SliceEndpoint, &'a EndpointSlice)> {
    let all = || {
        slices.iter().flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .map(move |endpoint| (endpoint, *slice))
        })
    };
    let ready = |endpoint: &SliceEndpoint| {
        publish_not_ready
            || endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
    };
    let chosen: Vec<_> = all().filter(|(endpoint, _)| ready(endpoint)).collect();
    if !chosen.is_empty() {
        return chosen;
    }
    let last_resort = |endpoint: &SliceEndpoint| {
        let conditions = endpoint.conditions.as_ref();
        let is = |value: Option<bool>| value == Some(true);
        is(conditions.and_then(|known| known.serving))
            && is(conditions.and_then(|known| known.terminating))
    };
    all()
        .filter(|(endpoint, _)| last_resort(endpoint))
        .collect()
}

fn slice_port<'a>(slice: &'a EndpointSlice, name: &str) -> Option<&'a EndpointPort> {
    slice
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref().unwrap_or_default() == name)
}

/// What the kernel should route: one entry per port of each service that has an address.
pub fn rules(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    node: &str,
) -> Vec<ServicePort> {
    let slices = index(slices);
    let mut result = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let cluster_ip = spec
            .cluster_ip
            .as_deref()
            .and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        if cluster_ip.is_none() || spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let own = slices_of(&slices, service);
        let endpoints = serving(own, spec.publish_not_ready_addresses == Some(true));
        let balancer = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer
            .and_then(|balancer| balancer.ingress.as_ref())
            .into_iter()
            .flatten();
        let mut external_ips: Vec<Ipv4Addr> = spec
            .external_ips
            .iter()
            .flatten()
            .cloned()
            .chain(ingress.filter_map(|ingress| ingress.ip.clone()))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        external_ips.sort_unstable();
        external_ips.dedup();
        for port in spec.ports.iter().flatten() {
            let Some(number) = port_number(port.port) else {
                continue;
            };
            result.push(ServicePort {
                namespace: service.metadata.namespace.clone().unwrap_or_default(),
                service: service.metadata.name.clone().unwrap_or_default(),
                port_name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref()),
                cluster_ip,
                external_ips: external_ips.clone(),
                port: number,
                node_port: port.node_port.and_then(port_number),
                client_ip_affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(
                    || {
                        let client_ip = spec
                            .session_affinity_config
                            .as_ref()
                            .and_then(|config| config.client_ip.as_ref());
                        let timeout = client_ip
                            .and_then(|config| config.timeout_seconds)
                            .unwrap_or(10_800);
                        u32::try_from(timeout).unwrap_or(10_800)
                    },
                ),
                external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                endpoints: backends(&endpoints, port, node),
            });
        }
    }
    result
}

fn backends(
    endpoints: &[(&SliceEndpoint, &EndpointSlice)],
    port: &WrittenPort,
    node: &str,
) -> Vec<Endpoint> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut result: Vec<Endpoint> = Vec::new();
    for (endpoint, slice) in endpoints {
        let Some(number) = slice_port(slice, name)
            .and_then(|port| port.port)
            .and_then(port_number)
        else {
            continue;
        };
        let local = endpoint.node_name.as_deref() == Some(node);
        result.extend(
            endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse().ok())
                .map(|ip| Endpoint {
                    ip,
                    port: number,
                    local,
                }),
        );
    }
    result.sort_unstable();
    result.dedup();
    result
}

/// The addresses that new connections are sent to by choice: ready endpoints of any service. Those that only serve
/// for want of others are left out, since nothing would ever take their place.
pub fn routed_addresses(slices: &[Arc<EndpointSlice>]) -> BTreeSet<Ipv4Addr> {
    let ready = |endpoint: &&SliceEndpoint| {
        endpoint
            .conditions
            .as_ref()
            .and_then(|conditions| conditions.ready)
            .unwrap_or(true)
    };
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(ready);
    endpoints
        .flat_map(|endpoint| endpoint.addresses.iter())
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// What the cluster's DNS answers, by service.
pub fn names(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    domain: &str,
) -> BTreeMap<ServiceName, DnsTable> {
    let slices = index(slices);
    let named = services.iter().filter_map(|service| {
        let name = ServiceName {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
        };
        let table = names_of(service, &name, slices_of(&slices, service), domain)?;
        Some((name, table))
    });
    named.collect()
}

fn names_of(
    service: &Service,
    ServiceName { namespace, name }: &ServiceName,
    slices: &[&EndpointSlice],
    domain: &str,
) -> Option<DnsTable> {
    let spec = service.spec.as_ref()?;
    let mut table = DnsTable::default();
    let base = format!("{name}.{namespace}.svc.{domain}").to_lowercase();
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.clone().unwrap_or_default();
        let alias = DnsRecord::Alias(target.trim_end_matches('.').to_lowercase());
        table.records.insert(base, vec![alias]);
        return Some(table);
    }
    match spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<IpAddr>().ok())
    {
        Some(ip) => {
            table
                .records
                .insert(base.clone(), vec![DnsRecord::Addresses(vec![ip])]);
            table.reverse.insert(ip, base.clone());
            for port in spec.ports.iter().flatten() {
                if let (Some(owner), Some(number)) = (
                    srv_owner(port.name.as_deref(), port.protocol.as_deref(), &base),
                    port_number(port.port),
                ) {
                    table.records.insert(
                        owner,
                        vec![DnsRecord::Services(vec![(0, 100, number, base.clone())])],
                    );
                }
            }
        }
        None => headless(
            &mut table,
            &base,
            slices,
            spec.publish_not_ready_addresses == Some(true),
        ),
    }
    Some(table)
}

fn srv_owner(port: Option<&str>, protocol: Option<&str>, base: &str) -> Option<String> {
    let port = port.filter(|port| !port.is_empty())?;
    Some(format!(
        "_{}._{}.{base}",
        port.to_lowercase(),
        protocol.unwrap_or("TCP").to_lowercase()
    ))
}

/// A headless service: its name is all of its endpoints, each of which has a name of its own.
fn headless(table: &mut DnsTable, base: &str, slices: &[&EndpointSlice], publish_not_ready: bool) {
    let mut all: Vec<IpAddr> = Vec::new();
    let mut targets: BTreeMap<String, BTreeSet<(u16, u16, u16, String)>> = BTreeMap::new();
    let mut hosts: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let ready = |endpoint: &SliceEndpoint| {
        publish_not_ready
            || endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
    };
    for slice in slices {
        for endpoint in slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| ready(endpoint))
        {
            for ip in endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse::<IpAddr>().ok())
            {
                let label = match endpoint
                    .hostname
                    .as_deref()
                    .filter(|hostname| !hostname.is_empty())
                {
                    Some(hostname) => hostname.to_lowercase(),
                    None => ip.to_string().replace(['.', ':'], "-"),
                };
                let host = format!("{label}.{base}");
                all.push(ip);
                if endpoint.hostname.is_some() {
                    table.reverse.insert(ip, host.clone());
                }
                hosts.entry(host.clone()).or_default().insert(ip);
                for port in slice.ports.iter().flatten() {
                    if let (Some(owner), Some(number)) = (
                        srv_owner(port.name.as_deref(), port.protocol.as_deref(), base),
                        port.port.and_then(port_number),
                    ) {
                        targets
                            .entry(owner)
                            .or_default()
                            .insert((0, 100, number, host.clone()));
                    }
                }
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    if !all.is_empty() {
        table
            .records
            .insert(base.to_owned(), vec![DnsRecord::Addresses(all)]);
    }
    for (host, ips) in hosts {
        table
            .records
            .insert(host, vec![DnsRecord::Addresses(ips.into_iter().collect())]);
    }
    for (owner, targets) in targets {
        table.records.insert(
            owner,
            vec![DnsRecord::Services(targets.into_iter().collect())],
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Vec<Arc<Service>> {
        let value = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        vec![Arc::new(serde_json::from_value(value).unwrap())]
    }

    fn slice(endpoints: Value) -> Vec<Arc<EndpointSlice>> {
        let value = json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {SERVICE_LABEL: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints
        });
        vec![Arc::new(serde_json::from_value(value).unwrap())]
    }

    fn endpoint(ip: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "conditions": conditions, "nodeName": "n1"})
    }

    fn addresses(rules: &[ServicePort]) -> Vec<String> {
        rules[0]
            .endpoints
            .iter()
            .map(|endpoint| endpoint.ip.to_string())
            .collect()
    }

    /// The names of the one service.
    fn table(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> DnsTable {
        let mut all = names(services, slices, "cluster.local");
        let (name, table) = all.pop_first().unwrap();
        assert_eq!((&*name.namespace, &*name.name), ("shop", "web"));
        table
    }

    fn cluster_ip() -> Value {
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    }

    #[test]
    fn only_ready_endpoints_are_routed() {
        let slices = slice(json!([
            endpoint("10.0.0.2", json!({"ready": true})),
            endpoint("10.0.0.3", json!({"ready": false})),
            endpoint("10.0.0.1", json!({}))
        ]));
        let rules = rules(&service(cluster_ip()), &slices, "n1");
        assert_eq!(addresses(&rules), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(
            (
                rules[0].port,
                rules[0].node_port,
                rules[0].endpoints[0].port
            ),
            (80, Some(30080), 8080)
        );
        assert!(rules[0].endpoints[0].local);
        assert_eq!(routed_addresses(&slices).len(), 2);
    }

    #[test]
    fn terminating_endpoints_are_the_last_resort() {
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let only = slice(json!([endpoint("10.0.0.2", leaving.clone())]));
        assert_eq!(
            addresses(&rules(&service(cluster_ip()), &only, "n1")),
            ["10.0.0.2"]
        );
        let both = slice(json!([
            endpoint("10.0.0.2", leaving),
            endpoint("10.0.0.3", json!({"ready": true}))
        ]));
        assert_eq!(
            addresses(&rules(&service(cluster_ip()), &both, "n2")),
            ["10.0.0.3"]
        );
    }

    #[test]
    fn affinity_policies_and_external_addresses() {
        let mut spec = cluster_ip();
        spec["sessionAffinity"] = json!("ClientIP");
        spec["externalTrafficPolicy"] = json!("Local");
        spec["externalIPs"] = json!(["192.0.2.7"]);
        let rules = rules(&service(spec), &[], "n1");
        assert_eq!(rules[0].client_ip_affinity, Some(10_800));
        assert!(rules[0].external_local && !rules[0].internal_local);
        assert_eq!(rules[0].external_ips, [Ipv4Addr::new(192, 0, 2, 7)]);
        assert!(rules[0].endpoints.is_empty());
    }

    #[test]
    fn headless_and_external_names_have_no_rules() {
        assert!(
            rules(
                &service(json!({"clusterIP": "None", "ports": [{"port": 80}]})),
                &[],
                "n1"
            )
            .is_empty()
        );
        let external = service(json!({"type": "ExternalName", "externalName": "example.org."}));
        assert!(rules(&external, &[], "n1").is_empty());
        let table = table(&external, &[]);
        assert_eq!(
            table.records["web.shop.svc.cluster.local"],
            [DnsRecord::Alias("example.org".into())]
        );
    }

    #[test]
    fn a_service_has_its_address_a_port_record_and_a_reverse_name() {
        let table = table(&service(cluster_ip()), &[]);
        let name = "web.shop.svc.cluster.local".to_owned();
        let ip: IpAddr = "10.96.0.9".parse().unwrap();
        assert_eq!(table.records[&name], [DnsRecord::Addresses(vec![ip])]);
        assert_eq!(
            table.records[&format!("_http._tcp.{name}")],
            [DnsRecord::Services(vec![(0, 100, 80, name.clone())])]
        );
        assert_eq!(table.reverse[&ip], name);
    }

    #[test]
    fn pods_of_a_headless_service_have_names() {
        let slices = slice(json!([
            {"addresses": ["10.0.0.2"], "hostname": "web-0", "conditions": {"ready": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false}}
        ]));
        let headless = json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]});
        let table = table(&service(headless), &slices);
        let base = "web.shop.svc.cluster.local";
        assert!(matches!(&table.records[base][..], [DnsRecord::Addresses(all)] if all.len() == 2));
        assert!(table.records.contains_key(&format!("web-0.{base}")));
        assert!(table.records.contains_key(&format!("10-0-0-3.{base}")));
        let srv = &table.records[&format!("_http._tcp.{base}")];
        assert!(
            matches!(&srv[..], [DnsRecord::Services(targets)] if targets.len() == 2 && targets[0].2 == 8080)
        );
        assert_eq!(
            table.reverse[&"10.0.0.2".parse::<IpAddr>().unwrap()],
            format!("web-0.{base}")
        );
    }
}
