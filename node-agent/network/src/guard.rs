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
//! bridge, prerouting and input: from a port of the node's bridge that is no pod's: dropped
//! bridge, forward: between a pod's port and one that is no pod's: dropped
//! inet, prerouting
//!   from a port that is not one of the bridge (any more), or from elsewhere with an address of this node's pods: dropped
//! inet, forward
//!   to an address of this node's ranges that no pod has: refused, not looked for                not in leased_4, leased_6
//! ```
//!
//! The last is for the kernel's table of neighbours, of which there is one for all links: an address that is looked for has a
//! place in it, and a pod could ask for all of them.
//!
//! Chains never change: a pod is an element of each set, whose key begins with its link's name. The names of links follow
//! from leases, so that the elements are there before the link is.
//!
//! A pod with CAP_NET_ADMIN and no user namespace of its own can make a link whose other end is a port of the bridge: the
//! kernel lets it name the host's namespace by the id that its own link has of it, and gives every pair that id. Such a port
//! is none of ours, and is taken off the bridge (`bridge/look.rs`). Which bridge a frame came by is told by a module
//! (`nft_meta_bridge`) that some kernels are built without: there, such a port speaks to the host, but not to pods, until it
//! is taken off.
//!
//! Invariant: what is not admitted is dropped. A packet that cannot be read (too short, headers that do not end) matches no
//! rule and comes to the drop at each chain's end.

use std::fmt::{self, Write};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Sets of the `inet` table: the addresses that pods have.
const LEASED: [(&str, &str); 2] = [("leased_4", "ipv4_addr"), ("leased_6", "ipv6_addr")];

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
/// Before other rules about what passes the node.
const THROUGH: &str = "type filter hook forward priority filter - 10; policy accept;";
/// Before other rules about what passes from port to port, or from a port to the host.
const PASSING: [(&str, &str); 2] = [
    (
        "forward",
        "type filter hook forward priority -450; policy accept;",
    ),
    (
        "input",
        "type filter hook input priority -450; policy accept;",
    ),
];

/// The guard of one node's pods.
pub(crate) struct Guard {
    programmer: Programmer,
    names: Names,
    ranges: Vec<IpNet>,
    /// The kernel can tell which bridge a frame came by, as far as is known.
    tells_bridges: AtomicBool,
}

impl Guard {
    pub(crate) fn new(nft: Nft, names: &Names, node: &NodeNetwork) -> Self {
        let ipv6 = node.ipv6.map(|ipv6| IpNet::V6(ipv6.pod_cidr.trunc()));
        let ranges = [IpNet::V4(node.pod_cidr.trunc())].into_iter().chain(ipv6);
        Self {
            programmer: Programmer::new(nft),
            names: names.clone(),
            ranges: ranges.collect(),
            tells_bridges: AtomicBool::new(true),
        }
    }

