//! From services to the elements of maps. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::{Endpoint, Protocol, ServicePort};

/// What a packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Frontend {
    /// An address of the service: ClusterIP, external or load balancer address.
    Address(Protocol, Ipv4Addr, u16),
    /// A port on all addresses of the node.
    NodePort(Protocol, u16),
}

impl Frontend {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Address(protocol, ..) | Self::NodePort(protocol, _) => protocol,
        }
    }
}

/// Which packets a frontend's rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// Only those from outside the node and its pods, looked up first: they keep their source address, so only
    /// endpoints of this node may answer (`externalTrafficPolicy: Local`).
    Outside,
    /// All of them.
    Anywhere,
}

/// A chain and its map: everything that balancing depends on except the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) protocol: Protocol,
    pub(super) node_port: bool,
    pub(super) scope: Scope,
    pub(super) sticky: bool,
    pub(super) endpoints: u32,
}

/// Which element, in order of the maps that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The frontend's verdict.
    Verdict(Scope, Frontend),
    /// The frontend's n-th endpoint.
    Backend(Shape, Frontend, u32),
    /// A frontend without any endpoint.
    Refused(Frontend),
    /// An endpoint on this node, which must not get a packet from its own address.
    Hairpin(Ipv4Addr),
}

/// What the element holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Balance in this chain.
    Balance(Shape),
    /// No endpoint may answer here though others could elsewhere.
    Drop,
    /// Translate to.
    To(Ipv4Addr, u16),
    /// Member of a set.
    Member,
}

/// All elements, sorted by key and unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    elements: Vec<(Key, Value)>,
}

/// A frontend's endpoints and how to choose among them.
struct Target<'a> {
    sticky: bool,
    local_only: bool,
    endpoints: &'a [Endpoint],
}

impl Plan {
    /// The elements for `desired`. Should two services claim the same frontend, the first by namespace and name has
    /// it, whatever order they come in.
    pub(super) fn new(desired: &[ServicePort]) -> Self {
        let mut services: Vec<&ServicePort> = desired.iter().collect();
        services.sort_by_key(|s| (&s.namespace, &s.service, &s.port_name, s.protocol, s.port));
        let mut targets: BTreeMap<(Scope, Frontend), Target<'_>> = BTreeMap::new();
        for service in services {
            let sticky = service.client_ip_affinity.is_some();
            let mut claim = |scope, frontend, local_only| {
                targets.entry((scope, frontend)).or_insert(Target {
                    sticky,
                    local_only,
                    endpoints: &service.endpoints,
                });
            };
            if let Some(ip) = service.cluster_ip {
                let frontend = Frontend::Address(service.protocol, ip, service.port);
                claim(Scope::Anywhere, frontend, service.internal_local);
            }
            let addresses = service
                .external_ips
                .iter()
                .map(|&ip| Frontend::Address(service.protocol, ip, service.port));
            let ports = service
                .node_port
                .map(|port| Frontend::NodePort(service.protocol, port));
            for frontend in addresses.chain(ports) {
                claim(Scope::Anywhere, frontend, false);
                // Without any endpoint there is nothing to keep local: it is refused like everywhere.
                if service.external_local && !service.endpoints.is_empty() {
                    claim(Scope::Outside, frontend, true);
                }
            }
        }
        let mut elements = Vec::with_capacity(targets.len() * 4);
        for (&(scope, frontend), target) in &targets {
            target.elements(scope, frontend, &mut elements);
        }
        elements.sort_unstable_by_key(|&(key, _)| key);
        elements.dedup_by_key(|&mut (key, _)| key);
        Self { elements }
    }

