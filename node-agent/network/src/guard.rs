//! Keeps pods to their own addresses: what comes from a pod's port and does not carry the pod's hardware and network
//! addresses, or speaks for addresses that are not the pod's, goes nowhere. A pod may have CAP_NET_RAW (containers have it
//! by default) or even CAP_NET_ADMIN, so nothing inside of it can be relied on.
//!
//! ```text
//! bridge, prerouting: iifname "gt.*" -> by EtherType; everything but ARP, IPv4 and IPv6 is dropped, tagged frames as well
//!   IPv4  link . hardware source . source                       in own_4
//!   ARP   the same of the frame's and of the message's sender   in own_4
//!   IPv6  link . hardware source . source                       in own_6, or :: of who looks for duplicates
//!         neighbour solicitation   speaks of its own hardware address, or of none
//!         neighbour advertisement  the same, and of its own network addresses
//!         what only routers say    dropped
//! inet, prerouting
//!   from a port that is not one of the bridge (any more), or from elsewhere with an address of this node's pods: dropped
//! ```
//!
//! Chains never change: a pod is an element of each set, whose key begins with its link's name. The names of links follow
//! from leases, so that the elements are there before the link is.
//!
//! Invariant: what is not admitted is dropped. A packet that cannot be read (too short, headers that do not end) matches no
//! rule and comes to the drop at each chain's end.

use std::fmt::{self, Write};
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::leases::Lease;
use crate::names::{Mac, Names, hardware_address, link_local};
use crate::nft::Nft;
use crate::nft_programmer::Programmer;
use crate::{NetworkError, NodeNetwork};

/// Sets of the bridge's table, and what their elements are. The last two are about neighbour discovery: an address that is
/// advertised, and the hardware address in a message's only option; nft has no words of its own for either.
const SETS: [(&str, &str); 5] = [
    ("hardware", "type ifname . ether_addr"),
    ("own_4", "type ifname . ether_addr . ipv4_addr"),
    ("own_6", "type ifname . ether_addr . ipv6_addr"),
    ("announced", "typeof iifname . @th,64,128"),
    ("option", "typeof iifname . @th,208,48"),
];

/// Chains of the bridge's table and their rules, in the order in which they can be made.
///
/// EtherTypes: 0x0800 IPv4, 0x0806 ARP, 0x86dd IPv6. Protocols: 2 IGMP (0x11: query), 58 ICMPv6. ICMPv6: 130 MLD query,
/// 131, 132 and 143 MLD reports, 133 router solicitation, 134 router advertisement, 135 and 136 neighbour solicitation and
/// advertisement, 137 redirect, 138 router renumbering, 141 and 142 inverse neighbour discovery, 148 and 149 certification
/// paths of routers, 151 to 153 multicast router discovery. Neighbour discovery is never fragmented and has no extension
/// headers here (RFC 6980); with one option or none it is 32 or 24 bytes long.
const CHAINS: [(&str, &[&str]); 7] = [
    (
        "from_ipv4",
        &[
            "meta l4proto 2 @th,0,8 0x11 counter drop",
            "iifname . ether saddr . ip saddr @own_4 accept",
            "counter drop",
        ],
    ),
    (
        "from_arp",
        &[
            "arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @own_4 \
             iifname . arp saddr ether . arp saddr ip @own_4 accept",
            "counter drop",
        ],
    ),
    (
        "solicitation",
        &[
            "ip6 nexthdr 58 ip6 length 24 accept",
            "ip6 nexthdr 58 ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @option accept",
            "counter drop",
        ],
    ),
    (
        "advertisement",
        &[
            "ip6 nexthdr 58 ip6 length 24 iifname . @th,64,128 @announced accept",
            "ip6 nexthdr 58 ip6 length 32 iifname . @th,64,128 @announced @th,192,16 0x0201 \
             iifname . @th,208,48 @option accept",
            "counter drop",
        ],
    ),
    (
        "from_ipv6_of_its_own",
        &[
            "meta l4proto != 58 accept",
            "frag frag-off 1-8191 accept",
            "icmpv6 type vmap { 135 : goto solicitation, 136 : goto advertisement }",
            "icmpv6 type { 130, 134, 137, 138, 141, 142, 148, 149, 151, 152, 153 } counter drop",
            "icmpv6 type 0-255 accept",
            "counter drop",
        ],
    ),
    (
        "from_ipv6",
        &[
            "iifname . ether saddr . ip6 saddr @own_6 goto from_ipv6_of_its_own",
            "ip6 saddr :: iifname . ether saddr @hardware icmpv6 type { 131, 132, 133, 143 } accept",
            "ip6 saddr :: iifname . ether saddr @hardware ip6 nexthdr 58 ip6 length { 24, 32 } icmpv6 type 135 \
             iifname . @th,64,128 @announced accept",
            "counter drop",
        ],
    ),
    (
        "from_pods",
        &[
            "ether type vmap { 0x0800 : goto from_ipv4, 0x0806 : goto from_arp, 0x86dd : goto from_ipv6 }",
            "counter drop",
        ],
    ),
];

