//! From policies to what the table should hold: sets, chains of rules, and which address leads to which chain. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use imbl::OrdSet;
use ipnet::IpNet;

use crate::{
    IsolatedPod, NodePolicies, PeerSet, PolicyPeer, PolicyPeers, PolicyPort, PolicyRule,
    PolicyRuleSet, Protocol,
};

/// Rules of all policies of a node together, with those that lead pods to them. nft takes one to three seconds and 80 MiB for
/// as many.
const MOST_RULES: usize = 20_000;
/// How many blocks of addresses are as much work for nft as a rule: they are elements of a set, which the kernel searches.
const BLOCKS_OF_A_RULE: usize = 8;

/// Where the cluster's DNS answers.
const DNS_PORT: u16 = 53;

/// Which side of a connection the isolated pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// The source.
    Egress,
    /// The destination.
    Ingress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// How rules speak of the peer. Not of the packet's addresses: a connection's original source and the address that
    /// replies come from are the same for packets of both directions, and whatever was translated on the way.
    fn peer(self, family: Family) -> String {
        match self {
            Self::Egress => format!("ct reply {} saddr", family.word()),
            Self::Ingress => format!("ct original {} saddr", family.word()),
        }
    }
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// nft's word for the protocol.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

/// What a set's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetKind {
    Address,
    AddressAndPort,
}

/// A set; in the kernel it is two, one per family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) kind: SetKind,
    pub(super) members: OrdSet<PolicyPeer>,
}

/// All that the table holds apart from its fixed part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) sets: BTreeMap<String, Members>,
    /// Rules, in nft's words.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    /// The chain that judges the connections of an address.
    pub(super) verdicts: BTreeMap<(Direction, IpAddr), String>,
    /// Addresses that are isolated in any direction.
    pub(super) isolated: BTreeSet<IpAddr>,
    /// Addresses whose questions must not reach the cluster's DNS, and the number of the protocol that they come by.
    pub(super) no_dns: BTreeSet<(Ipv4Addr, u8)>,
    /// Policies whose rules there is no room for: they isolate the pods that they select and allow nothing.
    pub(super) without_room: BTreeSet<String>,
}

fn peers_set(name: &str, with_ports: bool) -> String {
    let kind = if with_ports { "ports" } else { "peers" };
    format!("{kind}_{name}")
}

/// A port name is of lower-case letters, digits and `-`.
fn named_set(protocol: Protocol, name: &str) -> String {
    format!("named_{}_{name}", protocol.word())
}

fn policy_chain(direction: Direction, name: &str) -> String {
    format!("policy_{}_{name}", direction.word())
}

fn pod_chain(direction: Direction, uid: &str) -> String {
    format!("pod_{}_{uid}", direction.word())
}

impl Plan {
    /// The plan for policies that passed [`check`](super::check), on a node without the cluster's DNS.
    #[cfg(test)]
    pub(super) fn new(desired: &NodePolicies) -> Self {
        Self::with_dns(desired, None)
    }

    /// The plan for policies that passed [`check`](super::check); `dns` is the address on the node at which the cluster's
    /// DNS answers.
    pub(super) fn with_dns(desired: &NodePolicies, dns: Option<Ipv4Addr>) -> Self {
        let mut plan = Self {
            without_room: without_room(desired),
            ..Self::default()
        };
        let policies: BTreeMap<&str, &PolicyRuleSet> = desired
            .policies
            .iter()
            .filter(|(name, _)| !plan.without_room.contains(*name))
            .map(|(name, rules)| (name.as_str(), &**rules))
            .collect();
        let used: BTreeSet<&str> = policies.values().flat_map(|rules| sets_of(rules)).collect();
        let used = desired
            .peers
            .iter()
            .filter(|(name, _)| used.contains(name.as_str()));
        for (name, PeerSet { with_ports, peers }) in used {
            let kind = match with_ports {
                true => SetKind::AddressAndPort,
                false => SetKind::Address,
            };
            let members = peers.clone();
            plan.sets
                .insert(peers_set(name, *with_ports), Members { kind, members });
        }
        plan.named_ports(desired);
        for (name, rules) in &policies {
            plan.policy(name, rules, &desired.peers);
        }
        if let Some(dns) = dns {
            plan.judge_dns(desired, &policies, dns);
        }
        for (uid, pod) in &desired.pods {
            for direction in directions(pod) {
                let chain = pod_chain(direction, uid);
                // One that allows nothing has no chain: that it isolates the pod is all there is to it.
                let allowing = pod.policies.iter().filter(|name| {
                    let rules = policies.get(name.as_str());
                    rules.is_some_and(|rules| !rules_of(rules, direction).is_empty())
                });
                let jumps = allowing.map(|name| format!("jump {}", policy_chain(direction, name)));
                plan.chains.insert(
                    chain.clone(),
                    jumps.chain(["counter drop".to_owned()]).collect(),
                );
                for address in &pod.addresses {
                    plan.verdicts.insert((direction, *address), chain.clone());
                    plan.isolated.insert(*address);
                }
            }
        }
        plan
    }

