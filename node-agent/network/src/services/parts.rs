//! What there is beside elements, in nft's words: each table's skeleton, and the parts that come and go. Pure.

use std::fmt::{self, Display};

use ipnet::IpNet;

use super::elements::{Affinity, Balancer, Family, Kind, Part, Scope, Slot};
use crate::holding::LOGGED_BYTES;
use crate::{NodeNetwork, Protocol};

/// Marks the first packet of a connection whose source address has to be replaced if it is sent to another node. One
/// bit, which others are not known to use (kube-proxy takes 0x4000 and 0x8000).
const MASQUERADE_MARK: u32 = 0x2000;
/// Fixed, so that every node and every restart sends a client that it does not know to the same endpoint.
const AFFINITY_SEED: u32 = 0x6761_6e74;
/// How many clients a slot remembers; others are balanced by their address alone.
const MOST_CLIENTS: u32 = 1 << 20;
/// A pod CIDR is never wider than this many addresses.
const MOST_PODS: u32 = 1 << 16;
/// How many packets of connections that wait are told of: per second of one pod, and at once.
const POD_RATE: u32 = 200;
const POD_BURST: u32 = 2000;
/// The same of everybody else together.
const OTHERS_RATE: u32 = 1000;
const OTHERS_BURST: u32 = 4000;

/// What a table's fixed part depends on.
#[derive(Clone, Debug)]
pub(super) struct Skeleton {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) pod_cidr: IpNet,
    pub(super) service_cidr: IpNet,
    /// To which group packets are logged whose connections wait; none when nobody listens, and nothing is held.
    pub(super) log_group: Option<u16>,
}

impl Skeleton {
    /// A table for each family that services have addresses of.
    pub(super) fn of(node: &NodeNetwork, table: &str, log_group: Option<u16>) -> Vec<Self> {
        let skeleton = |family, pod_cidr: IpNet, service_cidr: IpNet| Self {
            family,
            table: table.to_owned(),
            pod_cidr: pod_cidr.trunc(),
            service_cidr: service_cidr.trunc(),
            log_group,
        };
        let mut skeletons = vec![skeleton(
            Family::Ipv4,
            node.pod_cidr.into(),
            node.service_cidr.into(),
        )];
        if let Some(ipv6) = node.ipv6
            && let Some(service_cidr) = ipv6.service_cidr
        {
            skeletons.push(skeleton(
                Family::Ipv6,
                ipv6.pod_cidr.into(),
                service_cidr.into(),
            ));
        }
        skeletons
    }

