//! Node ports: one for each port of a service that nodes publish, and one by which a balancer asks nodes for endpoints.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::{Key, Table, Transaction};
use rand::Rng;
use serde_json::{Value, json};

use super::allocation::{Allocation, free, service_type};
use crate::context::Context;

/// A port number of every node, and the protocol it serves.
type NodePort = (u64, String);

const HEALTH_CHECK: &str = "healthCheckNodePort";

/// One port number serves one protocol of one service.
fn key((port, protocol): &NodePort) -> Key {
    Key {
        table: Table("-/nodeports".into()),
        namespace: "".into(),
        name: format!("{port}-{protocol}").as_str().into(),
    }
}

fn protocol_of(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

fn number_of(value: &Value) -> Option<u64> {
    value.as_u64().filter(|port| *port > 0)
}

fn health_check(service: &Value) -> Option<u64> {
    number_of(&service["spec"][HEALTH_CHECK])
}

fn node_ports(service: &Value) -> BTreeSet<NodePort> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut found: BTreeSet<NodePort> = ports
        .filter_map(|port| Some((number_of(&port["nodePort"])?, protocol_of(port))))
        .collect();
    found.extend(health_check(service).map(|port| (port, "TCP".to_owned())));
    found
}

/// Ports, to be changed. (Indexing a value to change it would leave a null where there are none.)
fn ports_of(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn is_published(service: &Value) -> bool {
    ["NodePort", "LoadBalancer"].contains(&service_type(service))
}

pub(super) fn release(service: &Value, transaction: &mut Transaction) {
    for port in node_ports(service) {
        free(key(&port), transaction);
    }
}

/// A client that leaves out what was allocated means to keep it.
pub(super) fn keep(service: &mut Value, current: &Value) {
    if !is_published(service) || !is_published(current) {
        return;
    }
    let mut before = HashMap::new();
    for port in current["spec"]["ports"].as_array().into_iter().flatten() {
        let same = (&port["port"], protocol_of(port));
        before.entry(same).or_insert(number_of(&port["nodePort"]));
    }
    for port in ports_of(service) {
        if number_of(&port["nodePort"]).is_some() {
            continue;
        }
        let same = before.get(&(&port["port"], protocol_of(port)));
        if let Some(number) = same.copied().flatten() {
            *port.member(&["nodePort"]) = json!(number);
        }
    }
}

/// Which ports are free: in the cluster, and for this service.
struct Free<'a> {
    context: &'a Context<'a>,
    range: RangeInclusive<u64>,
    before: BTreeSet<NodePort>,
    taken: BTreeSet<NodePort>,
}

impl Free<'_> {
    fn has(&self, port: &NodePort) -> bool {
        let store = &self.context.api.store;
        !self.taken.contains(port)
            && (self.before.contains(port) || store.get(&key(port)).is_none())
    }

    /// Any free one.
    fn any(&self, protocol: &str) -> Result<NodePort, StatusError> {
        let mut random = rand::rng();
        let free = |number: u64| Some((number, protocol.to_owned())).filter(|port| self.has(port));
        (0..64)
            .find_map(|_| free(random.random_range(self.range.clone())))
            .or_else(|| self.range.clone().find_map(free))
            .ok_or_else(|| StatusError::internal("every node port is taken"))
    }

    /// The one that the client names, if it can have it.
    fn this(&self, port: NodePort, path: &Path, errors: &mut ErrorList) -> Option<NodePort> {
        if !self.range.contains(&port.0) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.range.start(),
                self.range.end()
            );
            errors.invalid(path, port.0, &detail);
            return None;
        }
        if !self.has(&port) {
            errors.invalid(path, port.0, "provided port is already allocated");
            return None;
        }
        Some(port)
    }
}