    /// Whose questions to the cluster's DNS are let through: what egress allows to port 53 there. The server is the node's
    /// own and what it is asked is not tracked, so that no rule about connections sees it; and it asks others for names
    /// outside, so that who may ask it may tell the world something.
    fn judge_dns(
        &mut self,
        desired: &NodePolicies,
        policies: &BTreeMap<&str, &PolicyRuleSet>,
        dns: Ipv4Addr,
    ) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let allowing: BTreeSet<&str> = policies
                .iter()
                .filter(|(_, rules)| {
                    let mut rules = rules.egress.iter();
                    rules.any(|rule| allows_dns(rule, &desired.peers, dns.into(), protocol))
                })
                .map(|(name, _)| *name)
                .collect();
            for pod in desired.pods.values().filter(|pod| pod.egress) {
                if pod
                    .policies
                    .iter()
                    .any(|name| allowing.contains(name.as_str()))
                {
                    continue;
                }
                for address in &pod.addresses {
                    if let IpAddr::V4(address) = address {
                        self.no_dns.insert((*address, protocol.number()));
                    }
                }
            }
        }
    }

    /// The ports that ingress rules name: those of the pods that are isolated here. A name that none of them has gets
    /// an empty set.
    fn named_ports(&mut self, desired: &NodePolicies) {
        let policies = desired
            .policies
            .iter()
            .filter(|(name, _)| !self.without_room.contains(*name));
        let rules = policies.flat_map(|(_, policy)| &policy.ingress);
        for port in rules.flat_map(|rule| rule.ports.iter().flatten()) {
            if let PolicyPort::Named(protocol, name) = port {
                self.sets
                    .entry(named_set(*protocol, name))
                    .or_insert(Members {
                        kind: SetKind::AddressAndPort,
                        members: OrdSet::new(),
                    });
            }
        }
        for pod in desired.pods.values() {
            for (protocol, name, number) in &pod.ports {
                if let Some(set) = self.sets.get_mut(&named_set(*protocol, name)) {
                    set.members
                        .extend(pod.addresses.iter().map(|address| (*address, *number)));
                }
            }
        }
    }

    fn policy(&mut self, name: &str, rules: &PolicyRuleSet, sets: &BTreeMap<String, PeerSet>) {
        for direction in Direction::BOTH {
            let rules = rules_of(rules, direction);
            if rules.is_empty() {
                continue;
            }
            let mut words = Vec::new();
            for (number, rule) in rules.iter().enumerate() {
                let (peers, ports) = (
                    peers(direction, &rule.peers, sets),
                    ports(rule.ports.as_deref()),
                );
                // Chains are rules as well: one that leads to them, one for each port and one for each peer.
                if peers.len().saturating_mul(ports.len()) <= peers.len() + ports.len() + 1 {
                    words.extend(pairs(&peers, &ports));
                } else {
                    let chain = |of: &str| format!("{of}_{}_{name}_{number}", direction.word());
                    let (of_ports, of_peers) = (chain("ports"), chain("peers"));
                    words.push(format!("jump {of_ports}"));
                    let to_peers = format!("goto {of_peers}");
                    let lines = ports.iter().map(|(_, port)| line([port], &to_peers));
                    self.chains.insert(of_ports, lines.collect());
                    let lines = peers.iter().map(|(_, peer)| line([peer], "accept"));
                    self.chains.insert(of_peers, lines.collect());
                }
                words.extend(ports_of_peers(rule, sets));
            }
            self.chains.insert(policy_chain(direction, name), words);
        }
    }
}

