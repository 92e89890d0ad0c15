//! From a service to the elements of its frontends. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::elements::{
    Affinity, Balancer, Element, Elements, Family, Frontend, Key, Kind, Scope, Slot, Value,
};
use crate::{Endpoint, Held, Protocol, ServicePort};

/// What one service wants in the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct ServicePlan {
    frontends: BTreeMap<Frontend, Elements>,
    slots: BTreeMap<Choosing, Slots>,
}

/// Whose slots: a port's, among all its endpoints or those of this node.
type Choosing = (Protocol, IpAddr, u16, bool);

/// The slots of endpoints (see [`Affinity`]).
type Slots = BTreeMap<(IpAddr, u16), u32>;

impl ServicePlan {
    /// The plan for a service that has these ports and had the plan `before`, whose endpoints keep their slots.
    /// Should two ports claim the same frontend, the first by name has it, whatever order they come in.
    pub(super) fn new(ports: &[ServicePort], before: Option<&Self>) -> Self {
        let mut sorted: Vec<&ServicePort> = ports.iter().collect();
        sorted.sort_by_key(|port| (&port.port_name, port.protocol, port.port, port.cluster_ip));
        let mut plan = Self::default();
        for port in sorted {
            let all = plan.choice(port, &port.endpoints, false, before);
            let local = plan.choice(port, &port.local_endpoints, true, before);
            let family = Family::of(port.cluster_ip);
            let address = |ip| Frontend::Address(port.protocol, ip, port.port);
            let outside = port.external_local.then_some(&local);
            let inside = if port.internal_local { &local } else { &all };
            let unanswered = port.endpoints.is_empty() && port.local_endpoints.is_empty();
            let mut claim = |frontend, inside, outside, guards: &[IpNet]| {
                plan.frontends.entry(frontend).or_insert_with(|| {
                    let mut elements = guard(frontend, guards);
                    if unanswered {
                        elements.extend(unanswered_by_any(frontend, port.held.as_ref()));
                    } else {
                        balance(Scope::Anywhere, frontend, inside, &mut elements);
                        if let Some(outside) = outside {
                            balance(Scope::Outside, frontend, outside, &mut elements);
                        }
                    }
                    elements.sort_unstable_by_key(|&(key, _)| key);
                    elements.dedup_by_key(|&mut (key, _)| key);
                    elements.into()
                });
            };
            claim(address(port.cluster_ip), inside, None, &[]);
            for &ip in &port.load_balancer_ips {
                claim(address(ip), &all, outside, &port.source_ranges);
            }
            for &ip in &port.external_ips {
                claim(address(ip), &all, outside, &[]);
            }
            if let Some(number) = port.node_port {
                let frontend = Frontend::NodePort(family, port.protocol, number);
                claim(frontend, &all, outside, &[]);
            }
        }
        plan
    }

    /// What packets are addressed to.
    pub(super) fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.frontends.keys().copied()
    }

    /// The elements of a frontend.
    pub(super) fn elements(&self, frontend: Frontend) -> Option<&Elements> {
        self.frontends.get(&frontend)
    }

    fn choice(
        &mut self,
        port: &ServicePort,
        endpoints: &[Endpoint],
        local: bool,
        before: Option<&Self>,
    ) -> Choice {
        let mut endpoints = endpoints.to_vec();
        // Which number an endpoint has must depend on the set alone: nodes and restarts must agree.
        endpoints.sort_unstable();
        endpoints.dedup_by_key(|endpoint| (endpoint.ip, endpoint.port));
        let Some(timeout) = port.client_ip_affinity else {
            return Choice {
                endpoints,
                sticky: None,
            };
        };
        let choosing = (port.protocol, port.cluster_ip, port.port, local);
        let had = before.and_then(|before| before.slots.get(&choosing));
        let slots = assign(&endpoints, had);
        self.slots.insert(choosing, slots.clone());
        Choice {
            endpoints,
            sticky: Some((timeout, slots)),
        }
    }
}

/// Endpoints and how one is chosen.
struct Choice {
    endpoints: Vec<Endpoint>,
    /// Affinity's timeout, and the slots.
    sticky: Option<(u32, Slots)>,
}