    /// The elements in order.
    pub(super) fn elements(&self) -> &[(Key, Value)] {
        &self.elements
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// The chains that elements refer to.
    pub(super) fn shapes(&self) -> impl Iterator<Item = Shape> {
        self.elements.iter().filter_map(|&(_, value)| match value {
            Value::Balance(shape) => Some(shape),
            _ => None,
        })
    }
}

impl Target<'_> {
    fn elements(&self, scope: Scope, frontend: Frontend, into: &mut Vec<(Key, Value)>) {
        if self.endpoints.is_empty() {
            into.push((Key::Refused(frontend), Value::Member));
            return;
        }
        let mut chosen: Vec<&Endpoint> = self
            .endpoints
            .iter()
            .filter(|e| e.local || !self.local_only)
            .collect();
        // Where a client goes must depend on the set alone: nodes and restarts must agree.
        chosen.sort_unstable();
        chosen.dedup_by_key(|e| (e.ip, e.port));
        if chosen.is_empty() {
            into.push((Key::Verdict(scope, frontend), Value::Drop));
            return;
        }
        let shape = Shape {
            protocol: frontend.protocol(),
            node_port: matches!(frontend, Frontend::NodePort(..)),
            scope,
            sticky: self.sticky,
            endpoints: u32::try_from(chosen.len()).unwrap_or(u32::MAX),
        };
        into.push((Key::Verdict(scope, frontend), Value::Balance(shape)));
        for (index, endpoint) in (0u32..).zip(chosen) {
            into.push((
                Key::Backend(shape, frontend, index),
                Value::To(endpoint.ip, endpoint.port),
            ));
            if endpoint.local {
                into.push((Key::Hairpin(endpoint.ip), Value::Member));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{endpoint, service};
    use super::*;

    fn of(plan: &Plan) -> Vec<String> {
        plan.elements()
            .iter()
            .map(|element| format!("{element:?}"))
            .collect()
    }

    #[test]
    fn order_of_services_and_endpoints_does_not_matter() {
        let (a, b) = (service("a", 1, &[1, 2, 3]), service("b", 2, &[4]));
        let mut turned = a.clone();
        turned.endpoints.reverse();
        turned.endpoints.push(endpoint(2));
        assert_eq!(
            of(&Plan::new(&[a, b.clone()])),
            of(&Plan::new(&[b, turned]))
        );
    }

    #[test]
    fn the_first_by_name_has_a_frontend_that_two_claim() {
        let (mut a, mut b) = (service("a", 1, &[1]), service("b", 2, &[2, 3]));
        a.external_ips = vec![[192, 0, 2, 9].into()];
        b.external_ips.clone_from(&a.external_ips);
        let plan = Plan::new(&[b, a]);
        let shared = Frontend::Address(Protocol::Tcp, [192, 0, 2, 9].into(), 80);
        let backends: Vec<_> = plan
            .elements()
            .iter()
            .filter(|(key, _)| matches!(key, Key::Backend(_, f, _) if *f == shared))
            .collect();
        assert_eq!(backends.len(), 1, "{backends:?}");
        assert_eq!(backends[0].1, Value::To(endpoint(1).ip, 8080));
    }

    #[test]
    fn local_policies_keep_to_this_node() {
        let mut local = service("a", 1, &[1, 2]);
        local.endpoints[1].local = false;
        (local.node_port, local.external_local) = (Some(30000), true);
        let frontend = Frontend::NodePort(Protocol::Tcp, 30000);
        let verdict = |plan: &Plan, scope| {
            plan.elements()
                .iter()
                .find(|(key, _)| *key == Key::Verdict(scope, frontend))
                .map(|&(_, value)| value)
        };
        let endpoints = |value| match value {
            Some(Value::Balance(shape)) => shape.endpoints,
            other => panic!("{other:?}"),
        };
        let plan = Plan::new(std::slice::from_ref(&local));
        assert_eq!(endpoints(verdict(&plan, Scope::Outside)), 1);
        assert_eq!(endpoints(verdict(&plan, Scope::Anywhere)), 2);
        local.endpoints.remove(0);
        let plan = Plan::new(std::slice::from_ref(&local));
        assert_eq!(verdict(&plan, Scope::Outside), Some(Value::Drop));
        local.endpoints.clear();
        let plan = Plan::new(&[local]);
        assert_eq!(verdict(&plan, Scope::Outside), None);
        assert!(
            plan.elements()
                .contains(&(Key::Refused(frontend), Value::Member))
        );
    }

    #[test]
    fn a_headless_service_without_node_port_needs_nothing() {
        let mut headless = service("a", 1, &[1, 2]);
        headless.cluster_ip = None;
        assert_eq!(Plan::new(&[headless]).len(), 0);
    }
}
