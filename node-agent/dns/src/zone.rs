//! The cluster's zone: answers from the names of its services. Pure.
//!
//! Beside the services' records it knows the names every Kubernetes cluster has: `dns-version.<domain>` (TXT, the
//! version of the DNS specification), `<a-b-c-d>.<namespace>.pod.<domain>` for the address a.b.c.d (any address, as
//! kubeadm configures it: "pods insecure"), and the zone's own SOA and NS.
//!
//! A zone never changes. [`Zone::change`] makes the next one, which shares everything with it but the paths to the
//! names that differ: a query sees all names as they were at one moment, and a change costs what it changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use gantry_cri::ServiceName;
use gantry_cri::dns::{DnsRecord, DnsTable};
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use imbl::HashMap;
use ipnet::IpNet;

use crate::error::DnsError;

/// Seconds that others may remember an answer: short, since endpoints come and go.
pub(crate) const TTL: u32 = 5;
/// Version of the Kubernetes DNS specification that the names follow.
const SPECIFICATION: &str = "1.1.0";

/// What a query found.
#[derive(Debug)]
pub(crate) enum Found {
    /// All there is to say.
    Answer(Answer),
    /// An alias to a name that has to be looked up in turn.
    Alias { record: Box<Record>, target: Name },
    /// Not a name of the cluster.
    Elsewhere,
}

/// The sections of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// The zone with its records.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    domain: Arc<Domain>,
    names: HashMap<Arc<str>, Node>,
    reverse: HashMap<IpAddr, Arc<[Name]>>,
    /// Counts the changes, for the SOA.
    serial: u32,
}

/// A name that exists: because it has records, or because names below it do (which is no NXDOMAIN either).
#[derive(Clone, Debug, Default)]
struct Node {
    records: Option<Arc<[RData]>>,
    /// Names one label below this one that exist.
    below: u32,
}

#[derive(Debug)]
struct Domain {
    /// Lower case, without the trailing dot, as the keys of names are.
    key: String,
    name: Name,
    server: Name,
    mailbox: Name,
}

impl Zone {
    /// The zone of `domain`, without services.
    pub(crate) fn new(domain: &str) -> Result<Self, DnsError> {
        let key = domain.trim_matches('.').to_ascii_lowercase();
        let absolute = |relative: &str| {
            Name::from_ascii(format!("{relative}{key}.")).map_err(|e| {
                DnsError::Domain(format!("cluster domain {domain:?} is no domain name: {e}"))
            })
        };
        if key.is_empty() {
            return Err(DnsError::Domain(
                "the cluster domain is empty; use cluster.local".to_owned(),
            ));
        }
        let (name, server, mailbox) = (
            absolute("")?,
            absolute("ns.dns.")?,
            absolute("hostmaster.")?,
        );
        let domain = Arc::new(Domain {
            key,
            name,
            server,
            mailbox,
        });
        Ok(Self {
            domain,
            names: HashMap::new(),
            reverse: HashMap::new(),
            serial: 1,
        })
    }

    /// The zone's own name.
    pub(crate) fn origin(&self) -> &Name {
        &self.domain.name
    }