/// Endpoints keep the slots they had; new ones take the lowest that are free.
fn assign(endpoints: &[Endpoint], had: Option<&Slots>) -> Slots {
    let key = |endpoint: &Endpoint| (endpoint.ip, endpoint.port);
    let mut slots: Slots = endpoints
        .iter()
        .filter_map(|endpoint| Some((key(endpoint), *had?.get(&key(endpoint))?)))
        .collect();
    let taken: BTreeSet<u32> = slots.values().copied().collect();
    let mut free = (0u32..).filter(|number| !taken.contains(number));
    for endpoint in endpoints {
        if !slots.contains_key(&key(endpoint)) {
            slots.extend(free.next().map(|number| (key(endpoint), number)));
        }
    }
    slots
}

/// The ranges of a family, without those that lie within others: the kernel would refuse them.
fn ranges_of(family: Family, ranges: &[IpNet]) -> Vec<IpNet> {
    let own = ranges.iter().map(IpNet::trunc);
    let own: Vec<IpNet> = own
        .filter(|range| Family::of(range.addr()) == family)
        .collect();
    IpNet::aggregate(&own)
}

fn is_everybody(ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| range.prefix_len() == 0)
}

/// Ranges of the other family say nothing about this one, as in Kubernetes.
fn guard(frontend: Frontend, ranges: &[IpNet]) -> Vec<Element> {
    let allowed = ranges_of(frontend.family(), ranges);
    if allowed.is_empty() || is_everybody(&allowed) {
        return Vec::new();
    }
    let mut elements: Vec<Element> = allowed
        .into_iter()
        .map(|range| (Key::Allowed(frontend, range), Value::Member))
        .collect();
    elements.push((Key::Guarded(frontend), Value::Member));
    elements
}

/// The elements of a frontend that nobody answers: its connections wait, but for those of whom it ignores, or are refused.
fn unanswered_by_any(frontend: Frontend, held: Option<&Held>) -> Vec<Element> {
    let held = held.filter(|_| frontend.protocol() == Protocol::Tcp);
    let ignored = held.map(|held| ranges_of(frontend.family(), &held.ignored));
    match ignored {
        Some(ignored) if !is_everybody(&ignored) => ignored
            .into_iter()
            .map(|range| (Key::Ignored(frontend, range), Value::Member))
            .chain([(Key::Held(frontend), Value::Member)])
            .collect(),
        _ => vec![(Key::Refused(frontend), Value::Member)],
    }
}

