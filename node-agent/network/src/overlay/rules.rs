//! The nftables table of what travels between nodes, as text.
//!
//! - TCP connections that are opened through the VXLAN device agree on segments that fit it, also those of pods
//!   whose links are larger because they were attached under another MTU.
//! - The wrapped packets themselves are kept out of connection tracking: each flow in them would take an entry of its
//!   own, and what is in them is tracked anyway.
//! - Whoever can send packets of the cluster's network identifier to a node's VXLAN device speaks as any pod to any pod. So
//!   a node takes them from nodes alone, and none that pods send leaves a node for anything but another pod: masqueraded,
//!   it would come from a node. Both are looked at behind services' translations, which could lead there as well.
//!
//! A node behind a translator cannot tell which addresses the others' packets come from, and takes them from anybody: keep
//! strangers from the port there.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use crate::names::Names;
use crate::{NodeNetwork, OverlaySettings};

/// A chain that is there whenever the table is.
pub(super) const CHAIN: &str = "forward";
/// Where the network identifier is in a wrapped packet, from its UDP header on (RFC 7348, section 5).
const IDENTIFIER: &str = "@th,96,24";

/// The script that makes the table anew, in one transaction.
pub(super) fn table(
    names: &Names,
    node: &NodeNetwork,
    settings: &OverlaySettings,
    has_address: bool,
) -> String {
    let (table, device, port) = (names.overlay_table(), names.vxlan(), settings.port);
    let bridge = names.bridge();
    let wrapped = format!("udp dport {port} {IDENTIFIER} {}", settings.vni);
    let pods = node.cluster_pod_cidr.trunc();
    let pods6 = node.ipv6.map(|ipv6| ipv6.cluster_pod_cidr.trunc());
    let mut kept_in = String::new();
    for beyond in [
        Some(format!("ip daddr != {pods}")),
        pods6.map(|pods| format!("ip6 daddr != {pods}")),
    ]
    .into_iter()
    .flatten()
    {
        let _infallible = write!(
            kept_in,
            "    iifname \"{bridge}\" {beyond} {wrapped} counter drop\n    \
             ct status dnat {beyond} {wrapped} counter drop\n"
        );
    }
    let from_nodes = match has_address {
        false => String::new(),
        true => format!(
            "    ip saddr != @nodes_4 {wrapped} counter drop\n    ip6 saddr != @nodes_6 {wrapped} counter drop\n"
        ),
    };
    // A pod's own traffic on this port is not ours: only what comes to the node and leaves from it.
    let (to_node, from_node) = match settings.node_address {
        _ if !has_address => (
            "fib daddr type local".to_owned(),
            "fib saddr type local".to_owned(),
        ),
        IpAddr::V4(address) => (format!("ip daddr {address}"), format!("ip saddr {address}")),
        IpAddr::V6(address) => (
            format!("ip6 daddr {address}"),
            format!("ip6 saddr {address}"),
        ),
    };
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
  set nodes_4 {{ type ipv4_addr; }}
  set nodes_6 {{ type ipv6_addr; }}
  chain {CHAIN} {{
    type filter hook forward priority mangle; policy accept;
{kept_in}    oifname "{device}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
  }}
  chain input {{
    type filter hook input priority mangle; policy accept;
    iifname "{bridge}" {wrapped} counter drop
{from_nodes}  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    {to_node} udp dport {port} notrack
  }}
  chain output {{
    type filter hook output priority raw; policy accept;
    {from_node} udp dport {port} notrack
  }}
}}
"#
    )
}

/// The commands that take wrapped packets from exactly the nodes of `next`; `now` is whom they are taken from, where that is
/// known.
pub(super) fn exchange_nodes(
    names: &Names,
    now: Option<&BTreeSet<IpAddr>>,
    next: &BTreeSet<IpAddr>,
) -> String {
    let table = names.overlay_table();
    let mut script = String::new();
    let nobody = BTreeSet::new();
    let now = now.unwrap_or_else(|| {
        for family in [4, 6] {
            let _infallible = writeln!(script, "flush set inet {table} nodes_{family}");
        }
        &nobody
    });
    for (verb, addresses) in [
        ("delete", now.difference(next)),
        ("add", next.difference(now)),
    ] {
        for address in addresses {
            let family = if address.is_ipv4() { 4 } else { 6 };
            let _infallible = writeln!(
                script,
                "{verb} element inet {table} nodes_{family} {{ {address} }}"
            );
        }
    }
    script
}
