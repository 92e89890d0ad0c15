//! Services: cluster IPs and node ports, each unique in the cluster by a key of its own in the same transaction.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use gantry_api::field::{ErrorList, Path};
use gantry_api::status::StatusError;
use gantry_store::{Guard, Index, Key, Operation, Table, Transaction};
use rand::Rng;
use serde_json::{Value, json};

use super::Ranges;
use crate::context::{Context, meta};

fn address_key(address: &str) -> Key {
    Key {
        table: Table("-/clusterips".into()),
        namespace: "".into(),
        name: address.into(),
    }
}

/// One port number serves one protocol of one service.
fn port_key(port: u64, protocol: &str) -> Key {
    Key {
        table: Table("-/nodeports".into()),
        namespace: "".into(),
        name: format!("{port}-{protocol}").as_str().into(),
    }
}

/// Gives the service what it lacks and takes what it no longer uses.
pub(super) fn allocate(
    ranges: &Ranges,
    context: &Context<'_>,
    service: &mut Value,
    current: Option<&Value>,
    transaction: &mut Transaction,
) -> Result<(), StatusError> {
    if let Some(current) = current {
        keep(service, current);
    }
    families(context, service)?;
    let owner = format!("{}/{}", meta(service, "namespace"), meta(service, "name"));
    address(ranges, context, service, current, &owner, transaction)?;
    ports(ranges, context, service, current, &owner, transaction)
}

/// Returns everything with the service.
pub(super) fn release(service: &Value, transaction: &mut Transaction) {
    for address in addresses(service) {
        transaction.operations.push(free(address_key(&address)));
    }
    for (port, protocol) in node_ports(service) {
        transaction.operations.push(free(port_key(port, &protocol)));
    }
}

fn free(key: Key) -> Operation {
    Operation::Delete { key, last: None }
}

fn take(key: Key, owner: &str, transaction: &mut Transaction) {
    transaction.guards.push(Guard::Absent(key.clone()));
    transaction.operations.push(Operation::Put {
        key,
        value: json!(owner).to_string().into(),
        index: Index::default(),
    });
}

/// The allocated addresses of a service: not those of headless ones.
fn addresses(service: &Value) -> Vec<String> {
    service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|address| !address.is_empty() && *address != "None")
        .map(str::to_owned)
        .collect()
}

fn protocol_of(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

fn node_ports(service: &Value) -> BTreeSet<(u64, String)> {
    let mut found: BTreeSet<(u64, String)> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some((
                port["nodePort"].as_u64().filter(|port| *port > 0)?,
                protocol_of(port),
            ))
        })
        .collect();
    if let Some(port) = service["spec"]["healthCheckNodePort"]
        .as_u64()
        .filter(|port| *port > 0)
    {
        found.insert((port, "TCP".to_owned()));
    }
    found
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

