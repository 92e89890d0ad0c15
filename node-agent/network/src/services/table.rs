//! What the tables should hold, by service, and the difference that a change makes. Pure.
//!
//! The cost of a change is that of the services it names. What several services need (a chain, the pair of addresses
//! of a hairpin, a frontend that two of them claim) is counted, so that it comes with the first and goes with the
//! last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::elements::{Element, Elements, Frontend, Key, Part, Value};
use super::plan::ServicePlan;
use crate::holding::Reception;
use crate::{Protocol, ServiceChanges, ServiceName};

/// All services, planned.
#[derive(Debug, Default)]
pub(super) struct Table {
    services: BTreeMap<Arc<ServiceName>, ServicePlan>,
    /// Who wants a frontend: the first by namespace and name has it.
    claims: BTreeMap<Frontend, BTreeSet<Arc<ServiceName>>>,
    hairpins: Counts<IpAddr>,
    parts: Counts<Part>,
}

/// What a frontend was before a change.
#[derive(Debug)]
struct Before {
    elements: Option<Elements>,
    reception: Reception,
}

/// How the kernel's tables change.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Difference {
    /// Parts to create; each needs only earlier ones.
    pub(super) created: BTreeSet<Part>,
    /// Elements to delete.
    pub(super) gone: Vec<Element>,
    /// Elements to add, after deleting.
    pub(super) added: Vec<Element>,
    /// Parts that nothing needs any more; each is needed only by later ones.
    pub(super) removed: BTreeSet<Part>,
    /// Whose tracked flows may lead elsewhere now.
    pub(super) flows: Vec<Answerers>,
    /// Whose connections that nobody has answered yet may lead elsewhere now.
    pub(super) attempts: Vec<Answerers>,
    /// What becomes of new connections to frontends that were held, or are.
    pub(super) receptions: BTreeMap<Frontend, Reception>,
}

/// Who answers a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answerers {
    pub(super) frontend: Frontend,
    /// `None` when it is no service's any more.
    pub(super) endpoints: Option<BTreeSet<(IpAddr, u16)>>,
}

impl Difference {
    fn untracked_for(&mut self, frontend: Frontend) -> &mut Vec<Answerers> {
        match frontend.protocol() {
            // Whose packets are related to each other only by connection tracking.
            Protocol::Udp | Protocol::Sctp => &mut self.flows,
            // An established connection ends by itself, and may finish.
            Protocol::Tcp => &mut self.attempts,
        }
    }
}

impl Table {
    /// Takes the changes over.
    pub(super) fn change(&mut self, changes: ServiceChanges) -> Difference {
        let mut services = changes.services;
        if changes.complete {
            for name in self.services.keys() {
                services.entry(ServiceName::clone(name)).or_default();
            }
        }
        let mut touched: BTreeMap<Frontend, Before> = BTreeMap::new();
        for (name, ports) in services {
            let before = self.services.get(&name);
            if before.is_none() && ports.is_empty() {
                continue;
            }
            let after = ServicePlan::new(&ports, before);
            let frontends: BTreeSet<Frontend> = before
                .into_iter()
                .flat_map(ServicePlan::frontends)
                .chain(after.frontends())
                .filter(|&frontend| {
                    before.and_then(|plan| plan.elements(frontend)) != after.elements(frontend)
                })
                .collect();
            for &frontend in &frontends {
                touched.entry(frontend).or_insert_with(|| Before {
                    elements: self.active(frontend).cloned(),
                    reception: self.reception(frontend),
                });
            }
            let name = Arc::new(name);
            for frontend in frontends {
                let claims = self.claims.entry(frontend).or_default();
                if after.elements(frontend).is_some() {
                    claims.insert(Arc::clone(&name));
                } else {
                    claims.remove(&name);
                }
                if claims.is_empty() {
                    self.claims.remove(&frontend);
                }
            }
            if ports.is_empty() {
                self.services.remove(&name);
            } else {
                self.services.insert(name, after);
            }
        }
        self.exchange(&touched)
    }

    /// The elements of a frontend: those of the service that has it.
    fn active(&self, frontend: Frontend) -> Option<&Elements> {
        let owner = self.claims.get(&frontend)?.first()?;
        self.services.get(owner)?.elements(frontend)
    }