    /// Family and name of the table, as commands have them.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.family.word(), self.table)
    }

    /// The commands that make a part.
    pub(super) fn create(&self, part: Part) -> String {
        let table = self.name();
        let address = address_type(self.family);
        match part {
            Part::Clients(_, slot) => format!(
                "add set {table} clients_{slot} {{ type {address} . {address} . inet_proto . inet_service; \
                 size {MOST_CLIENTS}; flags dynamic,timeout; }}\n"
            ),
            Part::Targets(kind, slot) => format!(
                "add map {table} {kind}_slot_{slot} {{ typeof {} : {}; }}\n",
                frontend(kind),
                endpoint(kind)
            ),
            Part::Slot(slot) => self.slot(slot),
            Part::Balancer(balancer) => match balancer.affinity {
                None => self.balancer(balancer),
                Some(affinity) => self.sticky(balancer, affinity),
            },
        }
    }

    /// The commands that remove a part which nothing refers to.
    pub(super) fn remove(&self, part: Part) -> String {
        let table = self.name();
        let chain =
            |name: &str| format!("flush chain {table} {name}\ndelete chain {table} {name}\n");
        match part {
            Part::Clients(_, slot) => format!("delete set {table} clients_{slot}\n"),
            Part::Targets(kind, slot) => format!("delete map {table} {kind}_slot_{slot}\n"),
            Part::Slot(slot) => chain(&slot.to_string()),
            Part::Balancer(balancer) => {
                format!(
                    "{}delete map {table} {balancer}\n",
                    chain(&balancer.to_string())
                )
            }
        }
    }

    /// Translates to an endpoint by a random number.
    fn balancer(&self, balancer: Balancer) -> String {
        let Balancer {
            kind, endpoints, ..
        } = balancer;
        let number = match endpoints {
            1 => String::new(),
            _ => format!(" . numgen random mod {endpoints}"),
        };
        let (key, to) = (frontend(kind) + &number, endpoint(kind));
        let rules = [
            self.mark(kind),
            Some(format!("{} {key} map @{balancer}", translate(kind))),
        ];
        let map = format!(
            "add map {} {balancer} {{ typeof {key} : {to}; }}\n",
            self.name()
        );
        map + &self.chain(&balancer.to_string(), rules.into_iter().flatten())
    }

    /// Goes to the slot in which the client is known, or else to that of an endpoint chosen by the client's address,
    /// so that nodes and restarts agree as long as the endpoints are the same.
    fn sticky(&self, balancer: Balancer, affinity: Affinity) -> String {
        let Balancer {
            kind, endpoints, ..
        } = balancer;
        // The map's type is the same whichever way the number is found.
        let (typed, chosen) = match endpoints {
            1 => (String::new(), String::new()),
            _ => (
                format!(" . numgen random mod {endpoints}"),
                format!(
                    " . jhash {} saddr mod {endpoints} seed {AFFINITY_SEED:#x}",
                    self.family.word()
                ),
            ),
        };
        let known = (0..affinity.slots).map(|number| {
            let slot = Slot {
                kind,
                timeout: affinity.timeout,
                number,
            };
            format!("{} @clients_{number} jump {slot}", client(kind))
        });
        let chosen = format!("{}{chosen} vmap @{balancer}", frontend(kind));
        let rules = self.mark(kind).into_iter().chain(known).chain([chosen]);
        let map = format!(
            "add map {} {balancer} {{ typeof {}{typed} : verdict; }}\n",
            self.name(),
            frontend(kind)
        );
        map + &self.chain(&balancer.to_string(), rules)
    }

    /// Remembers the client, from this connection on, and translates to the endpoint in the slot. When there is none
    /// the client is forgotten, and the chain returns.
    fn slot(&self, slot: Slot) -> String {
        let Slot {
            kind,
            timeout,
            number,
        } = slot;
        let client = client(kind);
        let rules = [
            format!("update @clients_{number} {{ {client} timeout {timeout}s }}"),
            format!(
                "{} {} map @{kind}_slot_{number}",
                translate(kind),
                frontend(kind)
            ),
            format!("delete @clients_{number} {{ {client} }}"),
        ];
        self.chain(&slot.to_string(), rules.into_iter())
    }

    fn mark(&self, kind: Kind) -> Option<String> {
        (kind.scope == Scope::Anywhere).then(|| {
            format!(
                "{} saddr != {} meta mark set meta mark | {MASQUERADE_MARK:#x}",
                self.family.word(),
                self.pod_cidr
            )
        })
    }

    /// Tells of a packet whose connection is to wait.
    fn log(&self) -> String {
        let log = |group| format!("log group {group} snaplen {LOGGED_BYTES} ");
        self.log_group.map(log).unwrap_or_default()
    }

    fn chain(&self, name: &str, rules: impl Iterator<Item = String>) -> String {
        let table = self.name();
        let rules = rules.map(|rule| format!("add rule {table} {name} {rule}\n"));
        std::iter::once(format!("add chain {table} {name}\n"))
            .chain(rules)
            .collect()
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4_addr",
        Family::Ipv6 => "ipv6_addr",
    }
}

/// How a packet's frontend is read.
fn frontend(kind: Kind) -> String {
    let protocol = kind.protocol.word();
    if kind.node_port {
        format!("{protocol} dport")
    } else {
        format!("{} daddr . {protocol} dport", kind.family.word())
    }
}

/// The type of an endpoint.
fn endpoint(kind: Kind) -> String {
    let (family, protocol) = (kind.family.word(), kind.protocol.word());
    format!("{family} daddr . {protocol} dport")
}

/// How a packet's client, of this frontend, is read.
fn client(kind: Kind) -> String {
    let (family, protocol) = (kind.family.word(), kind.protocol.word());
    format!("{family} saddr . {family} daddr . meta l4proto . {protocol} dport")
}

fn translate(kind: Kind) -> String {
    let (family, protocol) = (kind.family.word(), kind.protocol.number());
    format!("meta l4proto {protocol} dnat {family} to")
}