/// The elements that send what is addressed to the frontend to one of the endpoints.
fn balance(scope: Scope, frontend: Frontend, choice: &Choice, into: &mut Vec<Element>) {
    let kind = Kind::new(scope, frontend);
    if choice.endpoints.is_empty() {
        into.push((Key::Verdict(scope, frontend), Value::Drop));
        return;
    }
    let affinity = choice.sticky.as_ref().map(|(timeout, slots)| Affinity {
        timeout: *timeout,
        slots: slots.values().max().map_or(0, |highest| highest + 1),
    });
    let balancer = Balancer {
        kind,
        affinity,
        endpoints: u32::try_from(choice.endpoints.len()).unwrap_or(u32::MAX),
    };
    into.push((Key::Verdict(scope, frontend), Value::Balance(balancer)));
    for (index, endpoint) in (0u32..).zip(&choice.endpoints) {
        let to = Value::To(endpoint.ip, endpoint.port);
        let slot = choice.sticky.as_ref().and_then(|(timeout, slots)| {
            Some(Slot {
                kind,
                timeout: *timeout,
                number: *slots.get(&(endpoint.ip, endpoint.port))?,
            })
        });
        let backend = Key::Backend(balancer, frontend, index);
        match slot {
            None => into.push((backend, to)),
            Some(slot) => {
                into.push((backend, Value::Slot(slot)));
                into.push((Key::Target(kind, slot.number, frontend), to));
            }
        }
        if endpoint.local {
            into.push((Key::Hairpin(endpoint.ip), Value::Member));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{endpoint, service};
    use super::*;

    fn frontend(number: u16) -> Frontend {
        Frontend::NodePort(Family::Ipv4, Protocol::Tcp, number)
    }

    fn verdict(plan: &ServicePlan, scope: Scope, frontend: Frontend) -> Option<Value> {
        let elements = plan.elements(frontend)?;
        let found = elements
            .iter()
            .find(|(key, _)| *key == Key::Verdict(scope, frontend));
        found.map(|&(_, value)| value)
    }

    fn endpoints(value: Option<Value>) -> u32 {
        match value {
            Some(Value::Balance(balancer)) => balancer.endpoints,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter() {
        let web = service(1, &[1, 2, 3]);
        let mut turned = web.clone();
        turned.endpoints.reverse();
        turned.endpoints.push(endpoint(2));
        let (a, b) = (
            ServicePlan::new(&[web], None),
            ServicePlan::new(&[turned], None),
        );
        assert_eq!(a.frontends, b.frontends);
    }

    #[test]
    fn local_policies_keep_to_this_node() {
        let mut web = service(1, &[1, 2]);
        (web.node_port, web.external_local) = (Some(30000), true);
        web.local_endpoints = vec![endpoint(1)];
        let plan = ServicePlan::new(std::slice::from_ref(&web), None);
        let port = frontend(30000);
        assert_eq!(endpoints(verdict(&plan, Scope::Outside, port)), 1);
        assert_eq!(endpoints(verdict(&plan, Scope::Anywhere, port)), 2);
        let address = Frontend::Address(Protocol::Tcp, web.cluster_ip, 80);
        assert_eq!(endpoints(verdict(&plan, Scope::Anywhere, address)), 2);
        assert_eq!(verdict(&plan, Scope::Outside, address), None);
        web.internal_local = true;
        let plan = ServicePlan::new(std::slice::from_ref(&web), None);
        assert_eq!(endpoints(verdict(&plan, Scope::Anywhere, address)), 1);
        web.local_endpoints.clear();
        let plan = ServicePlan::new(std::slice::from_ref(&web), None);
        for (scope, frontend) in [(Scope::Outside, port), (Scope::Anywhere, address)] {
            assert_eq!(verdict(&plan, scope, frontend), Some(Value::Drop));
        }
        web.endpoints.clear();
        let plan = ServicePlan::new(&[web], None);
        for frontend in [port, address] {
            let refused = [(Key::Refused(frontend), Value::Member)];
            assert_eq!(plan.elements(frontend).unwrap()[..], refused);
        }
    }

    #[test]
    fn endpoints_keep_their_slots_and_new_ones_fill_gaps() {
        let mut web = service(1, &[1, 2, 3]);
        web.client_ip_affinity = Some(60);
        let first = ServicePlan::new(std::slice::from_ref(&web), None);
        web.endpoints = vec![endpoint(9), endpoint(3), endpoint(0)];
        let then = ServicePlan::new(std::slice::from_ref(&web), Some(&first));
        let address = Frontend::Address(Protocol::Tcp, web.cluster_ip, 80);
        let kind = Kind::new(Scope::Anywhere, address);
        let target = |number: u32| {
            let elements = then.elements(address).unwrap();
            let key = Key::Target(kind, number, address);
            elements.iter().find(|(found, _)| *found == key).unwrap().1
        };
        let to = |number| Value::To(endpoint(number).ip, 8080);
        assert_eq!([target(0), target(1), target(2)], [to(0), to(9), to(3)]);
    }

    #[test]
    fn source_ranges_guard_the_balancer_and_are_merged() {
        let mut web = service(1, &[1]);
        web.node_port = Some(30000);
        web.load_balancer_ips = vec![[192, 0, 2, 1].into()];
        web.source_ranges = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]
            .map(|range| range.parse().unwrap())
            .into();
        let plan = ServicePlan::new(std::slice::from_ref(&web), None);
        let balancer = Frontend::Address(Protocol::Tcp, [192, 0, 2, 1].into(), 80);
        let guards = |frontend| -> Vec<Key> {
            let keys = plan.elements(frontend).unwrap().iter().map(|&(key, _)| key);
            keys.filter(|key| matches!(key, Key::Guarded(_) | Key::Allowed(..)))
                .collect()
        };
        let allowed = Key::Allowed(balancer, "10.0.0.0/8".parse().unwrap());
        assert_eq!(guards(balancer), [Key::Guarded(balancer), allowed]);
        assert_eq!(guards(frontend(30000)), []);
        web.source_ranges.push("0.0.0.0/0".parse().unwrap());
        let plan = ServicePlan::new(&[web], None);
        let elements = plan.elements(balancer).unwrap();
        assert!(!elements.contains(&(Key::Guarded(balancer), Value::Member)));
    }
}
