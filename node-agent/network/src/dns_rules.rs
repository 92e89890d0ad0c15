//! The nftables table that keeps questions to the node's DNS, and the answers, out of connection tracking.
//!
//! The address is the node's own and nothing is translated on the way, so that there is nothing to track; but each
//! question from a new port would take an entry for half a minute, fill the table of a busy node, and race with its own
//! twin (A and AAAA are asked from one port at once), which loses one of the two: the five-second stall.
//!
//! A table of its own: it has both address families, and is there as soon as, and as long as, the address is.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use crate::Protocol;
use crate::names::Names;

/// The script that makes the table anew for these addresses, in one transaction.
pub(crate) fn table(names: &Names, addresses: &BTreeSet<IpAddr>) -> String {
    let table = names.dns_table();
    let (tcp, udp) = (Protocol::Tcp.number(), Protocol::Udp.number());
    let mut rules = String::new();
    for address in addresses {
        let family = match address {
            IpAddr::V4(_) => "ip",
            IpAddr::V6(_) => "ip6",
        };
        let _infallible = write!(
            rules,
            "    {family} daddr {address} meta l4proto {{ {tcp}, {udp} }} th dport 53 counter notrack\n    \
             {family} saddr {address} meta l4proto {{ {tcp}, {udp} }} th sport 53 counter notrack\n"
        );
    }
    format!(
        "add table inet {table}\n\
         delete table inet {table}\n\
         table inet {table} {{\n  \
         chain untracked {{\n{rules}  }}\n  \
         chain prerouting {{\n    type filter hook prerouting priority raw; policy accept;\n    jump untracked\n  }}\n  \
         chain output {{\n    type filter hook output priority raw; policy accept;\n    jump untracked\n  }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeNetwork;

    #[test]
    fn both_ways_of_each_address_are_untracked() {
        let node = NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/d".into(),
            ipv6: None,
            overlay: None,
        };
        let addresses = ["10.96.0.10", "fd00::a"].map(|a| a.parse().unwrap());
        let script = table(&Names::new(&node).unwrap(), &addresses.into());
        assert!(script.starts_with("add table inet gt-dns\ndelete table inet gt-dns\n"));
        for rule in [
            "ip daddr 10.96.0.10 meta l4proto { 6, 17 } th dport 53 counter notrack",
            "ip saddr 10.96.0.10 meta l4proto { 6, 17 } th sport 53 counter notrack",
            "ip6 daddr fd00::a meta l4proto { 6, 17 } th dport 53 counter notrack",
            "ip6 saddr fd00::a meta l4proto { 6, 17 } th sport 53 counter notrack",
        ] {
            assert!(script.contains(rule), "{script}");
        }
    }
}
