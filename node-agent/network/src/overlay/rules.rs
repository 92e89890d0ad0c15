//! The nftables table of what travels between nodes, as text.
//!
//! - TCP connections that are opened through the VXLAN device agree on segments that fit it, also those of pods
//!   whose links are larger because they were attached under another MTU.
//! - The wrapped packets themselves are kept out of connection tracking: each flow in them would take an entry of its
//!   own, and what is in them is tracked anyway.
//! - Whoever can send packets of the cluster's network identifier to a node's VXLAN device speaks as any pod to any pod. So
//!   a node takes them from nodes alone, and none that pods send leaves a node for anything but another pod: masqueraded,
//!   it would come from a node. Both are looked at behind services' translations, which could lead there as well.
//! - A node holds addresses among its pods' too, its gateway's and its device's, by which others reach it through another
//!   node, as a service's endpoint even in that node's name. No node sends wrapped packets to them: a node's own address is
//!   never in the pods' range (`underlay.rs`).
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
    let mut to_pods = format!("    ip daddr {pods} {wrapped} counter drop\n");
    if let Some(pods) = pods6 {
        let _infallible = writeln!(to_pods, "    ip6 daddr {pods} {wrapped} counter drop");
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
{to_pods}{from_nodes}  }}
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ipv6Network;

    #[test]
    fn no_packet_for_the_device_comes_by_an_address_among_the_pods() {
        let settings = OverlaySettings::new("192.0.2.1".parse().unwrap());
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
            overlay: Some(settings.clone()),
        };
        let names = Names::new(&node).unwrap();
        for has_address in [true, false] {
            let table = table(&names, &node, &settings, has_address);
            let (_, input) = table.split_once("chain input {").unwrap();
            let (input, _) = input.split_once('}').unwrap();
            let wrapped = format!("udp dport 8472 @th,96,24 {}", settings.vni);
            for range in ["ip daddr 10.244.0.0/16", "ip6 daddr fd00::/16"] {
                let rule = format!("    {range} {wrapped} counter drop\n");
                assert!(input.contains(&rule), "{rule} is not in {input}");
            }
        }
    }
}