/// Ports, to be changed. (Indexing a value to change it would leave a null where there are none.)
fn ports_of(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// A client that leaves out what was allocated means to keep it.
fn keep(service: &mut Value, current: &Value) {
    let has_address =
        service_type(service) != "ExternalName" && service_type(current) != "ExternalName";
    if has_address
        && service["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    {
        for field in ["clusterIP", "clusterIPs"] {
            if !current["spec"][field].is_null() {
                service["spec"][field] = current["spec"][field].clone();
            }
        }
    }
    let wants_ports =
        |service: &Value| ["NodePort", "LoadBalancer"].contains(&service_type(service));
    if wants_ports(service) && wants_ports(current) {
        let old = current["spec"]["ports"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for port in ports_of(service) {
            if port["nodePort"].as_u64().unwrap_or(0) > 0 {
                continue;
            }
            let same = old.iter().find(|other| {
                other["port"] == port["port"] && protocol_of(other) == protocol_of(port)
            });
            if let Some(node_port) = same
                .map(|other| &other["nodePort"])
                .filter(|node_port| !node_port.is_null())
            {
                port["nodePort"] = node_port.clone();
            }
        }
    }
}

/// This cluster has IPv4 only.
fn families(context: &Context<'_>, service: &mut Value) -> Result<(), StatusError> {
    if service_type(service) == "ExternalName" {
        return Ok(());
    }
    let mut errors = ErrorList::default();
    let path = Path::new("spec");
    let spec = &mut service["spec"];
    let headless = spec["clusterIP"] == "None";
    let bare = headless
        && spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty);
    let policy = spec["ipFamilyPolicy"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    // Without selector the endpoints are somebody else's, of whatever family.
    let dual = bare && (policy.is_empty() || policy == "RequireDualStack");
    for (index, family) in spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if family == "IPv6" && !bare {
            errors.invalid(
                &path.child("ipFamilies").index(index),
                family,
                "not configured on this cluster",
            );
        }
    }
    if policy == "RequireDualStack" && !bare {
        errors.invalid(
            &path.child("ipFamilyPolicy"),
            &policy,
            "this cluster is not configured for dual-stack services",
        );
    }
    if !errors.is_empty() {
        return Err(StatusError::invalid(
            context.resource.info(),
            meta(service, "name"),
            errors,
        ));
    }
    let spec = &mut service["spec"];
    if policy.is_empty() {
        spec["ipFamilyPolicy"] = json!(if dual {
            "RequireDualStack"
        } else {
            "SingleStack"
        });
    }
    let named = spec["ipFamilies"].as_array().cloned().unwrap_or_default();
    if named.is_empty() {
        spec["ipFamilies"] = json!(if dual {
            vec!["IPv4", "IPv6"]
        } else {
            vec!["IPv4"]
        });
    } else if dual && named.len() == 1 {
        let other = if named[0] == "IPv4" { "IPv6" } else { "IPv4" };
        spec["ipFamilies"] = json!([named[0], other]);
    }
    Ok(())
}

fn address(
    ranges: &Ranges,
    context: &Context<'_>,
    service: &mut Value,
    current: Option<&Value>,
    owner: &str,
    transaction: &mut Transaction,
) -> Result<(), StatusError> {
    let before = current.map(addresses).unwrap_or_default();
    if service_type(service) == "ExternalName" {
        for address in before {
            transaction.operations.push(free(address_key(&address)));
        }
        if let Some(spec) = service["spec"].as_object_mut() {
            for field in [
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "internalTrafficPolicy",
            ] {
                spec.remove(field);
            }
        }
        return Ok(());
    }
    let asked = service["spec"]["clusterIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if asked == "None" {
        service["spec"]["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    if before.contains(&asked) {
        service["spec"]["clusterIPs"] = json!([asked]);
        return Ok(());
    }
    let chosen = match asked.is_empty() {
        false => {
            let refused = |why: &str| {
                let mut errors = ErrorList::default();
                errors.invalid(
                    &Path::new("spec").child("clusterIPs"),
                    json!([asked]),
                    &format!("failed to allocate IP {asked}: {why}"),
                );
                StatusError::invalid(context.resource.info(), meta(service, "name"), errors)
            };
            let in_range = asked.parse::<Ipv4Addr>().is_ok_and(|address| {
                ranges.service_cidr.contains(&address)
                    && address != ranges.service_cidr.network()
                    && address != ranges.service_cidr.broadcast()
            });
            if !in_range {
                return Err(refused(
                    "the provided network does not match the current range",
                ));
            }
            if context.api.store.get(&address_key(&asked)).is_some() {
                return Err(refused("provided IP is already allocated"));
            }
            asked
        }
        true => free_address(ranges, context)?.to_string(),
    };
    take(address_key(&chosen), owner, transaction);
    service["spec"]["clusterIP"] = json!(chosen);
    service["spec"]["clusterIPs"] = json!([chosen]);
    Ok(())
}

/// A random free address; the lowest 256 are left to those who ask for one.
fn free_address(ranges: &Ranges, context: &Context<'_>) -> Result<Ipv4Addr, StatusError> {
    let first = u32::from(ranges.service_cidr.network());
    let size = u32::from(ranges.service_cidr.broadcast()) - first;
    let reserved = (size / 16).clamp(1, 256);
    let mut random = rand::rng();
    let free = |offset: u32| {
        let address = Ipv4Addr::from(first + offset);
        context
            .api
            .store
            .get(&address_key(&address.to_string()))
            .is_none()
            .then_some(address)
    };
    (0..64)
        .find_map(|_| free(random.random_range(reserved..size)))
        .or_else(|| (reserved..size).chain(1..reserved).find_map(free))
        .ok_or_else(|| {
            StatusError::internal(format!(
                "the service CIDR {} is used up",
                ranges.service_cidr
            ))
        })
}

fn ports(
    ranges: &Ranges,
    context: &Context<'_>,
    service: &mut Value,
    current: Option<&Value>,
    owner: &str,
    transaction: &mut Transaction,
) -> Result<(), StatusError> {
    let before = current.map(node_ports).unwrap_or_default();
    let allocates = match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    };
    let exposed = ["NodePort", "LoadBalancer"].contains(&service_type(service));
    let mut taken: BTreeSet<(u64, String)> = BTreeSet::new();
    let name = meta(service, "name").to_owned();
    let mut errors = ErrorList::default();
    let same_type = current.is_none_or(|current| service_type(current) == service_type(service));
    for (index, port) in ports_of(service).enumerate() {
        let protocol = protocol_of(port);
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if !exposed {
            // A port that was allocated goes with the type that needed it.
            if (!same_type || asked == 0)
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
            continue;
        }
        let path = Path::new("spec")
            .child("ports")
            .index(index)
            .child("nodePort");
        let range = u64::from(ranges.node_ports.0)..=u64::from(ranges.node_ports.1);
        let is_free = |port: u64, taken: &BTreeSet<(u64, String)>| {
            let this = (port, protocol.clone());
            !taken.contains(&this)
                && (before.contains(&this)
                    || context.api.store.get(&port_key(port, &protocol)).is_none())
        };
        let chosen = match asked {
            0 if !allocates => continue,
            0 => {
                let mut random = rand::rng();
                (0..64)
                    .map(|_| random.random_range(range.clone()))
                    .find(|port| is_free(*port, &taken))
                    .or_else(|| range.clone().find(|port| is_free(*port, &taken)))
                    .ok_or_else(|| StatusError::internal("every node port is taken"))?
            }
            asked if !range.contains(&asked) => {
                errors.invalid(
                    &path,
                    asked,
                    &format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        ranges.node_ports.0, ranges.node_ports.1
                    ),
                );
                continue;
            }
            asked if !is_free(asked, &taken) => {
                errors.invalid(&path, asked, "provided port is already allocated");
                continue;
            }
            asked => asked,
        };
        port["nodePort"] = json!(chosen);
        taken.insert((chosen, protocol));
    }
    if !errors.is_empty() {
        return Err(StatusError::invalid(context.resource.info(), &name, errors));
    }
    for (port, protocol) in taken.difference(&before) {
        take(port_key(*port, protocol), owner, transaction);
    }
    for (port, protocol) in before.difference(&taken) {
        transaction.operations.push(free(port_key(*port, protocol)));
    }
    Ok(())
}