    /// What becomes of new connections to a frontend.
    pub(super) fn reception(&self, frontend: Frontend) -> Reception {
        let owner = self.claims.get(&frontend).and_then(BTreeSet::first);
        let Some(owner) = owner else {
            return Reception::Refused;
        };
        let own = elements(self.active(frontend)).iter();
        let mut receptions = own.filter_map(|(key, _)| match key {
            Key::Held(_) => Some(Reception::Held(Arc::clone(owner))),
            Key::Refused(_) => Some(Reception::Refused),
            Key::Verdict(..) => Some(Reception::Served),
            _ => None,
        });
        receptions.next().unwrap_or(Reception::Refused)
    }

    /// The difference between what these frontends had and what they have now.
    fn exchange(&mut self, touched: &BTreeMap<Frontend, Before>) -> Difference {
        let mut difference = Difference::default();
        let mut hairpins = (Vec::new(), Vec::new());
        for (&frontend, before) in touched {
            let reception = self.reception(frontend);
            let held = |reception: &Reception| matches!(reception, Reception::Held(_));
            if reception != before.reception && (held(&reception) || held(&before.reception)) {
                difference.receptions.insert(frontend, reception);
            }
            let (old, new) = (&before.elements, self.active(frontend));
            if old.as_ref() == new {
                continue;
            }
            if let Some(answerers) = answerers(frontend, old.as_ref(), new) {
                difference.untracked_for(frontend).push(answerers);
            }
            let (gone, added) = changed(elements(old.as_ref()), elements(new));
            for (elements, all, hairpins) in [
                (gone, &mut difference.gone, &mut hairpins.0),
                (added, &mut difference.added, &mut hairpins.1),
            ] {
                for element in elements {
                    match element.0 {
                        Key::Hairpin(address) => hairpins.push(address),
                        _ => all.push(element),
                    }
                }
            }
        }
        // What is needed first, so that what stays in use never goes.
        for address in hairpins.1 {
            if self.hairpins.hold(address) {
                let element = (Key::Hairpin(address), Value::Member);
                difference.added.push(element);
            }
        }
        for address in hairpins.0 {
            if self.hairpins.release(address) {
                difference.gone.push((Key::Hairpin(address), Value::Member));
            }
        }
        self.exchange_parts(&mut difference);
        difference
    }

    fn exchange_parts(&mut self, difference: &mut Difference) {
        let needed = |elements: &[Element]| -> Vec<Part> {
            let parts = elements.iter().filter_map(|(_, value)| match value {
                Value::Balance(balancer) => Some(Part::Balancer(*balancer)),
                _ => None,
            });
            parts.collect()
        };
        let mut waiting = needed(&difference.added);
        while let Some(part) = waiting.pop() {
            if self.parts.hold(part) {
                difference.created.insert(part);
                waiting.extend(part.needs());
            }
        }
        let mut waiting = needed(&difference.gone);
        while let Some(part) = waiting.pop() {
            if self.parts.release(part) {
                difference.removed.insert(part);
                waiting.extend(part.needs());
            }
        }
    }

    /// The difference between empty tables and all services.
    pub(super) fn whole(&self) -> Difference {
        let mut difference = Difference {
            created: self.parts.held().collect(),
            ..Difference::default()
        };
        for &frontend in self.claims.keys() {
            let active = self.active(frontend);
            if let Some(answerers) = answerers(frontend, None, active) {
                difference.untracked_for(frontend).push(answerers);
            }
            let reception = self.reception(frontend);
            if matches!(reception, Reception::Held(_)) {
                difference.receptions.insert(frontend, reception);
            }
            let own = elements(active).iter().copied();
            difference
                .added
                .extend(own.filter(|(key, _)| !matches!(key, Key::Hairpin(_))));
        }
        let hairpins = self.hairpins.held();
        difference
            .added
            .extend(hairpins.map(|address| (Key::Hairpin(address), Value::Member)));
        difference
    }
}

fn elements(of: Option<&Elements>) -> &[Element] {
    of.map_or(&[], |elements| elements)
}

/// Elements to delete and to add, by walking both sorted lists once. A changed value is both.
fn changed(old: &[Element], new: &[Element]) -> (Vec<Element>, Vec<Element>) {
    let (mut gone, mut added) = (Vec::new(), Vec::new());
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return (gone, added),
            (Some(before), Some(after)) if before == after => {
                old.next();
                new.next();
            }
            (Some(before), after) if after.is_none_or(|after| before.0 <= after.0) => {
                gone.extend(old.next());
            }
            _ => added.extend(new.next()),
        }
    }
}