/// Before every other table of ours, and before bridge netfilter.
const FIRST: &str = "type filter hook prerouting priority -450; policy accept;";
/// Before connections are tracked.
const EARLY: &str = "type filter hook prerouting priority raw - 10; policy accept;";
const HOOK: &str = "prerouting";

/// The guard of one node's pods.
pub(crate) struct Guard {
    programmer: Programmer,
    names: Names,
    ranges: Vec<IpNet>,
}

impl Guard {
    pub(crate) fn new(nft: Nft, names: &Names, node: &NodeNetwork) -> Self {
        let ipv6 = node.ipv6.map(|ipv6| IpNet::V6(ipv6.pod_cidr.trunc()));
        let ranges = [IpNet::V4(node.pod_cidr.trunc())].into_iter().chain(ipv6);
        Self {
            programmer: Programmer::new(nft),
            names: names.clone(),
            ranges: ranges.collect(),
        }
    }

    /// Makes the tables, or fills those that are there, so that exactly these pods are admitted; no packet passes
    /// unguarded meanwhile. Blocks.
    pub(crate) fn fill<'a>(
        &self,
        leases: impl Iterator<Item = &'a Lease>,
    ) -> Result<(), NetworkError> {
        let script = self.script(leases);
        match self.programmer.set_up(&script) {
            Err(NetworkError::Nft(words) | NetworkError::Unsupported(words)) => {
                let table = self.names.guard_table();
                tracing::debug!(words, table, "the guard cannot be filled; making it anew");
                let removed: String = ["bridge", "inet"]
                    .map(|family| {
                        format!("add table {family} {table}\ndelete table {family} {table}\n")
                    })
                    .concat();
                self.programmer.set_up(&format!("{removed}{script}"))
            }
            other => other,
        }
    }

    /// Lets a pod speak. Blocks.
    pub(crate) fn admit(&self, lease: &Lease) -> Result<(), NetworkError> {
        self.programmer.apply(&self.elements("add", lease))
    }

    /// What comes from the pod's link is dropped from now on. Blocks.
    pub(crate) fn dismiss(&self, lease: &Lease) -> Result<(), NetworkError> {
        self.programmer.apply(&self.elements("delete", lease))
    }

    /// Ends the programmer's session when nothing has changed for a while; to be called where tasks can be spawned.
    pub(crate) fn retire_when_idle(&self) {
        self.programmer.retire_when_idle();
    }

    fn script<'a>(&self, leases: impl Iterator<Item = &'a Lease>) -> String {
        let table = self.names.guard_table();
        let (bridge, links) = (self.names.bridge(), self.names.host_links());
        let mut script = Script(String::new());
        script.line(format_args!("add table bridge {table}"));
        for (set, kind) in SETS {
            script.line(format_args!("add set bridge {table} {set} {{ {kind}; }}"));
        }
        for (chain, _) in CHAINS {
            script.line(format_args!("add chain bridge {table} {chain}"));
        }
        script.line(format_args!(
            "add chain bridge {table} {HOOK} {{ {FIRST} }}"
        ));
        script.line(format_args!("flush table bridge {table}"));
        for (chain, rules) in CHAINS {
            for rule in rules {
                script.line(format_args!("add rule bridge {table} {chain} {rule}"));
            }
        }
        script.line(format_args!(
            "add rule bridge {table} {HOOK} iifname \"{links}*\" goto from_pods"
        ));
        script.line(format_args!("add table inet {table}"));
        script.line(format_args!("add chain inet {table} {HOOK} {{ {EARLY} }}"));
        script.line(format_args!("flush table inet {table}"));
        script.line(format_args!(
            "add rule inet {table} {HOOK} iifname \"{links}*\" counter drop"
        ));
        for range in &self.ranges {
            let family = match range {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            script.line(format_args!(
                "add rule inet {table} {HOOK} iifname != {{ \"lo\", \"{bridge}\" }} {family} saddr {range} counter drop"
            ));
        }
        for (set, _) in SETS {
            script.line(format_args!("flush set bridge {table} {set}"));
        }
        for lease in leases {
            script.0.push_str(&self.elements("add", lease));
        }
        script.0
    }

    /// The commands that add or delete what a pod is known by.
    fn elements(&self, verb: &str, lease: &Lease) -> String {
        let table = self.names.guard_table();
        let link = self.names.host_link(lease.ip);
        let mac = hardware_address(lease.ip);
        let (colons, number) = (colons(mac), hexadecimal(&mac));
        let mut script = Script(String::new());
        let mut element = |set: &str, rest: fmt::Arguments<'_>| {
            script.line(format_args!(
                "{verb} element bridge {table} {set} {{ \"{link}\" . {rest} }}"
            ));
        };
        element("hardware", format_args!("{colons}"));
        element("option", format_args!("{number}"));
        element("own_4", format_args!("{colons} . {}", lease.ip));
        for address in addresses6(lease, mac) {
            element("own_6", format_args!("{colons} . {address}"));
            element(
                "announced",
                format_args!("{}", hexadecimal(&address.octets())),
            );
        }
        script.0
    }
}

