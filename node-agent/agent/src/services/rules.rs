//! What the kernel should route.

use std::net::IpAddr;

use gantry_base::annotations::WAKES;
use gantry_network::{Endpoint, Held, ServicePort};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as WrittenPort, ServiceSpec};
use k8s_openapi::api::discovery::v1::Endpoint as SliceEndpoint;

use super::{ServiceObjects, cluster_ips, is_ready, offered, port_number, protocol, slice_port};

/// Seconds, where a service says nothing (as the API server would have written).
const AFFINITY_TIMEOUT: i32 = 10_800;

/// On a Service that something brings back when it is wanted ([`WAKES`]; whom it names is not ours to know): addresses and blocks of them, with commas between them, that do not wake it.
const WAKE_IGNORE: &str = "gantry.dev/wake-ignore";
/// As many of them are looked at; each is an element of the rules for each of the Service's addresses.
const MOST_IGNORED: usize = 256;

/// Where rules are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name of the node.
    pub(crate) node: String,
    /// Its `topology.kubernetes.io/zone`.
    pub(crate) zone: Option<String>,
}

/// One entry per port and address family of a service that has an address.
pub(crate) fn rules(objects: &ServiceObjects, place: &Place) -> Vec<ServicePort> {
    let Some(service) = &objects.service else {
        return Vec::new();
    };
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let held = held(service);
    // Where connections can wait for other pods, nobody is sent to those that end.
    let to_leaving = held.is_none();
    let mut result = Vec::new();
    for cluster_ip in cluster_ips(service) {
        let own = |address: &IpAddr| address.is_ipv4() == cluster_ip.is_ipv4();
        let external_ips: Vec<IpAddr> = parsed(spec.external_ips.iter().flatten(), own);
        let load_balancer_ips = parsed(balancer_addresses(service), own);
        for port in spec.ports.iter().flatten() {
            let Some(number) = port_number(port.port) else {
                continue;
            };
            let candidates = candidates(objects, port, cluster_ip);
            result.push(ServicePort {
                port_name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref()),
                cluster_ip,
                port: number,
                external_ips: external_ips.clone(),
                load_balancer_ips: load_balancer_ips.clone(),
                source_ranges: source_ranges(spec),
                node_port: port.node_port.and_then(port_number),
                client_ip_affinity: affinity(spec),
                external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                endpoints: endpoints(
                    &serving(&near(&candidates, place), &candidates, to_leaving),
                    place,
                ),
                local_endpoints: local_endpoints(&candidates, to_leaving, place),
                held: held.clone(),
            });
        }
    }
    result
}

/// `healthCheckNodePort`, and how many endpoints of this node are ready: what load balancers ask for.
pub(crate) fn health_check(objects: &ServiceObjects, node: &str) -> Option<(u16, usize)> {
    let spec = objects.service.as_ref()?.spec.as_ref()?;
    let port = port_number(spec.health_check_node_port?)?;
    let local = |endpoint: &&SliceEndpoint| endpoint.node_name.as_deref() == Some(node);
    // The families of a dual-stack service have the same endpoints.
    let families = ["IPv4", "IPv6"].map(|family| {
        let slices = objects.slices.iter();
        let slices = slices.filter(|slice| slice.address_type == family);
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints
            .filter(local)
            .filter(|endpoint| is_ready(endpoint))
            .flat_map(|endpoint| endpoint.addresses.first())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    });
    let local_count = families.into_iter().max().unwrap_or_default();
    // While nothing serves it anywhere, every node holds what comes, and has to be sent it.
    let mut everywhere = objects.slices.iter();
    let is_served = everywhere.any(|slice| offered(slice).next().is_some());
    let service = objects.service.as_ref()?;
    match held(service).is_some() && !is_served {
        true => Some((port, 1)),
        false => Some((port, local_count)),
    }
}

fn parsed(
    texts: impl IntoIterator<Item = impl AsRef<str>>,
    own: impl Fn(&IpAddr) -> bool,
) -> Vec<IpAddr> {
    let parsed = texts.into_iter().filter_map(|ip| ip.as_ref().parse().ok());
    let mut ips: Vec<IpAddr> = parsed.filter(own).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// Addresses at which the load balancer's packets arrive as they were sent; behind one that is a proxy they arrive
/// at a node port.
fn balancer_addresses(service: &Service) -> impl Iterator<Item = &str> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref())
}

fn source_ranges(spec: &ServiceSpec) -> Vec<IpNet> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    ranges
        .filter_map(|range| range.trim().parse().ok())
        .collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    let client_ip = || {
        let config = spec.session_affinity_config.as_ref()?;
        config.client_ip.as_ref()?.timeout_seconds
    };
    (spec.session_affinity.as_deref() == Some("ClientIP"))
        .then(|| client_ip().unwrap_or(AFFINITY_TIMEOUT))
        .and_then(|timeout| u32::try_from(timeout).ok())
}