/// Whether an egress rule allows connections with the cluster's DNS.
fn allows_dns(
    rule: &PolicyRule,
    sets: &BTreeMap<String, PeerSet>,
    dns: IpAddr,
    protocol: Protocol,
) -> bool {
    let in_set = |port: u16| {
        let has = |name: &String| {
            sets.get(name)
                .is_some_and(|set| set.peers.contains(&(dns, port)))
        };
        match &rule.peers {
            PolicyPeers::Anyone => false,
            PolicyPeers::Of { sets, .. } => sets.iter().any(has),
        }
    };
    let of_peers = || match &rule.peers {
        PolicyPeers::Anyone => true,
        PolicyPeers::Of { blocks, .. } => {
            blocks.iter().any(|block| block.contains(&dns)) || in_set(0)
        }
    };
    let Some(ports) = &rule.ports else {
        return of_peers();
    };
    ports.iter().any(|port| match port {
        PolicyPort::All(own) => *own == protocol && of_peers(),
        PolicyPort::Range(own, first, last) => {
            *own == protocol && (*first..=*last).contains(&DNS_PORT) && of_peers()
        }
        PolicyPort::OfPeer(own) => *own == protocol && in_set(DNS_PORT),
        PolicyPort::Named(..) => false,
    })
}

/// The directions that a pod is isolated in.
fn directions(pod: &IsolatedPod) -> impl Iterator<Item = Direction> {
    let (egress, ingress) = (pod.egress, pod.ingress);
    Direction::BOTH
        .into_iter()
        .filter(move |direction| match direction {
            Direction::Egress => egress,
            Direction::Ingress => ingress,
        })
}

fn rules_of(rules: &PolicyRuleSet, direction: Direction) -> &[PolicyRule] {
    match direction {
        Direction::Egress => &rules.egress,
        Direction::Ingress => &rules.ingress,
    }
}

/// The sets of peers that a policy refers to.
fn sets_of(rules: &PolicyRuleSet) -> impl Iterator<Item = &str> {
    fn sets(rule: &PolicyRule) -> &[String] {
        match &rule.peers {
            PolicyPeers::Anyone => &[],
            PolicyPeers::Of { sets, .. } => sets,
        }
    }
    let rules = rules.ingress.iter().chain(&rules.egress);
    rules.flat_map(sets).map(String::as_str)
}

/// The policies whose rules there is no room for. The smallest find room first, so that whoever writes large ones, or many
/// for many pods, pays for them.
fn without_room(desired: &NodePolicies) -> BTreeSet<String> {
    let policies = &desired.policies;
    // Each pod has a rule that leads to a policy, in each direction in which the policy allows it something.
    let mut jumps: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in desired.pods.values() {
        for direction in directions(pod) {
            for name in &pod.policies {
                let rules = policies.get(name).map(|rules| rules_of(rules, direction));
                if rules.is_some_and(|rules| !rules.is_empty()) {
                    *jumps.entry(name).or_default() += 1;
                }
            }
        }
    }
    let mut sizes: Vec<(usize, &String)> = policies
        .iter()
        .map(|(name, rules)| {
            let jumps = jumps.get(name.as_str()).copied().unwrap_or_default();
            (size(rules).saturating_add(jumps), name)
        })
        .collect();
    sizes.sort_unstable();
    let mut taken = 0_usize;
    let mut beyond = |size| {
        taken = taken.saturating_add(size);
        taken > MOST_RULES
    };
    sizes
        .into_iter()
        .filter(|(size, _)| beyond(*size))
        .map(|(_, name)| name.clone())
        .collect()
}

/// How many rules a policy becomes at most, with its blocks reckoned as rules.
fn size(policy: &PolicyRuleSet) -> usize {
    let families = Family::BOTH.len();
    let rules = policy.ingress.iter().chain(&policy.egress);
    rules.fold(0_usize, |size, rule| {
        let (sets, blocks) = match &rule.peers {
            PolicyPeers::Anyone => (0, 0),
            PolicyPeers::Of { sets, blocks } => (sets.len(), blocks.len()),
        };
        let ports = rule.ports.as_deref().unwrap_or_default();
        let of_peers = ports
            .iter()
            .filter(|port| matches!(port, PolicyPort::OfPeer(_)))
            .count();
        // Of each family: the blocks, each set, each port, and each port of the peers' own with each set.
        let conditions = 1 + ports.len() + sets.saturating_mul(1 + of_peers);
        // One more leads to the chains.
        size.saturating_add(1 + blocks / BLOCKS_OF_A_RULE)
            .saturating_add(conditions.saturating_mul(families))
    })
}

/// A condition, and the family it confines the rule to.
type Condition = (Option<Family>, String);

/// Rules that accept whatever meets a condition on peers and one on ports: one for each pair.
fn pairs(peers: &[Condition], ports: &[Condition]) -> Vec<String> {
    let mut words = Vec::new();
    for (family, peer) in peers {
        for (other, port) in ports {
            if family.is_some() && other.is_some() && family != other {
                continue;
            }
            words.push(line([peer, port], "accept"));
        }
    }
    words
}