/// Whom flows may lead to, when some of those that answered do so no longer, or when there was nobody to answer.
fn answerers(
    frontend: Frontend,
    old: Option<&Elements>,
    new: Option<&Elements>,
) -> Option<Answerers> {
    let endpoints = |of: &Elements| -> BTreeSet<(IpAddr, u16)> {
        let targets = of.iter().filter_map(|(_, value)| match value {
            Value::To(address, port) => Some((*address, *port)),
            _ => None,
        });
        targets.collect()
    };
    let before = old.map(endpoints).unwrap_or_default();
    let now = new.map(endpoints);
    let stay = now.as_ref().is_some_and(|now| before.is_subset(now));
    // A connection of TCP to a service without endpoints is refused, and leaves nothing behind.
    let unanswered = before.is_empty() && frontend.protocol() != Protocol::Tcp;
    (unanswered || !stay).then_some(Answerers {
        frontend,
        endpoints: now,
    })
}

/// How often things are needed.
#[derive(Debug)]
struct Counts<T>(BTreeMap<T, u32>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy + Ord + Hash> Counts<T> {
    /// Whether it was not needed before.
    fn hold(&mut self, thing: T) -> bool {
        let count = self.0.entry(thing).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether it is needed no more.
    fn release(&mut self, thing: T) -> bool {
        match self.0.get_mut(&thing) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => self.0.remove(&thing).is_some(),
        }
    }

    fn held(&self) -> impl Iterator<Item = T> {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changes, endpoint, service};
    use super::*;

    #[test]
    fn the_first_by_name_has_a_frontend_that_two_claim() {
        let shared = Frontend::Address(Protocol::Tcp, [192, 0, 2, 9].into(), 80);
        let [mut a, mut b] = [service(1, &[1]), service(2, &[2, 3])];
        a.external_ips = vec![[192, 0, 2, 9].into()];
        b.external_ips.clone_from(&a.external_ips);
        let answers = |table: &Table| -> Vec<Value> {
            let elements = table.active(shared).unwrap().iter();
            elements
                .filter(|(key, _)| matches!(key, Key::Backend(..)))
                .map(|&(_, value)| value)
                .collect()
        };
        let to = |number| Value::To(endpoint(number).ip, 8080);
        let mut table = Table::default();
        table.change(changes([("b", Some(b.clone()))]));
        assert_eq!(answers(&table), [to(2), to(3)]);
        table.change(changes([("a", Some(a))]));
        assert_eq!(answers(&table), [to(1)]);
        assert_eq!(
            table.change(changes([("b", Some(b.clone()))])),
            Difference::default()
        );
        b.external_ips.clear();
        let difference = table.change(changes([("b", Some(b))]));
        assert_eq!(difference, Difference::default(), "a claim without effect");
        let difference = table.change(changes([("a", None)]));
        assert!(difference.added.is_empty() && table.active(shared).is_none());
    }

    #[test]
    fn flows_are_looked_at_only_where_they_may_lead_elsewhere() {
        let mut table = Table::default();
        let mut dns = service(1, &[1, 2]);
        dns.protocol = Protocol::Udp;
        let mut apply =
            |dns: Option<&crate::ServicePort>| table.change(changes([("dns", dns.cloned())])).flows;
        let frontend = Frontend::Address(Protocol::Udp, dns.cluster_ip, 80);
        let expected = |endpoints: Option<&[u16]>| Answerers {
            frontend,
            endpoints: endpoints.map(|some| some.iter().map(|&n| (endpoint(n).ip, 8080)).collect()),
        };
        assert_eq!(
            apply(Some(&dns)),
            [expected(Some(&[1, 2]))],
            "a new service"
        );
        dns.endpoints.push(endpoint(3));
        assert_eq!(apply(Some(&dns)), [], "one more endpoint");
        dns.endpoints.remove(0);
        assert_eq!(apply(Some(&dns)), [expected(Some(&[2, 3]))]);
        dns.endpoints.clear();
        assert_eq!(apply(Some(&dns)), [expected(Some(&[]))]);
        dns.endpoints.push(endpoint(4));
        assert_eq!(
            apply(Some(&dns)),
            [expected(Some(&[4]))],
            "the first endpoint"
        );
        assert_eq!(apply(None), [expected(None)]);
    }
}