/// The script that makes the table with nothing in it.
///
/// - An address of the service range that the node itself holds (the DNS service's) is none of our business. All other
///   addresses of that range lead to a service or are refused: they never leave the node. Packets of no connection, which
///   nothing translates, are dropped: for each address, the kernel would look for a neighbour on the bridge.
/// - A connection to a frontend that is held loses its first packet, which is logged: pods' as long as each keeps to a rate of
///   its own, all others' together (the node's own among them), so that nobody keeps pods from being heard. What is no
///   beginning of a connection, or comes from an address that does not wait, is refused like what is for nobody.
/// - Replies of endpoints on this node pass this node by themselves. Those of endpoints elsewhere would not, unless
///   the packets that left here came from this node: so these, and no others, are masqueraded, if they come from
///   outside this node's pods.
impl Display for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            pod_cidr,
            service_cidr,
            ..
        } = self;
        let log = self.log();
        let name = self.name();
        let (ip, address) = (family.word(), address_type(*family));
        let tcp = Protocol::Tcp.number();
        let icmp = match family {
            Family::Ipv4 => "icmp",
            Family::Ipv6 => "icmpv6",
        };
        let (mark, not_marked) = (MASQUERADE_MARK, !MASQUERADE_MARK);
        writeln!(
            f,
            r"add table {name}
delete table {name}
table {name} {{
  map service_address {{ type {address} . inet_proto . inet_service : verdict; }}
  map service_port {{ type inet_proto . inet_service : verdict; }}
  map outside_address {{ type {address} . inet_proto . inet_service : verdict; }}
  map outside_port {{ type inet_proto . inet_service : verdict; }}
  set refused_address {{ type {address} . inet_proto . inet_service; }}
  set refused_port {{ type inet_proto . inet_service; }}
  set held_address {{ type {address} . inet_proto . inet_service; }}
  set held_port {{ type inet_proto . inet_service; }}
  set ignored_address {{ type {address} . inet_proto . inet_service . {address}; flags interval; }}
  set ignored_port {{ type inet_proto . inet_service . {address}; flags interval; }}
  set waiting {{ type {address}; size {MOST_PODS}; flags dynamic,timeout; timeout 10s; }}
  set guarded {{ type {address} . inet_proto . inet_service; }}
  set allowed {{ type {address} . inet_proto . inet_service . {address}; flags interval; }}
  set hairpin {{ type {address} . {address}; }}
  chain guard {{
    {ip} daddr . meta l4proto . th dport @guarded {ip} daddr . meta l4proto . th dport . {ip} saddr != @allowed drop
  }}
  chain hold {{
    {ip} daddr . meta l4proto . th dport @held_address goto held
    fib daddr type local meta l4proto . th dport @held_port goto held
  }}
  chain held {{
    tcp flags & (fin | syn | rst | ack) != syn return
    {ip} daddr . meta l4proto . th dport . {ip} saddr @ignored_address return
    fib daddr type local meta l4proto . th dport . {ip} saddr @ignored_port return
    {ip} saddr {pod_cidr} update @waiting {{ {ip} saddr limit rate {POD_RATE}/second burst {POD_BURST} packets }} {log}drop
    {ip} saddr != {pod_cidr} limit rate {OTHERS_RATE}/second burst {OTHERS_BURST} packets {log}drop
    drop
  }}
  chain outside {{
    {ip} daddr . meta l4proto . th dport vmap @outside_address
    fib daddr type local meta l4proto . th dport vmap @outside_port
  }}
  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service_address
    fib daddr type local meta l4proto . th dport vmap @service_port
  }}
  chain incoming {{
    {ip} daddr {service_cidr} fib daddr type local return
    jump guard
    jump hold
    {ip} saddr != {pod_cidr} jump outside
    jump services
  }}
  chain outgoing {{
    {ip} daddr {service_cidr} fib daddr type local return
    jump guard
    jump hold
    jump services
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump incoming
  }}
  chain prerouting_again {{
    type nat hook prerouting priority dstnat + 1; policy accept;
    jump incoming
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump outgoing
  }}
  chain output_again {{
    type nat hook output priority -99; policy accept;
    jump outgoing
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {mark:#x} == {mark:#x} {ip} daddr != {pod_cidr} meta mark set meta mark & {not_marked:#x} masquerade fully-random
    ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade
  }}
  chain refuse {{
    meta l4proto {tcp} reject with tcp reset
    reject with {icmp} port-unreachable
  }}
  chain without_endpoints {{
    {ip} daddr {service_cidr} fib daddr type local return
    {ip} daddr . meta l4proto . th dport @refused_address goto refuse
    fib daddr type local meta l4proto . th dport @refused_port goto refuse
    {ip} daddr . meta l4proto . th dport @held_address goto refuse
    fib daddr type local meta l4proto . th dport @held_port goto refuse
    {ip} daddr {service_cidr} goto refuse
  }}
  chain filter_input {{
    type filter hook input priority filter; policy accept;
    ct state new jump without_endpoints
  }}
  chain filter_forward {{
    type filter hook forward priority filter; policy accept;
    {ip} daddr {service_cidr} ct state invalid,untracked counter drop
    ct state new jump without_endpoints
  }}
  chain filter_output {{
    type filter hook output priority filter; policy accept;
    ct state new jump without_endpoints
  }}
}}"
        )
    }
}
