//! The nftables table of a node's pods, as text: host ports and masquerade.
//!
//! ```text
//! packet to the host --prerouting/output--> host_ports: (address, port) or (port) -> dnat to the pod
//! pod -> outside the cluster --postrouting--> masquerade
//! ```
//!
//! Packets between pods keep their source, on whichever nodes they are. Other nodes' own addresses are outside the
//! cluster in this sense: a node sees a node, whose address leads back by any way.
//!
//! In a dual-stack cluster there is a second table of the same name, for IPv6. A host port of all addresses is one of
//! IPv6 addresses too, but for the loopback's, which the kernel never lets leave the host.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use crate::leases::Lease;
use crate::names::Names;
use crate::{HostPort, Ipv6Network, NodeNetwork, Protocol};

/// An element of a set or map: which one, and the element in nft's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Element {
    /// ip or ip6
    family: &'static str,
    object: String,
    key: String,
    value: Option<String>,
}

fn elements(lease: &Lease) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    for port in &lease.host_ports {
        let protocol = port.protocol.word();
        let (object, key) = match port.host_ip {
            None => (format!("port_{protocol}"), port.host_port.to_string()),
            Some(host) => (
                format!("address_{protocol}"),
                format!("{host} . {}", port.host_port),
            ),
        };
        let mut lead = |family, object, key, ip: IpAddr| {
            elements.insert(Element {
                family,
                object,
                key,
                value: Some(format!("{ip} . {}", port.container_port)),
            });
            elements.insert(Element {
                family,
                object: "hairpin".to_owned(),
                key: format!("{ip} . {ip}"),
                value: None,
            });
        };
        let of_v4 = port.host_ip.is_none_or(|host| host.is_ipv4());
        let of_v6 = port.host_ip.is_none_or(|host| host.is_ipv6());
        if let Some(ip6) = lease.ip6.filter(|_| of_v6) {
            lead("ip6", object.clone(), key.clone(), ip6.into());
        }
        if of_v4 {
            lead("ip", object, key, lease.ip.into());
        }
    }
    elements
}

/// The script that makes the whole table anew, in one transaction.
pub(crate) fn table<'a>(
    names: &Names,
    node: &NodeNetwork,
    leases: impl Iterator<Item = &'a Lease>,
) -> String {
    let table = names.pod_table();
    let bridge = names.bridge();
    let pods = node.pod_cidr.trunc();
    let cluster = node.cluster_pod_cidr.trunc();
    let services = node.service_cidr.trunc();
    let mut maps = String::new();
    let mut lookups = String::new();
    for (protocol, number) in Protocol::ALL.map(|protocol| (protocol.word(), protocol.number())) {
        let _infallible = write!(
            maps,
            "  map port_{protocol} {{ type inet_service : ipv4_addr . inet_service; }}\n  \
             map address_{protocol} {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}\n"
        );
        let _infallible = write!(
            lookups,
            "    meta l4proto {number} dnat ip to ip daddr . {protocol} dport map @address_{protocol}\n    \
             meta l4proto {number} ip daddr != {services} dnat ip to {protocol} dport map @port_{protocol}\n"
        );
    }
    let mut script = format!(
        r#"add table ip {table}
delete table ip {table}
table ip {table} {{
{maps}  set hairpin {{ type ipv4_addr . ipv4_addr; }}
  chain host_ports {{
{lookups}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat - 1; policy accept;
    fib daddr type local goto host_ports
  }}
  chain output {{
    type nat hook output priority -101; policy accept;
    fib daddr type local goto host_ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
    ct status dnat ip saddr . ip daddr @hairpin masquerade
    ip saddr {pods} oifname != "{bridge}" ip daddr != {{ {cluster}, 224.0.0.0/4 }} masquerade fully-random
  }}
}}
"#
    );
    if let Some(ipv6) = &node.ipv6 {
        script.push_str(&table6(&table, &bridge, ipv6));
    }
    for lease in leases {
        script.push_str(&add(names, lease));
    }
    script
}