/// A rule of some conditions, of which those without words are met by everything.
fn line<const N: usize>(conditions: [&String; N], verdict: &str) -> String {
    let mut line = String::new();
    for condition in conditions.into_iter().filter(|words| !words.is_empty()) {
        let _infallible = write!(line, "{condition} ");
    }
    line + verdict
}

/// Rules that accept peers whose sets say their ports as well.
fn ports_of_peers(rule: &PolicyRule, sets: &BTreeMap<String, PeerSet>) -> Vec<String> {
    let mut words = Vec::new();
    if let (PolicyPeers::Of { sets: names, .. }, Some(listed)) = (&rule.peers, &rule.ports) {
        let protocols = listed.iter().filter_map(|port| match port {
            PolicyPort::OfPeer(protocol) => Some(*protocol),
            _ => None,
        });
        for protocol in protocols {
            let with_ports = |name: &&String| sets.get(*name).is_some_and(|set| set.with_ports);
            for name in names.iter().filter(with_ports) {
                for family in Family::BOTH {
                    let set = peers_set(name, true);
                    words.push(format!("{} accept", pair(family, protocol, &set)));
                }
            }
        }
    }
    words
}

/// The destination's address and port are in a set.
fn pair(family: Family, protocol: Protocol, set: &str) -> String {
    format!(
        "meta l4proto {} ct reply {} saddr . ct reply proto-src @{set}_{}",
        protocol.number(),
        family.word(),
        family.number()
    )
}

/// The ways to be one of the peers, apart from sets with ports.
fn peers(
    direction: Direction,
    peers: &PolicyPeers,
    sets: &BTreeMap<String, PeerSet>,
) -> Vec<Condition> {
    let (names, blocks) = match peers {
        PolicyPeers::Anyone => return vec![(None, String::new())],
        PolicyPeers::Of { sets, blocks } => (sets, blocks),
    };
    let mut conditions = Vec::new();
    let without_ports = |name: &&String| sets.get(*name).is_some_and(|set| !set.with_ports);
    for name in names.iter().filter(without_ports) {
        for family in Family::BOTH {
            let words = format!(
                "{} @{}_{}",
                direction.peer(family),
                peers_set(name, false),
                family.number()
            );
            conditions.push((Some(family), words));
        }
    }
    for family in Family::BOTH {
        let of_family: Vec<&IpNet> = blocks
            .iter()
            .filter(|block| Family::of(block.addr()) == family)
            .collect();
        if of_family.iter().any(|block| block.prefix_len() == 0) {
            // nft takes no set of everything.
            let number = family.number();
            conditions.push((Some(family), format!("meta nfproto ipv{number}")));
        } else if !of_family.is_empty() {
            let list: Vec<String> = of_family.iter().map(ToString::to_string).collect();
            let words = format!("{} {{ {} }}", direction.peer(family), list.join(", "));
            conditions.push((Some(family), words));
        }
    }
    conditions
}

/// The ways to be one of the ports, apart from those that come with the peer.
fn ports(ports: Option<&[PolicyPort]>) -> Vec<Condition> {
    let Some(ports) = ports else {
        return vec![(None, String::new())];
    };
    let mut conditions = Vec::new();
    for protocol in Protocol::ALL {
        let number = protocol.number();
        if ports.contains(&PolicyPort::All(protocol)) {
            conditions.push((None, format!("meta l4proto {number}")));
            continue;
        }
        // Not as one set: nft prints an anonymous set of such keys in a way that it cannot read again, and others save
        // and restore the whole ruleset.
        for range in ranges(ports, protocol) {
            conditions.push((
                None,
                format!("meta l4proto {number} ct reply proto-src {range}"),
            ));
        }
        for port in ports {
            if let PolicyPort::Named(own, name) = port
                && *own == protocol
            {
                let set = named_set(protocol, name);
                for family in Family::BOTH {
                    conditions.push((Some(family), pair(family, protocol, &set)));
                }
            }
        }
    }
    conditions
}

/// The ranges of a protocol, in order; those that touch are one.
fn ranges(ports: &[PolicyPort], protocol: Protocol) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = ports
        .iter()
        .filter_map(|port| match port {
            PolicyPort::Range(own, first, last) if *own == protocol => Some((*first, *last)),
            _ => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let words = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    merged.into_iter().map(words).collect()
}

#[cfg(test)]
mod tests;
