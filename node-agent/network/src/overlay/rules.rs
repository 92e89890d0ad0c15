//! The nftables table of what travels between nodes, as text.
//!
//! - TCP connections that are opened through the VXLAN device agree on segments that fit it, also those of pods
//!   whose links are larger because they were attached under another MTU.
//! - The wrapped packets themselves are kept out of connection tracking: each flow in them would take an entry of its
//!   own, and what is in them is tracked anyway.

use std::net::IpAddr;

use crate::OverlaySettings;
use crate::names::Names;

/// A chain that is there whenever the table is.
pub(super) const CHAIN: &str = "forward";

/// The script that makes the table anew, in one transaction.
pub(super) fn table(names: &Names, settings: &OverlaySettings, has_address: bool) -> String {
    let (table, device, port) = (names.overlay_table(), names.vxlan(), settings.port);
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
  chain {CHAIN} {{
    type filter hook forward priority mangle; policy accept;
    oifname "{device}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
  }}
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