    /// Makes the names of a service those of `new`, which were those of `old`.
    pub(crate) fn change(&mut self, service: &ServiceName, old: &DnsTable, new: &DnsTable) {
        let ServiceName { namespace, name } = service;
        let base = format!("{name}.{namespace}.svc.{}", self.domain.key).to_ascii_lowercase();
        let own = |name: &str| {
            name.strip_suffix(base.as_str())
                .is_some_and(|label| label.is_empty() || label.ends_with('.'))
        };
        for name in old.records.keys() {
            if !new.records.contains_key(name) && own(name) {
                self.set(name, None);
            }
        }
        for (name, records) in &new.records {
            if old.records.get(name) == Some(records) {
                continue;
            }
            if own(name) {
                self.set(name, Some(records.iter().flat_map(data).collect()));
            } else {
                tracing::warn!(
                    name,
                    service = base,
                    "not a name of this service; left out of DNS"
                );
            }
        }
        for (address, name) in &old.reverse {
            if new.reverse.get(address) != Some(name) {
                self.forget_pointer(*address, name);
            }
        }
        for (address, name) in &new.reverse {
            if old.reverse.get(address) != Some(name) {
                self.add_pointer(*address, name);
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    fn set(&mut self, name: &str, records: Option<Arc<[RData]>>) {
        match self.names.get_mut(name) {
            Some(node) => node.records = records,
            None if records.is_none() => return,
            None => {
                self.names.insert(name.into(), Node { records, below: 0 });
                self.count_above(name, true);
                return;
            }
        }
        self.prune(name);
    }

    /// Removes a name without records and without names below it.
    fn prune(&mut self, name: &str) {
        let unused = |node: &Node| node.records.is_none() && node.below == 0;
        if self.names.get(name).is_some_and(unused) {
            self.names.remove(name);
            self.count_above(name, false);
        }
    }

    /// Tells the names above that one below has come into being or is gone.
    fn count_above(&mut self, name: &str, come: bool) {
        let Some((_, above)) = name.split_once('.') else {
            return;
        };
        if above.len() <= self.domain.key.len() {
            return;
        }
        match self.names.get_mut(above) {
            Some(node) if come => node.below += 1,
            Some(node) => {
                node.below = node.below.saturating_sub(1);
                self.prune(above);
            }
            None => {
                let node = Node {
                    records: None,
                    below: 1,
                };
                self.names.insert(above.into(), node);
                self.count_above(above, true);
            }
        }
    }

    fn add_pointer(&mut self, address: IpAddr, name: &str) {
        let Some(name) = absolute(name) else { return };
        let known = self.reverse.get(&address);
        let names = known.into_iter().flat_map(|names| names.iter().cloned());
        let names = names.chain([name]).collect();
        self.reverse.insert(address, names);
    }

    fn forget_pointer(&mut self, address: IpAddr, name: &str) {
        let (Some(name), Some(names)) = (absolute(name), self.reverse.get(&address)) else {
            return;
        };
        let left: Arc<[Name]> = names.iter().filter(|n| **n != name).cloned().collect();
        if left.is_empty() {
            self.reverse.remove(&address);
        } else {
            self.reverse.insert(address, left);
        }
    }

    /// Looks a query up. `turn` moves the order of records, so that clients that take the first spread.
    pub(crate) fn find(&self, query: &Query, turn: u16) -> Found {
        if let Some(pointer) = self.pointer(query) {
            return pointer;
        }
        if !self.domain.name.zone_of(query.name()) {
            return Found::Elsewhere;
        }
        let key = key(query.name());
        let node = self.names.get(key.as_str());
        if let Some(alias) = node.and_then(|node| alias(node, query)) {
            return alias;
        }
        let (exists, answers) = match node {
            Some(node) => (true, records(node, query, turn)),
            None => self.well_known(&key, query),
        };
        let code = if exists {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        let authorities = if answers.is_empty() {
            vec![self.start_of_authority()]
        } else {
            Vec::new()
        };
        let additionals = self.targets(&answers);
        Found::Answer(Answer {
            code,
            answers,
            authorities,
            additionals,
        })
    }

    /// Reverse lookups of addresses that we know; the others are for other resolvers.
    fn pointer(&self, query: &Query) -> Option<Found> {
        if query.query_type() != RecordType::PTR {
            return None;
        }
        let address = match query.name().parse_arpa_name().ok()? {
            IpNet::V4(net) if net.prefix_len() == 32 => IpAddr::V4(net.addr()),
            IpNet::V6(net) if net.prefix_len() == 128 => IpAddr::V6(net.addr()),
            _ => return None,
        };
        let answers = self
            .reverse
            .get(&address)?
            .iter()
            .map(|name| {
                let data = RData::PTR(PTR(name.clone()));
                Record::from_rdata(query.name().clone(), TTL, data)
            })
            .collect();
        Some(Found::Answer(Answer {
            code: ResponseCode::NoError,
            answers,
            authorities: Vec::new(),
            additionals: Vec::new(),
        }))
    }

    /// Names that every cluster has: whether this is one, and its records of the type asked for.
    fn well_known(&self, key: &str, query: &Query) -> (bool, Vec<Record>) {
        let relative = key.strip_suffix(self.domain.key.as_str());
        let relative = relative.unwrap_or_default().trim_end_matches('.');
        let all = match relative {
            "" => vec![
                self.start_of_authority().data,
                RData::NS(NS(self.domain.server.clone())),
            ],
            "dns-version" => vec![RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))],
            // Names lie below them, whether or not there is any service or pod.
            "svc" | "pod" => Vec::new(),
            _ => match relative.strip_suffix(".pod").map(pod_address) {
                Some(PodName::Namespace) => Vec::new(),
                Some(PodName::Address(address)) => vec![address_data(address)],
                Some(PodName::Nothing) | None => return (false, Vec::new()),
            },
        };
        let node = Node {
            records: Some(all.into()),
            below: 0,
        };
        (true, records(&node, query, 0))
    }

    /// The addresses of what SRV records point to, which saves the client a second question.
    fn targets(&self, answers: &[Record]) -> Vec<Record> {
        let targets = answers.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(&srv.target),
            _ => None,
        });
        let known = |target: &Name| self.names.get(key(target).as_str())?.records.clone();
        targets
            .flat_map(|target| {
                let records = known(target).unwrap_or_default();
                let addresses = records.iter().filter(|data| data.ip_addr().is_some());
                addresses
                    .map(|data| Record::from_rdata(target.clone(), TTL, data.clone()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    pub(crate) fn start_of_authority(&self) -> Record {
        let Domain {
            name,
            server,
            mailbox,
            ..
        } = &*self.domain;
        let soa = SOA::new(
            server.clone(),
            mailbox.clone(),
            self.serial,
            7200,
            1800,
            86400,
            TTL,
        );
        Record::from_rdata(name.clone(), TTL, RData::SOA(soa))
    }
}

/// What a name below `pod.<domain>` stands for.
enum PodName {
    /// A namespace, or something that could be one: addresses lie below it.
    Namespace,
    Address(IpAddr),
    Nothing,
}

fn pod_address(relative: &str) -> PodName {
    let Some((dashed, namespace)) = relative.split_once('.') else {
        return PodName::Namespace;
    };
    if namespace.contains('.') {
        return PodName::Nothing;
    }
    let v4 = dashed.replace('-', ".").parse::<Ipv4Addr>();
    let v6 = || dashed.replace('-', ":").parse::<Ipv6Addr>();
    match (v4, v6) {
        (Ok(address), _) => PodName::Address(address.into()),
        (Err(_), v6) => v6().map_or(PodName::Nothing, |address| PodName::Address(address.into())),
    }
}

fn alias(node: &Node, query: &Query) -> Option<Found> {
    if matches!(query.query_type(), RecordType::CNAME | RecordType::ANY) {
        return None;
    }
    let target = node.records.iter().flat_map(|records| records.iter());
    let target = target.into_iter().find_map(|data| match data {
        RData::CNAME(CNAME(target)) => Some(target.clone()),
        _ => None,
    })?;
    let data = RData::CNAME(CNAME(target.clone()));
    Some(Found::Alias {
        record: Box::new(Record::from_rdata(query.name().clone(), TTL, data)),
        target,
    })
}

/// The records of the type asked for.
fn records(node: &Node, query: &Query, turn: u16) -> Vec<Record> {
    let wanted = query.query_type();
    let all = node.records.iter().flat_map(|records| records.iter());
    let fits = |data: &&RData| wanted == RecordType::ANY || data.record_type() == wanted;
    let mut records: Vec<Record> = all
        .filter(fits)
        .map(|data| Record::from_rdata(query.name().clone(), TTL, data.clone()))
        .collect();
    let length = records.len().max(1);
    records.rotate_left(usize::from(turn) % length);
    records
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    }
}

fn data(record: &DnsRecord) -> Vec<RData> {
    match record {
        DnsRecord::Addresses(addresses) => addresses.iter().copied().map(address_data).collect(),
        DnsRecord::Services(services) => services
            .iter()
            .filter_map(|(priority, weight, port, target)| {
                let target = absolute(target)?;
                Some(RData::SRV(SRV::new(*priority, *weight, *port, target)))
            })
            .collect(),
        DnsRecord::Alias(target) => absolute(target)
            .map(|target| RData::CNAME(CNAME(target)))
            .into_iter()
            .collect(),
    }
}

/// A name as the zone has it: lower case, no trailing dot.
fn key(name: &Name) -> String {
    let mut key = name.to_ascii();
    key.make_ascii_lowercase();
    if key.ends_with('.') {
        key.pop();
    }
    key
}

/// A name of a table as DNS has it. One that is no domain name is passed over with a warning: it came from an
/// object of the cluster (an externalName, say), and must not take the other names with it.
fn absolute(name: &str) -> Option<Name> {
    let parsed = Name::from_ascii(name).map(|mut name| {
        name.set_fqdn(true);
        name
    });
    parsed
        .inspect_err(|error| tracing::warn!(name, %error, "not a domain name; left out of DNS"))
        .ok()
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