/// A pod has the link-local address of its hardware address besides that of its lease (`netns.rs`).
fn addresses6(lease: &Lease, mac: Mac) -> impl Iterator<Item = Ipv6Addr> {
    std::iter::once(link_local(mac)).chain(lease.ip6)
}

fn colons(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().fold("0x".to_owned(), |mut number, octet| {
        let _infallible = write!(number, "{octet:02x}");
        number
    })
}

struct Script(String);

impl Script {
    fn line(&mut self, words: fmt::Arguments<'_>) {
        let _infallible = writeln!(self.0, "{words}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ipv6Network;

    fn guard() -> Guard {
        let node = NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/d".into(),
            ipv6: Some(Ipv6Network {
                pod_cidr: "fd00:3::/64".parse().unwrap(),
                cluster_pod_cidr: "fd00::/16".parse().unwrap(),
                service_cidr: None,
            }),
            overlay: None,
        };
        Guard::new(Nft::find().unwrap(), &Names::new(&node).unwrap(), &node)
    }

    fn lease(last: u8) -> Lease {
        Lease {
            ip: [10, 244, 3, last].into(),
            ip6: Some(format!("fd00:3::{last:x}").parse().unwrap()),
            host_ports: vec![],
            ready: true,
        }
    }

    #[test]
    fn a_pod_is_elements_and_no_rule() {
        let guard = guard();
        let rules = |leases: &[Lease]| {
            let script = guard.script(leases.iter());
            script
                .lines()
                .filter(|line| line.starts_with("add rule"))
                .count()
        };
        assert_eq!(rules(&[]), rules(&[lease(7), lease(8), lease(9)]));
        assert_eq!(
            guard.elements("delete", &lease(9)),
            "delete element bridge gt-guard hardware { \"gt.9\" . 02:67:0a:f4:03:09 }\n\
             delete element bridge gt-guard option { \"gt.9\" . 0x02670af40309 }\n\
             delete element bridge gt-guard own_4 { \"gt.9\" . 02:67:0a:f4:03:09 . 10.244.3.9 }\n\
             delete element bridge gt-guard own_6 { \"gt.9\" . 02:67:0a:f4:03:09 . fe80::67:aff:fef4:309 }\n\
             delete element bridge gt-guard announced { \"gt.9\" . 0xfe8000000000000000670afffef40309 }\n\
             delete element bridge gt-guard own_6 { \"gt.9\" . 02:67:0a:f4:03:09 . fd00:3::9 }\n\
             delete element bridge gt-guard announced { \"gt.9\" . 0xfd000003000000000000000000000009 }\n"
        );
    }

    #[test]
    fn every_chain_of_a_pods_frames_ends_in_a_drop() {
        for (chain, rules) in CHAINS {
            assert_eq!(rules.last(), Some(&"counter drop"), "{chain}");
        }
    }
}
