//! What a service must be, field by field, in the order Kubernetes complains.

use std::collections::{BTreeSet, HashSet};

use k8s_openapi::api::core::v1::{LoadBalancerStatus, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::dependents::{SINGLE_STACK, has_external_traffic, has_health_check};
use super::{is_empty, is_headless, type_of};
use crate::field::{ErrorList, Path};
use crate::kinds::addresses;
use crate::{meta, names};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const AFFINITIES: &[&str] = &["ClientIP", "None"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const TRAFFIC_POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
const MAX_AFFINITY_SECONDS: i32 = 86_400;
const ONLY_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";
const NOT_EXTERNAL: &str = "may not be set for ExternalName services";

fn one_of(value: &str, path: &Path, supported: &[&str], errors: &mut ErrorList) {
    if !supported.contains(&value) {
        errors.not_supported(path, value, supported);
    }
}

/// The old name of an annotation and its new one: who has both means the same with them.
pub(super) const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
pub(super) const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let annotations = metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(name).map(String::as_str))
}

/// Everything about the desired state. What is to be allocated comes first and alone: nothing can be before it agrees.
pub(super) fn service(metadata: &ObjectMeta, spec: &ServiceSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let kind = type_of(spec);
    if kind != "ExternalName" {
        let mut found = ErrorList::default();
        cluster_ips(spec, &path, &mut found);
        if found.is_empty() {
            second_family(spec, &path, &mut found);
        }
        if !found.is_empty() {
            errors.0.append(&mut found.0);
            return;
        }
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    if matches!(kind, "NodePort" | "LoadBalancer")
        && let Some((index, number)) = taken_twice(ports).first()
    {
        let path = path.child("ports").index(*index).child("nodePort");
        return errors.invalid(&path, number, "provided port is already allocated");
    }
    let annotated = |name| annotation(metadata, name);
    if let (Some(mode), Some(hints)) = (annotated(TOPOLOGY_MODE), annotated(TOPOLOGY_HINTS))
        && mode != hints
    {
        let path = Path::new("metadata")
            .child("annotations")
            .key(TOPOLOGY_MODE);
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid(&path, mode, &detail);
    }
    if ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    of_type(spec, &path, errors);
    let mut names_taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        self::port(port, ports.len() > 1, &mut names_taken, &path, errors);
    }
    meta::validate_label_map(spec.selector.as_ref(), &path.child("selector"), errors);
    affinity(spec, &path, errors);
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        let path = path.child("externalIPs").index(index);
        let before = errors.0.len();
        addresses::check(address, &path, errors);
        if errors.0.len() == before {
            addresses::check_ordinary(address, &path, errors);
        }
    }
    one_of(kind, &path.child("type"), TYPES, errors);
    port_collisions(ports, kind, &path.child("ports"), errors);
    balancer(metadata, spec, &path, errors);
    traffic(spec, &path, errors);
}

fn of_type(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let kind = type_of(spec);
    if matches!(kind, "LoadBalancer" | "NodePort") && is_headless(spec) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&path.child("clusterIPs").index(0), "None", &detail);
    }
    if kind != "ExternalName" {
        return;
    }
    if spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
        errors.forbidden(&path.child("clusterIPs"), NOT_EXTERNAL);
    }
    if spec.ip_families.as_ref().is_some_and(|ips| !ips.is_empty()) {
        errors.forbidden(&path.child("ipFamilies"), NOT_EXTERNAL);
    }
    if spec.ip_family_policy.is_some() {
        errors.forbidden(&path.child("ipFamilyPolicy"), NOT_EXTERNAL);
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    let path = path.child("externalName");
    if name.is_empty() {
        errors.required(&path, "");
    } else {
        errors.invalid_each(&path, name, names::dns1123_subdomain(name));
    }
}