/// Gives the ports that are missing, takes those that the client names, and returns the others.
pub(super) fn allocate(
    allocation: &mut Allocation<'_>,
    service: &mut Value,
) -> Result<(), StatusError> {
    let (first, last) = allocation.ranges.node_ports;
    let mut free_ports = Free {
        context: allocation.context,
        range: u64::from(first)..=u64::from(last),
        before: allocation.current.map(node_ports).unwrap_or_default(),
        taken: BTreeSet::new(),
    };
    let mut errors = ErrorList::default();
    if is_published(service) {
        publish(&mut free_ports, service, &mut errors)?;
    } else {
        // Ports that were allocated go with the type that needed them.
        let same = |current: &Value| service_type(current) == service_type(service);
        let changed = !allocation.current.is_none_or(same);
        for port in ports_of(service) {
            if (changed || number_of(&port["nodePort"]).is_none())
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
    check_health(&mut free_ports, service, &mut errors)?;
    if !errors.is_empty() {
        return Err(allocation.refuse(service, errors));
    }
    let Free { before, taken, .. } = free_ports;
    for port in taken.difference(&before) {
        allocation.take(key(port));
    }
    for port in before.difference(&taken) {
        free(key(port), allocation.transaction);
    }
    Ok(())
}

fn publish(
    free_ports: &mut Free<'_>,
    service: &mut Value,
    errors: &mut ErrorList,
) -> Result<(), StatusError> {
    let allocates = service_type(service) == "NodePort"
        || service["spec"]["allocateLoadBalancerNodePorts"] != false;
    // One service may offer a port over several protocols, under one number on the nodes.
    let mut given: HashMap<Value, u64> = HashMap::new();
    for port in ports_of(service) {
        if let Some(number) = number_of(&port["nodePort"]) {
            given.entry(port["port"].clone()).or_insert(number);
        }
    }
    for (index, port) in ports_of(service).enumerate() {
        let protocol = protocol_of(port);
        let path = Path::new("spec").child("ports").index(index);
        let chosen = match number_of(&port["nodePort"]) {
            Some(asked) => free_ports.this((asked, protocol), &path.child("nodePort"), errors),
            None if !allocates => None,
            None => {
                let sibling = given.get(&port["port"]);
                let shared = sibling
                    .map(|number| (*number, protocol.clone()))
                    .filter(|port| free_ports.has(port));
                Some(match shared {
                    Some(shared) => shared,
                    None => free_ports.any(&protocol)?,
                })
            }
        };
        if let Some(chosen) = chosen {
            *port.member(&["nodePort"]) = json!(chosen.0);
            given.entry(port["port"].clone()).or_insert(chosen.0);
            free_ports.taken.insert(chosen);
        }
    }
    Ok(())
}

/// A balancer that must not send to nodes without endpoints asks them on a port of its own.
fn check_health(
    free_ports: &mut Free<'_>,
    service: &mut Value,
    errors: &mut ErrorList,
) -> Result<(), StatusError> {
    let needed = service_type(service) == "LoadBalancer"
        && service["spec"]["externalTrafficPolicy"] == "Local";
    if !needed {
        return Ok(());
    }
    let chosen = match health_check(service) {
        Some(asked) => {
            let path = Path::new("spec").child(HEALTH_CHECK);
            free_ports.this((asked, "TCP".to_owned()), &path, errors)
        }
        None => Some(free_ports.any("TCP")?),
    };
    if let Some(chosen) = chosen {
        *service.member(&["spec", HEALTH_CHECK]) = json!(chosen.0);
        free_ports.taken.insert(chosen);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_is_kept_for_the_same_port_and_protocol() {
        // Looked for one by one, these would be thousands of millions of comparisons.
        const PORTS: u32 = 100_000;
        let ports = |port: fn(u32) -> Value| {
            let ports: Vec<Value> = (0..PORTS).map(port).collect();
            json!({"spec": {"type": "NodePort", "ports": ports}})
        };
        let current = ports(
            |at| json!({"port": at / 2, "protocol": if at % 2 == 0 { "TCP" } else { "UDP" }, "nodePort": at + 1}),
        );
        let mut service = ports(|at| json!({"port": (PORTS - 1 - at) / 2, "protocol": "UDP"}));
        keep(&mut service, &current);
        let kept = service["spec"]["ports"].as_array().expect("a list");
        assert_eq!(kept[0]["nodePort"], PORTS);
        assert_eq!(kept[kept.len() - 1]["nodePort"], 2);
        let mut named = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 0, "nodePort": 9}, {"port": 0}, {"port": 0, "protocol": "SCTP"}
        ]}});
        keep(&mut named, &current);
        let numbers = ports_of(&mut named).map(|port| number_of(&port["nodePort"]));
        assert_eq!(numbers.collect::<Vec<_>>(), [Some(9), Some(1), None]);
    }
}