    /// Makes the tables, or fills those that are there, so that exactly these pods are admitted; no packet passes
    /// unguarded meanwhile. Blocks.
    pub(crate) fn fill<'a>(
        &self,
        leases: impl Iterator<Item = &'a Lease>,
    ) -> Result<(), NetworkError> {
        let leases: Vec<&Lease> = leases.collect();
        let tells_bridges = self.tells_bridges.load(Ordering::Relaxed);
        match self.put(&self.script(&leases, tells_bridges)) {
            Err(NetworkError::Unsupported(words)) if tells_bridges => {
                self.put(&self.script(&leases, false))?;
                tracing::warn!(
                    words,
                    "the kernel cannot tell which bridge a frame came by (nft_meta_bridge): ports of the node's bridge that \
                     are no pod's are taken off it, but not silenced before"
                );
                self.tells_bridges.store(false, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    /// Applies the script to the tables that are there, or to new ones should they be of another make.
    fn put(&self, script: &str) -> Result<(), NetworkError> {
        match self.programmer.set_up(script) {
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

    fn script(&self, leases: &[&Lease], tells_bridges: bool) -> String {
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
        for (chain, hook) in PASSING {
            script.line(format_args!(
                "add chain bridge {table} {chain} {{ {hook} }}"
            ));
        }
        script.line(format_args!("flush table bridge {table}"));
        for (chain, rules) in CHAINS {
            for rule in rules {
                script.line(format_args!("add rule bridge {table} {chain} {rule}"));
            }
        }
        // The node's own frames come from no port: they meet neither hook.
        for hook in [HOOK, "input"].into_iter().filter(|_| tells_bridges) {
            script.line(format_args!(
                "add rule bridge {table} {hook} meta ibrname \"{bridge}\" iifname != \"{links}*\" counter drop"
            ));
        }
        for (from, to) in [("!= ", ""), ("", "!= ")] {
            script.line(format_args!(
                "add rule bridge {table} forward iifname {from}\"{links}*\" oifname {to}\"{links}*\" counter drop"
            ));
        }
        script.line(format_args!(
            "add rule bridge {table} {HOOK} iifname \"{links}*\" goto from_pods"
        ));
        script.line(format_args!("add table inet {table}"));
        script.line(format_args!("add chain inet {table} {HOOK} {{ {EARLY} }}"));
        for (set, kind) in LEASED {
            script.line(format_args!(
                "add set inet {table} {set} {{ type {kind}; }}"
            ));
        }
        script.line(format_args!(
            "add chain inet {table} forward {{ {THROUGH} }}"
        ));
        script.line(format_args!("flush table inet {table}"));
        script.line(format_args!(
            "add rule inet {table} {HOOK} iifname \"{links}*\" counter drop"
        ));
        for range in &self.ranges {
            let (family, leased, refusal) = match range {
                IpNet::V4(_) => ("ip", "leased_4", "icmp type host-unreachable"),
                IpNet::V6(_) => ("ip6", "leased_6", "icmpv6 type addr-unreachable"),
            };
            script.line(format_args!(
                "add rule inet {table} {HOOK} iifname != {{ \"lo\", \"{bridge}\" }} {family} saddr {range} counter drop"
            ));
            script.line(format_args!(
                "add rule inet {table} forward oifname \"{bridge}\" {family} daddr {range} {family} daddr != @{leased} \
                 counter reject with {refusal}"
            ));
        }
        for (set, _) in LEASED {
            script.line(format_args!("flush set inet {table} {set}"));
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
        script.line(format_args!(
            "{verb} element inet {table} leased_4 {{ {} }}",
            lease.ip
        ));
        if let Some(address) = lease.ip6 {
            script.line(format_args!(
                "{verb} element inet {table} leased_6 {{ {address} }}"
            ));
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
            let script = guard.script(&leases.iter().collect::<Vec<_>>(), true);
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
             delete element bridge gt-guard announced { \"gt.9\" . 0xfd000003000000000000000000000009 }\n\
             delete element inet gt-guard leased_4 { 10.244.3.9 }\n\
             delete element inet gt-guard leased_6 { fd00:3::9 }\n"
        );
    }

    #[test]
    fn a_port_of_the_bridge_that_is_no_pods_reaches_nobody() {
        let script = guard().script(&[], true);
        let at = |rule: &str| {
            let rule = format!("add rule bridge gt-guard {rule}");
            script.lines().position(|line| line == rule).expect(&rule)
        };
        let stranger = "meta ibrname \"gt-br\" iifname != \"gt.*\" counter drop";
        assert!(
            at(&format!("prerouting {stranger}"))
                < at("prerouting iifname \"gt.*\" goto from_pods")
        );
        at(&format!("input {stranger}"));
        at("forward iifname != \"gt.*\" oifname \"gt.*\" counter drop");
        at("forward iifname \"gt.*\" oifname != \"gt.*\" counter drop");
        // A kernel that knows no bridges' names still keeps such ports from pods.
        let lesser = guard().script(&[], false);
        let left: Vec<&str> = script
            .lines()
            .filter(|line| !line.contains("ibrname"))
            .collect();
        assert_eq!(lesser.lines().collect::<Vec<_>>(), left);
    }

    #[test]
    fn addresses_that_no_pod_has_are_refused() {
        let lease = lease(9);
        let script = guard().script(&[&lease], true);
        for line in [
            "add rule inet gt-guard forward oifname \"gt-br\" ip daddr 10.244.3.0/24 ip daddr != @leased_4 \
             counter reject with icmp type host-unreachable",
            "add rule inet gt-guard forward oifname \"gt-br\" ip6 daddr fd00:3::/64 ip6 daddr != @leased_6 \
             counter reject with icmpv6 type addr-unreachable",
            "add element inet gt-guard leased_4 { 10.244.3.9 }",
            "add element inet gt-guard leased_6 { fd00:3::9 }",
        ] {
            assert!(script.lines().any(|one| one == line), "{line}");
        }
    }

    #[test]
    fn every_chain_of_a_pods_frames_ends_in_a_drop() {
        for (chain, rules) in CHAINS {
            assert_eq!(rules.last(), Some(&"counter drop"), "{chain}");
        }
    }
}