fn table6(table: &str, bridge: &str, ipv6: &Ipv6Network) -> String {
    let pods = ipv6.pod_cidr.trunc();
    let cluster = ipv6.cluster_pod_cidr.trunc();
    let not_a_service = ipv6
        .service_cidr
        .map(|services| format!(", {}", services.trunc()))
        .unwrap_or_default();
    let mut maps = String::new();
    let mut lookups = String::new();
    for (protocol, number) in Protocol::ALL.map(|protocol| (protocol.word(), protocol.number())) {
        let _infallible = write!(
            maps,
            "  map port_{protocol} {{ type inet_service : ipv6_addr . inet_service; }}\n  \
             map address_{protocol} {{ type ipv6_addr . inet_service : ipv6_addr . inet_service; }}\n"
        );
        let _infallible = write!(
            lookups,
            "    meta l4proto {number} dnat ip6 to ip6 daddr . {protocol} dport map @address_{protocol}\n    \
             meta l4proto {number} ip6 daddr != {{ ::1{not_a_service} }} dnat ip6 to {protocol} dport map @port_{protocol}\n"
        );
    }
    format!(
        r#"add table ip6 {table}
delete table ip6 {table}
table ip6 {table} {{
{maps}  set hairpin {{ type ipv6_addr . ipv6_addr; }}
  chain host_ports {{
{lookups}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat - 1; policy accept;
    fib daddr type local goto host_ports
  }}
  chain output {{
    type nat hook output priority -101; policy accept;
    fib daddr type local goto host_ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip6 saddr . ip6 daddr @hairpin masquerade
    ip6 saddr {pods} oifname != "{bridge}" ip6 daddr != {{ {cluster}, fe80::/10, ff00::/8 }} masquerade fully-random
  }}
}}
"#
    )
}

/// The commands that add a pod's host ports; empty when it has none.
pub(crate) fn add(names: &Names, lease: &Lease) -> String {
    render("add", names, &elements(lease))
}

/// The commands that remove a pod's host ports; empty when it has none.
pub(crate) fn remove(names: &Names, lease: &Lease) -> String {
    render("delete", names, &elements(lease))
}

fn render(verb: &str, names: &Names, elements: &BTreeSet<Element>) -> String {
    let table = names.pod_table();
    let mut script = String::new();
    for Element {
        family,
        object,
        key,
        value,
    } in elements
    {
        let value = value
            .as_ref()
            .filter(|_| verb == "add")
            .map(|value| format!(" : {value}"))
            .unwrap_or_default();
        let _infallible = writeln!(
            script,
            "{verb} element {family} {table} {object} {{ {key}{value} }}"
        );
    }
    script
}