fn port<'a>(
    port: &'a ServicePort,
    needs_name: bool,
    taken: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let name = port.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        if needs_name {
            errors.required(&path.child("name"), "");
        }
    } else {
        errors.invalid_each(&path.child("name"), name, names::dns1123_label(name));
        if !taken.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    if let Some(detail) = names::is_port_number(i64::from(port.port)) {
        errors.invalid(&path.child("port"), port.port, &detail);
    }
    addresses::check_protocol(port.protocol.as_deref(), &path.child("protocol"), errors);
    let target = path.child("targetPort");
    match &port.target_port {
        Some(IntOrString::Int(number)) => {
            if let Some(detail) = names::is_port_number(i64::from(*number)) {
                errors.invalid(&target, number, &detail);
            }
        }
        Some(IntOrString::String(name)) => {
            for detail in names::port_name(name) {
                errors.invalid(&target, name, &detail);
            }
        }
        None => {}
    }
    if let Some(name) = &port.app_protocol {
        let details = names::qualified_name(name);
        errors.invalid_each(&path.child("appProtocol"), name, details);
    }
}

/// What two colliding ports have in common, as Kubernetes prints it: under its own names, the rest zero.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SamePort<'a> {
    name: &'a str,
    protocol: &'a str,
    app_protocol: Option<&'a str>,
    port: i32,
    target_port: i32,
    node_port: i32,
}

impl<'a> SamePort<'a> {
    fn of(port: &'a ServicePort) -> Self {
        Self {
            name: "",
            protocol: port.protocol.as_deref().unwrap_or_default(),
            app_protocol: None,
            port: port.port,
            target_port: 0,
            node_port: 0,
        }
    }
}

/// The positions and numbers of node ports that an earlier port of the same protocol has.
fn taken_twice(ports: &[ServicePort]) -> Vec<(usize, i32)> {
    let mut taken = BTreeSet::new();
    let numbers = ports.iter().enumerate().filter_map(|(index, port)| {
        let number = port.node_port.filter(|number| *number != 0)?;
        (!taken.insert((&port.protocol, number))).then_some((index, number))
    });
    numbers.collect()
}

/// No two ports of a service are the same port, nor the same node port, of one protocol.
fn port_collisions(ports: &[ServicePort], kind: &str, path: &Path, errors: &mut ErrorList) {
    for (index, port) in ports.iter().enumerate() {
        if kind == "ClusterIP" && port.node_port.is_some_and(|number| number != 0) {
            let path = path.index(index).child("nodePort");
            errors.forbidden(&path, "may not be used when `type` is 'ClusterIP'");
        }
    }
    for (index, number) in taken_twice(ports) {
        errors.duplicate(&path.index(index).child("nodePort"), number);
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        if !taken.insert((&port.protocol, port.port)) {
            let value = SamePort::of(port);
            errors.duplicate(&path.index(index), value);
        }
    }
}

fn affinity(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let affinity = spec.session_affinity.as_deref().unwrap_or_default();
    if affinity.is_empty() {
        errors.required(&path.child("sessionAffinity"), "");
    } else {
        one_of(affinity, &path.child("sessionAffinity"), AFFINITIES, errors);
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|config| config.timeout_seconds);
    if let (Some(seconds), "ClientIP") = (seconds, affinity)
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let path = path.child("sessionAffinityConfig").child("clientIP");
        let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.invalid(&path.child("timeoutSeconds"), seconds, &detail);
    }
}