/// Whose connections wait while nobody answers; none's of a service that nothing brings back. What is no address says nothing.
fn held(service: &Service) -> Option<Held> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(WAKES).filter(|names| !names.is_empty())?;
    let ignored = annotations.get(WAKE_IGNORE);
    let ignored = ignored.into_iter().flat_map(|text| text.split(','));
    let ignored = ignored.map(str::trim).filter_map(|text| {
        let block = text.parse::<IpNet>();
        block
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .ok()
    });
    Some(Held {
        ignored: ignored.take(MOST_IGNORED).collect(),
    })
}

/// An endpoint of a slice, and the number of the port there.
type Candidate<'a> = (&'a SliceEndpoint, u16);

/// The endpoints that have the port, with addresses of the family.
fn candidates<'a>(
    objects: &'a ServiceObjects,
    port: &WrittenPort,
    cluster_ip: IpAddr,
) -> Vec<Candidate<'a>> {
    let family = if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let name = port.name.as_deref().unwrap_or_default();
    let wanted = protocol(port.protocol.as_deref());
    let slices = objects.slices.iter();
    slices
        .filter(|slice| slice.address_type == family)
        .filter_map(|slice| {
            let port = slice_port(slice, name, wanted)?.port;
            Some((slice, port.and_then(port_number)?))
        })
        .flat_map(|(slice, number)| {
            let endpoints = slice.endpoints.iter().flatten();
            endpoints.map(move |endpoint| (endpoint, number))
        })
        .collect()
}

/// The ready endpoints that are meant for this node, or else for its zone, where all of them say for whom they are;
/// all that are ready where they do not, or where nothing is meant for us.
fn near<'a>(candidates: &[Candidate<'a>], place: &Place) -> Vec<Candidate<'a>> {
    let ready: Vec<Candidate<'a>> = candidates
        .iter()
        .copied()
        .filter(|(endpoint, _)| is_ready(endpoint))
        .collect();
    let hinted = |names: &dyn Fn(&'a SliceEndpoint) -> Vec<&'a str>, own: &str| {
        let every = ready
            .iter()
            .all(|(endpoint, _)| !names(endpoint).is_empty());
        let ours = ready.iter().copied();
        let ours: Vec<Candidate<'a>> = ours
            .filter(|(endpoint, _)| names(endpoint).contains(&own))
            .collect();
        (every && !ours.is_empty()).then_some(ours)
    };
    let nodes = |endpoint: &'a SliceEndpoint| -> Vec<&'a str> {
        let hints = endpoint.hints.iter();
        let nodes = hints.flat_map(|hints| hints.for_nodes.iter().flatten());
        nodes.map(|node| node.name.as_str()).collect()
    };
    let zones = |endpoint: &'a SliceEndpoint| -> Vec<&'a str> {
        let hints = endpoint.hints.iter();
        let zones = hints.flat_map(|hints| hints.for_zones.iter().flatten());
        zones.map(|zone| zone.name.as_str()).collect()
    };
    let in_zone = || hinted(&zones, place.zone.as_deref()?);
    hinted(&nodes, &place.node)
        .or_else(in_zone)
        .unwrap_or(ready)
}

/// The ready ones; where there are none at all, those of `others` that still serve while they terminate, if that is wanted.
fn serving<'a>(
    ready: &[Candidate<'a>],
    others: &[Candidate<'a>],
    to_leaving: bool,
) -> Vec<Candidate<'a>> {
    if !ready.is_empty() || !to_leaving {
        return ready.to_vec();
    }
    let last_resort = |endpoint: &SliceEndpoint| {
        let conditions = endpoint.conditions.as_ref();
        let is = |value: Option<bool>| value == Some(true);
        is(conditions.and_then(|known| known.serving))
            && is(conditions.and_then(|known| known.terminating))
    };
    let others = others.iter().copied();
    others
        .filter(|(endpoint, _)| last_resort(endpoint))
        .collect()
}