/// Why a pod cannot have a port, whoever else wants it.
pub(crate) fn impossible(port: &HostPort, ip6: Option<Ipv6Addr>) -> Option<String> {
    let (host, number) = (port.host_ip.filter(IpAddr::is_ipv6)?, port.host_port);
    if host.is_loopback() {
        return Some(format!(
            "host port {number}: nothing that is sent to {host} leaves the host; choose 127.0.0.1 or another address of it"
        ));
    }
    match ip6 {
        Some(_) => None,
        None => Some(format!(
            "host port {number}: {host} is an IPv6 address and the pod has none; choose one of IPv4"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn port(host_ip: Option<[u8; 4]>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort {
            host_ip: host_ip.map(IpAddr::from),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    fn node() -> NodeNetwork {
        NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/d".into(),
            ipv6: None,
            overlay: None,
        }
    }

    #[test]
    fn host_ports_become_elements_and_are_removed_by_key() {
        let names = Names::new(&node()).unwrap();
        let lease = Lease {
            ip: Ipv4Addr::new(10, 244, 3, 9),
            ip6: None,
            host_ports: vec![
                port(None, 80, Protocol::Tcp),
                port(Some([127, 0, 0, 1]), 53, Protocol::Udp),
            ],
            ready: true,
        };
        assert_eq!(
            add(&names, &lease),
            "add element ip gt-pods address_udp { 127.0.0.1 . 53 : 10.244.3.9 . 80 }\n\
             add element ip gt-pods hairpin { 10.244.3.9 . 10.244.3.9 }\n\
             add element ip gt-pods port_tcp { 80 : 10.244.3.9 . 80 }\n"
        );
        assert_eq!(
            remove(&names, &lease),
            "delete element ip gt-pods address_udp { 127.0.0.1 . 53 }\n\
             delete element ip gt-pods hairpin { 10.244.3.9 . 10.244.3.9 }\n\
             delete element ip gt-pods port_tcp { 80 }\n"
        );
        assert!(
            table(&names, &node(), [lease].iter()).ends_with("port_tcp { 80 : 10.244.3.9 . 80 }\n")
        );
        let none = Lease {
            ip: Ipv4Addr::new(10, 244, 3, 10),
            ip6: None,
            host_ports: vec![],
            ready: true,
        };
        assert_eq!(add(&names, &none), "");
    }

    #[test]
    fn a_pod_with_ipv6_has_its_ports_there_as_well() {
        let names = Names::new(&node()).unwrap();
        let lease = Lease {
            ip: Ipv4Addr::new(10, 244, 3, 9),
            ip6: Some("fd00:3::9".parse().unwrap()),
            host_ports: vec![
                port(None, 80, Protocol::Tcp),
                port(Some([192, 0, 2, 1]), 53, Protocol::Udp),
                HostPort {
                    host_ip: Some("2001:db8::1".parse().unwrap()),
                    ..port(None, 443, Protocol::Tcp)
                },
            ],
            ready: true,
        };
        let added = add(&names, &lease);
        let ipv6: Vec<&str> = added.lines().filter(|line| line.contains("ip6")).collect();
        assert_eq!(
            ipv6,
            [
                "add element ip6 gt-pods address_tcp { 2001:db8::1 . 443 : fd00:3::9 . 80 }",
                "add element ip6 gt-pods hairpin { fd00:3::9 . fd00:3::9 }",
                "add element ip6 gt-pods port_tcp { 80 : fd00:3::9 . 80 }",
            ]
        );
        assert_eq!(added.lines().count(), 6);
        assert_eq!(remove(&names, &lease).lines().count(), 6);
    }

    #[test]
    fn addresses_that_cannot_lead_to_the_pod_are_told() {
        let told = |host: &str, ip6: Option<&str>| {
            let port = HostPort {
                host_ip: Some(host.parse().unwrap()),
                ..port(None, 443, Protocol::Tcp)
            };
            impossible(&port, ip6.map(|ip6| ip6.parse().unwrap()))
        };
        assert_eq!(told("192.0.2.1", None), None);
        assert_eq!(told("2001:db8::1", Some("fd00:3::9")), None);
        let none = told("2001:db8::1", None).unwrap();
        assert!(none.contains("the pod has none"), "{none}");
        let loopback = told("::1", Some("fd00:3::9")).unwrap();
        assert!(loopback.contains("choose 127.0.0.1"), "{loopback}");
        assert_eq!(impossible(&port(None, 443, Protocol::Tcp), None), None);
    }

    #[test]
    fn the_table_is_replaced_in_the_transaction_that_removes_it() {
        let names = Names::new(&node()).unwrap();
        let script = table(&names, &node(), std::iter::empty());
        assert!(
            script
                .starts_with("add table ip gt-pods\ndelete table ip gt-pods\ntable ip gt-pods {\n"),
            "{script}"
        );
        assert!(script.contains(
            "ip saddr 10.244.3.0/24 oifname != \"gt-br\" ip daddr != { 10.244.0.0/16, 224.0.0.0/4 }"
        ));
    }
}