fn cluster_ips(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let list_path = path.child("clusterIPs");
    if is_empty(&spec.cluster_ip) {
        if !listed.is_empty() {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.invalid(&list_path, listed, detail);
        }
    } else if listed.is_empty() {
        errors.required(&list_path, "");
    } else if listed.first() != spec.cluster_ip.as_ref() {
        errors.invalid(&list_path, listed, "first value must match `clusterIP`");
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    for (index, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(index);
        one_of(family, &path, FAMILIES, errors);
        if !seen.insert(family) {
            errors.duplicate(&path, family);
        }
    }
    if let Some(policy) = &spec.ip_family_policy {
        one_of(
            policy,
            &path.child("ipFamilyPolicy"),
            FAMILY_POLICIES,
            errors,
        );
    }
    let before = errors.0.len();
    for (index, address) in listed.iter().enumerate() {
        if index == 0 && address == "None" {
            if listed.len() > 1 {
                errors.invalid(
                    &list_path,
                    listed,
                    "'None' must be the first and only value",
                );
            }
            continue;
        }
        addresses::check(address, &list_path.index(index), errors);
    }
    if listed.len() > 2 {
        errors.invalid(&list_path, listed, "may only hold up to 2 values");
    }
    if errors.0.len() > before {
        return;
    }
    let is_v6 = |address: &String| address.contains(':');
    if listed.len() == 2 && is_v6(&listed[0]) == is_v6(&listed[1]) {
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid(&list_path, listed, detail);
    }
    for (index, (address, family)) in listed.iter().zip(families).enumerate() {
        let actual = if is_v6(address) { "IPv6" } else { "IPv4" };
        if address != "None" && FAMILIES.contains(&family.as_str()) && family != actual {
            let detail =
                format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(&list_path.index(index), address, &detail);
        }
    }
}

/// Two addresses or families need a policy that asks for them.
fn second_family(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let selects = spec
        .selector
        .as_ref()
        .is_some_and(|labels| !labels.is_empty());
    let policy = match spec.ip_family_policy.as_deref() {
        // Somebody else's endpoints, of whatever families.
        None if is_headless(spec) && !selects => return,
        policy => policy.unwrap_or(SINGLE_STACK),
    };
    if policy != SINGLE_STACK {
        return;
    }
    let path = path.child("ipFamilyPolicy");
    for (what, list) in [
        ("clusterIPs", &spec.cluster_ips),
        ("ipFamilies", &spec.ip_families),
    ] {
        if list.as_ref().is_some_and(|list| list.len() == 2) {
            let detail = format!(
                "must be RequireDualStack or PreferDualStack when multiple {what} are specified"
            );
            errors.invalid(&path, policy, &detail);
        }
    }
}

/// From where a balancer lets traffic in, by field or by the annotation that came before.
fn source_ranges(metadata: &ObjectMeta, spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let balances = type_of(spec) == "LoadBalancer";
    let ranges = spec
        .load_balancer_source_ranges
        .as_deref()
        .unwrap_or_default();
    let annotated = annotation(metadata, SOURCE_RANGES);
    // Not the field's own name, but Kubernetes' in its messages.
    let ranges_path = match ranges.is_empty() {
        false => path.child("LoadBalancerSourceRanges"),
        true if annotated.is_none() => return,
        true => Path::new("metadata")
            .child("annotations")
            .key(SOURCE_RANGES),
    };
    if !balances {
        errors.forbidden(&ranges_path, ONLY_BALANCERS);
    }
    for (index, range) in ranges.iter().enumerate() {
        addresses::check_cidr(range.trim(), &ranges_path.index(index), errors);
    }
    let annotated = annotated.filter(|text| ranges.is_empty() && !text.trim().is_empty());
    for range in annotated.into_iter().flat_map(|text| text.split(',')) {
        addresses::check_cidr(range.trim(), &ranges_path, errors);
    }
}

/// Checks who balances.
fn class(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let Some(class) = &spec.load_balancer_class else {
        return;
    };
    let path = path.child("loadBalancerClass");
    match type_of(spec) {
        "LoadBalancer" => errors.invalid_each(&path, class, names::qualified_name(class)),
        _ => errors.forbidden(&path, ONLY_BALANCERS),
    }
}

fn balancer(metadata: &ObjectMeta, spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let balances = type_of(spec) == "LoadBalancer";
    source_ranges(metadata, spec, path, errors);
    if spec.allocate_load_balancer_node_ports.is_some() && !balances {
        errors.forbidden(&path.child("allocateLoadBalancerNodePorts"), ONLY_BALANCERS);
    }
    class(spec, path, errors);
}

fn traffic(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let external = spec.external_traffic_policy.as_deref().unwrap_or_default();
    let external_path = path.child("externalTrafficPolicy");
    match (has_external_traffic(spec), external) {
        (true, "") => errors.required(&external_path, ""),
        (true, policy) => one_of(policy, &external_path, TRAFFIC_POLICIES, errors),
        (false, "") => {}
        (false, policy) => {
            let detail = "may only be set for externally-accessible services";
            errors.invalid(&external_path, policy, detail);
        }
    }
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0)
        && !has_health_check(spec)
    {
        let detail =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&path.child("healthCheckNodePort"), port, detail);
    }
    if let Some(policy) = &spec.internal_traffic_policy {
        let path = path.child("internalTrafficPolicy");
        one_of(policy, &path, TRAFFIC_POLICIES, errors);
    }
    if let Some(distribution) = &spec.traffic_distribution {
        let path = path.child("trafficDistribution");
        one_of(distribution, &path, DISTRIBUTIONS, errors);
    }
}