/// The same among those of this node. Hints are not for them: `Local` has been asked for.
fn local_endpoints(candidates: &[Candidate<'_>], to_leaving: bool, place: &Place) -> Vec<Endpoint> {
    let (mut local, mut ready) = (Vec::new(), Vec::new());
    for &candidate in candidates {
        if candidate.0.node_name.as_deref() == Some(&*place.node) {
            local.push(candidate);
            if is_ready(candidate.0) {
                ready.push(candidate);
            }
        }
    }
    endpoints(&serving(&ready, &local, to_leaving), place)
}

/// In an order that depends on nothing but what they are.
fn endpoints(candidates: &[Candidate<'_>], place: &Place) -> Vec<Endpoint> {
    let mut result: Vec<Endpoint> = Vec::new();
    for (endpoint, port) in candidates {
        // All addresses of an endpoint are the same; the first is the one to use (discovery.k8s.io/v1, Endpoint).
        let ip = endpoint.addresses.first();
        result.extend(ip.and_then(|ip| ip.parse().ok()).map(|ip| Endpoint {
            ip,
            port: *port,
            local: endpoint.node_name.as_deref() == Some(&*place.node),
        }));
    }
    result.sort_unstable();
    result.dedup();
    result
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{cluster_ip, service};
    use super::*;

    fn here() -> Place {
        Place {
            node: "n1".to_owned(),
            zone: Some("z1".to_owned()),
        }
    }

    fn endpoint(ip: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "conditions": conditions, "nodeName": "n1"})
    }

    fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|e| e.ip.to_string()).collect()
    }

    #[test]
    fn only_ready_endpoints_are_routed() {
        let objects = service(cluster_ip()).with(json!([
            endpoint("10.0.0.2", json!({"ready": true})),
            endpoint("10.0.0.3", json!({"ready": false})),
            endpoint("10.0.0.1", json!({}))
        ]));
        let rules = rules(&objects, &here());
        assert_eq!(addresses(&rules[0].endpoints), ["10.0.0.1", "10.0.0.2"]);
        let port = &rules[0];
        assert_eq!(
            (port.port, port.node_port, port.endpoints[0].port),
            (80, Some(30080), 8080)
        );
        assert!(port.endpoints[0].local);
        let offered: Vec<IpAddr> = super::super::offered(&objects.slices[0]).collect();
        assert_eq!(offered.len(), 2);
    }

    #[test]
    fn terminating_endpoints_are_the_last_resort_here_and_everywhere() {
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let only = service(cluster_ip()).with(json!([endpoint("10.0.0.2", leaving.clone())]));
        let chosen = &rules(&only, &here())[0];
        assert_eq!(addresses(&chosen.endpoints), ["10.0.0.2"]);
        assert_eq!(addresses(&chosen.local_endpoints), ["10.0.0.2"]);
        let mut elsewhere = endpoint("10.0.0.3", json!({"ready": true}));
        elsewhere["nodeName"] = json!("n2");
        let both = service(cluster_ip()).with(json!([endpoint("10.0.0.2", leaving), elsewhere]));
        let chosen = &rules(&both, &here())[0];
        assert_eq!(addresses(&chosen.endpoints), ["10.0.0.3"]);
        assert_eq!(addresses(&chosen.local_endpoints), ["10.0.0.2"]);
    }

    #[test]
    fn ports_are_matched_by_name_and_protocol() {
        let mut spec = cluster_ip();
        spec["ports"] = json!([
            {"name": "http", "port": 80}, {"name": "http", "port": 80, "protocol": "UDP"},
            {"name": "other", "port": 81}
        ]);
        let objects = service(spec).with(json!([endpoint("10.0.0.2", json!({}))]));
        let counts: Vec<usize> = rules(&objects, &here())
            .iter()
            .map(|port| port.endpoints.len())
            .collect();
        assert_eq!(counts, [1, 0, 0]);
    }

    #[test]
    fn affinity_policies_external_and_balancer_addresses() {
        let mut spec = cluster_ip();
        spec["sessionAffinity"] = json!("ClientIP");
        spec["externalTrafficPolicy"] = json!("Local");
        spec["externalIPs"] = json!(["192.0.2.7"]);
        spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8", " 192.168.0.0/16"]);
        let mut objects = service(spec.clone());
        let mut with_status = Service::clone(objects.service.as_ref().unwrap());
        with_status.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "lb"}
        ]}}))
        .unwrap();
        objects.service = Some(with_status.into());
        let port = &rules(&objects, &here())[0];
        assert_eq!(port.client_ip_affinity, Some(10_800));
        assert!(port.external_local && !port.internal_local);
        assert_eq!(port.external_ips, [IpAddr::from([192, 0, 2, 7])]);
        assert_eq!(port.load_balancer_ips, [IpAddr::from([198, 51, 100, 1])]);
        assert_eq!(port.source_ranges.len(), 2);
        assert!(port.endpoints.is_empty());
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
        assert_eq!(
            rules(&service(spec), &here())[0].client_ip_affinity,
            Some(60)
        );
    }

    #[test]
    fn what_can_be_woken_is_held_for_all_but_those_it_ignores() {
        let held = |annotations: Value| {
            let mut objects = service(cluster_ip());
            let mut annotated = Service::clone(objects.service.as_ref().unwrap());
            annotated.metadata.annotations = serde_json::from_value(annotations).unwrap();
            objects.service = Some(annotated.into());
            let ports = rules(&objects, &here());
            let ignored = |held: Held| held.ignored.iter().map(IpNet::to_string).collect();
            ports[0].held.clone().map(ignored)
        };
        let ignored = |ranges: &[&str]| -> Option<Vec<String>> {
            Some(ranges.iter().map(|&range| range.to_owned()).collect())
        };
        let ignore = "10.0.0.0/8, 192.168.1.5,fd00::1 ,,kube-probe,1.2.3.4/99";
        assert_eq!(held(json!({WAKE_IGNORE: ignore})), None);
        assert_eq!(held(json!({WAKES: ""})), None);
        assert_eq!(held(json!({WAKES: "web"})), ignored(&[]));
        assert_eq!(
            held(json!({WAKES: "web", WAKE_IGNORE: ignore})),
            ignored(&["10.0.0.0/8", "192.168.1.5/32", "fd00::1/128"])
        );
        let many = vec!["10.0.0.1"; 2 * MOST_IGNORED].join(",");
        let bounded = held(json!({WAKES: "web", WAKE_IGNORE: many})).unwrap();
        assert_eq!(bounded.len(), MOST_IGNORED);
    }

    #[test]
    fn each_family_has_its_own_endpoints() {
        let mut spec = cluster_ip();
        spec["clusterIPs"] = json!(["10.96.0.9", "fd10:96::9"]);
        spec["externalIPs"] = json!(["192.0.2.7", "2001:db8::7"]);
        let objects = service(spec)
            .with(json!([endpoint("10.0.0.2", json!({}))]))
            .with(json!([endpoint("fd10:244::2", json!({}))]));
        let rules = rules(&objects, &here());
        let found: Vec<_> = rules
            .iter()
            .map(|port| (addresses(&port.endpoints), port.external_ips[0].to_string()))
            .collect();
        assert_eq!(
            found,
            [
                (vec!["10.0.0.2".to_owned()], "192.0.2.7".to_owned()),
                (vec!["fd10:244::2".to_owned()], "2001:db8::7".to_owned()),
            ]
        );
    }

    #[test]
    fn hints_are_followed_where_all_have_them_and_some_are_for_us() {
        let hinted = |ip: &str, hints: Value| json!({"addresses": [ip], "conditions": {"ready": true}, "hints": hints});
        let chosen = |endpoints: Value| {
            addresses(&rules(&service(cluster_ip()).with(endpoints), &here())[0].endpoints)
        };
        let zone = |name: &str| json!({"forZones": [{"name": name}]});
        let node = |zone: &str, node: &str| json!({"forZones": [{"name": zone}], "forNodes": [{"name": node}]});
        let one = |hints| hinted("10.0.0.1", hints);
        let two = |hints| hinted("10.0.0.2", hints);
        assert_eq!(
            chosen(json!([one(zone("z1")), two(zone("z2"))])),
            ["10.0.0.1"]
        );
        assert_eq!(
            chosen(json!([one(zone("z3")), two(zone("z2"))])).len(),
            2,
            "none for our zone"
        );
        assert_eq!(
            chosen(json!([one(zone("z1")), two(json!({}))])).len(),
            2,
            "one says nothing"
        );
        assert_eq!(
            chosen(json!([one(node("z1", "n2")), two(node("z1", "n1"))])),
            ["10.0.0.2"]
        );
        assert_eq!(
            chosen(json!([one(node("z1", "n2")), two(node("z2", "n3"))])),
            ["10.0.0.1"],
            "none for our node, one for our zone"
        );
    }

    #[test]
    fn headless_services_external_names_and_services_that_are_gone_have_no_rules() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.org.", "ports": [{"port": 80}]}),
        ] {
            assert!(rules(&service(spec), &here()).is_empty());
        }
        let mut gone = service(cluster_ip()).with(json!([endpoint("10.0.0.2", json!({}))]));
        gone.service = None;
        assert!(rules(&gone, &here()).is_empty());
    }

    #[test]
    fn a_health_check_counts_ready_endpoints_of_this_node() {
        let mut spec = cluster_ip();
        assert_eq!(health_check(&service(spec.clone()), "n1"), None);
        spec["healthCheckNodePort"] = json!(32000);
        let objects = service(spec).with(json!([
            endpoint("10.0.0.1", json!({"ready": true})),
            endpoint(
                "10.0.0.2",
                json!({"ready": false, "serving": true, "terminating": true})
            ),
            endpoint("10.0.0.3", json!({}))
        ]));
        assert_eq!(health_check(&objects, "n1"), Some((32000, 2)));
        assert_eq!(health_check(&objects, "n2"), Some((32000, 0)));
    }
}
