//! The cluster's zone: answers from the published table. Pure.
//!
//! Beside the table's records it knows the names every Kubernetes cluster has: `dns-version.<domain>` (TXT, the
//! version of the DNS specification), `<a-b-c-d>.<namespace>.pod.<domain>` for the address a.b.c.d, and the zone's own
//! SOA and NS.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::{DnsRecord, DnsTable, NetworkError};

/// Seconds that others may remember an answer: short, since endpoints come and go.
const TTL: u32 = 5;
/// Version of the Kubernetes DNS specification that the names follow.
const SPECIFICATION: &str = "1.1.0";

/// What a query found.
#[derive(Debug)]
pub(super) enum Found {
    /// All there is to say.
    Answer(Answer),
    /// An alias to a name that has to be looked up in turn.
    Alias { record: Box<Record>, target: Name },
    /// Not a name of the cluster.
    Elsewhere,
}

/// The sections of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

/// The zone with its records.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Arc<Domain>,
    records: BTreeMap<String, Vec<DnsRecord>>,
    reverse: BTreeMap<IpAddr, String>,
    /// Names that exist because names below them do: they have no records, but are no NXDOMAIN either.
    above: HashSet<String>,
    /// Counts the tables published, for the SOA.
    serial: u32,
}

#[derive(Debug)]
struct Domain {
    /// Lower case, without the trailing dot, as the table's keys are.
    key: String,
    name: Name,
    server: Name,
    mailbox: Name,
}

impl Zone {
    /// The zone of `domain`.
    pub(super) fn new(domain: &str, table: DnsTable) -> Result<Self, NetworkError> {
        let key = domain.trim_matches('.').to_ascii_lowercase();
        let absolute = |relative: &str| {
            Name::from_ascii(format!("{relative}{key}.")).map_err(|e| {
                NetworkError::Unsupported(format!(
                    "cluster domain {domain:?} is no domain name: {e}"
                ))
            })
        };
        if key.is_empty() {
            return Err(NetworkError::Unsupported(
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
        let empty = Self {
            domain,
            records: BTreeMap::new(),
            reverse: BTreeMap::new(),
            above: HashSet::new(),
            serial: 0,
        };
        Ok(empty.with(table))
    }

    /// The same zone with other records.
    pub(super) fn with(&self, table: DnsTable) -> Self {
        let mut above = HashSet::new();
        for name in table.records.keys() {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if parent.len() <= self.domain.key.len() || !above.insert(parent.to_owned()) {
                    break;
                }
                rest = parent;
            }
        }
        Self {
            domain: Arc::clone(&self.domain),
            records: table.records,
            reverse: table.reverse,
            above,
            serial: self.serial.wrapping_add(1),
        }
    }

    /// Looks a query up. `turn` moves the order of addresses, so that clients that take the first spread.
    pub(super) fn find(&self, query: &Query, turn: u16) -> Found {
        if let Some(pointer) = self.pointer(query) {
            return pointer;
        }
        if !self.domain.name.zone_of(query.name()) {
            return Found::Elsewhere;
        }
        let key = key(query.name());
        if let Some(alias) = self.alias(&key, query) {
            return alias;
        }
        let (exists, answers) = self.look_up(&key, query, turn);
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
        let additionals = self.targets(&answers, turn);
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
        let name = absolute(self.reverse.get(&address)?)?;
        let record = Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(name)));
        Some(Found::Answer(Answer {
            code: ResponseCode::NoError,
            answers: vec![record],
            authorities: Vec::new(),
            additionals: Vec::new(),
        }))
    }

    fn alias(&self, key: &str, query: &Query) -> Option<Found> {
        if query.query_type() == RecordType::CNAME {
            return None;
        }
        let target = self
            .records
            .get(key)?
            .iter()
            .find_map(|record| match record {
                DnsRecord::Alias(target) => absolute(target),
                _ => None,
            })?;
        let record = Record::from_rdata(
            query.name().clone(),
            TTL,
            RData::CNAME(CNAME(target.clone())),
        );
        Some(Found::Alias {
            record: Box::new(record),
            target,
        })
    }

    /// Whether the name exists, and its records of the type asked for.
    fn look_up(&self, key: &str, query: &Query, turn: u16) -> (bool, Vec<Record>) {
        let wanted = query.query_type();
        let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
        let all = if key == self.domain.key {
            vec![
                self.start_of_authority().data,
                RData::NS(NS(self.domain.server.clone())),
            ]
        } else if key.strip_suffix(&self.domain.key) == Some("dns-version.") {
            vec![RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))]
        } else if let Some(records) = self.records.get(key) {
            records
                .iter()
                .flat_map(|record| data(record, turn))
                .collect()
        } else if let Some(address) = self.dashed_address(key) {
            vec![RData::A(address.into())]
        } else {
            return (self.above.contains(key), Vec::new());
        };
        let fits = |data: &RData| wanted == RecordType::ANY || data.record_type() == wanted;
        (true, all.into_iter().filter(fits).map(record).collect())
    }

    /// The address in a name `<a-b-c-d>.<namespace>.pod.<domain>`.
    fn dashed_address(&self, key: &str) -> Option<Ipv4Addr> {
        let relative = key.strip_suffix(&self.domain.key)?.strip_suffix(".pod.")?;
        let (dashed, namespace) = relative.split_once('.')?;
        if namespace.contains('.') || dashed.contains('.') {
            return None;
        }
        dashed.replace('-', ".").parse().ok()
    }

    /// The addresses of what SRV records point to, which saves the client a second question.
    fn targets(&self, answers: &[Record], turn: u16) -> Vec<Record> {
        let targets = answers.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(&srv.target),
            _ => None,
        });
        targets
            .flat_map(|target| {
                let records = self
                    .records
                    .get(&key(target))
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                records
                    .iter()
                    .filter(|record| matches!(record, DnsRecord::Addresses(_)))
                    .flat_map(|record| data(record, turn))
                    .map(|data| Record::from_rdata(target.clone(), TTL, data))
            })
            .collect()
    }

    fn start_of_authority(&self) -> Record {
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

fn data(record: &DnsRecord, turn: u16) -> Vec<RData> {
    match record {
        DnsRecord::Addresses(addresses) => {
            let mut data: Vec<RData> = addresses
                .iter()
                .map(|address| match *address {
                    IpAddr::V4(address) => RData::A(address.into()),
                    IpAddr::V6(address) => RData::AAAA(address.into()),
                })
                .collect();
            let length = data.len().max(1);
            data.rotate_left(usize::from(turn) % length);
            data
        }
        DnsRecord::Services(services) => services
            .iter()
            .filter_map(|(priority, weight, port, target)| {
                Some(RData::SRV(SRV::new(
                    *priority,
                    *weight,
                    *port,
                    absolute(target)?,
                )))
            })
            .collect(),
        DnsRecord::Alias(target) => absolute(target)
            .map(|target| RData::CNAME(CNAME(target)))
            .into_iter()
            .collect(),
    }
}

/// A name as the table has it: lower case, no trailing dot.
fn key(name: &Name) -> String {
    let mut key = name.to_lowercase().to_ascii();
    if key.ends_with('.') {
        key.pop();
    }
    key
}

/// A name of the table as DNS has it. One that is no domain name is passed over with a warning: it came from an
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