/// An address and its family stay as long as the service has them; the second of each may come and go with the policy.
pub(super) fn cluster_ips_update(new: &ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    let external = type_of(new) == "ExternalName" || type_of(old) == "ExternalName";
    if external || (is_headless(new) && is_headless(old)) {
        return;
    }
    let lists = [
        ("clusterIP", &new.cluster_ips, &old.cluster_ips),
        ("ipFamily", &new.ip_families, &old.ip_families),
    ];
    for (what, new_list, old_list) in lists {
        let of_families = what == "ipFamily";
        if of_families && is_headless(new) != is_headless(old) {
            continue;
        }
        let path = Path::new("spec").child(match what {
            "clusterIP" => "clusterIPs",
            _ => "ipFamilies",
        });
        let (before, after) = (
            old_list.as_deref().unwrap_or_default(),
            new_list.as_deref().unwrap_or_default(),
        );
        if after.is_empty() && !before.is_empty() {
            let detail = format!("primary {what} can not be unset");
            errors.invalid(&path.index(0), after, &detail);
            continue;
        }
        for (index, (before, now)) in before.iter().zip(after).enumerate() {
            if before != now {
                let index = if of_families { 0 } else { index };
                errors.invalid(&path.index(index), after, "may not change once set");
            }
        }
        let policy = new.ip_family_policy.as_deref().unwrap_or_default();
        if before.len() == 2 && after.len() == 1 && policy != SINGLE_STACK {
            let detail =
                format!("must be set to 'SingleStack' when releasing the secondary {what}");
            errors.invalid(&Path::new("spec").child("ipFamilyPolicy"), policy, &detail);
        }
    }
}

/// Who balances a service, and the port by which it asks nodes, stay.
pub(super) fn balancer_update(new: &ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let balanced = |spec: &ServiceSpec| type_of(spec) == "LoadBalancer";
    if balanced(new) && balanced(old) && new.load_balancer_class != old.load_balancer_class {
        let path = path.child("loadBalancerClass");
        errors.invalid(&path, &new.load_balancer_class, "may not change once set");
    }
    class(new, &path, errors);
    let port = |spec: &ServiceSpec| spec.health_check_node_port.unwrap_or_default();
    if has_health_check(new) && has_health_check(old) && port(old) != 0 && port(new) != port(old) {
        errors.forbidden(&path.child("healthCheckNodePort"), meta::IMMUTABLE);
    }
}

/// What a balancer reports.
pub(super) fn balancer_status(
    status: &LoadBalancerStatus,
    spec: &ServiceSpec,
    errors: &mut ErrorList,
) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = status.ingress.as_deref().unwrap_or_default();
    if !ingress.is_empty() && type_of(spec) != "LoadBalancer" {
        let detail = "may only be used when `spec.type` is 'LoadBalancer'";
        return errors.forbidden(&path, detail);
    }
    for (index, entry) in ingress.iter().enumerate() {
        let path = path.index(index);
        if let Some(address) = entry.ip.as_ref().filter(|address| !address.is_empty()) {
            addresses::check(address, &path.child("ip"), errors);
        }
        let mode_path = path.child("ipMode");
        match &entry.ip_mode {
            None if is_empty(&entry.ip) => {}
            None => errors.required(&mode_path, "must be specified when `ip` is set"),
            Some(_) if is_empty(&entry.ip) => {
                let detail = "may not be specified when `ip` is not set";
                errors.forbidden(&mode_path, detail);
            }
            Some(mode) => one_of(mode, &mode_path, &["Proxy", "VIP"], errors),
        }
        if let Some(name) = entry.hostname.as_ref().filter(|name| !name.is_empty()) {
            let path = path.child("hostname");
            errors.invalid_each(&path, name, names::dns1123_subdomain(name));
            if addresses::is_address(name) {
                errors.invalid(&path, name, "must be a DNS name, not an IP address");
            }
        }
    }
}
